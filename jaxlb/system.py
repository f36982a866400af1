"""Exact first-come-first-served dynamics of P processors.

Between two arrivals nothing happens but service, and under FCFS a departure is known when the task is
assigned: so there is no event loop. Every function is deterministic, takes no key, and works on `[P, ...]`
for any trailing lane axes.

Time is kept relative to the current arrival, in float32 pairs (value and rounding error), so it neither
grows nor drifts.
"""

import jax
import jax.numpy as jnp

from jaxlb.numerics import at_processor, compensated_add, divide, processor_index, two_sum
from jaxlb.types import Array, Lanes, SystemState

# An empty place: as if its task had departed long ago. Finite, since sums with infinities lose their sign.
_DEPARTED = 1e30


def start(num_processors: int, queue_capacity: int, lanes: Lanes = ()) -> SystemState:
    """An empty system."""
    return SystemState(
        wait=jnp.zeros((num_processors, *lanes), jnp.float32),
        wait_error=jnp.zeros((num_processors, *lanes), jnp.float32),
        lag=jnp.full((num_processors, queue_capacity, *lanes), _DEPARTED, jnp.float32),
        due=jnp.zeros((num_processors, *lanes), jnp.float32),
        turn=jnp.int32(0),
        slot=jnp.zeros((num_processors, *lanes), jnp.int32),
        overflow=jnp.zeros((num_processors, *lanes), jnp.int32),
    )


def advance(state: SystemState, gap: Array) -> SystemState:
    """Let `gap` `[...]` time pass: every busy processor works off its queue."""
    wait, error = compensated_add(state.wait, state.wait_error, -gap)
    busy = wait > 0
    return state.replace(wait=jnp.where(busy, wait, 0.0), wait_error=jnp.where(busy, error, 0.0))


def queue_length(state: SystemState) -> Array:
    """Tasks waiting or in service at each processor, `[P, ...]` int32; at most the capacity K."""
    # In this order: of the newest task, `lag + due` is exactly 0.
    return (state.lag + state.due[:, None] < state.wait[:, None]).sum(1, dtype=jnp.int32)


def assign(state: SystemState, speed: Array, size: Array, action: Array) -> tuple[SystemState, Array, Array]:
    """Put the task that just arrived at the end of one queue.

    Args:
      state: the system at the arrival.
      speed: `[P, ...]` work per time.
      size: `[...]` work.
      action: `[...]` int32, the processor; a number outside 0..P-1 is clipped to the nearest processor, so
        that no task is ever lost.

    Returns:
      The state with the task in it, its wait and its service time, `[...]`.
    """
    num_processors, capacity = state.lag.shape[:2]
    action = jnp.clip(action, 0, num_processors - 1)
    chosen = processor_index(state.wait) == action
    service, service_error = divide(size, at_processor(jnp.broadcast_to(speed, state.wait.shape), action))
    wait, lost = two_sum(state.wait, jnp.where(chosen, service, 0.0))
    error = state.wait_error + (lost + jnp.where(chosen, service_error, 0.0))
    # All that an idle processor had has departed, the last of it at a lag of just this service: twice as much
    # keeps rounding from bringing it back.
    behind = jnp.where(state.wait > 0, service, 2.0 * service)
    due = state.due + jnp.where(chosen, behind, 0.0)
    length = queue_length(state)
    full = chosen & (length == capacity)
    # `length >= 0` always holds. It makes the update wait for the reader of `lag`, without which XLA copies
    # all of `lag` at every step before it writes to it.
    place = at_processor(jnp.where(length >= 0, state.slot, 0), action)
    after = state.replace(
        wait=wait,
        wait_error=error,
        lag=_put(state.lag, action, place, -at_processor(due, action)),
        due=due,
        slot=jnp.where(chosen, jnp.where(state.slot == capacity - 1, 0, state.slot + 1), state.slot),
        overflow=state.overflow + full.astype(jnp.int32),
    )
    return _settle(after), at_processor(state.wait, action), service


def _put(lag: Array, processor: Array, place: Array, entry: Array) -> Array:
    """Set one entry of each lane: XLA writes it in place, where a `where` would rewrite all the others."""
    axes = tuple(range(processor.ndim))
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(0, 1),
        scatter_dims_to_operand_dims=(0, 1),
        operand_batching_dims=tuple(axis + 2 for axis in axes),
        scatter_indices_batching_dims=axes,
    )
    where = jnp.stack([processor, place], axis=-1)
    return jax.lax.scatter(lag, where, entry, numbers, unique_indices=True, mode="promise_in_bounds")


def _settle(state: SystemState) -> SystemState:
    """Add what is due to the lags of the processor whose turn it is; all have had theirs after P tasks."""
    turn = state.turn
    due = jax.lax.dynamic_index_in_dim(state.due, turn, keepdims=False)
    lag = jax.lax.dynamic_index_in_dim(state.lag, turn, keepdims=False) + due
    return state.replace(
        lag=jax.lax.dynamic_update_index_in_dim(state.lag, lag, turn, 0),
        due=jax.lax.dynamic_update_index_in_dim(state.due, jnp.zeros_like(due), turn, 0),
        turn=jnp.where(turn == state.due.shape[0] - 1, 0, turn + 1),
    )


def holding_cost(state: SystemState, gap: Array) -> Array:
    """The integral, over the coming `gap` without arrivals, of the number of tasks in the system, `[...]`."""
    remaining = jnp.maximum(state.wait[:, None] - (state.lag + state.due[:, None]), 0.0)
    return jnp.minimum(remaining, gap).sum((0, 1))
