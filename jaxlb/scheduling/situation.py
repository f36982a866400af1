"""A decision as it is believed to be, free of units; and the workload, in numbers of order one."""

import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import at_processor
from jaxlb.scheduling import belief as beliefs
from jaxlb.scheduling.base import size_at_each
from jaxlb.scheduling.belief import Belief
from jaxlb.scheduling.units import held_in
from jaxlb.stations import capacity
from jaxlb.types import Array, Held, Observation


class Situation(struct.PyTreeNode):
    """A decision, with sizes in mean sizes, speeds in mean speeds, times in mean services, as believed.

    A processor that serves several tasks at a time counts as one that is so many times as fast, but for the
    completion of the task at hand.
    """

    unit: Array  # [...] time
    size: Array  # [...]
    deadline: Array  # [...]
    age: Array  # [...]
    priority: Array  # [...] int32
    speed: Array  # [P, ...]
    wait: Array  # [P, ...]
    completion: Array  # [P, ...] of each choice, if the task is served last
    own: Array | None = None  # [P, ...] of each choice, if nothing else arrives; None: as `completion`
    held: Held | None = None  # the tasks that are there; None: not seen, or the task delays none


def situation(belief: Belief, observation: Observation) -> Situation:
    """Return what is to be decided, after `update`."""
    b, o = belief, observation
    seen = o.completion is not None  # and then all is
    speed, work = (o.speed, o.wait * o.speed) if seen else (beliefs.speeds(b, o), beliefs.backlog(b))
    whole, mean_size = capacity(b.most, speed), b.size * b.first_size
    unit = mean_size / whole.mean(0)
    size, wait = o.size / mean_size, work / whole / unit
    return Situation(
        unit=unit,
        size=size,
        deadline=jnp.clip(o.deadline / unit, 0.0, 1e6),
        age=o.age / unit,
        priority=o.priority,
        speed=whole / whole.mean(0),
        wait=wait,
        completion=wait + size_at_each(o) / speed / unit,
        own=None if o.completion is None else o.completion / unit,
        held=None if o.held is None else held_in(o.held, unit, mean_size),
    )


SHARES = (-3, -1, 1, 3, 5, 7)
"""Sizes, in octaves from the mean, of whose tasks' share of the work networks are told."""


RARE = (0, 2, 4)
"""Sizes, in octaves from the mean, of the share of whose larger tasks networks are told."""


def load(belief: Belief, situation: Situation, gap: Array | None = None) -> Array:
    """Return the load `[...]`, by the mean gap or a given one; 0.6 until more is known, and below 1."""
    b, s = belief, situation
    gap = jnp.maximum(b.gap if gap is None else gap, beliefs.TINY * s.unit)
    number = b.count.astype(jnp.float32)
    known = jnp.minimum(s.unit / gap / s.speed.shape[0], 5.0)
    return jnp.clip((known * number + 12.0) / (number + 20.0), 0.02, 0.985)


def share_of_late(belief: Belief, situation: Situation) -> Array:
    """Return the share `[P, ...]` of tasks whose size is hidden that would end after their deadline."""
    b, s = belief, situation
    assert b.constant is not None  # sizes are hidden
    size, share = (one[:, None] for one in beliefs.law(b))
    constant = at_processor(b.constant, jnp.minimum(s.priority, len(b.constant) - 1))
    late = s.wait + (s.completion - s.wait) * size > s.deadline * (constant + (1.0 - constant) * size)
    return jnp.where(late, share, 0.0).sum(0)


def workload(belief: Belief, situation: Situation) -> dict[str, Array]:
    """Return numbers of order one that say what the workload is like: name -> `[...]`."""
    b, s = belief, situation
    number, lanes = b.count.astype(jnp.float32), s.unit.shape
    gap = jnp.maximum(b.gap, beliefs.TINY * s.unit)
    square = (b.gap_square / s.unit**2) / (gap / s.unit) ** 2
    spread = jnp.sqrt(jnp.maximum(b.log_deadline_square - b.log_deadline**2, 0.0))

    def of_octave(octave: int) -> Array:
        return 2.0 * beliefs.share_of_work(b, jnp.full(lanes, octave, jnp.float32)) - 1.0

    def beyond(octave: int) -> Array:
        tasks = 1.0 - beliefs.share_of_tasks(b, jnp.full(lanes, octave, jnp.float32))
        return 0.4 * (jnp.log(jnp.maximum(tasks, 2e-4)) + 0.5 * octave + 2.0)

    return {
        "load": -jnp.log(1.0 - load(b, s)) - 1.0,
        "lasting load": -jnp.log(1.0 - load(b, s, b.lasting_gap)) - 1.0,
        "spread of sizes": 0.7 * jnp.clip(jnp.log(beliefs.spread_of_sizes(b)) - 1.0, -1.0, 5.0),
        "spread of gaps": jnp.clip(jnp.log(jnp.maximum(square, 1e-3)) - 0.7, -2.0, 5.0),
        "recent rate": jnp.clip(jnp.log(gap / jnp.maximum(b.recent_gap, beliefs.TINY * s.unit)), -3.0, 3.0),
        "deadlines": 0.5 * jnp.clip(b.log_deadline - jnp.log(s.unit), -4.0, 6.0),
        "spread of deadlines": jnp.minimum(spread, 4.0) - 1.0,
        "small tasks": jnp.clip(jnp.log(beliefs.mean_inverse_size(b)), 0.0, 5.0) - 0.7,
        "experience": jnp.full(lanes, 0.5 * (jnp.log(jnp.clip(number, 1.0, 2000.0)) - 6.0)),
        "age": jnp.log1p(jnp.minimum(s.age, 1e3)),
        "sizes visible": jnp.full(lanes, 1.0 if b.size_visible else -1.0, jnp.float32),
        "waits visible": jnp.full(lanes, 1.0 if b.wait_visible else -1.0, jnp.float32),
        "error of backlogs": jnp.minimum(b.measured_error, b.reckoned_error),
        "spread of log sizes": jnp.sqrt(jnp.maximum(b.log_size_square - b.log_size**2, 0.0)) - 1.0,
        **{f"work up to 2^{octave}": of_octave(octave) for octave in SHARES},
        **{f"tasks beyond 2^{octave}": beyond(octave) for octave in RARE},
    }
