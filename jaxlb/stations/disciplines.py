"""Disciplines: what becomes of the tasks that a processor holds, if none arrives.

Nothing enters a processor between two arrivals. So there a discipline is a map from what the processor holds
to the moments of departure, which stay what they are until the next arrival, and from the time that passes to
the work left. Both are in work that the processor does, so speeds may change at any time. Tasks stand in the
last of K places of each processor, in the order in which they are served, or would be; a place without work
left is empty.

Of tasks that are served one after the other, departures are a cumulative sum of work. So they are of tasks
that share, sorted by work left: each gets as much as the next one to leave until that leaves. With several
slots, each task begins when the first of them is free; and so it does where only some share, in time served.
What is served least, together, takes a turn for each departure; and so does all of a discipline that says at
what rates tasks are served.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks, numerics
from jaxlb.functions import partial
from jaxlb.numerics import running, stored
from jaxlb.stations import least_served, rates
from jaxlb.stations import slots as in_slots
from jaxlb.stations.capacity import Capacity, capacity, one
from jaxlb.stations.jobs import LEAST, Jobs, following, present, total
from jaxlb.stations.rates import Rates
from jaxlb.stations.slots import Slots, most, waiting
from jaxlb.types import Array


class Discipline(NamedTuple):
    """How a processor serves.

    Attributes:
      name: of the discipline.
      after: (jobs, newcomer) -> bool `[P, K, ...]`, which tasks stand after a newcomer, `Jobs` that
        broadcast; those are all behind those that do not.
      until: jobs -> work `[P, K, ...]` that the processor does until each task leaves, if none arrives.
      left: (jobs, work `[P, 1, ...]` that the processor does) -> work left `[P, K, ...]` of tasks that do not
        leave by then; it may be anything of others.
      response: (jobs, newcomer) -> work `[P, ...]` that the processor does until the newcomer leaves, if it
        gets it and none arrives.
      in_order: whether tasks leave in the order in which they stand.
      in_turns: whether `left` takes turns, as many as the busiest processor needs.
      slots: how many tasks are served at a time, those that stand first, of every processor or of each; None:
        others, or all.
      repeatable: whether tasks may begin again where they stand.
      delays: whether a task may delay others that were there before it.
      most: what a processor gives to its tasks together when it has very many, in its speed; of every
        processor or of each.
      classes: the number of priority classes that it is made for; None: any.
      until_left: (jobs, rest `[P, K, ...]`) -> work that the processor does until each task has no more left
        than the rest of it, if none arrives; None: not known.
    """

    name: str
    after: Callable[[Jobs, Jobs], Array]
    until: Callable[[Jobs], Array]
    left: Callable[[Jobs, Array], Array]
    response: Callable[[Jobs, Jobs], Array]
    in_order: bool
    in_turns: bool = False
    slots: Slots | None = None
    repeatable: bool = False
    delays: bool = True
    most: float | tuple[float, ...] = 1.0
    classes: int | None = None
    until_left: Callable[[Jobs, Array], Array] | None = None

    def __repr__(self) -> str:
        """Show the name, for messages."""
        return repr(self.name)


def serve(discipline: Discipline, jobs: Jobs, done: Array) -> tuple[Jobs, Array]:
    """Let processors do work `[P, ...]`; return what they then hold, in the same places, and who has left."""
    done = done[:, None]
    gone = present(jobs) & (jobs.until <= done)
    stays = present(jobs) & ~gone
    left = jnp.where(stays, jnp.maximum(discipline.left(jobs, done), LEAST), 0.0)
    return jobs.replace(left=left, until=jnp.where(stays, jobs.until - done, 0.0)), gone


def _sums(values: Array) -> Array:
    """Return sums up to each place, none below the one before it."""
    found = running(jnp.add, stored(values))
    # Of many, sums of blocks may be rounded otherwise than the same in one.
    return found if values.shape[1] <= numerics.BLOCK else running(jnp.maximum, stored(found))


def _until_of_one(jobs: Jobs) -> Array:
    """Return until when tasks stay that are served one after the other, in the order in which they stand."""
    return _sums(jobs.left)


def _until_left_at_full_speed(jobs: Jobs, rest: Array) -> Array:
    """Return until when no more than the rest is left of tasks that are served to their end in one go."""
    return jobs.until - rest


def _left_of_one(jobs: Jobs, done: Array) -> Array:
    return jnp.minimum(jobs.left, jobs.until - done)


def _response_of_one(after: Callable[[Jobs, Jobs], Array], jobs: Jobs, new: Jobs) -> Array:
    return total(jnp.where(after(jobs, new), 0.0, jobs.left)) + new.left[:, 0]


def _shares(capacity: Capacity, jobs: Jobs, more: int = 0) -> Array:
    """Return what each task gets of the speed until the one at a place leaves, of those that then are there.

    Empty places are in front, so these are the tasks from that place on, and so many `more`.
    """
    number = jnp.arange(jobs.left.shape[1], 0, -1, dtype=jnp.float32) + more
    return (capacity(number) / number).reshape(-1, *(1,) * (jobs.left.ndim - 2))


def _until_of_all(capacity: Capacity, jobs: Jobs) -> Array:
    """Return until when tasks stay that share, sorted by work left: n get `capacity(n)` of the speed."""
    more = jobs.left - following(jobs.left, -1)
    return _sums(more / _shares(capacity, jobs))


def _left_of_all(capacity: Capacity, jobs: Jobs, done: Array) -> Array:
    before = following(jobs.until, -1)
    spent = jnp.clip(done - before, 0.0, jobs.until - before)
    return jobs.left - total(spent * _shares(capacity, jobs))[:, None]


def _response_of_all(capacity: Capacity, jobs: Jobs, new: Jobs) -> Array:
    """Sum what tasks get until a newcomer leaves, by what one more costs a processor."""
    more = 1.0 / _shares(capacity, jobs, 1) - 1.0 / _shares(capacity, jobs)
    alone = _shares(capacity, jobs)[-1]
    return total(jnp.minimum(jobs.left, new.left) * more) + new.left[:, 0] / alone


def _at_rates(name: str, after: Callable[[Jobs, Jobs], Array], shares: Rates) -> Discipline:
    return Discipline(
        name,
        after,
        partial(rates.until, shares),
        partial(rates.left, shares),
        partial(rates.response, shares, after),
        in_order=False,
        in_turns=True,
    )


def _none(jobs: Jobs, new: Jobs) -> Array:
    del new
    return jnp.zeros_like(jobs.left, bool)


def _all(jobs: Jobs, new: Jobs) -> Array:
    del new
    return present(jobs)


def _larger(key: Callable[[Jobs], Array], jobs: Jobs, new: Jobs) -> Array:
    return present(jobs) & (key(jobs) > key(new))


def _left(jobs: Jobs) -> Array:
    return jobs.left


def _size(jobs: Jobs) -> Array:
    return jobs.size


def _priority(jobs: Jobs) -> Array:
    return jobs.priority


def _due(jobs: Jobs) -> Array:
    return jobs.arrival + jobs.deadline


def _in_line(after: Callable[[Jobs, Jobs], Array], jobs: Jobs, new: Jobs) -> Array:
    """Return who stands after a newcomer, and all behind it: rounding may have crossed their keys."""
    return running(jnp.maximum, after(jobs, new).astype(jnp.float32)) > 0


def _not_served(slots: Slots, after: Callable[[Jobs, Jobs], Array], jobs: Jobs, new: Jobs) -> Array:
    """Return which tasks stand after a newcomer that does not interrupt the first ones, which are served."""
    return after(jobs, new) & waiting(jobs, slots)


_ORDERS: dict[str, tuple[Callable[[Jobs, Jobs], Array], bool]] = {
    "fcfs": (_none, True),
    "lcfs-pr": (_all, True),
    "srpt": (partial(_larger, _left), True),
    "psjf": (partial(_larger, _size), True),
    "sjf": (partial(_larger, _size), False),
    "priority-preemptive": (partial(_larger, _priority), True),
    "priority": (partial(_larger, _priority), False),
    "edf": (partial(_in_line, partial(_larger, _due)), True),
}
"""Which tasks stand after a newcomer, and whether it interrupts them."""


def ordered(name: str, slots: Slots = 1) -> Discipline:
    """Make a discipline that serves tasks in an order, `slots` at a time, each at full speed.

    Where processors have different numbers of slots, a list of them.
    """
    checks.known("discipline", name, _ORDERS)
    return _ordered(name, *_ORDERS[name], slots)


def c_mu(weights: Sequence[float] = (1.0,), slots: Slots = 1) -> Discipline:
    """Make the c-mu order: the largest weight / size first, with one weight for each priority class.

    It interrupts. The weight is what a task's time costs, so for sizes that are known this is the rule for
    classes (Cox and Smith 1961).
    """
    weights = tuple(map(float, np.ravel(weights)))
    checks.leaf("weights", weights, above=0)
    after = partial(_larger, partial(_size_by_weight, weights))
    return _ordered("c-mu", after, True, slots)._replace(classes=len(weights))


def _size_by_weight(weights: tuple[float, ...], jobs: Jobs) -> Array:
    return jobs.size / jnp.array(weights, jnp.float32)[jobs.priority]


def _ordered(name: str, after: Callable[[Jobs, Jobs], Array], interrupts: bool, slots: Slots) -> Discipline:
    slots = _checked(slots)
    after = after if interrupts else partial(_not_served, slots, after)
    served: dict[str, Any] = {
        "slots": slots,
        "most": float(most(slots)) if len(set(np.ravel(slots))) == 1 else tuple(map(float, np.ravel(slots))),
        "repeatable": name != "srpt",
        "delays": name != "fcfs",
        "until_left": _until_left_at_full_speed if name == "fcfs" else None,
    }
    if slots == 1:
        response = partial(_response_of_one, after)
        return Discipline(name, after, _until_of_one, _left_of_one, response, in_order=True, **served)
    until, response = partial(in_slots.until, slots), partial(in_slots.response, slots, after)
    return Discipline(name, after, until, _left_of_one, response, in_order=False, **served)


def _checked(slots: Any) -> Slots:
    """Return a number of slots, or a tuple of one for each processor."""
    each = (slots,) if np.ndim(slots) == 0 else tuple(slots)
    for number in each:
        checks.at_least("slots", number, 1)
    return slots if np.ndim(slots) == 0 else each


def _most(capacity: Capacity, number: float) -> float:
    with jax.ensure_compile_time_eval():
        return float(capacity(jnp.float32(number)))


def ps(capacity: Capacity = one) -> Discipline:
    """Make processor sharing: all tasks at once, n of them at `capacity(n)` of the speed together."""
    after, until, left, response = (
        partial(_larger, _left),
        partial(_until_of_all, capacity),
        partial(_left_of_all, capacity),
        partial(_response_of_all, capacity),
    )
    return Discipline("ps", after, until, left, response, in_order=True, most=_most(capacity, 1e9))


def limited_ps(slots: int = 8, capacity: Capacity = one) -> Discipline:
    """Make processor sharing of the first `slots` tasks, in order of arrival; others wait."""
    checks.at_least("slots", slots, 1)
    return shared_by_first(slots, capacity, _most(capacity, slots))


def shared_by_first(slots: int, capacity: Capacity, most: float) -> Discipline:
    """Make what `limited_ps` does, of a capacity whose numbers may be traced; `most` is `capacity(slots)`."""
    until, left, response, until_left = (
        partial(function, slots, capacity)
        for function in (
            in_slots.until_shared,
            in_slots.left_shared,
            in_slots.response_shared,
            in_slots.until_left_shared,
        )
    )
    served: dict[str, Any] = {"slots": slots, "most": most, "repeatable": True, "until_left": until_left}
    return Discipline("limited-ps", _none, until, left, response, in_order=False, **served)


def fb() -> Discipline:
    """Make foreground-background: those share that have been served least."""
    left = partial(rates.left, least_served.shares)
    until, response = least_served.until, least_served.response
    return Discipline("fb", _all, until, left, response, in_order=False, in_turns=True)


def at_rates(name: str, shares: Rates) -> Discipline:
    """Make a discipline of your own, whose tasks stand in the order of arrival.

    Args:
      name: of the discipline.
      shares: (jobs, work left) -> shares of the speed `[P, K, ...]`, and for how much of the processor's work
        `[P, ...]` they hold if no task leaves, above 0; processors are asked for together, or one by one.
    """
    return _at_rates(name, _none, shares)


_OTHERS: dict[str, Callable[..., Discipline]] = {"ps": ps, "limited-ps": limited_ps, "fb": fb, "c-mu": c_mu}


def named(name: str, **options: Any) -> Discipline:
    """Make a discipline by its name; options are `slots`, `capacity` and `weights`, where it has them.

    Raises:
      ValueError: an unknown name or option, or one out of bounds.
    """
    checks.known("discipline", name, [*_ORDERS, *_OTHERS])
    make = _OTHERS[name] if name in _OTHERS else partial(ordered, name)
    for option in options:
        checks.known(f"option of discipline {name!r}", option, inspect.signature(make).parameters)
    if "capacity" in options and not callable(options["capacity"]):
        options["capacity"] = capacity(options["capacity"])
    return make(**options)
