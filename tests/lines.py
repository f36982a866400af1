"""Linear predictors as plain numbers by name."""

import jax.numpy as jnp
import numpy as np

from jaxlb.scheduling import predictors
from jaxlb.scheduling.predictors import Fit


def as_plain(predictor, fit):
    """Slopes by feature, and the level."""
    layer = fit.network["params"]["Dense_0"]
    slopes = np.asarray(fit.deviation * layer["kernel"][:, 0] / fit.feature_deviation)
    level = fit.mean + fit.deviation * layer["bias"][0] - (slopes * np.asarray(fit.feature_mean)).sum()
    return dict(zip(predictor.features, slopes.tolist(), strict=True)), float(level)


def from_plain(slopes, level=0.0, error=0.1):
    """The predictor with them, and its fit."""
    layer = {
        "kernel": jnp.asarray([[slope] for slope in slopes.values()], jnp.float32),
        "bias": jnp.asarray([level], jnp.float32),
    }
    one = jnp.float32(1.0)
    return predictors.linear(slopes), Fit(
        network={"params": {"Dense_0": layer}},
        feature_mean=jnp.zeros(len(slopes), jnp.float32),
        feature_deviation=jnp.ones(len(slopes), jnp.float32),
        mean=jnp.float32(0.0),
        deviation=one,
        error=jnp.float32(error),
        spread=one,
    )
