"""What is learned online is what was drawn, measured and served."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.numerics import first_smallest
from jaxlb.replaying import watch
from jaxlb.scheduling import belief, situation
from jaxlb.scheduling.base import sampled
from jaxlb.types import Scheduler
from tests import small


def act(variables, memory, observation, key):
    b = belief.update(memory, observation, jnp.ones_like(observation.size))
    action = sampled(observation.speed, key, observation.size.shape)
    return action, belief.decided(belief.sized(b, observation.size), observation, action)


RANDOM = Scheduler("random", (), belief.start, act)


def after(variables, memory, observation):
    """What is believed at a decision."""
    b = belief.update(memory, observation, jnp.ones_like(observation.size))
    return b, belief.backlog(b), belief.speeds(b, observation), observation.truth, observation.wait


def watched(env, params, num_tasks, lanes=4, seed=0, rule=RANDOM):
    tasks = workload.sample(jax.random.key(seed), params, num_tasks, (lanes,))
    outcome, seen = watch(env, params, rule, tasks, jax.random.key(seed + 1), after)
    return tasks, outcome, seen


def test_averages_and_shares_of_work_are_those_of_the_tasks_so_far():
    env, params = jaxlb.make("heavy-tail")
    tasks, _, (b, *_) = watched(env, params, 400)
    size, gap = np.asarray(tasks.size, np.float64), np.asarray(tasks.gap, np.float64)
    first, size = size[0], size[:-1]  # the task at hand does not count yet
    np.testing.assert_allclose(b.first_size[-1], first)
    np.testing.assert_allclose(b.size[-1] * first, size.mean(0), rtol=1e-4)
    np.testing.assert_allclose(b.gap[-1], gap.mean(0), rtol=1e-4)
    last = jax.tree.map(lambda leaf: leaf[-1], b)
    for octave in (-1.0, 0.0, 2.0):
        # The histogram is exact at powers of two of the first size, and between them linear.
        place = octave + np.log2(size.mean(0) / first)
        low = first * 2.0 ** np.floor(place)
        bounds = [(size * (size <= end)).sum(0) / size.sum(0) for end in (low, 2.0 * low)]
        expected = bounds[0] + (place - np.floor(place)) * (bounds[1] - bounds[0])
        found = belief.share_of_work(last, jnp.full(4, octave, jnp.float32))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        bounds = [(size <= end).mean(0) for end in (low, 2.0 * low)]
        expected = bounds[0] + (place - np.floor(place)) * (bounds[1] - bounds[0])
        found = belief.share_of_tasks(last, jnp.full(4, octave, jnp.float32))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("overrides", [{}, {"measure_interval": 5.0}, {"wait_visible": False}])
def test_backlogs_are_known_where_sizes_are_seen(overrides):
    env, params = jaxlb.make("heavy-tail", **overrides)
    _, _, (_, backlog, _, truth, _) = watched(env, params, 300)
    np.testing.assert_allclose(backlog, truth.wait * truth.speed, rtol=1e-3, atol=1e-2)


def test_noise_is_seen_through():
    env, params = jaxlb.make("stable", measure_noise=0.5)
    _, _, (_, backlog, _, truth, wait) = watched(env, params, 1000, lanes=16)
    true = np.asarray(truth.wait * truth.speed)[500:]
    off, measured = (np.abs(np.asarray(found)[500:] - true).mean() for found in (backlog, wait))
    assert off < 0.1 * measured


@pytest.mark.parametrize(
    "overrides",
    small.mostly_slow([{}, {"measure_interval": 2.0}, {"size_visible": False}], [{"size_visible": False}]),
)
def test_speeds_are_found_out(overrides):
    env, params = jaxlb.make("stable", load=0.7, **overrides)
    params = dataclasses.replace(
        params, speed=jnp.array([0.5, 1.0, 2.0, 1.0]), nominal_speed=jnp.array([1.0, 1.0, 1.0, 1.0])
    )
    _, _, (_, _, speeds, truth, _) = watched(env, params, 1500, lanes=16)
    known = np.asarray(speeds)[-1].mean(-1)
    # The nominal speed counts for one mean service, of which a hundred are remembered, busy ones alone.
    np.testing.assert_allclose(known, truth.speed[-1, :, 0], rtol=0.08)


def soonest(variables, memory, observation, key):
    """As `act`, but each task goes where it completes soonest, as far as is believed."""
    b = belief.update(memory, observation, jnp.ones_like(observation.size))
    completion = (belief.backlog(b) + observation.size) / observation.speed
    action = first_smallest(completion, -observation.speed)
    return action, belief.decided(belief.sized(b, observation.size), observation, action)


SOONEST = Scheduler("soonest", (), belief.start, soonest)


@pytest.mark.parametrize(
    "overrides", small.mostly_slow([{}, {"wait_visible": False}, {"load": 0.3}], [{"wait_visible": False}])
)
def test_hidden_sizes_are_learned_from_departures(overrides):
    """When in a gap a task departs is not known, so small sizes are blurred."""
    env, params = jaxlb.make("heavy-tail", size_visible=False, queue_capacity=64, **overrides)
    tasks, _, (b, *_) = watched(env, params, 2500, lanes=32, rule=SOONEST)
    last, size = jax.tree.map(lambda leaf: leaf[-1], b), np.asarray(tasks.size, np.float64)
    for octave in (0.0, 1.0, 2.0, 3.0):
        small = size <= 2.0**octave * size.mean()
        where = jnp.full(32, octave, jnp.float32)
        found = belief.share_of_tasks(last, where), belief.share_of_work(last, where)
        true = small.mean(), size[small].sum() / size.sum()
        for share, expected, most in zip(found, true, (0.1, 0.15), strict=True):
            assert np.mean(share) == pytest.approx(expected, abs=most)
    spread = np.median((size**2).mean(0) / size.mean(0) ** 2)
    assert 0.5 * spread < np.median(belief.spread_of_sizes(last)) < 1.5 * spread


def test_a_task_that_is_served_for_long_is_expected_to_take_longer():
    env, params = jaxlb.make("heavy-tail", size_visible=False, wait_visible=False, queue_capacity=64)
    _, _, (_, backlog, _, truth, wait) = watched(env, params, 2500, lanes=32, rule=SOONEST)
    true, believed, by_length = (
        np.log1p(np.asarray(work, np.float64)[1000:].ravel())
        for work in (truth.wait * truth.speed, backlog, wait * truth.speed)
    )
    assert np.corrcoef(true, believed)[0, 1] > np.corrcoef(true, by_length)[0, 1] + 0.03


def test_units_do_not_matter():
    env, params = jaxlb.make("heavy-tail", measure_interval=2.0)
    tasks = workload.sample(jax.random.key(0), params, 100, (4,))
    scaled = tasks.replace(gap=tasks.gap * 64.0, size=tasks.size * 16.0, deadline=tasks.deadline * 64.0)
    slower = params.replace(speed=params.speed / 4.0, measure_interval=params.measure_interval * 64.0)

    def numbers(variables, memory, observation):
        b = belief.update(memory, observation, jnp.ones_like(observation.size))
        s = situation.situation(b, observation)
        return jnp.stack(list(situation.workload(b, s).values())), s.completion

    key = jax.random.key(1)
    one = watch(env, params, RANDOM, tasks, key, numbers)[1]
    other = watch(env, slower, RANDOM, scaled, key, numbers)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)
