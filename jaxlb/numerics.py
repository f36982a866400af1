"""Small numerical tools: compensated sums, first-smallest choice, selection along the processor axis."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable[..., Any])

_FEW = 8
"""Up to this many processors, reading or rewriting all entries is faster than picking one."""
SHORT = 64
"""Up to this many places of a queue's memory, the same holds."""
BLOCK = 16
"""Of so many places, sums up to each one are written out."""


def broadcasts(function: Function) -> Function:
    """Let arrays `[P, ...]` meet `[...]` within a function, whatever `jax_numpy_rank_promotion` says."""

    @functools.wraps(function)
    def allowed(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return cast(Function, allowed)


def select(which: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Select one leaf of a pytree, or of its tangents; those of whole numbers are nothing."""
    return new if new.dtype == jax.dtypes.float0 else jnp.where(which, new, old)


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add two floats and keep what rounding lost: `a + b == total + error` exactly (Knuth 1969)."""
    total = a + b
    rounded_b = total - a
    return total, (a - (total - rounded_b)) + (b - rounded_b)


def compensated_add(total: jax.Array, error: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add `x` to the pair (total, error), whose sum carries about twice the bits of one float."""
    total, lost = two_sum(total, x)
    lost = lost + error
    high = total + lost
    return high, lost - (high - total)


def kahan_add(total: jax.Array, error: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add `x` to a long sum: off by two roundings of the sum of all |x| at most, however many (Kahan 1965).

    Half the work of `compensated_add`, which is exact too where `x` is larger than the total and cancels it.
    """
    x = x + error
    after = total + x
    return after, x - (after - total)


def _leading_bits(x: jax.Array) -> jax.Array:
    """Cut `x` to its 12 leading bits: products of two such numbers are exact."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def divide(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divide two positive float32; return quotient and rounding error, together exact to about 2^-35.

    One long-division step. It does not matter how the compiler rounds a / b, nor whether it fuses products
    into sums: all products below are exact.
    """
    head, b_high = _leading_bits(a / b), _leading_bits(b)
    tail = ((a - head * b_high) - head * (b - b_high)) / b
    quotient = head + tail
    return quotient, tail - (quotient - head)


def stored(x: jax.Array) -> jax.Array:
    """Return `x` as it is, but computed once, and not anew by everything that uses it.

    XLA repeats a formula in each of its consumers, and there for each processor, but not one that ends in a
    division: so this divides by 1. Integers must be below 2^24.
    """
    value = x.astype(jnp.float32)
    return (value / jnp.where(value == value, 1.0, 2.0)).astype(x.dtype)


def _over_processors(combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Reduce over processors, few of them one by one, which XLA fuses with what comes before and after.

    Of many, so many slices are combined first, and then what they have become.
    """
    if len(x) <= _FEW:
        return functools.reduce(combine, [x[processor] for processor in range(len(x))])
    size, rest = divmod(len(x), _FEW)
    slices = [x[part * size : (part + 1) * size] for part in range(_FEW)]
    result = _over_processors(combine, stored(functools.reduce(combine, slices)))
    return combine(result, _over_processors(combine, x[-rest:])) if rest else result


def total(x: jax.Array) -> jax.Array:
    """Sum over the processor axis, of `[P, ...]`."""
    return _over_processors(jnp.add, x)


def least(x: jax.Array) -> jax.Array:
    """Take the minimum over the processor axis, of `[P, ...]`."""
    return _over_processors(jnp.minimum, x)


def running(combine: Callable[[jax.Array, jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """Combine the values `[P, K, ...]` up to each place of K; 0 is to change nothing."""
    number, size, *lanes = values.shape
    if size <= BLOCK:
        # Selected and not put together from parts, which the compiler would go through one by one.
        place = jnp.arange(size, dtype=jnp.int32).reshape(-1, *(1,) * len(lanes))
        nothing = jnp.zeros((), values.dtype)
        parts = [jnp.where(place >= one, values[:, one : one + 1], nothing) for one in range(size)]
        return functools.reduce(combine, parts)
    blocks = -(-size // BLOCK)
    values = jnp.pad(values, [(0, 0), (0, blocks * BLOCK - size)] + [(0, 0)] * len(lanes))
    within = running(combine, values.reshape(number * blocks, BLOCK, *lanes))
    within = stored(within).reshape(number, blocks, BLOCK, *lanes)
    before = jnp.pad(running(combine, within[:, :, -1])[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * len(lanes))
    return combine(within, before[:, :, None]).reshape(number, -1, *lanes)[:, :size]


def mean(x: jax.Array) -> jax.Array:
    """Take the mean over the processor axis, of `[P, ...]`."""
    return total(x) * (1.0 / len(x))


def variance(x: jax.Array) -> jax.Array:
    """Take the variance over the processor axis, of `[P, ...]`."""
    return mean((x - mean(x)) ** 2)


def variance_grown(x: jax.Array, entry: jax.Array, growth: jax.Array) -> jax.Array:
    """Return `variance(x)` once one of its entries has grown."""
    share = 1.0 / x.shape[0]
    more = growth * (growth * (1.0 - share) + 2.0 * (entry - mean(x))) * share
    return jnp.maximum(variance(x) + more, 0.0)


def of_usable(
    up: jax.Array | None, factor: jax.Array | None, values: jax.Array, otherwise: float
) -> jax.Array:
    """Return values `[P, ...]`, but `otherwise` for processors that are down or may not take the task.

    Where all that may take it are down, as if they were not.

    Args:
      up: bool `[P, ...]`, who is not down; None: all.
      factor: `[P, ...]` of speeds for the task, 0 of those that may not take it; None: all may.
      values: of each processor.
      otherwise: of others.
    """
    if factor is None:
        return values if up is None else jnp.where(up | ~up.any(0), values, otherwise)
    takes = factor > 0
    up = takes if up is None else up & takes
    return jnp.where(takes & (up | ~up.any(0)), values, otherwise)


def mixed_variance(
    rate: jax.Array, variance: jax.Array, own: jax.Array, old: jax.Array, new: jax.Array
) -> jax.Array:
    """Return the variance of a mixture of old numbers and a share `rate` of new ones: within, and between.

    Nothing is subtracted, so that what never varies has a variance of next to nothing, however large it is.

    Args:
      rate: share of the new ones.
      variance: of the old ones.
      own: of the new ones.
      old: mean of the old ones.
      new: mean of the new ones.
    """
    return (1.0 - rate) * (variance + rate * (new - old) ** 2) + rate * own


def deviation(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Return what to divide by so that a variance becomes 1; infinite where only rounding made it vary.

    Rounding is judged by the scale of the numbers, which is their mean, or 1 where that is smaller.
    """
    found = jnp.sqrt(jnp.maximum(variance, 0.0))
    return jnp.where(found > 1e-3 * jnp.maximum(1.0, jnp.abs(mean)), found, jnp.inf)


def processor_index(like: jax.Array) -> jax.Array:
    """Return each processor's index, `[P, 1, ...]`, to broadcast against `like` of shape `[P, ...]`."""
    return jnp.arange(like.shape[0], dtype=jnp.int32).reshape((-1,) + (1,) * (like.ndim - 1))


def first_smallest(cost: jax.Array, tiebreak: jax.Array | None = None) -> jax.Array:
    """Return the index of the smallest cost along the processor axis.

    Ties go to the smallest `tiebreak` where one is given, then to the lowest index. Plain reductions
    vectorise over lanes where `argmin`, a reduction over pairs, does not.

    Args:
      cost: `[P, ...]`.
      tiebreak: `[P, ...]` or None.

    Returns:
      `[...]` int32.
    """
    if len(cost) <= _FEW:
        return _first_smallest_of_few(cost, jnp.zeros_like(cost) if tiebreak is None else tiebreak)
    smallest = stored(least(cost))
    best = cost == smallest
    # A compiler may compute `cost` twice, for the minimum and for the comparison, and fuse a product into a
    # sum only once: then nothing is equal, but something is within rounding.
    best = best | (~best.any(0) & (cost <= smallest + 1e-5 * jnp.abs(smallest)))
    if tiebreak is not None:
        among_best = jnp.where(best, tiebreak, jnp.inf)
        best = best & (among_best == least(among_best))
    # Of floats, whose smallest XLA finds faster than that of integers; they hold any number of processors.
    index = processor_index(cost).astype(jnp.float32)
    return least(jnp.where(best, index, index[-1])).astype(jnp.int32)


def _first_smallest_of_few(cost: jax.Array, tiebreak: jax.Array) -> jax.Array:
    index, smallest, order = jnp.zeros(cost.shape[1:], jnp.int32), cost[0], tiebreak[0]
    for processor in range(1, len(cost)):
        better = (cost[processor] < smallest) | (
            (cost[processor] == smallest) & (tiebreak[processor] < order)
        )
        index = jnp.where(better, processor, index)
        smallest = jnp.where(better, cost[processor], smallest)
        order = jnp.where(better, tiebreak[processor], order)
    return index


def at_processor(values: jax.Array, action: jax.Array) -> jax.Array:
    """Return the entry of `values` `[P, ...]` that belongs to processor `action` `[...]`.

    Trailing axes of `values` that are 1 are the same for all lanes.
    """
    if len(values) <= _FEW:
        entry = jnp.broadcast_to(values[0], action.shape)
        for processor in range(1, len(values)):
            entry = jnp.where(action == processor, values[processor], entry)
        return entry
    if values.size == len(values):
        values = values.reshape(-1)
    elif values.shape[1:] != action.shape:
        values = jnp.broadcast_to(values, (len(values), *action.shape))
    axes = tuple(range(values.ndim - 1))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(0,),
        start_index_map=(0,),
        operand_batching_dims=tuple(axis + 1 for axis in axes),
        start_indices_batching_dims=axes,
    )
    sizes = (1,) * values.ndim
    return jax.lax.gather(values, action[..., None], numbers, sizes, mode="promise_in_bounds")


def put_at(values: jax.Array, new: jax.Array, *index: jax.Array) -> jax.Array:
    """Return `values` `[P, ...]` with the entry of processor `index` `[...]` set to `new` `[...]`.

    With a second index, an entry of `[P, K, ...]`.
    """
    # Rewriting all of few processors keeps a step free of scatters, which XLA on CPU cannot have in a loop
    # that is one piece of code. In one lane, to be vmapped with lanes first, K entries are too many for that.
    if len(values) <= _FEW and (len(index) == 1 or (new.ndim and values.shape[1] <= SHORT)):
        here = processor_index(values) == index[0]
        if len(index) == 2:
            place = jnp.arange(values.shape[1], dtype=jnp.int32).reshape(-1, *(1,) * new.ndim)
            here = here & (place == index[1])
        return jnp.where(here, new, values)
    indexed, axes = tuple(range(len(index))), tuple(range(new.ndim))
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=indexed,
        scatter_dims_to_operand_dims=indexed,
        operand_batching_dims=tuple(axis + len(index) for axis in axes),
        scatter_indices_batching_dims=axes,
    )
    where = jnp.stack(index, axis=-1)
    return jax.lax.scatter(values, where, new, numbers, unique_indices=True, mode="promise_in_bounds")
