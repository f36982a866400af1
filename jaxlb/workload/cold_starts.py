"""Cold starts: processors that get ready before they serve a task that finds them idle."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import compensated_add, least
from jaxlb.random import random_words, uniform
from jaxlb.types import Array, Key, Lanes, Scalar
from jaxlb.workload.speeds import Phase, one_number, true_or_false

_COLD, _STARTING, _WARM = 0, 1, 2
"""Numbers of the phases of `ColdStarts`."""


class ColdStarts(struct.PyTreeNode):
    """Processors that get ready once a task comes to them while they are idle, before they serve it.

    Schedulers see them up, and their speeds as they are when they are warm.

    Attributes:
      start_time: mean time that getting ready takes.
      varies: whether it is exponential; if not, it is its mean.
    """

    start_time: Scalar = 1.0
    varies: bool = struct.field(pytree_node=False, default=True)

    drains: ClassVar[bool] = False
    interrupted: ClassVar[str] = "resumed"

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter; values under a trace pass."""
        del num_processors
        one_number("start_time", self.start_time, above=0)
        true_or_false(self, "varies")

    def mean_stay(self) -> Array:
        """Return the mean time of a start."""
        return jnp.asarray(self.start_time, jnp.float32)

    def mean(self) -> Array:
        """Return 1, since a processor that has always work never starts."""
        return jnp.ones(1, jnp.float32)

    def mean_factor(self) -> Array:
        """Return 1."""
        return self.mean()

    def start(self, key: Key, num_processors: int, lanes: Lanes) -> Phase:
        """Return cold processors; the key is consumed."""
        del key
        zero = jnp.zeros((num_processors, *lanes), jnp.float32)
        return Phase(zero.astype(jnp.int32), zero, zero)

    def factor_of(self, phase: Phase, num_processors: int) -> Array:
        """Return the present factors `[P, ...]`: 0 of those that get ready."""
        del num_processors
        return (phase.number != _STARTING).astype(jnp.float32)

    def takes_tasks(self, phase: Phase, num_processors: int) -> Array:
        """Return that all take tasks."""
        del num_processors
        return jnp.ones_like(phase.rest, bool)

    def until_change(self, phase: Phase, busy: Array) -> Array:
        """Return the time `[...]` until one begins to start, is ready, or is idle."""
        cold = jnp.where(busy > 0, 0.0, jnp.inf)
        of_phase = jnp.where(phase.number == _STARTING, phase.rest, busy)
        return least(jnp.where(phase.number == _COLD, cold, of_phase))

    def advance(self, phase: Phase, time: Array, busy: Array, key: Key) -> Phase:
        """Let `time` `[...]` pass, at most until a change; the key is consumed."""
        words = [random_words(own, time.shape)[0] for own in jax.random.split(key, len(busy))]
        drawn = jnp.stack([uniform(word >> 9, 23) for word in words])
        duration = self.start_time * (-jnp.log(drawn) if self.varies else jnp.ones_like(drawn))
        begins = (phase.number == _COLD) & (busy > 0)
        ready = (phase.number == _STARTING) & (time >= phase.rest)
        idle = (phase.number == _WARM) & (time >= busy)
        rest, error = compensated_add(phase.rest, phase.error, -jnp.broadcast_to(time, busy.shape))
        goes_on = (phase.number == _STARTING) & ~ready
        number = jnp.where(begins, _STARTING, jnp.where(ready, _WARM, jnp.where(idle, _COLD, phase.number)))
        return Phase(
            number=number.astype(jnp.int32),
            rest=jnp.where(begins, duration, jnp.where(goes_on, rest, 0.0)),
            error=jnp.where(goes_on, error, 0.0),
        )
