"""Speeds that change: task by task what an event engine in plain Python does, and what theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.loop import streams
from jaxlb.random import fold_in, split
from jaxlb.replaying import watch
from jaxlb.stations import Table, disciplines
from jaxlb.workload import arrivals
from jaxlb.workload.recorded_speeds import read_speeds
from jaxlb.workload.speeds import Failing, Ring, Throttling
from tests import event_engine, small

RECORD = Ring([[1.0, 0.4], [0.0, 1.0], [0.5, 0.7]], [3.0, 1.0, 2.0], varies=False)
CASES = {"fcfs": {}, "ps": {}, "srpt": {}, "limited-ps": {"slots": 3}, "fb": {}, "priority": {}}


def made(case="fcfs", speeds=RECORD, **overrides):
    station = Table(disciplines.named(case, **CASES[case]), 64)
    given = {"speed": [1.0, 1.5], "load": 0.85} | overrides
    return jaxlb.make("seed", station=station, speeds=speeds, **given)


class Work:
    """Work that a processor can have done by a time, and the time of so much work, in double precision."""

    def __init__(self, params, key, processor, until):
        start = split(fold_in(streams(key).observe, 0), 2)[1]
        phase = params.speeds.start(start, len(params.speed), ())
        number, rest = int(phase.number[processor]), float(phase.rest[processor])
        factor, time = (np.asarray(leaf, np.float64) for leaf in params.speeds.phases())
        times, works = [0.0], [0.0]
        while times[-1] < until:
            times.append(times[-1] + rest)
            works.append(works[-1] + rest * factor[number, processor] * float(params.speed[processor]))
            number = (number + 1) % len(time)
            rest = time[number]
        self.times, self.works = times, works

    def by(self, time):
        return np.interp(time, self.times, self.works)

    def at(self, work):
        """The first moment: of a time in which nothing is done, its beginning."""
        times, works = np.asarray(self.times), np.asarray(self.works)
        end = np.searchsorted(works, work)  # the first that is not below it
        rate = (works[end] - works[end - 1]) / (times[end] - times[end - 1])
        return times[end - 1] + (work - works[end - 1]) / rate


@pytest.mark.parametrize("case", small.mostly_slow(CASES, ["fcfs", "limited-ps"]))
def test_tasks_leave_when_an_event_engine_says(case, key):
    """Seen in the work that a processor has done, its speed is always 1."""
    env, params = made(case)
    tasks = jaxlb.workload.sample(key, params, 400)
    outcome = jaxlb.replay(env, params, "random", tasks, jax.random.clone(key))
    arrival = np.cumsum(np.asarray(tasks.gap, np.float64))
    compared = 0
    for processor in range(2):
        mine = np.flatnonzero(np.asarray(outcome.action) == processor)
        work = Work(params, key, processor, arrival[-1])
        begun = work.by(arrival[mine])
        own = jax.tree.map(lambda leaf, mine=mine: np.asarray(leaf, np.float64)[mine], tasks)
        own = own.replace(gap=np.diff(begun, prepend=0.0))
        took = event_engine.completions(
            own, np.zeros(len(mine), int), [1.0], case, CASES[case].get("slots", 1)
        )
        ends = begun + took
        inside = ends < work.by(arrival[-1])
        expected = work.at(ends[inside]) - arrival[mine][inside]
        np.testing.assert_allclose(outcome.completion[mine][inside], expected, rtol=1e-4, atol=1e-4)
        compared += inside.sum()
    assert compared > 350
    np.testing.assert_array_equal(outcome.violation, outcome.completion > tasks.deadline)
    assert (np.asarray(outcome.wait) > -1e-5).all()


@pytest.mark.parametrize("how", ["resumed", pytest.param("lost", marks=pytest.mark.slow)])
def test_rewards_add_up_to_what_all_tasks_cost(how, key):
    weights = {"completion_exponent": 0.7, "imbalance_weight": 0.0, "sla_weight": 2.0, "loss_weight": 3.0}
    env, params = made(speeds=RECORD.replace(interrupted=how), **weights)
    tasks = jaxlb.workload.sample(key, params, 300)
    # All have left before the last step ends.
    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, 0), tasks)
    following = following.replace(gap=following.gap.at[-1].set(1e3))
    first = jax.tree.map(lambda leaf: leaf[0], tasks)

    @jax.jit
    def run():
        def body(state, x):
            task, action, number = x
            state, outcome, reward = env.transition(state, action, task, params, fold_in(key, number))
            left = outcome.departures
            cost = left.outcome.completion**0.7
            if how == "lost":
                cost = jnp.where(left.outcome.lost, 3.0, cost)
            cost += jnp.where(left.outcome.violation, 2.0, 0.0)
            return state, (reward, jnp.where(left.known, cost, 0.0).sum(), left.known.sum())

        numbers = jnp.arange(300, dtype=jnp.int32)
        return jax.lax.scan(body, env.start(params, first, key), (following, numbers % 2, numbers))[1]

    rewards, costs, left = (np.asarray(leaf, np.float64) for leaf in run())
    assert left.sum() == 300
    np.testing.assert_allclose(-rewards.sum(), costs.sum(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("working", [False, True])
def test_the_mean_response_of_a_processor_that_fails(working, key):
    """M/M/1 with failures at rate .1, repairs at rate .4 (Avi-Itzhak and Naor 1963); 5 standard errors."""
    speeds = Failing(10.0, 2.5, working=working)
    env, params = jaxlb.make("stable", speed=[1.0], load=0.625, speeds=speeds)
    np.testing.assert_allclose(jaxlb.workload.arrival_rate(params), 0.5, rtol=1e-6)
    found = jaxlb.rollout(env, params, "rr", key, num_lanes=64, num_tasks=2000, warmup=200)
    mean = np.asarray(found.mean_completion, np.float64)
    error = mean.std() / np.sqrt(len(mean))
    assert error < 0.1
    assert abs(mean.mean() - (4.166667 if working else 4.666667)) < 5.0 * error
    # Of the time, not of that in which it is up.
    assert abs(found.utilisation.mean() - 0.5) < 0.02


@pytest.mark.slow
def test_a_split_without_a_rate_for_those_that_are_up_takes_any_of_them(key):
    env, params = jaxlb.make("slow-servers", speeds="failing", up_time=5.0, down_time=5.0, load=0.1)
    rule = jaxlb.scheduler("static-split")
    tasks = jaxlb.workload.sample(key, params, 200, (4,))
    _, (up, action) = watch(
        env, params, rule, tasks, key, lambda one, memory, seen: (seen.up, one.act((), memory, seen, key)[0])
    )
    chosen = np.take_along_axis(np.asarray(up), np.asarray(action)[:, None], 1)[:, 0]
    assert (chosen | ~np.asarray(up).any(1)).all()


@pytest.mark.slow
def test_a_lane_does_not_depend_on_its_neighbours(key):
    env, params = jaxlb.make("heavy-tail", speeds="failing", up_time=3.0, down_time=1.0, load=0.5)
    few, many = (jaxlb.rollout(env, params, "lwr", key, lanes, 200) for lanes in (2, 6))
    np.testing.assert_array_equal(few.mean_completion, many.mean_completion[:2])


@pytest.mark.slow
def test_schedulers_meet_the_same_speeds_and_comparisons_end(key):
    """Two devices and two programs at once, whose loops end when all lanes are done."""
    env, params = jaxlb.make("stable", speeds="throttling", fast_time=5.0, slow_time=5.0, load=0.5)
    table = jaxlb.compare(
        env, params, {"one": "lwr", "other": "lwr", "jsq": "jsq"}, key, num_lanes=8, num_tasks=200, warmup=50
    )
    assert table.row("one").mean_completion == table.row("other").mean_completion


@pytest.mark.slow
def test_a_step_shows_who_is_up(key):
    env, params = jaxlb.make("stale", speeds="failing", up_time=2.0, down_time=2.0)
    obs, state = env.reset(key, params)
    assert env.observation_space(params).shape == obs.shape == (4 + 4 * 8 + 1 + 8 + 8,)
    seen = []
    step = jax.jit(env.step)
    for number in range(40):
        obs, state, *_ = step(fold_in(key, number), state, jnp.int32(number % 8), params)
        seen.append(np.asarray(obs[-8:]))
    assert set(np.unique(seen)) == {0.0, 1.0}
    # Published every 5 units of time, and arrivals are more frequent.
    changes = (np.diff(seen, axis=0) != 0).any(1)
    assert 0 < changes.mean() < 0.5


@pytest.mark.parametrize(
    ("speeds", "overrides", "message"),
    [
        (Failing(down_time=0.0), {}, "down_time = 0"),
        (Failing(phases_up=0), {}, "phases_up = 0: must be a whole number of at least 1"),
        (Failing(together=True, working=True), {}, "together = True: must be False"),
        (Throttling(slow_factor=1.5), {}, "slow_factor = 1.5"),
        (Ring([0.0, 0.0], [1.0, 1.0]), {}, "factor = 0 in all phases"),
        (Ring([[1.0, 1.0, 1.0]], [1.0]), {}, r"factor has shape \(1, 3\)"),
        (Failing(), {"load": 1.2}, "load = 1.2: must be below 1"),
        (Failing(), {"reward": "holding-cost"}, "have `surprise` as that has, where speeds change"),
        ("breaking", {}, "unknown speed process 'breaking'"),
        (Failing, {}, r"is no speed process: it is a class; try Failing\(\)"),
        (arrivals.Poisson(), {}, "is no speed process: it has no advance\\(\\), drains"),
        (Failing(np.ones(4), 1.0), {}, "up_time = .*: must be one number"),
        (Failing(1e-9, 1e-9), {}, "speeds change every 1e-09 on average: must be at least a hundredth"),
        (Ring([], []), {}, r"factor has shape \(0,\)"),
        (Failing(interrupted="gone"), {}, "unknown interrupted 'gone'"),
        (Failing(interrupted="lost", drains=True), {}, "drains = True: must be False where tasks"),
        (
            Failing(interrupted="repeated"),
            {"discipline": "srpt"},
            "interrupted = 'repeated': must be another of",
        ),
        (
            Failing(interrupted="repeated"),
            {"discipline": "ps"},
            "interrupted = 'repeated': must be another of",
        ),
    ],
)
def test_bad_speeds_are_refused(speeds, overrides, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make("stable", speeds=speeds, num_processors=4, **overrides)


def test_phases_that_are_no_table_are_refused():
    with pytest.raises(ValueError, match="must be a number for each phase, or a row"):
        Ring([[1.0, 2.0], [1.0]], [1.0, 1.0])


def test_a_queue_that_knows_departures_is_refused_where_speeds_change(key):
    env, params = jaxlb.make("stable")
    with pytest.raises(ValueError, match="must be a table where speeds change"):
        jaxlb.rollout(env, params.replace(speeds=Failing()), "lwr", key, 2, 10)


def test_long_phases_last_as_long_as_they_are_where_gaps_are_short():
    """A day of 86,400 against gaps of about a thousandth: single float32 steps would be lost."""
    process, gap = Ring([1.0, 0.5], [43_200.0, 43_200.0], varies=False), jnp.float32(1.4e-3)
    start = process.start(jax.random.key(0), 1, (64,))
    wait = jnp.zeros((1, 64))
    end = jax.jit(
        lambda phase: jax.lax.fori_loop(
            0,
            20_000,
            lambda _, phase: process.advance(phase, jnp.full(64, gap), wait, jax.random.key(0)),
            phase,
        )
    )(start)
    stays = np.asarray(start.rest > 100.0) & np.asarray(start.number == end.number)
    assert stays.sum() > 50
    passed = np.asarray(start.rest, np.float64) - np.asarray(end.rest, np.float64) - np.asarray(end.error)
    np.testing.assert_allclose(passed[stays], 20_000 * float(gap), rtol=1e-3)


@pytest.mark.slow
def test_the_oracle_knows_who_is_up_whatever_is_reported(key):
    env, params = jaxlb.make("stale", speeds=Failing(10.0, 10.0), load=0.4)
    summary = jaxlb.rollout(env, params, "oracle", key, num_lanes=4, num_tasks=200)
    np.testing.assert_array_equal(summary.oracle_agreement, 1.0)


@pytest.mark.slow
def test_tasks_that_are_left_at_the_end_have_the_service_of_full_speed(key):
    env, params = jaxlb.make("stable", speeds=Failing(10.0, 10.0), load=0.5)
    tasks = jaxlb.workload.sample(key, params, 12)
    outcome = jaxlb.replay(env, params, "lwr", tasks, jax.random.clone(key))
    np.testing.assert_allclose(outcome.service, tasks.size / params.speed[outcome.action], rtol=1e-6)
    assert (np.asarray(outcome.wait) >= -1e-5).all()


def test_scenarios_whose_speeds_change_are_registered(key):
    def flaky(num_processors: int = 2):
        """Processors that fail."""
        _, params = jaxlb.make("stable", num_processors=num_processors)
        return params.replace(speeds=Failing(5.0, 1.0))

    jaxlb.register("flaky", flaky)
    env, params = jaxlb.make("flaky", down_time=2.0)
    assert not env.station.settled and float(params.speeds.down_time) == 2.0
    wide, _ = jaxlb.make("stable", speeds="failing", queue_capacity=256)
    assert wide.station.queue_capacity == 256
    _, ring = jaxlb.make("stable", speeds="ring", factor=[1.0, 0.5], time=[10.0, 20.0])
    np.testing.assert_allclose(ring.speeds.mean(), 2 / 3, rtol=1e-6)


@pytest.mark.slow
def test_a_processor_that_cannot_keep_up_is_named_though_it_fails(key):
    env, params = jaxlb.make("stable", speed=[1.0, 0.2], load=0.7, speeds=Failing(9.0, 1.0))
    table = jaxlb.compare(env, params, {"rr": "rr"}, key, num_lanes=1, num_tasks=1500, warmup=500)
    assert not table.row("rr").stationary


RECORDED = "time,processor,speed\n0,0,2\n0,1,1.0\n5,0,0\n6,0,1\n6,1,0.5\n"


def test_recorded_speeds_are_read(tmp_path):
    (tmp_path / "speeds.csv").write_text(RECORDED)
    speed, process = read_speeds(tmp_path / "speeds.csv", until=10.0)
    np.testing.assert_array_equal(speed, [2.0, 1.0])
    np.testing.assert_allclose(process.factor, [[1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_allclose(process.time, [5.0, 1.0, 4.0])
    _, params = jaxlb.make("stable", speed=speed, speeds=process)
    # Load is relative to the speeds of the long run, 1.4 and 0.8.
    rate = jaxlb.workload.arrival_rate(jaxlb.params.canonical(params))
    np.testing.assert_allclose(rate, float(params.load) * 2.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "until", "message"),
    [
        (RECORDED, 6.0, "until = 6: must be after 6, the last time"),
        (RECORDED + "5,0,1\n", 10.0, "speeds.csv:7: time = 5: must not be before 6"),
        (RECORDED + "7,0,-1\n", 10.0, "speeds.csv:7: speed = -1: must be at least 0"),
        (RECORDED + "7,0.5,1\n", 10.0, r"speeds.csv:7: processor = 0.5: must be 0, 1"),
        (RECORDED + "7,3,1\n", 10.0, "holds no row of processor 2, but some of 3"),
        (RECORDED + "7,2,1\n", 10.0, "holds no speed of processor 2 at 0, where it begins"),
        ("time,processor,speed\n", 10.0, "holds no rows"),
        ("time,processor,speed\n0,0,0\n", 10.0, "processor 0 has no speed above 0"),
        ("time,speed\n0,1\n", 10.0, "processor"),
    ],
)
def test_bad_records_are_refused(text, until, message, tmp_path):
    (tmp_path / "speeds.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_speeds(tmp_path / "speeds.csv", until)


def test_measured_speeds_follow_those_that_there_are(key):
    """Between two changes, as the solution of the differential equation does."""
    env, params = jaxlb.make("stable", speeds=Throttling(0.3, 50.0, 50.0), speed_time_constant=7.0)
    params = jaxlb.params.canonical(params)
    tasks = jaxlb.workload.sample(key, params, 300)

    @jax.jit
    def run():
        def body(state, task):
            after, _, _ = env.transition(state, 0, task, params, key)
            seen = env.observe(after, params, key)
            factor = [params.speeds.factor_of(one.system.speeds, 4) for one in (state, after)]
            return after, (seen.speed, seen.wait, seen.truth.wait * seen.truth.speed, *factor)

        first, later = (
            jax.tree.map(lambda leaf, part=part: leaf[part], tasks) for part in (0, slice(1, 300))
        )
        return jax.lax.scan(body, env.start(params, first, key), later)[1]

    speed, wait, work, before, after = map(np.asarray, run())
    same = before[1:] == after[1:]
    decay = np.exp(-np.asarray(tasks.gap)[2:, None] / 7.0)
    expected = after[1:] + (speed[:-1] - after[1:]) * decay
    np.testing.assert_allclose(speed[1:][same], expected[same], rtol=1e-4)
    assert 5 < (~same).sum() < 60
    np.testing.assert_allclose(wait, work / speed, rtol=1e-5)
    with pytest.raises(ValueError, match="speed_time_constant: must be None unless speeds change"):
        jaxlb.rollout(*jaxlb.make("stable", speed_time_constant=7.0), "lwr", key, 2, 5)
