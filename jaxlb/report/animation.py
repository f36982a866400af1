"""Schedulers at work, side by side on the same tasks: queues that fill and drain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib import animation
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from jaxlb import stations
from jaxlb.env import Env
from jaxlb.replaying import replay
from jaxlb.types import EnvParams, Key, Outcome, Scheduler, Task
from jaxlb.workload import sample

FRAMES_PER_SECOND = 15
_WRITERS = {".gif": "pillow", ".mp4": "ffmpeg"}
_LATE = "#d62728"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
}


class Queued(NamedTuple):
    """What is in the system at one instant, a place for each task.

    Attributes:
      task: `[M]` its number.
      processor: `[M]`.
      start: `[M]` time from now until its service starts; 0 in service.
      remaining: `[M]` time of service that is left.
      late: `[M]` bool, its deadline has passed.
    """

    task: np.ndarray
    processor: np.ndarray
    start: np.ndarray
    remaining: np.ndarray
    late: np.ndarray


class Count(NamedTuple):
    """What has happened up to one instant."""

    arrived: int
    done: int
    violations: int  # of those that have arrived: the deadline has passed and they were not done
    mean_completion: float  # of those that are done; not a number without any


class History:
    """What became of tasks, at any time; times in float64 from the first arrival on.

    Args:
      tasks: leaves `[T]`.
      outcome: of those tasks.
    """

    def __init__(self, tasks: Task, outcome: Outcome) -> None:
        """Compute times of arrival, start, departure and deadline."""
        gap, deadline = (np.asarray(leaf, np.float64) for leaf in (tasks.gap, tasks.deadline))
        wait, service = (np.asarray(leaf, np.float64) for leaf in (outcome.wait, outcome.service))
        self.arrival = np.cumsum(gap) - gap[0]
        self.start = self.arrival + wait
        self.departure = self.start + service
        self.due = self.arrival + deadline
        self.violation = np.asarray(outcome.violation)
        self.processor = np.asarray(outcome.action)

    def queued(self, now: float) -> Queued:
        """Return the tasks in the system, those that start earlier first."""
        here = np.flatnonzero((self.arrival <= now) & (now < self.departure))
        here = here[np.argsort(self.start[here], kind="stable")]
        start = np.maximum(self.start[here] - now, 0.0)
        return Queued(
            task=here,
            processor=self.processor[here],
            start=start,
            remaining=self.departure[here] - now - start,
            late=self.violation[here] & (self.due[here] <= now),
        )

    def count(self, now: float) -> Count:
        """Count tasks that arrived, that are done, and that were late."""
        done = self.departure <= now
        took = self.departure[done] - self.arrival[done]
        return Count(
            arrived=int((self.arrival <= now).sum()),
            done=int(done.sum()),
            violations=int((self.violation & (self.due <= now)).sum()),
            mean_completion=float(took.mean()) if len(took) else float("nan"),
        )


class Film:
    """A figure that shows any instant.

    A bar for each processor, as wide as it is fast and as high as the time until it is free: so areas are
    work. Tasks are coloured by size; those whose deadline has passed flash.

    Args:
      histories: of the same tasks, by scheduler.
      size: `[T]` work, of the tasks.
      speed: `[P]` work per time.
      title: above all.
    """

    def __init__(
        self, histories: Mapping[str, History], size: np.ndarray, speed: np.ndarray, title: str
    ) -> None:
        """Lay out an empty figure."""
        self.histories, self.size, self.speed = histories, size, speed
        self.width = 0.9 * speed / speed.max()
        self.left = np.cumsum(self.width + 0.12) - self.width
        norm, cmap = LogNorm(size.min(), max(size.max(), 1.01 * size.min())), plt.get_cmap("viridis")
        self.colour = cmap(norm(size))
        # High enough for all but the worst moments of the worst: a bar that is cut says how high it is.
        first = next(iter(histories.values()))
        self.horizon = float(first.arrival[-1])
        times = np.linspace(0.0, self.horizon, 200)
        waits = [self._waits(history, now).max() for history in histories.values() for now in times]
        self.top = 1.05 * float(np.quantile(waits, 0.95)) or 1.0
        with plt.rc_context(_STYLE):
            self.figure, grid = plt.subplots(
                1,
                len(histories),
                figsize=(0.4 + 3.9 * len(histories), 4.2),
                sharey=True,
                squeeze=False,
                layout="constrained",
            )
            self.panels = dict(zip(histories, grid.flat, strict=True))
            self.counters: dict[str, Text] = {}
            for name, axes in self.panels.items():
                axes.set(xlim=(0.0, self.left[-1] + self.width[-1] + 0.12), ylim=(0.0, self.top))
                axes.set_xticks(self.left + self.width / 2, [f"{value:.3g}" for value in speed])
                axes.tick_params(axis="x", length=0)
                axes.set_title(name, fontsize=12, fontweight="bold", pad=34)
                self.counters[name] = axes.text(
                    0.5, 1.015, "", transform=axes.transAxes, ha="center", va="bottom", linespacing=1.3
                )
            grid[0, 0].set_ylabel("time until the processor is free")
            self.figure.supxlabel("processors, by speed", fontsize=9)
            self.figure.suptitle(title, fontsize=10)
            shades = ScalarMappable(norm, cmap)
            self.figure.colorbar(shades, ax=list(grid.flat), label="task size (work)", pad=0.02, aspect=30)

    def _waits(self, history: History, now: float) -> np.ndarray:
        """Return the time until each processor is free, `[P]`."""
        queued = history.queued(now)
        waits = np.zeros(len(self.speed))
        np.maximum.at(waits, queued.processor, queued.start + queued.remaining)
        return waits

    def show(self, now: float, lit: bool = True) -> Figure:
        """Draw the figure at a time; late tasks are red in frames that are lit, and outlined in others."""
        for name, axes in self.panels.items():
            history = self.histories[name]
            for artist in [*axes.patches, *axes.texts]:
                if artist is not self.counters[name]:
                    artist.remove()
            queued = history.queued(now)
            for task, place, start, remaining, late in zip(*queued, strict=True):
                axes.add_patch(
                    Rectangle(
                        (self.left[place], start),
                        self.width[place],
                        remaining,
                        facecolor=_LATE if late and lit else self.colour[task],
                        edgecolor=_LATE if late else "white",
                        lw=1.5 if late else 0.6,
                    )
                )
            for place, wait in enumerate(self._waits(history, now)):
                if wait > self.top:
                    middle = self.left[place] + self.width[place] / 2
                    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
                    axes.text(
                        middle, 0.97 * self.top, f"↑ {wait:.0f}", ha="center", va="top", fontsize=8, bbox=box
                    )
            count = history.count(now)
            self.counters[name].set_text(
                f"{count.done} of {count.arrived} tasks done, mean time {count.mean_completion:.1f}\n"
                f"deadlines missed: {count.violations}"
            )
            self.counters[name].set_color(_LATE if count.violations else "black")
        return self.figure

    def save(self, path: Path, num_frames: int) -> None:
        """Write frames at equal times, from the first arrival to the last."""
        times = np.linspace(0.0, self.horizon, num_frames)
        writer = animation.writers[_WRITERS[path.suffix]](fps=FRAMES_PER_SECOND)
        with writer.saving(self.figure, str(path), dpi=self.figure.dpi):
            for index, now in enumerate(times):
                self.show(float(now), lit=index // 3 % 2 == 0)
                writer.grab_frame()
        plt.close(self.figure)


def check(path: Path) -> None:
    """Raise ValueError if a film cannot be written to a path of this name."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"--out {path}: must end in {' or '.join(_WRITERS)}")
    if not animation.writers.is_available(_WRITERS[path.suffix]):
        raise ValueError(
            f"--out {path}: needs {_WRITERS[path.suffix]}, which is not installed; .gif does not"
        )


def film(
    env: Env, params: EnvParams, schedulers: Mapping[str, str | Scheduler], key: Key, num_tasks: int
) -> Film:
    """Film schedulers on the same tasks, from an empty system on.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      schedulers: by name.
      key: consumed.
      num_tasks: that arrive.
    """
    stations.needs_settled("a film", env.station)
    task_key, act_key = jax.random.split(key)
    tasks = sample(task_key, params, num_tasks)
    histories = {
        name: History(tasks, replay(env, params, entry, tasks, act_key)) for name, entry in schedulers.items()
    }
    title = f"{env.name}: {num_tasks} tasks, the same for {'both' if len(schedulers) == 2 else 'all'}"
    return Film(histories, np.asarray(tasks.size), np.asarray(params.speed), title)
