"""The dynamics against an independent simulator, task by task, and their invariants."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlb
from jaxlb.stations import fcfs as system
from tests import small
from tests.reference import chooser, simulate
from tests.trajectory import trajectory

TASKS = 100_000


def poisson_tasks(num_tasks, rates, seed, grid=None):
    """Tasks `[T, N]`, a rate for each lane, exponential gaps and sizes, rounded up to a grid."""
    rng = np.random.default_rng(seed)
    shape = (num_tasks, len(rates))
    gap, size = rng.exponential(size=shape) / rates, rng.exponential(size=shape)
    if grid is not None:
        gap, size = np.ceil(gap / grid) * grid, np.ceil(size / grid) * grid
    return jaxlb.Task(
        gap=gap.astype(np.float32),
        size=size.astype(np.float32),
        priority=np.zeros(shape, np.int32),
        deadline=np.full(shape, 3.0, np.float32),
    )


def both_engines(name, speeds, tasks, key):
    """Our outcome, queue lengths `[T, P, N]`, and for each lane the reference's columns."""
    env, params = jaxlb.make("stable", num_processors=len(speeds), queue_capacity=256)
    params = params.replace(speed=jnp.asarray(speeds, jnp.float32))
    scheduler = jaxlb.scheduler(name)
    outcome = jaxlb.replay(env, params, scheduler, tasks, key)
    again, queue_length, _, state = trajectory(env, params, scheduler, jax.tree.map(jnp.asarray, tasks), key)
    # The same to a rounding: programs may differ in how they fuse.
    chex.assert_trees_all_close(outcome, again, rtol=1e-5, atol=1e-5)
    assert int(state.system.station.overflow.sum()) == 0
    expected = []
    for lane in range(tasks.gap.shape[1]):
        rows = simulate(
            tasks.gap[:, lane], tasks.size[:, lane], speeds[:, lane], chooser(name, speeds[:, lane])
        )
        expected.append([np.array(column) for column in zip(*rows, strict=True)])
    return jax.tree.map(np.asarray, outcome), np.asarray(queue_length), expected


RULES = ["jsq", "greedy", "rr", "lwl", "sed", "lwr"]
CASES = [(4, name) for name in RULES] + [(1, "jsq"), (1, "greedy"), (16, "jsq"), (16, "greedy"), (16, "sed")]


@pytest.mark.parametrize(("num_processors", "name"), small.mostly_slow(CASES, [(4, "jsq")]))
def test_replay_agrees_with_the_event_simulator_to_the_last_bit(num_processors, name, key):
    # Times on a grid of 2^-12 and speeds that are powers of two: sums of them are exact in float32, so that
    # every choice, wait, completion and queue length must be the reference's, ties (there are many) included.
    # Lane 0 has equal processors at load 0.9; lane 1 unequal ones, at a load that Round Robin bears too.
    speeds = np.stack([np.ones(num_processors), np.resize([0.5, 1.0, 1.0, 2.0], num_processors)], axis=1)
    tasks = poisson_tasks(TASKS, [0.9, 0.45] * speeds.min(0) * num_processors, num_processors, grid=2.0**-12)
    outcome, queue_length, expected = both_engines(name, speeds, tasks, key)
    for lane, (action, wait, completion, lengths) in enumerate(expected):
        np.testing.assert_array_equal(outcome.action[:, lane], action)
        np.testing.assert_array_equal(outcome.wait[:, lane], wait)
        np.testing.assert_array_equal(outcome.completion[:, lane], completion)
        np.testing.assert_array_equal(outcome.violation[:, lane], completion > 3.0)
        np.testing.assert_array_equal(queue_length[:, :, lane], lengths)


@pytest.mark.parametrize(("num_processors", "name"), small.mostly_slow(CASES, [(4, "greedy")]))
def test_replay_of_arbitrary_times_agrees_within_float32(num_processors, name, key):
    # Arbitrary times: completions to 1e-6 (one rounding), and queue lengths exactly, unless a departure falls
    # within float32's resolution of the arrival, which is checked of every difference.
    speeds = np.stack([np.ones(num_processors), np.linspace(0.75, 1.5, num_processors)], axis=1)
    speeds = speeds.astype(np.float32)
    tasks = poisson_tasks(TASKS, speeds.sum(0) * [0.9, 0.6], seed=num_processors)
    outcome, queue_length, expected = both_engines(name, speeds, tasks, key)
    for lane, (action, wait, completion, lengths) in enumerate(expected):
        np.testing.assert_array_equal(outcome.action[:, lane], action)
        np.testing.assert_allclose(outcome.completion[:, lane], completion, rtol=1e-6)
        np.testing.assert_allclose(outcome.wait[:, lane], wait, rtol=1e-6, atol=1e-9)
        arrival = np.cumsum(tasks.gap[:, lane].astype(float))
        departure = arrival + completion
        differing = np.argwhere(queue_length[:, :, lane] != lengths)
        assert len(differing) <= 1
        for task, processor in differing:
            nearest = np.abs(departure[action == processor] - arrival[task]).min()
            assert nearest < 2e-7 * (10.0 + wait[task])


def test_no_error_accumulates_in_a_long_busy_period():
    # One queue that never empties: 10^5 roundings of a plain float32 wait would be off by far more.
    rng = np.random.default_rng(2)
    gaps, sizes = rng.exponential(1.0, 100_000), rng.exponential(0.999, 100_000)
    gaps, sizes = gaps.astype(np.float32), sizes.astype(np.float32)

    @jax.jit
    def run(state):
        def body(state, task):
            state = system.advance(state, task[0])
            return system.assign(state, jnp.ones(1), task[1], jnp.int32(0))[0], state.wait[0]

        return jax.lax.scan(body, state, (jnp.asarray(gaps), jnp.asarray(sizes)))[1]

    start = system.start(1, 4)
    waits = np.asarray(run(start.replace(free=start.free + 1000.0)))
    expected = np.empty(len(gaps))
    wait = 1000.0
    for index, (gap, size) in enumerate(zip(gaps.astype(float), sizes.astype(float), strict=True)):
        wait = max(wait - gap, 0.0)
        expected[index] = wait
        wait += size
    assert expected.min() > 0
    np.testing.assert_allclose(waits, expected, rtol=2e-7)


advance, assign = jax.jit(system.advance), jax.jit(system.assign)


def random_run(seed, num_processors, num_tasks, capacity=8):
    """States and services of a run with arbitrary choices."""
    rng = np.random.default_rng(seed)
    speed = jnp.asarray(rng.uniform(0.2, 3.0, num_processors), jnp.float32)
    state = system.start(num_processors, capacity)
    steps = []
    for _ in range(num_tasks):
        gap, size = jnp.float32(rng.exponential(0.5)), jnp.float32(rng.pareto(1.5) + 0.01)
        action = jnp.int32(rng.integers(num_processors))
        state = advance(state, gap)
        after, wait, service = assign(state, speed, size, action)
        steps.append((state, gap, size, int(action), after, wait, service))
        state = after
    return speed, steps


def exact_waits(state):
    """Waits `[P, ...]` in float64, from the pairs."""
    free, clock = (
        np.float64(time) + np.float64(error)
        for time, error in ((state.free, state.free_error), (state.clock, state.clock_error))
    )
    return np.maximum(free - clock, 0.0)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num_processors=st.integers(1, 12))
def test_work_is_conserved_and_no_task_is_lost(seed, num_processors):
    speed, steps = random_run(seed, num_processors, 30, capacity=64)
    in_system = [[] for _ in range(num_processors)]  # departure times from now, float64
    for state, gap, size, action, after, wait, service in steps:
        in_system = [[left - float(gap) for left in queue] for queue in in_system]
        in_system = [[left for left in queue if left > 0] for queue in in_system]
        assert (state.wait >= 0).all()
        np.testing.assert_allclose(service, size / speed[action], rtol=1e-6)
        # In float64: long waits would round away more of their sum than a short service.
        before, now = (exact_waits(s).sum() for s in (state, after))
        np.testing.assert_allclose(now - before, service, rtol=1e-6)
        np.testing.assert_allclose(after.wait, exact_waits(after), rtol=2e-7)
        in_system[action].append(float(wait + service))
        np.testing.assert_array_equal(after.queue_length, [len(queue) for queue in in_system])
        assert in_system[action] == sorted(in_system[action])  # first come, first served


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_permuting_processors_permutes_everything(seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(4)
    speed, steps = random_run(seed, 4, 20)
    state = system.start(4, 8)
    for _, gap, size, action, after, wait, service in steps:
        state = advance(state, gap)
        place = int(np.flatnonzero(order == action)[0])
        state, permuted_wait, permuted_service = assign(state, speed[order], size, jnp.int32(place))
        assert (permuted_wait, permuted_service) == (wait, service)
        for name in ("free", "free_error", "departure", "slot", "overflow", "wait"):
            np.testing.assert_array_equal(getattr(state, name), getattr(after, name)[order])
        np.testing.assert_array_equal(state.queue_length, after.queue_length[order])


def test_a_full_memory_is_counted_and_the_task_still_served():
    state = system.start(2, 3)
    speed, size = jnp.ones(2), jnp.float32(1.0)
    for count in range(5):
        state, wait, _ = system.assign(state, speed, size, jnp.int32(1))
        assert float(wait) == count
    np.testing.assert_array_equal(state.overflow, [0, 2])
    np.testing.assert_array_equal(state.queue_length, [0, 3])
    assert float(state.wait[1]) == 5.0


@pytest.mark.parametrize(("action", "clipped"), [(-1, 0), (7, 2), (1, 1)])
def test_an_action_out_of_range_goes_to_the_nearest_processor(action, clipped):
    state, _, _ = system.assign(system.start(3, 4), jnp.ones(3), jnp.float32(2.0), jnp.int32(action))
    assert float(state.wait[clipped]) == 2.0
    assert float(state.wait.sum()) == 2.0


def test_holding_cost_is_the_integral_of_the_number_in_system():
    state = system.start(2, 8)
    for action, size in [(0, 1.0), (0, 2.0), (1, 0.5)]:
        state, _, _ = system.assign(state, jnp.ones(2), jnp.float32(size), jnp.int32(action))
    # Departures after 1, 3 and 0.5: over a gap of 2 the tasks stay 1, 2 and 0.5.
    np.testing.assert_allclose(system.holding_cost(state, jnp.float32(2.0)), 3.5)
    np.testing.assert_allclose(system.holding_cost(state, jnp.float32(100.0)), 1.0 + 3.0 + 0.5)
