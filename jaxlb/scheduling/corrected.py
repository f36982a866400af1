"""Old queue lengths, corrected by what a dispatcher itself has sent and heard of since they were measured."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxlb.functions import partial
from jaxlb.numerics import mean, processor_index, variance
from jaxlb.scheduling.base import first_memory, no_departures
from jaxlb.types import Answer, Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

_HEARD = 16
"""Departures between two decisions of which the time is remembered; others count as before the last poll."""


class Account(struct.PyTreeNode):
    """What a dispatcher keeps account of, besides the memory of its scheduler."""

    inner: Any
    wait_visible: bool = struct.field(pytree_node=False)
    mean_size: Array  # [] work
    others: Array  # [] by what its own changes are multiplied for those of all
    change: Array  # [P] int32, own tasks sent, less those that left, since these were measured
    departed: Array  # [P] int32, since the last decision
    processor: Array  # [16] int32, of the latest of these
    since: Array  # [16] time from the last decision to each
    number: Array  # [] int32, of all of these


def _start(scheduler: Scheduler, env: Static, params: EnvParams, lanes: Lanes) -> Account:
    none = jnp.zeros(env.num_processors, jnp.int32)
    return Account(
        inner=first_memory(scheduler.name, scheduler.start, env, params, lanes),
        wait_visible=env.wait_visible,
        mean_size=params.size.mean(),
        others=jnp.sqrt(jnp.float32(env.dispatchers)),
        change=none,
        departed=none,
        processor=jnp.zeros(_HEARD, jnp.int32),
        since=jnp.zeros(_HEARD, jnp.float32),
        number=jnp.int32(0),
    )


def _departed(variables: Any, memory: Account, answer: Answer) -> Account:
    del variables
    m, place = memory, memory.number % _HEARD
    return m.replace(
        departed=m.departed.at[answer.processor].add(1),
        processor=m.processor.at[place].set(answer.processor),
        since=m.since.at[place].set(answer.since),
        number=m.number + 1,
    )


def _act(act: Any, variables: Any, memory: Account, o: Observation, key: Key) -> tuple[Array, Account]:
    m = memory
    # Measured since the last decision: of what was done before, the figures tell.
    new = (o.age < o.gap) | (o.age == 0)
    known = jnp.arange(_HEARD, dtype=jnp.int32) < jnp.minimum(m.number, _HEARD)
    later = known & (m.since > o.gap - o.age)
    left_later = (later & (processor_index(m.departed)[:, None] == m.processor)).sum(1, dtype=jnp.int32)
    change = jnp.where(new, -left_later, m.change - m.departed)
    all_changes = jnp.round(m.others * change.astype(jnp.float32)).astype(jnp.int32)
    length = jnp.maximum(o.queue_length + all_changes, 0)
    seen = o.replace(queue_length=length)
    if not m.wait_visible:
        load = length.astype(jnp.float32) * m.mean_size
        now = {"age": jnp.zeros_like(o.age), "assigned": jnp.zeros_like(o.assigned)}
        figures = {"load_average": mean(load), "load_variance": variance(load)}
        seen = seen.replace(load=load, wait=load / o.speed, **now, **figures)
    action, inner = act(variables, m.inner, seen, key)
    return action, m.replace(
        inner=inner,
        change=change.at[action].add(1),
        departed=jnp.zeros_like(m.departed),
        number=jnp.int32(0),
    )


def corrected(inner: Scheduler) -> Scheduler:
    """Let another scheduler see queue lengths as they must be, by what this dispatcher sent and heard since.

    They are right where there is one dispatcher. Of several, each knows its own part only, and takes it times
    the root of their number for the whole: others, who see much the same, do partly the same. Where loads
    follow from queue lengths, they do from these, and are then of this moment.

    Args:
      inner: chooses.
    """
    no_departures("corrected", inner)
    start = partial(_start, inner.replace(variables=()))
    act = partial(_act, inner.act)
    return Scheduler(f"corrected({inner.name})", inner.variables, start, act, _departed)
