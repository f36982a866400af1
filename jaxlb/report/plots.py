"""Pictures of a comparison: tails of completion time, violations, backlog over time."""

from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from jaxlb import workload
from jaxlb.comparison import Comparison, Row, bin_edges
from jaxlb.env import Env, with_lane_axis
from jaxlb.rollout import replay
from jaxlb.types import EnvParams, Key, Outcome, Scheduler, Task

matplotlib.use("Agg")

_STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.size": 9,
}
_LINES = ("-", "--", "-.", ":")


def _looks(index: int) -> dict[str, Any]:
    """Ten colours and four dashes tell forty lines apart."""
    return {"color": f"C{index % 10}", "linestyle": _LINES[index // 10 % 4]}


def completion_tails(comparison: Comparison) -> Figure:
    """Share of tasks that take longer than t, for each scheduler; both axes logarithmic."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        edges = bin_edges()
        left, right = [], []
        for index, (name, histogram) in enumerate(comparison.histograms.items()):
            counts = histogram.sum(0)
            longer = 1.0 - np.cumsum(counts) / counts.sum()
            seen = np.flatnonzero(counts)
            left.append(edges[seen[0]])
            right.append(edges[seen[-1] + 1])
            axes.plot(edges[1:], np.where(longer > 0, longer, np.nan), label=name, lw=1.4, **_looks(index))
        lowest = 1.0 / (comparison.num_lanes * comparison.num_tasks)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(max(min(left), max(right) * 1e-7), max(right)),
            ylim=(lowest, 1.3),
            xlabel="completion time t",
            ylabel="share of tasks that take longer than t",
            title=f"Completion times on {comparison.scenario}",
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def violations(comparison: Comparison) -> Figure:
    """SLA violations of each scheduler with their 95 % intervals, fewest first."""
    with plt.rc_context(_STYLE):
        rows = sorted(comparison.schedulers, key=lambda row: -row.sla_violation_rate)
        figure, axes = plt.subplots(figsize=(7, 0.32 * len(rows) + 1.2), layout="constrained")

        def half(row: Row) -> float:
            interval = row.sla_violation_rate_ci
            return 0.0 if interval is None else 50.0 * (interval[1] - interval[0])

        rates = [100.0 * row.sla_violation_rate for row in rows]
        colors = ["C1" if row.name == comparison.baseline else "C0" for row in rows]
        axes.barh(
            [row.name for row in rows], rates, xerr=[half(row) for row in rows], color=colors, capsize=2
        )
        for index, (row, rate) in enumerate(zip(rows, rates, strict=True)):
            axes.annotate(
                f"{rate:.2f}",
                (rate + half(row), index),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set(
            xlabel="SLA violations, % of tasks (bar ends: 95 % interval)",
            title=f"SLA violations on {comparison.scenario} (orange: baseline)",
            xlim=(0.0, 1.12 * max(max(rates), 1e-3)),
        )
        axes.grid(axis="y", visible=False)
        return figure


def sample_tasks(params: EnvParams, key: Key, num_tasks: int) -> Task:
    """One lane's tasks, leaves `[T]`; the key is consumed."""
    params = with_lane_axis(params, ())
    start_key, task_key = jax.random.split(key)

    def draw(state, key):
        task, state = workload.draw(key, params, state)
        return state, task

    return jax.lax.scan(draw, workload.start(start_key, params), jax.random.split(task_key, num_tasks))[1]


def backlog_path(tasks: Task, outcome: Outcome, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Backlog of each processor at a fine grid of times, from what became of the tasks.

    Returns:
      Times `[S]` and backlogs `[P, S]`, work.
    """
    arrival = np.cumsum(np.asarray(tasks.gap, np.float64))
    times = np.linspace(arrival[0], arrival[-1], 2000)
    backlog = np.zeros((len(speed), len(times)))
    for processor in range(len(speed)):
        mine = np.flatnonzero(np.asarray(outcome.action) == processor)
        if len(mine):
            free = arrival[mine] + np.asarray(outcome.completion, np.float64)[mine]
            last = np.searchsorted(arrival[mine], times, side="right") - 1
            remaining = np.where(last >= 0, free[last] - times, 0.0)
            backlog[processor] = speed[processor] * np.maximum(remaining, 0.0)
    return times, backlog


def backlogs(
    env: Env, params: EnvParams, schedulers: dict[str, Scheduler], key: Key, num_tasks: int = 400
) -> Figure:
    """Backlog over time for each processor, one panel for each scheduler, all on the same tasks."""
    task_key, act_key = jax.random.split(key)
    tasks = sample_tasks(params, task_key, num_tasks)
    speed = np.asarray(params.speed)
    with plt.rc_context(_STYLE):
        columns = min(3, len(schedulers))
        lines = -(-len(schedulers) // columns)
        figure, grid = plt.subplots(
            lines,
            columns,
            figsize=(3.4 * columns + 0.8, 2.1 * lines + 0.6),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.95, len(speed)))
        for axes, (name, scheduler) in zip(grid.flat, schedulers.items(), strict=False):
            outcome = replay(env, params, scheduler, (), tasks, act_key)
            times, path = backlog_path(tasks, outcome, speed)
            for processor in np.argsort(speed, kind="stable"):
                label = f"{processor} (speed {speed[processor]:.3g})"
                axes.plot(times, path[processor], lw=0.9, color=colors[processor], label=label)
            axes.set_title(name, fontsize=9)
            # Symmetric log: an unstable scheduler's backlog must not flatten all others.
            axes.set_yscale("symlog", linthresh=float(params.size.mean()))
            axes.set_ylim(bottom=0.0)
        for axes in list(grid.flat)[len(schedulers) :]:
            axes.set_visible(False)
        figure.supxlabel("time", fontsize=9)
        figure.supylabel("backlog (work, linear up to the mean size, then logarithmic)", fontsize=9)
        figure.suptitle(f"Backlog of each processor on {env.name}, the same {num_tasks} tasks", fontsize=10)
        if len(speed) <= 10:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", title="processor", fontsize=8)
        return figure


def save_all(
    directory: Path,
    comparison: Comparison,
    env: Env,
    params: EnvParams,
    schedulers: dict[str, Scheduler],
    key: Key,
) -> list[Path]:
    """Write every picture of a comparison as PNG; the key is consumed."""
    figures = {
        "completion_tails.png": completion_tails(comparison),
        "violations.png": violations(comparison),
        "backlogs.png": backlogs(env, params, schedulers, key),
    }
    for name, figure in figures.items():
        figure.savefig(directory / name)
        plt.close(figure)
    return [directory / name for name in figures]
