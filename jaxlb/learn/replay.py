"""Replay memory: a time-major ring on the device. A row is one step of all lanes.

Rows follow each other in time, so the observation after a step is the next row's, and is not kept twice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.types import Array, Key

CANDIDATES = 8
"""Places drawn evenly for each one that is then picked by priority."""


class Memory(struct.PyTreeNode):
    """The last T rows."""

    rows: Any  # leaves [T, N, ...]
    priority: Array | None  # [T, N], None: every step is as likely
    count: Array  # int32, rows ever added


def start(row: Any, num_rows: int, prioritised: bool = False) -> Memory:
    """An empty memory for rows like `row`, leaves `[N, ...]`."""
    lanes = jax.tree.leaves(row)[0].shape[:1]
    return Memory(
        rows=jax.tree.map(lambda leaf: jnp.zeros((num_rows, *leaf.shape), leaf.dtype), row),
        priority=jnp.ones((num_rows, *lanes), jnp.float32) if prioritised else None,
        count=jnp.int32(0),
    )


def add(memory: Memory, row: Any) -> Memory:
    """The memory with a row in place of the oldest one; new steps get the largest priority there is."""
    num_rows = jax.tree.leaves(memory.rows)[0].shape[0]
    place = memory.count % num_rows
    rows = jax.tree.map(lambda ring, leaf: ring.at[place].set(leaf), memory.rows, row)
    priority = memory.priority
    if priority is not None:
        priority = priority.at[place].set(priority.max())
    return Memory(rows=rows, priority=priority, count=memory.count + 1)


def draw(
    memory: Memory, key: Key, batch_size: int, horizon: int, correction: Array | float = 1.0
) -> tuple[tuple[Array, Array], Array]:
    """Places of steps that have `horizon` rows after them, and the weight of each in the loss.

    With priorities, eight times as many places are drawn evenly and picked among by priority: close to
    sampling all in proportion, without a sum over the whole memory at every step.

    Args:
      memory: with more than `horizon` rows.
      key: consumed.
      batch_size: B.
      horizon: rows that must follow.
      correction: exponent of the importance weights (Schaul et al. 2016, beta); 1 corrects in full.

    Returns:
      (row `[B]`, lane `[B]`), and weights `[B]` of mean about 1.
    """
    row_key, lane_key, pick_key = jax.random.split(key, 3)
    num_rows, num_lanes = jax.tree.leaves(memory.rows)[0].shape[:2]
    usable = jnp.maximum(jnp.minimum(memory.count, num_rows) - horizon, 1)
    drawn = batch_size if memory.priority is None else CANDIDATES * batch_size
    back = horizon + 1 + jax.random.randint(row_key, (drawn,), 0, usable, jnp.int32)
    row, lane = (
        (memory.count - back) % num_rows,
        jax.random.randint(lane_key, (drawn,), 0, num_lanes, jnp.int32),
    )
    if memory.priority is None:
        return (row, lane), jnp.ones(batch_size, jnp.float32)
    priority = memory.priority[row, lane]
    below = jnp.cumsum(priority)
    picked = jnp.searchsorted(below, below[-1] * jax.random.uniform(pick_key, (batch_size,), jnp.float32))
    weight = (priority.mean() / priority[picked]) ** correction
    return (row[picked], lane[picked]), weight


def prioritise(memory: Memory, place: tuple[Array, Array], priority: Array) -> Memory:
    """Give steps a new priority, above 0; without priorities nothing changes."""
    if memory.priority is None:
        return memory
    return memory.replace(priority=memory.priority.at[place].set(priority))
