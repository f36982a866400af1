"""Tasks that are refused, or leave unserved: against an event engine in plain Python, and theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.replaying import watch
from jaxlb.report import data
from jaxlb.stations import FCFS, Table, disciplines
from tests import event_engine, small

CASES = {
    "fcfs, limit": ({}, {"limit": 4}),
    "srpt, limit": ({}, {"limit": 3}),
    "ps, limit": ({}, {"limit": 4}),
    "fcfs, 2 slots, limit": ({"slots": 2}, {"limit": 2}),
    "fcfs, waiting": ({}, {"leaving": "waiting"}),
    "fcfs, any": ({}, {"leaving": "any"}),
    "edf, waiting": ({}, {"leaving": "waiting"}),
    "srpt, any": ({}, {"leaving": "any"}),
    "sjf, 2 slots, waiting": ({"slots": 2}, {"leaving": "waiting"}),
    "priority, waiting": ({}, {"leaving": "waiting"}),
    "priority-preemptive, both": ({}, {"limit": 6, "leaving": "any"}),
    "limited-ps, any": ({"slots": 3}, {"leaving": "any"}),
}
QUICK = (
    "srpt, limit",
    "fcfs, waiting",
    "priority-preemptive, both",
)


def made(case, **overrides):
    options, losses = CASES[case]
    station = Table(disciplines.named(case.split(",")[0], **options), **losses)
    return jaxlb.make("seed", station=station, **overrides)


def tasks_of(params, number, key, scale=1.0):
    tasks = jaxlb.workload.sample(key, params, number)
    # After the last task the first one's gap passes: time for all to leave.
    return tasks.replace(gap=(tasks.gap * scale).at[0].set(1e3))


@pytest.mark.parametrize("case", small.mostly_slow(CASES, QUICK))
def test_tasks_are_lost_when_an_event_engine_says(case, key):
    env, params = made(case, speed=[1.0, 1.5], load=0.95)
    tasks = tasks_of(params, 400, key, 0.7)
    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    options, losses = CASES[case]
    processors = [
        event_engine.Processor(case.split(",")[0], float(one), options.get("slots", 1), **losses)
        for one in params.speed
    ]
    completion, lost = event_engine.outcomes(tasks, np.asarray(outcome.action), processors)
    assert 10 < lost.sum() < 300
    np.testing.assert_array_equal(outcome.lost, lost)
    np.testing.assert_allclose(outcome.completion, completion, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(outcome.violation, lost | (outcome.completion > tasks.deadline))
    np.testing.assert_allclose(outcome.wait + outcome.service, outcome.completion, rtol=1e-5)


@pytest.mark.parametrize("case", small.mostly_slow(["srpt, limit", "fcfs, waiting", "limited-ps, any"], []))
def test_rewards_add_up_to_what_all_tasks_cost(case, key):
    weights = {"completion_exponent": 0.7, "imbalance_weight": 0.0, "sla_weight": 2.0, "loss_weight": 3.0}
    env, params = made(case, load=0.95, admission=True, **weights)
    tasks = tasks_of(params, 300, key)
    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, 0), tasks)
    first = jax.tree.map(lambda leaf: leaf[0], tasks)
    actions = jnp.arange(300, dtype=jnp.int32) % env.num_actions

    @jax.jit
    def run():
        def body(state, x):
            task, action = x
            state, outcome, reward = env.transition(state, action, task, params, key)
            return state, (reward, outcome.departures)

        return jax.lax.scan(body, env.start(params, first, key), (following, actions))[1]

    rewards, departed = run()
    known, outcome = np.asarray(departed.known), departed.outcome
    assert known.sum() == 300  # each leaves once
    np.testing.assert_array_equal(np.sort(np.asarray(departed.number)[known]), np.arange(300))
    lost, completion = np.asarray(outcome.lost)[known], np.asarray(outcome.completion, np.float64)[known]
    served = float(params.completion_weight) * np.where(lost, 0.0, completion) ** 0.7
    cost = served + 2.0 * np.asarray(outcome.violation)[known] + 3.0 * lost
    assert lost[np.asarray(departed.number)[known] % env.num_actions == env.num_processors].all()
    np.testing.assert_allclose(-np.asarray(rewards, np.float64).sum(), cost.sum(), rtol=1e-4)


@pytest.mark.slow
def test_erlangs_formula(key):
    """10 slots without a queue, each lane a sample: within 5 standard errors, and those below 1 %."""
    env, params = jaxlb.make("stable", num_processors=1, discipline="fcfs", slots=10, limit=10, load=8.0)
    run = jaxlb.rollout(env, params, "lwl", key, 256, 1500, 200)
    lost, busy = np.asarray(run.lost_rate, np.float64), np.asarray(run.utilisation[0], np.float64)
    for samples, exact in ((lost, 0.121661), (busy, 8.0 * (1.0 - 0.121661))):
        error = samples.std(ddof=1) / 16.0
        assert error < 0.01 * exact
        assert abs(samples.mean() - exact) < 5.0 * error
    assert not np.asarray(run.queue_overflows).any()


def test_work_that_leaves_undone_is_not_done(key):
    """Of tasks of size 1, a processor is busy as long as many were served, but for those at the ends."""
    env, params = jaxlb.make("stable", num_processors=1, leaving="waiting", load=1.3, size="deterministic")
    run = jaxlb.rollout(env, params, "lwl", key, 16, 1000, 100)
    served = np.asarray(run.class_served, np.float64).sum(0)
    assert (served < 900).all()
    np.testing.assert_allclose(np.asarray(run.utilisation * run.elapsed)[0], served, atol=5.0)


@pytest.mark.parametrize("rule", ["jsq", "rr", "sita-e"])  # for others see test_schedulers
def test_no_rule_chooses_a_full_processor_while_others_have_room(rule, key):
    heard = bool(jaxlb.scheduler(rule).departed)
    env, params = jaxlb.make("stable", limit=2, load=1.5, answers=heard)
    tasks = jaxlb.workload.sample(key, params, 200, (4,))
    outcome, up = watch(env, params, jaxlb.scheduler(rule), tasks, key, lambda rule, memory, seen: seen.up)
    up, action = np.asarray(up), np.asarray(outcome.action)
    some = up.any(1)
    assert 0.2 < some.mean() < 0.95
    assert np.take_along_axis(up, action[:, None], 1)[:, 0][some].all()
    np.testing.assert_array_equal(outcome.lost, ~some)


@pytest.mark.slow
def test_what_would_be_late_anywhere_is_refused(key):
    env, params = jaxlb.make("seed", admission=True, load=1.2)
    entries = {"greedy": "greedy", "refusing": "deadline-admission", "lwr": "deadline-admission(rule=lwr)"}
    table = jaxlb.compare(env, params, entries, key, num_lanes=16, num_tasks=500, warmup=200)
    greedy, refusing, lwr = table.schedulers
    assert greedy.lost_rate == 0.0 and not greedy.stationary
    # Waits are seen as they are, and served first come, first served: who is admitted is in time.
    assert refusing.sla_violation_rate == refusing.lost_rate
    assert refusing.lost_rate < greedy.sla_violation_rate and refusing.stationary
    assert lwr.lost_rate < lwr.sla_violation_rate


def test_a_refusal_is_an_action(key):
    env, params = jaxlb.make("stable", admission=True)
    assert env.num_actions == env.action_space(params).n == 5
    _, state = env.reset(key, params)
    _, after, reward, *_, info = env.step(key, state, 4, params)
    assert bool(info["outcome"].lost) and np.isinf(info["outcome"].completion)
    assert float(reward) == -float(params.sla_weight + params.loss_weight)
    assert not np.asarray(env.view(after, params).queue_length).any()
    _, after, *_, info = env.step(key, state, 9, params)  # clipped
    assert bool(info["outcome"].lost)


def test_a_full_processor_is_seen(key):
    env, params = jaxlb.make("stable", limit=1, num_processors=2, load=0.5)
    obs, state = env.reset(key, params)
    assert obs.shape == env.observation_space(params).shape
    np.testing.assert_array_equal(obs[-2:], [1.0, 1.0])
    task = state.task.replace(gap=jnp.float32(0.0))
    after, outcome, _ = env.transition(state, 1, task, params, key)
    assert not bool(outcome.lost)
    np.testing.assert_array_equal(env.observe(after, params, key).up, [True, False])
    again, outcome, _ = env.transition(after, 1, task, params, key)
    assert bool(outcome.lost)
    np.testing.assert_array_equal(env.view(again, params).queue_length, [0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit = 0: must be a whole number of at least 1"),
        ({"limit": 2.5}, "limit = 2.5"),
        ({"leaving": "late"}, "unknown leaving 'late'"),
        ({"leaving": "any", "discipline": "ps"}, "leaving = 'any': must be None under discipline 'ps'"),
        ({"admission": 1}, "admission = 1: must be True or False"),
        (
            {"admission": True, "reward": "holding-cost"},
            "as that has, where tasks may be lost",
        ),
        ({"loss_weight": -1.0}, "loss_weight = -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make("stable", **settings)


def test_what_knows_no_losses_says_so(key):
    env, params = jaxlb.make("stable", limit=4)
    with pytest.raises(ValueError, match="'hedge': must have an environment that loses no tasks"):
        jaxlb.rollout(env, params, "hedge", key, 2, 5)
    with pytest.raises(ValueError, match=r"must have an environment in which tasks may be refused"):
        jaxlb.rollout(env, params, "deadline-admission", key, 2, 5)


def test_processors_serve_as_much_as_they_can():
    """A load of 3 is no overload for four slots, and 5 is."""
    settings = {"discipline": "fcfs", "slots": 4, "num_processors": 1}
    assert jaxlb.make("stable", load=3.0, **settings)[0].station.most == 4.0
    with pytest.raises(ValueError, match="load = 5: must be below 4"):
        jaxlb.make("stable", load=5.0, **settings)
    assert jaxlb.make("stable", load=5.0, leaving="waiting", **settings)[0].sheds
    assert jaxlb.make("stable", discipline="ps", capacity="batching(0.1)")[0].station.most == pytest.approx(
        10
    )


@pytest.mark.slow
def test_the_guard_lets_a_scheduler_refuse(key):
    env, params = jaxlb.make("stable", speed=[0.001, 1.0, 1.0], admission=True, load=1.2, class_slack=(1.5,))
    tasks = jaxlb.workload.sample(key, params, 300)
    inner = jaxlb.scheduler("deadline-admission")
    alone, within = (
        np.asarray(jaxlb.replay(env, params, rule, tasks, jax.random.clone(key)).action)
        for rule in (inner, jaxlb.scheduling.guarded(inner))
    )
    assert (alone == 3).sum() > 50
    np.testing.assert_array_equal(alone, within)


def test_who_is_interrupted_after_its_deadline_leaves_then():
    env, params = jaxlb.make("stable", num_processors=1, discipline="lcfs-pr", leaving="waiting")
    gap, size = jnp.array([1e3, 5.0]), jnp.array([10.0, 1.0])
    tasks = jaxlb.Task(gap, size, jnp.zeros(2, jnp.int32), jnp.array([2.0, 9.0]))
    outcome = jaxlb.replay(env, params, "rr", tasks, jax.random.key(0))
    np.testing.assert_array_equal(outcome.lost, [True, False])
    np.testing.assert_allclose(outcome.completion, [5.0, 1.0], rtol=1e-6)


@pytest.mark.slow
def test_none_served_is_no_mean(key):
    env, params = jaxlb.make("seed", admission=True)
    never = jaxlb.scheduler("deadline-admission", factor=1e-9)
    run = jaxlb.rollout(env, params, never, key, 2, 20)
    assert np.isnan(run.mean_completion).all() and (np.asarray(run.lost_rate) == 1.0).all()
    with pytest.raises(ValueError, match="never: no task was served in 2 of 2 lanes"):
        jaxlb.compare(env, params, {"never": never}, key, num_lanes=2, num_tasks=20)


def test_pictures_leave_out_who_was_refused(key):
    env, params = jaxlb.make("seed", admission=True, load=1.2, limit=3)
    tasks = jaxlb.workload.sample(key, params, 200, (2,))
    outcome = jaxlb.replay(env, params, "deadline-admission", tasks, key)
    sizes = data.by_size(params, tasks, {"one": outcome})
    refused = np.asarray(outcome.action) == env.num_processors
    given = (sizes.share["one"] * sizes.number).sum()
    assert refused.any() and given == pytest.approx((~refused).sum())
    assert np.isfinite(sizes.slowdown["one"][~np.isnan(sizes.slowdown["one"])]).all()


def test_settings_that_are_none_change_nothing():
    env, _ = jaxlb.make("stable", limit=None, leaving=None, admission=False)
    assert env.station == FCFS() and not env.sheds
