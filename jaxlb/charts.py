"""What all pictures share, and bars with intervals."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.size": 9,
}
_LINES = ("-", "--", "-.", ":")
_SHOWN = {"zorder": 2.5}  # over the grey ones
_COLOURED = 8
"""Of more lines, the rest is grey."""


class _PlainLog(LogFormatter):
    """Ticks of a logarithmic axis as plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label at x, empty where there would be too many."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def save(figure: Figure, directory: Path, name: str, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a picture in a folder, in each of some formats, and close it."""
    paths = [directory / f"{name}.{one}" for one in formats]
    for path in paths:
        figure.savefig(path)
    plt.close(figure)
    return paths


def line_style(index: int) -> dict[str, Any]:
    """Return one of forty line styles: ten colours with four dashes."""
    return {"color": f"C{index % 10}", "linestyle": _LINES[index // 10 % 4]}


def shown(style: Mapping[str, Any]) -> bool:
    """Return whether a style of `told_apart` is a coloured one."""
    return style["zorder"] == _SHOWN["zorder"]


def told_apart(
    ranked: Sequence[str], order: Iterable[str], always: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the style of each line: of many, all but the first and those that `always` matter are grey.

    Args:
      ranked: names of the lines, the most interesting first.
      order: of the same, in which they get their styles: these do not depend on who is best.
      always: names that have a colour wherever they stand.
    """
    own = {name: line_style(place) | _SHOWN for place, name in enumerate(order)}
    if len(ranked) <= _COLOURED:
        return own
    kept = [name for name in ranked if name in set(always)]
    first = [name for name in ranked if name not in kept][: max(_COLOURED - len(kept), 1)]
    grey = {"color": "0.8", "linestyle": "-", "zorder": 1.5}
    return {name: own[name] if name in kept or name in first else grey for name in ranked}


def name_ends(axes: Any, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Any]) -> None:
    """Write the names of lines beside their right ends, none over another; grey ones are only counted."""
    axes.figure.canvas.draw()  # places follow from scales and limits
    coloured = [name for name in ends if shown(styles[name])]
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_axes.transform(ends[name])[1]) for name in coloured}
    order = sorted(coloured, key=lambda name: heights[name])
    gap = 0.065
    places = np.array([heights[name] for name in order])
    for _ in range(200):  # neighbours that are too near part, half the way each
        for low in range(len(places) - 1):
            near = gap - (places[low + 1] - places[low])
            if near > 1e-4:
                places[low] -= near / 2
                places[low + 1] += near / 2
    for name, place in zip(order, places, strict=True):
        axes.annotate(
            name,
            ends[name],
            (1.06, place),
            textcoords=axes.transAxes,
            va="center",
            fontsize=8,
            color=styles[name]["color"],
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name]["color"],
                "lw": 0.6,
                "shrinkA": 1,
                "shrinkB": 1,
            },
            annotation_clip=False,
        )
    if len(coloured) < len(ends):
        text = f"grey: the other {len(ends) - len(coloured)}"
        axes.annotate(
            text, (1.06, places.min() - 1.2 * gap), xycoords="axes fraction", fontsize=8, color="0.5"
        )


def plain_log(axis: Any) -> None:
    """Write plain numbers at the ticks of a logarithmic axis."""
    axis.set_major_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(2.0, 0.5)))
    axis.set_minor_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


def _halves(intervals: Sequence[Any]) -> list[float]:
    """Return half of each interval; not a number where there is none, which draws none."""
    return [np.nan if ends is None else 0.5 * (ends[1] - ends[0]) for ends in intervals]


def bars(
    titles: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Any],
    colors: Sequence[str],
    label: str,
    title: str,
) -> Figure:
    """Draw values as horizontal bars, the last on top, with intervals where there are any (not None)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.32 * len(titles) + 1.2), layout="constrained")
        half = _halves(intervals)
        axes.barh(titles, values, xerr=half, color=colors, capsize=2)
        reach = np.array(values) + np.copysign(np.nan_to_num(half), values)
        for place, value in enumerate(values):
            axes.annotate(
                f"{value:.4g}",
                (reach[place], place),
                (4 if value >= 0 else -4, 0),
                textcoords="offset points",
                ha="left" if value >= 0 else "right",
                va="center",
                fontsize=8,
            )
        low, high = min(0.0, reach.min()), max(0.0, reach.max())
        room = 0.15 * max(high - low, 1e-6)  # for the numbers
        axes.set(
            xlabel=textwrap.fill(label, 60),
            xlim=(low - room * (low < 0), high + room * (high > 0 or low == 0)),
        )
        figure.suptitle(title, fontsize=9)
        axes.grid(axis="y", visible=False)
        return figure


def dots(
    titles: Sequence[str],
    values: Sequence[Sequence[float]],
    intervals: Sequence[Sequence[Any]],
    names: Sequence[str],
    label: str,
    title: str,
) -> Figure:
    """Draw several values in each row, the last row on top, with intervals where there are any (not None)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.4 * len(titles) + 1.4), layout="constrained")
        rows = np.arange(len(titles), dtype=float)
        for place, name in enumerate(names):
            shift = 0.18 * (0.5 * (len(names) - 1) - place)
            x = np.array([row[place] for row in values], np.float64)
            half = _halves([row[place] for row in intervals])
            axes.errorbar(x, rows + shift, xerr=half, fmt="o", ms=4, capsize=2, color=f"C{place}", label=name)
        axes.set_yticks(rows, titles)
        axes.set(xlabel=textwrap.fill(label, 60), xlim=(0.0, None))
        figure.legend(loc="outside lower center", ncols=len(names))
        figure.suptitle(title, fontsize=9)
        return figure


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple]]],
    x_label: str,
    y_label: str,
    title: str,
    always: Iterable[str] = (),
    more_is_better: bool = False,
) -> Figure:
    """Draw lines with bands, a panel side by side for each title; of many, the worst are grey.

    Args:
      panels: of a title, for each line its points: x, y, low, high (not a number: no band), and whether the
        point is marked, which makes it hollow.
      x_label: of all panels.
      y_label: of all panels.
      title: of the picture.
      always: lines that are never grey.
      more_is_better: whether the worst are those with the least.
    """
    every = np.array([point[:2] for lines in panels.values() for one in lines.values() for point in one])
    heights: dict[str, list[float]] = {}
    for lines in panels.values():
        for label, points in lines.items():
            heights.setdefault(label, []).extend(point[1] for point in points)
    # By their ranks at each point, so that no point decides alone.
    places = np.argsort(
        np.argsort(np.array(list(heights.values())) * (-1.0 if more_is_better else 1.0), 0), 0
    )
    ranks = dict(zip(heights, places.mean(1), strict=True))
    styles = told_apart(sorted(ranks, key=lambda label: float(ranks[label])), ranks, always)
    ends: dict[str, dict[str, tuple[float, float]]] = {}
    with plt.rc_context(STYLE):
        size = (max(3.2 * len(panels), 5.0) + 1.5, 3.6)
        figure, grid = plt.subplots(
            1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (name, lines) in zip(grid[0], panels.items(), strict=True):
            for label, points in lines.items():
                points = sorted(points)
                x, y, low, high = np.array([point[:4] for point in points]).T
                style = styles[label]
                axes.plot(x, y, label=label, **style)
                ends.setdefault(name, {})[label] = x[-1], y[-1]
                if not shown(style):
                    continue
                axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
                hollow = np.array([point[4] for point in points])
                for which, face in ((hollow, "white"), (~hollow, style["color"])):
                    axes.plot(x[which], y[which], "o", ms=3.5, color=style["color"], mfc=face, zorder=3)
            axes.set_xlabel(x_label)
            axes.set_title(name, fontsize=9)
            for scale, axis, values, least in (
                (axes.set_xscale, axes.xaxis, every[:, 0], 20.0),
                (axes.set_yscale, axes.yaxis, every[:, 1], 10.0),
            ):
                if values.min() > 0 and values.max() / values.min() >= least:
                    scale("log")
                    plain_log(axis)
        grid[0][0].set_ylabel(textwrap.fill(y_label, 40))
        figure.suptitle(title, fontsize=9)
        name_ends(grid[0][-1], list(ends.values())[-1], styles)
        return figure


def against(x: np.ndarray, y: np.ndarray, *, x_label: str, y_label: str, title: str) -> Figure:
    """Draw positive numbers against others that they should equal, both on logarithmic axes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="0.6", lw=0.8)
        axes.plot(x, y, ".", ms=3, alpha=0.4)
        axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        axes.set_title(title, fontsize=9)
    return figure
