"""Exact first-come-first-served dynamics of P processors.

Between two arrivals nothing happens but service, and under FCFS a departure is known when the task is
assigned: so there is no event loop. Every function is deterministic, takes no key, and works on `[P, ...]`
for any trailing lane axes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.numerics import (
    SHORT,
    at_processor,
    compensated_add,
    divide,
    processor_index,
    put_at,
    select,
    stored,
    two_sum,
)
from jaxlb.stations.base import View, response
from jaxlb.types import Array, Lanes, Task

# Of an empty place in the ring. Finite, since sums with infinities lose their sign.
_LONG_AGO = -1e30


class SystemState(struct.PyTreeNode):
    """P first-come-first-served queues at one instant, `clock`.

    Times of the clock count from an origin that moves on every few tasks, so they stay small. A task changes
    the clock, what follows from it, and the entries of its own processor. A time is a pair, its value and
    what rounding has taken from it, and so has twice as many bits.
    """

    clock: Array  # [...] time
    clock_error: Array  # [...]
    free: Array  # [P, ...] time at which a processor has done, or had done, all that it was given
    free_error: Array  # [P, ...]
    departure: Array  # [P, K, ...] times at which the last K tasks of each queue depart, in a ring
    slot: Array  # [P, ...] int32, the place in `departure` that the next task takes
    overflow: Array  # [P, ...] int32, tasks that found all K places taken: the length then reads too short
    age: Array  # [] int32, tasks since the origin moved; the same for all lanes
    wait: Array  # [P, ...] time from the clock until a task arriving now would start
    queue_length: Array  # [P, ...] int32, tasks waiting or in service; at most the capacity K


def start(num_processors: int, queue_capacity: int, lanes: Lanes = ()) -> SystemState:
    """Return an empty system."""
    return SystemState(
        clock=jnp.zeros(lanes, jnp.float32),
        clock_error=jnp.zeros(lanes, jnp.float32),
        free=jnp.zeros((num_processors, *lanes), jnp.float32),
        free_error=jnp.zeros((num_processors, *lanes), jnp.float32),
        departure=jnp.full((num_processors, queue_capacity, *lanes), _LONG_AGO, jnp.float32),
        slot=jnp.zeros((num_processors, *lanes), jnp.int32),
        overflow=jnp.zeros((num_processors, *lanes), jnp.int32),
        age=jnp.int32(0),
        wait=jnp.zeros((num_processors, *lanes), jnp.float32),
        queue_length=jnp.zeros((num_processors, *lanes), jnp.int32),
    )


def advance(state: SystemState, gap: Array) -> SystemState:
    """Let `gap` `[...]` time pass."""
    clock, error = compensated_add(state.clock, state.clock_error, gap)
    state = state.replace(clock=clock, clock_error=error)
    wait = jnp.maximum(_until(state, state.free, state.free_error), 0.0)
    return state.replace(wait=wait, queue_length=_queue_length(state))


def _until(state: SystemState, time: Array, error: Array) -> Array:
    """Return the time from the clock to a moment, rounded once; negative if that has passed."""
    difference, lost = two_sum(time, -state.clock)
    return difference + (lost + (error - state.clock_error))


def _queue_length(state: SystemState) -> Array:
    state = jax.lax.stop_gradient(state)  # whole numbers have no slope
    now = state.clock - (state.free_error - state.clock_error)
    # Rounded, `now` may be the departure of a task that is not quite over.
    now = jnp.where(_until(state, now, state.free_error) > 0, jnp.nextafter(now, -jnp.inf), now)
    capacity = state.departure.shape[1]
    if capacity <= SHORT:
        return (state.departure > now[:, None]).sum(1, dtype=jnp.int32)

    # Sorted as it is, a long ring is searched: the oldest have departed, as far as a task that has not.
    gone = jnp.zeros_like(state.slot)
    for bit in reversed(range(capacity.bit_length())):
        more = gone + (1 << bit)
        gone = jnp.where((more <= capacity) & (_remembered(state, more - 1) <= now), more, gone)
    return capacity - gone


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
    num_processors, capacity = state.departure.shape[:2]
    action = jnp.clip(action, 0, num_processors - 1)
    service, service_error = divide(size, at_processor(speed, action))
    free, free_error = at_processor(state.free, action), at_processor(state.free_error, action)
    until_free = _until(state, free, free_error)
    wait, busy = stored(jnp.maximum(until_free, 0.0)), until_free > 0
    begin, begin_error = jnp.where(busy, free, state.clock), jnp.where(busy, free_error, state.clock_error)
    departure, departure_error = compensated_add(begin, begin_error, service)
    departure, departure_error = stored(departure), stored(departure_error + service_error)
    place, chosen = stored(at_processor(state.slot, action)), processor_index(state.wait) == action
    full = stored((at_processor(state.queue_length, action) == capacity).astype(jnp.int32))
    overflow = at_processor(state.overflow, action) + full
    after = state.replace(
        free=put_at(state.free, departure, action),
        free_error=put_at(state.free_error, departure_error, action),
        departure=put_at(state.departure, departure, action, place),
        slot=put_at(state.slot, jnp.where(place == capacity - 1, 0, place + 1), action),
        overflow=put_at(state.overflow, overflow, action),
        age=state.age + 1,
        wait=jnp.where(chosen, wait + service, state.wait),
        queue_length=jnp.where(chosen, jnp.minimum(state.queue_length + 1, capacity), state.queue_length),
    )
    return _with_new_origin(after), wait, service


def _from_now(state: SystemState) -> SystemState:
    """Count time from now."""
    free, lost = two_sum(state.free, -state.clock)
    # Differences instead of zeros: under `shard_map` what is different on each device has to stay so.
    return state.replace(
        clock=state.clock - state.clock,
        clock_error=state.clock_error - state.clock_error,
        free=free,
        free_error=lost + (state.free_error - state.clock_error),
        departure=state.departure - state.clock,
        age=state.age - state.age,
    )


def _is_due(state: SystemState) -> Array:
    # In long rings, less often: times then are as coarse as the waits of the many tasks that ask for them.
    return state.age >= max(8, state.free.shape[0], state.departure.shape[1] // 8)


@jax.custom_jvp
def _with_new_origin(state: SystemState) -> SystemState:
    """Count time from now, once in so many tasks that rewriting all times for it costs next to nothing."""
    # A loop of one turn or none: XLA updates it in place, where a branch would copy what it returns.
    return jax.lax.fori_loop(0, _is_due(state).astype(jnp.int32), lambda _, state: _from_now(state), state)


@_with_new_origin.defjvp
def _with_new_origin_jvp(primals: tuple, tangents: tuple) -> tuple[SystemState, SystemState]:
    """Move the origin by selection, since loops have no reverse mode."""
    (state,) = primals
    moved = jax.jvp(_from_now, primals, tangents)
    return jax.tree.map(lambda new, old: select(_is_due(state), new, old), moved, (state, *tangents))


def _holding_cost_of_all(state: SystemState, gap: Array) -> Array:
    remaining = _until(state, state.departure, state.free_error[:, None])
    return jnp.clip(remaining, 0.0, gap).sum((0, 1))


@jax.custom_jvp
def holding_cost(state: SystemState, gap: Array) -> Array:
    """Integrate the number of tasks in the system, `[...]`, over the coming `gap` without arrivals."""
    capacity = state.departure.shape[1]
    if capacity <= SHORT:
        return _holding_cost_of_all(state, gap)

    # Of a long ring only what departs in the gap, one task of every queue after the other.
    def earlier(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, cost, _ = carry
        departure = _remembered(state, capacity - state.queue_length + count)
        left = gap - jnp.maximum(_until(state, departure, state.free_error), 0.0)
        departs = (count < state.queue_length) & (left > 0)
        return count + 1, cost - jnp.where(departs, left, 0.0), departs

    all_stay = state.queue_length.astype(jnp.float32) * gap
    carry = jnp.zeros_like(state.slot), all_stay, jnp.ones_like(all_stay, bool)
    return jax.lax.while_loop(lambda carry: carry[2].any(), earlier, carry)[1].sum(0)


@holding_cost.defjvp
def _holding_cost_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Differentiate a sum over all that is remembered, since loops have no reverse mode."""
    return jax.jvp(_holding_cost_of_all, primals, tangents)


def _remembered(state: SystemState, place: Array) -> Array:
    """Return when the task at a place departs, `[P, ...]`; the oldest that is remembered is at place 0."""
    where = (state.slot + place) % state.departure.shape[1]
    return jnp.take_along_axis(state.departure, where[:, None], 1, mode="clip")[:, 0]


@dataclass(frozen=True)
class FCFS:
    """First come, first served, one task at a time, without interruption.

    Attributes:
      queue_capacity: K, how long a queue is counted exactly; tasks beyond it are served all the same, and
        counted as overflow.
    """

    queue_capacity: int = 16

    settled = True
    in_turns = False
    delays = False
    most = 1.0
    limit = None
    leaving = None

    def __post_init__(self) -> None:
        """Check the capacity."""
        checks.at_least("queue_capacity", self.queue_capacity, 1)

    def init(self, num_processors: int, lanes: Lanes = ()) -> SystemState:
        """Return empty processors."""
        return start(num_processors, self.queue_capacity, lanes)

    def empty(self, state: SystemState) -> SystemState:
        """Return the same processors, empty; all lanes go on to move their origin at the same task."""
        num_processors, *lanes = state.free.shape
        return self.init(num_processors, tuple(lanes)).replace(age=state.age)

    def advance(self, state: SystemState, speed: Array, gap: Array) -> tuple[SystemState, None]:
        """Let `gap` `[...]` time pass."""
        del speed
        return advance(state, gap), None

    def arranged(self, state: SystemState) -> SystemState:
        """Return the same processors."""
        return state

    def assign(
        self, state: SystemState, speed: Array, task: Task, number: Array, action: Array
    ) -> tuple[SystemState, Array, Array]:
        """Put the task that just arrived at the end of one queue; return state, wait, service."""
        del number
        return assign(state, speed, task.size, action)

    def response(self, state: SystemState, speed: Array, task: Task) -> Array:
        """Return the completion time `[P, ...]` that each processor would bring."""
        return response(state.wait, task.size, speed)

    def remaining(self, state: SystemState, speed: Array) -> None:
        """Return None: what becomes of a task is known when it is assigned."""
        del state, speed

    def holding_cost(self, state: SystemState, speed: Array, gap: Array) -> Array:
        """Integrate the number of tasks in the system, `[...]`, over the coming `gap` without arrivals."""
        del speed
        return holding_cost(state, gap)

    def view(self, state: SystemState, speed: Array) -> View:
        """Return what may be measured."""
        del speed
        return View(queue_length=state.queue_length, wait=state.wait, overflow=state.overflow)
