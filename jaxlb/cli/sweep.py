"""jaxlb sweep: schedulers on a grid of parameters."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.table import Table

from jaxlb import checks, metrics, sweeps
from jaxlb.cli import folders
from jaxlb.cli.chosen import Chooses
from jaxlb.cli.common import Draws, Where, console, described, dumps, grid_of, note, progress
from jaxlb.statistics import plus_minus

POINTS = "points.jsonl"
"""Where a run folder keeps the points that are finished."""
DRAWN = ("mean_completion", "p99_completion", "sla_violation_rate")
"""The figures that are drawn, besides the one that is asked for."""


@dataclass(frozen=True, kw_only=True)
class Sweep(Draws, Chooses, Where):
    """Compare schedulers on a grid of parameters."""

    over: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES")]
    """Parameters with their values: load=0.3:0.95:14 (first:last:how many), measure_interval=log:0.1:100:4
    (in equal ratios) or tail_index=1.2,1.5,2; all combinations are points."""
    lanes: int = 256
    """Independent environments."""
    tasks: int = 2000
    """Tasks counted in each lane."""
    warmup: int | None = None
    """Tasks run before that, not counted; if not given, at each point as `jaxlb compare` does."""
    seed: int = 0
    """Of the random tasks."""
    baseline: str | None = None
    """Scheduler that differences are taken to; if not given, lwr or else the first."""
    figure: str = "mean_completion"
    """What the printed table shows, a name from `jaxlb.metrics.FIGURES`."""
    recompile: bool = False
    """Allow settings among the parameters, such as size_visible, for which all is compiled again."""
    out: Path | None = None
    """Folder for the tables (CSV, JSON) and pictures; a sweep that was stopped goes on in it."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Sweep, print, write."""
        spec = self.spec()
        env, params = spec.make()
        chosen = self.chosen(env, params)
        metrics.check_one_value(self.figure)
        checks.seed("seed", self.seed)
        self.formats()
        over = grid_of("--over", self.over)
        about = described(spec, env, self.seed)
        keep = self.out / POINTS if self.out and jax.process_count() == 1 else None
        with folders.begin(self, self.out, env.name, kept=keep) as record:
            with progress() as advance:
                found = sweeps.sweep(
                    env,
                    params,
                    chosen,
                    jax.random.key(self.seed),
                    over=over,
                    num_lanes=self.lanes,
                    num_tasks=self.tasks,
                    warmup=self.warmup,
                    baseline=self.baseline,
                    recompile=self.recompile,
                    keep=keep,
                    on_progress=advance,
                )
            if self.out is not None:
                self._write(found, self.out, about)
            record.finish(f"{len(found.points)} points of {', '.join(found.over)}")
        if self.json:
            sys.stdout.write(dumps(about | found.as_dict()))
        else:
            _print(found, self.figure, about["trace"])

    def _write(self, found: sweeps.Sweep, out: Path, about: dict[str, Any]) -> None:
        """Write tables and pictures."""
        from jaxlb import charts

        (out / "sweep.json").write_text(dumps(about | found.as_dict()), encoding="utf-8")
        (out / "sweep.csv").write_text(found.to_csv(), encoding="utf-8")
        try:
            for name in dict.fromkeys((self.figure, *DRAWN)):
                charts.save(found.plot(name), out, name, self.formats())
        except ValueError as error:
            note(f"no pictures: {error}")


def _print(found: sweeps.Sweep, figure: str, trace: str | None) -> None:
    """Print a figure of each scheduler at each point."""
    about, first = metrics.FIGURES[figure], found.points[0].table
    source = first.scenario + (f" on {trace}" if trace else "")
    table = Table(title=f"{source}: {about.label}", title_justify="left")
    for name in (*found.over, *(row.name for row in first.schedulers)):
        table.add_column(name, justify="right")
    marked = set()
    for point in found.points:
        cells = []
        for row in point.table.schedulers:
            shown = plus_minus(getattr(row, figure), getattr(row, f"{figure}_ci"), about.scale)
            cells.append(f"({shown})" if row.mark else shown)
            marked |= {row.mark} - {""}
        table.add_row(*(str(value) for value in point.values.values()), *cells)
    screen = console()
    screen.print(table)
    about_lanes = f"{first.num_lanes:,} lanes x {first.num_tasks:,} tasks at each point"
    intervals = "± is half the 95 % interval over lanes" if first.num_lanes > 1 else "one lane: no intervals"
    screen.print(f"{about_lanes}; {intervals}.", style="dim", highlight=False)
    if marked:
        text = f"In brackets: {', '.join(sorted(marked))}. `jaxlb compare` there says why."
        screen.print(text, style="yellow", highlight=False, soft_wrap=True)
