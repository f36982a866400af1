"""What a network sees, and how its values become choices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.learn import networks
from jaxlb.learn.dqn import DQNConfig, start_dqn
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.params import with_lane_axis
from jaxlb.rewards import Weights
from jaxlb.scheduling import features, learned
from jaxlb.scheduling.forecasts import FLUID
from tests import small


def observed(key, num_lanes=8, **overrides):
    """What 8 lanes see somewhere on their way, and the mean service."""
    env, params = jaxlb.make("heavy-tail", **overrides)
    rule = jaxlb.scheduler("random")
    carry = start_rollout(env, params, rule, key, num_lanes)
    carry = continue_rollout(env, params, rule, carry, 30)
    with_lanes = with_lane_axis(params, (num_lanes,))
    unit = FLUID.start(with_lanes, (num_lanes,))
    return env, params, jax.jit(env.observe)(carry.state, with_lanes, key), unit


@jax.jit
def inputs(observation, weights, unit):
    """Features and known rewards."""
    _, seen, forecast = FLUID.update((), unit, observation)
    x = features.extract(seen, forecast, learned.NAMES, learned.objective(weights))
    return x, learned.known_rewards(seen, forecast, weights)


def test_in_mean_services_nothing_depends_on_the_units(key):
    weights = Weights(sla_weight=jnp.array([1.0, 2.0]))
    seen = []
    for time, work in ((1.0, 1.0), (8.0, 1.0), (1.0, 16.0)):
        speed = [0.5 * work / time, 2.0 * work / time]
        _, _, observation, unit = observed(key, low=work, high=1000.0 * work, speed=speed)
        x, known = inputs(observation, weights, unit)
        chex.assert_tree_all_finite(x)
        seen.append((x, known))
    chex.assert_trees_all_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(seen[2], seen[0], rtol=1e-3, atol=1e-4)


def test_the_network_is_told_the_weights(key):
    _, _, observation, unit = observed(key)
    base, _ = inputs(observation, Weights(), unit)
    for change in ({"completion_weight": 1.0}, {"sla_weight": 3.0}, {"imbalance_weight": 0.1}):
        changed, _ = inputs(observation, Weights(**change), unit)
        assert int((changed.task != base.task).any(0).sum()) == 1
    by_lane, _ = inputs(observation, Weights(sla_weight=jnp.linspace(0.1, 1.0, 8)[None]), unit)
    assert len(np.unique(np.asarray(by_lane.task[:, -1]))) == 8


def test_features_stay_finite_where_deadlines_do_not(key):
    _, _, observation, unit = observed(key)
    observation = observation.replace(deadline=jnp.full(8, jnp.inf))
    chex.assert_tree_all_finite(inputs(observation, Weights(), unit))


def test_standardised_features_have_mean_0_and_variance_1(key):
    x = features.Features(
        task=3.0 + 2.0 * jax.random.normal(key, (10_000, 2)),
        processor=-1.0 + 0.5 * jax.random.normal(key, (10_000, 3, 4)),
    )
    moments = features.Moments(
        mean=features.Features(jnp.full(2, 3.0), jnp.full(4, -1.0)),
        variance=features.Features(jnp.full(2, 4.0), jnp.full(4, 0.25)),
    )
    for leaf in jax.tree.leaves(features.standardise(moments, x)):
        np.testing.assert_allclose([leaf.mean(), leaf.std()], [0.0, 1.0], atol=0.03)
    # What lies beyond all that was seen counts as the farthest that is told.
    far = jax.tree.map(lambda leaf: 1e3 * leaf, x)
    for leaf in jax.tree.leaves(features.standardise(moments, far)):
        assert (float(leaf.min()), float(leaf.max())) == (-features.BOUND, features.BOUND)
    # What never varied says nothing, whatever it is now.
    unvaried = moments.replace(variance=jax.tree.map(jnp.zeros_like, moments.variance))
    for shown in (x, far):
        constant = features.standardise(unvaried, shown)
        chex.assert_trees_all_equal(constant, jax.tree.map(jnp.zeros_like, constant))


TRAININGS = {
    "dqn": (
        jaxlb.train_dqn,
        jaxlb.DQNConfig(
            num_lanes=8, memory_rows=64, batch_size=32, num_iterations=300, num_evaluations=2,
            evaluation_tasks=20,
        ),
    ),
    "gnn": (
        jaxlb.train_gnn,
        jaxlb.GNNConfig(num_lanes=10, num_tasks=20, warmup=10, num_iterations=60, num_evaluations=2),
    ),
}  # fmt: skip


@functools.cache
def trained(method):
    """A short training for tasks of one priority."""
    train, config = TRAININGS[method]
    env, params = jaxlb.make("heavy-tail")
    return env, params, train(env, params, config, jax.random.key(3))


QUICKEST = small.mostly_slow(TRAININGS, ["predictor"])


@pytest.mark.parametrize("method", QUICKEST)
def test_what_never_varied_in_training_moves_no_choice(key, method):
    """Three priorities with one deadline: to who learned with one, the same tasks as ever."""
    env, params, result = trained(method)
    tasks = jaxlb.workload.sample(key, with_lane_axis(params, (16,)), 200, (16,))
    of_many = params.replace(class_probability=jnp.full(3, 1 / 3), class_slack=jnp.full(3, 4.0))
    known = jaxlb.replay(env, params, result.scheduler, tasks, key)
    assert len(np.unique(known.action)) > 1
    for priority in (1, 2):
        other = tasks.replace(priority=jnp.full_like(tasks.priority, priority))
        met = jaxlb.replay(env, of_many, result.scheduler, other, key)
        np.testing.assert_array_equal(met.action, known.action)


@pytest.mark.parametrize("method", QUICKEST)
def test_by_default_processors_have_no_places(key, method):
    """The same speeds in another order: tasks go to the same speeds, but for a rounded tie or two."""
    env, params, result = trained(method)
    tasks = jaxlb.workload.sample(key, with_lane_axis(params, (16,)), 200, (16,))
    order = jnp.array([2, 0, 3, 1])
    known = jaxlb.replay(env, params, result.scheduler, tasks, key)
    permuted = params.replace(speed=jnp.asarray(params.speed)[order])
    met = jaxlb.replay(env, permuted, result.scheduler, tasks, key)
    same = (order[met.action] == known.action).all(0)
    assert same.sum() >= 15
    np.testing.assert_allclose(met.completion[:, same], known.completion[:, same], rtol=1e-4)


@pytest.mark.slow
def test_a_network_that_says_nothing_leaves_the_greedy_choice(key):
    env, params, observation, unit = observed(key)
    network = networks.mlp((4,))
    silent = network._replace(apply=lambda parameters, x: jnp.zeros(x.processor.shape[:-1]))
    weights = Weights(completion_weight=1.0, completion_exponent=1.0, sla_weight=0.0)
    scheduler = learned.dqn(
        silent, learned.untrained(silent, key, inputs(observation, weights, unit)[0], weights)
    )
    own = jaxlb.rollout(env, params, scheduler, key, 64, 200)
    greedy = jaxlb.rollout(env, params, jaxlb.scheduler("greedy"), key, 64, 200)
    # Speeds differ, so there are no ties but by rounding.
    np.testing.assert_allclose(own.mean_completion, greedy.mean_completion, rtol=1e-5)


@pytest.mark.slow
def test_one_lane_and_many_choose_alike(key):
    env, params = jaxlb.make("stale")
    config = DQNConfig(network=networks.per_processor((8,)), num_lanes=3, memory_rows=4)
    scheduler = learned.dqn(config.network, start_dqn(env, params, config, key).variables)
    tasks = jaxlb.workload.sample(key, with_lane_axis(params, (3,)), 50, (3,))
    many = jaxlb.replay(env, params, scheduler, tasks, key).action
    for lane in range(3):
        one = jax.tree.map(lambda leaf, lane=lane: leaf[:, lane], tasks)
        np.testing.assert_array_equal(jaxlb.replay(env, params, scheduler, one, key).action, many[:, lane])


def test_the_forecast_is_the_true_wait_unless_a_processor_idled(key):
    _, _, fresh, unit = observed(key)
    _, seen, forecast = FLUID.update((), unit, fresh)
    np.testing.assert_array_equal(forecast, seen.wait)
    _, _, stale, unit = observed(key, num_lanes=256, measure_interval=4.0, load=0.95)
    _, stale, forecast = FLUID.update((), unit, stale)
    forecast, true = np.asarray(forecast), np.asarray(stale.truth.wait)
    assert np.abs(np.asarray(stale.wait) - true).mean() > 0.1 * true.mean()
    # Idling is time that served nothing: it only makes the truth larger.
    assert (forecast <= true * (1 + 1e-5) + 1e-4).all()
    busy = np.asarray(stale.wait) > np.asarray(stale.age)
    assert busy.mean() > 0.3
    np.testing.assert_allclose(forecast[busy], true[busy], rtol=1e-4, atol=1e-4)
