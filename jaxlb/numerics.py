"""Small numerical tools: compensated sums, first-smallest choice, selection along the processor axis."""

import jax
import jax.numpy as jnp


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
    """`x` cut to its 12 leading bits: products of two such numbers are exact."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def divide(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The quotient of two positive float32 and what rounding has taken from it, together to about 2^-35.

    One long-division step. It does not matter how the compiler rounds a / b, nor whether it fuses products
    into sums: all products below are exact.
    """
    head, b_high = _leading_bits(a / b), _leading_bits(b)
    tail = ((a - head * b_high) - head * (b - b_high)) / b
    quotient = head + tail
    return quotient, tail - (quotient - head)


def computed(x: jax.Array) -> jax.Array:
    """`x` as it is, but computed before a reduction over it, not within.

    XLA's CPU backend hands sums and minima to a library, whose kernels are fast on an array and several times
    slower on a formula. No formula that ends in this selection goes there; `optimization_barrier` does not
    survive until then.
    """
    return jnp.where(x == x, x, jnp.nan)


def variance(x: jax.Array) -> jax.Array:
    """Variance over the processor axis, of `[P, ...]`."""
    return computed((x - x.mean(0)) ** 2).mean(0)


def processor_index(like: jax.Array) -> jax.Array:
    """The index of each processor, `[P, 1, ...]`, shaped to broadcast against `like` of shape `[P, ...]`."""
    return jnp.arange(like.shape[0], dtype=jnp.int32).reshape((-1,) + (1,) * (like.ndim - 1))


def first_smallest(cost: jax.Array, tiebreak: jax.Array | None = None) -> jax.Array:
    """Index of the smallest cost along the processor axis.

    Ties go to the smallest `tiebreak` where one is given, then to the lowest index. Two plain reductions
    vectorise over lanes where `argmin`, a reduction over pairs, does not.

    Args:
      cost: `[P, ...]`.
      tiebreak: `[P, ...]` or None.

    Returns:
      `[...]` int32.
    """
    smallest = cost.min(0)
    best = cost == smallest
    # A compiler may compute `cost` twice, for the minimum and for the comparison, and fuse a product into a
    # sum only once: then nothing is equal, but something is within rounding.
    best = best | (~best.any(0) & (cost <= smallest + 1e-5 * jnp.abs(smallest)))
    if tiebreak is not None:
        among_best = jnp.where(best, tiebreak, jnp.inf)
        best = best & (among_best == among_best.min(0))
    # Of floats, whose smallest XLA finds faster than that of integers; they hold any number of processors.
    index = processor_index(cost).astype(jnp.float32)
    return jnp.where(best, index, index[-1]).min(0).astype(jnp.int32)


def at_processor(values: jax.Array, action: jax.Array) -> jax.Array:
    """The entry of `values` `[P, ...]` that belongs to processor `action` `[...]`."""
    return jnp.where(processor_index(values) == action, values, jnp.zeros((), values.dtype)).sum(0)
