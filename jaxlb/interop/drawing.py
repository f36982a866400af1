"""The queues of one system as bars, in a window or as pixels."""

from typing import Any

import numpy as np

from jaxlb.stations.fcfs import SystemState
from jaxlb.types import Task

_IN_SERVICE, _WAITING = "#1f6f8b", "#99c1d4"


class Picture:
    """Drawn anew at every step: each queue a bar, each task in it a block as high as it takes time."""

    def __init__(self, window: bool) -> None:
        """Make an empty figure, of pyplot's if it is to be a `window`."""
        if window:
            from matplotlib import pyplot

            self._figure = pyplot.figure(figsize=(4.8, 3.6), dpi=100, layout="constrained")
            self._figure.show(warn=False)
        else:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            self._figure = Figure(figsize=(4.8, 3.6), dpi=100, layout="constrained")
            FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_subplot()
        self._top = 1.0

    def draw(self, system: SystemState, task: Task, speed: np.ndarray) -> None:
        """Draw the system as the task that waits finds it."""
        ends = np.sort(np.maximum(np.asarray(system.departure) - np.asarray(system.clock), 0.0), axis=1)
        wait = np.asarray(system.wait)
        # Tasks beyond the queue's memory are drawn as one.
        ends[:, -1] = np.maximum(ends[:, -1], wait)
        starts = np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
        processor, place = np.nonzero(ends > starts)
        low, high = starts[processor, place], ends[processor, place]
        colours = np.where(low > 0, _WAITING, _IN_SERVICE)
        self._top = max(self._top, 1.1 * float(wait.max()))
        axes = self._axes
        axes.clear()
        axes.bar(processor, high - low, bottom=low, color=colours, edgecolor="white", linewidth=0.8)
        names = [f"{value:.3g}" for value in speed] if len(speed) <= 16 else []
        axes.set_xticks(range(len(names)), names)
        axes.set(xlim=(-0.6, len(speed) - 0.4), ylim=(0, self._top), xlabel="processors, by speed")
        axes.set_ylabel("time until free")
        axes.set_title(
            f"next task: size {float(task.size):.3g}, priority {int(task.priority)}, "
            f"deadline {float(task.deadline):.3g}",
            fontsize="medium",
        )
        axes.spines[["top", "right"]].set_visible(False)

    def pixels(self) -> np.ndarray:
        """Return the picture as `[height, width, 3]` uint8."""
        canvas: Any = self._figure.canvas
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def show(self, seconds: float) -> None:
        """Bring the window up to date and let its events run for so long."""
        self._figure.canvas.draw_idle()
        self._figure.canvas.start_event_loop(seconds)

    def close(self) -> None:
        """Close the window, if it is one."""
        from matplotlib import pyplot

        pyplot.close(self._figure)
