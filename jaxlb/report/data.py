"""The numbers behind pictures, so that every picture of a thing shows the same ones."""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

import jax
import numpy as np

from jaxlb import workload
from jaxlb.comparison import Comparison
from jaxlb.env import Env
from jaxlb.params import at_its_processor, canonical, with_lane_axis
from jaxlb.replaying import replay
from jaxlb.statistics import bin_edges
from jaxlb.types import EnvParams, Key, Outcome, Scheduler, Task

_SIZE_BINS = 16
WARMUP = 200
"""Tasks of each replayed lane that pass before what is shown is typical."""


CURVES = {
    "greedy_completion": ("completion", 1.0),
    "greedy_slowdown": ("slowdown", 1.0),
    "greedy_violation": ("SLA violations %", 100.0),
    "greedy_agreement": ("oracle's choice %", 100.0),
    "greedy_objective": ("objective", 1.0),
    "td_error": ("temporal-difference error", 1.0),
    "exploration": ("exploration", 1.0),
    "held_out_error": ("error on examples held out, mean sizes", 1.0),
    "regression_loss": ("loss on examples it is fitted to", 1.0),
    "held_out_loss": ("loss on lanes held out", 1.0),
    "r_squared": ("R2 of completion", 1.0),
    "agreement": ("oracle's choice %", 100.0),
    "regret": ("regret, mean services", 1.0),
    "relative_completion": ("completion / greedy's", 1.0),
    "relative_violation": ("SLA violations / greedy's", 1.0),
}
"""Figures of progress that are drawn: heading and factor; what a method has besides is only logged.

Of a method that has none of these, all are drawn.
"""
OF_EVERY_ROW = frozenset(("iteration", "seed", "setting", "iterations_per_second"))
"""What a line of progress has besides figures."""


def curve(name: str) -> tuple[str, float]:
    """Return the heading of a figure of progress and its factor."""
    return CURVES.get(name, (name, 1.0))


class Tails(NamedTuple):
    """Shares of tasks that take longer than given times.

    Attributes:
      time: `[S]`.
      longer: by scheduler, `[S]`.
    """

    time: np.ndarray
    longer: dict[str, np.ndarray]


class BySize(NamedTuple):
    """What happens to tasks of each size, in B bins of equal width on a logarithmic scale.

    Attributes:
      edges: `[B + 1]` work; the thousandth of the tasks that are below the first are in the first bin.
      number: `[B]` tasks.
      share: by scheduler, `[P, B]`, of the tasks of a size that each processor gets, or refuses.
      slowdown: by scheduler, `[B]`, mean of those served; not a number where there is none.
    """

    edges: np.ndarray
    number: np.ndarray
    share: dict[str, np.ndarray]
    slowdown: dict[str, np.ndarray]


def tails(comparison: Comparison) -> Tails:
    """Return tails at the edges of the histograms' bins, from the least completion time to the largest."""
    histograms = comparison.histograms.values()
    bins = min(one.first for one in histograms), max(one.last for one in histograms)
    counts = {name: one.over(*bins).sum(0) for name, one in comparison.histograms.items()}
    longer = {name: 1.0 - np.cumsum(count) / count.sum() for name, count in counts.items()}
    return Tails(bin_edges(*bins)[1:], longer)


def replayed(
    env: Env, params: EnvParams, schedulers: Mapping[str, str | Scheduler], key: Key, pool: Executor
) -> tuple[Task, dict[str, Future[Outcome]]]:
    """Return tasks `[1000, 32]` and what becomes of them under each scheduler.

    Compiling, most of the work, is left to the threads of a pool. The key is consumed.
    """
    task_key, act_key = jax.random.split(key)
    tasks = workload.sample(task_key, params, 1000, (32,))

    def outcome(entry: str | Scheduler) -> Outcome:
        return replay(env, params, entry, tasks, act_key)

    return tasks, {name: pool.submit(outcome, entry) for name, entry in schedulers.items()}


def by_size(params: EnvParams, tasks: Task, outcomes: Mapping[str, Outcome]) -> BySize:
    """Summarise choices and slowdowns by size of task.

    Args:
      params: of the environment.
      tasks: leaves `[T, N]`.
      outcomes: of the same tasks, by scheduler.
    """
    num_processors, params = len(params.speed), with_lane_axis(canonical(params), tasks.gap.shape)
    size = np.asarray(tasks.size).ravel()
    edges = np.geomspace(np.quantile(size, 0.001), size.max() * 1.001, _SIZE_BINS + 1)
    place = np.maximum(np.searchsorted(edges, size, side="right") - 1, 0)
    count = np.bincount(place, minlength=_SIZE_BINS)
    share, slowdown = {}, {}
    for name, outcome in outcomes.items():
        action, completion = np.asarray(outcome.action).ravel(), np.asarray(outcome.completion).ravel()
        given = action < num_processors  # others no processor gets
        cells = np.bincount((action * _SIZE_BINS + place)[given], minlength=num_processors * _SIZE_BINS)
        share[name] = cells.reshape(num_processors, _SIZE_BINS) / np.maximum(count, 1)
        served = np.ones(size.shape, bool) if outcome.lost is None else ~np.asarray(outcome.lost).ravel()
        number = np.bincount(place[served], minlength=_SIZE_BINS)
        there = np.asarray(at_its_processor(params, tasks, outcome.action).size).ravel()
        slower = np.bincount(place[served], (completion / there)[served], minlength=_SIZE_BINS)
        slowdown[name] = slower / np.where(number > 0, number, np.nan)
    return BySize(edges, count, share, slowdown)
