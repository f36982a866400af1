"""Figures of a scheduler: what each is, and how it comes from outcomes, in one table."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import checks, phases
from jaxlb.numerics import (
    least,
    processor_index,
    variance,
)
from jaxlb.stations import View
from jaxlb.statistics import Estimate, Histogram, mean_interval, quantile_interval, ratio_interval
from jaxlb.types import Array, Outcome, Task


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
      by_priority: whether it has a value for each priority, not one.
      more_is_better: whether the best has the most of it, not the least.
      there: (task, outcome) -> whether there is such a figure, where it is an average over tasks that have
        left.
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
    by_priority: bool = False
    more_is_better: bool = False
    there: Callable[[Task, Outcome], bool] = lambda task, outcome: True

    @property
    def label(self) -> str:
        """Its meaning, with the unit in which tables and pictures show it."""
        return f"{self.meaning}{', %' * (self.scale != 1)}"


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


def _busiest(run: LaneFigures, baseline: LaneFigures) -> Estimate:
    del baseline
    found = _lanes(run, "utilisation")
    return mean_interval(found[found.mean(1).argmax()])


def _completion_quantile(percent: int) -> Figure:
    return Figure(
        f"completion time that {percent} % of the tasks stay below",
        "time",
        of_run=functools.partial(_quantile, percent / 100),
        heading=f"p{percent}",
        plain=True,
    )


LOST = Figure(
    "tasks that were refused, or left unserved",
    "share",
    of_outcome=lambda task, outcome: cast(Array, outcome.lost),
    heading="lost %",
    scale=100.0,
    there=lambda task, outcome: outcome.lost is not None,
)


def _has_phases(task: Task, outcome: Outcome) -> bool:
    del task
    return outcome.first_token is not None


FIGURES: dict[str, Figure] = {
    "mean_completion": Figure(
        "completion time",
        "time",
        of_outcome=lambda task, outcome: outcome.completion,
        of_served=True,
        heading="completion",
    ),
    "mean_completion_by_priority": Figure(
        "completion time of the tasks of each priority",
        "time",
        of_run=functools.partial(_by_priority, "class_completion", "class_served"),
        by_priority=True,
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
        "tasks of each priority that took longer than their deadline, or were lost",
        "share",
        of_run=functools.partial(_by_priority, "class_violations", "class_count"),
        heading="by priority %",
        scale=100.0,
        by_priority=True,
    ),
    "lost_rate": LOST,
    "time_to_first_token": Figure(
        "time to the first token",
        "time",
        of_outcome=lambda task, outcome: cast(Array, outcome.first_token),
        heading="first token",
        there=_has_phases,
    ),
    "time_per_token": Figure(
        "time per work after the first token",
        "time",
        of_outcome=phases.time_per_token,
        heading="per token",
        there=_has_phases,
    ),
    "goodput": Figure(
        "tasks with both within their limits",
        "share",
        of_outcome=phases.within_limits,
        heading="goodput %",
        scale=100.0,
        more_is_better=True,
        there=_has_phases,
    ),
    "oracle_agreement": Figure(
        "tasks whose completion was the smallest possible",
        "share",
        lambda of: agreement(of.response, of.outcome.completion),
        heading="oracle's choice %",
        scale=100.0,
        plain=True,
        more_is_better=True,
    ),
    "mean_reward": Figure(
        "reward", "reward", lambda of: of.reward, heading="reward", plain=True, more_is_better=True
    ),
    "load_imbalance": Figure(
        "standard deviation of the wait over processors, after assignments", "time", _imbalance
    ),
    "utilisation": Figure("time that a processor would be busy at full speed", "share", of_run=_utilisation),
    "busiest": Figure(
        "time that the busiest processor would be busy at full speed", "share", of_run=_busiest
    ),
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
    "lost_difference": Figure(
        "lost tasks less the baseline's, lane by lane",
        "share",
        of_run=functools.partial(_difference, "lost_rate"),
        paired=True,
    ),
    "reward_difference": Figure(
        "reward less the baseline's, lane by lane",
        "reward",
        of_run=functools.partial(_difference, "mean_reward"),
        paired=True,
        more_is_better=True,
    ),
}
"""By name, in the order of tables. What is added here is summed, estimated, printed and written."""


def check_one_value(figure: str) -> None:
    """Raise ValueError unless it is the name of a figure of one value a scheduler."""
    checks.known("figure", figure, FIGURES)
    if FIGURES[figure].by_priority:
        raise ValueError(f"figure {figure!r} has a value for each priority; must be one of one value")


def columns(rows: Iterable[Any]) -> dict[str, Figure]:
    """Return the figures that tables of these rows for people have.

    Those of losses are there if there are some, those by priority if there are several.
    """
    rows = list(rows)

    def told(name: str, figure: Figure) -> bool:
        if figure is LOST:
            return any(row.lost_rate > 0 for row in rows)
        if not hasattr(rows[0], name):
            return False
        return bool(figure.heading) and not (figure.by_priority and len(getattr(rows[0], name)) == 1)

    return {name: figure for name, figure in FIGURES.items() if told(name, figure)}


def estimates(run: LaneFigures, baseline: LaneFigures) -> dict[str, Estimate | list[Estimate]]:
    """Return the value of each figure with its 95 % interval."""
    return {
        name: (figure.of_run or functools.partial(_mean, name))(run, baseline)
        for name, figure in FIGURES.items()
        if figure.of_run or name in run.summary.averages
    }


class Summary(struct.PyTreeNode):
    """Figures of each lane. Averages over tasks, `[N]`, are attributes by the names of `FIGURES`.

    Attributes:
      num_tasks: int32, tasks counted in each lane.
      averages: `[N]` over tasks, by name.
      class_count: `[C, N]` int32, tasks of each priority.
      class_served: `[C, N]` int32, those of them that were served.
      class_violations: `[C, N]` int32, SLA violations of each priority.
      class_completion: `[C, N]` time, sum of the completion times of each priority.
      utilisation: `[P, N]` share of time that each processor was busy.
      elapsed: `[N]` time from the first counted arrival to the one after the last.
      wait_growth: `[P, N]` time, wait after the last counted task less that before the first.
      queue_overflows: `[P, N]` int32, tasks that found a queue's memory full: its length reads too short.
    """

    num_tasks: Array
    averages: dict[str, Array]
    class_count: Array
    class_served: Array
    class_violations: Array
    class_completion: Array
    utilisation: Array
    elapsed: Array
    wait_growth: Array
    queue_overflows: Array

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


def agreement(response: Array, completion: Array) -> Array:
    """Return whether a choice cost what the oracle's would have, `[N]` bool: rounding apart, ties agree."""
    return completion <= least(response) * (1.0 + 1e-6)
