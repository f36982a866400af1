"""Queue lengths that are exact however long the queues: counted further wherever somebody asks for them."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend.core import Literal

from jaxlb.env import Env, with_lane_axis
from jaxlb.numerics import broadcasts
from jaxlb.types import Array, EnvParams, EnvState, Scheduler

_MOST_BYTES = 2**30
"""What the memory of all queues may take."""
_FURTHER = 32

Result = TypeVar("Result")


def exact(
    name: str,
    env: Env,
    run: Callable[[Env], Result],
    overflows: Callable[[Result], Array],
    asked: Callable[[], bool],
    lanes: int,
    num_tasks: int,
) -> tuple[Result, int]:
    """What a run brings once it has room to count every queue that somebody asks for.

    Args:
      name: of the scheduler.
      env: to begin with.
      run: of an environment with room for so many tasks of a queue as its `queue_capacity` says.
      overflows: the tasks in it that found a queue longer than that.
      asked: whether anybody asks for lengths.
      lanes: N.
      num_tasks: in each lane; no queue is longer.

    Returns:
      The result, and the tasks it was still too short for: where memory ends, with a warning.
    """
    while True:
        result = run(env)
        short = int(np.asarray(overflows(result), np.float64).sum())
        capacity = min(env.queue_capacity * _FURTHER, num_tasks)
        if not short or capacity <= env.queue_capacity or not asked():
            return result, 0
        if 4 * env.num_processors * capacity * lanes > _MOST_BYTES:
            break
        env = dataclasses.replace(env, queue_capacity=capacity)
    warnings.warn(
        f"{name}: {short:,} tasks found queues longer than {env.queue_capacity:,}, the most that memory has "
        "room to count: lengths read too short, and what depends on them is off; fewer lanes leave more room",
        stacklevel=4,
    )
    return result, short


@broadcasts
def matter(
    env: Env, params: EnvParams, state: EnvState, acting: Sequence[tuple[Scheduler, Any, Any]]
) -> bool:
    """Whether the reward, or what one of the schedulers does, may depend on queue lengths.

    Only where they do is it worth while to count long queues. What is passed on whole to a function that is
    compiled by itself counts as used there.

    Args:
      env: static.
      params: of the environment.
      state: at a decision, `[N]`.
      acting: schedulers, each with its variables and its memory.
    """
    # What is measured now, and not some time ago, depends on the same things.
    fresh = with_lane_axis(params, state.task.gap.shape).replace(measure_interval=None)
    state = state.replace(monitor=state.monitor.replace(published=None))
    key = jax.random.key(0)

    def act(queue_length: Array) -> list:
        now = state.replace(system=state.system.replace(queue_length=queue_length))
        observation = env.observe(now, fresh, key)
        return [scheduler.act(variables, memory, observation, key) for scheduler, variables, memory in acting]

    jaxpr = jax.make_jaxpr(act)(state.system.queue_length).jaxpr
    told = set(jaxpr.invars)

    def any_told(variables: Sequence[Any]) -> bool:
        return any(not isinstance(variable, Literal) and variable in told for variable in variables)

    for equation in jaxpr.eqns:
        if any_told(equation.invars):
            told |= set(equation.outvars)
    return env.reward == "holding-cost" or any_told(jaxpr.outvars)
