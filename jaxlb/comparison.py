"""Tables of schedulers: figures with their intervals, a row for each scheduler."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlb import checks, files, metrics
from jaxlb.statistics import Histogram, latex_table, plus_minus


@dataclass(frozen=True)
class Row:
    """What one scheduler did. Each of `jaxlb.metrics.FIGURES` is an attribute; `..._ci` is its 95 % interval.

    Figures that are not `stationary` are those of this run and of no other, longer or shorter: they have no
    intervals, and differences to them have none.

    Attributes:
      name: of the scheduler in this table.
      stationary: whether figures are those of the long run.
      hint: why it is not, and what to change.
      queue_overflows: tasks that found a queue too long to be counted, if the scheduler uses lengths.
      figures: with intervals; a list holds a value for each priority.
    """

    name: str
    stationary: bool
    hint: str | None
    queue_overflows: int
    figures: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return a figure, or its interval."""
        return metrics.attribute(self, "figures", name)

    def __dir__(self) -> list[str]:
        """List figures too, so that they complete in a notebook."""
        return [*super().__dir__(), *self.figures]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, flat: what `Comparison.to_json` writes."""
        own = {name: value for name, value in vars(self).items() if name != "figures"}
        return own | self.figures

    @classmethod
    def of_dict(cls, given: dict[str, Any]) -> "Row":
        """Return the row that `as_dict` was of, read from JSON."""
        own = {field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given}
        figures = {name: value for name, value in given.items() if name not in own}
        for name, value in figures.items():
            if name.endswith("_ci") and value is not None:  # JSON has lists for pairs
                several = bool(value) and not isinstance(value[0], float)
                figures[name] = [one and tuple(one) for one in value] if several else tuple(value)
        return cls(**own, figures=figures)

    def cells(self) -> dict[str, Any]:
        """Return the same in columns: an interval takes two, a list as many as it has entries."""
        found: dict[str, Any] = {}

        def put(name: str, value: Any) -> None:
            of_interval = name.endswith("_ci")
            if of_interval and not isinstance(value, list):
                found[f"{name}_low"], found[f"{name}_high"] = value or (None, None)
            elif isinstance(value, list):
                for index, entry in enumerate(value):
                    put(f"{name.removesuffix('_ci')}_{index}{'_ci' * of_interval}", entry)
            else:
                found[name] = value

        for name, value in self.as_dict().items():
            put(name, value)
        return found

    @property
    def mark(self) -> str:
        """Return the remark that belongs to its figures wherever they are shown; empty if there is none."""
        short = "told lengths that are too short" if self.queue_overflows else ""
        return ", ".join(filter(None, ["" if self.stationary else "not stationary", short]))

    @property
    def title(self) -> str:
        """Its name, with the mark."""
        return f"{self.name} ({self.mark})" if self.mark else self.name


@dataclass(frozen=True)
class Comparison:
    """A table of schedulers, judged on the same tasks.

    Attributes:
      scenario: of the environment.
      num_lanes: environments side by side.
      num_tasks: counted in each.
      warmup: tasks before that.
      baseline: name of the scheduler that differences are taken to.
      behaviour: name of the one whose choices were carried out; None: each its own.
      schedulers: a row for each.
      histograms: of completion times, by the names of the rows.
    """

    scenario: str
    num_lanes: int
    num_tasks: int
    warmup: int
    baseline: str
    behaviour: str | None
    schedulers: list[Row]
    histograms: dict[str, Histogram] = dataclasses.field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return what `to_json` writes: everything but the histograms."""
        names = [
            field.name for field in dataclasses.fields(self) if field.name not in ("schedulers", "histograms")
        ]
        table = {name: getattr(self, name) for name in names}
        return table | {"schedulers": [row.as_dict() for row in self.schedulers]}

    @classmethod
    def of_dict(cls, given: dict[str, Any]) -> "Comparison":
        """Return the table that `as_dict` or compare.json was of, read from JSON; it has no histograms."""
        rows = [Row.of_dict(row) for row in given["schedulers"]]
        own = {field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given}
        return cls(**own | {"schedulers": rows, "histograms": {}})

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    def to_csv(self) -> str:
        """Write CSV: a line for each scheduler, after a header."""
        return files.csv_text([row.cells() for row in self.schedulers])

    def to_dataframe(self) -> Any:
        """Return the columns of `to_csv` as a pandas.DataFrame, indexed by the names of the schedulers."""
        import pandas as pd

        return pd.DataFrame([row.cells() for row in self.schedulers]).set_index("name")

    @property
    def counted(self) -> str:
        """Say how much was simulated."""
        return f"{self.num_lanes:,} lanes x {self.num_tasks:,} tasks after {self.warmup:,} of warm-up"

    @property
    def asked(self) -> str:
        """Say in whose states it was asked, where that is not each one's own; what may follow a title."""
        return "" if self.behaviour is None else f", asked in the states that {self.behaviour} visits"

    def remarks(self) -> list[str]:
        """Return what a reader of the table has to know of its rows."""
        found = []
        if "lost_rate" in metrics.columns(self.schedulers):
            served = "Completion and slowdown are those of tasks that were served"
            found.append(f"{served}: who loses more serves fewer.")
        for row in self.schedulers:
            if row.hint:
                found.append(f"{row.name} is not stationary: {row.hint}.")
            if row.queue_overflows:
                short = f"was told queue lengths that are too short for {row.queue_overflows:,} tasks"
                found.append(f"{row.name} {short}: fewer lanes leave more memory.")
        return found

    def as_text(self) -> list[list[str]]:
        """Return the figures that tables for people have as text: a line of headings, then one a row."""
        shown = metrics.columns(self.schedulers)
        head = [str(figure.heading).format(baseline=self.baseline) for figure in shown.values()]
        lines = [["scheduler", *head]]
        for row in self.schedulers:
            lines.append([row.title, *(self.cell(row, name) for name in shown)])
        return lines

    def cell(self, row: Row, figure: str) -> str:
        """Return a figure of a row as tables for people have it."""
        value, about = getattr(row, figure), metrics.FIGURES[figure]
        if about.by_priority:
            return " / ".join(f"{about.scale * one:.3g}" for one in value)
        if about.paired and row.name == self.baseline:
            return ""
        return plus_minus(value, None if about.plain else getattr(row, f"{figure}_ci"), about.scale)

    def __str__(self) -> str:
        """Write the table, a line for each scheduler."""
        text = self.as_text()
        widths = [max(map(len, column)) for column in zip(*text, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in text
        ]
        return "\n".join([f"{self.scenario}: {self.counted}{self.asked}", *lines, *self.remarks()])

    def to_latex(self, figures: Sequence[str] = ("mean_completion", "sla_violation_rate")) -> str:
        """Write a LaTeX table (packages booktabs and textcomp), with half of each 95 % interval behind ±.

        Intervals of quantiles are not symmetric, and are left out.

        Args:
          figures: of the columns, names of `jaxlb.metrics.FIGURES` with one value a row.

        Raises:
          ValueError: an unknown one.
        """
        for figure in figures:
            metrics.check_one_value(figure)
        about = [metrics.FIGURES[figure] for figure in figures]
        heads = [(one.heading or one.meaning).format(baseline=self.baseline) for one in about]
        lines = [["scheduler", *heads]]
        for row in self.schedulers:
            lines.append([row.title, *(self.cell(row, figure) for figure in figures)])
        return latex_table(lines)

    def plot(self, figure: str = "mean_completion") -> Any:
        """Draw a figure of every scheduler with its 95 % interval, the least on top, as a matplotlib Figure.

        Args:
          figure: a name of `jaxlb.metrics.FIGURES`; those by priority have a dot for each class.

        Raises:
          ValueError: an unknown one.
        """
        # It draws with a library that a simulation does not need.
        from jaxlb import charts

        checks.known("figure", figure, metrics.FIGURES)
        about = metrics.FIGURES[figure]
        if about.by_priority:
            rows = sorted(self.schedulers, key=lambda row: -sum(getattr(row, figure)))
            values = [[about.scale * value for value in getattr(row, figure)] for row in rows]
            intervals = [
                [each and about.scale * np.array(each) for each in getattr(row, f"{figure}_ci")]
                for row in rows
            ]
            names = [f"priority {place}" for place in range(len(values[0]))]
            titles = [row.title for row in rows]
            return charts.dots(titles, values, intervals, names, label=about.label, title=self.scenario)
        rows = sorted(self.schedulers, key=lambda row: -getattr(row, figure))
        return charts.bars(
            [row.title for row in rows],
            [about.scale * getattr(row, figure) for row in rows],
            [(interval := getattr(row, f"{figure}_ci")) and about.scale * np.array(interval) for row in rows],
            ["0.7" if row.mark else "C1" if row.name == self.baseline else "C0" for row in rows],
            label=about.label,
            title=f"{self.scenario} (orange: baseline; grey: marked; bars at the ends: 95 % interval)",
        )

    def ranked(self, figure: str, names: Iterable[str] | None = None) -> list[Row]:
        """Return the rows of those named, or all, the best by a figure first; unsettled ones come last.

        The best has the least of it, or the most where more is better.
        """
        rows = [row for row in self.schedulers if names is None or row.name in names]
        sign = -1.0 if metrics.FIGURES[figure].more_is_better else 1.0
        return sorted(rows, key=lambda row: (bool(row.mark), sign * getattr(row, figure)))

    def best(self, figure: str, names: Iterable[str] | None = None) -> Row:
        """Return the first row of `ranked`."""
        return self.ranked(figure, names)[0]

    def row(self, name: str) -> Row:
        """Return the row of one scheduler."""
        checks.known("row", name, [row.name for row in self.schedulers])
        return next(row for row in self.schedulers if row.name == name)
