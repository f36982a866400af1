"""What every station does: the contract between serving and everything else."""

from typing import Any, Protocol, runtime_checkable

from flax import struct

from jaxlb import checks
from jaxlb.types import Array, Lanes


class View(struct.PyTreeNode):
    """What of a station may be measured."""

    queue_length: Array  # [P, ...] int32, tasks in the system, as far as they are counted
    wait: Array  # [P, ...] time, backlog / speed
    overflow: Array  # [P, ...] int32, tasks so far that found the queue too long to be counted


@runtime_checkable
class Station(Protocol):
    """P processors and what they hold, as pure functions of a state. A frozen dataclass.

    Between two arrivals nothing happens but service, so no function takes a key, and every one works on
    `[P, ...]` for any trailing lane axes.
    """

    @property
    def queue_capacity(self) -> int:
        """A field: how many tasks of a processor are counted."""
        ...

    def init(self, num_processors: int, lanes: Lanes = ()) -> Any:
        """Return empty processors."""
        ...

    def empty(self, state: Any) -> Any:
        """Return the same processors, empty; what all lanes share stays as it is."""
        ...

    def advance(self, state: Any, gap: Array) -> Any:
        """Let `gap` `[...]` time pass."""
        ...

    def assign(self, state: Any, speed: Array, size: Array, action: Array) -> tuple[Any, Array, Array]:
        """Give the task that just arrived to processor `action` `[...]`; return state, wait, service."""
        ...

    def response(self, state: Any, speed: Array, size: Array) -> Array:
        """Return the completion time `[P, ...]` that each processor would bring if nothing else arrived."""
        ...

    def holding_cost(self, state: Any, gap: Array) -> Array:
        """Return the integral over the coming `gap` of the number of tasks, `[...]`, without arrivals."""
        ...

    def view(self, state: Any) -> View:
        """Return what may be measured."""
        ...


def check(station: Any) -> None:
    """Raise ValueError if this is no station."""
    fields = getattr(station, "__dataclass_fields__", {})
    if isinstance(station, type) or not isinstance(station, Station) or "queue_capacity" not in fields:
        raise ValueError(
            f"station = {checks.shown(station)}: must be a station, such as jaxlb.stations.FCFS(), "
            "a dataclass with the field queue_capacity"
        )


def response(wait: Array, size: Array, speed: Array) -> Array:
    """Return the completion time of a task that is served once `wait` is over, first come, first served."""
    return wait + size / speed
