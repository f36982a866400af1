"""Rules of production routers, from their definitions: they learn from answers and from requests in flight.

Times are in mean services, so that a rule means the same in any unit: where a router waits for 10 s and a
request takes 30 ms, the option is 333. A request in flight is one that this dispatcher has sent and that has
not left. All that hear of departures are written for one dispatcher in one lane; see `Scheduler.departed`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.numerics import at_processor, processor_index
from jaxlb.scheduling.base import cheapest, sampled, take_turn, usable
from jaxlb.scheduling.units import mean_service
from jaxlb.types import Answer, Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


class Latencies(struct.PyTreeNode):
    """What is known of each processor's latency."""

    unit: Array  # [] time, the mean service
    in_flight: Array  # [P] int32
    average: Array  # [P] time
    seen: Array  # [P] bool, whether an answer has come
    updated: Array  # [P] time of the last update, counted from the last decision


def _no_latencies(default: float, env: Static, params: EnvParams, lanes: Lanes) -> Latencies:
    unit, zero = mean_service(params, lanes), jnp.zeros(env.num_processors, jnp.float32)
    return Latencies(
        unit=unit,
        in_flight=zero.astype(jnp.int32),
        average=zero + default * unit,
        seen=zero > 0,
        updated=zero,
    )


def _latency(
    time_constant: float, peaks: bool, variables: tuple, memory: Latencies, answer: Answer
) -> Latencies:
    del variables
    m, p, x = memory, answer.processor, answer.latency
    kept = jnp.exp(-(answer.since - m.updated[p]) / (time_constant * m.unit))
    average = kept * m.average[p] + (1.0 - kept) * x
    if peaks:
        average = jnp.where(x > m.average[p], x, average)
    # What fails at once is not quick.
    average = jnp.where(answer.failed, m.average[p], average)
    return m.replace(
        in_flight=m.in_flight.at[p].add(-1),
        average=m.average.at[p].set(average),
        seen=m.seen.at[p].set(m.seen[p] | ~answer.failed),
        updated=m.updated.at[p].set(jnp.where(answer.failed, m.updated[p], answer.since)),
    )


def two_of(observation: Observation, cost: Array, key: Key) -> Array:
    """Return the cheaper of two different usable processors, drawn evenly; the key is consumed."""
    lanes = observation.size.shape
    first_key, second_key = jax.random.split(key)
    each = usable(observation, jnp.ones_like(observation.speed), 0.0)
    first = sampled(each, first_key, lanes)
    others = jnp.where(processor_index(each) == first, 0.0, each)
    second = jnp.where(others.sum(0) > 0, sampled(others, second_key, lanes), first)
    return jnp.where(at_processor(cost, second) < at_processor(cost, first), second, first)


def _peak_ewma(
    time_constant: float, peaks: bool, variables: tuple, memory: Latencies, o: Observation, key: Key
) -> tuple[Array, Latencies]:
    del variables
    m, waits = memory, memory.in_flight.astype(jnp.float32)
    average = m.average
    if peaks:  # as if 0 came now
        average = average * jnp.exp(-(o.gap - m.updated) / (time_constant * m.unit))
    cost = jnp.where(m.seen | (waits == 0), average * (waits + 1.0), 1e20 * (waits + 1.0))
    action = two_of(o, cost, key)
    return action, m.replace(in_flight=m.in_flight.at[action].add(1), updated=m.updated - o.gap)


def peak_ewma(time_constant: float = 333.0, default: float = 1.0, peaks: bool = True) -> Scheduler:
    """Take the smaller of two latencies x (requests in flight + 1), averaged but quick to rise (Finagle).

    Of two processors drawn; one that has not answered yet and has a request is the last choice.

    Args:
      time_constant: mean services in which an average forgets; 10 s where a request takes 30 ms.
      default: latency before the first answer, in mean services.
      peaks: whether a latency above the average replaces it, and averages fall while nothing comes, as in
        Finagle, tower and linkerd; if not, a plain average as in Envoy, but of every answer, and not of what
        came in 100 ms.
    """
    checks.leaf("time_constant", time_constant, above=0)
    checks.leaf("default", default, low=0)
    if not isinstance(peaks, bool):
        raise ValueError(f"peaks = {peaks!r}: must be True or False")
    return Scheduler(
        "peak-ewma",
        (),
        partial(_no_latencies, default),
        partial(_peak_ewma, time_constant, peaks),
        partial(_latency, time_constant, peaks),
    )


class Active(struct.PyTreeNode):
    """Requests in flight, and a schedule by deadlines."""

    in_flight: Array  # [P] int32
    due: Array  # [P] turns; the earliest is next


def _none_active(bias: float | None, env: Static, params: EnvParams, lanes: Lanes) -> Active:
    del lanes
    in_flight = jnp.zeros(env.num_processors, jnp.int32)
    return Active(in_flight, 0.0 * params.speed if bias is None else 1.0 / params.speed)


def _answered(variables: tuple, memory: Any, answer: Answer) -> Any:
    del variables
    return memory.replace(in_flight=memory.in_flight.at[answer.processor].add(-1))


def _least_request(
    d: int, bias: float | None, variables: tuple, memory: Active, o: Observation, key: Key
) -> tuple[Array, Active]:
    del variables
    if bias is None:
        each, action = usable(o, jnp.ones_like(o.speed), 0.0), None
        for sample_key in jax.random.split(key, d):
            sample = sampled(each, sample_key, ())
            fewer = sample if action is None else memory.in_flight[sample] < memory.in_flight[action]
            action = sample if action is None else jnp.where(fewer, sample, action)
        assert action is not None
        return action, memory.replace(in_flight=memory.in_flight.at[action].add(1))
    action = cheapest(o, memory.due)
    weight = o.speed[action] / (memory.in_flight[action].astype(jnp.float32) + 1.0) ** bias
    due = memory.due.at[action].add(1.0 / weight)
    # From the one that was due, so that turns stay small; one that was down is not owed those it missed.
    due = jnp.maximum(due - memory.due[action], 0.0)
    return action, Active(memory.in_flight.at[action].add(1), due)


def least_request(d: int = 2, bias: float | None = None) -> Scheduler:
    """Take the one of d processors, drawn with replacement, with fewest requests in flight (Envoy).

    Args:
      d: drawn; the first of equals is taken.
      bias: None: processors count alike; else take turns in shares of speed / (requests in flight + 1)^bias,
        as Envoy does where weights differ.
    """
    checks.at_least("d", d, 1)
    if bias is not None:
        checks.leaf("bias", bias, low=0)
    return Scheduler(
        "least-request", (), partial(_none_active, bias), partial(_least_request, d, bias), _answered
    )


class Reports(struct.PyTreeNode):
    """What answers say of each processor, forgotten in time."""

    unit: Array  # [] time, the mean service
    served: Array  # [P]
    failed: Array  # [P]
    busy: Array  # [P] time
    credit: Array  # [P]


def _no_reports(env: Static, params: EnvParams, lanes: Lanes) -> Reports:
    zero = jnp.zeros(env.num_processors, jnp.float32)
    return Reports(mean_service(params, lanes), zero, zero, zero, zero)


def _reported(variables: tuple, memory: Reports, answer: Answer) -> Reports:
    del variables
    m, p, failed = memory, answer.processor, answer.failed.astype(jnp.float32)
    return m.replace(
        served=m.served.at[p].add(1.0 - failed),
        failed=m.failed.at[p].add(failed),
        busy=m.busy.at[p].add(answer.service),
    )


def _client_wrr(
    time_constant: float, penalty: float, variables: tuple, memory: Reports, o: Observation, key: Key
) -> tuple[Array, Reports]:
    del variables, key
    m = memory
    kept = jnp.exp(-o.gap / (time_constant * m.unit))
    span = time_constant * m.unit
    served, failed, utilisation = m.served / span, m.failed / span, m.busy / span
    known = (served > 0) & (utilisation > 0)
    weight = served / jnp.where(known, utilisation + penalty * failed / jnp.where(known, served, 1.0), 1.0)
    median = jnp.nanmedian(jnp.where(known, weight, jnp.nan))
    weight = jnp.where(known, weight, jnp.where(known.any(), median, 1.0))
    action, credit = take_turn(o, weight, m.credit)
    whole = usable(o, weight, 0.0).sum()
    m = m.replace(served=kept * m.served, failed=kept * m.failed, busy=kept * m.busy)
    # Weights change, and with them what one turn is worth: what is owed is kept within one.
    return action, m.replace(credit=jnp.clip(credit, -whole, whole))


def client_wrr(time_constant: float = 333.0, penalty: float = 1.0) -> Scheduler:
    """Take turns in shares of what processors report: served / (utilisation + penalty x failures / served).

    Both per time, and of this dispatcher's own requests: gRPC's client-side weighted Round Robin. One that
    has served nothing yet, or lately, has the median of the others, even if all that it had failed.

    Args:
      time_constant: mean services in which reports are forgotten.
      penalty: of failures.
    """
    checks.leaf("time_constant", time_constant, above=0)
    checks.leaf("penalty", penalty, low=0)
    return Scheduler("client-wrr", (), _no_reports, partial(_client_wrr, time_constant, penalty), _reported)


class Ranks(struct.PyTreeNode):
    """Averages over the answers of each processor."""

    clients: Array  # [] how many dispatchers there are
    in_flight: Array  # [P] int32
    seen: Array  # [P] bool
    response: Array  # [P] time
    service: Array  # [P] time
    queue: Array  # [P] tasks that answers left behind


def _no_ranks(env: Static, params: EnvParams, lanes: Lanes) -> Ranks:
    del params, lanes
    zero = jnp.zeros(env.num_processors, jnp.float32)
    return Ranks(jnp.float32(env.dispatchers), zero.astype(jnp.int32), zero > 0, zero, zero, zero)


def _ranked(alpha: float, variables: tuple, memory: Ranks, answer: Answer) -> Ranks:
    del variables
    m, p = memory, answer.processor
    rate = jnp.where(answer.failed, 0.0, jnp.where(m.seen[p], alpha, 1.0))
    new = {
        "response": answer.latency,
        "service": answer.service,
        "queue": answer.queue_length.astype(jnp.float32),
    }
    followed = {
        name: getattr(m, name).at[p].add(rate * (value - getattr(m, name)[p])) for name, value in new.items()
    }
    seen = m.seen.at[p].set(m.seen[p] | ~answer.failed)
    return m.replace(in_flight=m.in_flight.at[p].add(-1), seen=seen, **followed)


def _c3(variables: tuple, memory: Ranks, o: Observation, key: Key) -> tuple[Array, Ranks]:
    del variables, key
    m, waits = memory, memory.in_flight.astype(jnp.float32)
    queue = 1.0 + waits * m.clients + m.queue
    rank = m.response - m.service + queue**3 * m.service
    # One that has not answered is tried first, the one with fewest requests of these.
    action = cheapest(o, jnp.where(m.seen, rank, waits - 1e20), waits)
    return action, m.replace(in_flight=m.in_flight.at[action].add(1))


def c3(alpha: float = 0.3) -> Scheduler:
    """Take the smallest response - service + (1 + requests in flight x dispatchers + queue)^3 x service.

    The averages are over answers, which tell the queue that they leave behind: C3 (Suresh and others 2015),
    as Elasticsearch's adaptive replica selection has it.

    Args:
      alpha: weight of the newest answer.
    """
    checks.leaf("alpha", alpha, above=0, high=1)
    return Scheduler("c3", (), _no_ranks, _c3, partial(_ranked, alpha))


def _bounded_loads(
    factor: float, variables: tuple, memory: Active, o: Observation, key: Key
) -> tuple[Array, Active]:
    del variables
    number = len(o.speed)
    place = sampled(jnp.ones_like(o.speed), key, ())
    waits = memory.in_flight.astype(jnp.float32)
    bound = jnp.ceil(factor * (waits.sum() + 1.0) / number)
    ahead = ((jnp.arange(number, dtype=jnp.int32) - place) % number).astype(jnp.float32)
    # Where all are at the bound, which those that are down may cause, the next on the ring.
    action = cheapest(o, jnp.where(waits + 1.0 <= bound, ahead, ahead + number))
    return action, memory.replace(in_flight=memory.in_flight.at[action].add(1))


def bounded_loads(factor: float = 1.25) -> Scheduler:
    """Go from a random place on the ring to the first with at most so many times the mean in flight.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018), each task with a key of its
    own.

    Args:
      factor: of the mean, rounded up.
    """
    checks.leaf("factor", factor, low=1)
    return Scheduler(
        "bounded-loads", (), partial(_none_active, None), partial(_bounded_loads, factor), _answered
    )


def _gateway(
    weights: tuple[float, float, float], variables: tuple, memory: Active, o: Observation, key: Key
) -> tuple[Array, Active]:
    del variables
    length, waits = o.queue_length.astype(jnp.float32), memory.in_flight.astype(jnp.float32)
    least, most = usable(o, length, jnp.inf).min(0), usable(o, length, -jnp.inf).max(0)
    scores = (
        jnp.where(most > least, (most - length) / jnp.maximum(most - least, 1.0), 1.0),
        0.5 * jnp.maximum(1.0 - length / 128.0, 0.0),
        jnp.where(waits.max() > 0, (waits.max() - waits) / jnp.maximum(waits.max(), 1.0), 1.0),
    )
    score = sum(weight * one for weight, one in zip(weights, scores, strict=True))
    action = cheapest(o, -jnp.asarray(score), jax.random.uniform(key, o.speed.shape, jnp.float32))
    return action, memory.replace(in_flight=memory.in_flight.at[action].add(1))


def gateway(queue: float = 1.0, load_aware: float = 0.0, active: float = 1.0) -> Scheduler:
    """Take the highest weighted sum of scores from 0 to 1, as gateways of inference servers do.

    Ties go to any. There is no score for a cache, since nothing here has one.

    Args:
      queue: weight of (most - length) / (most - least), of lengths as they are reported.
      load_aware: of (1 - length / 128) / 2.
      active: of (most - in flight) / most, of this dispatcher's own requests.
    """
    for name, weight in (("queue", queue), ("load_aware", load_aware), ("active", active)):
        checks.leaf(name, weight, low=0)
    return Scheduler(
        "gateway",
        (),
        partial(_none_active, None),
        partial(_gateway, (queue, load_aware, active)),
        _answered,
    )
