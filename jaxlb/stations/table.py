"""Processors of any discipline: each holds up to K tasks, in the order of their service."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.departures import with_lost
from jaxlb.devices import differing
from jaxlb.numerics import at_processor, first_smallest, least, processor_index, stored
from jaxlb.phases import Phases
from jaxlb.stations.base import View
from jaxlb.stations.disciplines import Discipline, ordered, serve
from jaxlb.stations.jobs import Jobs, following, insert, packed, present, total
from jaxlb.stations.slots import in_service
from jaxlb.types import Array, Departures, Held, Lanes, Outcome, Task


class TableState(struct.PyTreeNode):
    """P processors and the tasks that they hold."""

    clock: Array  # [...] time since the last assignment, when the clock of `jobs` was set to 0
    jobs: Jobs  # [P, K, ...]
    overflow: Array  # [P, ...] int32, tasks that found all places taken, where those are no limit
    undone: (
        Array  # [P, ...] work that has left undone since the last assignment, less what is to be done again
    )


def _newcomer(task: Task, number: Array, phased: bool = False) -> Jobs:
    """Return the task that arrives now, to broadcast against those that are there.

    Its size may be another at each processor, `[P, ...]`; its phases come along where they are asked for.
    """
    new = Jobs(
        left=task.size,
        until=task.size,
        size=task.size,
        arrival=jnp.zeros_like(task.size),
        deadline=task.deadline,
        priority=task.priority,
        number=number,
        phases=task.phases if phased else None,
        first_token=jnp.full_like(task.deadline, jnp.inf) if phased else None,
    )
    lanes = jnp.ndim(task.deadline)
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, (0, 1) if jnp.ndim(leaf) <= lanes else 1), new)


def _as_of_now(state: TableState) -> Jobs:
    """Return the tasks that are there, as if the clock were set to 0 now."""
    return state.jobs.replace(arrival=state.jobs.arrival - state.clock)


def _completion(state: TableState, speed: Array, until: Array) -> Array:
    """Return completion times `[P, K, ...]` of tasks that leave after so much work."""
    return ((state.clock - state.jobs.arrival) * speed[:, None] + until) / speed[:, None]


@dataclass(frozen=True)
class Table:
    """Processors that serve by a discipline.

    Attributes:
      discipline: from `jaxlb.stations.disciplines`.
      queue_capacity: K, how many tasks there are places for; one that finds none is counted as overflow.
      limit: how many tasks a processor takes, waiting or in service, others being refused; None: as many as
        come. It is the number of places then.
      leaving: "waiting": tasks leave at their deadline unless they are in service; "any": even then; None:
        no task leaves unserved.
      phased: whether it keeps account of the two phases of tasks, which then all have.
    """

    discipline: Discipline = field(default_factory=lambda: ordered("fcfs"))
    queue_capacity: int = 32
    limit: int | None = None
    leaving: str | None = None
    phased: bool = False

    settled = False

    @property
    def in_turns(self) -> bool:
        """As the discipline is, or where tasks leave unserved: a turn for each."""
        return self.discipline.in_turns or self.leaving is not None

    @property
    def delays(self) -> bool:
        """As the discipline does."""
        return self.discipline.delays

    @property
    def most(self) -> float | tuple[float, ...]:
        """As the discipline has it."""
        return self.discipline.most

    def __post_init__(self) -> None:
        """Check the number of places, and who leaves."""
        if self.limit is not None:
            checks.at_least("limit", self.limit, 1)
            object.__setattr__(self, "queue_capacity", self.limit)
        checks.at_least("queue_capacity", self.queue_capacity, 1)
        if self.phased and self.discipline.until_left is None:
            raise ValueError(
                f"prefill: must be None under discipline {self.discipline!r}: phases are known under 'fcfs' "
                "and 'limited-ps'"
            )
        if self.leaving is None:
            return
        checks.known("leaving", self.leaving, ("waiting", "any"))
        if self.discipline.slots is None:
            raise ValueError(
                f"leaving = {self.leaving!r}: must be None under discipline {self.discipline!r}; "
                "'limited-ps' with as many slots as there are places shares, and tasks may leave"
            )

    def init(self, num_processors: int, lanes: Lanes = ()) -> TableState:
        """Return empty processors."""
        time = jnp.zeros((num_processors, self.queue_capacity, *lanes), jnp.float32)
        number = jnp.zeros_like(time, jnp.int32)
        return TableState(
            clock=jnp.zeros(lanes, jnp.float32),
            jobs=Jobs(
                left=time,
                until=time,
                size=time,
                arrival=time,
                deadline=time,
                priority=number,
                number=number,
                phases=Phases(time, time, time) if self.phased else None,
                first_token=time if self.phased else None,
            ),
            overflow=jnp.zeros((num_processors, *lanes), jnp.int32),
            undone=jnp.zeros((num_processors, *lanes), jnp.float32),
        )

    def empty(self, state: TableState) -> TableState:
        """Return the same processors, empty."""
        num_processors, _, *lanes = state.jobs.left.shape
        return self.init(num_processors, tuple(lanes))

    def advance(self, state: TableState, speed: Array, gap: Array) -> tuple[TableState, Departures]:
        """Let `gap` `[...]` time pass; return who has left."""
        state = self._begun(state, speed, (speed * gap)[:, None])
        jobs, gone = serve(self.discipline, state.jobs, speed * gap)
        departures = self._departures(state, speed, gone)
        after = state.replace(clock=state.clock + gap, jobs=jobs)
        if self.leaving is None:
            return after, departures
        leaves = self._may_leave(jobs) & (self._patience(state) <= gap)
        stay = jobs.replace(left=jnp.where(leaves, 0.0, jobs.left))
        after = after.replace(
            jobs=stay.replace(until=stored(self.discipline.until(stay))),
            undone=state.undone + total(jnp.where(leaves, jobs.left, 0.0)),
        )
        # One that was in service at its deadline may leave later, once it waits again.
        return after, with_lost(departures, leaves, jnp.maximum(jobs.deadline, after.clock - jobs.arrival))

    def _begun(self, state: TableState, speed: Array, done: Array) -> TableState:
        """Note the first tokens that come while processors do work `[P, 1, ...]`."""
        jobs = state.jobs
        if jobs.phases is None or jobs.first_token is None or self.discipline.until_left is None:
            return state
        # Not after the task leaves, whatever rounding says.
        reached = jnp.minimum(self.discipline.until_left(jobs, jobs.size - jobs.phases.prefill), jobs.until)
        comes = present(jobs) & jnp.isinf(jobs.first_token) & (reached <= done)
        at = _completion(state, speed, jnp.maximum(reached, 0.0))
        return state.replace(jobs=jobs.replace(first_token=jnp.where(comes, at, jobs.first_token)))

    def ages(self, state: TableState) -> Array:
        """Return the time since each task came, in the places that it has in `Departures`."""
        age = state.clock - state.jobs.arrival
        return age.reshape(-1, *age.shape[2:])

    def busy(self, state: TableState, speed: Array) -> Array:
        """Return the time `[P, ...]` until a processor has done all that it has."""
        return state.jobs.until.max(1) / speed

    def until_leaving(self, state: TableState) -> Array:
        """Return the time `[...]` in which no task leaves unserved."""
        patience = jnp.where(self._may_leave(state.jobs), jnp.maximum(self._patience(state), 0.0), jnp.inf)
        return least(least(jnp.moveaxis(patience, 1, 0)))

    def _patience(self, state: TableState) -> Array:
        """Return the time until the deadline of each task, `[P, K, ...]`."""
        return state.jobs.arrival + state.jobs.deadline - state.clock

    def _may_leave(self, jobs: Jobs) -> Array:
        """Return which tasks are there, and not in service where that counts."""
        slots = self.discipline.slots
        if self.leaving == "any" or slots is None:
            return present(jobs)
        return present(jobs) & ~in_service(jobs.left, slots)

    def interrupt(
        self, state: TableState, down: Array, lose: bool
    ) -> tuple[TableState, tuple[Array, Array] | None]:
        """Let processors `down` `[P, ...]` lose the tasks in service, or begin them again."""
        jobs = state.jobs
        hit = present(jobs) & down[:, None]
        if self.discipline.slots is not None:
            hit &= in_service(jobs.left, self.discipline.slots)
        left = jnp.where(hit, 0.0 if lose else jobs.size, jobs.left)
        after = jobs.replace(left=left)
        state = state.replace(
            jobs=after.replace(until=stored(self.discipline.until(after))),
            undone=state.undone + total(jobs.left - left),
        )
        return state, (hit, state.clock - jobs.arrival) if lose else None

    def hand_over(self, state: TableState, speed: Array, takes: Array) -> TableState:
        """Move the tasks of all but processors `takes` `[P, ...]` to those, where least is to be done then.

        One after the other, those that stand first before others; where none takes tasks, they stay.
        """

        def stranded(jobs: Jobs) -> Array:
            return present(jobs) & ~takes[:, None] & takes.any(0)

        def one(state: TableState) -> TableState:
            jobs = state.jobs
            waits = stranded(jobs)
            moves, source = waits.any((0, 1)), first_smallest(jnp.where(waits.any(1), 0.0, 1.0))
            first = waits & ~following(waits.astype(jnp.int32), -1).astype(bool)
            first &= (processor_index(takes) == source)[:, None] & moves
            task = jax.tree.map(lambda leaf: jnp.where(first, leaf, 0).sum((0, 1)).astype(leaf.dtype), jobs)
            target = first_smallest(jnp.where(takes, total(jobs.left) / speed, jnp.inf))
            comes = (processor_index(takes) == target) & moves
            full = comes & present(jobs)[:, 0]
            jobs = jobs.replace(left=jnp.where(first, 0.0, jobs.left))
            new = jax.tree.map(lambda leaf: leaf[None, None], task)
            jobs = insert(jobs, new, (comes & ~full)[:, None] & ~self.discipline.after(jobs, new))
            jobs = jobs.replace(until=stored(self.discipline.until(jobs)))
            return state.replace(jobs=jobs, overflow=state.overflow + full.astype(jnp.int32))

        return jax.lax.while_loop(lambda state: stranded(state.jobs).any(), one, differing(state))

    def arranged(self, state: TableState) -> TableState:
        """Return the same processors with empty places in front."""
        if self.discipline.in_order and self.leaving is None:
            return state
        return state.replace(jobs=packed(state.jobs))

    def remaining(self, state: TableState, speed: Array) -> Departures:
        """Return what will become of all tasks that are there if nothing else arrives."""
        state = self._begun(state, speed, jnp.full_like(state.jobs.left[:, :1], jnp.inf))
        return self._departures(state, speed, present(state.jobs))

    def _departures(self, state: TableState, speed: Array, known: Array) -> Departures:
        jobs = state.jobs
        completion = _completion(state, speed, jobs.until)
        service = jobs.size / speed[:, None]
        outcome = Outcome(
            action=jnp.broadcast_to(processor_index(jobs.left), known.shape),
            wait=completion - service,
            service=service,
            completion=completion,
            violation=completion > jobs.deadline,
            first_token=jobs.first_token,
        )
        task = Task(jnp.zeros_like(completion), jobs.size, jobs.priority, jobs.deadline, jobs.phases)
        found = Departures(known, jobs.number, task, outcome)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def assign(
        self, state: TableState, speed: Array, task: Task, number: Array, action: Array
    ) -> tuple[TableState, Array, Array]:
        """Give the task that just arrived to processor `action` `[...]`, or refuse it.

        It is refused by a processor that is full, and by all of them if the action is P.

        Returns:
          The state, and what the task waits and what its service takes if nothing else arrives, `[...]`; a
          refused task waits for ever.
        """
        jobs = _as_of_now(state)
        new, chosen = _newcomer(task, number, self.phased), processor_index(state.overflow) == action
        last = len(state.overflow) - 1
        completion = at_processor(self.response(state, speed, task), jnp.minimum(action, last))
        completion = jnp.where(action > last, jnp.inf, completion)
        service = task.size / at_processor(speed, jnp.minimum(action, last))
        full = chosen & present(jobs)[:, 0]
        comes = chosen & ~full
        jobs = insert(jobs, new, comes[:, None] & ~self.discipline.after(jobs, new))
        own = jobs
        if not isinstance(self.discipline.slots, tuple):  # and then processors may be asked for one by one
            # Of other processors, nothing that happens is new.
            at = jnp.minimum(action, last)
            own = jax.tree.map(lambda leaf: jax.vmap(at_processor, (1, None))(leaf, at)[None], jobs)
        until = stored(jnp.where(comes[:, None], stored(self.discipline.until(own)), jobs.until))
        jobs = jobs.replace(until=until)
        overflow = state.overflow if self.limit is not None else state.overflow + full.astype(jnp.int32)
        state = TableState(jnp.zeros_like(state.clock), jobs, overflow, jnp.zeros_like(state.undone))
        return state, completion - service, service

    def response(self, state: TableState, speed: Array, task: Task) -> Array:
        """Return the completion time `[P, ...]` that each processor would bring if nothing else arrived."""
        done = self.discipline.response(_as_of_now(state), _newcomer(task, jnp.int32(0), self.phased))
        return jnp.where(present(state.jobs)[:, 0], jnp.inf, done / speed)

    def held(self, state: TableState, speed: Array, task: Task) -> Held:
        """Return the tasks that are there, and what the one that just arrived would do to them."""
        jobs, new = _as_of_now(state), _newcomer(task, jnp.int32(0), self.phased)
        before = ~present(jobs)[:, :1] & ~self.discipline.after(jobs, new)
        until = self.discipline.until(insert(jobs, new, before))
        # Those that stand before it have moved up by a place.
        until = jnp.where(before, following(until, -1), until)
        without, joined = (_completion(state, speed, work) for work in (jobs.until, until))
        return Held(present(jobs), jobs.size, jobs.priority, jobs.deadline, without, joined)

    def holding_cost(self, state: TableState, speed: Array, gap: Array) -> Array:
        """Integrate the number of tasks in the system, `[...]`, over the coming `gap` without arrivals."""
        jobs = state.jobs
        stays = jnp.minimum(gap, jobs.until / speed[:, None])
        return jnp.where(present(jobs), stays, 0.0).sum((0, 1))

    def view(self, state: TableState, speed: Array) -> View:
        """Return what may be measured."""
        number = total(present(state.jobs).astype(jnp.float32)).astype(jnp.int32)
        return View(
            queue_length=number,
            wait=total(state.jobs.left) / speed,
            overflow=state.overflow,
            full=None if self.limit is None else number >= self.limit,
            undone=state.undone / speed,
        )
