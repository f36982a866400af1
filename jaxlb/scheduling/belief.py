"""What a scheduler learns of its system while it runs, in constant space: workload, backlogs, speeds.

All of it comes from observations, but for how a deadline hangs on a size that is not seen, which is agreed.
So it has no unit of its own: sizes are measured against the first one, times against the mean service so far.
Averages are plain ones at first, and forget later.
"""

import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import processor_index
from jaxlb.scheduling.base import size_at_each
from jaxlb.types import Array, EnvParams, Lanes, Observation, Static
from jaxlb.workload import deadline

OCTAVES = tuple(float(octave) for octave in range(-16, 25))
"""Sizes that the histogram knows: these powers of two of the first size."""
FORGETTING, GAP_FORGETTING, RECENT, LASTING = 1 / 2000, 1 / 500, 1 / 30, 1 / 5000
"""Weights of the newest task in averages: of sizes, of gaps and deadlines, of gaps lately, and lastingly."""
TINY = 1e-6
_SPEED_MEMORY, _SPEED_PRIOR = 100.0, 1.0
"""Mean services that estimates of speed remember, and for which the nominal speed counts beside them."""


class Belief(struct.PyTreeNode):
    """Memory of a scheduler. Work is in the unit of observations, sizes in first sizes."""

    size_visible: bool = struct.field(pytree_node=False)
    wait_visible: bool = struct.field(pytree_node=False)
    most: float | tuple[float, ...] = struct.field(pytree_node=False)  # as stations have it
    alone: bool = struct.field(pytree_node=False)  # whether there is one dispatcher
    delays: bool = struct.field(pytree_node=False)  # whether a task may delay those that were there before it
    count: Array  # int32, decisions seen
    first_size: Array  # [...] work
    share: Array  # [K, ...] of tasks that are at most as large as each octave
    work: Array  # [K, ...] mean size of these tasks, others counting 0
    size: Array  # [...] mean
    size_square: Array  # [...] mean
    inverse_size: Array  # [...] mean
    log_size: Array  # [...] mean
    log_size_square: Array  # [...] mean
    gap: Array  # [...] time, mean
    gap_square: Array  # [...] mean
    recent_gap: Array  # [...] time, mean of the latest
    lasting_gap: Array  # [...] time, mean in the long run
    log_deadline: Array  # [...] mean
    log_deadline_square: Array  # [...] mean
    weight: Array  # [...] mean weight of a violation
    measured: Array  # [P, ...] work: as last measured, and what is known to have happened since
    given: Array  # [P, ...] work that the last decision assigned, 0 before the next
    reckoned: Array  # [P, ...] work: by the account of own decisions alone
    measured_error: Array  # [...] of the first, as forecasts of measurements, mean
    reckoned_error: Array  # [...] of the second
    age: Array  # [...] time of the last observation
    assigned: Array  # [P, ...] work, of the last observation
    base: Array  # [P, ...] work at the last measurement
    elapsed: Array  # [...] time since then
    spoiled: Array  # [P, ...] bool, whether what was served since is not known
    served: Array  # [P, ...] work that was seen to be served, forgets
    could_serve: Array  # [P, ...] work that nominal speeds would have served then
    length: Array | None  # [P, ...] int32, tasks when the last one came; None where sizes are visible
    serving: Array | None  # [P, ...] time for which the first of them had been served; likewise
    constant: Array | None  # [C, ...] part of the mean size's deadline that all sizes have; likewise


def start(env: Static, params: EnvParams, lanes: Lanes) -> Belief:
    """Return the belief before anything was seen."""
    zero = jnp.zeros(lanes, jnp.float32)
    one = zero + 1.0
    each = jnp.zeros((params.speed.shape[0], *lanes), jnp.float32)
    # When the first task comes, there is no other size to know: all have its own.
    at_most = (_along(zero) >= 0).astype(jnp.float32) * one
    return Belief(
        size_visible=env.size_visible,
        wait_visible=env.wait_visible,
        most=env.station.most,
        alone=env.dispatchers == 1,
        delays=env.station.delays,
        count=jnp.int32(0),
        first_size=one,
        share=at_most,
        work=at_most,
        size=one,
        size_square=one,
        inverse_size=one,
        measured=each,
        given=each,
        reckoned=each,
        assigned=each,
        base=each,
        spoiled=each > 0,
        served=each,
        could_serve=each,
        length=None if env.size_visible else each.astype(jnp.int32),
        serving=None if env.size_visible else each,
        constant=None if env.size_visible else _constant(params, zero),
        **dict.fromkeys(
            (
                *("log_size", "log_size_square", "gap", "gap_square", "recent_gap", "lasting_gap"),
                *("log_deadline", "log_deadline_square", "weight", "measured_error", "reckoned_error"),
                *("age", "elapsed"),
            ),
            zero,
        ),
    )


def _constant(params: EnvParams, lanes: Array) -> Array:
    """Return which part of the deadline of a task of mean size does not hang on its size, by class."""
    size = lanes + params.size.mean()
    classes = [jnp.full(lanes.shape, index, jnp.int32) for index in range(len(params.class_slack))]
    return jnp.stack(
        [deadline(params, lanes, one) / jnp.maximum(deadline(params, size, one), 1e-20) for one in classes]
    )


def _along(lanes: Array) -> Array:
    return jnp.asarray(OCTAVES, jnp.float32).reshape(-1, *(1,) * lanes.ndim)


def update(belief: Belief, observation: Observation, weight: Array) -> Belief:
    """Learn from an observation, before a decision.

    Args:
      belief: after the last decision.
      observation: as the environment gives it.
      weight: `[...]` of a violation by the task that has arrived.
    """
    b, o = belief, observation
    number = b.count.astype(jnp.float32) + 1.0

    def followed(mean: Array, new: Array, rate: float) -> Array:
        return mean + jnp.maximum(1.0 / number, rate) * (new - mean)

    log_deadline = jnp.log(jnp.clip(o.deadline, 1e-20, 1e20))
    b = b.replace(
        count=b.count + 1,
        first_size=jnp.where(b.count == 0, o.size, b.first_size),
        gap=followed(b.gap, o.gap, GAP_FORGETTING),
        gap_square=followed(b.gap_square, o.gap**2, GAP_FORGETTING),
        recent_gap=followed(b.recent_gap, o.gap, RECENT),
        lasting_gap=followed(b.lasting_gap, o.gap, LASTING),
        log_deadline=followed(b.log_deadline, log_deadline, GAP_FORGETTING),
        log_deadline_square=followed(b.log_deadline_square, log_deadline**2, GAP_FORGETTING),
        weight=followed(b.weight, weight, GAP_FORGETTING),
    )
    return _measured(_departed(b, o), o, number)


def _departed(belief: Belief, o: Observation) -> Belief:
    """Learn the law of hidden sizes, whose mean is observed, from how long the first in line is served."""
    b, serving = belief, belief.serving
    if b.length is None or serving is None:
        return b
    here = b.length + (b.given > 0).astype(jnp.int32)
    left = jnp.where(o.age <= 0, jnp.maximum(here - o.queue_length, 0), 0).astype(jnp.float32)
    # When within the gap they left is not known: evenly, but if none is left, hardly later than they had to.
    part, speed = o.gap / (left + 0.5), speeds(b, o)
    part = jnp.where(o.queue_length > 0, part, jnp.minimum(part, o.size / speed))
    size = jnp.concatenate([serving + part, part]) * jnp.concatenate([speed, speed])
    number, first = left.sum(0), (left > 0).astype(jnp.float32)
    share = jnp.concatenate([first, left - first]) / jnp.maximum(number, 1.0)
    rate = jnp.minimum(number * jnp.maximum(1.0 / b.count.astype(jnp.float32), FORGETTING), 1.0)
    b = _learned_sizes(b, size, share, rate).replace(size=o.size / b.first_size)
    serving = jnp.where(left > 0, 0.5 * part, serving + o.gap)
    known = (o.queue_length > 0) & (o.age <= 0)
    return b.replace(length=o.queue_length, serving=jnp.where(known, serving, 0.0))


def sized(belief: Belief, size: Array) -> Belief:
    """Learn the size `[...]` of a task that is assigned: what is known does not hang on the one at hand."""
    if not belief.size_visible:
        return belief
    rate = jnp.maximum(1.0 / belief.count.astype(jnp.float32), FORGETTING)
    return _learned_sizes(belief, size[None], jnp.ones_like(size[None]), rate)


def _learned_sizes(belief: Belief, size: Array, share: Array, rate: Array) -> Belief:
    """Let averages follow sizes `[R, ...]` in these shares, by the rate `[...]`."""
    b, size = belief, jnp.clip(size / belief.first_size, 2.0**-40, 2.0**40)
    log_size = jnp.log(size)
    at_most = (jnp.log2(size) <= _along(size)).astype(jnp.float32)
    new = {
        "share": at_most,
        "work": at_most * size,
        "size": size,
        "size_square": size**2,
        "inverse_size": 1.0 / size,
        "log_size": log_size,
        "log_size_square": log_size**2,
    }
    for name, value in new.items():
        mean = getattr(b, name)
        b = b.replace(**{name: mean + rate * ((share * value).sum(-size.ndim) - mean)})
    return b


def speeds(belief: Belief, observation: Observation) -> Array:
    """Return the speeds `[P, ...]` at which processors are believed to serve."""
    b, nominal = belief, observation.speed
    if not b.wait_visible:
        return nominal
    prior = _SPEED_PRIOR * b.size * b.first_size * nominal / nominal.mean(0)
    ratio = jnp.clip((b.served + prior) / (b.could_serve + prior), 0.1, 10.0)
    # Where measurements cannot be trusted, neither can what follows from two of them.
    trust = jnp.clip(1.5 - b.measured_error / 0.2, 0.0, 1.0)
    return nominal * ratio**trust


def backlog(belief: Belief) -> Array:
    """Return the work `[P, ...]` that processors are believed to hold."""
    b = belief
    if not b.wait_visible:
        # Others send tasks too: then what is counted tells more than one's own account.
        return b.reckoned if b.size_visible and b.alone else b.measured + b.given
    trusted = (b.reckoned_error < 0.8 * b.measured_error) & (b.count > 20)
    return jnp.where(trusted, b.reckoned, b.measured + b.given)


def _measured(belief: Belief, o: Observation, number: Array) -> Belief:
    """Bring backlogs up to this arrival, by what is measured and by what must have been served."""
    b, speed = belief, speeds(belief, o)
    unit = mean_service(b, o)
    served = o.gap * speed
    # Decisions of others show in the work that was assigned since the measurement.
    newer = ~(o.assigned > 0).any(0)
    wait = o.wait if b.serving is None or b.wait_visible else o.wait + _longer(b, o, b.serving)
    before = jnp.where(newer, wait * o.speed, b.measured + o.assigned - b.assigned)
    measured = jnp.maximum(before - jnp.where(newer, o.age, o.gap) * speed, 0.0)
    forecast, held = jnp.maximum(b.measured + b.given - served, 0.0), b.base + b.assigned + b.given
    # Where others decide, fresh figures do not say who got the last task.
    known_to_get = (b.given <= 0) | (b.age > 0)
    b = b.replace(age=o.age, assigned=o.assigned, given=jnp.zeros_like(b.given))
    reckoned = jnp.maximum(b.reckoned - served, 0.0)
    now = jnp.maximum(o.wait * o.speed - o.age * speed, 0.0)
    if not b.wait_visible:
        # A length says little of the work in a queue, but bounds an account that is wrong: nothing is none,
        # and many tasks are not next to nothing.
        length = o.queue_length.astype(jnp.float32)
        least = 0.2 * jnp.maximum(length - 3.0, 0.0) * b.size * b.first_size - o.age * speed
        empty = (o.queue_length == 0) & (o.age <= 0)
        return b.replace(measured=measured, reckoned=jnp.where(empty, 0.0, jnp.maximum(reckoned, least)))
    new = (o.age < o.gap) | (o.age <= 0)
    mean_size = b.size * b.first_size

    known = (~b.spoiled).astype(jnp.float32)

    def error(expected: Array) -> Array:
        off = jnp.abs(jnp.log1p(8.0 * expected / mean_size) - jnp.log1p(8.0 * now / mean_size))
        return (off * known).sum(0) / jnp.maximum(known.sum(0), 1.0)

    rate = jnp.where(new & (known > 0).any(0), jnp.maximum(1.0 / number, 1 / 200), 0.0)
    elapsed = b.elapsed + o.gap - o.age
    seen = o.wait * o.speed
    told = new & ~b.spoiled & (seen > 0) & (elapsed > 0) & known_to_get & (seen <= held)
    kept = jnp.exp(-o.gap / unit / _SPEED_MEMORY)
    return b.replace(
        measured=measured,
        reckoned=jnp.where(new, reckoned + 0.01 * (now - reckoned), reckoned),
        measured_error=b.measured_error + rate * (error(forecast) - b.measured_error),
        reckoned_error=b.reckoned_error + rate * (error(reckoned) - b.reckoned_error),
        base=jnp.where(new, seen, b.base),
        elapsed=jnp.where(new, o.age, b.elapsed + o.gap),
        spoiled=jnp.where(new, (now <= 0) & (o.age > 0), b.spoiled | (measured <= 0)),
        served=b.served * kept + jnp.where(told, held - seen, 0.0),
        could_serve=b.could_serve * kept + jnp.where(told, o.speed * elapsed, 0.0),
    )


def _longer(belief: Belief, o: Observation, serving: Array) -> Array:
    """Return how much longer than a mean service `[P, ...]` the task that is served is expected to take."""
    b, mean = belief, _mean(belief)
    done = serving * o.speed / b.first_size / mean
    octave = jnp.log2(jnp.maximum(done, 2.0**-20))
    number, few = jnp.minimum(b.count.astype(jnp.float32), 1.0 / FORGETTING), 2.0
    tasks, work = ((each[-1] - _at(b, each[:, None], octave)) for each in (b.share, b.work))
    size = (number * work / mean + few * (done + 1.0)) / (number * tasks + few)
    longer = jnp.maximum(size - done, 0.1) - 1.0
    return jnp.where(o.queue_length > 0, longer * b.size * b.first_size / o.speed, 0.0)


def decided(belief: Belief, observation: Observation, action: Array) -> Belief:
    """Learn which processor `action` `[...]` got the task."""
    b, o = belief, observation
    chosen = processor_index(o.speed) == action
    work = jnp.where(chosen, size_at_each(o), 0.0)
    return b.replace(
        given=work,
        reckoned=b.reckoned + work,
        spoiled=b.spoiled if b.size_visible else b.spoiled | chosen,
    )


def _mean(belief: Belief) -> Array:
    """Return the mean `[...]` of the sizes whose law is learned, which is not told where they are hidden."""
    return belief.size if belief.size_visible else belief.work[-1]


def spread_of_sizes(belief: Belief) -> Array:
    """Return the mean square of sizes, relative to their squared mean."""
    return belief.size_square / _mean(belief) ** 2


def mean_inverse_size(belief: Belief) -> Array:
    """Return the mean of 1 / size, in inverse mean sizes."""
    return belief.inverse_size * _mean(belief)


def mean_service(belief: Belief, observation: Observation) -> Array:
    """Return the time `[...]` that a task of mean size takes at mean speed, as far as is known."""
    return belief.size * belief.first_size / observation.speed.mean(0)


def share_of_work(belief: Belief, octave: Array) -> Array:
    """Return the share `[...]` of all work in tasks of at most 2^octave mean sizes."""
    return _at(belief, belief.work, octave) / _mean(belief)


def share_of_tasks(belief: Belief, octave: Array) -> Array:
    """Return the share `[...]` of all tasks of at most 2^octave mean sizes."""
    return _at(belief, belief.share, octave)


def size_by_work(belief: Belief, share: float) -> Array:
    """Return the size `[...]`, in mean sizes, up to which is this share of all work; to an octave."""
    below = (belief.work < share * belief.work[-1]).sum(0).astype(jnp.float32)
    return jnp.exp2(OCTAVES[0] - 0.5 + below) / _mean(belief)


def law(belief: Belief) -> tuple[Array, Array]:
    """Return sizes `[K, ...]`, in mean sizes, and the share of tasks of each; to an octave."""
    size = jnp.exp2(_along(belief.first_size) - 0.5) / _mean(belief)
    return size, jnp.diff(belief.share, axis=0, prepend=0.0)


def _at(belief: Belief, histogram: Array, octave: Array) -> Array:
    """Look up a histogram; between two octaves, in proportion."""
    place = jnp.clip(octave + jnp.log2(_mean(belief)), OCTAVES[0], OCTAVES[-1])
    return (jnp.clip(1.0 - jnp.abs(place - _along(octave)), 0.0, 1.0) * histogram).sum(0)
