"""What workloads are made of, as contracts: arrivals, sizes, speeds that change. No logic."""

from typing import Any, Protocol, runtime_checkable

from jaxlb.types import Array, Key, Lanes, Scalar


@runtime_checkable
class ArrivalProcess(Protocol):
    """Makes gaps, and may have a part in the tasks.

    A dataclass whose fields are its parameters, and a pytree.
    """

    extra_words: int  # random words a task beyond the two that every task gets

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        ...

    def start(self, key: Key, lanes: Lanes) -> Any:
        """Draw the stationary state before the first arrival; the key is consumed."""
        ...

    def gap(self, state: Any, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Any]:
        """Return the next gap `[...]` and the state after it."""
        ...

    def size(self, state: Any, drawn: Array, extra: Array) -> Array:
        """Return the size of the task that just arrived, given what the size law drew."""
        ...

    def priority(self, state: Any, drawn: Array) -> Array:
        """Return its priority, given what the class probabilities drew."""
        ...

    def deadline(self, state: Any, computed: Array) -> Array:
        """Return its deadline, given what size and class slack make it."""
        ...


@runtime_checkable
class SpeedProcess(Protocol):
    """Makes the factors, from 0 to 1, of speeds that change.

    A dataclass whose fields are its parameters, and a pytree.
    """

    @property
    def drains(self) -> bool:
        """Whether processors that take no tasks serve on, and so are sent none."""
        ...

    @property
    def interrupted(self) -> str:
        """What becomes of tasks as their processor goes down: one of `jaxlb.stations.INTERRUPTED`."""
        ...

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter."""
        ...

    def mean_stay(self) -> Array:
        """Return the mean time between two changes of a processor's factor."""
        ...

    def mean(self) -> Array:
        """Return the mean factor in the long run, `[P]` or `[1]`, 0 while a processor takes no tasks."""
        ...

    def mean_factor(self) -> Array:
        """Return the mean of `factor_of` in the long run, `[P]` or `[1]`."""
        ...

    def start(self, key: Key, num_processors: int, lanes: Lanes) -> Any:
        """Draw the state at any time; the key is consumed."""
        ...

    def factor_of(self, state: Any, num_processors: int) -> Array:
        """Return the present factors `[P, ...]`; at 0, no work is done."""
        ...

    def takes_tasks(self, state: Any, num_processors: int) -> Array:
        """Return which processors take tasks now, bool `[P, ...]`."""
        ...

    def until_change(self, state: Any, busy: Array) -> Array:
        """Return a time `[...]` in which no factor changes; after `busy` `[P, ...]` time, all is done."""
        ...

    def advance(self, state: Any, time: Array, busy: Array, key: Key) -> Any:
        """Let `time` `[...]` pass, at most until a change, which then happens; the key is consumed."""
        ...


@runtime_checkable
class SizeLaw(Protocol):
    """A law of task sizes.

    A dataclass whose fields are its parameters, and a pytree.
    """

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        ...

    def mean(self) -> Array:
        """Return the expected size, exact."""
        ...

    def second_moment(self) -> Array:
        """Return the expected squared size, exact."""
        ...

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size that is exceeded with probability `uniform`."""
        ...
