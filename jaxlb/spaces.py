"""Spaces in the shape that gymnax gives them, without needing gymnax."""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks
from jaxlb.types import Array, Key

LARGEST = float(np.finfo(np.float32).max)
"""A bound that holds for every finite float32."""


def discrete(n: int) -> "Discrete":
    """Make a space of the whole numbers 0 .. n-1; gymnax's own in a program that has imported gymnax."""
    return _gymnaxs_or(Discrete)(n)


def box(low: np.ndarray, high: np.ndarray) -> "Box":
    """Make a space of arrays with entries within [low, high]; gymnax's own where gymnax is imported."""
    return _gymnaxs_or(Box)(low, high, low.shape)


def _gymnaxs_or(ours: type) -> Any:
    # Its wrappers and rejax ask for the type. Who has not imported gymnax cannot ask, nor has to wait for it.
    return getattr(sys.modules.get("gymnax.environments.spaces"), ours.__name__, ours)


@dataclass(frozen=True)
class Discrete:
    """The whole numbers 0 .. n-1, n at most 65,536."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: type = jnp.int32

    def __post_init__(self) -> None:
        """Check what `sample` can draw from."""
        checks.leaf("n", self.n, low=1, high=2**16)

    def sample(self, key: Key) -> Array:
        """Draw one number, uniformly to n / 2^32; the key is consumed.

        The upper half of a random word times n: `jax.random.randint` draws three times as much for it.
        """
        word, n = jax.random.bits(key, self.shape), jnp.uint32(self.n)
        upper = (word >> 16) * n + ((word & jnp.uint32(0xFFFF)) * n >> 16)
        return (upper >> 16).astype(self.dtype)

    def contains(self, x: Array) -> Array:
        """Return whether `x` is one of them."""
        return jnp.all((x >= 0) & (x < self.n))


@dataclass(frozen=True, eq=False)
class Box:
    """Arrays of one shape, every entry within [low, high]."""

    low: np.ndarray
    high: np.ndarray
    shape: tuple[int, ...]
    dtype: type = jnp.float32

    def sample(self, key: Key) -> Array:
        """Draw one array, uniformly; the key is consumed."""
        return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)

    def contains(self, x: Array) -> Array:
        """Return whether every entry of `x` is within the bounds."""
        return jnp.all((x >= self.low) & (x <= self.high))
