"""Disciplines: task by task what an event engine in plain Python does, and what theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import stations
from jaxlb.stations import FCFS, Table, disciplines
from tests import event_engine, small

CASES = {
    "fcfs": {},
    "lcfs-pr": {},
    "srpt": {},
    "psjf": {},
    "sjf": {},
    "priority": {},
    "priority-preemptive": {},
    "edf": {},
    "c-mu": {"weights": (4.0, 2.0, 0.5)},
    "ps": {},
    "fb": {},
    "limited-ps": {"slots": 3},
    "fcfs, 3 slots": {"slots": 3},
    "srpt, 2 slots": {"slots": 2},
    "sjf, 2 slots": {"slots": 2},
    "priority, 2 slots": {"slots": 2},
    "fcfs, 4 and 1 slots": {"slots": (4, 1)},
    "sjf, 1 and 3 slots": {"slots": (1, 3)},
    "psjf, 3 and 1 slots": {"slots": (3, 1)},
    "ps, 4 cores": {"capacity": "cores(4)"},
    "ps, batching": {"capacity": "batching(0.3)"},
    "limited-ps, batching": {"slots": 4, "capacity": "batching(0.3)"},
}
CURVES = {"cores(4)": lambda n: min(n, 4), "batching(0.3)": lambda n: n / (1 + 0.3 * (n - 1))}


def made(case, queue_capacity=32, **overrides):
    name, options = case.split(",")[0], CASES[case]
    station = Table(disciplines.named(name, **options), queue_capacity)
    return jaxlb.make("seed", station=station, **overrides)


def tasks_of(params, number, key, scale=1.0):
    tasks = jaxlb.workload.sample(key, params, number)
    return tasks.replace(gap=tasks.gap * scale)


QUICK = (
    "fcfs",
    "srpt",
    "sjf",
    "edf",
    "ps, batching",
    "fb",
    "limited-ps",
    "priority, 2 slots",
    "sjf, 1 and 3 slots",
)


@pytest.mark.parametrize("case", small.mostly_slow(CASES, QUICK))
def test_tasks_leave_when_an_event_engine_says(case, key):
    env, params = made(case, speed=[1.0, 1.5], load=0.85)
    options = CASES[case]
    # What is served several at a time gets more tasks.
    several = "cores" in case or ("slots" in options and "limited" not in case)
    tasks = tasks_of(params, 400, key, scale=0.5 if several else 1.0)
    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    expected = event_engine.completions(
        tasks,
        np.asarray(outcome.action),
        params.speed,
        case.split(",")[0],
        options.get("slots", 1),
        CURVES.get(options.get("capacity")),
    )
    assert expected.max() > 10.0 * np.median(expected)
    np.testing.assert_allclose(outcome.completion, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(outcome.violation, outcome.completion > tasks.deadline)


def test_a_small_task_is_served_beside_a_large_one_under_foreground_background():
    """It has had 2e-5, which is less than what rounds off the large one's 1,000."""
    size = jnp.array([[1000.0, 0.1]])
    left = size - jnp.array([[0.0, 2e-5]])
    nothing = jnp.zeros((1, 2), jnp.int32)
    jobs = disciplines.Jobs(left, size, left, jnp.zeros((1, 2)), size, nothing, nothing)
    jobs = jobs.replace(until=disciplines.fb().until(jobs))
    np.testing.assert_allclose(jobs.until[0, 1], 0.2, rtol=1e-2)
    after, gone = disciplines.serve(disciplines.fb(), jobs, jnp.ones(1))
    np.testing.assert_array_equal(gone, [[False, True]])
    np.testing.assert_allclose(after.left, [[999.1, 0.0]], rtol=1e-4)


@pytest.mark.parametrize("number", [1, 4])
def test_fcfs_in_a_table_is_fcfs(number, key):
    table = {"station": Table(disciplines.ordered("fcfs"), 64)}
    env, params = jaxlb.make("heavy-tail", num_processors=number)
    tasks = tasks_of(params, 2000, key)
    outcomes = [
        jaxlb.replay(one, params, "jsq", tasks, key)
        for one in (env, jaxlb.make("heavy-tail", num_processors=number, **table)[0])
    ]
    np.testing.assert_array_equal(outcomes[0].action, outcomes[1].action)
    np.testing.assert_allclose(outcomes[0].completion, outcomes[1].completion, rtol=1e-4)


@pytest.mark.parametrize(
    ("number", "num_tasks"),
    [(4, 2000), *(pytest.param(number, 100_000, marks=pytest.mark.slow) for number in (1, 4, 16))],
)
def test_fcfs_in_a_table_is_fcfs_to_the_last_bit(number, num_tasks, key):
    """On a grid on which sums of float32 are exact."""
    speed = np.resize([0.5, 1.0, 2.0, 1.0], number).tolist()
    env, params = jaxlb.make("heavy-tail", speed=speed, load=0.5)
    table, _ = jaxlb.make("heavy-tail", speed=speed, load=0.5, station=Table(disciplines.ordered("fcfs"), 64))
    tasks = tasks_of(params, num_tasks, key)
    tasks = tasks.replace(gap=jnp.ceil(tasks.gap * 1024) / 1024, size=jnp.ceil(tasks.size * 1024) / 1024)
    one, other = (jaxlb.replay(env, params, "jsq", tasks, jax.random.clone(key)) for env in (env, table))
    np.testing.assert_array_equal(one.action, other.action)
    np.testing.assert_array_equal(one.completion, other.completion)


def test_no_task_is_lost_where_due_times_cross_by_rounding():
    """Gaps and deadlines in tenths, as in a trace: equal due times that rounding puts in any order."""
    lanes, number = 2000, 20
    draw, station = np.random.default_rng(0), Table(disciplines.ordered("edf"), 32)
    state, speed = station.init(1, (lanes,)), jnp.ones((1, lanes))
    step = jax.jit(
        lambda state, gap, task, number: station.assign(
            station.advance(state, speed, gap)[0], speed, task, number, jnp.zeros(lanes, jnp.int32)
        )[0]
    )
    for one in range(number):
        gap, deadline = (jnp.asarray(draw.integers(1, most, lanes) * 0.1, jnp.float32) for most in (5, 50))
        task = jaxlb.Task(
            gap=gap, size=jnp.full(lanes, 1e3), priority=jnp.zeros(lanes, jnp.int32), deadline=deadline
        )
        state = step(state, gap, task, jnp.int32(one))
    held = np.where(state.jobs.left > 0, state.jobs.number, -1)[0]
    expected = np.concatenate([np.full(32 - number, -1), np.arange(number)])
    np.testing.assert_array_equal(np.sort(held, axis=0), np.broadcast_to(expected[:, None], held.shape))


@pytest.mark.parametrize(
    "case", small.mostly_slow(["fcfs", "ps", "srpt", "priority", "fb", "limited-ps"], ["ps", "srpt"])
)
def test_rewards_add_up_to_what_all_tasks_cost(case, key):
    env, params = made(case, 64, completion_exponent=0.7, imbalance_weight=0.0, sla_weight=2.0, load=0.9)
    tasks = tasks_of(params, 300, key)
    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, 0), tasks)
    first = jax.tree.map(lambda leaf: leaf[0], tasks)

    @jax.jit
    def run():
        def body(state, x):
            task, action = x
            state, _, reward = env.transition(state, action, task, params, key)
            return state, reward

        actions = jnp.arange(300, dtype=jnp.int32) % env.num_processors
        return jax.lax.scan(body, env.start(params, first, key), (following, actions))[1]

    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    np.testing.assert_array_equal(outcome.action, np.arange(300) % env.num_processors)
    completion, late = (np.asarray(leaf, np.float64) for leaf in (outcome.completion, outcome.violation))
    cost = float(params.completion_weight) * completion**0.7 + 2.0 * late
    np.testing.assert_allclose(-np.asarray(run(), np.float64).sum(), cost.sum(), rtol=1e-4)


def test_a_task_that_finds_no_place_is_counted_and_no_other_is_lost(key):
    env, params = made("ps", queue_capacity=2, num_processors=1, allow_overload=True, load=3.0)
    tasks = tasks_of(params, 50, key)
    first = jax.tree.map(lambda leaf: leaf[0], tasks)

    def body(state, task):
        state, outcome, _ = env.transition(state, jnp.int32(0), task, params, key)
        return state, (outcome.completion, outcome.departures.known.sum())

    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, 0), tasks)
    state, (expected, left) = jax.lax.scan(body, env.start(params, first, key), following)
    view, refused = env.view(state, params), np.isinf(expected).sum()
    assert view.overflow.sum() == refused > 5
    assert left.sum() + view.queue_length.sum() + refused == 50
    assert view.queue_length.max() <= 2


@pytest.mark.slow
def test_where_places_run_out_all_is_run_again_with_more(key):
    env, params = made("ps", queue_capacity=1, load=0.9)
    found = jaxlb.rollout(env, params, "jsq", key, 4, 200)
    assert found.queue_overflows.sum() == 0
    wide = jaxlb.rollout(made("ps", load=0.9)[0], params, "jsq", key, 4, 200)
    np.testing.assert_allclose(found.mean_completion, wide.mean_completion, rtol=1e-5)


@pytest.mark.slow
def test_a_comparison_counts_who_has_left(key):
    env, params = made("ps", load=0.8)
    some = {"num_lanes": 8, "num_tasks": 200, "warmup": 100}
    table = jaxlb.compare(env, params, {"jsq": "jsq"}, key, **some)
    alone = jaxlb.rollout(env, params, "jsq", key, *some.values())
    row = table.row("jsq")
    assert row.mean_completion == pytest.approx(float(alone.mean_completion.mean()), rel=1e-5)
    assert table.histograms["jsq"].counts.sum() == alone.class_count.sum() != 8 * 200


@pytest.mark.parametrize("case", small.mostly_slow(["ps", "srpt", "limited-ps", "fb", "edf"], ["ps"]))
def test_hypothetical_completions_are_those_that_come_true(case, key):
    """Of the last task, nothing arriving after it."""
    env, params = made(case, load=0.9)
    tasks = tasks_of(params, 40, key)
    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    first, later = (jax.tree.map(lambda leaf, part=part: leaf[part], tasks) for part in (0, slice(1, 40)))

    @jax.jit
    def response():
        def body(state, x):
            return env.transition(state, *x, params, key)[0], None

        actions = jnp.arange(39, dtype=jnp.int32) % 4
        state, _ = jax.lax.scan(body, env.start(params, first, key), (actions, later))
        return env.station.response(state.system.station, params.speed, state.task)

    np.testing.assert_allclose(response()[39 % 4], outcome.completion[39], rtol=1e-5)


@pytest.mark.parametrize("case", small.mostly_slow(["ps", "srpt", "limited-ps"], ["srpt"]))
def test_the_oracle_knows_the_discipline(case, key):
    env, params = made(case, load=0.9)
    summary = jaxlb.rollout(env, params, "oracle", key, num_lanes=4, num_tasks=200)
    np.testing.assert_array_equal(summary.oracle_agreement, 1.0)
    other = jaxlb.rollout(env, params, "lwr", key, num_lanes=4, num_tasks=200)
    assert other.oracle_agreement.max() < 1.0


def test_disciplines_have_names():
    assert jaxlb.make("stable")[0].station == FCFS()
    assert jaxlb.make("stable", discipline="fcfs")[0].station == FCFS()
    env, _ = jaxlb.make("stable", discipline="limited-ps", slots=4, capacity="cores(2)")
    assert env.station == stations.named("limited-ps", slots=4, capacity="cores(2)")
    assert jaxlb.make("stable", discipline="ps", queue_capacity=7)[0].station.queue_capacity == 7
    # Options alone are those of the scenario's own discipline.
    assert jaxlb.make("multicore", slots=2, load=1.0)[0].station.discipline.slots == 2


def test_slots_may_differ_between_processors():
    """Of equal numbers, they are one number; a load is bearable below the sum of speed x slots."""
    tasks = jaxlb.workload.sample(
        jax.random.key(0), jaxlb.make("stable", load=1.5, allow_overload=True)[1], 300
    )
    found = []
    for slots in (2, (2, 2, 2, 2)):
        env, params = jaxlb.make("stable", discipline="sjf", slots=slots, load=1.5)
        found.append(jaxlb.replay(env, params, "greedy", tasks, jax.random.key(1)))
    np.testing.assert_array_equal(found[0].action, found[1].action)
    np.testing.assert_array_equal(found[0].completion, found[1].completion)
    settings = {"discipline": "fcfs", "speed": [1.0, 3.0], "slots": (4, 2)}
    env, params = jaxlb.make("stable", **settings, load=2.49)
    assert env.bearable_load(params) == pytest.approx((1 * 4 + 3 * 2) / (1 + 3))
    with pytest.raises(ValueError, match=r"load = 2\.51: must be below 2\.5"):
        jaxlb.make("stable", **settings, load=2.51)
    env, params = jaxlb.make("stable", **settings, load=0.9, affinity=[[1.0, 0.0]])
    assert env.bearable_load(params) == pytest.approx(1 * 4 / (1 + 3))


@pytest.mark.parametrize("number", [2, 4, 5])
def test_a_scenario_spreads_its_slots(number):
    env, params = jaxlb.make("multicore", num_processors=number)
    assert params.load == pytest.approx(0.8 * env.bearable_load(params))
    assert {min(env.station.discipline.slots), max(env.station.discipline.slots)} <= {2, 4, 8, 16}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discipline": "lifo"}, "discipline 'lifo'"),
        ({"discipline": "ps", "slots": 2}, "slots"),
        ({"discipline": "srpt", "slots": 0}, "slots = 0"),
        ({"discipline": "ps", "capacity": "cores"}, "capacity = 'cores': must be"),
        ({"discipline": "ps", "capacity": "cores(-1)"}, "capacity"),
        ({"discipline": "ps", "capacity": "cores(0)"}, "capacity"),
        ({"discipline": "ps", "capacity": [1.0, 0.0]}, "capacity"),
        ({"discipline": "ps", "queue_capacity": 0}, "queue_capacity = 0"),
        ({"slots": 2}, "slots"),
        ({"discipline": "fcfs", "slots": [1, 2]}, r"slots = \(1, 2\): must be one number, or one for each"),
        ({"discipline": "fcfs", "slots": [1, 2, 0, 1]}, "slots = 0"),
        ({"discipline": "limited-ps", "slots": [1, 2, 1, 1]}, "slots"),
        ({"discipline": "c-mu", "weights": (0.0,)}, "weights = 0"),
        (
            {"discipline": "c-mu", "weights": (1.0, 2.0)},
            "weights: must be 1, one for each priority class, not 2",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make("stable", **settings)


def test_trainers_refuse_what_they_do_not_know(key):
    env, params = jaxlb.make("stable", discipline="ps")
    with pytest.raises(ValueError, match="training of universal knows first come, first served, one"):
        jaxlb.train_universal(env, params, None, key)
    env, params = jaxlb.make("stable", discipline="ps", admission=True)
    with pytest.raises(ValueError, match="admission: must be False, since training of dqn refuses no task"):
        jaxlb.train_dqn(env, params, None, key)


def test_the_myopic_choice_delays_all_together_least(key):
    """By plain Python: all completion times with the task at each processor, less those without."""
    env, params = jaxlb.make("seed", speed=[0.5, 1.0, 2.0], discipline="ps")
    tasks = tasks_of(params, 60, key)
    found = jaxlb.replay(env, params, "myopic", tasks, key)
    held = [[], [], []]
    for number in range(60):
        gap, size = float(tasks.gap[number]), float(tasks.size[number])
        for left, speed in zip(held, params.speed, strict=True):
            work = gap * float(speed)
            while left and work > 0:
                share = min(min(left), work / len(left))
                work -= share * len(left)
                left[:] = [one - share for one in left if one - share > 1e-9]

        def total(left, speed):
            """Each departs once all have had as much as it needs, or all that they need."""
            return sum(sum(min(one, other) for other in left) for one in left) / float(speed)

        grown = [
            total([*left, size], speed) - total(left, speed)
            for left, speed in zip(held, params.speed, strict=True)
        ]
        choice = int(found.action[number])
        assert grown[choice] <= min(grown) * (1.0 + 1e-4), number
        held[choice].append(size)
    assert len({*np.asarray(found.action).tolist()}) == 3


def test_a_discipline_of_ones_own(key):
    """All together, said by rates: processor sharing."""

    def rates(jobs, left):
        held = left > 0
        number = jnp.maximum(held.sum(1, keepdims=True), 1).astype(jnp.float32)
        return jnp.where(held, 1.0 / number, 0.0), jnp.full(number[:, 0].shape, jnp.inf)

    env, params = made("ps", load=0.9)
    tasks = tasks_of(params, 200, key)
    own = jaxlb.make("seed", load=0.9, station=Table(disciplines.at_rates("mine", rates), 64))[0]
    one, other = (jaxlb.replay(each, params, "jsq", tasks, key) for each in (env, own))
    np.testing.assert_allclose(one.completion, other.completion, rtol=2e-5)


def test_what_assumes_known_outcomes_refuses_the_rest(key):
    env, params = made("ps")
    with pytest.raises(ValueError, match="what a choice would have brought knows first come, first served"):
        jaxlb.compare(env, params, {"lwr": "lwr"}, key, num_lanes=2, num_tasks=5, behaviour="lwr")
    with pytest.raises(ValueError, match="a replay from given processors knows first come, first served"):
        tasks, station = tasks_of(params, 3, key), env.station.init(4)
        jaxlb.replay(env, params, "lwr", tasks, key, station=station)


@pytest.mark.slow
def test_hedge_runs_its_twins_under_any_discipline(key):
    env, params = jaxlb.make("time-sharing", num_processors=3)
    run = jaxlb.rollout(env, params, "hedge", key, 2, 20)
    assert np.isfinite(run.mean_completion).all()


@pytest.mark.slow
def test_a_processor_that_falls_behind_is_seen_whatever_it_could_do(key):
    """The slow one, at which four times as much arrives as it can do with 32 tasks or more."""
    env, params = jaxlb.make("stable", speed=[1.0, 0.2], discipline="ps", capacity="batching(0.1)", load=7.0)
    table = jaxlb.compare(env, params, {"rr": "rr"}, key, num_lanes=1, num_tasks=1500, warmup=500)
    assert not table.row("rr").stationary


def test_speeds_replaced_between_two_steps_keep_the_work(key):
    """One task of work 10: half is done at speed 1, and the rest takes twice as long at speed 0.5."""
    env, params = jaxlb.make("stable", speed=[1.0], station=Table())
    task = jaxlb.Task(*map(jnp.float32, (5.0, 10.0)), jnp.int32(0), jnp.float32(100.0))
    state, _, _ = env.transition(env.start(params, task, key), 0, task, params, key)
    slow = params.replace(speed=jnp.array([0.5]))
    observed = [env.observe(state, each, key) for each in (params, slow)]
    np.testing.assert_allclose([float(one.load[0]) for one in observed], 5.0)
    np.testing.assert_allclose([float(one.wait[0]) for one in observed], [5.0, 10.0])
    after, _, _ = env.transition(state, 0, task, slow, key)
    assert float(env.observe(after, slow, key).load[0]) == pytest.approx(15.0 - 2.5)
