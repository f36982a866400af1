"""Predictors of backlog: from what was tracked of a processor to the work that waits there.

All work is in mean sizes here, speed in mean speeds, so that a predictor serves any system.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.scheduling import tracking
from jaxlb.scheduling.tracking import FEATURES, Tracking
from jaxlb.types import Array, Key, Observation

ORIGINAL = ("sma", "ewma", "system load average")
"""The features of the original predictor."""


class Predictor(NamedTuple):
    """A predictor, as pure functions.

    Attributes:
      name: what tables call it.
      features: what it reads, among those of `jaxlb.scheduling.tracking`.
      init: (key, x) -> parameters, of standardised features x `[L, P, ...]`.
      apply: (parameters, x) -> `[1, P, ...]` mean, or `[2, P, ...]` mean and logarithm of the variance, of
        the standardised backlog.
    """

    name: str
    features: tuple[str, ...]
    init: Callable[[Key, Array], Any]
    apply: Callable[[Any, Array], Array]


class Fit(struct.PyTreeNode):
    """A predictor's variables: parameters, what features and backlogs are standardised with, its error."""

    network: Any
    feature_mean: Array  # [L]
    feature_deviation: Array  # [L]
    mean: Array  # work, of the backlog
    deviation: Array
    error: Array  # work, root of the mean squared error on examples that were held out
    spread: Array  # by which a stated standard deviation is multiplied, so that intervals cover


class _Regressor(nn.Module):
    """Dense layers, the same for every processor."""

    widths: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = jnp.moveaxis(x, 0, -1)
        for width in self.widths:
            h = nn.relu(nn.Dense(width)(h))
        # From zero: what never differs in the examples gets no weight.
        return jnp.moveaxis(nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(h), -1, 0)


def _predictor(name: str, features: tuple[str, ...], widths: tuple[int, ...], outputs: int) -> Predictor:
    for feature in features:
        checks.known("feature", feature, FEATURES)
    module = _Regressor(widths, outputs)
    return Predictor(name, features, partial(nn.Module.init, module), partial(nn.Module.apply, module))


def linear(features: Sequence[str] = tuple(FEATURES)) -> Predictor:
    """Make a predictor that is linear in all features, or in some of them."""
    return _predictor("linear", tuple(features), (), 1)


def original() -> Predictor:
    """Make a predictor that is linear in the moving averages and the system's load average."""
    return linear(ORIGINAL)


def mlp(widths: Sequence[int] = (32, 32)) -> Predictor:
    """Make a small perceptron on all features."""
    return _predictor("mlp", tuple(FEATURES), tuple(widths), 1)


def gaussian(widths: Sequence[int] = (32, 32)) -> Predictor:
    """Make a predictor of mean and variance: a perceptron fitted by Gaussian likelihood."""
    return _predictor("gaussian", tuple(FEATURES), tuple(widths), 2)


PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "linear": linear,
    "original": original,
    "mlp": mlp,
    "gaussian": gaussian,
}


def _nothing(key: Key, x: Array) -> tuple:
    del key, x
    return ()


def _as_it_is(parameters: tuple, x: Array) -> Array:
    del parameters
    return x


def reckoned() -> tuple[Predictor, Fit]:
    """Return a predictor that takes the account of the backlog that `tracking` keeps, as it is.

    A linear predictor that is trained on all features comes to the same.
    """
    zero, one = jnp.float32(0.0), jnp.float32(1.0)
    fit = Fit(
        network=(),
        feature_mean=jnp.zeros(1, jnp.float32),
        feature_deviation=jnp.ones(1, jnp.float32),
        mean=zero,
        deviation=one,
        error=zero,
        spread=one,
    )
    return Predictor("reckoned", ("reckoned backlog",), _nothing, _as_it_is), fit


def predictor(name: str, **options: Any) -> Predictor:
    """Make a predictor by its name and options.

    Raises:
      ValueError: an unknown name, or a feature there is none of.
    """
    checks.known("predictor", name, PREDICTORS)
    return PREDICTORS[name](**options)


def standardised(fit: Fit, x: Array) -> Array:
    """Standardise features `[L, P, ...]` to mean 0 and variance 1."""

    def along(leaf: Array) -> Array:
        return leaf.reshape(-1, *(1,) * (x.ndim - 1))

    return (x - along(fit.feature_mean)) / along(fit.feature_deviation)


def predict(predictor: Predictor, fit: Fit, x: Array) -> tuple[Array, Array]:
    """Predict backlogs from features `[L, P, ...]`; return them and standard errors, `[P, ...]` each."""
    found = predictor.apply(fit.network, standardised(fit, x))
    backlog = jnp.maximum(fit.mean + fit.deviation * found[0], 0.0)
    if found.shape[0] == 1:
        return backlog, jnp.broadcast_to(fit.error, backlog.shape)
    return backlog, fit.spread * fit.deviation * jnp.exp(0.5 * found[1])


def forecast(
    predictor: Predictor, fit: Fit, memory: Tracking, observation: Observation
) -> tuple[Tracking, Observation, Array, Array]:
    """Update the memory by an observation, and predict from it.

    Returns:
      The memory of loads after it; what was seen, in mean services; the backlogs `[P, ...]` that are
      predicted, in mean sizes; their standard errors.
    """
    tracked, seen = tracking.update(memory, observation)
    x = tracking.features(predictor.features, tracked, seen)
    return tracked, seen, *predict(predictor, fit, x)
