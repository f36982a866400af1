"""Queue lengths that are exact however long the queues: counted further wherever they matter."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend.core import Literal

from jaxlb import observe
from jaxlb.env import Env
from jaxlb.numerics import broadcasts
from jaxlb.params import with_lane_axis
from jaxlb.types import Array, EnvParams, EnvState, Scheduler

_MOST_BYTES = 2**30
"""What the memory of all queues may take."""
_FURTHER, _FURTHER_IN_TABLES = 32, 4
"""How many times as far to count; in a table, each place costs time."""

Result = TypeVar("Result")


def with_room(env: Env, queue_capacity: int) -> Env:
    """Return the environment with queues counted up to `queue_capacity`."""
    station: Any = env.station
    return dataclasses.replace(env, station=dataclasses.replace(station, queue_capacity=queue_capacity))


def room(env: Env, lanes: int, num_tasks: int) -> int:
    """Return the most tasks of a queue that there is any use, and memory, to remember."""
    return min(num_tasks, _MOST_BYTES // (4 * env.num_processors * lanes))


def exact(
    name: str,
    env: Env,
    run: Callable[[Env], Result],
    overflows: Callable[[Result], Any],
    needed: Callable[[], bool],
    most: int,
    stacklevel: int = 3,
) -> tuple[Result, int]:
    """Run until there is room to count every queue whose length matters.

    Args:
      name: of the scheduler.
      env: to begin with.
      run: of an environment with room for so many tasks of a queue as its station's `queue_capacity` says.
      overflows: the tasks in it that found a queue longer than that, the warm-up's too.
      needed: whether queue lengths matter.
      most: room that there can be.
      stacklevel: of the warning, 3 being who called the caller of this.

    Returns:
      The result, and the tasks it was still too short for: where there is no more room, with a warning.
    """
    while True:
        result = run(env)
        short = int(np.asarray(overflows(result), np.float64).sum())
        if not short or not needed():
            return result, 0
        further = _FURTHER if env.station.settled else _FURTHER_IN_TABLES
        capacity = min(env.station.queue_capacity * further, most)
        if capacity <= env.station.queue_capacity:
            break
        env = with_room(env, capacity)
    warnings.warn(
        f"{name}: {short:,} tasks found queues longer than {env.station.queue_capacity:,}, and there is no "
        "room to count further: lengths read too short, and what depends on them is off; fewer lanes leave "
        "more",
        stacklevel=stacklevel,
    )
    return result, short


@broadcasts
def matter(env: Env, params: EnvParams, state: EnvState, acting: Sequence[tuple[Scheduler, Any]]) -> bool:
    """Return whether the reward, or what one of the schedulers does, may depend on queue lengths.

    Only where they do is it worth while to count long queues. What is passed on whole to a function that is
    compiled by itself counts as used there.

    Args:
      env: static.
      params: of the environment.
      state: at a decision, `[N]`.
      acting: schedulers, each with its memory.
    """
    if not env.station.settled or env.dispatchers > 1:  # what finds no place is lost; others are not asked
        return True
    # What is measured now, and not some time ago, depends on the same things.
    fresh = with_lane_axis(params, state.task.gap.shape).replace(measure_interval=None)
    monitor, task, key = state.system.monitor.replace(published=None), state.task, jax.random.key(0)
    found = env.view(state, params)

    def act(queue_length: Array) -> list:
        now = found.replace(queue_length=queue_length)
        seen = env.seen(task, fresh)
        observation = observe.observe(monitor, now, fresh, task, seen, env.wait_visible, key)
        return [rule.act(rule.variables, memory, observation, key) for rule, memory in acting]

    jaxpr = jax.make_jaxpr(act)(found.queue_length).jaxpr
    dependent = set(jaxpr.invars)

    def depend(variables: Sequence[Any]) -> bool:
        return any(not isinstance(variable, Literal) and variable in dependent for variable in variables)

    for equation in jaxpr.eqns:
        if depend(equation.invars):
            dependent |= set(equation.outvars)
    return env.reward.counts_tasks or depend(jaxpr.outvars)
