"""Guardrails: a rule may choose, as long as each processor gets its share of the tasks of each size.

Processors that serve the shortest task first (`srpt`, `psjf`, `sjf`) need an even share of the tasks of every
size, so that none has many short ones while another has few. Then any rule is optimal in heavy traffic where
processors are equal (Grosof, Scully, Harchol-Balter 2019).
"""

from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.numerics import processor_index
from jaxlb.scheduling.base import first_memory, no_departures, relative_load, size_at_each, usable
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

_RANKS = 64
"""Of sizes, half of them below the mean; what is smaller or larger is of the first or the last."""


class Guardrails(struct.PyTreeNode):
    """Memory of a scheduler within guardrails."""

    inner: Any  # of the scheduler
    unit: Array  # [] or [N] work, the mean size
    ratio: Array  # [] or [N] of sizes of one rank and the next
    given: Array  # [R, P, ...] time, what each processor got of a rank more than the one that got least


def _start(scheduler: Scheduler, env: Static, params: EnvParams, lanes: Lanes) -> Guardrails:
    load = jnp.minimum(relative_load(env, params), 0.999)
    return Guardrails(
        inner=first_memory(scheduler.name, scheduler.start, env, params, lanes),
        unit=params.size.mean(),
        ratio=1.0 + 1.0 / (1.0 - jnp.log1p(-load)),
        given=jnp.zeros((_RANKS, env.num_processors, *lanes), jnp.float32),
    )


def _act(
    act: Any, tightness: float, variables: Any, memory: Guardrails, observation: Observation, key: Key
) -> tuple[Array, Guardrails]:
    o = observation
    above = jnp.floor(jnp.log(o.size / memory.unit) / jnp.log(memory.ratio))
    rank = jnp.clip(above, -_RANKS // 2, _RANKS // 2 - 1)
    is_rank = processor_index(memory.given[:, 0]) == (rank + _RANKS // 2).astype(jnp.int32)
    given = jnp.where(is_rank[:, None], memory.given, 0.0).sum(0)
    service = size_at_each(o) / o.speed
    largest = jnp.maximum(memory.unit * memory.ratio ** (rank + 1.0), o.size)
    # Of those that may take the task, the one that got least always can.
    least = usable(o, given, jnp.inf).min(0)
    within = given + service <= least + tightness * largest / o.speed
    may = within if o.up is None else within & o.up
    action, inner = act(variables, memory.inner, o.replace(up=may), key)
    given = given + jnp.where(processor_index(given) == action, service, 0.0)
    after = jnp.where(is_rank[:, None], given - given.min(0), memory.given)
    return action, memory.replace(inner=inner, given=after)


def guardrails(inner: Scheduler, tightness: float = 2.0) -> Scheduler:
    """Let another scheduler choose among the processors that got little work of tasks of about this size.

    The others are shown to it as down.

    Args:
      inner: chooses.
      tightness: how many of the largest tasks of about its size a processor may be ahead, in [1, infinity).
    """
    checks.leaf("tightness", tightness, low=1)
    no_departures("guardrails", inner)
    start = partial(_start, inner.replace(variables=()))
    return Scheduler(f"guardrails({inner.name})", inner.variables, start, partial(_act, inner.act, tightness))
