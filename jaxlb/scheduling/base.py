"""What all schedulers share: the stateless protocol, random numbers that do not depend on the lane count."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


def stateless(name: str, choose: Callable[[Observation, Key], Array]) -> Scheduler:
    """A scheduler without variables or memory, from (observation, key) -> action."""
    return with_memory(
        name,
        start=lambda env, params, lanes: (),
        act=lambda memory, observation, key: (choose(observation, key), memory),
    )


def with_memory(
    name: str,
    start: Callable[[Static, EnvParams, Lanes], Any],
    act: Callable[[Any, Observation, Key], tuple[Array, Any]],
) -> Scheduler:
    """A scheduler without variables; `act` is (memory, observation, key) -> (action, memory)."""
    return Scheduler(
        name=name,
        init=lambda key, observation: (),
        start=start,
        act=lambda variables, memory, observation, key: act(memory, observation, key),
    )


def first_memory(scheduler: Scheduler, env: Static, params: EnvParams, lanes: Lanes) -> Any:
    """What a scheduler carries to the first task, if it takes what it is told.

    Raises:
      ValueError: its `start` takes other arguments.
    """
    signature = inspect.signature(scheduler.start)
    try:
        signature.bind(env, params, lanes)
    except TypeError:
        raise ValueError(
            f"scheduler {scheduler.name!r}: its start takes {signature}, must take (env, params, lanes): the "
            "environment's static settings come first"
        ) from None
    return scheduler.start(env, params, lanes)


def uniform_per_processor(key: Key, like: Array) -> Array:
    """Uniforms shaped like `like` `[P, ...]`; a lane's do not depend on how many there are. Key consumed."""
    keys = jax.random.split(key, like.shape[0])
    return jax.vmap(lambda key: jax.random.uniform(key, like.shape[1:], jnp.float32))(keys)


def sampled(weights: Array, key: Key, lanes: Lanes) -> Array:
    """An index drawn in proportion to `weights` `[K, ...]` in each lane; the key is consumed."""
    bounds = jnp.cumsum(weights, 0)
    point = jax.random.uniform(key, lanes, jnp.float32) * bounds[-1]
    return (point >= bounds[:-1]).sum(0, dtype=jnp.int32)


def chosen_acts(
    rules: Sequence[Scheduler],
    variables: Sequence[Any],
    memories: Sequence[Any],
    observation: Observation,
    keys: Sequence[Key],
    which: Array,
) -> tuple[Array, tuple]:
    """The action, in each lane, of the rule with index `which`; the memories of all, who have all looked."""
    action, after = jnp.zeros_like(which), []
    for index, (rule, own, memory, key) in enumerate(zip(rules, variables, memories, keys, strict=True)):
        theirs, memory = rule.act(own, memory, observation, key)
        action = jnp.where(which == index, theirs, action)
        after.append(memory)
    return action, tuple(after)
