"""Classical dispatching rules. Names and tie rules as in the queueing literature."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.numerics import at_processor, first_smallest, processor_index
from jaxlb.scheduling.base import (
    cheapest,
    expected_completion,
    relative_load,
    sampled,
    stateless,
    take_turn,
    uniform_per_processor,
    usable,
    with_memory,
)
from jaxlb.stations import growth, true_response
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

Ties = Literal["lowest", "fastest", "random"]


def _choose(cost: Array, ties: Ties, observation: Observation, key: Key) -> Array:
    """Choose the processor of smallest cost; ties go to the lowest index, the fastest, or any at random."""
    if ties == "lowest":
        return cheapest(observation, cost)
    if ties == "fastest":
        return cheapest(observation, cost, -observation.speed)
    return cheapest(observation, cost, uniform_per_processor(key, cost))


def _random(observation: Observation, key: Key) -> Array:
    return sampled(usable(observation, jnp.ones_like(observation.speed), 0.0), key, observation.size.shape)


def random() -> Scheduler:
    """Send each task to any processor, each with the same probability."""
    return stateless("random", _random)


def _weighted_random(observation: Observation, key: Key) -> Array:
    return sampled(usable(observation, observation.speed, 0.0), key, observation.size.shape)


def weighted_random() -> Scheduler:
    """Draw a processor in proportion to its speed: stable where any rule is, unless affinity bars some."""
    return stateless("weighted-random", _weighted_random)


def _best_rates(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    speed, load = params.speed, jnp.minimum(relative_load(env, params), 0.999)
    # (1 + squared CV) / 2 of the sizes; under sharing, it is as if it were 1.
    variation = params.size.second_moment() / (2.0 * params.size.mean() ** 2) if env.station.settled else 1.0
    variation = jnp.minimum(variation, 1e6)

    def loads(price: Array) -> Array:
        """Load each processor until one more task costs `price`."""
        worth = jnp.maximum(price * speed - 1.0, 0.0)
        return 1.0 - jnp.sqrt(variation / (worth + variation))

    def halved(_index: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = (speed * loads(middle)).sum(0) >= load * speed.sum(0)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    high = (1.0 + variation * ((1.0 - load) ** -2 - 1.0)) / speed.min(0)
    bounds = jnp.broadcast_to(1.0 / speed.max(0), lanes), jnp.broadcast_to(high, lanes)
    _, price = jax.lax.fori_loop(0, 60, halved, bounds)
    return jnp.broadcast_to(speed * loads(price), (speed.shape[0], *lanes))


def _static_split(rates: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
    weights = rates
    if observation.up is not None:
        # The best rates of slow processors may be 0: of these, any.
        weights, speed = usable(observation, rates, 0.0), usable(observation, observation.speed, 0.0)
        weights = jnp.where(weights.sum(0) > 0, weights, speed)
    return sampled(weights, key, observation.size.shape), rates


def static_split() -> Scheduler:
    """Draw a processor with the probabilities that are best if nothing is observed (Bell and Stidham 1983).

    They equalise what one more task costs at each processor under Poisson arrivals: first come, first served,
    of a known load and law of sizes, or sharing. Of other disciplines it thinks as if they shared.
    """
    return with_memory("static-split", _best_rates, _static_split)


def _first_turn(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    del env, params
    return jnp.zeros(lanes, jnp.int32)


def _rr(turn: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
    del key
    count = observation.speed.shape[0]
    if observation.up is not None:
        after_turn = (processor_index(observation.speed) - turn) % count
        turn = cheapest(observation, after_turn.astype(jnp.float32))
    return turn, (turn + 1) % count


def rr() -> Scheduler:
    """Take processors in turn, 0, 1, ..., P-1, 0, ...: Round Robin. Those that are down miss their turn."""
    return with_memory("rr", _first_turn, _rr)


def _no_credit(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    del env
    return jnp.zeros((params.speed.shape[0], *lanes), jnp.float32)


def _wrr(credit: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
    del key
    return take_turn(observation, observation.speed, credit)


def wrr() -> Scheduler:
    """Take turns in shares proportional to speed, as evenly as can be: smooth weighted Round Robin.

    Every processor earns its speed, the richest is chosen (ties to the lowest index) and pays the total: the
    algorithm of nginx's upstream module (2012).
    """
    return with_memory("wrr", _no_credit, _wrr)


def _jsq(ties: Ties, observation: Observation, key: Key) -> Array:
    return _choose(observation.queue_length.astype(jnp.float32), ties, observation, key)


def jsq(ties: Ties = "lowest") -> Scheduler:
    """Join the Shortest Queue: fewest tasks in the system."""
    checks.known("ties", ties, get_args(Ties))
    return stateless("jsq", partial(_jsq, ties))


def _least_connections(ties: Ties, observation: Observation, key: Key) -> Array:
    return _choose(observation.queue_length.astype(jnp.float32) / observation.speed, ties, observation, key)


def least_connections(ties: Ties = "fastest") -> Scheduler:
    """Send each task where there are fewest tasks per speed: smallest n / speed."""
    checks.known("ties", ties, get_args(Ties))
    return stateless("least-connections", partial(_least_connections, ties))


def _jiq(fastest: bool, observation: Observation, key: Key) -> Array:
    idle = observation.queue_length == 0
    if observation.up is not None:
        idle = idle & observation.up
    if fastest:
        idle = idle & (observation.speed == jnp.where(idle, observation.speed, 0.0).max(0))
    eligible = idle | ~idle.any(0)
    weights = usable(observation, jnp.where(eligible, observation.speed, 0.0), 0.0)
    return sampled(weights, key, observation.size.shape)


def jiq(fastest: bool = False) -> Scheduler:
    """Join the Idle Queue (Lu and others 2011): an idle processor, or any; drawn in proportion to speed.

    Args:
      fastest: whether only from the fastest of the idle ones (JFIQ: Weng, Zhou and Srikant 2020).
    """
    if not isinstance(fastest, bool):
        raise ValueError(f"fastest = {fastest!r}: must be True or False")
    return stateless("jiq", partial(_jiq, fastest))


def _power_of_d(d: int, observation: Observation, key: Key) -> Array:
    lanes = observation.size.shape
    any_processor = usable(observation, jnp.ones_like(observation.speed), 0.0)
    # Samples come in random order, so the first of the shortest is a random one of them.
    action, shortest = jnp.zeros(lanes, jnp.int32), jnp.full(lanes, jnp.iinfo(jnp.int32).max)
    for sample_key in jax.random.split(key, d):
        sample = sampled(any_processor, sample_key, lanes)
        length = at_processor(observation.queue_length, sample)
        action = jnp.where(length < shortest, sample, action)
        shortest = jnp.minimum(length, shortest)
    return action


def power_of_d(d: int = 2) -> Scheduler:
    """Join the shortest of d queues drawn with replacement (Mitzenmacher 1996); ties evenly at random."""
    checks.at_least("d", d, 1)
    return stateless("power-of-d", partial(_power_of_d, d))


def _sed(observation: Observation, key: Key) -> Array:
    delay = (observation.queue_length.astype(jnp.float32) + 1.0) / observation.speed
    return _choose(delay, "fastest", observation, key)


def sed() -> Scheduler:
    """Minimise (n + 1) / speed, the Shortest Expected Delay; ties to the fastest."""
    return stateless("sed", _sed)


def _lwr(observation: Observation, key: Key) -> Array:
    del key
    return cheapest(observation, observation.load / observation.speed)


def lwr() -> Scheduler:
    """Minimise reported load / speed, the Least Work Remaining; ties to the lowest index."""
    return stateless("lwr", _lwr)


def _lwl(observation: Observation, key: Key) -> Array:
    return _choose(observation.wait, "fastest", observation, key)


def lwl() -> Scheduler:
    """Minimise the wait, the Least Work Left; ties to the fastest."""
    return stateless("lwl", _lwl)


def _greedy(observation: Observation, key: Key) -> Array:
    completion = expected_completion(observation)
    return _choose(completion, "fastest", observation, key)


def greedy() -> Scheduler:
    """Minimise the expected completion if nothing else arrives; ties to the fastest.

    That is wait + size / speed, also under other disciplines where not all is seen.
    """
    return stateless("greedy", _greedy)


def _myopic(observation: Observation, key: Key) -> Array:
    held, grown = observation.held, expected_completion(observation)
    if held is not None:
        grown += growth(held, lambda completion: completion)
    return _choose(grown, "fastest", observation, key)


def myopic() -> Scheduler:
    """Minimise what all completion times grow by together, if nothing else arrives; ties to the fastest.

    It is greedy where a task delays none that is there already, or where that is not seen.
    """
    return stateless("myopic", _myopic)


def _oracle(observation: Observation, key: Key) -> Array:
    del key
    # Whatever is reported of who is up; where nobody has room, who may take the task.
    o, tiebreak = observation, -observation.speed
    if o.affinity is not None:
        tiebreak = jnp.where(o.affinity > 0, tiebreak, jnp.inf)
    return first_smallest(true_response(o.truth), tiebreak)


def oracle() -> Scheduler:
    """Minimise the true completion, whatever is visible; ties to the fastest."""
    return stateless("oracle", _oracle)


def _lwr_rr(threshold: float, turn: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
    cost = usable(observation, observation.load / observation.speed, jnp.inf)
    best = first_smallest(cost)
    second = jnp.where(processor_index(cost) == best, jnp.inf, cost).min(0)
    unclear = second * (1.0 - threshold) <= cost.min(0)
    action, next_turn = _rr(turn, observation, key)
    return jnp.where(unclear, action, best), jnp.where(unclear, next_turn, turn)


def lwr_rr(threshold: float = 0.1) -> Scheduler:
    """Follow LWR where one processor is clearly best, Round Robin where the best are within a threshold.

    Args:
      threshold: "within" means second - best <= threshold * second, on load / speed.
    """
    checks.leaf("threshold", threshold, low=0, high=1)
    return with_memory("lwr-rr", _first_turn, partial(_lwr_rr, threshold))
