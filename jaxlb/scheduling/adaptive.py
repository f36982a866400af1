"""Which rule suits the system is found out while it runs: exponential weights on counterfactual costs.

Every candidate governs a twin: a system of its own that gets the tasks that arrive, as far as they are seen,
and is measured as the real one is. What a task takes in its twin is what the candidate would have cost, its
later consequences included, which the next task alone does not show.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks, cycle
from jaxlb.functions import partial
from jaxlb.scheduling.base import Start, chosen_acts, first_memories, no_departures, sampled, starts
from jaxlb.scheduling.classical import greedy, lwr
from jaxlb.scheduling.predictive import predictive
from jaxlb.scheduling.units import mean_service
from jaxlb.types import (
    Array,
    EnvParams,
    Key,
    Lanes,
    Observation,
    Scheduler,
    Static,
    System,
    Task,
)


class Twins(struct.PyTreeNode):
    """What each of R candidates would have done: a system each, side by side in an axis before the lanes."""

    system: System
    memories: tuple[Any, ...]  # of the candidates, there
    cost: Array  # [R, ...] sum, that forgets, of log(1 + completion in mean services)


class Memory(struct.PyTreeNode):
    """What `hedge` carries from task to task."""

    env: Static = struct.field(pytree_node=False)  # of the real system, and so of the twins
    params: EnvParams
    unit: Array  # [...] time, the mean service
    twins: Twins
    memories: tuple[Any, ...]  # of the candidates, in the real system


def _start(each: tuple[tuple[str, Start], ...], env: Static, params: EnvParams, lanes: Lanes) -> Memory:
    if env.dispatchers > 1:
        raise ValueError("scheduler 'hedge': must have one dispatcher, since it simulates the whole system")
    if env.loses(params):
        raise ValueError(
            "scheduler 'hedge': must have an environment that loses no tasks, since it compares completion "
            "times; choose one without limit, leaving and admission"
        )
    beside = (len(each), *lanes)
    memories = first_memories(each, env, params, lanes)
    twins = Twins(
        system=cycle.start(env, _beside(params), beside),
        memories=memories,
        cost=jnp.zeros(beside, jnp.float32),
    )
    return Memory(env, params, mean_service(params, lanes), twins, memories)


def _beside(params: EnvParams) -> EnvParams:
    """Return parameters for systems side by side, in an axis before the lanes."""
    p = params
    return p.replace(
        speed=p.speed[:, None],
        nominal_speed=None if p.nominal_speed is None else p.nominal_speed[:, None],
        affinity=None if p.affinity is None else p.affinity[:, :, None],
    )


def _counterfactual(
    candidates: tuple[Scheduler, ...], horizon: float, memory: Memory, task: Task, key: Key
) -> Twins:
    """Return the twins after the task."""
    env, params, twins = memory.env, _beside(memory.params), memory.twins
    task = jax.tree.map(lambda x: jnp.broadcast_to(x, twins.cost.shape), task)
    advance_key, observe_key, *act_keys = jax.random.split(key, 2 + len(candidates))
    found, departures = cycle.advance(env, params, twins.system, task.gap, advance_key)
    seen = cycle.measure(env, params, found, task, task, observe_key)
    actions, after = [], []
    for place, (rule, memory_there) in enumerate(zip(candidates, twins.memories, strict=True)):
        its = jax.tree.map(lambda x, place=place: jnp.moveaxis(x, -1 - memory.unit.ndim, 0)[place], seen)
        action, memory_there = rule.act(rule.variables, memory_there, its, act_keys[place])
        actions.append(action)
        after.append(memory_there)
    number = jnp.zeros_like(task.priority)
    found, outcome = cycle.assign(env, params, found, task, task, number, jnp.stack(actions))
    if departures is None:
        cost = jnp.log1p(outcome.completion / memory.unit)
    else:
        cost = jnp.log1p(departures.outcome.completion / memory.unit)
        cost = jnp.where(departures.known, cost, 0.0).sum(0)
    return Twins(
        system=found,
        memories=tuple(after),
        cost=(1.0 - 1.0 / horizon) * twins.cost + cost,
    )


def _act(
    rate: float,
    horizon: float,
    candidates: tuple[Scheduler, ...],
    memory: Memory,
    observation: Observation,
    key: Key,
) -> tuple[Array, Memory]:
    o = observation
    choice_key, twins_key, *act_keys = jax.random.split(key, 2 + len(candidates))
    weights = jax.nn.softmax(-rate * memory.twins.cost, 0)
    chosen = sampled(weights, choice_key, o.size.shape)
    action, after = chosen_acts(candidates, memory.memories, o, act_keys, chosen)
    task = Task(gap=o.gap, size=o.size, priority=o.priority, deadline=o.deadline)
    twins = _counterfactual(candidates, horizon, memory, task, twins_key)
    return action, memory.replace(twins=twins, memories=after)


def hedge(
    candidates: tuple[Scheduler, ...] | None = None,
    rate: float = 1.0,
    horizon: float = 3000.0,
) -> Scheduler:
    """Follow one of several rules, drawn by weights exp(-rate x what it would have cost so far).

    Exponential weights as of Littlestone and Warmuth (1994), Freund and Schapire (1997), with forgetting. A
    task costs the logarithm of 1 + its completion time: with heavy tails, means take too long to tell apart.
    Its variables are the candidates.

    Args:
      candidates: None: LWR, predictive and greedy.
      rate: of the weights.
      horizon: tasks after which costs are forgotten to 1 / e.
    """
    rules = (lwr(), predictive(), greedy()) if candidates is None else tuple(candidates)
    if not rules:
        raise ValueError("candidates = (): must be at least one")
    for rule in rules:
        if not isinstance(rule, Scheduler):
            raise ValueError(
                f"candidates: {checks.shown(rule)}: must be schedulers, as jaxlb.scheduler makes them"
            )
    no_departures("hedge", *rules)
    checks.leaf("rate", rate, above=0)
    checks.leaf("horizon", horizon, low=1)
    return Scheduler("hedge", rules, partial(_start, starts(rules)), partial(_act, rate, horizon))
