"""Slots: so many tasks are served at a time, those that stand first, each at full speed or sharing.

Each task begins when the first of the slots is free (Kiefer and Wolfowitz 1955). Processors may have
different numbers of them; then they are asked for together only, never one by one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlb import numerics
from jaxlb.devices import differing
from jaxlb.numerics import running
from jaxlb.stations.capacity import Capacity
from jaxlb.stations.jobs import Jobs, following, present
from jaxlb.types import Array

Slots = int | tuple[int, ...]
"""The number of every processor's slots, or one for each."""


def numbers(slots: Slots, like: Array) -> Array:
    """Return the number of slots, float32, to broadcast against an array of processors, `[P, ...]`."""
    shape = (-1, *(1,) * (like.ndim - 1)) if isinstance(slots, tuple) else ()
    return jnp.asarray(slots, jnp.float32).reshape(shape)


def most(slots: Slots) -> int:
    """Return the number of slots of the processor that has most."""
    return max(slots) if isinstance(slots, tuple) else slots


def in_service(left: Array, slots: Slots) -> Array:
    """Return which tasks are served: the first of those that are there."""
    held = left > 0
    return held & (running(jnp.add, held.astype(jnp.float32)) <= numbers(slots, left))


def waiting(jobs: Jobs, slots: Slots) -> Array:
    """Return which tasks wait for a slot, empty places being in front of all."""
    if isinstance(slots, tuple):
        return present(jobs) & ~in_service(jobs.left, slots)
    return following(present(jobs), -slots)


def into(free: Array, end: Array) -> Array:
    """Return when slots are free, `[slots, ...]` sorted, once the first of them is taken until `end`."""
    after = free[1:]
    above = jnp.concatenate([after, jnp.full_like(free[:1], jnp.inf)])
    below = jnp.concatenate([jnp.full_like(free[:1], -jnp.inf), after])
    return jnp.minimum(above, jnp.maximum(below, end))


def taken(slots: Slots, left: Array) -> tuple[Array, Array]:
    """Serve tasks in the order in which they stand, each from when the first of some slots is free.

    Returns:
      When each ends, `[P, K, ...]`, and when the slots are free after all, `[slots, P, ...]`, sorted; never,
      of those that only others have.
    """

    def one(free: Array, left: Array) -> tuple[Array, Array]:
        end = free[0] + left
        return jnp.where(left > 0, into(free, end), free), end

    tasks = jnp.moveaxis(left, 1, 0)
    number = min(most(slots), len(tasks))  # more are never taken
    free = jnp.zeros((number, *tasks.shape[1:]), jnp.float32)
    if isinstance(slots, tuple):
        place = jnp.arange(number, dtype=jnp.float32).reshape(-1, *(1,) * tasks[0].ndim)
        free = jnp.where(place < numbers(slots, tasks[0]), free, jnp.inf)
    free, ends = jax.lax.scan(one, differing(free), tasks, unroll=min(len(tasks), numerics.BLOCK))
    return jnp.moveaxis(ends, 0, 1), free


def until(slots: Slots, jobs: Jobs) -> Array:
    """Return until when tasks stay of which so many are served at a time, each at full speed."""
    return taken(slots, jobs.left)[0]


def response(slots: Slots, after: Callable[[Jobs, Jobs], Array], jobs: Jobs, new: Jobs) -> Array:
    """Return until when a newcomer would stay."""
    free = taken(slots, jnp.where(after(jobs, new), 0.0, jobs.left))[1]
    return free[0] + new.left[:, 0]


def _work(capacity: Capacity, free: Array, served: Array) -> Array:
    """Return what a processor does until a task is served so long `[P, ...]` that shares with the first ones.

    All of them get the same, so the last ones leave when each slot is free, `[slots, P, ...]`; till then, as
    many as slots, or as there are tasks, share.
    """
    work, begin = jnp.zeros_like(served), jnp.zeros_like(free[0])
    for slot, end in enumerate(free):
        number = jnp.float32(len(free) - slot)
        work += jnp.clip(served - begin, 0.0, end - begin) * (number / capacity(number))
        begin = end
    return work


def _served(capacity: Capacity, free: Array, work: Array) -> Array:
    """Return how long each of the first tasks is served while a processor does `work` `[P, ...]`.

    The other way round than `_work`.
    """
    served, begin = jnp.zeros_like(work), jnp.zeros_like(free[0])
    for slot, end in enumerate(free):
        number = jnp.float32(len(free) - slot)
        share = capacity(number) / number
        more = jnp.clip(work * share, 0.0, end - begin)
        served, work, begin = served + more, work - more / share, end
    return served


def until_shared(slots: int, capacity: Capacity, jobs: Jobs) -> Array:
    """Return until when tasks stay of which the first ones share."""
    ends, free = taken(slots, jobs.left)
    return _work(capacity, free[:, :, None], ends)


def until_left_shared(slots: int, capacity: Capacity, jobs: Jobs, rest: Array) -> Array:
    """Return until when tasks have no more than the rest left, of which the first ones share."""
    ends, free = taken(slots, jobs.left)
    return _work(capacity, free[:, :, None], ends - rest)


def left_shared(slots: int, capacity: Capacity, jobs: Jobs, done: Array) -> Array:
    """Return what tasks of which the first ones share have left."""
    ends, free = taken(slots, jobs.left)
    served = _served(capacity, free[:, :, None], done)
    return jobs.left - jnp.clip(served - (ends - jobs.left), 0.0, jobs.left)


def response_shared(slots: int, capacity: Capacity, jobs: Jobs, new: Jobs) -> Array:
    """Return until when a newcomer would stay, of which the first ones share."""
    free = taken(slots, jobs.left)[1]
    end = free[0] + new.left[:, 0]
    return _work(capacity, into(free, end), end)
