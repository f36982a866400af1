"""What becomes of tasks whose processor fails, leaves, or has to start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.loop import streams
from jaxlb.random import fold_in, split
from jaxlb.replaying import watch
from jaxlb.stations import Table, disciplines
from jaxlb.workload.cold_starts import ColdStarts
from jaxlb.workload.speeds import Failing, Ring
from tests import small


def test_a_processor_that_drains_takes_no_tasks_and_finishes_those_it_has(key):
    """Completions are those of constant speeds, and who is away gets nothing."""
    away = Ring([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [3.0, 4.0, 4.0], drains=True, together=True)
    env, params = jaxlb.make("stable", speed=[1.0, 1.5], speeds=away, load=0.6)
    tasks = jaxlb.workload.sample(key, params, 300)
    # After the last task the first one's gap passes: time for all to leave.
    tasks = tasks.replace(gap=tasks.gap.at[0].set(100.0))
    rule = jaxlb.scheduler("rr")
    outcome, up = watch(env, params, rule, tasks, key, lambda rule, memory, seen: seen.up)
    up, action = np.asarray(up), np.asarray(outcome.action)
    assert up[np.arange(300), action].all() and 0.5 < up.mean() < 0.8
    wait, speed = np.zeros(2), np.array([1.0, 1.5])
    columns = (np.asarray(leaf, np.float64) for leaf in (tasks.gap, tasks.size))
    for number, (gap, size) in enumerate(zip(*columns, strict=True)):
        wait = np.maximum(wait - gap, 0.0)
        wait[action[number]] += size / speed[action[number]]
        np.testing.assert_allclose(outcome.completion[number], wait[action[number]], rtol=1e-4, atol=1e-5)


def interrupted_engine(tasks, actions, params, key, slots, how):
    """Return completions where failures interrupt who is served first come, first served, and who is lost."""
    arrival = np.cumsum(np.asarray(tasks.gap, np.float64))
    size = np.asarray(tasks.size, np.float64)
    completion, lost = np.full(len(arrival), np.inf), np.zeros(len(arrival), bool)
    start = split(fold_in(streams(key).observe, 0), 2)[1]
    phase = params.speeds.start(start, len(params.speed), ())
    factor, time = (np.asarray(leaf, np.float64) for leaf in params.speeds.phases())
    for processor, speed in enumerate(np.asarray(params.speed, np.float64)):
        number, until = int(phase.number[processor]), float(phase.rest[processor])
        waiting, queue, left = list(np.flatnonzero(np.asarray(actions) == processor)), [], {}
        now = 0.0
        while waiting or queue:
            rate = speed * factor[number, 0]
            serving = queue[:slots]
            ends = [now + left[one] / rate for one in serving] if rate > 0 else []
            come = arrival[waiting[0]] if waiting else np.inf
            moment = min([come, until, *ends])
            for one in serving:
                left[one] -= rate * (moment - now)
            now = moment
            if ends and moment == min(ends):
                gone = serving[int(np.argmin(ends))]
                queue.remove(gone)
                completion[gone] = now - arrival[gone]
            elif moment == come:
                queue.append(waiting.pop(0))
                left[queue[-1]] = size[queue[-1]]
            else:
                was, number = factor[number, 0] > 0, (number + 1) % len(time)
                until = now + time[number]
                if was and factor[number, 0] == 0:
                    for one in serving:
                        left[one] = size[one]
                        if how == "lost":
                            queue.remove(one)
                            completion[one], lost[one] = now - arrival[one], True
    return completion, lost


@pytest.mark.parametrize("slots", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["lost", pytest.param("repeated", marks=pytest.mark.slow)])
def test_tasks_in_service_begin_again_or_are_lost(how, slots, key):
    speeds = Ring([1.0, 0.5, 0.0], [4.0, 2.0, 1.0], varies=False, interrupted=how)
    station = Table(disciplines.named("fcfs", slots=slots), 64)
    env, params = jaxlb.make("stable", station=station, speeds=speeds, speed=[1.0, 1.5], load=0.5 * slots)
    tasks = jaxlb.workload.sample(key, params, 300)
    # After the last task the first one's gap passes: time for all to leave.
    # And none is so long that no calm is long enough for it.
    tasks = tasks.replace(gap=tasks.gap.at[0].set(300.0), size=jnp.minimum(tasks.size, 2.5))
    outcome = jaxlb.replay(env, params, "random", tasks, jax.random.clone(key))
    completion, lost = interrupted_engine(tasks, outcome.action, params, key, slots, how)
    np.testing.assert_allclose(outcome.completion, completion, rtol=1e-4, atol=2e-4)
    if how == "lost":
        np.testing.assert_array_equal(outcome.lost, lost)
        assert 20 < lost.sum() < 200
    else:
        assert outcome.lost is None
        # Beyond the calm, what is resumed takes less.
        calm = jaxlb.make(
            "stable", station=station, speeds=speeds.replace(interrupted="resumed"), speed=[1.0, 1.5]
        )
        resumed = jaxlb.replay(*calm, "random", tasks, jax.random.clone(key))
        assert float(resumed.completion.mean()) < 0.9 * completion.mean()


def test_who_drains_is_sent_nothing_and_serves_at_its_own_speed(key):
    """Whatever an action says; the last tasks, too."""
    away = Ring([[1.0, 0.0], [1.0, 1.0]], [1e6, 1.0], varies=False, drains=True, together=True)
    env, params = jaxlb.make("stable", speed=[1.0, 1.0], speeds=away)
    tasks = jaxlb.Task(jnp.array([0.0, 1.0]), jnp.array([3.0, 3.0]), jnp.zeros(2, jnp.int32), jnp.ones(2))
    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    np.testing.assert_array_equal(outcome.action, [0, 0])
    np.testing.assert_allclose(outcome.completion, [3.0, 5.0], rtol=1e-6)
    one = jaxlb.make("stable", num_processors=1, speeds=Ring([1.0, 0.0], [1e3, 1e3], drains=True))
    alone = jaxlb.replay(*one, "rr", jax.tree.map(lambda leaf: leaf[:1], tasks), key)
    np.testing.assert_allclose(alone.completion, [3.0], rtol=1e-6)


def test_a_processor_starts_when_a_task_finds_it_idle(key):
    """And serves then as if it were a task of that time before: in plain Python."""
    cold = ColdStarts(2.0, varies=False)
    env, params = jaxlb.make("stable", speed=[1.0, 1.5], speeds=cold, load=0.5, discipline="fcfs")
    tasks = jaxlb.workload.sample(key, params, 300)
    # After the last task the first one's gap passes: time for all to leave.
    tasks = tasks.replace(gap=tasks.gap.at[0].set(100.0))
    outcome = jaxlb.replay(env, params, "random", tasks, key)
    wait, speed, starts = np.zeros(2), np.array([1.0, 1.5]), 0
    columns = (np.asarray(leaf, np.float64) for leaf in (tasks.gap, tasks.size, outcome.completion))
    for action, gap, size, completion in zip(np.asarray(outcome.action), *columns, strict=True):
        wait = np.maximum(wait - gap, 0.0)
        starts += wait[action] == 0
        wait[action] += 2.0 * (wait[action] == 0) + size / speed[action]
        np.testing.assert_allclose(completion, wait[action], rtol=1e-4, atol=1e-4)
    assert 50 < starts < 250


def test_two_slots_are_busy_until_the_last_task_has_left():
    station = Table(disciplines.named("fcfs", slots=2), 32)
    state, speed = station.init(1), jnp.ones(1)
    for size in (1.0, 4.0):
        task = jaxlb.Task(jnp.float32(0.0), jnp.float32(size), jnp.int32(0), jnp.float32(9.0))
        state, _, _ = station.assign(state, speed, task, jnp.int32(0), jnp.int32(0))
    np.testing.assert_allclose(station.busy(state, speed), [4.0])
    np.testing.assert_allclose(station.view(state, speed).wait, [5.0])


def test_a_processor_that_leaves_hands_its_tasks_over(key):
    """One of two is away for 5 from time 3 on; at the next arrival its tasks go to the other."""
    away = Ring([[1.0, 1.0], [1.0, 0.0]], [3.0, 5.0], varies=False, together=True, interrupted="handed-over")
    env, params = jaxlb.make("stable", speed=[1.0, 1.0], speeds=away)
    process = params.speeds

    class Begun(Ring):
        def start(self, key, num_processors, lanes):
            phase = super().start(key, num_processors, lanes)
            return phase.replace(number=jnp.zeros_like(phase.number), rest=jnp.full_like(phase.rest, 3.0))

    fields = {name: getattr(process, name) for name in process.__dataclass_fields__}
    params = params.replace(speeds=Begun(**fields))
    # One task here, two there, of which the first has 1 left as that leaves; the next one comes at 4.
    tasks = jaxlb.Task(
        jnp.array([0.0, 0.0, 0.0, 4.0]),
        jnp.array([10.0, 4.0, 2.0, 1.0]),
        jnp.zeros(4, jnp.int32),
        jnp.ones(4),
    )
    station = jaxlb.Scheduler(
        "given", jnp.array([0, 1, 1, 0]), lambda *_: jnp.int32(0), lambda plan, at, o, key: (plan[at], at + 1)
    )
    outcome = jaxlb.replay(env, params, station, tasks, key)
    np.testing.assert_allclose(outcome.completion, [10.0, 11.0, 13.0, 10.0], rtol=1e-5)


@pytest.mark.parametrize("discipline", small.mostly_slow(["fcfs", "srpt", "ps", "fb", "edf"], []))
def test_nothing_is_lost_where_tasks_are_handed_over(discipline, key):
    env, params = jaxlb.make(
        "stable", discipline=discipline, speeds=Failing(20.0, 5.0, interrupted="handed-over"), load=0.6
    )
    tasks = jaxlb.workload.sample(key, params, 300, (4,))
    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    kept = params.replace(speeds=params.speeds.replace(interrupted="resumed"))
    stays = jaxlb.replay(env, kept, "rr", tasks, jax.random.clone(key))
    assert np.isfinite(outcome.completion).all()
    # Each is told of by the processor that finished it.
    assert 0.01 < (outcome.action != stays.action).mean() < 0.2
    assert outcome.completion.mean() < stays.completion.mean()
    summary = jaxlb.rollout(env, params, "rr", jax.random.clone(key), 4, 300)
    assert (summary.queue_overflows == 0).all()
