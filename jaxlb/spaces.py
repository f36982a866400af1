"""Spaces in the shape that gymnax gives them, without needing gymnax."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxlb.types import Array, Key


@dataclass(frozen=True)
class Discrete:
    """The whole numbers 0 .. n-1."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: type = jnp.int32

    def sample(self, key: Key) -> Array:
        """One number, uniformly; the key is consumed."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, x: Array) -> Array:
        """Whether `x` is one of them."""
        return jnp.all((x >= 0) & (x < self.n))


@dataclass(frozen=True)
class Box:
    """Arrays of one shape, every entry within [low, high]."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: type = jnp.float32

    def sample(self, key: Key) -> Array:
        """One array: uniform where both bounds are finite, else `low` plus exponentials; key consumed."""
        if self.high == float("inf"):
            return (self.low + jax.random.exponential(key, self.shape)).astype(self.dtype)
        return jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high).astype(self.dtype)

    def contains(self, x: Array) -> Array:
        """Whether every entry of `x` is within the bounds."""
        return jnp.all((x >= self.low) & (x <= self.high))
