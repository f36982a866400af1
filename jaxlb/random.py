"""Keys and random words as `jax.random` has them, spelled out so that XLA vectorises them."""

import jax
import jax.numpy as jnp

from jaxlb.types import Array, Key, Lanes


def typed(key: Key) -> Key:
    """Return keys as `jax.random.key` makes them, also if `PRNGKey` made them; leading axes stay.

    Raises:
      ValueError: no key.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype != jnp.uint32:
        raise ValueError(f"key = {key!r}: must be one that jax.random.key or jax.random.PRNGKey makes")
    return jax.random.wrap_key_data(key)


def split(key: Key, count: int) -> tuple[Key, ...]:
    """Split as `jax.random.split` does, but compute only keys that are used, and under `vmap` in one loop."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return tuple(jax.random.split(key, count))
    high, low = jax.random.key_data(key)
    halves = (_threefry(high, low, jnp.uint32(0), jnp.uint32(index)) for index in range(count))
    return tuple(jax.random.wrap_key_data(jnp.stack(pair), impl="threefry2x32") for pair in halves)


def fold_in(key: Key, number: Array | int) -> Key:
    """Return the key of `jax.random.fold_in`, spelled out like `split`."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.fold_in(key, number)
    high, low = jax.random.key_data(key)
    pair = _threefry(high, low, jnp.uint32(0), jnp.asarray(number).astype(jnp.uint32))
    return jax.random.wrap_key_data(jnp.stack(pair), impl="threefry2x32")


def random_words(key: Key, lanes: Lanes) -> tuple[Array, Array]:
    """Draw two independent random words for each lane, `[...]` uint32; the key is consumed.

    They are the words of the lanes' split keys: one threefry block yields both, where `jax.random.bits`
    spends a block on each. A lane's words do not depend on how many lanes there are.
    """
    count = lanes[0] if lanes else 1
    if str(jax.random.key_impl(key)) == "threefry2x32":
        high, low = jax.random.key_data(key)
        lane = jnp.arange(count, dtype=jnp.uint32)
        first, second = _threefry(high, low, jnp.zeros_like(lane), lane)
    else:
        data = jax.random.key_data(jax.random.split(key, count))
        first, second = data[:, 0], data[:, 1]
    return first.reshape(lanes), second.reshape(lanes)


def uniform(word: Array, bits: int) -> Array:
    """Turn the lowest `bits` of a word into a float32 in (0, 1), resolved finely near 0."""
    kept = word & jnp.uint32(2**bits - 1)
    return jnp.minimum((kept.astype(jnp.float32) + 0.5) * 2.0**-bits, 1.0 - 2.0**-24)


def _threefry(high: Array, low: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Apply the block cipher of `jax.random`, threefry-2x32 of 20 rounds (Salmon et al. 2011).

    Spelled out, since on CPU `jax.random` makes a loop of it that XLA neither fuses nor vectorises.
    """
    keys = (high, low, high ^ low ^ jnp.uint32(0x1BD11BDA))
    first, second = first + high, second + low
    for group in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            first = first + second
            turned = (second << jnp.uint32(distance)) | (second >> jnp.uint32(32 - distance))
            second = first ^ turned
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second
