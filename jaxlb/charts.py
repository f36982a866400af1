"""What all pictures share, and bars with intervals."""

from collections.abc import Mapping, Sequence
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


def plain_log(axis: Any) -> None:
    """Write plain numbers at the ticks of a logarithmic axis."""
    axis.set_major_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(2.0, 0.5)))
    axis.set_minor_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


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
        # Not a number where there is none: then none is drawn.
        half = [np.nan if ends is None else 0.5 * (ends[1] - ends[0]) for ends in intervals]
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
        axes.set(xlabel=label, xlim=(low - room * (low < 0), high + room * (high > 0 or low == 0)))
        figure.suptitle(title, fontsize=9)
        axes.grid(axis="y", visible=False)
        return figure


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple]]], x_label: str, y_label: str, title: str
) -> Figure:
    """Draw lines with bands, a panel side by side for each title.

    Args:
      panels: of a title, for each line its points: x, y, low, high (not a number: no band), and whether the
        point is marked, which makes it hollow.
      x_label: of all panels.
      y_label: of all panels.
      title: of the picture.
    """
    every = np.array([point[:2] for lines in panels.values() for one in lines.values() for point in one])
    with plt.rc_context(STYLE):
        size = (max(3.2 * len(panels), 5.0) + 1.5, 3.6)
        figure, grid = plt.subplots(
            1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (name, lines) in zip(grid[0], panels.items(), strict=True):
            for index, (label, points) in enumerate(lines.items()):
                points = sorted(points)
                x, y, low, high = np.array([point[:4] for point in points]).T
                style = line_style(index)
                axes.plot(x, y, label=label, **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
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
        grid[0][0].set_ylabel(y_label)
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper")
        figure.suptitle(title, fontsize=9)
        return figure
