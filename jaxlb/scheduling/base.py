"""What all schedulers share: the stateless protocol, random numbers that do not depend on the lane count."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlb.functions import partial
from jaxlb.numerics import first_smallest, of_usable, processor_index
from jaxlb.params import work_at
from jaxlb.stations import capacity, response
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

Start = Callable[[Static, EnvParams, Lanes], Any]


def stateless(name: str, choose: Callable[[Observation, Key], Array]) -> Scheduler:
    """Make a scheduler without variables or memory.

    Args:
      name: what tables call it.
      choose: (observation, key) -> action, int32 of the lanes' shape, the index of a processor; one out of
        range counts as the nearest. What an observation has of each processor is `[P, ...]`: the lanes last.
    """
    return Scheduler(name, (), no_memory, partial(_choose, choose))


def _choose(choose: Callable, variables: tuple, memory: Any, observation: Observation, key: Key) -> tuple:
    return choose(observation, key), memory


def no_memory(env: Static, params: EnvParams, lanes: Lanes) -> tuple:
    """Start a scheduler that carries nothing from task to task."""
    del env, params, lanes
    return ()


def with_memory(
    name: str,
    start: Start,
    act: Callable[[Any, Observation, Key], tuple[Array, Any]],
) -> Scheduler:
    """Make a scheduler without variables.

    Args:
      name: what tables call it.
      start: (env, params, lanes) -> memory, before the first task.
      act: (memory, observation, key) -> (action, memory); the action is as in `stateless`, and shapes and
        types of the memory stay as they are.
    """
    return Scheduler(name, (), start, partial(_act, act))


def _act(act: Callable, variables: tuple, memory: Any, observation: Observation, key: Key) -> tuple:
    return act(memory, observation, key)


def first_memory(name: str, start: Start, env: Static, params: EnvParams, lanes: Lanes) -> Any:
    """Return what the scheduler of that name carries to the first task, if its `start` takes the arguments.

    Raises:
      ValueError: `start` takes other arguments.
    """
    signature = inspect.signature(start)
    try:
        signature.bind(env, params, lanes)
    except TypeError:
        raise ValueError(
            f"scheduler {name!r}: its start takes {signature}, must take (env, params, lanes): the "
            "environment's static settings come first"
        ) from None
    return start(env, params, lanes)


def acted(scheduler: Scheduler, memory: Any, observation: Observation, key: Key) -> tuple[Array, Any]:
    """Let a scheduler act; return its action and its memory. The key is consumed.

    Raises:
      ValueError: it does not return an action and a memory, the action is no whole number of every lane, or
        the memory becomes another kind of one.
    """
    name, lanes = scheduler.name, observation.size.shape
    found = scheduler.act(scheduler.variables, memory, observation, key)
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(f"scheduler {name!r}: its act must return a pair, (action, memory)")
    action, after = found
    kind, shape = jnp.result_type(action), jnp.shape(action)
    if not jnp.issubdtype(kind, jnp.integer) or shape != lanes:
        raise ValueError(
            f"scheduler {name!r}: its action is {kind}{list(shape)}, must be int32{list(lanes)}, "
            "the index of a processor for each lane"
        )
    return action, same_kind(name, memory, after)


def same_kind(name: str, before: Any, after: Any) -> Any:
    """Return a scheduler's memory after a task, or raise ValueError if it is of another kind than before."""
    was, now = jax.tree.structure(before), jax.tree.structure(after)
    if was != now:
        raise ValueError(f"scheduler {name!r}: its memory is {was} before a task and {now} after it")
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        texts = [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in (old, new)]
        if texts[0] != texts[1]:
            raise ValueError(
                f"scheduler {name!r}: its memory{jax.tree_util.keystr(path)} is {texts[0]} before a task and "
                f"{texts[1]} after it: must stay what it is"
            )
    return after


def no_departures(what: str, *inner: Scheduler) -> None:
    """Raise ValueError if a scheduler has to be told who has left, where `what` does not pass it on."""
    for one in inner:
        if one.departed is not None:
            raise ValueError(
                f"scheduler {one.name!r}: cannot be within {what!r}, which does not tell it who has left"
            )


def starts(schedulers: Sequence[Scheduler]) -> tuple[tuple[str, Start], ...]:
    """List the name and `start` of each, for `first_memories`: what is static of them."""
    return tuple((one.name, one.start) for one in schedulers)


def first_memories(
    starts: Sequence[tuple[str, Start]], env: Static, params: EnvParams, lanes: Lanes
) -> tuple[Any, ...]:
    """Return what each of several schedulers carries to the first task."""
    return tuple(first_memory(name, start, env, params, lanes) for name, start in starts)


def uniform_per_processor(key: Key, like: Array) -> Array:
    """Draw uniforms shaped like `like` `[P, ...]`; a lane's depend on no other lane. The key is consumed."""
    keys = jax.random.split(key, like.shape[0])
    return jax.vmap(lambda key: jax.random.uniform(key, like.shape[1:], jnp.float32))(keys)


def relative_load(env: Static, params: EnvParams) -> Array:
    """Return the load, relative to what processors can do that serve several tasks at a time."""
    whole = capacity(env.station.most, params.speed).sum(0)
    return params.load / (whole / params.speed.sum(0))


def size_at_each(observation: Observation) -> Array:
    """Return the work that the task is at each processor, `[P, ...]`, or `[...]` if it is the same at all."""
    return work_at(observation.size, observation.affinity)


def after_backlog(observation: Observation) -> Array:
    """Return the time `[P, ...]` until each choice has done the task and all before it, as it is seen."""
    return response(observation.wait, size_at_each(observation), observation.speed)


def expected_completion(observation: Observation) -> Array:
    """Return the completion `[P, ...]` of each choice, as it is seen, if nothing else arrives.

    Where what is seen does not tell, as if it were served last.
    """
    return after_backlog(observation) if observation.completion is None else observation.completion


def usable(observation: Observation, values: Array, otherwise: float) -> Array:
    """Return values `[P, ...]`, but `otherwise` for processors that are down or may not take the task.

    Where all that may are down, as if they were not.
    """
    return of_usable(observation.up, observation.affinity, values, otherwise)


def cheapest(observation: Observation, cost: Array, tiebreak: Array | None = None) -> Array:
    """Return the usable processor of the smallest cost `[P, ...]`; ties as `first_smallest` has them.

    Where none has a finite cost, since those meant for the task are down or full: where all is done first.
    """
    if observation.up is not None:
        cost = usable(observation, cost, jnp.inf)
        last = usable(observation, after_backlog(observation), jnp.inf)
        cost = jnp.where(jnp.isfinite(cost).any(0), cost, last)
    return first_smallest(cost, tiebreak)


def take_turn(observation: Observation, weight: Array, credit: Array) -> tuple[Array, Array]:
    """Return the usable processor of most credit, and the credit after its turn, `[P, ...]`.

    Every processor earns its weight `[P, ...]`, and the one that is chosen pays all: smooth weighted Round
    Robin.
    """
    earned = usable(observation, weight, 0.0)
    credit = credit + earned
    action = cheapest(observation, -credit)
    return action, credit - jnp.where(processor_index(credit) == action, earned.sum(0), 0.0)


def sampled(weights: Array, key: Key, lanes: Lanes) -> Array:
    """Draw an index in proportion to `weights` `[K, ...]` in each lane; the key is consumed."""
    bounds = jnp.cumsum(weights, 0)
    point = jax.random.uniform(key, lanes, jnp.float32) * bounds[-1]
    return (point >= bounds[:-1]).sum(0, dtype=jnp.int32)


def chosen_acts(
    schedulers: Sequence[Scheduler],
    memories: Sequence[Any],
    observation: Observation,
    keys: Sequence[Key],
    which: Array,
) -> tuple[Array, tuple]:
    """Let all schedulers act; return, in each lane, the action of number `which`, and the memories of all."""
    action, after = jnp.zeros_like(which), []
    for index, (one, memory, key) in enumerate(zip(schedulers, memories, keys, strict=True)):
        theirs, memory = one.act(one.variables, memory, observation, key)
        action = jnp.where(which == index, theirs, action)
        after.append(memory)
    return action, tuple(after)
