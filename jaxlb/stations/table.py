"""Processors of any discipline: each holds up to K tasks, in the order of their service."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.numerics import at_processor, processor_index
from jaxlb.stations.base import View
from jaxlb.stations.disciplines import Discipline, Jobs, ordered, places, present, serve
from jaxlb.types import Array, Departures, Lanes, Outcome, Task


class TableState(struct.PyTreeNode):
    """P processors and the tasks that they hold."""

    clock: Array  # [...] time since the last assignment, when the clock of `jobs` was set to 0
    jobs: Jobs  # [P, K, ...]
    overflow: Array  # [P, ...] int32, tasks that were refused, since all places were taken


def _insert(jobs: Jobs, new: Jobs, after: Array) -> tuple[Jobs, Array]:
    """Put a newcomer before those that stand after it, those before it moving up to an empty place.

    Args:
      jobs: `[P, K, ...]`.
      new: the newcomer, leaves that broadcast.
      after: bool `[P, K, ...]`.

    Returns:
      The tasks of each processor with the newcomer, and its place `[P, 1, ...]`; K where all are taken, and
      then the tasks as they were.
    """
    place, num_places = places(jobs), jobs.left.shape[1]
    empty = ~present(jobs)
    before = jnp.where(after, place, num_places).min(1, keepdims=True) - 1
    left_hole = jnp.where(empty & (place <= before), place, -1).max(1, keepdims=True)
    right_hole = jnp.where(empty & (place > before), place, num_places).min(1, keepdims=True)
    leftward = left_hole >= 0
    target = jnp.where(leftward, before, jnp.where(right_hole < num_places, before + 1, num_places))
    take_next = leftward & (place >= left_hole) & (place < before)
    take_last = ~leftward & (place > target) & (place <= right_hole)

    def moved(old: Array, own: Array) -> Array:
        following = jnp.concatenate([old[:, 1:], old[:, -1:]], 1)
        previous = jnp.concatenate([old[:, :1], old[:, :-1]], 1)
        stay = jnp.where(take_next, following, jnp.where(take_last, previous, old))
        return jnp.where(place == target, own, stay)

    return jax.tree.map(moved, jobs, new), target


def _completion(jobs: Jobs, target: Array, speed: Array) -> Array:
    """Return when the task at a place of each processor leaves, `[P, ...]`; never where it has none."""
    found = jnp.where(places(jobs) == target, jobs.until, 0.0).sum(1) / speed
    return jnp.where(target[:, 0] == jobs.left.shape[1], jnp.inf, found)


@dataclass(frozen=True)
class Table:
    """Processors that serve by a discipline.

    Attributes:
      discipline: from `jaxlb.stations.disciplines`.
      queue_capacity: K, how many tasks a processor holds; one that finds no place is refused, and counted.
    """

    discipline: Discipline = field(default_factory=lambda: ordered("fcfs"))
    queue_capacity: int = 32

    settled = False

    def __post_init__(self) -> None:
        """Check the number of places."""
        checks.at_least("queue_capacity", self.queue_capacity, 1)

    def init(self, num_processors: int, lanes: Lanes = ()) -> TableState:
        """Return empty processors."""
        time = jnp.zeros((num_processors, self.queue_capacity, *lanes), jnp.float32)
        number = jnp.zeros_like(time, jnp.int32)
        return TableState(
            clock=jnp.zeros(lanes, jnp.float32),
            jobs=Jobs(
                left=time, until=time, size=time, arrival=time, deadline=time, priority=number, number=number
            ),
            overflow=jnp.zeros((num_processors, *lanes), jnp.int32),
        )

    def empty(self, state: TableState) -> TableState:
        """Return the same processors, empty."""
        num_processors, _, *lanes = state.jobs.left.shape
        return self.init(num_processors, tuple(lanes))

    def advance(self, state: TableState, speed: Array, gap: Array) -> tuple[TableState, Departures]:
        """Let `gap` `[...]` time pass; return who has left."""
        jobs, gone = serve(self.discipline, state.jobs, speed * gap)
        departures = self._departures(state, speed, gone)
        return state.replace(clock=state.clock + gap, jobs=jobs), departures

    def remaining(self, state: TableState, speed: Array) -> Departures:
        """Return what will become of all tasks that are there if nothing else arrives."""
        return self._departures(state, speed, present(state.jobs))

    def _departures(self, state: TableState, speed: Array, known: Array) -> Departures:
        jobs = state.jobs
        completion = (state.clock - jobs.arrival) + jobs.until / speed[:, None]
        service = jobs.size / speed[:, None]
        outcome = Outcome(
            action=jnp.broadcast_to(processor_index(jobs.left), known.shape),
            wait=completion - service,
            service=service,
            completion=completion,
            violation=completion > jobs.deadline,
        )
        task = Task(
            gap=jnp.zeros_like(completion), size=jobs.size, priority=jobs.priority, deadline=jobs.deadline
        )
        found = Departures(known, jobs.number, task, outcome)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def assign(
        self, state: TableState, speed: Array, task: Task, number: Array, action: Array
    ) -> tuple[TableState, Array, Array]:
        """Give the task that just arrived to processor `action` `[...]`, or refuse it if that is full.

        Returns:
          The state, and what the task waits and what its service takes if nothing else arrives, `[...]`; a
          refused task waits for ever.
        """
        jobs = state.jobs.replace(arrival=state.jobs.arrival - state.clock)
        state = state.replace(jobs=jobs, clock=jnp.zeros_like(state.clock))
        with_new, target = self._with(state, task, number)
        chosen = processor_index(state.overflow) == action
        completion = at_processor(_completion(with_new, target, speed), action)
        service = task.size / at_processor(speed, action)
        full = chosen & (target[:, 0] == self.queue_capacity)
        jobs = jax.tree.map(lambda one, old: jnp.where(chosen[:, None], one, old), with_new, jobs)
        state = state.replace(jobs=jobs, overflow=state.overflow + full.astype(jnp.int32))
        return state, completion - service, service

    def _with(self, state: TableState, task: Task, number: Array) -> tuple[Jobs, Array]:
        """Return the tasks of each processor with a newcomer, and its place."""
        new = Jobs(
            left=task.size,
            until=task.size,
            size=task.size,
            arrival=state.clock,
            deadline=task.deadline,
            priority=task.priority,
            number=number,
        )
        new = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], new)
        jobs, target = _insert(state.jobs, new, self.discipline.after(state.jobs, new))
        return jobs.replace(until=self.discipline.until(jobs)), target

    def response(self, state: TableState, speed: Array, task: Task) -> Array:
        """Return the completion time `[P, ...]` that each processor would bring if nothing else arrived."""
        return _completion(*self._with(state, task, jnp.int32(0)), speed)

    def holding_cost(self, state: TableState, speed: Array, gap: Array) -> Array:
        """Integrate the number of tasks in the system, `[...]`, over the coming `gap` without arrivals."""
        jobs = state.jobs
        stays = jnp.minimum(gap, jobs.until / speed[:, None])
        return jnp.where(present(jobs), stays, 0.0).sum((0, 1))

    def view(self, state: TableState, speed: Array) -> View:
        """Return what may be measured."""
        number = present(state.jobs).sum(1, dtype=jnp.int32)
        return View(queue_length=number, wait=state.jobs.left.sum(1) / speed, overflow=state.overflow)
