"""What schedulers see: smoothing, staleness, noise, visibility; against float64 recomputation."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxlb
from jaxlb.observe import flatten


def run(env, params, gaps, sizes, actions, key):
    """Observations before each task of a single lane, and the times of the arrivals."""
    tasks = [
        jaxlb.Task(jnp.float32(gap), jnp.float32(size), jnp.int32(0), jnp.float32(9.0))
        for gap, size in zip(gaps, sizes, strict=True)
    ]
    state = env.start(params, tasks[0], key)
    seen = []
    for index, action in enumerate(actions):
        seen.append(env.observe(state, params, jax.random.fold_in(key, index)))
        following = tasks[(index + 1) % len(tasks)]
        state, _, _ = env.transition(
            state, jnp.int32(action), following, params, jax.random.fold_in(key, 1000 + index)
        )
    return seen, np.cumsum(np.asarray(gaps, np.float64))


def workload_of(num_tasks, num_processors, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.exponential(0.7, num_tasks),
        rng.exponential(1.0, num_tasks),
        rng.integers(num_processors, size=num_tasks),
    )


def backlog_at(time, arrivals, sizes, actions, speed):
    """Backlog of each processor just before `time`, float64, tasks arriving at `time` not counted."""
    left, now = np.zeros(len(speed)), 0.0
    for arrival, size, action in zip(arrivals, sizes, actions, strict=True):
        if arrival >= time:
            break
        left = np.maximum(left - speed * (arrival - now), 0.0)
        left[action] += size
        now = arrival
    return np.maximum(left - speed * (time - now), 0.0)


def test_the_flat_observation_has_the_stated_order(key):
    env, params = jaxlb.make("heavy-tail")
    seen, _ = run(env, params, *workload_of(10, 4), key)
    o = seen[-1]
    flat = np.asarray(flatten(o))
    assert flat.shape == (20,)
    np.testing.assert_allclose(flat[:4], [o.size, o.priority, o.load.mean(), o.load.var()], rtol=1e-6)
    np.testing.assert_array_equal(flat[4:8], o.queue_length)
    np.testing.assert_array_equal(flat[8:12], o.load)
    np.testing.assert_array_equal(flat[12:16], o.wait)
    np.testing.assert_array_equal(flat[16:], params.speed)
    np.testing.assert_allclose(o.load, o.wait * params.speed, rtol=1e-6)


def test_smoothed_load_solves_its_differential_equation(key):
    speed, constant = np.array([0.5, 2.0]), 1.5
    env, params = jaxlb.make("stable", speed=speed, load_time_constant=constant)
    gaps, sizes, actions = workload_of(12, 2)
    seen, arrivals = run(env, params, gaps, sizes, actions, key)
    # Euler's method with a tiny step, from the first arrival on.
    step = 2e-5
    load, backlog, found = np.zeros(2), np.zeros(2), []
    for index in range(len(gaps)):
        if index:
            steps = round(gaps[index] / step)
            h = gaps[index] / steps
            for _ in range(steps):
                load += h * (backlog - load) / constant
                backlog = np.maximum(backlog - h * speed, 0.0)
        found.append(load.copy())
        backlog[actions[index]] += sizes[index]
    np.testing.assert_allclose([o.load for o in seen], found, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        [o.wait * speed for o in seen],
        [backlog_at(t, arrivals, sizes, actions, speed) for t in arrivals],
        atol=1e-5,
    )


def test_stale_figures_are_those_of_the_last_publication(key):
    speed, interval = np.array([0.5, 1.0, 2.0]), 2.0
    env, params = jaxlb.make("stable", speed=speed, measure_interval=interval)
    gaps, sizes, actions = workload_of(60, 3, seed=1)
    gaps[20] = 9.0  # several publications in one gap: the last one counts
    seen, arrivals = run(env, params, gaps, sizes, actions, key)
    for index, o in enumerate(seen):
        published = np.floor(arrivals[index] / interval) * interval
        np.testing.assert_allclose(o.age, arrivals[index] - published, atol=1e-4)
        np.testing.assert_allclose(o.load, backlog_at(published, arrivals, sizes, actions, speed), atol=1e-4)
        np.testing.assert_allclose(o.wait * speed, o.load, atol=1e-4)
        since = (arrivals >= published) & (np.arange(len(arrivals)) < index)
        expected = [sizes[since & (actions == processor)].sum() for processor in range(3)]
        np.testing.assert_allclose(o.assigned, expected, atol=1e-4)
        true_wait = backlog_at(arrivals[index], arrivals, sizes, actions, speed) / speed
        np.testing.assert_allclose(o.truth.wait, true_wait, atol=1e-4)
    assert flatten(seen[0], stale=True).shape == env.observation_space(params).shape == (4 + 4 * 3 + 1 + 3,)


def test_hidden_sizes_and_waits_leave_only_means_and_queue_lengths(key):
    env, params = jaxlb.make("two-server", class_slack=[2.0], deadline_constant=1.0)
    seen, _ = run(env, params, *workload_of(30, 2, seed=2), key)
    lengths = np.array([o.queue_length for o in seen])
    assert lengths.max() > 1
    for o in seen:
        assert float(o.size) == 1.0
        np.testing.assert_allclose(o.deadline, 2.0 * 1.0 / 0.6 + 1.0, rtol=1e-6)
        np.testing.assert_allclose(o.load, o.queue_length, rtol=1e-6)
        np.testing.assert_allclose(o.wait, np.asarray(o.queue_length) / [1.0, 0.2], rtol=1e-6)
    assert len({float(o.truth.size) for o in seen}) > 10


def test_noise_is_right_on_average_never_negative_and_common_to_load_and_wait():
    env, params = jaxlb.make("stable", speed=[1.0, 2.0], measure_noise=0.5)
    lanes = 20_000
    params = params.replace(speed=params.speed[:, None])
    zero = jnp.zeros(lanes)
    task = jaxlb.Task(zero, zero + 3.0, zero.astype(jnp.int32), zero + 9.0)
    state = env.start(params, task, jax.random.key(1))
    state, _, _ = env.transition(state, jnp.ones(lanes, jnp.int32), task, params, jax.random.key(2))
    o = env.observe(state, params, jax.random.key(3))
    assert float(o.wait.min()) >= 0
    np.testing.assert_array_equal(o.wait[0], 0.0)
    factor = np.asarray(o.wait[1], np.float64) / 1.5
    error = np.sqrt(np.expm1(0.25) / lanes)
    assert abs(factor.mean() - 1.0) < 5 * error
    np.testing.assert_allclose(np.log(factor).std(), 0.5, rtol=0.03)
    np.testing.assert_allclose(o.load[1], 2.0 * o.wait[1], rtol=1e-5)
    np.testing.assert_array_equal(o.queue_length, state.system.station.queue_length)
