"""Speeds that change: processors that fail and are repaired, slow down, or follow a record.

A speed process multiplies the speed of each processor by a factor from 0, which is down, to 1. It goes on
whatever the tasks do, so all schedulers meet the same speeds. Work in service waits while a processor is down
and is then resumed, unless it is to begin again or is lost.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import checks, stations
from jaxlb.numerics import at_processor, compensated_add, first_smallest, least, processor_index
from jaxlb.random import random_words, uniform
from jaxlb.types import Array, EnvParams, Key, Lanes, Scalar

SLOWEST = 1e-9
"""The factor with which a processor that is down is reckoned: in the longest time it does no work."""


class Phase(struct.PyTreeNode):
    """Where each processor is in its ring of phases. P is 1 where all are in the same."""

    number: Array  # [P, ...] int32
    rest: Array  # [P, ...] time that the phase still takes
    error: Array  # [P, ...] time, what rounding has taken from that


class _Ring(struct.PyTreeNode, abc.ABC, kw_only=True):
    """What all speed processes here share: a ring of phases, each with a factor and a mean duration."""

    varies: bool = struct.field(pytree_node=False, default=True)
    together: bool = struct.field(pytree_node=False, default=False)
    working: bool = struct.field(pytree_node=False, default=False)
    drains: bool = struct.field(pytree_node=False, default=False)
    interrupted: str = struct.field(pytree_node=False, default="resumed")

    @abc.abstractmethod
    def phases(self) -> tuple[Array, Array]:
        """Return factors `[M, P or 1]` and mean durations `[M]`."""

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter; values under a trace pass."""
        del num_processors
        true_or_false(self, "varies", "together", "working", "drains")
        checks.known("interrupted", self.interrupted, stations.INTERRUPTED)
        if self.drains and self.interrupted != "resumed":
            raise ValueError("drains = True: must be False where tasks are interrupted")
        if self.together and self.working:
            raise ValueError("together = True: must be False where time passes only while one has work")

    def mean_stay(self) -> Array:
        """Return the mean time between two changes of a processor's factor."""
        return self.phases()[1].mean()

    def mean(self) -> Array:
        """Return the mean factor in the long run, `[P]` or `[1]`, 0 while a processor takes no tasks."""
        factor, time = self.phases()
        return (factor * time[:, None]).sum(0) / time.sum()

    def mean_factor(self) -> Array:
        """Return the mean of `factor_of` in the long run, `[P]` or `[1]`."""
        factor, time = self.phases()
        return (self._of_work(factor) * time[:, None]).sum(0) / time.sum()

    def start(self, key: Key, num_processors: int, lanes: Lanes) -> Phase:
        """Draw where processors are at any time; the key is consumed."""
        shape = (1 if self.together else num_processors, *lanes)
        words = [random_words(own, lanes) for own in jax.random.split(key, shape[0])]
        first, second = (jnp.stack([uniform(pair[which] >> 9, 23) for pair in words]) for which in (0, 1))
        _, time = self.phases()
        ends = jnp.cumsum(time) / time.sum()
        number = (first >= ends.reshape(-1, *(1,) * len(shape))).sum(0, dtype=jnp.int32)
        number = jnp.minimum(number, len(time) - 1)
        # The rest of an exponential duration is as long as the whole.
        rest = -jnp.log(second) if self.varies else second
        return Phase(number, rest * at_processor(time, number), jnp.zeros_like(rest))

    def factor_of(self, phase: Phase, num_processors: int) -> Array:
        """Return the present factor of each processor's speed, `[P, ...]`."""
        return self._of_work(self._of_phase(phase, num_processors))

    def takes_tasks(self, phase: Phase, num_processors: int) -> Array:
        """Return which processors take tasks now, bool `[P, ...]`: those that are not down."""
        return self._of_phase(phase, num_processors) > 0

    def _of_work(self, factor: Array) -> Array:
        """Return at what factors of their speed processors work."""
        return jnp.where(factor > 0, factor, 1.0) if self.drains else factor

    def _of_phase(self, phase: Phase, num_processors: int) -> Array:
        factor, _ = self.phases()
        width = factor.shape[1]
        number = jnp.broadcast_to(phase.number, (num_processors, *phase.number.shape[1:]))
        place = number * width + (processor_index(number) if width > 1 else 0)
        return at_processor(factor.reshape(-1), place)

    def until_change(self, phase: Phase, busy: Array) -> Array:
        """Return a time `[...]` in which no speed changes; after `busy` `[P, ...]` time, all is done."""
        return least(jnp.where(self._passes(phase, busy), phase.rest, jnp.inf))

    def advance(self, phase: Phase, time: Array, busy: Array, key: Key) -> Phase:
        """Let `time` `[...]` pass, at most until a change; the key is consumed.

        One processor goes to its next phase; of several whose phase ends, the others follow after no time.
        """
        passes, (_, mean) = self._passes(phase, busy), self.phases()
        spent = jnp.where(passes, time if not self.working else self._spent(phase, busy, time), 0.0)
        ends = passes & (spent >= phase.rest)
        rest, error = compensated_add(phase.rest, phase.error, -spent)
        rest = jnp.where(ends, 0.0, rest)
        who = first_smallest(jnp.where(ends, 0.0, 1.0))
        changes = ends & (processor_index(rest) == who)
        number = jnp.where(phase.number + 1 < len(mean), phase.number + 1, 0)
        word, _ = random_words(key, time.shape)
        duration = -jnp.log(uniform(word >> 9, 23)) if self.varies else jnp.ones_like(time)
        duration = duration * at_processor(mean, at_processor(number, who))
        return Phase(
            number=jnp.where(changes, number, phase.number),
            rest=jnp.where(changes, duration, rest),
            error=jnp.where(ends, 0.0, error),
        )

    def _passes(self, phase: Phase, busy: Array) -> Array:
        """Return where time passes for the phase: everywhere, or where there is work or none is done."""
        if not self.working:
            return jnp.ones_like(phase.rest, bool)
        return (busy > 0) | ~self.takes_tasks(phase, len(busy))

    def _spent(self, phase: Phase, busy: Array, time: Array) -> Array:
        """Return how much of `time` passes for the phase: until a processor has no more work."""
        takes = self.takes_tasks(phase, len(busy))
        return jnp.where(takes, jnp.minimum(time, busy), time)


class Ring(_Ring):
    """Each processor goes through a ring of phases, each with a factor of its speed and a duration.

    Processors begin independently of each other, each as it is found at any time, and in lanes of their own.
    With durations that do not vary this is a record, or a day, that repeats itself.

    Attributes:
      factor: of the speed, in each phase, from 0 to 1, not all 0; `[M]`, or `[M, P]` of each processor.
      time: mean duration of each phase, `[M]`.
      varies: whether durations are exponential; if not, they are what they are on average.
      together: whether all processors are always in the same phase.
      working: whether time passes only while a processor has work, in phases in which it does some.
      drains: whether a processor in a phase of factor 0 finishes the tasks that it has, at its own speed, and
        only takes no new ones.
      interrupted: what becomes of a task in service when its processor goes to a factor of 0: it is "resumed"
        afterwards, "repeated" from its begin, or "lost"; or all its tasks are "handed-over" to others, one
        after the other to where least is to be done, when the next task arrives.
    """

    factor: Any = (1.0, 0.0)
    time: Any = (49.0, 1.0)

    def __post_init__(self) -> None:
        """Make one leaf of each list."""
        for name in ("factor", "time"):
            given = getattr(self, name)
            if isinstance(given, (list, tuple)) and not checks.traced(given):
                try:
                    object.__setattr__(self, name, np.asarray(given, np.float32))
                except (TypeError, ValueError):
                    raise ValueError(
                        f"{name} = {checks.shown(given)}: must be a number for each phase, or a row"
                    ) from None

    def phases(self) -> tuple[Array, Array]:
        """Return factors `[M, P or 1]` and mean durations `[M]`."""
        factor = jnp.asarray(self.factor, jnp.float32)
        return factor.reshape(len(factor), -1), jnp.asarray(self.time, jnp.float32)

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter; values under a trace pass."""
        if checks.traced((self.factor, self.time)):
            return
        checks.leaf("factor", self.factor, low=0, high=1)
        checks.leaf("time", self.time, above=0)
        factor, time = np.shape(self.factor), np.shape(self.time)
        if len(time) != 1 or 0 in time or factor not in (time, (*time, num_processors)):
            raise ValueError(
                f"factor has shape {factor}, time {time}: must be [M] both, one for each phase, or factor "
                f"[M, {num_processors}], one for each phase and processor"
            )
        if not np.all(np.any(np.asarray(self.factor) > 0, 0)):
            raise ValueError("factor = 0 in all phases: must be above 0 in one, or a processor never works")
        super().check(num_processors)


class Failing(_Ring):
    """Processors that are up for a time, down for a time, and so on.

    Attributes:
      up_time: mean.
      down_time: mean.
      phases_up: so many exponential durations, one after the other, make one: 1 is exponential, more vary
        less (Erlang's law).
      phases_down: the same for the time that a processor is down.
      varies: whether durations are random; if not, they are their means.
      together: whether all processors fail at the same times.
      working: whether a processor fails only while it has work, after so much time with work.
      drains: whether a processor that is down finishes the tasks that it has, and only takes no new ones.
      interrupted: what becomes of a task in service when its processor fails, as in `Ring`.
    """

    up_time: Scalar = 49.0
    down_time: Scalar = 1.0
    phases_up: int = struct.field(pytree_node=False, default=1)
    phases_down: int = struct.field(pytree_node=False, default=1)

    def phases(self) -> tuple[Array, Array]:
        """Return factors and mean durations."""
        parts = (1.0, self.up_time, self.phases_up), (0.0, self.down_time, self.phases_down)
        return _in_parts(parts)

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter; values under a trace pass."""
        for name in ("up_time", "down_time"):
            one_number(name, getattr(self, name), above=0)
        for name in ("phases_up", "phases_down"):
            checks.at_least(name, getattr(self, name), 1)
        super().check(num_processors)


class Throttling(_Ring):
    """Processors that are slowed down from time to time, to a share of their speed.

    Attributes:
      slow_factor: of the speed, while slow.
      fast_time: mean time at full speed.
      slow_time: mean time while slow.
      varies: whether durations are exponential; if not, they are their means.
      together: whether all processors are slow at the same times.
      working: whether time passes only while a processor has work.
      drains: of no effect while `slow_factor` is above 0; neither is `interrupted`.
    """

    slow_factor: Scalar = 0.3
    fast_time: Scalar = 100.0
    slow_time: Scalar = 20.0

    def phases(self) -> tuple[Array, Array]:
        """Return factors and mean durations."""
        return _in_parts(((1.0, self.fast_time, 1), (self.slow_factor, self.slow_time, 1)))

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter; values under a trace pass."""
        one_number("slow_factor", self.slow_factor, low=0, high=1)
        for name in ("fast_time", "slow_time"):
            one_number(name, getattr(self, name), above=0)
        super().check(num_processors)


def long_run(params: EnvParams) -> EnvParams:
    """Return the parameters with the speeds that there are in the long run, which do not change."""
    if params.speeds is None:
        return params
    return _constant(params, params.speeds.mean())


def of_service(params: EnvParams) -> EnvParams:
    """Return the parameters with the mean speeds at which processors serve, which do not change.

    They are those of the long run, but for processors that serve on while they take no tasks.
    """
    return params if params.speeds is None else _constant(params, params.speeds.mean_factor())


def _constant(params: EnvParams, factor: Array) -> EnvParams:
    factor = factor.reshape(-1, *(1,) * (params.speed.ndim - 1))
    return params.replace(speed=params.speed * factor, speeds=None)


def at_present(params: EnvParams, state: Any) -> tuple[EnvParams, Array | None]:
    """Return the parameters with the speeds of a moment, and who takes tasks.

    A processor that does no work has its long-run speed.
    """
    if params.speeds is None:
        return params, None
    factor = params.speeds.factor_of(state, len(params.speed))
    speed = jnp.where(factor > 0, params.speed * factor, long_run(params).speed)
    return params.replace(speed=speed, speeds=None), params.speeds.takes_tasks(state, len(params.speed))


def one_number(name: str, value: Any, **bounds: Any) -> None:
    """Raise ValueError unless it is one number inside the bounds."""
    if np.ndim(value):
        raise ValueError(f"{name} = {checks.shown(value)}: must be one number")
    checks.leaf(name, value, **bounds)


def true_or_false(process: Any, *names: str) -> None:
    """Raise ValueError unless the fields of these names are True or False."""
    for name in names:
        if not isinstance(getattr(process, name), bool):
            raise ValueError(f"{name} = {getattr(process, name)!r}: must be True or False")


def _in_parts(parts: Sequence[tuple[Scalar, Scalar, int]]) -> tuple[Array, Array]:
    """Return factors and durations of phases, given a factor, a duration and a number of parts each."""
    each = [(factor, time / number) for factor, time, number in parts for _ in range(number)]
    factor, time = (jnp.stack([jnp.float32(one) for one in column]) for column in zip(*each, strict=True))
    return factor[:, None], time
