"""jaxlb compare: schedulers side by side."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from rich.table import Table

from jaxlb import checks, runs
from jaxlb.cli import folders
from jaxlb.cli.common import Draws, Where, console, described, dumps, note, progress
from jaxlb.comparison import Comparison
from jaxlb.env import Env
from jaxlb.environments import Spec
from jaxlb.judging import compare
from jaxlb.scheduling import scheduler, schedulers
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
class _Judge(Draws):
    """How schedulers are compared."""

    schedulers: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = DEFAULT_SCHEDULERS
    """Names from `jaxlb schedulers`, such as lwr or guarded-sita(big=2,share=0.8), separated by commas."""
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

    def setup(self, spec: Spec, checkpoints: Sequence[Path]) -> Setup:
        """Check the options, and make what they name."""
        checks.at_least("lanes", self.lanes, 1)
        checks.at_least("tasks", self.tasks, 1)
        checks.seed("seed", self.seed)
        self.formats()
        behaviour = scheduler(self.behaviour) if self.snapshot else None
        env, params = spec.make()
        chosen = chosen_schedulers(self.schedulers, checkpoints, env, params)
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

    checkpoint: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Run folder of a trained scheduler, which joins the table; may be given several times."""

    def run(self) -> None:
        """Compare, print, write."""
        self.judge_and_report(self.setup(self.spec(), self.checkpoint))


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Judge, Where):
    """Compare a trained scheduler with classical ones."""

    directory: tyro.conf.Positional[Path]
    """Run folder of jaxlb train."""
    scenario: str = ""
    """A name from `jaxlb scenarios`; if not given, the run's, with all it was trained on."""
    schedulers: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "rr,lwr,greedy,oracle"
    """Names from `jaxlb schedulers`, such as lwr or guarded-sita(big=2,share=0.8), separated by commas."""

    def run_folders(self) -> Sequence[Path]:
        """Return the run folders that the command reads."""
        return (self.directory,)

    def run(self) -> None:
        """Compare, print, write."""
        trained = runs.find(self.directory).training
        spec = self.spec() if self.scenario else self._on(trained.spec())
        self.judge_and_report(self.setup(spec, (self.directory,)))

    def _on(self, trained: Spec) -> Spec:
        """Return the specification that was trained on, changed as the options say."""
        if trained.trace is None or self.trace is not None:
            trace = self.spec().trace
        else:
            more = checks.settings("--trace-options", self.trace_options)
            trace = [*trained.trace[:2], trained.trace[2] | more]
        overload = trained.allow_overload or self.allow_overload
        return Spec(trained.scenario, trained.overrides | self.overrides(), trace, overload)


def chosen_schedulers(
    names: str, checkpoints: Sequence[Path], env: Env, params: EnvParams
) -> dict[str, Scheduler]:
    """Return the schedulers that options name, those that were trained last."""
    given = checks.entries(names)
    for name in given:
        if name not in schedulers() and Path(name).exists():
            raise ValueError(f"--schedulers: {name!r} is a path; --checkpoint takes run folders")
    chosen: dict[str, Scheduler] = {name: scheduler(name) for name in given}
    for directory in checkpoints:
        for name, one in _trained(directory, env, params).items():
            if name in chosen:
                raise ValueError(f"{directory}: the table has a {name!r} already; rename the folder")
            chosen[name] = one
    return chosen


def _trained(directory: Path, env: Env, params: EnvParams) -> dict[str, Scheduler]:
    """Return the schedulers that a run trained, by the names that the table gives them."""
    run = runs.find(directory)
    run.training.check(env, params)
    name, found, best = directory.resolve().name, run.load(), run.best_setting()
    if best:
        note(f"{directory}: {best}, the best setting")
    return {name if len(found) == 1 else f"{name}, seed {seed}": one for seed, one in found.items()}


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
