"""Drift detectors: pure (init, update) pairs of constant memory, over streams `[...]` side by side.

A detector reads one number of each stream at a time and reports where there is a change; after an alarm it
starts again. It reads residuals that are standardised, or, where it is `relative`, deviations relative to the
figure that is in doubt.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.types import Array, Lanes, Scalar


class Detector(NamedTuple):
    """A detector, as pure functions.

    Attributes:
      name: what tables call it.
      init: streams' shape -> state.
      update: (state, x `[...]`) -> (state, alarm `[...]` bool).
      relative: whether x is a deviation relative to the figure in doubt, and not a standardised residual.
    """

    name: str
    init: Callable[[Lanes], Any]
    update: Callable[[Any, Array], tuple[Any, Array]]
    relative: bool = False


def _bounded(name: str, value: Scalar, **bounds: Any) -> None:
    """Raise ValueError if a number that is at hand is out of bounds."""
    if not checks.traced(value):
        checks.leaf(name, value, **bounds)


def _where(condition: Array, yes: Any, no: Any) -> Any:
    """Select every leaf from one state or the other."""
    return jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), yes, no)


def _nothing(shape: Lanes) -> tuple:
    del shape
    return ()


def _threshold(limit: Scalar, state: tuple, x: Array) -> tuple[tuple, Array]:
    return state, jnp.abs(x) > limit


def threshold(limit: Scalar = 0.3) -> Detector:
    """Alarm at a relative deviation above a limit; nothing is remembered."""
    _bounded("limit", limit, above=0)

    return Detector("threshold", _nothing, partial(_threshold, limit), relative=True)


class Volatility(struct.PyTreeNode):
    """Exponentially weighted mean and variance."""

    mean: Array
    variance: Array
    count: Array  # int32


def _volatility(shape: Lanes) -> Volatility:
    return Volatility(
        jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
    )


def _update_volatility(state: Volatility, x: Array, rate: Scalar) -> Volatility:
    """Update mean and variance: over all so far, and after 1 / rate of them exponentially weighted."""
    count = state.count + 1
    rate = jnp.maximum(1.0 / count.astype(jnp.float32), rate)
    deviation = x - state.mean
    return Volatility(
        mean=state.mean + rate * deviation,
        variance=(1.0 - rate) * (state.variance + rate * deviation**2),
        count=count,
    )


def _adaptive_threshold(
    factor: Scalar, rate: Scalar, settle: int, state: Volatility, x: Array
) -> tuple[Volatility, Array]:
    far = jnp.abs(x - state.mean) > factor * jnp.sqrt(state.variance)
    return _update_volatility(state, x, rate), far & (state.count >= settle)


def adaptive_threshold(factor: Scalar = 4.0, rate: Scalar = 0.01, settle: int = 30) -> Detector:
    """Alarm at numbers further from their running mean than so many of their running standard deviations.

    Args:
      factor: standard deviations.
      rate: at which mean and deviation forget.
      settle: numbers seen before the first alarm.
    """
    _bounded("factor", factor, above=0)
    _bounded("rate", rate, above=0, high=1)
    checks.at_least("settle", settle, 2)

    return Detector("adaptive-threshold", _volatility, partial(_adaptive_threshold, factor, rate, settle))


def _no_excess(shape: Lanes) -> tuple[Array, Array]:
    return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def _cusum(
    allowance: Scalar, limit: Scalar, state: tuple[Array, Array], x: Array
) -> tuple[tuple[Array, Array], Array]:
    above, below = state
    above = jnp.maximum(above + x - allowance, 0.0)
    below = jnp.maximum(below - x - allowance, 0.0)
    alarm = (above > limit) | (below > limit)
    return _where(alarm, _no_excess(()), (above, below)), alarm


def cusum(allowance: Scalar = 0.5, limit: Scalar = 5.0) -> Detector:
    """Alarm by a two-sided CUSUM of standardised numbers (Page 1954).

    Mean run length 465 without a shift, 10.4 after one of a standard deviation.

    Args:
      allowance: k, half the shift that is to be found, in standard deviations.
      limit: h.
    """
    _bounded("allowance", allowance, low=0)
    _bounded("limit", limit, above=0)

    return Detector("cusum", _no_excess, partial(_cusum, allowance, limit))


class _Sums(struct.PyTreeNode):
    """Of the Page-Hinkley test."""

    count: Array  # int32
    mean: Array
    increase: Array
    decrease: Array
    least: Array
    most: Array


def _no_sums(shape: Lanes) -> _Sums:
    nothing = jnp.zeros(shape, jnp.float32)
    return _Sums(
        count=jnp.zeros(shape, jnp.int32),
        mean=nothing,
        increase=nothing,
        decrease=nothing,
        least=jnp.full(shape, jnp.inf, jnp.float32),
        most=jnp.full(shape, -1.0, jnp.float32),
    )


def _page_hinkley(
    delta: Scalar, limit: Scalar, forgetting: Scalar, settle: int, state: _Sums, x: Array
) -> tuple[_Sums, Array]:
    count = state.count + 1
    mean = state.mean + (x - state.mean) / count.astype(jnp.float32)
    increase = forgetting * state.increase + (x - mean) - delta
    decrease = forgetting * state.decrease + (x - mean) + delta
    least, most = jnp.minimum(state.least, increase), jnp.maximum(state.most, decrease)
    changed = (increase - least > limit) | (most - decrease > limit)
    alarm = changed & (count >= settle)
    return _where(alarm, _no_sums(()), _Sums(count, mean, increase, decrease, least, most)), alarm


def page_hinkley(
    delta: Scalar = 0.005, limit: Scalar = 50.0, forgetting: Scalar = 0.9999, settle: int = 30
) -> Detector:
    """Alarm by a two-sided Page-Hinkley test with a running mean and forgetting sums, as River has it.

    Args:
      delta: change that is let pass.
      limit: lambda.
      forgetting: factor of the sums at every step.
      settle: numbers seen before the first alarm.
    """
    _bounded("delta", delta, low=0)
    _bounded("limit", limit, above=0)
    _bounded("forgetting", forgetting, above=0, high=1)
    checks.at_least("settle", settle, 1)
    return Detector("page-hinkley", _no_sums, partial(_page_hinkley, delta, limit, forgetting, settle))


def _no_average(shape: Lanes) -> Array:
    return jnp.zeros(shape, jnp.float32)


def _moving_average(rate: Scalar, limit: Scalar, average: Array, x: Array) -> tuple[Array, Array]:
    average = average + rate * (x - average)
    alarm = jnp.abs(average) > limit * jnp.sqrt(rate / (2.0 - rate))
    return jnp.where(alarm, 0.0, average), alarm


def moving_average(rate: Scalar = 0.1, limit: Scalar = 3.0) -> Detector:
    """Alarm at a geometric moving average beyond its own standard deviations: EWMA chart (Roberts 1959).

    Args:
      rate: at which it forgets.
      limit: of the average, in standard deviations that it has in the long run.
    """
    _bounded("rate", rate, above=0, high=1)
    _bounded("limit", limit, above=0)

    return Detector("moving-average", _no_average, partial(_moving_average, rate, limit))


DETECTORS = {
    "threshold": threshold,
    "adaptive-threshold": adaptive_threshold,
    "cusum": cusum,
    "page-hinkley": page_hinkley,
    "moving-average": moving_average,
}


def detector(name: str, **options: Any) -> Detector:
    """Make a detector by its name and options.

    Raises:
      ValueError: an unknown name, or an option out of bounds.
    """
    checks.known("detector", name, DETECTORS)
    return DETECTORS[name](**options)


_SENSITIVITY = {
    "threshold": ("limit", 1e-3, 1e3),
    "adaptive-threshold": ("factor", 1e-1, 1e2),
    "cusum": ("limit", 1e-2, 1e3),
    "page-hinkley": ("limit", 1e-2, 1e4),
    "moving-average": ("limit", 1e-1, 1e2),
}
"""The option that decides how easily a detector alarms, and its range from easily to hardly."""


@functools.partial(jax.jit, static_argnames=("name", "options"))
def _alarm_rate(name: str, options: tuple[tuple[str, Any], ...], stream: Array, sensitivity: Array) -> Array:
    one = DETECTORS[name](**dict(options) | {_SENSITIVITY[name][0]: sensitivity})
    _, alarms = jax.lax.scan(one.update, one.init(stream.shape[1:]), stream)
    return alarms.mean(dtype=jnp.float32)


def calibrated(name: str, stream: Array, rate: float, **options: Any) -> Detector:
    """Make a detector that alarms at a given rate where nothing has changed.

    Args:
      name: of the detector.
      stream: `[T, ...]` numbers of streams without a change.
      rate: alarms per number, in (0, 1).
      options: of the detector, but for its limit.

    Raises:
      ValueError: a rate or option out of bounds, or a rate that the detector cannot have there.
    """
    checks.known("detector", name, DETECTORS)
    checks.leaf("rate", rate, above=0, below=1)
    option, easily, hardly = _SENSITIVITY[name]

    def found(sensitivity: float) -> float:
        return float(_alarm_rate(name, tuple(sorted(options.items())), stream, jnp.float32(sensitivity)))

    most, least = found(easily), found(hardly)
    if not least <= rate <= most:
        raise ValueError(f"rate = {rate:g}: {name} alarms at {least:.3g} to {most:.3g} of these numbers")
    for _ in range(30):
        middle = (easily * hardly) ** 0.5
        if found(middle) > rate:
            easily = middle
        else:
            hardly = middle
    return detector(name, **options | {option: hardly})
