"""Tasks in the places of processors, empty places in front: let in, moved up, counted."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import numerics
from jaxlb.numerics import running, stored
from jaxlb.phases import Phases
from jaxlb.types import Array

LEAST = 1e-30
"""Work that a task has left which rounding would rob of its last."""


class Jobs(struct.PyTreeNode):
    """Tasks that processors hold, `[P, K, ...]`."""

    left: Array  # work; 0 where the place is empty
    until: Array  # work that the processor does until the task leaves, if none arrives
    size: Array  # work
    arrival: Array  # time, on the station's clock
    deadline: Array  # time allowed from arrival
    priority: Array  # int32
    number: Array  # int32, of the assignment
    phases: Phases | None = None
    first_token: Array | None = None  # time from arrival to it, infinite until it is known


def insert(jobs: Jobs, new: Jobs, before: Array) -> Jobs:
    """Let a newcomer in behind those that stand before it, which move up by a place.

    Args:
      jobs: `[P, K, ...]`.
      new: the newcomer, leaves that broadcast.
      before: bool `[P, K, ...]`, who stands before it, empty places included; nobody where it is not let in.
        Where all places are taken, the first one's task is lost.
    """
    moves = before.astype(jnp.float32)
    role = stored(moves * (1.0 + following(moves)))  # 0: stays, 1: becomes the newcomer's, 2: the next one's
    return jax.tree.map(
        lambda old, own: jnp.where(role == 0.0, old, jnp.where(role == 1.0, own, following(old))), jobs, new
    )


def following(values: Array, places: int = 1) -> Array:
    """Return the values so many places further, 0 after the last; before that is a negative number."""
    padding = [(0, 0, 0)] * values.ndim
    padding[1] = (-places, places, 0)
    return jax.lax.pad(values, jnp.zeros((), values.dtype), padding)


def packed(jobs: Jobs) -> Jobs:
    """Close the places that tasks between others have left: each goes back by the number behind it."""
    empty = (~present(jobs)).astype(jnp.int32)
    by = empty.sum(1, keepdims=True, dtype=jnp.int32) - running(jnp.add, empty)
    step = 1
    while step < jobs.left.shape[1]:
        goes = present(jobs) & (by & step > 0)
        comes = following(goes.astype(jnp.int32), -step) > 0
        moved, by = jax.tree.map(
            lambda leaf, comes=comes, step=step: jnp.where(comes, following(leaf, -step), leaf), (jobs, by)
        )
        jobs = moved.replace(left=jnp.where(goes & ~comes, 0.0, moved.left))
        step *= 2
    return jobs


def present(jobs: Jobs) -> Array:
    """Return which places `[P, K, ...]` hold a task."""
    return jobs.left > 0


def places(jobs: Jobs) -> Array:
    """Return the number of each place, to broadcast against leaves."""
    return jnp.arange(jobs.left.shape[1], dtype=jnp.int32).reshape(-1, *(1,) * (jobs.left.ndim - 2))


def total(values: Array) -> Array:
    """Sum over places, of `[P, K, ...]`."""
    return numerics.total(jnp.moveaxis(values, 1, 0))
