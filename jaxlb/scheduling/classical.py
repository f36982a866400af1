"""Classical dispatching rules. Names and tie rules as in the queueing literature."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxlb import checks
from jaxlb.numerics import at_processor, first_smallest, processor_index
from jaxlb.scheduling.base import sampled, stateless, uniform_per_processor, with_memory
from jaxlb.stations import response
from jaxlb.types import Array, Key, Observation, Scheduler

Ties = Literal["lowest", "fastest", "random"]


def _choose(cost: Array, ties: Ties, observation: Observation, key: Key) -> Array:
    """The processor of smallest cost; ties go to the lowest index, the fastest, or evenly at random."""
    if ties == "lowest":
        return first_smallest(cost)
    if ties == "fastest":
        return first_smallest(cost, -observation.speed)
    return first_smallest(cost, uniform_per_processor(key, cost))


def random() -> Scheduler:
    """Any processor, each with the same probability."""
    return stateless("random", lambda o, key: sampled(jnp.ones_like(o.speed), key, o.size.shape))


def weighted_random() -> Scheduler:
    """Any processor, with probability proportional to its speed: stable wherever any rule is."""
    return stateless("weighted-random", lambda o, key: sampled(o.speed, key, o.size.shape))


def rr() -> Scheduler:
    """Round Robin: processors 0, 1, ..., P-1, 0, ... in turn."""

    def act(turn: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
        del key
        return turn, (turn + 1) % observation.speed.shape[0]

    return with_memory("rr", lambda env, params, lanes: jnp.zeros(lanes, jnp.int32), act)


def wrr() -> Scheduler:
    """Smooth weighted Round Robin: shares proportional to speed, spread as evenly as turns allow.

    Every processor earns its speed, the richest is chosen (ties to the lowest index) and pays the total: the
    algorithm of nginx's upstream module (2012).
    """

    def act(credit: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
        del key
        credit = credit + observation.speed
        action = first_smallest(-credit)
        paid = jnp.where(processor_index(credit) == action, observation.speed.sum(0), 0.0)
        return action, credit - paid

    def start(env, params, lanes):
        return jnp.zeros((params.speed.shape[0], *lanes), jnp.float32)

    return with_memory("wrr", start, act)


def jsq(ties: Ties = "lowest") -> Scheduler:
    """Join the Shortest Queue: fewest tasks in the system."""
    checks.known("ties", ties, ("lowest", "fastest", "random"))
    return stateless("jsq", lambda o, key: _choose(o.queue_length.astype(jnp.float32), ties, o, key))


def least_connections(ties: Ties = "fastest") -> Scheduler:
    """Fewest tasks per speed: smallest n / speed."""
    checks.known("ties", ties, ("lowest", "fastest", "random"))
    return stateless(
        "least-connections",
        lambda o, key: _choose(o.queue_length.astype(jnp.float32) / o.speed, ties, o, key),
    )


def jiq() -> Scheduler:
    """Join the Idle Queue (Lu and others 2011): an idle processor, or any; drawn in proportion to speed."""

    def choose(observation: Observation, key: Key) -> Array:
        idle = observation.queue_length == 0
        eligible = idle | ~idle.any(0)
        return sampled(jnp.where(eligible, observation.speed, 0.0), key, observation.size.shape)

    return stateless("jiq", choose)


def power_of_d(d: int = 2) -> Scheduler:
    """Shortest of d queues sampled uniformly with replacement (Mitzenmacher 1996); ties evenly at random."""
    checks.at_least("d", d, 1)

    def choose(observation: Observation, key: Key) -> Array:
        lanes = observation.size.shape
        any_processor = jnp.ones_like(observation.speed)
        # Samples come in random order, so the first of the shortest is a random one of them.
        action, shortest = jnp.zeros(lanes, jnp.int32), jnp.full(lanes, jnp.iinfo(jnp.int32).max)
        for sample_key in jax.random.split(key, d):
            sample = sampled(any_processor, sample_key, lanes)
            length = at_processor(observation.queue_length, sample)
            action = jnp.where(length < shortest, sample, action)
            shortest = jnp.minimum(length, shortest)
        return action

    return stateless("power-of-d", choose)


def sed() -> Scheduler:
    """Shortest Expected Delay: smallest (n + 1) / speed; ties to the fastest."""

    def choose(observation: Observation, key: Key) -> Array:
        delay = (observation.queue_length.astype(jnp.float32) + 1.0) / observation.speed
        return _choose(delay, "fastest", observation, key)

    return stateless("sed", choose)


def lwr() -> Scheduler:
    """Least Work Remaining: smallest reported load / speed; ties to the lowest index."""
    return stateless("lwr", lambda o, key: first_smallest(o.load / o.speed))


def lwl() -> Scheduler:
    """Least Work Left: smallest wait; ties to the fastest."""
    return stateless("lwl", lambda o, key: _choose(o.wait, "fastest", o, key))


def greedy() -> Scheduler:
    """Smallest expected completion, wait + size / speed; ties to the fastest."""
    return stateless("greedy", lambda o, key: _choose(response(o.wait, o.size, o.speed), "fastest", o, key))


def oracle() -> Scheduler:
    """Smallest true completion, whatever is visible; ties to the fastest."""

    def choose(observation: Observation, key: Key) -> Array:
        truth = observation.truth
        return _choose(response(truth.wait, truth.size, truth.speed), "fastest", observation, key)

    return stateless("oracle", choose)


def lwr_rr(threshold: float = 0.1) -> Scheduler:
    """LWR where one processor is clearly best, Round Robin where the two best are within a threshold.

    Args:
      threshold: "within" means second - best <= threshold * second, on load / speed.
    """
    checks.leaf("threshold", threshold, low=0, high=1)
    turns = rr()

    def act(turn: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
        cost = observation.load / observation.speed
        best = first_smallest(cost)
        second = jnp.where(processor_index(cost) == best, jnp.inf, cost).min(0)
        unclear = second * (1.0 - threshold) <= cost.min(0)
        action, next_turn = turns.act((), turn, observation, key)
        return jnp.where(unclear, action, best), jnp.where(unclear, next_turn, turn)

    return with_memory("lwr-rr", turns.start, act)
