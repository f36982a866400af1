"""What factories make is a value: equal to what is made the same way, here and after pickling."""

import copy
import functools
import multiprocessing
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import drift
from jaxlb.functions import partial
from jaxlb.learn import networks
from jaxlb.learn.dqn import DQNConfig, start_dqn
from jaxlb.loop import continue_rollout
from jaxlb.scheduling import classical, forecasts, predictive, predictors, regression

NETWORKS = {
    "mlp": networks.mlp,
    "per-processor": functools.partial(networks.per_processor, (8,)),
    "gnn": networks.gnn,
    "recurrent-gnn": functools.partial(networks.recurrent_gnn, outputs=2),
}


def found(made):
    return pickle.loads(pickle.dumps(made))


def same(one, other):
    """Equal functions, equal numbers."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    chex.assert_trees_all_equal(one, other)


def test_partial_functions_are_values():
    one, other = partial(max, 1, key=abs), partial(max, 1, key=abs)
    assert one == other and hash(one) == hash(other) and one(-2) == -2
    for different in (partial(max, 2, key=abs), partial(min, 1, key=abs), partial(max, 1)):
        assert one != different
    assert one != functools.partial(max, 1, key=abs)


@pytest.mark.parametrize("name", jaxlb.schedulers())
def test_schedulers_are_values(name):
    same(jaxlb.scheduler(name), jaxlb.scheduler(name))
    same(jaxlb.scheduler(name), found(jaxlb.scheduler(name)))


@pytest.mark.parametrize(
    ("name", "options", "others"),
    [
        ("guarded-sita", {"big": 2, "share": 0.8}, {"share": 0.9}),
        ("power-of-d", {"d": 3}, {"d": 4}),
        ("hedge", {"candidates": (jaxlb.scheduler("lwr"), jaxlb.scheduler("power-of-d"))}, {"rate": 2.0}),
        ("drift-aware", {"detector": "cusum"}, {"hold": 2}),
    ],
)
def test_other_options_make_another_scheduler(name, options, others):
    one = jaxlb.scheduler(name, **options)
    same(one, found(one))
    other = jaxlb.scheduler(name, **options | others)
    assert jax.tree.structure(other) != jax.tree.structure(one)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_values(name):
    one, other = NETWORKS[name](), NETWORKS[name]()
    assert one == other == found(one) and hash(one) == hash(other) == hash(found(one))


@pytest.mark.parametrize(
    "factory",
    [
        *(functools.partial(predictors.predictor, name) for name in predictors.PREDICTORS),
        *(functools.partial(drift.detector, name) for name in drift.DETECTORS),
    ],
    ids=lambda factory: factory.args[0],
)
def test_predictors_and_detectors_are_values(factory):
    assert factory() == factory() == found(factory()) and hash(factory()) == hash(found(factory()))


@pytest.mark.parametrize(
    "config",
    [jaxlb.DQNConfig(), jaxlb.GNNConfig(), jaxlb.PredictorConfig()],
    ids=lambda config: type(config).__name__,
)
def test_settings_are_values(config):
    same(found(config), config)


@pytest.mark.parametrize("name", forecasts.FORECASTERS)
def test_forecasters_are_values(name):
    same(forecasts.forecaster(name), found(forecasts.forecaster(name)))


def untrained(env, params, key):
    """A DQN with its first weights."""
    config = DQNConfig(network=networks.per_processor((8,)), num_lanes=2, memory_rows=4)
    return jaxlb.scheduling.learned.dqn(config.network, start_dqn(env, params, config, key).variables)


@pytest.mark.slow
def test_traced_numbers_in_a_factory_leave_nothing_behind(key):
    env, params = jaxlb.make("stable")

    def completion(threshold):
        return jaxlb.rollout(env, params, classical.lwr_rr(threshold), key, 2, 3).mean_completion.mean()

    thresholds = jnp.array([0.5, 0.1])
    for _ in range(2):
        together = jax.vmap(completion)(thresholds)
        alone = jaxlb.rollout(env, params, "lwr-rr", key, 2, 3).mean_completion.mean()
        np.testing.assert_allclose(together[1], alone, rtol=1e-5)  # 0.1 is the default


def test_a_registered_factory_is_compiled_once_whatever_it_makes(key):
    def mine(place: int = 0):
        return jaxlb.scheduling.stateless("mine", lambda o, key: jnp.full(o.size.shape, place, jnp.int32))

    jaxlb.register("mine", mine)
    env, params = jaxlb.make("stable")
    jaxlb.rollout(env, params, "mine", key, 2, 3)
    compiled = continue_rollout._cache_size()
    for name in ("mine", "mine()", "mine(place=0)"):
        jaxlb.rollout(env, params, name, key, 2, 3)
    assert continue_rollout._cache_size() <= compiled + 1  # options that are said are another request


def test_what_is_made_twice_is_compiled_once(key):
    env, params = jaxlb.make("heavy-tail")
    jaxlb.rollout(env, params, untrained(env, params, key), key, 2, 3)
    compiled = continue_rollout._cache_size()
    jaxlb.rollout(env, params, untrained(env, params, jax.random.key(1)), key, 2, 3)
    jaxlb.rollout(env, params, found(untrained(env, params, key)), key, 2, 3)
    assert continue_rollout._cache_size() == compiled


@pytest.mark.slow
def test_schedulers_vmap_over_their_variables(key):
    env, params = jaxlb.make("heavy-tail")
    fixed = jaxlb.Scheduler("fixed", jnp.int32(0), own_start, always)
    many = fixed.replace(variables=jnp.arange(4))
    together = jax.vmap(lambda one: jaxlb.rollout(env, params, one, key, 4, 20))(many)
    for place in range(4):
        alone = jaxlb.rollout(env, params, fixed.replace(variables=jnp.int32(place)), key, 4, 20)
        np.testing.assert_allclose(together.mean_completion[place], alone.mean_completion, rtol=1e-4)
    assert len(np.unique(together.mean_completion.mean(1))) == 4


# What a user would write at the top of a module.
def own_start(env, params, lanes):
    return ()


def always(place, memory, observation, key):
    return jnp.full(observation.size.shape, place, jnp.int32), memory


def first(variables, memory, observation, key):
    return jnp.zeros(observation.size.shape, jnp.int32), memory


def test_a_scheduler_of_functions_of_a_module_is_pickled():
    own = jaxlb.Scheduler("first", jnp.arange(3), own_start, first)
    same(found(own), own)


def test_functions_within_functions_are_not():
    own = jaxlb.Scheduler("own", (), own_start, lambda variables, memory, observation, key: (0, memory))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(own)
    assert copy.deepcopy(own) == own  # which needs no pickling


def decide(trained, seed):
    """In another process."""
    env, params = jaxlb.make("heavy-tail")
    tasks = jaxlb.workload.sample(jax.random.key(seed), params, 50)
    return np.asarray(jaxlb.replay(env, params, trained, tasks, jax.random.key(0)).action)


@pytest.mark.slow
def test_another_process_decides_the_same(key):
    env, params = jaxlb.make("heavy-tail")
    scheduler = untrained(env, params, key)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(decide, (scheduler, 5))
    np.testing.assert_array_equal(theirs, decide(scheduler, 5))


def test_other_learned_schedulers_are_pickled(key):
    network = networks.recurrent_gnn(outputs=2)
    x = jaxlb.scheduling.features.Features(jnp.zeros((1, 5)), jnp.zeros((1, 4, 7)))
    gnn = regression.gnn(network, regression.untrained(network, key, x), adaptation=0.1)
    same(found(gnn), gnn)
    predicting = predictive.predicting("own", *predictors.reckoned(), drift.detector("cusum", limit=4.0), 2)
    same(found(predicting), predicting)
