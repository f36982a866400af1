"""Numbers that change as training goes on."""

from typing import Literal

import jax.numpy as jnp

from jaxlb.types import Array, Scalar

Kind = Literal["constant", "linear", "exponential", "cosine"]


def schedule(kind: Kind, first: Scalar, last: Scalar, progress: Array) -> Array:
    """A number on its way from `first` to `last`; unlike optax's, it may be traced and so vmapped.

    Args:
      kind: of the way; "constant" stays at `first`.
      first: at progress 0.
      last: at progress 1 and after; above 0 if exponential.
      progress: 0 and up.
    """
    progress = jnp.clip(progress, 0.0, 1.0)
    if kind == "constant":
        return jnp.asarray(first, jnp.float32)
    if kind == "exponential":
        return first * (last / jnp.asarray(first)) ** progress
    if kind == "cosine":
        progress = 0.5 - 0.5 * jnp.cos(jnp.pi * progress)
    return first + (last - jnp.asarray(first)) * progress
