"""Waits that a network is told: as good as what was seen allows."""

import chex
import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.learn.dqn import DQNConfig
from jaxlb.learn.settings import configure, plain
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import forecasts
from jaxlb.types import Scheduler


def forecast(key, name, **overrides):
    """Waits forecast and true, in mean services, `[T, P, N]`, of tasks that are spread over processors."""
    env, params = jaxlb.make("stale", **overrides)
    forecaster, random = forecasts.forecaster(name), jaxlb.scheduler("weighted-random")

    def act(variables, memory, observation, key):
        return random.act((), (), observation, key)[0], forecaster.update(variables, memory, observation)[0]

    def record(rule, memory, observation):
        _, seen, wait = forecaster.update(rule.variables, memory, observation)
        return wait, seen.truth.wait

    rule = Scheduler("forecasting", forecaster.variables, lambda env, *given: forecaster.start(*given), act)
    tasks = workload.sample(key, with_lane_axis(params, (4,)), 200, (4,))
    return jax.tree.map(np.asarray, watch(env, params, rule, tasks, key, record)[1])


def test_predicted_waits_are_the_true_ones_where_sizes_are_seen(key):
    wait, true = forecast(key, "predicted")
    np.testing.assert_allclose(wait, true, atol=0.01)
    # Without an account of idling they are too short.
    fluid, _ = forecast(key, "fluid")
    assert (fluid <= true + 1e-4).all()
    assert (fluid < true - 0.1).mean() > 0.05


def test_predicted_waits_are_nearer_where_sizes_are_not_seen(key):
    def error(name):
        wait, true = forecast(key, name, size_visible=False)
        return np.abs(wait - true).mean()

    assert error("predicted") < 0.95 * error("fluid")


def test_settings_name_them():
    found = configure(DQNConfig, forecaster="predicted").forecaster
    expected = forecasts.forecaster("predicted")
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    chex.assert_trees_all_equal(found, expected)
    assert configure(DQNConfig).forecaster == forecasts.FLUID
    with pytest.raises(ValueError, match=r"unknown forecaster 'fuild'; did you mean fluid"):
        configure(DQNConfig, forecaster="fuild")


def test_a_forecaster_of_ones_own_has_no_plain_name():
    for own in (forecasts.FLUID.replace(name="own"), forecasts.FLUID.replace(update=lambda *given: given)):
        assert "forecaster" not in plain(DQNConfig(forecaster=own))
    assert plain(DQNConfig(forecaster=forecasts.forecaster("predicted")))["forecaster"] == "predicted"
