"""The schedulers that the page of prediction compares with rules."""

import functools

import jax
import jax.numpy as jnp

import jaxlb
from jaxlb import drift
from jaxlb.scheduling import predictive, predictors
from jaxlb.scheduling.predictors import Fit, Predictor
from jaxlb.types import Scheduler


@functools.cache
def trained(name: str, seed: int) -> tuple[Predictor, Fit]:
    """Train a predictor for all intervals on `stale`."""
    env, params = jaxlb.make("stale")
    config = jaxlb.PredictorConfig(predictor=predictors.predictor(name))
    params = params.replace(measure_interval=jnp.geomspace(0.5, 20.0, config.num_lanes))
    result = jaxlb.train_predictor(env, params, config, jax.random.key(seed))
    return config.predictor, result.scheduler.variables


def scheduler_of(found: tuple[Predictor, Fit], detector: str | None = "threshold") -> Scheduler:
    """Make LWR with that predictor, switched by a detector or always on."""
    watching = None if detector is None else drift.detector(detector)
    return predictive.predicting("trained", *found, watching)


def ours(seeds: int) -> dict[str, Scheduler]:
    """Make `drift-aware` with each seed's predictor, and first with the account that needs no training."""
    each = [
        jaxlb.scheduler("drift-aware"),
        *(scheduler_of(trained("linear", seed)) for seed in range(1, seeds)),
    ]
    return {f"drift-aware, seed {seed}": one for seed, one in enumerate(each)}


def others() -> dict[str, Scheduler]:
    """Return schedulers that show where the gain comes from."""
    original = trained("original", 0)
    return {
        "predictive": jaxlb.scheduler("predictive"),
        "original, drift-aware": scheduler_of(original),
        "original, always on": scheduler_of(original, None),
    }
