"""jaxlb tune: the best settings of rules."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxlb import checks, metrics, tuning
from jaxlb.cli import folders
from jaxlb.cli.common import Draws, Where, command_line, console, described, dumps, grid_of, progress
from jaxlb.cli.compare import Compare, print_table
from jaxlb.statistics import plus_minus


@dataclass(frozen=True, kw_only=True)
class Tune(Draws, Where):
    """Find the best settings of rules."""

    rules: tyro.conf.Positional[str]
    """Names from `jaxlb schedulers`, separated by commas."""
    over: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES")] = ()
    """Options of the one rule with their values, such as share=0.4:1.2:5 big=1,2; if not given, those of
    jaxlb.tuning.GRIDS."""
    figure: str = "mean_completion"
    """What is to be small, a name from `jaxlb.metrics.FIGURES`."""
    lanes: int = 256
    """Independent environments."""
    tasks: int = 2000
    """Tasks counted in each lane."""
    warmup: int | None = None
    """Tasks run before that, not counted; if not given, as `jaxlb compare` does."""
    seed: int = 0
    """Of the random tasks."""
    baseline: str = "lwr"
    """Scheduler that the judgement takes differences to."""
    out: Path | None = None
    """Folder for the tables (CSV, JSON) and a picture."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> None:
        """Tune, print, write."""
        spec = self.spec()
        env, params = spec.make()
        rules: Any = checks.entries(self.rules)
        if self.over:
            if len(rules) != 1:
                raise ValueError("--over: for one rule at a time")
            rules = {rules[0]: grid_of("--over", self.over)}
        checks.seed("seed", self.seed)
        self.formats()
        about = described(spec, env, self.seed, load=float(params.load))
        with folders.begin(self, self.out, env.name) as record:
            with progress() as advance:
                found = tuning.tune(
                    env,
                    params,
                    rules,
                    jax.random.key(self.seed),
                    figure=self.figure,
                    num_lanes=self.lanes,
                    num_tasks=self.tasks,
                    warmup=self.warmup,
                    baseline=self.baseline,
                    on_progress=advance,
                )
            whole = about | found.as_dict()
            if self.out is not None:
                from jaxlb import charts

                (self.out / "tune.json").write_text(dumps(whole), encoding="utf-8")
                (self.out / "tune.csv").write_text(found.settings.to_csv(), encoding="utf-8")
                (self.out / "held_out.csv").write_text(found.held_out.to_csv(), encoding="utf-8")
                charts.save(found.held_out.plot(self.figure), self.out, "held_out", self.formats())
            record.finish(", ".join(found.best.values()))
        if self.json:
            sys.stdout.write(dumps(whole))
        else:
            _print(found, about)
            names = [found.held_out.baseline, *found.best.values()]
            kept = {field.name for field in dataclasses.fields(Where)} | {"import_"}
            where = {name: getattr(self, name) for name in kept}
            line = command_line(Compare(schedulers=",".join(names), **where))
            console().print(f"next: {line}", highlight=False, soft_wrap=True, markup=False)


def _print(found: tuning.Tuning, where: dict[str, Any]) -> None:
    """Print the best settings, what the others reach, and the judgement."""
    about, screen = metrics.FIGURES[found.figure], console()
    print_table(found.held_out, where)
    for rule, name in found.best.items():
        own = [row.name for row in found.settings.schedulers if row.name.partition("(")[0] == rule]
        rows = sorted(found.settings.ranked(found.figure, own), key=lambda row: row.name != name)
        shown = []
        for row in (*rows[:3], *rows[3:][-1:]):
            value, interval = getattr(row, found.figure), getattr(row, f"{found.figure}_ci")
            shown.append(f"{row.title} {plus_minus(value, interval, about.scale)}")
        screen.print(f"{rule}, tuned: [bold]{name}", highlight=False, soft_wrap=True)
        last = f"; the last {shown.pop()}" if len(shown) > 3 else ""
        text = f"of {len(rows)} settings, {about.label} on the tasks that chose: {'; '.join(shown)}"
        screen.print(f"  {text}{last}.", style="dim", highlight=False, soft_wrap=True)
    for edge in found.at_the_edge:
        screen.print(f"{edge}: try beyond with --over.", style="yellow", highlight=False, soft_wrap=True)
