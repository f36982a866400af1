"""Workloads of which every lane has its own kind, for training on many systems at once."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.protocols import SizeLaw
from jaxlb.types import Array, Key, Lanes, Scalar


def _picked(which: Array, each: Sequence[Array]) -> Array:
    """Take, in each lane, the entry of number `which`."""
    found = each[0]
    for index, one in enumerate(each[1:], 1):
        found = jnp.where(which == index, one, found)
    return found


class SizesByLane(struct.PyTreeNode):
    """A size law for each lane, one of several, all brought to mean 1."""

    laws: tuple[SizeLaw, ...]
    which: Array  # [N] int32

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        for law in self.laws:
            law.check()

    def mean(self) -> Array:
        """Return the expected size."""
        return jnp.ones_like(self.which, jnp.float32)

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return _picked(self.which, [law.second_moment() / law.mean() ** 2 for law in self.laws])

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        return _picked(self.which, [law.inverse_survival(uniform) / law.mean() for law in self.laws])


class ArrivalsByLane(struct.PyTreeNode):
    """An arrival process for each lane, one of several."""

    processes: tuple[Any, ...]  # arrival processes
    which: Array  # [N] int32

    @property
    def extra_words(self) -> int:
        """As many as the process that needs most."""
        return max(process.extra_words for process in self.processes)

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        for process in self.processes:
            process.check()

    def start(self, key: Key, lanes: Lanes) -> tuple[Any, ...]:
        """Draw the stationary state of every process; the key is consumed."""
        keys = jax.random.split(key, len(self.processes))
        return tuple(process.start(key, lanes) for process, key in zip(self.processes, keys, strict=True))

    def gap(self, state: tuple, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, tuple]:
        """Return the next gap and the states after it."""
        pairs = zip(self.processes, state, strict=True)
        gaps, after = zip(*(one.gap(own, rate, uniform, extra) for one, own in pairs), strict=True)
        return _picked(self.which, gaps), after

    def _hooked(self, hook: str, state: tuple, value: Array, *more: Array) -> Array:
        pairs = zip(self.processes, state, strict=True)
        return _picked(self.which, [getattr(one, hook)(own, value, *more) for one, own in pairs])

    def size(self, state: tuple, drawn: Array, extra: Array) -> Array:
        """Return the size of the task that just arrived, given what the size law drew."""
        return self._hooked("size", state, drawn, extra)

    def priority(self, state: tuple, drawn: Array) -> Array:
        """Return its priority, given what the class probabilities drew."""
        return self._hooked("priority", state, drawn)

    def deadline(self, state: tuple, computed: Array) -> Array:
        """Return its deadline, given what size and class slack make it."""
        return self._hooked("deadline", state, computed)
