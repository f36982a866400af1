"""The command line: the only place that parses arguments, prints, or writes files."""

import contextlib
import csv
import importlib.util
import io
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxlb import checks
from jaxlb.comparison import Comparison, Interval, compare
from jaxlb.env import Env
from jaxlb.scenarios import make, scenarios
from jaxlb.schedulers import scheduler, schedulers
from jaxlb.types import EnvParams
from jaxlb.verification import Case, verify
from jaxlb.workload import read_trace

DEFAULT_SCHEDULERS = "rr,wrr,jsq,power-of-d,sed,lwr,lwl,greedy,sita-e,guarded-sita,fpi,oracle"


def _console() -> Console:
    # A pipe has no width; a wide table is what its reader wants.
    return Console(width=None if sys.stdout.isatty() else 132)


def _list(title: str, entries: dict[str, str]) -> None:
    table = Table("name", "description", title=title, title_justify="left")
    for name, description in entries.items():
        table.add_row(name, description)
    _console().print(table)


def _value(text: str) -> Any:
    """A JSON value, so numbers, lists, true and false; anything else stays text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _overrides(settings: tuple[str, ...]) -> dict[str, Any]:
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r}: must look like NAME=VALUE")
        values[name] = _value(text)
    return values


def _writable(directory: Path) -> None:
    """Create the output folder, try it, and look for the plotting library, before any work is done."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--out draws pictures with matplotlib: pip install 'jaxlb[plot]'")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".jaxlb-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {directory}: cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Scenarios:
    """List the scenarios."""

    def run(self) -> None:
        """Print the list."""
        _list("scenarios", scenarios())


@dataclass(frozen=True)
class Schedulers:
    """List the schedulers."""

    def run(self) -> None:
        """Print the list."""
        _list("schedulers", schedulers())


@dataclass(frozen=True)
class Compare:
    """Compare schedulers on one scenario, all on the same tasks."""

    scenario: str = "heavy-tail"
    """A name from `jaxlb scenarios`."""
    schedulers: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = DEFAULT_SCHEDULERS
    """Names from `jaxlb schedulers`, separated by commas."""
    trace: Path | None = None
    """A recorded trace whose tasks replace the scenario's workload."""
    trace_format: str | None = None
    """azure-llm, swf, swim or csv."""
    load: float | None = None
    """Arrival rate x mean size / total speed; if not given, the scenario's."""
    lanes: int = 1024
    """Independent environments."""
    tasks: int = 2000
    """Tasks counted in each lane."""
    warmup: int | None = None
    """Tasks run before that, not counted; if not given, a quarter of the tasks."""
    seed: int = 0
    """Of the random tasks."""
    baseline: str | None = None
    """Scheduler that differences are taken to; if not given, lwr or else the first."""
    snapshot: bool = False
    """Ask every scheduler in the states that one behaviour scheduler visits."""
    behaviour: str = "lwr"
    """That scheduler."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other parameters of the scenario, such as tail_index=1.2 or speed=[1,2]."""
    allow_overload: bool = False
    """Accept a load of 1 or more."""
    out: Path | None = None
    """Folder for the table (CSV, JSON) and pictures."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Compare, print, write."""
        checks.at_least("lanes", self.lanes, 1)
        checks.at_least("tasks", self.tasks, 1)
        checks.at_least("seed", self.seed, 0)
        names = [name.strip() for name in self.schedulers.split(",") if name.strip()]
        chosen = {name: scheduler(name) for name in names}
        behaviour = scheduler(self.behaviour) if self.snapshot else None
        env, params, described = _environment(self)
        if self.out is not None:
            _writable(self.out)
        with _progress() as advance:
            comparison = compare(
                env,
                params,
                chosen,
                jax.random.key(self.seed),
                num_lanes=self.lanes,
                num_tasks=self.tasks,
                warmup=self.tasks // 4 if self.warmup is None else self.warmup,
                baseline=self.baseline,
                behaviour=behaviour,
                on_progress=advance,
            )
        result = described | {"seed": self.seed} | comparison.as_dict()
        if self.json:
            sys.stdout.write(_dumps(result))
        else:
            _print(comparison, described)
        if self.out is not None:
            from jaxlb.report import plots

            (self.out / "compare.json").write_text(_dumps(result), encoding="utf-8")
            (self.out / "compare.csv").write_text(_as_csv(comparison), encoding="utf-8")
            pictures = plots.save_all(self.out, comparison, env, params, chosen, jax.random.key(self.seed))
            written = ", ".join(["compare.json", "compare.csv", *(path.name for path in pictures)])
            print(f"wrote {written} to {self.out}", file=sys.stderr)


def _environment(options: Compare) -> tuple[Env, EnvParams, dict[str, Any]]:
    """The environment that the options describe, its parameters, and how the output names it."""
    overrides = _overrides(options.set)
    if options.load is not None:
        overrides["load"] = options.load
    if (options.trace is None) != (options.trace_format is None):
        raise ValueError("--trace and --trace-format go together: give both or none")
    trace = None
    if options.trace is not None and options.trace_format is not None:
        trace = read_trace(options.trace, options.trace_format)
    env, params = make(options.scenario, trace=trace, allow_overload=options.allow_overload, **overrides)
    name = None if trace is None else trace.name
    return env, params, {"scenario": env.name, "trace": name, "load": float(params.load)}


def _dumps(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


def _as_csv(comparison: Comparison) -> str:
    """One line for each scheduler; an interval takes two columns, a list as many as it has entries."""

    def flat(row: dict[str, Any]) -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if name.endswith("_ci") and (value is None or not isinstance(value, list)):
                cells[f"{name}_low"], cells[f"{name}_high"] = value or (None, None)
            elif isinstance(value, list):
                for index, entry in enumerate(value):
                    cells |= flat(
                        {f"{name.removesuffix('_ci')}_{index}{'_ci' * name.endswith('_ci')}": entry}
                    )
            else:
                cells[name] = value
        return cells

    lines = [flat(row) for row in comparison.as_dict()["schedulers"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None] | None]:
    """A progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("compiling", total=1.0)
        yield lambda name, share: progress.update(bar, description=name, completed=share)


def _pm(value: float, interval: Interval, scale: float = 1.0) -> str:
    """Value and half width, to four figures and as many decimals."""
    half = 0.0 if interval is None else scale * 0.5 * (interval[1] - interval[0])
    value = scale * value
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    shown = f"{value:,.{digits}f}"
    return shown if interval is None else f"{shown} ±{half:,.{digits}f}"


def _print(comparison: Comparison, described: dict[str, Any]) -> None:
    """The table for people."""
    source = (
        comparison.scenario
        if described["trace"] is None
        else f"{comparison.scenario} on {described['trace']}"
    )
    title = f"{source}, load {described['load']:.3g}"
    if comparison.behaviour is not None:
        title += f", asked in the states that {comparison.behaviour} visits"
    table = Table(title=title, title_justify="left")
    table.add_column("scheduler")
    against = f"completion - {comparison.baseline}"
    headings = (
        "completion",
        "p50",
        "p95",
        "p99",
        "slowdown",
        "SLA violations %",
        "oracle's choice %",
        "reward",
    )
    for heading in (*headings, against):
        table.add_column(heading, justify="right")
    for row in comparison.schedulers:
        base = row.name == comparison.baseline
        table.add_row(
            row.name,
            _pm(row.mean_completion, row.mean_completion_ci),
            _pm(row.p50_completion, None),
            _pm(row.p95_completion, None),
            _pm(row.p99_completion, None),
            _pm(row.mean_slowdown, row.mean_slowdown_ci),
            _pm(row.sla_violation_rate, row.sla_violation_rate_ci, 100.0),
            _pm(row.oracle_agreement, None, 100.0),
            _pm(row.mean_reward, None),
            "" if base else _pm(row.completion_difference, row.completion_difference_ci),
            style="bold" if base else None,
        )
    console = _console()
    console.print(table)
    counted = f"{comparison.num_lanes:,} lanes x {comparison.num_tasks:,} tasks"
    counted += f" after {comparison.warmup:,} of warm-up"
    intervals = (
        "± is half the 95 % interval over lanes" if comparison.num_lanes > 1 else "one lane: no intervals"
    )
    console.print(f"{counted}; {intervals}; the difference is paired.", style="dim", highlight=False)
    overflows = {row.name: row.queue_overflows for row in comparison.schedulers if row.queue_overflows}
    if overflows:
        listed = ", ".join(f"{name} {count:,}" for name, count in overflows.items())
        console.print(
            f"queues too long to be counted exactly (--set queue_capacity=N raises that): {listed} tasks",
            style="dim",
            highlight=False,
        )


@dataclass(frozen=True)
class Verify:
    """Check the simulator against queueing theory; exit code 1 if a case fails."""

    quick: bool = False
    """A tenth of the tasks and fewer cases, in under a minute on two cores."""
    seed: int = 0
    """Of the random tasks."""
    out: Path | None = None
    """Folder for verification.md, its picture and verification.json."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> None:
        """Verify, print, write; leave with 1 if a case fails."""
        checks.at_least("seed", self.seed, 0)
        if self.out is not None:
            _writable(self.out)
        began = time.perf_counter()
        with _progress() as advance:
            cases = verify(jax.random.key(self.seed), quick=self.quick, on_progress=advance)
        minutes = (time.perf_counter() - began) / 60.0
        result = {"cases": [case._asdict() for case in cases]}
        failed = [case for case in cases if not case.passed]
        if self.json:
            sys.stdout.write(_dumps(result))
        else:
            _print_cases(cases)
            verdict = (
                f"[red]{len(failed)} of {len(cases)} cases failed" if failed else f"{len(cases)} cases passed"
            )
            _console().print(f"{verdict} in {minutes:.1f} minutes")
        if self.out is not None:
            from jaxlb.report import pages, plots

            command = "jaxlb verify" + " --quick" * self.quick + f" --seed {self.seed}" * (self.seed != 0)
            page = pages.verification(cases, f"{command} --out {self.out}", minutes)
            (self.out / "verification.md").write_text(page, encoding="utf-8")
            (self.out / "verification.json").write_text(_dumps(result), encoding="utf-8")
            plots.deviations(cases).savefig(self.out / "verification.png")
            print(f"wrote verification.md, .json and .png to {self.out}", file=sys.stderr)
        if failed:
            sys.exit(1)


def _print_cases(cases: list[Case]) -> None:
    """The cases for people, a table for each group."""
    console = _console()
    for group, members in itertools.groupby(cases, key=lambda case: case.group):
        table = Table(title=group, title_justify="left")
        table.add_column("case")
        for heading in ("measured", "± (95 %)", "exact", "deviation / SE", ""):
            table.add_column(heading, justify="right")
        for case in members:
            verdict = "passed" if case.passed else "FAILED"
            table.add_row(case.name, *case.figures(), verdict, style=None if case.passed else "bold red")
        console.print(table)


Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Scenarios, tyro.conf.subcommand("scenarios")]
    | Annotated[Schedulers, tyro.conf.subcommand("schedulers")]
)


def _parse() -> Compare | Verify | Scenarios | Schedulers:
    """The command that the arguments ask for; ValueError if they cannot be understood."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Command,  # type: ignore[arg-type]
                prog="jaxlb",
                description="Multiprocessor systems by the thousand, and the schedulers that balance them.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box; scripts and logs want a line.
        words = [line.strip("╭╮╰╯│─ ") for line in said.getvalue().splitlines()]
        raise ValueError(" ".join(word for word in words[1:] if word)) from None


def main() -> None:
    """Entry point; exits with 0, or with 2 and one line on standard error if the input is bad."""
    # One XLA device for each core: lanes run side by side instead of waiting for each other at every step.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    warnings.showwarning = lambda message, *_, **__: print(f"jaxlb: warning: {message}", file=sys.stderr)
    try:
        _parse().run()
    except ValueError as error:
        print(f"jaxlb: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader has had enough, as in `jaxlb scenarios | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
