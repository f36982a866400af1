"""Pictures of a comparison: tails of completion time, violations, backlog over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from jaxlb.charts import STYLE, line_style, plain_log, save, shown, told_apart
from jaxlb.comparison import Comparison
from jaxlb.env import Env
from jaxlb.report import data
from jaxlb.threads import threads
from jaxlb.types import EnvParams, Key, Outcome, Scheduler, Task
from jaxlb.verification import Case


def completion_tails(comparison: Comparison) -> Figure:
    """Draw the share of tasks served that take longer than t, for each scheduler; both axes logarithmic."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        time, longer = data.tails(comparison)
        ranked = sorted(longer, key=lambda name: comparison.row(name).p99_completion)
        styles = told_apart(ranked, longer, [comparison.baseline])
        for name in ranked:
            share, title = longer[name], comparison.row(name).title
            labelled = {"label": title} if shown(styles[name]) else {}
            axes.plot(time, np.where(share > 0, share, np.nan), lw=1.4, **labelled, **styles[name])
        if len(ranked) > (named := len(axes.get_legend_handles_labels()[0])):
            axes.plot([], [], color="0.8", lw=1.4, label=f"the other {len(ranked) - named}")
        lowest = 1.0 / (comparison.num_lanes * comparison.num_tasks)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(max(time[0], time[-1] * 1e-7), time[-1]),
            ylim=(lowest, 1.3),
            xlabel="completion time t",
            ylabel="share of tasks served that take longer than t",
            title=f"Completion times on {comparison.scenario}",
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="least p99 first")
        return figure


def backlog_path(tasks: Task, outcome: Outcome, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the backlog of each processor at a fine grid of times, from what became of the tasks.

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


def backlogs(env: Env, params: EnvParams, tasks: Task, outcomes: Mapping[str, Outcome]) -> Figure:
    """Draw the backlog over time for each processor, one panel for each scheduler.

    Args:
      env: that was replayed.
      params: its parameters.
      tasks: leaves `[T]`.
      outcomes: of the same tasks, by scheduler.
    """
    speed = np.asarray(params.speed)
    num_tasks = len(tasks.gap)
    with plt.rc_context(STYLE):
        figure, panels = panels_of(len(outcomes))
        colors = _of_processors(speed)
        for axes, (name, outcome) in zip(panels, outcomes.items(), strict=True):
            times, path = backlog_path(tasks, outcome, speed)
            for processor in np.argsort(speed, kind="stable"):
                label = f"{processor} (speed {speed[processor]:.3g})"
                axes.plot(times, path[processor], lw=0.9, color=colors[processor], label=label)
            axes.set_title(name, fontsize=9)
            # Symmetric log: an unstable scheduler's backlog must not flatten all others.
            axes.set_yscale("symlog", linthresh=float(params.size.mean()))
        panels[0].set_ylim(bottom=0.0)  # once all are drawn: the panels share it
        figure.supxlabel("time", fontsize=9)
        figure.supylabel("backlog, work (log above the mean size)", fontsize=9)
        figure.suptitle(f"Backlog of each processor on {env.name}, the same {num_tasks} tasks", fontsize=10)
        _name_processors(figure, panels[0], speed)
        return figure


def choices(env: Env, params: EnvParams, tasks: Task, outcomes: Mapping[str, Outcome]) -> Figure:
    """Draw which processor gets tasks of which size, and how much each size is slowed down.

    Args:
      env: that was replayed.
      params: its parameters.
      tasks: leaves `[T, N]`.
      outcomes: of the same tasks, by scheduler.
    """
    speed = np.asarray(params.speed)
    edges, count, share, slowdown = data.by_size(params, tasks, outcomes)
    with plt.rc_context(STYLE):
        figure, panels = panels_of(len(outcomes))
        rights: list[Any] = []
        for axes, name in zip(panels, outcomes, strict=True):
            below = np.zeros(len(count))
            for processor, color in enumerate(_of_processors(speed)):
                label = f"{processor} (speed {speed[processor]:.3g})"
                height = share[name][processor]
                axes.bar(
                    edges[:-1], height, np.diff(edges), below, align="edge", color=color, lw=0, label=label
                )
                below += height
            right = axes.twinx()
            right.plot(np.sqrt(edges[:-1] * edges[1:]), slowdown[name], color="C3", lw=1.4, marker=".", ms=4)
            right.set_yscale("log")
            right.grid(visible=False)
            right.tick_params(axis="y", which="both", colors="C3", labelsize=7)
            rights.append(right)
            axes.set_title(name, fontsize=9)
            axes.set(xscale="log", xlim=(edges[0], edges[-1]), ylim=(0.0, 1.0))
            axes.grid(visible=False)
        limits = [limit for right in rights for limit in right.get_ylim()]
        for right in rights:
            right.set_ylim(min(limits), max(limits))
            plain_log(right.yaxis)
        figure.supxlabel("task size (work)", fontsize=9)
        figure.supylabel("share of the tasks of this size", fontsize=9)
        figure.suptitle(f"Who gets which tasks on {env.name}; red: mean slowdown (right axis)", fontsize=10)
        _name_processors(figure, panels[0], speed)
        return figure


def panels_of(count: int, sharey: bool = True) -> tuple[Figure, list[Any]]:
    """Return a figure with as many panels, three in a line, on the same scales; heights may differ."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(3.4 * columns + 0.8, 2.1 * lines + 0.6),
        sharex=True,
        sharey=sharey,
        squeeze=False,
        layout="constrained",
    )
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.set_visible(False)
        elif place + columns >= count:  # no panel is below
            axes.tick_params(labelbottom=True)
    return figure, list(grid.flat)[:count]


def _of_processors(speed: np.ndarray) -> np.ndarray:
    """Return a colour for each processor."""
    return plt.get_cmap("viridis")(np.linspace(0.0, 0.95, len(speed)))


def _name_processors(figure: Figure, panel: Any, speed: np.ndarray) -> None:
    """Add a legend of the processors, if there are few enough for one."""
    if len(speed) <= 10:
        handles, labels = panel.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", title="processor", fontsize=8)


def deviations(cases: Sequence[Case]) -> Figure:
    """Draw the deviations of measured from exact values in standard errors, by group, and the normal law."""
    random = [case for case in cases if case.standard_error]
    groups = list(dict.fromkeys(case.group for case in random))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(9, 4.5), sharey=True, width_ratios=(3, 1), layout="constrained"
        )
        for index, group in enumerate(groups):
            found = np.array([case.deviation() for case in random if case.group == group])
            places = index + np.linspace(-0.3, 0.3, len(found)) if len(found) > 1 else [index]
            left.plot(places, found, "o", ms=4, color=f"C{index % 10}")
        left.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
        left.set(ylabel="(measured - exact) / standard error", title=f"{len(random)} cases with an error")
        left.grid(axis="x", visible=False)
        # What lies beyond the edges is counted at the edges.
        every = np.clip([case.deviation() for case in random], -4.99, 4.99)
        right.hist(
            every, bins=np.arange(-5.0, 5.01, 0.5), density=True, orientation="horizontal", color="0.8"
        )
        grid = np.linspace(-5.0, 5.0, 200)
        right.plot(np.exp(-(grid**2) / 2.0) / np.sqrt(2.0 * np.pi), grid, color="C0", label="normal law")
        right.legend(loc="upper right", fontsize=8)
        right.set(xlabel="density")
        for axes in (left, right):
            for edge in (-4.0, 4.0):
                axes.axhline(edge, color="C3", lw=0.8, ls="--")
        return figure


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what training reached as it went on: a thin line for each seed, the mean, and the spread between.

    Args:
      rows: of a run's `metrics.jsonl`; each setting of a population has a colour.
    """
    panels = {name: panel for name, panel in data.CURVES.items() if name in rows[0]}
    panels = panels or {name: data.curve(name) for name in rows[0] if name not in data.OF_EVERY_ROW}
    if "greedy_agreement" in panels:  # the other is that of choices while it explores
        panels.pop("agreement", None)
    seeds = sorted({row["seed"] for row in rows})
    settings = list(dict.fromkeys(row.get("setting", "") for row in rows))
    with plt.rc_context(STYLE):
        figure, grid = panels_of(len(panels), sharey=False)
        for axes, (name, (label, scale)) in zip(grid, panels.items(), strict=True):
            for place, setting in enumerate(settings):
                own = [row for row in rows if row.get("setting", "") == setting]
                iteration = [row["iteration"] for row in own if row["seed"] == seeds[0]]
                # None, where training diverged, becomes a gap.
                lines = scale * np.array(
                    [[row[name] for row in own if row["seed"] == seed] for seed in seeds], np.float64
                )
                style = line_style(place)
                if len(settings) == 1:  # of many, they would hide each other
                    axes.plot(iteration, lines.T, **style, lw=0.7, alpha=0.5)
                axes.plot(iteration, lines.mean(0), **style, lw=1.8, marker="o", ms=3, label=setting)
                axes.fill_between(
                    iteration, lines.min(0), lines.max(0), color=style["color"], alpha=0.15, lw=0
                )
            axes.set_title(label, fontsize=9)
        figure.supxlabel("iteration", fontsize=9)
        if len(settings) > 1:
            handles, names = grid[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside right center", fontsize=8)
        count = f"{len(seeds)} seeds: mean, and from the least to the most" if len(seeds) > 1 else "one seed"
        figure.suptitle(f"Learning curves, {count}", fontsize=10)
        return figure


def completions(predicted: np.ndarray, truth: np.ndarray, chosen: np.ndarray, load: np.ndarray) -> Figure:
    """Draw predicted against true completion times, and by load how often the choice is the oracle's.

    Args:
      predicted: `[D, P]` of D decisions; without them (not a number), only the second panel is drawn.
      truth: `[D, P]`.
      chosen: `[D]`, of the processor that was chosen.
      load: `[D]`, load average.
    """
    with plt.rc_context(STYLE):
        known = bool(np.isfinite(predicted).all())
        figure, panels = plt.subplots(
            1, 1 + known, figsize=(5.5 * (1 + known), 4.5), layout="constrained", squeeze=False
        )
        if known:
            axes = panels[0, 0]
            both = np.stack([truth.ravel(), np.maximum(predicted.ravel(), 1e-3)])
            low, high = both.min(), both.max()
            cells = axes.hexbin(
                *both, xscale="log", yscale="log", gridsize=60, bins="log", mincnt=1, cmap="viridis", lw=0
            )
            axes.plot([low, high], [low, high], color="C3", lw=0.8)
            axes.set(
                xlabel="true completion (mean services)",
                ylabel="predicted",
                title="Predictions",
                xlim=(low, high),
                ylim=(low, high),
            )
            figure.colorbar(cells, ax=axes, label="predictions")
        axes = panels[0, -1]
        agreed = chosen <= truth.min(-1) * (1.0 + 1e-6)
        edges = np.unique(np.quantile(load, np.linspace(0.0, 1.0, 13)))
        place = np.clip(np.digitize(load, edges) - 1, 0, max(len(edges) - 2, 0))
        groups = [place == index for index in range(max(len(edges) - 1, 1)) if (place == index).any()]
        middle = [np.median(load[group]) for group in groups]
        rate = np.array([agreed[group].mean() for group in groups])
        error = 1.96 * np.sqrt(rate * (1.0 - rate) / [group.sum() for group in groups])
        axes.errorbar(middle, 100 * rate, 100 * error, marker="o", ms=4, lw=1.2, capsize=2)
        axes.set(
            xlabel="load average (mean sizes)", ylabel="oracle's choice, %", title="Agreement by system load"
        )
        return figure


def influence(change: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw by how much each processor's prediction depends on what is known of each, `[P, P]`."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
        image = axes.imshow(change, cmap="viridis", norm="log")
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(places, names, fontsize=8)
        axes.set(xlabel="told of", ylabel="prediction for", title="Who listens to whom, in one state")
        figure.colorbar(image, ax=axes, label="change of the prediction (norm of the gradient)")
        return figure


def save_all(
    directory: Path,
    comparison: Comparison,
    env: Env,
    params: EnvParams,
    schedulers: Mapping[str, str | Scheduler],
    key: Key,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Write every picture of a comparison, in each of the formats; the key is consumed."""
    with threads() as pool:
        tasks, replays = data.replayed(env, params, schedulers, key, pool)
        outcomes = {comparison.row(name).title: replay.result() for name, replay in replays.items()}
    first = jax.tree.map(lambda leaf: leaf[:400, 0], (tasks, outcomes))
    later = jax.tree.map(lambda leaf: leaf[data.WARMUP :], (tasks, outcomes))
    figures = {
        "completion_tails": completion_tails(comparison),
        "violations": comparison.plot("sla_violation_rate"),
        "choices": choices(env, params, *later),
    }
    if len(comparison.schedulers[0].sla_violation_rate_by_priority) > 1:
        figures["violations_by_priority"] = comparison.plot("sla_violation_rate_by_priority")
    if env.station.settled:  # backlogs follow from what became of tasks
        figures["backlogs"] = backlogs(env, params, *first)
    return [path for name, figure in figures.items() for path in save(figure, directory, name, formats)]
