"""Predictors: least squares where they are linear, intervals that cover, files that say the same."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.learn import predictor as learn
from jaxlb.learn.predictor import PredictorConfig, train_predictor
from jaxlb.scheduling import predictors
from tests import small
from tests.lines import as_plain, from_plain

SMALL = PredictorConfig(num_lanes=50, num_tasks=200, num_examples=5000, num_iterations=100)


def stale(**overrides):
    return jaxlb.make("stale", **overrides)


@pytest.mark.parametrize("name", small.mostly_slow(["original", "linear"], ["linear"]))
def test_a_linear_predictor_is_the_least_squares_fit(key, name):
    env, params = stale(size_visible=False, measure_noise=0.3)
    config = SMALL.replace(predictor=predictors.predictor(name))
    # The last weights: the best ones are those that did best on other examples, on the way there.
    fit = train_predictor(env, params, config, key).last.variables
    examples, _ = learn.examples(env, params, config, jax.random.split(key)[0])
    x, y = np.asarray(examples.x, float), np.asarray(examples.backlog, float)
    varies = x.std(1) > 1e-6
    design = np.vstack([x[varies], np.ones(x.shape[1])]).T
    best = np.linalg.lstsq(design, y)[0]
    slopes, level = as_plain(config.predictor, fit)
    ours = np.asarray([*np.asarray(list(slopes.values()))[varies], level])
    exact, found = design @ best, design @ ours
    assert np.sqrt(((exact - found) ** 2).mean()) < 1e-5 * exact.std()
    if name == "original":
        np.testing.assert_allclose(ours, best, rtol=1e-3)
    assert not np.asarray(list(slopes.values()))[~varies].any()
    # As plain numbers it predicts the same.
    again, read = from_plain(slopes, level, float(fit.error))
    assert again == config.predictor
    x = 3.0 * jax.random.uniform(key, (len(config.predictor.features), 8, 6))
    chex.assert_trees_all_close(
        predictors.predict(again, read, x), predictors.predict(again, fit, x), rtol=1e-3, atol=1e-3
    )


def test_a_line_that_goes_through_everything_is_found(key):
    """Where sizes are seen, the backlog that was kept account of is the backlog."""
    env, params = stale()
    fit = train_predictor(env, params, SMALL, key).scheduler.variables
    slopes, _ = as_plain(SMALL.predictor, fit)
    assert slopes.pop("reckoned backlog") == pytest.approx(1.0, abs=2e-3)
    assert max(map(abs, slopes.values())) < 5e-3
    assert float(fit.error) < 5e-3


def test_a_predictor_does_not_listen_to_what_never_varied(key):
    """Rounding in the mean of thousands of equal numbers is no variation."""
    env, params = stale(speed=[0.7] * 8)
    fit = train_predictor(
        env, params, SMALL.replace(num_iterations=10, num_evaluations=1), key
    ).scheduler.variables
    place = SMALL.predictor.features.index("speed")
    assert jnp.isinf(fit.feature_deviation[place])
    x = jax.random.uniform(key, (len(SMALL.predictor.features), 8, 6))
    other = x.at[place].add(3.0)
    chex.assert_trees_all_equal(*(predictors.predict(SMALL.predictor, fit, x) for x in (x, other)))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"size_visible": False}, {"measure_noise": 0.5}])
def test_stated_intervals_cover_what_they_should(key, overrides):
    env, params = stale(**overrides)
    gaussian = predictors.gaussian((16, 16))
    config = SMALL.replace(predictor=gaussian, num_lanes=500, num_tasks=50, num_examples=20_000)
    fit = train_predictor(env, params, config, key).scheduler.variables
    # Other systems than those it was fitted and calibrated on.
    other, _ = learn.examples(env, params, config, jax.random.key(99))
    backlog, error = predictors.predict(config.predictor, fit, other.x)
    covered = np.abs(np.asarray(other.backlog - backlog)) < 1.6449 * np.asarray(error)
    assert 0.88 < covered.mean() < 0.92
    # It is told apart when a prediction is good: errors are in proportion to what is stated.
    ranked = np.argsort(np.asarray(error))
    off = np.abs(np.asarray(other.backlog - backlog))
    assert off[ranked[-5000:]].mean() > 2 * off[ranked[:5000]].mean()


@pytest.mark.slow
def test_more_features_and_curves_predict_better(key):
    env, params = stale(size_visible=False, measure_noise=0.3)
    errors = [
        float(train_predictor(env, params, SMALL.replace(predictor=one), key).scheduler.variables.error)
        for one in (predictors.original(), predictors.linear(), predictors.mlp((16, 16)))
    ]
    assert errors[0] > 1.2 * errors[1] > 1.2 * 0.95 * errors[2]


@pytest.mark.slow
def test_seeds_train_side_by_side(key):
    env, params = stale(size_visible=False)
    keys = jax.random.split(key, 2)
    together = jax.vmap(lambda key: train_predictor(env, params, SMALL, key).history.held_out_error)(keys)
    alone = train_predictor(env, params, SMALL, keys[1]).history.held_out_error
    # On the way rounding sends line searches elsewhere; where they come from and end up is the same.
    np.testing.assert_allclose(together[1, [0, -1]], alone[jnp.array([0, -1])], rtol=1e-4)
    assert together[0, -1] != together[1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_lanes": 5}, "num_lanes = 5: must be a whole number of at least 6"),
        ({"num_iterations": 0}, "num_iterations = 0: must be a whole number of at least 1"),
    ],
)
def test_bad_settings_are_refused(key, change, message):
    env, params = stale()
    with pytest.raises(ValueError, match=message):
        train_predictor(env, params, dataclasses.replace(SMALL, **change), key)
    with pytest.raises(ValueError, match="unknown predictor 'tree'"):
        predictors.predictor("tree")
    with pytest.raises(ValueError, match="unknown feature 'weather'"):
        predictors.linear(("weather",))


def test_one_predictor_for_many_intervals(key):
    env, params = stale()
    params = params.replace(measure_interval=jnp.geomspace(0.5, 20.0, SMALL.num_lanes))
    fit = train_predictor(env, params, SMALL, key).scheduler.variables
    assert float(fit.error) < 0.02
