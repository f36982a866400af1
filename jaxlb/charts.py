"""What all pictures share, and bars with intervals."""

from collections.abc import Sequence
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
