"""Replay memory: a time-major ring on the device. A row is one step of all lanes.

Rows follow each other in time, so the observation after a step is the next row's, and is not kept twice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.types import Array, Key


class Memory(struct.PyTreeNode):
    """The last T rows."""

    rows: Any  # leaves [T, N, ...]
    count: Array  # int32, rows ever added


def start(row: Any, num_rows: int) -> Memory:
    """Return an empty memory for rows like `row`, leaves `[N, ...]`."""
    rows = jax.tree.map(lambda leaf: jnp.zeros((num_rows, *leaf.shape), leaf.dtype), row)
    return Memory(rows=rows, count=jnp.int32(0))


def add(memory: Memory, row: Any) -> Memory:
    """Add a row in place of the oldest one."""
    place = memory.count % jax.tree.leaves(memory.rows)[0].shape[0]
    rows = jax.tree.map(lambda ring, leaf: ring.at[place].set(leaf), memory.rows, row)
    return Memory(rows=rows, count=memory.count + 1)


def draw(memory: Memory, key: Key, batch_size: int, following: int) -> tuple[Array, Array]:
    """Draw places of steps, all as likely, that have rows after them.

    Args:
      memory: with more than `following` rows.
      key: consumed.
      batch_size: B.
      following: rows that must follow.

    Returns:
      Row `[B]` and lane `[B]`.
    """
    row_key, lane_key = jax.random.split(key)
    num_rows, num_lanes = jax.tree.leaves(memory.rows)[0].shape[:2]
    usable = jnp.maximum(jnp.minimum(memory.count, num_rows) - following, 1)
    back = following + 1 + jax.random.randint(row_key, (batch_size,), 0, usable, jnp.int32)
    lane = jax.random.randint(lane_key, (batch_size,), 0, num_lanes, jnp.int32)
    return (memory.count - back) % num_rows, lane
