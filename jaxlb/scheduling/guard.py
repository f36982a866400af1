"""A guard that keeps any scheduler stable where greedy is: no task may take much longer than it has to.

Greedy takes the least completion time. A scheduler that stays within a multiple of it, plus a constant, is
stable where greedy is, whatever else it does. While one processor has little to do, those with much get
nothing, and empty at full speed; while all have much, none is idle. This needs waits that are known: where
they are old, hidden or wrong, greedy itself has no such guarantee. A policy inside and a stabilising rule
outside is the idea of Shah, Xie and Xu (2020).
"""

from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxlb.functions import partial
from jaxlb.numerics import at_processor, broadcasts
from jaxlb.scheduling.base import after_backlog, cheapest, first_memory, no_departures
from jaxlb.scheduling.belief import FORGETTING
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

FACTOR, MARGIN = 10.0, 100.0
"""No task may take longer than so many times the least possible, plus so many mean services times the mean
square of sizes relative to their squared mean: the more sizes differ, the longer."""


def allowed(completion: Array, spread: Array, unit: Array | float = 1.0) -> Array:
    """Return whether each processor may be chosen, bool `[P, ...]`; the one of least completion always may.

    Args:
      completion: `[P, ...]` expected, of each choice.
      spread: `[...]` mean square of sizes relative to their squared mean.
      unit: `[...]` mean service, in the unit of `completion`.
    """
    return completion <= FACTOR * completion.min(0) + MARGIN * jnp.maximum(spread, 1.0) * unit


class Guarded(struct.PyTreeNode):
    """Memory of a guarded scheduler."""

    inner: Any  # of the scheduler
    count: Array  # int32
    size: Array  # [...] work, mean
    size_square: Array  # [...] mean


def _start(scheduler: Scheduler, env: Static, params: EnvParams, lanes: Lanes) -> Guarded:
    inner = first_memory(scheduler.name, scheduler.start, env, params, lanes)
    zero = jnp.zeros(lanes, jnp.float32)
    return Guarded(inner, jnp.int32(0), zero, zero)


@broadcasts
def _act(
    act: Any, variables: Any, memory: Guarded, observation: Observation, key: Key
) -> tuple[Array, Guarded]:
    o, count = observation, memory.count + 1
    rate = jnp.maximum(1.0 / count.astype(jnp.float32), FORGETTING)
    size = memory.size + rate * (o.size - memory.size)
    square = memory.size_square + rate * (o.size**2 - memory.size_square)
    action, inner = act(variables, memory.inner, o, key)
    completion = after_backlog(o)
    may = allowed(completion, square / size**2, size / o.speed.mean(0))
    safe = cheapest(o, completion, -o.speed)
    last = len(may) - 1
    refuses = action > last  # as a scheduler may, with admission
    action = jnp.where(at_processor(may, jnp.minimum(action, last)) | refuses, action, safe)
    return action, Guarded(inner, count, size, square)


def guarded(scheduler: Scheduler) -> Scheduler:
    """Let a scheduler choose, but send a task that would take much too long where it completes soonest.

    What the scheduler itself remembers of its choices is not told of that.

    Args:
      scheduler: such as one that was trained for other systems than this.
    """
    no_departures("guarded", scheduler)
    start = partial(_start, scheduler.replace(variables=()))
    return Scheduler(f"guarded({scheduler.name})", scheduler.variables, start, partial(_act, scheduler.act))
