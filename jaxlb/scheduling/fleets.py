"""Rules for fleets with several dispatchers: processors are probed, or report to any dispatcher.

As in `routers`, times are in mean services. What is probed is what is there at this moment, however old the
published figures are; what processors report goes to a dispatcher at random.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.numerics import first_smallest, processor_index
from jaxlb.scheduling.base import cheapest, sampled, take_turn, uniform_per_processor, usable, with_memory
from jaxlb.scheduling.units import mean_service
from jaxlb.types import Answer, Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

_POOL, _PROBES, _LEVELS = 16, 3, 64
"""Answers that are kept, probes a task, and numbers in flight that are remembered."""
_HOT = 2.0**-0.25
"""Of the numbers in flight lately probed, the share below which a processor is cold."""


class Pool(struct.PyTreeNode):
    """Answers to probes, in places."""

    unit: Array  # [] time, the mean service
    processor: Array  # [16] int32, -1: none
    in_flight: Array  # [16] tasks there
    latency: Array  # [16] time that a task takes at that level
    age: Array  # [16] time
    uses: Array  # [16]
    service: Array  # [P] time, average of what answers tell
    levels: Array  # [64] numbers in flight probed lately
    probed: Array  # [] int32, so many
    turn: Array  # [] bool, whether the worst goes next, and not the oldest


def _no_pool(env: Static, params: EnvParams, lanes: Lanes) -> Pool:
    none = jnp.zeros(_POOL, jnp.float32)
    unit = mean_service(params, lanes)
    return Pool(
        unit=unit,
        processor=jnp.full(_POOL, -1, jnp.int32),
        in_flight=none,
        latency=none,
        age=none,
        uses=none,
        service=jnp.zeros(env.num_processors, jnp.float32) + unit,
        levels=jnp.zeros(_LEVELS, jnp.float32),
        probed=jnp.int32(0),
        turn=jnp.zeros((), bool),
    )


def _served(variables: tuple, memory: Pool, answer: Answer) -> Pool:
    del variables
    m, p = memory, answer.processor
    change = jnp.where(answer.failed, 0.0, 0.1 * (answer.service - m.service[p]))
    return m.replace(service=m.service.at[p].add(change))


def _is_hot(m: Pool) -> Array:
    """Return which answers are of processors with more in flight than most lately."""
    number = jnp.minimum(m.probed, _LEVELS)
    known = jnp.arange(_LEVELS, dtype=jnp.int32) < number
    ordered = jnp.sort(jnp.where(known, m.levels, jnp.inf))
    place = jnp.floor(_HOT * (number - 1).astype(jnp.float32)).astype(jnp.int32)
    return m.in_flight > ordered[jnp.maximum(place, 0)]


def _without(m: Pool, gone: Array) -> Pool:
    return m.replace(processor=jnp.where(gone, -1, m.processor))


def _prequal(max_age: float, variables: tuple, memory: Pool, o: Observation, key: Key) -> tuple[Array, Pool]:
    del variables
    random_key, probe_key = jax.random.split(key)
    number = len(o.speed)
    each = usable(o, jnp.ones_like(o.speed), 0.0)
    m = memory.replace(age=memory.age + o.gap)
    m = _without(m, (m.age > max_age * m.unit) | (each[m.processor] == 0))
    there, hot = m.processor >= 0, _is_hot(m)
    cold = there & ~hot
    by_latency, by_load = jnp.where(cold, m.latency, jnp.inf), jnp.where(there, m.in_flight, jnp.inf)
    best = jnp.where(cold.any(), first_smallest(by_latency), first_smallest(by_load))
    enough = there.sum() >= 2
    action = jnp.where(enough, m.processor[best], sampled(each, random_key, ()))
    # How often an answer is used, so that the pool lasts (Wydrowski and others 2024).
    spare = (1.0 - _POOL / number) * _PROBES - 1.0
    reuse = jnp.inf if spare == 0 else max(1.0, 2.0 / spare)
    chosen = (jnp.arange(_POOL, dtype=jnp.int32) == best) & enough
    once = chosen.astype(jnp.float32)
    m = m.replace(in_flight=m.in_flight + once, uses=m.uses + once)
    m = _without(m, m.uses >= reuse)
    # One goes, in turn the oldest and the worst.
    there = m.processor >= 0
    worst = jnp.where(_is_hot(m) & there, 1e20 * (1.0 + m.in_flight), m.latency)
    key_of_worst = jnp.where(m.turn, worst, m.age)
    goes = first_smallest(jnp.where(there, -key_of_worst, jnp.inf))
    m = _without(m, jnp.arange(_POOL, dtype=jnp.int32) == goes).replace(turn=~m.turn)
    return action, _probed(m, o, each, probe_key)


def _probed(m: Pool, o: Observation, each: Array, key: Key) -> Pool:
    """Put the answers of as many processors as are probed into the pool, in place of the oldest."""
    present = o.present
    assert present is not None  # as `seated` sees to
    order = jnp.argsort(jnp.where(each > 0, uniform_per_processor(key, each), jnp.inf))
    for place in range(min(_PROBES, len(each))):
        p = order[place].astype(jnp.int32)
        level = present[p].astype(jnp.float32)
        into = first_smallest(jnp.where(m.processor >= 0, -m.age, -jnp.inf))
        new = {
            "processor": jnp.where(each[p] > 0, p, -1),
            "in_flight": level,
            "latency": (level + 1.0) * m.service[p],
            "age": jnp.float32(0.0),
            "uses": jnp.float32(0.0),
        }
        m = m.replace(**{name: getattr(m, name).at[into].set(value) for name, value in new.items()})
        # Of one that is down, nothing is learned. What is counted goes round, so that it stays small.
        taken = each[p] > 0
        levels = m.levels.at[m.probed % _LEVELS].set(jnp.where(taken, level, m.levels[m.probed % _LEVELS]))
        following = jnp.where(m.probed >= 2 * _LEVELS - 1, _LEVELS, m.probed + 1)
        m = m.replace(levels=levels, probed=jnp.where(taken, following, m.probed))
    return m


def prequal(max_age: float = 33.0) -> Scheduler:
    """Take, of the processors probed lately, the quickest that is not hot, or the least loaded (Google).

    Prequal (Wydrowski and others 2024): each task sends three probes, whose answers a pool of 16 keeps. A
    processor tells how many tasks it has, and the time that a task takes there at that number, which is
    reckoned here as (number + 1) x its mean service. It is hot if it has more than 84 % of those lately
    probed.

    Args:
      max_age: of an answer, in mean services; 1 s where a request takes 30 ms.
    """
    checks.leaf("max_age", max_age, above=0)
    return Scheduler("prequal", (), _no_pool, partial(_prequal, max_age), _served)


def _any(memories: Any, word: Array) -> Array:
    number = len(jax.tree.leaves(memories)[0])
    return (word % jnp.uint32(number)).astype(jnp.int32)


def _shorter(memories: Array, word: Array) -> Array:
    number, held = jnp.uint32(len(memories)), memories.sum(1)
    one, other = (jnp.asarray(half % number, jnp.int32) for half in (word >> 16, word & jnp.uint32(0xFFFF)))
    return jnp.where(held[other] < held[one], other, one)


_TOLD = {"any": _any, "shorter-of-two": _shorter}


def _none_reported(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    del params, lanes
    return jnp.zeros(env.num_processors, bool)


def _below(threshold: int, variables: tuple, memory: Array, answer: Answer) -> Array:
    del variables
    low = answer.queue_length <= threshold
    return memory.at[answer.processor].set(memory[answer.processor] | low)


def _jbt(variables: tuple, memory: Array, o: Observation, key: Key) -> tuple[Array, Array]:
    del variables
    each = usable(o, jnp.ones_like(o.speed), 0.0)
    reported = jnp.where(memory, each, 0.0)
    action = sampled(jnp.where(reported.sum() > 0, reported, each), key, ())
    return action, memory.at[action].set(False)


def jbt(threshold: int = 0, told: str = "any") -> Scheduler:
    """Go to a processor that has reported few tasks, or to any: Join Below Threshold (Zhou and others 2017).

    A processor reports to one dispatcher as a task leaves. With threshold 0 it is JIQ with several
    dispatchers, as Lu and others (2011) have it.

    Args:
      threshold: tasks with which a processor reports, at most.
      told: "any" dispatcher, or the "shorter-of-two": the one that holds fewer reports.
    """
    checks.at_least("threshold", threshold, 0)
    checks.known("told", told, _TOLD)
    return Scheduler("jbt", (), _none_reported, _jbt, partial(_below, threshold), _TOLD[told])


def _no_estimates(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    del params, lanes
    return jnp.zeros(env.num_processors, jnp.int32)


def _idle(variables: tuple, memory: Array, answer: Answer) -> Array:
    del variables
    p = answer.processor
    return memory.at[p].set(jnp.where(answer.queue_length == 0, 0, memory[p]))


def _lsq(ask: int, variables: tuple, memory: Array, o: Observation, key: Key) -> tuple[Array, Array]:
    del variables
    tie_key, ask_key = jax.random.split(key)
    action = cheapest(o, memory.astype(jnp.float32), uniform_per_processor(tie_key, o.speed))
    present, estimate = o.present, memory
    assert present is not None  # as `seated` sees to
    order = jnp.argsort(uniform_per_processor(ask_key, o.speed))
    for place in range(min(ask, len(o.speed))):
        asked = order[place]
        estimate = estimate.at[asked].set(present[asked])
    return action, estimate.at[action].add(1)


def lsq(ask: int = 0) -> Scheduler:
    """Join the shortest of queues as this dispatcher reckons them: Local Shortest Queue (Vargaftik 2020).

    It counts what it sends; a processor that falls idle tells one dispatcher so; and with each task it may
    ask some processors.

    Args:
      ask: processors asked with each task.
    """
    checks.at_least("ask", ask, 0)
    return Scheduler("lsq", (), _no_estimates, partial(_lsq, ask), _idle, _any)


class Sent(struct.PyTreeNode):
    """What this dispatcher has sent since the figures were published."""

    dispatchers: Array  # []
    number: Array  # [...]


def _nothing_sent(env: Static, params: EnvParams, lanes: Lanes) -> Sent:
    del params
    return Sent(jnp.float32(env.dispatchers), jnp.zeros(lanes, jnp.float32))


def _tidal(memory: Sent, o: Observation, key: Key) -> tuple[Array, Sent]:
    number = jnp.where(o.age <= o.gap, 0.0, memory.number) + 1.0
    length = usable(o, o.queue_length.astype(jnp.float32), jnp.inf)
    ordered = jnp.sort(length, 0)
    count = processor_index(ordered).astype(jnp.float32) + 1.0
    # The level that so many tasks reach if they fill the so many shortest; the right one is above these.
    levels = (memory.dispatchers * number + jnp.cumsum(ordered, 0)) / count
    level = jnp.where(levels > ordered, levels, -jnp.inf)
    level = jnp.where(jnp.isfinite(level), level, jnp.inf).min(0)
    return sampled(jnp.maximum(level - length, 0.0), key, o.size.shape), memory.replace(number=number)


def tidal_water_filling() -> Scheduler:
    """Draw a processor so that what all dispatchers send fills the shortest queues evenly, in expectation.

    In proportion to max(0, level - length), the level being what as many tasks as all dispatchers send, if
    each sends what this one has sent since the figures were published, fill the queues up to (Goren and
    others 2020). Speeds count alike.
    """
    return with_memory("tidal", _nothing_sent, _tidal)


class Warming(struct.PyTreeNode):
    """Turns of processors, and how long they have been up."""

    window: Array  # [...] time
    credit: Array  # [P, ...]
    up: Array  # [P, ...] time; very long at first


def _warm(window: float, env: Static, params: EnvParams, lanes: Lanes) -> Warming:
    zero = jnp.zeros((env.num_processors, *lanes), jnp.float32)
    return Warming(window * mean_service(params, lanes), zero, zero + 1e20)


def _slow_start(aggression: float, memory: Warming, o: Observation, key: Key) -> tuple[Array, Warming]:
    del key
    up = memory.up + o.gap
    if o.up is not None:
        down = ~o.up if o.affinity is None else ~o.up & (o.affinity > 0)
        up = jnp.where(down, 0.0, up)
    share = jnp.clip((up / memory.window) ** (1.0 / aggression), 0.1, 1.0)
    action, credit = take_turn(o, o.speed * share, memory.credit)
    return action, memory.replace(credit=credit, up=up)


def slow_start(window: float = 1000.0, aggression: float = 1.0) -> Scheduler:
    """Take turns in shares of speed x max(0.1, (time since it came up / window)^(1 / aggression)).

    Smooth weighted Round Robin with Envoy's slow start. One that is full counts as down.

    Args:
      window: mean services after which a processor has its whole share.
      aggression: above 1, it gets more early on.
    """
    checks.leaf("window", window, above=0)
    checks.leaf("aggression", aggression, above=0)
    return with_memory("slow-start", partial(_warm, window), partial(_slow_start, aggression))


def _slots(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    del lanes
    discipline = getattr(env.station, "discipline", None)
    slots = 1 if discipline is None else discipline.slots
    each = jnp.asarray(jnp.inf if slots is None else slots, jnp.float32)
    return jnp.broadcast_to(each, (env.num_processors,)).reshape(-1, *(1,) * (jnp.ndim(params.speed) - 1))


def _replicas(waiting: float, memory: Array, o: Observation, key: Key) -> tuple[Array, Array]:
    number = o.queue_length.astype(jnp.float32)
    running = jnp.minimum(number, memory)
    cost = waiting * (number - running) + running
    return cheapest(o, cost, uniform_per_processor(key, cost)), memory


def replicas(waiting: float = 4.0) -> Scheduler:
    """Take the least of so many times the tasks that wait and those that are served; ties go to any.

    As data-parallel replicas of an inference server are chosen.

    Args:
      waiting: what a task that waits counts.
    """
    checks.leaf("waiting", waiting, low=0)
    return with_memory("replicas", _slots, partial(_replicas, waiting))
