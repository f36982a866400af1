"""Sweeps: schedulers compared at each point of a grid of parameters, with one program for each scheduler."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlb import checks, files, metrics
from jaxlb.comparison import Comparison
from jaxlb.env import Env
from jaxlb.environments import changed
from jaxlb.judging import Judges
from jaxlb.statistics import latex_table
from jaxlb.types import EnvParams, Key, Scheduler
from jaxlb.version import __version__

_MOST_PANELS = 24


@dataclass(frozen=True)
class Point:
    """A point of the grid, and the table there."""

    values: dict[str, Any]
    table: Comparison

    def as_dict(self) -> dict[str, Any]:
        """Return the point as JSON has it."""
        return {"values": self.values, "table": self.table.as_dict()}


@dataclass(frozen=True)
class Sweep:
    """Tables of the same schedulers on a grid of parameters.

    Attributes:
      over: the values of each parameter.
      points: of the grid, the last parameter changing first; each has its `values` and its `table`.
    """

    over: dict[str, list[Any]]
    points: list[Point]

    def at(self, **values: Any) -> Comparison:
        """Return the table at a point, as `at(load=0.5)` does; of several such points, the first."""
        for name, value in values.items():
            checks.known("parameter", name, self.over)
            if not any(_same(value, one) for one in self.over[name]):
                raise ValueError(f"{name} = {checks.shown(value)}: must be one of {self.over[name]}")
        return next(
            point.table
            for point in self.points
            if all(_same(value, point.values[name]) for name, value in values.items())
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each point and scheduler, in columns: parameters, then what tables have."""
        return [point.values | row.cells() for point in self.points for row in point.table.schedulers]

    def to_csv(self) -> str:
        """Write CSV: a line for each point and scheduler, after a header."""
        return files.csv_text(self.rows())

    def as_dict(self) -> dict[str, Any]:
        """Return what `to_json` writes."""
        return {"over": self.over, "points": [point.as_dict() for point in self.points]}

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    @classmethod
    def of_dict(cls, given: Mapping[str, Any]) -> "Sweep":
        """Return the sweep that `as_dict` or sweep.json was of, read from JSON; tables have no histograms."""
        points = [Point(one["values"], Comparison.of_dict(one["table"])) for one in given["points"]]
        return cls(given["over"], points)

    def to_latex(self, figure: str = "mean_completion") -> str:
        """Write a figure as a LaTeX table (packages booktabs and textcomp): a line a point, a column a rule.

        Args:
          figure: a name of `jaxlb.metrics.FIGURES`, of one value a row.

        Raises:
          ValueError: an unknown one.
        """
        metrics.check_one_value(figure)
        lines = [[*self.over, *(row.name for row in self.points[0].table.schedulers)]]
        for point in self.points:
            rows = [(point.table.cell(row, figure), row.mark) for row in point.table.schedulers]
            values = [f"{one:.6g}" if isinstance(one, float) else str(one) for one in point.values.values()]
            lines.append([*values, *(f"{cell} ({mark})" if mark else cell for cell, mark in rows)])
        return latex_table(lines)

    def to_dataframe(self) -> Any:
        """Return the columns of `to_csv` as a pandas.DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def plot(self, figure: str = "mean_completion") -> Any:
        """Draw a figure against the first parameter, a panel for each value of the others.

        Bands are 95 % intervals. Points whose figures are not those of the long run are hollow and have none.

        Args:
          figure: a name of `jaxlb.metrics.FIGURES`, of one value a row.

        Raises:
          ValueError: an unknown one, or a first parameter that is not one number a point.
        """
        # It draws with a library that a simulation does not need.
        from jaxlb import charts

        rows = [row for point in self.points for row in point.table.schedulers]
        metrics.check_one_value(figure)
        about, (first, *others) = metrics.FIGURES[figure], self.over
        if any(value is None or isinstance(value, (list, str, bool)) for value in self.over[first]):
            raise ValueError(f"over: {first!r} has no axis; let a parameter of one number a point come first")
        if (number := len(self.points) // len(self.over[first])) > _MOST_PANELS:
            raise ValueError(f"over: {number} panels beside each other; must be at most {_MOST_PANELS}")
        panels: dict[str, dict[str, list[tuple]]] = {}
        for point in self.points:
            title = ", ".join(f"{name} = {point.values[name]}" for name in others)
            lines = panels.setdefault(title, {})
            for row in point.table.schedulers:
                interval = getattr(row, f"{figure}_ci") or (np.nan, np.nan)
                values = (getattr(row, figure), *interval)
                line = point.values[first], *(about.scale * value for value in values), bool(row.mark)
                lines.setdefault(row.name, []).append(line)
        table = self.points[0].table
        lanes = f"{table.num_lanes:,} lanes x {table.num_tasks:,} tasks"
        marked = "; hollow: not stationary" * any(row.mark for row in rows)
        return charts.curves(
            panels,
            x_label=first,
            y_label=about.label,
            title=f"{table.scenario}, {lanes} (bands: 95 % intervals{marked})",
            always=[table.baseline],
            more_is_better=about.more_is_better,
        )


def sweep(
    env: Env,
    params: EnvParams,
    schedulers: Mapping[str, str | Scheduler] | Sequence[str | Scheduler],
    key: Key,
    *,
    over: Mapping[str, Sequence[Any]],
    num_lanes: int,
    num_tasks: int,
    warmup: int | None = None,
    baseline: str | None = None,
    recompile: bool = False,
    keep: str | Path | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Sweep:
    """Compare schedulers at each point of a grid of parameters.

    Each scheduler is compiled once for all points. Lanes are independent systems, over which intervals are
    taken; all points and schedulers have the same random numbers.

    Args:
      env: from `jaxlb.make`.
      params: of the environment, where they are not swept over.
      schedulers: as in `jaxlb.compare`.
      key: consumed; decides the tasks.
      over: the values of each parameter, by the names that `jaxlb.make` takes; all combinations are points.
      num_lanes: environments side by side.
      num_tasks: tasks counted in each.
      warmup: tasks run before that, not counted; None: at each point as many as theory asks for there, at
        least a quarter of the tasks, at most as many.
      baseline: as in `jaxlb.compare`.
      recompile: whether settings of the environment may be swept over, for each value of which all is
        compiled again.
      keep: a file in which finished points are kept; those it has already are not run again.
      on_progress: called with the scheduler at work and the share of all work that is done.

    Raises:
      ValueError: nothing to sweep over, a bad value at some point, before anything runs, or a file of another
        sweep.
    """
    if keep is not None and jax.process_count() > 1:
        raise ValueError(f"keep = {keep!r}: must be None in several processes")
    judges = Judges(schedulers, num_lanes, num_tasks, baseline)
    if warmup is not None:
        checks.at_least("warmup", warmup, 0)
    grid = _grid(over)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    systems = [changed(env, params, point, recompile) for point in points]
    for one, own in systems:
        one.check(own, (num_lanes,))
    about = {
        "jaxlb": __version__,
        "scenario": env.name,
        "settings": _settings(env),
        "over": grid,
        "schedulers": {name: _digest(rule) for name, rule in judges.rules.items()},
        "baseline": judges.baseline,
        "lanes": num_lanes,
        "tasks": num_tasks,
        "warmup": warmup,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "params": _digest(params),
    }
    kept = files.Kept(None if keep is None else Path(keep), about)
    if [one["values"] for one in kept.found] != points[: len(kept.found)]:
        raise kept.other()
    done = Sweep.of_dict({"over": grid, "points": kept.found}).points
    for place, (values, system) in enumerate(zip(points, systems, strict=True)):
        if place < len(done):
            continue

        def progress(name: str, share: float, place: int = place) -> None:
            if on_progress is not None:
                on_progress(name, (place + share) / len(points))

        table = judges.compare(*system, jax.random.clone(key), warmup, progress)
        done.append(Point(values, table))
        kept.add(done[-1].as_dict())
    return Sweep(grid, done)


def _grid(over: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the values of each parameter as JSON has them."""
    if not isinstance(over, Mapping) or not over:
        raise ValueError(f"over = {checks.shown(over)}: must name values, as {{'load': [0.5, 0.7]}} does")
    grid: dict[str, list[Any]] = {}
    for name, values in over.items():
        given = list(values) if isinstance(values, (Sequence, np.ndarray, jax.Array)) else []
        if isinstance(values, str) or not given:
            raise ValueError(f"over: {name} = {checks.shown(values)}: must be a list of values")
        grid[name] = [value if isinstance(value, str) else np.asarray(value).tolist() for value in given]
        for value in grid[name]:
            if np.asarray(value).dtype.kind == "f" and not np.all(np.isfinite(value)):
                raise ValueError(f"over: {name} = {checks.shown(value)}: must be finite")
    return grid


def _same(value: Any, other: Any) -> bool:
    """Return whether two values of a parameter are the same, rounding apart."""
    one, two = np.asarray(value), np.asarray(other)
    numbers = one.dtype.kind in "iuf" and two.dtype.kind in "iuf"
    return one.shape == two.shape and bool(np.allclose(one, two) if numbers else np.all(one == two))


def _digest(tree: Any) -> str:
    """Return what tells the numbers of a pytree, and what they are called, from others."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    parts = [f"{jax.tree_util.keystr(path)} {np.asarray(leaf).tolist()}" for path, leaf in paths]
    own = type(tree).__name__, getattr(tree, "name", "")
    return hashlib.sha256("\n".join([*own, *parts]).encode()).hexdigest()


def _settings(env: Env) -> str:
    """Return the static settings of an environment as text."""
    own = {field.name: getattr(env, field.name) for field in dataclasses.fields(env)}
    own.pop("make_params")
    discipline = getattr(env.station, "discipline", None)
    served = getattr(discipline, "slots", None), getattr(discipline, "most", None)
    return repr((own, served))
