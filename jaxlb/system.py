"""Exact first-come-first-served dynamics of P processors.

Between two arrivals nothing happens but service, and under FCFS a departure is known when the task is
assigned: so there is no event loop. Every function is deterministic, takes no key, and works on `[P, ...]`
for any trailing lane axes.

Time is kept relative to the current arrival, in float32 pairs (value and rounding error), so it neither
grows nor drifts.
"""

import jax.numpy as jnp

from jaxlb.numerics import at_processor, compensated_add, divide, processor_index
from jaxlb.types import Array, Lanes, SystemState

# An empty place: as if its task had departed long ago. Finite, since sums with infinities lose their sign.
_DEPARTED = 1e30


def start(num_processors: int, queue_capacity: int, lanes: Lanes = ()) -> SystemState:
    """An empty system."""
    return SystemState(
        wait=jnp.zeros((num_processors, *lanes), jnp.float32),
        wait_error=jnp.zeros((num_processors, *lanes), jnp.float32),
        lag=jnp.full((num_processors, queue_capacity, *lanes), _DEPARTED, jnp.float32),
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
    return (state.lag < state.wait[:, None]).sum(1, dtype=jnp.int32)


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
    head, tail = divide(size, at_processor(jnp.broadcast_to(speed, state.wait.shape), action))
    service = head + tail
    wait, error = state.wait, state.wait_error
    for part in (head, tail):
        wait, error = compensated_add(wait, error, jnp.where(chosen, part, 0.0))
    length = queue_length(state)
    full = chosen & (length == capacity)
    # `length >= 0` always holds. It makes the update below wait for the reader of `lag`, without which XLA
    # copies all of `lag` at every step before it writes to it: a fifth of a rollout's time.
    place = jnp.where(chosen & (length >= 0), state.slot, -1)
    later = state.lag + jnp.where(chosen, service, 0.0)[:, None]
    after = state.replace(
        wait=wait,
        wait_error=error,
        lag=jnp.where(place[:, None] == processor_index(state.lag[0]), 0.0, later),
        slot=jnp.where(chosen, (state.slot + 1) % capacity, state.slot),
        overflow=state.overflow + full.astype(jnp.int32),
    )
    return after, at_processor(state.wait, action), service


def holding_cost(state: SystemState, gap: Array) -> Array:
    """The integral, over the coming `gap` without arrivals, of the number of tasks in the system, `[...]`."""
    remaining = jnp.maximum(state.wait[:, None] - state.lag, 0.0)
    return jnp.minimum(remaining, gap).sum((0, 1))
