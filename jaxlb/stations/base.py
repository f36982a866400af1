"""What every station does: the contract between serving and everything else."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.types import Array, Departures, Held, Lanes, Task, Truth


class View(struct.PyTreeNode):
    """What of a station may be measured.

    Attributes:
      queue_length: `[P, ...]` int32, tasks in the system, as far as they are counted.
      wait: `[P, ...]` time, backlog / speed.
      overflow: `[P, ...]` int32, tasks so far that found no place to be counted in, or to be in.
      full: `[P, ...]` bool, whether a task would be refused; None where none is.
      undone: `[P, ...]` time, work that has left undone since the last assignment.
    """

    queue_length: Array
    wait: Array
    overflow: Array
    full: Array | None = None
    undone: Array | None = None


@runtime_checkable
class Station(Protocol):
    """P processors and what they hold, as pure functions of a state. A frozen dataclass.

    One that is not `settled` has `held` too; one whose speeds change `busy`, one whose tasks leave
    `until_leaving`, and one that failures interrupt `interrupt`, as `jaxlb.stations.Table` has.

    Between two arrivals nothing happens but service, so no function takes a key, and every one works on
    `[P, ...]` for any trailing lane axes.
    """

    @property
    def settled(self) -> bool:
        """Whether what becomes of a task is known when it is assigned, as under first come, first served."""
        ...

    @property
    def in_turns(self) -> bool:
        """Whether time passes in turns, of which there are as many as the busiest lane needs."""
        ...

    @property
    def queue_capacity(self) -> int:
        """A field: how many tasks of a processor are counted."""
        ...

    @property
    def delays(self) -> bool:
        """Whether a task may delay others that were there before it."""
        ...

    @property
    def most(self) -> float | tuple[float, ...]:
        """What a processor gives to its tasks together when it has very many, in its speed.

        Of every processor, or of each.
        """
        ...

    @property
    def limit(self) -> int | None:
        """How many tasks a processor takes at most, others being refused; None: as many as come."""
        ...

    @property
    def leaving(self) -> str | None:
        """Which tasks leave unserved once their deadline has passed: "waiting", "any"; None: none."""
        ...

    def init(self, num_processors: int, lanes: Lanes = ()) -> Any:
        """Return empty processors."""
        ...

    def empty(self, state: Any) -> Any:
        """Return the same processors, empty; what all lanes share stays as it is."""
        ...

    def advance(self, state: Any, speed: Array, gap: Array) -> tuple[Any, Departures | None]:
        """Let `gap` `[...]` time pass; return who has left, or None if that is known at assignments.

        Until `arranged`, each task has the place in `Departures` that it has in those of `remaining`.
        """
        ...

    def arranged(self, state: Any) -> Any:
        """Return the same processors, ready for an assignment, after any number of `advance`."""
        ...

    def assign(
        self, state: Any, speed: Array, task: Task, number: Array, action: Array
    ) -> tuple[Any, Array, Array]:
        """Give the task that just arrived to processor `action` `[...]`; return state, wait, service.

        The two add up to its completion time, if nothing else arrives; `number` `[...]` int32 is a name for
        its departure.
        """
        ...

    def response(self, state: Any, speed: Array, task: Task) -> Array:
        """Return the completion time `[P, ...]` that each processor would bring if nothing else arrived."""
        ...

    def remaining(self, state: Any, speed: Array) -> Departures | None:
        """Return what will become of all tasks that are there if nothing else arrives."""
        ...

    def holding_cost(self, state: Any, speed: Array, gap: Array) -> Array:
        """Return the integral over the coming `gap` of the number of tasks, `[...]`, without arrivals."""
        ...

    def view(self, state: Any, speed: Array) -> View:
        """Return what may be measured."""
        ...


def true_response(truth: Truth) -> Array:
    """Return the completion time `[P, ...]` of the task at hand, of each choice, if nothing else arrives."""
    return response(truth.wait, truth.size, truth.speed) if truth.completion is None else truth.completion


def growth(held: Held, cost: Callable[[Array], Array]) -> Array:
    """Return what the tasks that are there cost more with the task at hand, at each processor, `[P, ...]`.

    Args:
      held: the tasks.
      cost: completion times `[P, K, ...]` -> what each costs.
    """
    return jnp.where(held.known, cost(held.joined) - cost(held.without), 0.0).sum(1)


def needs_settled(what: str, station: Station) -> None:
    """Raise ValueError where `what` only works if what becomes of a task is known when it is assigned."""
    if not station.settled:
        raise ValueError(
            f"station = {checks.shown(station)}: {what} knows first come, first served, one task at a time, "
            "at constant speeds only; choose a scenario without discipline, speeds that change, limit, "
            "leaving and admission"
        )


def capacity(most: float | tuple[float, ...], speed: Array) -> Array:
    """Return what processors give to their tasks together `[P, ...]` when they have very many."""
    each = jnp.asarray(most, jnp.float32)
    return speed * (each.reshape(-1, *(1,) * (speed.ndim - 1)) if each.ndim else each)


INTERRUPTED = ("resumed", "repeated", "lost", "handed-over")
"""What may become of tasks as their processor goes down."""


def check_interrupted(interrupted: str, station: Station) -> None:
    """Raise ValueError if tasks at such processors cannot be one of `INTERRUPTED`."""
    checks.known("interrupted", interrupted, INTERRUPTED)
    if interrupted == "handed-over" and station.limit is not None:
        raise ValueError(f"limit = {station.limit}: must be None where tasks are handed over")
    discipline = getattr(station, "discipline", None)
    if interrupted == "repeated" and discipline is not None and not discipline.repeatable:
        raise ValueError(
            f"interrupted = 'repeated': must be another of {INTERRUPTED} under discipline {discipline!r}"
        )


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
