"""Several dispatchers: who gets which task, what each sees of its own doing, who hears of which departure."""

import jax.numpy as jnp

from jaxlb.numerics import processor_index
from jaxlb.random import random_words
from jaxlb.types import Answers, Array, Departures, Dispatching, EnvState, Key, Lanes, Static

_GOLDEN = 0x9E3779B9
"""2^32 over the golden ratio: its multiples are spread evenly."""


def start(env: Static, lanes: Lanes, key: Key) -> Dispatching | None:
    """Return what dispatchers have before the first task, None where that is nothing; the key is consumed."""
    if env.dispatchers == 1 and not env.answers:
        return None
    return Dispatching(
        seed=random_words(key, lanes)[0], since=jnp.zeros((env.dispatchers, *lanes), jnp.float32)
    )


def _word(seed: Array, number: Array) -> Array:
    """Return a random word for a task, by the finaliser of MurmurHash3 (Appleby 2011)."""
    x = seed + number.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))


def dispatcher(env: Static, dispatching: Dispatching, number: Array) -> Array:
    """Return which dispatcher gets the task of that number, int32."""
    if env.in_turn:
        return number % env.dispatchers
    # Of two tasks that follow each other, the words are as independent as those of a generator.
    return (_word(dispatching.seed, number) % jnp.uint32(env.dispatchers)).astype(jnp.int32)


def decided(env: Static, dispatching: Dispatching | None, number: Array) -> Dispatching | None:
    """Return the same once the task of that number is assigned."""
    if dispatching is None:
        return None
    own = processor_index(dispatching.since) == dispatcher(env, dispatching, number)
    return dispatching.replace(since=jnp.where(own, 0.0, dispatching.since))


def passed(dispatching: Dispatching, gap: Array) -> Dispatching:
    """Return the same once `gap` `[...]` time has passed."""
    return dispatching.replace(since=dispatching.since + gap)


def answers(
    env: Static, before: EnvState, gap: Array, departed: Departures | None, left_behind: Array
) -> Answers:
    """Return what dispatchers hear of departures.

    Args:
      env: static.
      before: the state after an assignment.
      gap: `[...]` time that has passed since.
      departed: who has left in between, the task that was assigned in the last place if it was refused.
      left_behind: `[P, ...]` int32, tasks that are there now.
    """
    assert departed is not None and before.dispatching is not None
    outcome, seed = departed.outcome, before.dispatching.seed
    latency = jnp.where(jnp.isinf(outcome.completion), 0.0, outcome.completion)
    ages = env.station.ages(before.system.station)
    ages = jnp.concatenate([ages, jnp.zeros_like(latency[len(ages) :])])
    return Answers(
        # A dispatcher that refuses a task itself hears no more of it.
        known=departed.known & (outcome.action < env.num_processors),
        word=_word(~seed, departed.number),
        dispatcher=dispatcher(env, before.dispatching, departed.number),
        processor=outcome.action,
        latency=latency,
        service=outcome.service,
        failed=outcome.lost,
        ago=jnp.maximum(ages + gap - latency, 0.0),
        left_behind=left_behind,
    )
