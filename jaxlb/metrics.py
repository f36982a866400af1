"""Figures of a scheduler: what each is, and how it comes from outcomes, in one table.

Sums are kept for each lane while tasks stream by, in constant memory. Counts are integers, and sums are
compensated, so they stay exact to float32 over any number of tasks.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb.numerics import (
    at_processor,
    broadcasts,
    kahan_add,
    least,
    processor_index,
    put_at,
    stored,
    total,
    variance,
)
from jaxlb.stations import View
from jaxlb.statistics import Estimate, Histogram, mean_interval, quantile_interval, ratio_interval
from jaxlb.types import Array, Departures, Outcome, Task


class Decided(NamedTuple):
    """One task of every lane and what became of it, as figures see it."""

    found: View  # the station at the decision
    response: Array  # [P, N] completion time that each processor would have brought
    task: Task  # [N]
    outcome: Outcome  # [N]
    reward: Array  # [N]


class LaneFigures(NamedTuple):
    """What a run of N lanes brought."""

    summary: "Summary"
    histogram: Histogram  # of completion times


class Figure(NamedTuple):
    """A figure of a scheduler.

    Attributes:
      meaning: in words.
      unit: "time", "share", "reward", or "" of a plain number.
      of_task: Decided -> `[N]`, where it is an average over decisions; bool is counted exactly.
      of_outcome: (task, outcome) -> of their shape, where it is an average over tasks that have left.
      of_served: whether only over those that were served.
      of_run: (run, run of the baseline) -> its estimate, or one for each priority; None: the mean over lanes
        of that average.
      heading: of its column in tables for people, in which `{baseline}` is the baseline's name; None: it has
        none.
      scale: of what such tables show.
      plain: whether they show it without its interval.
      paired: whether it is a difference to the baseline, which has none to itself.
    """

    meaning: str
    unit: str
    of_task: Callable[[Decided], Array] | None = None
    of_outcome: Callable[[Task, Outcome], Array] | None = None
    of_served: bool = False
    of_run: Callable[[LaneFigures, LaneFigures], Estimate | list[Estimate]] | None = None
    heading: str | None = None
    scale: float = 1.0
    plain: bool = False
    paired: bool = False


def _imbalance(decided: Decided) -> Array:
    wait, outcome = decided.found.wait, decided.outcome
    after = wait + jnp.where(processor_index(wait) == outcome.action, outcome.service, 0.0)
    return jnp.sqrt(variance(after))


def _mean(name: str, run: LaneFigures, baseline: LaneFigures) -> Estimate:
    del baseline
    return mean_interval(_lanes(run, name))


def _difference(name: str, run: LaneFigures, baseline: LaneFigures) -> Estimate:
    return mean_interval(_lanes(run, name) - _lanes(baseline, name))


def _lanes(run: LaneFigures, name: str) -> np.ndarray:
    return np.asarray(getattr(run.summary, name), np.float64)


def _quantile(probability: float, run: LaneFigures, baseline: LaneFigures) -> Estimate:
    del baseline
    return quantile_interval(run.histogram, probability)


def _by_priority(name: str, count: str, run: LaneFigures, baseline: LaneFigures) -> list[Estimate]:
    del baseline
    sums = _lanes(run, name), _lanes(run, count)
    return [ratio_interval(total, count) for total, count in zip(*sums, strict=True)]


def _utilisation(run: LaneFigures, baseline: LaneFigures) -> Estimate:
    del baseline
    return mean_interval(_lanes(run, "utilisation").mean(0))


def _completion_quantile(percent: int) -> Figure:
    return Figure(
        f"completion time that {percent} % of the tasks stay below",
        "time",
        of_run=functools.partial(_quantile, percent / 100),
        heading=f"p{percent}",
        plain=True,
    )


_LOST = Figure(
    "tasks that were refused, or left unserved",
    "share",
    of_outcome=lambda task, outcome: cast(Array, outcome.lost),
    heading="lost %",
    scale=100.0,
)


FIGURES: dict[str, Figure] = {
    "mean_completion": Figure(
        "completion time",
        "time",
        of_outcome=lambda task, outcome: outcome.completion,
        of_served=True,
        heading="completion",
    ),
    "mean_completion_by_priority": Figure(
        "the same, of the tasks of each priority",
        "time",
        of_run=functools.partial(_by_priority, "class_completion", "class_served"),
    ),
    "p50_completion": _completion_quantile(50),
    "p95_completion": _completion_quantile(95),
    "p99_completion": _completion_quantile(99),
    "mean_slowdown": Figure(
        "completion time / size",
        "",
        of_outcome=lambda task, outcome: outcome.completion / task.size,
        of_served=True,
        heading="slowdown",
    ),
    "sla_violation_rate": Figure(
        "tasks that took longer than their deadline, or were lost",
        "share",
        of_outcome=lambda task, outcome: outcome.violation,
        heading="SLA violations %",
        scale=100.0,
    ),
    "sla_violation_rate_by_priority": Figure(
        "the same, of the tasks of each priority",
        "share",
        of_run=functools.partial(_by_priority, "class_violations", "class_count"),
    ),
    "lost_rate": _LOST,
    "oracle_agreement": Figure(
        "tasks whose completion was the smallest possible",
        "share",
        lambda of: agreement(of.response, of.outcome.completion),
        heading="oracle's choice %",
        scale=100.0,
        plain=True,
    ),
    "mean_reward": Figure("reward", "reward", lambda of: of.reward, heading="reward", plain=True),
    "load_imbalance": Figure(
        "standard deviation of the wait over processors, after assignments", "time", _imbalance
    ),
    "utilisation": Figure("time that a processor would be busy at full speed", "share", of_run=_utilisation),
    "completion_difference": Figure(
        "completion time less the baseline's, lane by lane",
        "time",
        of_run=functools.partial(_difference, "mean_completion"),
        paired=True,
        heading="completion - {baseline}",
    ),
    "sla_violation_difference": Figure(
        "SLA violations less the baseline's, lane by lane",
        "share",
        of_run=functools.partial(_difference, "sla_violation_rate"),
        paired=True,
    ),
    "reward_difference": Figure(
        "reward less the baseline's, lane by lane",
        "reward",
        of_run=functools.partial(_difference, "mean_reward"),
        paired=True,
    ),
}
"""By name, in the order of tables. What is added here is summed, estimated, printed and written."""


_OF_CLASSES = {
    "departed": "class_count",
    "served": "class_served",
    "mean_completion": "class_completion",
    "sla_violation_rate": "class_violations",
}
"""Where any place may tell a departure, sums over places are dear: these are sums of those of classes."""


def columns(rows: Iterable[Any]) -> dict[str, Figure]:
    """Return the figures that tables of these rows for people have: of losses only where there are some."""
    loses = any(row.lost_rate > 0 for row in rows)
    return {name: one for name, one in FIGURES.items() if one.heading and (loses or one is not _LOST)}


def estimates(run: LaneFigures, baseline: LaneFigures) -> dict[str, Estimate | list[Estimate]]:
    """Return the value of each figure with its 95 % interval."""
    return {
        name: (figure.of_run or functools.partial(_mean, name))(run, baseline)
        for name, figure in FIGURES.items()
    }


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


class Summary(struct.PyTreeNode):
    """Figures of each lane. Averages over tasks, `[N]`, are attributes by the names of `FIGURES`."""

    num_tasks: Array  # int32, tasks counted in each lane
    averages: dict[str, Array]  # [N] over tasks, by name
    class_count: Array  # [C, N] int32, tasks of each priority
    class_served: Array  # [C, N] int32, those of them that were served
    class_violations: Array  # [C, N] int32, SLA violations of each priority
    class_completion: Array  # [C, N] time, sum of the completion times of each priority
    utilisation: Array  # [P, N] share of time that each processor was busy
    elapsed: Array  # [N] time from the first counted arrival to the one after the last
    wait_growth: Array  # [P, N] time, wait after the last counted task less that before the first
    queue_overflows: Array  # [P, N] int32, tasks that found a queue's memory full: its length reads too short

    def __getattr__(self, name: str) -> Array:
        """Return an average over tasks."""
        return attribute(self, "averages", name)

    def __dir__(self) -> list[str]:
        """List averages too, so that they complete in a notebook."""
        return [*super().__dir__(), *self.averages]


def attribute(owner: Any, mapping: str, name: str) -> Any:
    """Return what a mapping of an object has by that name, as its `__getattr__` finds it."""
    # Through the instance's own fields: one that is being unpickled or copied has none yet.
    found = vars(owner).get(mapping, {})
    if name in found:
        return found[name]
    raise AttributeError(f"{type(owner).__name__} has no {name!r}; figures are {', '.join(found)}")


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
        if figure.of_outcome is not None and name not in sums and (figure is not _LOST or lost is not None):
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


def agreement(response: Array, completion: Array) -> Array:
    """Return whether a choice cost what the oracle's would have, `[N]` bool: rounding apart, ties agree."""
    return completion <= least(response) * (1.0 + 1e-6)


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
    departed = jnp.maximum(counts["departed"], 1).astype(jnp.float32) if "departed" in counts else number
    served = jnp.maximum(counts["served"], 1).astype(jnp.float32) if "served" in counts else departed
    averages = {}
    for name, figure in FIGURES.items():
        if figure.of_task or figure.of_outcome:
            total = (counts | sums).get(name, jnp.zeros_like(sums["elapsed"]))
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
