"""jaxlb compare: schedulers side by side."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro
from rich.table import Table

from jaxlb import checks, runs
from jaxlb.cli import folders
from jaxlb.cli.chosen import Chooses, Names
from jaxlb.cli.common import Draws, Where, console, described, dumps, note, progress
from jaxlb.comparison import Comparison
from jaxlb.env import Env
from jaxlb.environments import Spec
from jaxlb.judging import compare
from jaxlb.scheduling import scheduler
from jaxlb.types import EnvParams, Scheduler

DEFAULT_SCHEDULERS = "rr,wrr,jsq,power-of-d,sed,lwr,lwl,greedy,sita-e,guarded-sita,fpi,oracle"


class Setup(NamedTuple):
    """What is to be compared, checked, and how the output names where."""

    env: Env
    params: EnvParams
    schedulers: dict[str, Scheduler]
    behaviour: Scheduler | None
    described: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Judge(Draws, Chooses):
    """How schedulers are compared."""

    schedulers: Names = DEFAULT_SCHEDULERS
    lanes: int = 1024
    """Independent environments."""
    tasks: int = 2000
    """Tasks counted in each lane."""
    warmup: int | None = None
    """Tasks run before that, not counted; if not given, a quarter of the tasks, or as many as theory asks for
    at this load, up to the number of tasks."""
    seed: int = 0
    """Of the random tasks."""
    baseline: str | None = None
    """Scheduler that differences are taken to; if not given, lwr or else the first."""
    snapshot: bool = False
    """Ask every scheduler in the states that one behaviour scheduler visits."""
    behaviour: str = "lwr"
    """That scheduler."""
    out: Path | None = None
    """Folder for the table (CSV, JSON) and pictures."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def setup(self, spec: Spec) -> Setup:
        """Check the options, and make what they name."""
        checks.at_least("lanes", self.lanes, 1)
        checks.at_least("tasks", self.tasks, 1)
        checks.seed("seed", self.seed)
        self.formats()
        behaviour = scheduler(self.behaviour) if self.snapshot else None
        env, params = spec.make()
        chosen = self.chosen(env, params)
        if self.baseline is not None:
            checks.known("baseline", self.baseline, chosen)
        if self.warmup is not None:
            checks.at_least("warmup", self.warmup, 0)
        return Setup(env, params, chosen, behaviour, described(spec, env, self.seed, load=float(params.load)))

    def judge(self, setup: Setup) -> Comparison:
        """Compare."""
        with progress() as advance:
            return compare(
                setup.env,
                setup.params,
                setup.schedulers,
                jax.random.key(self.seed),
                num_lanes=self.lanes,
                num_tasks=self.tasks,
                warmup=self.warmup,
                baseline=self.baseline,
                behaviour=setup.behaviour,
                on_progress=advance,
            )

    def judge_and_report(self, setup: Setup) -> None:
        """Compare, write, print."""
        with folders.begin(self, self.out, setup.env.name) as record:
            comparison = self.judge(setup)
            result = setup.described | comparison.as_dict()
            if self.out is not None:
                from jaxlb.report import plots

                (self.out / "compare.json").write_text(dumps(result), encoding="utf-8")
                (self.out / "compare.csv").write_text(comparison.to_csv(), encoding="utf-8")
                shown = comparison, setup.env, setup.params, setup.schedulers
                plots.save_all(self.out, *shown, jax.random.key(self.seed), self.formats())
            best = comparison.best("mean_completion")
            record.finish(f"{best.title}: completion {best.mean_completion:.4g}")
        # Once all is written: a reader may go, and a terminal may not know a sign.
        if self.json:
            sys.stdout.write(dumps(result))
        else:
            print_table(comparison, setup.described)


@dataclass(frozen=True, kw_only=True)
class Compare(_Judge, Where):
    """Compare schedulers, all on the same tasks."""

    def run(self) -> None:
        """Compare, print, write."""
        self.judge_and_report(self.setup(self.spec()))


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Judge, Where):
    """Compare a trained scheduler with classical ones."""

    directory: tyro.conf.Positional[Path]
    """Run folder of jaxlb train."""
    scenario: str = ""
    """A name from `jaxlb scenarios`; if not given, the run's, with all it was trained on."""
    schedulers: Names = "rr,lwr,greedy,oracle"

    def names(self) -> list[str | Path]:
        """Return the names and the run folders."""
        return [*super().names(), self.directory]

    def run(self) -> None:
        """Compare, print, write."""
        run = runs.find(self.directory)
        trained = run.training
        if not run.finished():
            note(f"{self.directory} is not finished: these are its best weights so far")
        spec = self.spec() if self.scenario else self._on(trained.spec())
        self.judge_and_report(self.setup(spec))

    def _on(self, trained: Spec) -> Spec:
        """Return the specification that was trained on, changed as the options say."""
        if trained.trace is None or self.trace is not None:
            trace = self.spec().trace
        else:
            more = checks.settings("--trace-options", self.trace_options)
            trace = [*trained.trace[:2], trained.trace[2] | more]
        overload = trained.allow_overload or self.allow_overload
        return Spec(trained.scenario, trained.overrides | self.overrides(), trace, overload)


def print_table(comparison: Comparison, described: dict[str, Any]) -> None:
    """Print the table for people."""
    source = (
        comparison.scenario
        if described["trace"] is None
        else f"{comparison.scenario} on {described['trace']}"
    )
    title = f"{source}, load {described['load']:.3g}{comparison.asked}"
    table = Table(title=title, title_justify="left")
    table.add_column("scheduler", no_wrap=True)
    (_, *headings), *lines = comparison.as_text()
    for heading in headings:
        table.add_column(heading, justify="right")
    for row, cells in zip(comparison.schedulers, lines, strict=True):
        base = row.name == comparison.baseline
        table.add_row(*cells, style="dim" if row.mark else "bold" if base else None)
    screen = console()
    screen.print(table)
    intervals = (
        "± is half the 95 % interval over lanes" if comparison.num_lanes > 1 else "one lane: no intervals"
    )
    screen.print(
        f"{comparison.counted}; {intervals}; the difference is paired.", style="dim", highlight=False
    )
    for text in comparison.remarks():
        screen.print(text, style="yellow", highlight=False, soft_wrap=True)
