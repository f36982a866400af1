"""What is pickled is found again: the same object here, one that does the same elsewhere."""

import copy
import multiprocessing
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import drift, recipes
from jaxlb.learn import networks
from jaxlb.scheduling import forecasts, learned, predictive, predictors, regression

NETWORKS = [networks.mlp(), networks.per_processor((8,)), networks.gnn(), networks.recurrent_gnn(outputs=2)]


def found(made):
    return pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize("name", jaxlb.schedulers())
def test_a_scheduler_by_name_is_the_same_object(name):
    assert found(jaxlb.scheduler(name)) is jaxlb.scheduler(name)


@pytest.mark.parametrize(
    "made",
    [
        jaxlb.scheduler("guarded-sita(big=2, share=0.8)"),
        jaxlb.scheduler("hedge", candidates=(jaxlb.scheduler("lwr"), jaxlb.scheduler("power-of-d", d=3))),
        *NETWORKS,
        *(learned.dqn(network, forecasts.forecaster("predicted")) for network in NETWORKS[:2]),
        learned.dqn(NETWORKS[1]),
        *(regression.gnn(network, adaptation=0.1) for network in NETWORKS[1:]),
        predictive.predicting("drift-aware", predictors.mlp((4,)), drift.detector("cusum", limit=4.0), 2),
        *(predictors.predictor(name) for name in predictors.PREDICTORS),
        *(forecasts.forecaster(name) for name in forecasts.FORECASTERS),
        *(drift.detector(name) for name in drift.DETECTORS),
    ],
    ids=lambda made: getattr(made, "name", None),
)
def test_what_factories_make_is_the_same_object(made):
    assert found(made) is made
    assert copy.deepcopy(made) is made


@pytest.mark.parametrize(
    "config",
    [jaxlb.DQNConfig(), jaxlb.GNNConfig(), jaxlb.PredictorConfig()],
    ids=lambda config: type(config).__name__,
)
def test_settings_are_equal(config):
    assert found(config) == config


def test_a_forecaster_of_ones_own_is_made_anew_by_the_same_fit():
    """Arrays cannot be looked up, so such a one is not found again."""
    predictor, fit = predictors.shipped()
    own = forecasts.predicted(predictor, fit.replace(error=2.0 * fit.error))
    again = found(learned.dqn(NETWORKS[1], own))
    assert again.name == "dqn" and found(own).name == "predicted"
    _, (its_predictor, its_fit), _ = recipes._CALLS[found(own)]
    assert its_predictor is predictor
    chex.assert_trees_all_equal(its_fit.error, 2.0 * fit.error)


# What a user would write at the top of a module.
def own_start(env, params, lanes):
    return ()


def own_init(key, observation):
    return ()


def first(variables, memory, observation, key):
    return jnp.zeros(observation.size.shape, jnp.int32), memory


def test_a_scheduler_of_functions_of_a_module_needs_nothing():
    own = jaxlb.Scheduler("first", own_init, own_start, first)
    assert found(own) == own


def test_functions_within_functions_have_to_come_from_a_recipe():
    own = jaxlb.Scheduler("own", own_init, own_start, lambda variables, memory, observation, key: (0, memory))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(own)
    assert copy.deepcopy(own) == own  # which needs no pickling


def decide(trained, seed):
    """In another process."""
    env, params = jaxlb.make("heavy-tail")
    scheduler, variables = trained
    tasks = jaxlb.workload.sample(jax.random.key(seed), params, 50)
    return np.asarray(jaxlb.replay(env, params, scheduler, variables, tasks, jax.random.key(0)).action)


def test_another_process_decides_the_same(key):
    env, params = jaxlb.make("heavy-tail")
    scheduler = learned.dqn(networks.per_processor((8,)))
    _, state = env.reset(key, params)
    variables = scheduler.init(key, env.observe(state, params, key))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(decide, ((scheduler, variables), 5))
    np.testing.assert_array_equal(theirs, decide((scheduler, variables), 5))
    chex.assert_trees_all_equal(found(variables), variables)
