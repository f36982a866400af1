"""Drift detectors: pure (init, update) pairs of constant memory, over streams `[...]` side by side.

A detector reads one number of each stream at a time and says where it sees a change; after an alarm it starts
again. It reads residuals that are standardised, or, where it says so, deviations relative to the figure that
is in doubt.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.recipes import cached, picklable
from jaxlb.types import Array, Lanes, Scalar


@picklable
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
    """Every leaf of one state or the other."""
    return jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), yes, no)


def threshold(limit: Scalar = 0.3) -> Detector:
    """A relative deviation above a limit; it remembers nothing."""
    _bounded("limit", limit, above=0)

    def update(state: tuple, x: Array) -> tuple[tuple, Array]:
        return state, jnp.abs(x) > limit

    return Detector("threshold", lambda shape: (), update, relative=True)


class Volatility(struct.PyTreeNode):
    """Exponentially weighted mean and variance."""

    mean: Array
    variance: Array
    count: Array  # int32


def _volatility(shape: Lanes) -> Volatility:
    return Volatility(
        jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
    )


def _watch(state: Volatility, x: Array, rate: Scalar) -> Volatility:
    """Mean and variance of all so far, and once there are 1 / rate of them, exponentially weighted."""
    count = state.count + 1
    rate = jnp.maximum(1.0 / count.astype(jnp.float32), rate)
    deviation = x - state.mean
    return Volatility(
        mean=state.mean + rate * deviation,
        variance=(1.0 - rate) * (state.variance + rate * deviation**2),
        count=count,
    )


def adaptive_threshold(factor: Scalar = 4.0, rate: Scalar = 0.01, settle: int = 30) -> Detector:
    """Numbers further from its running mean than so many of its running standard deviations.

    Args:
      factor: standard deviations.
      rate: at which mean and deviation forget.
      settle: numbers seen before the first alarm.
    """
    _bounded("factor", factor, above=0)
    _bounded("rate", rate, above=0, high=1)
    checks.at_least("settle", settle, 2)

    def update(state: Volatility, x: Array) -> tuple[Volatility, Array]:
        far = jnp.abs(x - state.mean) > factor * jnp.sqrt(state.variance)
        alarm = far & (state.count >= settle)
        return _watch(state, x, rate), alarm

    return Detector("adaptive-threshold", _volatility, update)


def cusum(allowance: Scalar = 0.5, limit: Scalar = 5.0) -> Detector:
    """Two-sided CUSUM of standardised numbers (Page 1954).

    Mean run length 465 without a shift, 10.4 after one of a standard deviation.

    Args:
      allowance: k, half the shift that is to be found, in standard deviations.
      limit: h.
    """
    _bounded("allowance", allowance, low=0)
    _bounded("limit", limit, above=0)

    def init(shape: Lanes) -> tuple[Array, Array]:
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    def update(state: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        above, below = state
        above = jnp.maximum(above + x - allowance, 0.0)
        below = jnp.maximum(below - x - allowance, 0.0)
        alarm = (above > limit) | (below > limit)
        return _where(alarm, init(()), (above, below)), alarm

    return Detector("cusum", init, update)


class _Sums(struct.PyTreeNode):
    """Of the Page-Hinkley test."""

    count: Array  # int32
    mean: Array
    increase: Array
    decrease: Array
    least: Array
    most: Array


def page_hinkley(
    delta: Scalar = 0.005, limit: Scalar = 50.0, forgetting: Scalar = 0.9999, settle: int = 30
) -> Detector:
    """Two-sided Page-Hinkley test with a running mean and forgetting sums, as River has it.

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

    def init(shape: Lanes) -> _Sums:
        nothing = jnp.zeros(shape, jnp.float32)
        return _Sums(
            count=jnp.zeros(shape, jnp.int32),
            mean=nothing,
            increase=nothing,
            decrease=nothing,
            least=jnp.full(shape, jnp.inf, jnp.float32),
            most=jnp.full(shape, -1.0, jnp.float32),
        )

    def update(state: _Sums, x: Array) -> tuple[_Sums, Array]:
        count = state.count + 1
        mean = state.mean + (x - state.mean) / count.astype(jnp.float32)
        increase = forgetting * state.increase + (x - mean) - delta
        decrease = forgetting * state.decrease + (x - mean) + delta
        least, most = jnp.minimum(state.least, increase), jnp.maximum(state.most, decrease)
        changed = (increase - least > limit) | (most - decrease > limit)
        alarm = changed & (count >= settle)
        return _where(alarm, init(()), _Sums(count, mean, increase, decrease, least, most)), alarm

    return Detector("page-hinkley", init, update)


def moving_average(rate: Scalar = 0.1, limit: Scalar = 3.0) -> Detector:
    """A geometric moving average beyond its own standard deviations, the EWMA chart (Roberts 1959).

    Args:
      rate: at which it forgets.
      limit: of the average, in standard deviations that it has in the long run.
    """
    _bounded("rate", rate, above=0, high=1)
    _bounded("limit", limit, above=0)

    def update(average: Array, x: Array) -> tuple[Array, Array]:
        average = average + rate * (x - average)
        alarm = jnp.abs(average) > limit * jnp.sqrt(rate / (2.0 - rate))
        return jnp.where(alarm, 0.0, average), alarm

    return Detector("moving-average", lambda shape: jnp.zeros(shape, jnp.float32), update)


class _Window(struct.PyTreeNode):
    """ADWIN's window, of one stream: R rows of up to M + 1 buckets of 2^row numbers, the oldest first."""

    total: Array  # [R, M + 1]
    variance: Array  # [R, M + 1] sum of squares about the bucket's mean
    count: Array  # [R] int32, buckets in each row
    width: Array  # numbers in the window
    sum: Array
    squares: Array  # about the window's mean
    tick: Array  # int32


def adwin(
    delta: Scalar = 0.002,
    clock: int = 32,
    max_buckets: int = 5,
    min_window: int = 5,
    grace_period: int = 10,
    rows: int = 12,
) -> Detector:
    """Adaptive windowing (Bifet and Gavalda 2007), as River has it, in a window of at most 2^rows M numbers.

    Args:
      delta: probability of a false alarm at a cut.
      clock: numbers between two looks.
      max_buckets: M, of one size.
      min_window: numbers on either side of a cut.
      grace_period: numbers before the first look.
      rows: R; what is older than they hold is forgotten.
    """
    _bounded("delta", delta, above=0, below=1)
    for name, value in (("clock", clock), ("max_buckets", max_buckets), ("min_window", min_window)):
        checks.at_least(name, value, 1)
    checks.at_least("grace_period", grace_period, 0)
    checks.at_least("rows", rows, 2)
    sizes = tuple(float(2**row) for row in range(rows))
    places = max_buckets + 1

    def init(shape: Lanes) -> _Window:
        buckets = jnp.zeros((*shape, rows, places), jnp.float32)
        number, whole = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
        count = jnp.zeros((*shape, rows), jnp.int32)
        return _Window(buckets, buckets, count, number, number, number, whole)

    def without(w: _Window, row: Array) -> _Window:
        """The window less the oldest bucket of its last row."""
        size = jnp.asarray(sizes, jnp.float32)[row]
        total, variance = w.total[row, 0], w.variance[row, 0]
        width, rest = w.width - size, w.sum - total
        apart = total / size - rest / jnp.maximum(width, 1.0)
        return w.replace(
            total=w.total.at[row].set(jnp.roll(w.total[row], -1).at[-1].set(0.0)),
            variance=w.variance.at[row].set(jnp.roll(w.variance[row], -1).at[-1].set(0.0)),
            count=w.count.at[row].add(-1),
            width=width,
            sum=rest,
            squares=w.squares - variance - size * width * apart**2 / (size + width),
        )

    def last(w: _Window) -> Array:
        return rows - 1 - jnp.argmax(w.count[::-1] > 0)

    def inserted(w: _Window, x: Array) -> _Window:
        total, variance, count = w.total, w.variance, w.count
        total, variance = total.at[0, count[0]].set(x), variance.at[0, count[0]].set(0.0)
        count = count.at[0].add(1)
        apart = x - w.sum / jnp.maximum(w.width, 1.0)
        squares = w.squares + w.width * apart**2 / (w.width + 1.0)
        w = w.replace(
            total=total, variance=variance, count=count, width=w.width + 1.0, sum=w.sum + x, squares=squares
        )
        for row in range(rows - 1):
            w = _where(w.count[row] > max_buckets, merged(w, row), w)
        return _where(w.count[-1] > max_buckets, without(w, jnp.int32(rows - 1)), w)

    def merged(w: _Window, row: int) -> _Window:
        """The window with the two oldest buckets of a row made into the youngest of the next."""
        size, (first, second) = sizes[row], (w.total[row, 0], w.total[row, 1])
        variance = w.variance[row, 0] + w.variance[row, 1] + (first - second) ** 2 / (2.0 * size)
        place = row + 1, w.count[row + 1]

        def moved(buckets: Array, new: Array) -> Array:
            rest = jnp.roll(buckets[row], -2).at[-2:].set(0.0)
            return buckets.at[place].set(new).at[row].set(rest)

        return w.replace(
            total=moved(w.total, first + second),
            variance=moved(w.variance, variance),
            count=w.count.at[row].add(-2).at[row + 1].add(1),
        )

    def differs(w: _Window) -> Array:
        """Whether some cut of the window has different means on its two sides."""
        used = jnp.arange(places, dtype=jnp.int32) < w.count[:, None]
        size = jnp.where(used, jnp.asarray(sizes, jnp.float32)[:, None], 0.0)
        old = jnp.cumsum(size[::-1].ravel())
        old_sum = jnp.cumsum(jnp.where(used, w.total, 0.0)[::-1].ravel())
        young, young_sum = w.width - old, w.sum - old_sum
        evidence = jnp.log(2.0 * jnp.log(w.width) / delta)
        weight = 1.0 / (old - min_window + 1.0) + 1.0 / (young - min_window + 1.0)
        bound = jnp.sqrt(2.0 * weight * w.squares / w.width * evidence) + 2.0 / 3.0 * evidence * weight
        apart = jnp.abs(old_sum / old - young_sum / young)
        enough = used[::-1].ravel() & (old >= min_window) & (young >= min_window)
        return (enough & (apart > bound)).any()

    def one(w: _Window, x: Array) -> tuple[_Window, Array]:
        w = inserted(w, x)
        w = w.replace(tick=w.tick + 1)
        due = (w.tick % clock == 0) & (w.width > grace_period)
        before = w.width
        w = jax.lax.while_loop(lambda w: due & differs(w), lambda w: without(w, last(w)), w)
        alarm = w.width < before
        return _where(alarm, init(()), w), alarm

    def update(state: _Window, x: Array) -> tuple[_Window, Array]:
        each = one
        for _ in range(x.ndim):
            each = jax.vmap(each)
        return each(state, x)

    return Detector("adwin", init, update)


DETECTORS = {
    "threshold": threshold,
    "adaptive-threshold": adaptive_threshold,
    "cusum": cusum,
    "page-hinkley": page_hinkley,
    "moving-average": moving_average,
    "adwin": adwin,
}


@cached
def detector(name: str, **options: Any) -> Detector:
    """A detector by its name and options; the same object for the same request.

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
    "adwin": ("delta", 0.99, 1e-12),
}
"""The option that decides how easily a detector alarms, and its range from easily to hardly."""


@functools.partial(jax.jit, static_argnames=("name", "options"))
def _alarm_rate(name: str, options: tuple[tuple[str, Any], ...], stream: Array, sensitivity: Array) -> Array:
    one = DETECTORS[name](**dict(options) | {_SENSITIVITY[name][0]: sensitivity})
    _, alarms = jax.lax.scan(one.update, one.init(stream.shape[1:]), stream)
    return alarms.mean(dtype=jnp.float32)


def calibrated(name: str, stream: Array, rate: float, **options: Any) -> Detector:
    """A detector that alarms at a given rate where nothing has changed.

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
