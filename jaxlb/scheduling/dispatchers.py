"""Schedulers of several dispatchers, each with a memory of its own, and told of the tasks that have left."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlb.functions import partial
from jaxlb.params import VECTORS
from jaxlb.scheduling.base import Start, first_memory, same_kind
from jaxlb.types import Answer, Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


def seated(env: Static, scheduler: Scheduler) -> Scheduler:
    """Return a scheduler as it acts in an environment, for all of its dispatchers and told of departures.

    Its memory is that of each dispatcher, stacked; it is the scheduler itself where there is one dispatcher,
    and it asks for no departures.

    Raises:
      ValueError: it asks for departures, and the environment does not tell them.
    """
    one = scheduler
    if env.dispatchers == 1 and one.departed is None:
        return one
    if one.departed is not None and not env.answers:
        raise ValueError(
            f"scheduler {one.name!r}: must be told who has left; make the environment with answers=True"
        )
    return one.replace(
        start=partial(_start, one.name, one.start),
        act=partial(_act, one.name, one.act, one.departed, one.told),
        departed=None,
        told=None,
    )


def _start(name: str, start: Start, env: Static, params: EnvParams, lanes: Lanes) -> Any:
    def of_lane(lane: Array) -> Any:
        def own(x: Array | None, axes: int = 1) -> Array | None:
            return (
                x
                if x is None or x.ndim <= axes
                else jnp.broadcast_to(x, (*x.shape[:axes], *lanes))[..., lane]
            )

        vectors = {vector: own(getattr(params, vector)) for vector in VECTORS}
        its = params.replace(**vectors, affinity=own(params.affinity, 2))
        return first_memory(name, start, env, its, ())

    if lanes:
        memory = jax.vmap(of_lane, out_axes=-1)(jnp.arange(lanes[0], dtype=jnp.int32))
    else:
        memory = of_lane(jnp.int32(0))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (env.dispatchers, *jnp.shape(leaf))), memory)


def _act(
    name: str,
    act: Callable,
    departed: Callable | None,
    told: Callable | None,
    variables: Any,
    memory: Any,
    observation: Observation,
    key: Key,
) -> tuple[Array, Any]:
    """Let the dispatcher whose turn it is decide, once all are told who has left."""

    def in_lane(memory: Any, o: Observation, key: Key) -> tuple[Array, Any]:
        who = jnp.int32(0) if o.dispatcher is None else o.dispatcher
        if departed is not None:
            memory = _told(departed, told, variables, memory, o)
        present = None if departed is None or o.answers is None else o.answers.left_behind
        seen = o.replace(dispatcher=None, answers=None, since=None, present=present)
        before = _of(memory, who)
        action, own = act(variables, before, seen, key)
        return action, _with(memory, same_kind(name, before, own), who)

    lanes = observation.size.shape
    if not lanes:
        return in_lane(memory, observation, key)
    return jax.vmap(in_lane, (-1, -1, 0), -1)(memory, observation, jax.random.split(key, lanes[0]))


def _of(memory: Any, who: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[who], memory)


def _with(memory: Any, own: Any, who: Array) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[who].set(new), memory, own)


def _told(
    departed: Callable, told: Callable | None, variables: Any, memory: Any, observation: Observation
) -> Any:
    """Return the memories of all dispatchers after the departures since the last arrival, in their order."""
    answers, gap = observation.answers, observation.gap
    assert answers is not None  # as `seated` sees to
    since = gap[None] if observation.since is None else observation.since
    places = jnp.arange(len(answers.known), dtype=jnp.int32)

    def one(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        waiting, memory = carry
        first = jnp.argmax(jnp.where(waiting, answers.ago, -1.0)).astype(jnp.int32)
        its = jax.tree.map(lambda leaf: leaf[first], answers.replace(left_behind=None))
        waiting = waiting & (places != first)
        behind = answers.left_behind[its.processor]
        behind += (waiting & (answers.processor == its.processor)).sum(dtype=jnp.int32)
        who = its.dispatcher if told is None else told(memory, its.word)
        answer = Answer(
            processor=its.processor,
            latency=its.latency,
            service=its.service,
            failed=jnp.zeros((), bool) if its.failed is None else its.failed,
            queue_length=behind,
            since=since[who] - its.ago,
        )
        return waiting, _with(memory, departed(variables, _of(memory, who), answer), who)

    return jax.lax.while_loop(lambda carry: carry[0].any(), one, (answers.known, memory))[1]
