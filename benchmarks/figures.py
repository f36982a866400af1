"""Pictures that only benchmarks draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxlb.charts import STYLE, line_style, plain_log
from jaxlb.report.plots import panels_of
from jaxlb.scheduling import optimal
from jaxlb.types import EnvParams

_TWO = ListedColormap(["#4c78a8", "#f2cf5b"])


def trade_off(fronts: Mapping[str, np.ndarray], rules: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw mean completion against violations: fronts as lines, single schedulers as points.

    Args:
      fronts: by name, `[K, 2]` of mean completion and violation rate.
      rules: by name, mean completion and violation rate.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for index, (name, points) in enumerate(fronts.items()):
            points = points[np.argsort(points[:, 0])]
            # What another point beats in both is not on the front.
            best = np.minimum.accumulate(points[:, 1])
            front = points[points[:, 1] <= best]
            axes.plot(points[:, 0], 100.0 * points[:, 1], "o", ms=3, color=f"C{index}", alpha=0.4)
            axes.plot(
                front[:, 0], 100.0 * front[:, 1], "o-", ms=4, lw=1.2, color=f"C{index}", label=name, zorder=3
            )
        for index, (name, (completion, rate)) in enumerate(rules.items()):
            axes.plot(
                completion,
                100.0 * rate,
                "Xs^vDPp*hd"[index % 10],
                color=f"C{index + len(fronts)}",
                label=name,
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="mean completion time",
            ylabel="SLA violations, % of tasks",
            title="What one network reaches, told other weights, and what rules reach",
        )
        for axis in (axes.xaxis, axes.yaxis):
            plain_log(axis)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return figure


def optimal_policies(systems: Sequence[EnvParams], relative_sizes: Sequence[float], most: float) -> Figure:
    """Draw which of two processors the optimal rule chooses, over the plane of their waits, by size.

    Args:
      systems: parameters of environments of two processors, a row each.
      relative_sizes: of the task, in mean sizes, a column each.
      most: largest wait that is shown, in mean sizes.
    """
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(systems),
            len(relative_sizes),
            figsize=(2.9 * len(relative_sizes), 2.9 * len(systems) + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for line, params in zip(grid, systems, strict=True):
            values = jax.jit(optimal.solve)(params)
            mean, speed = float(params.size.mean()), np.asarray(params.speed)
            ticks = np.linspace(0.0, most * mean, 241, dtype=np.float32)
            wait = jnp.stack(jnp.meshgrid(ticks, ticks, indexing="ij"))
            for axes, relative in zip(line, relative_sizes, strict=True):
                size = jnp.full(wait.shape[1:], relative * mean)
                cost = optimal.costs(values, wait, size, params.speed[:, None, None])
                second = np.asarray(cost[1] < cost[0]).T  # the first wait goes to the right, the second up
                axes.pcolormesh(
                    ticks / mean, ticks / mean, second, cmap=_TWO, vmin=0, vmax=1, rasterized=True
                )
                # Greedy changes sides where both would complete the task at the same time.
                greedy = ticks + relative * mean * (1.0 / speed[0] - 1.0 / speed[1])
                axes.plot(ticks / mean, greedy / mean, color="k", lw=1.0, ls="--")
                title = f"speeds {speed[0]:g}, {speed[1]:g}; load {float(params.load):g}; size {relative:g}"
                axes.set_title(title, fontsize=8)
                axes.set(xlim=(0.0, most), ylim=(0.0, most), aspect="equal")
                axes.grid(visible=False)
        figure.supxlabel("wait at processor 0 (mean sizes)", fontsize=9)
        figure.supylabel("wait at processor 1 (mean sizes)", fontsize=9)
        figure.legend(
            handles=[
                Patch(color=_TWO(0.0), label="to processor 0"),
                Patch(color=_TWO(1.0), label="to processor 1"),
                Line2D([], [], color="k", lw=1.0, ls="--", label="where greedy changes sides"),
            ],
            loc="outside upper center",
            ncols=3,
            fontsize=8,
        )
        return figure


def predictions(
    times: np.ndarray,
    loads: Mapping[str, np.ndarray],
    alarms: np.ndarray,
    names: Sequence[str],
) -> Figure:
    """Draw true, reported and predicted loads over time, a panel for each processor, alarms marked below.

    Args:
      times: `[T]` of the decisions.
      loads: by the name of the line, `[T, P]`; the first is drawn as an area.
      alarms: `[T, P]` bool.
      names: of the P processors.
    """
    with plt.rc_context(STYLE):
        figure, panels = panels_of(len(names))
        for place, (axes, name) in enumerate(zip(panels, names, strict=True)):
            (first, truth), *others = loads.items()
            axes.fill_between(times, truth[:, place], color="0.8", lw=0, label=first)
            for index, (label, load) in enumerate(others):
                axes.step(times, load[:, place], where="post", lw=1.0, color=f"C{index}", label=label)
            when = times[alarms[:, place]]
            axes.plot(when, np.zeros_like(when), "|", color="C3", ms=5, label="alarm", clip_on=False)
            axes.set_title(name, fontsize=9)
            axes.set_xlim(times[0], times[-1])
            axes.set_ylim(bottom=0.0)
        figure.supxlabel("time", fontsize=9)
        figure.supylabel("load (mean sizes)", fontsize=9)
        figure.suptitle("Backlog as it is, as it is reported, and as it is predicted", fontsize=10)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
        return figure


def detection(curves: Mapping[str, np.ndarray]) -> Figure:
    """Draw delay after a change against false alarms without one, a line for each detector.

    Args:
      curves: by detector, `[K, 2]` of false alarms per number read, and mean delay in numbers read.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for index, (name, curve) in enumerate(curves.items()):
            curve = curve[np.argsort(curve[:, 0])]
            axes.plot(curve[:, 0], curve[:, 1], marker="o", ms=4, lw=1.2, label=name, **line_style(index))
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="false alarms per number read",
            ylabel="mean delay of the alarm after the change",
            title="Detection of a shift by one standard deviation",
        )
        for axis in (axes.xaxis, axes.yaxis):
            plain_log(axis)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return figure


def over_time(times: np.ndarray, lines: Mapping[str, np.ndarray], change: float, ylabel: str) -> Figure:
    """Draw figures over tasks, a line for each scheduler, with a mark where something changed."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for index, (name, line) in enumerate(lines.items()):
            axes.plot(times, line, lw=1.3, label=name, **line_style(index))
        axes.axvline(change, color="0.5", lw=0.8, ls=":")
        axes.set(xlabel="tasks", ylabel=ylabel)
        axes.set_ylim(bottom=0.0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return figure


def ratios(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw a dot with its interval for each setting, in the order given, on a logarithmic scale.

    Args:
      rows: each with a setting, a ratio, and the low and high end of its interval.
      title: of the axis.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.19 * len(rows) + 1.2), layout="constrained")
        for place, row in enumerate(rows):
            colour = "C3" if row["low"] > 1 else "C2" if row["high"] < 1 else "0.5"
            axes.plot([max(row["low"], 1e-3), row["high"]], [place, place], color=colour, lw=1.2)
            axes.plot(row["ratio"], place, "o", ms=4, color=colour)
        axes.axvline(1.0, color="0.3", lw=0.8)
        label = f"{title} (green: below 1; red: above; grey: undecided, or not stationary)"
        axes.set(xscale="log", xlabel=label, ylim=(-0.7, len(rows) - 0.3))
        axes.set_yticks(range(len(rows)), [row["setting"] for row in rows], fontsize=7)
        plain_log(axes.xaxis)
        return figure


def work_ranks(rows: Mapping[str, Mapping[str, np.ndarray]], speed: Mapping[str, np.ndarray]) -> Figure:
    """Draw which processor gets the tasks of each tenth of the work, from small tasks to large ones.

    Args:
      rows: by system, then scheduler: shares `[P, 10]` of the tasks of each tenth that each processor gets.
      speed: `[P]` by system; slow processors are dark, and below.
    """
    columns = list(next(iter(rows.values())))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            len(rows),
            len(columns),
            figsize=(2.6 * len(columns) + 1, 1.35 * len(rows) + 0.8),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for (system, each), line in zip(rows.items(), panels, strict=True):
            order = np.argsort(speed[system])
            colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.95, len(order)))
            for (name, share), panel in zip(each.items(), line, strict=True):
                bottom = np.zeros(share.shape[1])
                for place, colour in zip(order, colours, strict=True):
                    panel.bar(np.arange(10) + 0.5, share[place], 0.92, bottom=bottom, color=colour)
                    bottom += share[place]
                panel.set(ylim=(0, 1), xlim=(0, 10), xticks=(0, 5, 10), yticks=(0, 1))
                if each is next(iter(rows.values())):
                    panel.set_title(name, fontsize=9)
            line[0].set_ylabel(system, fontsize=8)
        figure.supxlabel("tenth of all work, from the smallest tasks to the largest", fontsize=9)
        figure.supylabel("share of these tasks, by processor (dark: slow)", fontsize=9)
        return figure
