"""Which rule suits the system is found out while it runs: exponential weights on counterfactual costs.

Every candidate governs a twin: a system of its own that gets the tasks that arrive, as far as they are seen,
and is measured as the real one is. What a task takes in its twin is what the candidate would have cost, its
later consequences included, which no look at the next task alone could tell.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks, observe, system
from jaxlb.schedulers.base import chosen_acts, sampled
from jaxlb.schedulers.classical import greedy, lwr
from jaxlb.schedulers.predictive import predictive
from jaxlb.schedulers.units import mean_service
from jaxlb.types import (
    Array,
    EnvParams,
    Key,
    Lanes,
    MonitorState,
    Observation,
    Scheduler,
    SystemState,
    Task,
)


class Twin(struct.PyTreeNode):
    """What one candidate would have done."""

    system: SystemState
    monitor: MonitorState
    memory: Any  # of the candidate, there
    cost: Array  # [...] sum, that forgets, of log(1 + completion in mean services)


class Memory(struct.PyTreeNode):
    """What `hedge` carries from task to task."""

    params: EnvParams
    unit: Array  # [...] time, the mean service
    twins: tuple[Twin, ...]
    memories: tuple[Any, ...]  # of the candidates, in the real system


def hedge(
    candidates: tuple[Scheduler, ...] | None = None,
    rate: float = 1.0,
    horizon: float = 3000.0,
    queue_capacity: int = 16,
    wait_visible: bool = True,
) -> Scheduler:
    """One of several rules, drawn by weights exp(-rate x what it would have cost so far).

    Exponential weights as of Littlestone and Warmuth (1994), Freund and Schapire (1997), with forgetting. A
    task costs the logarithm of 1 + its completion time: with heavy tails, means take too long to tell apart.

    Args:
      candidates: None: LWR, predictive and greedy. The variables are a tuple of theirs; `()`: none has any.
      rate: of the weights.
      horizon: tasks after which costs are forgotten to 1 / e.
      queue_capacity: how long the twins' queues are counted exactly.
      wait_visible: whether the system's waits are measured, and so the twins'.
    """
    rules = (lwr(), predictive(), greedy()) if candidates is None else tuple(candidates)
    if not rules:
        raise ValueError("candidates = (): must be at least one")
    checks.leaf("rate", rate, above=0)
    checks.leaf("horizon", horizon, low=1)
    checks.at_least("queue_capacity", queue_capacity, 1)

    def init(key: Key, observation: Observation) -> tuple:
        keys = jax.random.split(key, len(rules))
        return tuple(rule.init(key, observation) for rule, key in zip(rules, keys, strict=True))

    def start(params: EnvParams, lanes: Lanes) -> Memory:
        num_processors = params.speed.shape[0]
        twins = (
            Twin(
                system=system.start(num_processors, queue_capacity, lanes),
                monitor=observe.start(params, num_processors, lanes),
                memory=rule.start(params, lanes),
                cost=jnp.zeros(lanes, jnp.float32),
            )
            for rule in rules
        )
        memories = tuple(rule.start(params, lanes) for rule in rules)
        return Memory(params, mean_service(params, lanes), tuple(twins), memories)

    def counterfactual(
        rule: Scheduler, variables: Any, twin: Twin, memory: Memory, task: Task, key: Key
    ) -> Twin:
        """The twin after the task."""
        params = memory.params
        advance_key, observe_key, act_key = jax.random.split(key, 3)
        monitor = observe.advance(twin.monitor, twin.system, params, task.gap, wait_visible, advance_key)
        found = system.advance(twin.system, task.gap)
        seen = observe.observe(monitor, found, params, task, task, wait_visible, observe_key)
        action, ours = rule.act(variables, twin.memory, seen, act_key)
        found, wait, service = system.assign(found, params.speed, task.size, action)
        return Twin(
            system=found,
            monitor=observe.record(monitor, action, task.size),
            memory=ours,
            cost=(1.0 - 1.0 / horizon) * twin.cost + jnp.log1p((wait + service) / memory.unit),
        )

    def act(variables: tuple, memory: Memory, observation: Observation, key: Key) -> tuple[Array, Memory]:
        o, each = observation, variables or ((),) * len(rules)
        choice_key, twin_key, *act_keys = jax.random.split(key, 2 + len(rules))
        twin_keys = jax.random.split(twin_key, len(rules))
        weights = jax.nn.softmax(-rate * jnp.stack([twin.cost for twin in memory.twins]), 0)
        chosen = sampled(weights, choice_key, o.size.shape)
        action, memories = chosen_acts(rules, each, memory.memories, o, act_keys, chosen)
        task = Task(gap=o.gap, size=o.size, priority=o.priority, deadline=o.deadline)
        twins = tuple(
            counterfactual(rule, own, twin, memory, task, key)
            for rule, own, twin, key in zip(rules, each, memory.twins, twin_keys, strict=True)
        )
        return action, memory.replace(twins=twins, memories=memories)

    return Scheduler("hedge", init, start, act)
