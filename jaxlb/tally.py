"""Sums of figures, kept for each lane while tasks stream by, in constant memory.

Counts are integers, and sums are compensated, so they stay exact to float32 over any number of tasks.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.metrics import FIGURES, LOST, Decided, Summary
from jaxlb.numerics import at_processor, broadcasts, kahan_add, put_at, stored, total
from jaxlb.stations import View
from jaxlb.types import Array, Departures, Outcome, Task

_OF_CLASSES = {
    "departed": "class_count",
    "served": "class_served",
    "mean_completion": "class_completion",
    "sla_violation_rate": "class_violations",
}
"""Where any place may tell a departure, sums over places are dear: these are sums of those of classes."""


class Totals(struct.PyTreeNode):
    """Running sums, and what the system was like when they began."""

    num_tasks: Array  # int32, decided
    counts: dict[str, Array]  # [N], of classes [C, N], int32; of those "departed" where departures tell
    sums: dict[str, Array]  # [N]
    errors: dict[str, Array]  # what rounding has taken from the sums
    service: Array  # [P, N] time, given to each processor
    service_error: Array  # [P, N]
    wait: Array  # [P, N] at the start
    overflow: Array  # [P, N] at the start


def of_task(decided: Decided, num_classes: int, gap: Array) -> tuple[dict, dict]:
    """Return what one task adds to the counts and the sums of its lane.

    Args:
      decided: the task and what became of it.
      num_classes: C.
      gap: `[N]` time to the next arrival.
    """
    task, outcome, departures = decided.task, decided.outcome, decided.outcome.departures
    if departures is not None:
        task, outcome = departures.task, departures.outcome
    classes = jnp.arange(num_classes, dtype=jnp.int32).reshape(-1, *(1,) * task.priority.ndim)
    of_class, lost = task.priority == classes, outcome.lost
    if lost is not None:
        # What never completes has no part in averages of those that are served.
        outcome = outcome.replace(completion=jnp.where(lost, 0.0, outcome.completion))
    found = {
        "class_count": of_class,
        "class_violations": of_class & outcome.violation,
        "class_completion": jnp.where(of_class, outcome.completion, 0.0),
    }
    if lost is not None:
        found["class_served"] = of_class & ~lost
    sums = {} if departures is None else {name: of for name, of in _OF_CLASSES.items() if of in found}
    for name, figure in FIGURES.items():
        if figure.of_outcome is not None and name not in sums and figure.there(task, outcome):
            found[name] = figure.of_outcome(task, outcome)
    if departures is not None:
        # Of all places, those from which a task has left.
        found = {name: _departed(value, departures.known) for name, value in found.items()}
        found |= {
            name: found[of_class].sum(0, dtype=found[of_class].dtype) for name, of_class in sums.items()
        }
    for name, figure in FIGURES.items():
        if figure.of_task is not None:
            found[name] = figure.of_task(decided)
    counts = {name: x.astype(jnp.int32) for name, x in found.items() if x.dtype != jnp.float32}
    return counts, {"elapsed": gap} | {name: x for name, x in found.items() if name not in counts}


def _departed(value: Array, known: Array) -> Array:
    """Sum over places `[..., M, N]` those of tasks that have left."""
    found = total(jnp.moveaxis(jnp.where(known, value.astype(jnp.float32), 0.0), -2, 0))
    return found.astype(jnp.int32) if value.dtype == bool else found


@broadcasts
def start(found: View, num_classes: int, departures: Departures | None = None) -> Totals:
    """Return totals with nothing counted yet, the station being as `found`.

    Of `departures` only the shapes count; None: assignments tell what becomes of tasks.
    """
    lanes = found.wait.shape[1:]

    def added(departures: Departures | None) -> tuple[dict, dict]:
        time, number = jnp.zeros(lanes, jnp.float32), jnp.zeros(lanes, jnp.int32)
        task, outcome = (
            Task(time, time, number, time),
            Outcome(number, time, time, time, time > 0, departures=departures),
        )
        return of_task(Decided(found, found.wait, task, outcome, time), num_classes, time)

    counts, sums = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(added, departures)
    )
    return Totals(
        num_tasks=jnp.int32(0),
        counts=counts,
        sums=sums,
        errors=sums,
        service=jnp.zeros_like(found.wait),
        service_error=jnp.zeros_like(found.wait),
        wait=found.wait,
        overflow=found.overflow,
    )


def add(totals: Totals, counts: dict, sums: dict, moved: Outcome, undone: Array | None = None) -> Totals:
    """Add the figures of one task of every lane.

    Args:
      totals: so far.
      counts: of the task.
      sums: of the task.
      moved: what became of it in the system.
      undone: `[P, N]` time of work that has left undone since; None: none.
    """
    pairs = jax.tree.map(kahan_add, totals.sums, totals.errors, sums)
    sums, errors = jax.tree.transpose(jax.tree.structure(sums), jax.tree.structure((0, 0)), pairs)
    # A task that is refused belongs to no processor, and takes no service.
    action = jnp.minimum(moved.action, len(totals.service) - 1) if moved.lost is not None else moved.action
    service, service_error = kahan_add(
        at_processor(totals.service, action), at_processor(totals.service_error, action), moved.service
    )
    after = put_at(totals.service, stored(service), action)
    after_error = put_at(totals.service_error, stored(service_error), action)
    if undone is not None:
        after, after_error = kahan_add(after, after_error, -undone)
    return totals.replace(
        num_tasks=totals.num_tasks + 1,
        counts=jax.tree.map(jnp.add, totals.counts, counts),
        sums=sums,
        errors=errors,
        service=after,
        service_error=after_error,
    )


@broadcasts
def summarise(totals: Totals, found: View) -> Summary:
    """Average each lane's totals, the station being as `found` after the last task counted."""
    sums, counts = jax.tree.map(jnp.add, totals.sums, totals.errors), totals.counts
    number = jnp.maximum(totals.num_tasks, 1).astype(jnp.float32)
    # No work is lost: what was given to a processor it has done, or has still to do.
    busy = totals.service + (totals.service_error + (totals.wait - found.wait))
    # Where none has been served, there is no average of them: not a number.
    departed = counts["departed"].astype(jnp.float32) if "departed" in counts else number
    served = counts["served"].astype(jnp.float32) if "served" in counts else departed
    averages, found_of, none = {}, counts | sums, jnp.zeros_like(sums["elapsed"])
    for name, figure in FIGURES.items():
        # Where no task can be lost, none is; what else is not counted is not there.
        if figure.of_task or name in found_of or figure is LOST:
            total = found_of.get(name, none)
            of = number if figure.of_task else served if figure.of_served else departed
            averages[name] = total.astype(jnp.float32) / of
    return Summary(
        num_tasks=totals.num_tasks,
        averages=averages,
        class_count=counts["class_count"],
        class_served=counts.get("class_served", counts["class_count"]),
        class_violations=counts["class_violations"],
        class_completion=sums["class_completion"],
        utilisation=busy / jnp.maximum(sums["elapsed"], 1e-30),
        elapsed=sums["elapsed"],
        wait_growth=found.wait - totals.wait,
        queue_overflows=found.overflow - totals.overflow,
    )
