"""The command line: the only place that parses arguments, prints, or writes files."""

import contextlib
import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxlb import checks
from jaxlb.comparison import Comparison, Interval, compare
from jaxlb.scenarios import make, scenarios
from jaxlb.schedulers import scheduler, schedulers
from jaxlb.workload import read_trace

DEFAULT_SCHEDULERS = "rr,wrr,jsq,power-of-d,sed,lwr,lwl,greedy,sita-e,guarded-sita,fpi,oracle"

Name = Annotated[str, tyro.conf.arg(metavar="NAME")]


def _console() -> Console:
    # A pipe has no width; a wide table is what its reader wants.
    return Console(width=None if sys.stdout.isatty() else 132)


def _list(title: str, entries: dict[str, str]) -> None:
    table = Table("name", "description", title=title, title_justify="left")
    for name, description in entries.items():
        table.add_row(name, description)
    _console().print(table)


def list_scenarios() -> None:
    """List the scenarios."""
    _list("scenarios", scenarios())


def list_schedulers() -> None:
    """List the schedulers."""
    _list("schedulers", schedulers())


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
    """Create the output folder and try it, before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".jaxlb-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {directory}: cannot be written: {error.strerror}") from None


def compare_command(
    scenario: Name = "heavy-tail",
    schedulers: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = DEFAULT_SCHEDULERS,
    trace: Path | None = None,
    trace_format: Name | None = None,
    load: float | None = None,
    lanes: int = 1024,
    tasks: int = 2000,
    warmup: int | None = None,
    seed: int = 0,
    baseline: Name | None = None,
    snapshot: bool = False,
    behaviour: Name = "lwr",
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = (),
    allow_overload: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Compare schedulers on one scenario, all on the same tasks.

    Args:
      scenario: a name from `jaxlb scenarios`.
      schedulers: names from `jaxlb schedulers`, separated by commas.
      trace: a recorded trace whose tasks replace the scenario's workload.
      trace_format: azure-llm, swf, swim or csv.
      load: arrival rate x mean size / total speed; default: the scenario's.
      lanes: independent environments.
      tasks: tasks counted in each lane.
      warmup: tasks run before, not counted; default: a quarter of the tasks.
      seed: of the random tasks.
      baseline: scheduler that differences are taken to; default: lwr.
      snapshot: ask every scheduler in the states that one behaviour scheduler visits.
      behaviour: that scheduler.
      set: other parameters of the scenario, such as tail_index=1.2 or speed=[1,2].
      allow_overload: accept a load of 1 or more.
      out: folder for the table (CSV, JSON) and pictures.
      json: print one JSON object instead of a table.
    """
    env, params, described = _environment(scenario, trace, trace_format, load, set, allow_overload)
    names = [name.strip() for name in schedulers.split(",") if name.strip()]
    chosen = {name: scheduler(name) for name in names}
    checks.at_least("lanes", lanes, 1)
    checks.at_least("tasks", tasks, 1)
    if out is not None:
        # Before the work: a missing plotting library or folder must not cost a run.
        from jaxlb.report import plots

        _writable(out)
    with _progress(len(chosen)) as advance:
        comparison = compare(
            env,
            params,
            chosen,
            jax.random.key(seed),
            num_lanes=lanes,
            num_tasks=tasks,
            warmup=tasks // 4 if warmup is None else warmup,
            baseline=baseline,
            behaviour=scheduler(behaviour) if snapshot else None,
            on_progress=advance,
        )
    result = described | {"seed": seed} | comparison.as_dict()
    if json:
        sys.stdout.write(_dumps(result))
    else:
        _print(comparison, described)
    if out is not None:
        (out / "compare.json").write_text(_dumps(result), encoding="utf-8")
        (out / "compare.csv").write_text(_as_csv(comparison), encoding="utf-8")
        pictures = plots.save_all(out, comparison, env, params, chosen, jax.random.key(seed))
        written = ", ".join(["compare.json", "compare.csv", *(path.name for path in pictures)])
        print(f"wrote {written} to {out}", file=sys.stderr)


def _environment(
    scenario: str,
    trace: Path | None,
    trace_format: str | None,
    load: float | None,
    settings: tuple[str, ...],
    allow_overload: bool,
) -> tuple[Any, Any, dict[str, Any]]:
    """The environment that the options describe, its parameters, and how the output names it."""
    overrides = _overrides(settings)
    if load is not None:
        overrides["load"] = load
    if (trace is None) != (trace_format is None):
        raise ValueError("--trace and --trace-format go together: give both or none")
    data = None
    if trace is not None and trace_format is not None:
        data = read_trace(trace, trace_format)
    env, params = make(scenario, trace=data, allow_overload=allow_overload, **overrides)
    described = {"scenario": scenario, "trace": None if trace is None else trace.name, "load": float(params.load)}
    return env, params, described


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
                    cells |= flat({f"{name.removesuffix('_ci')}_{index}{'_ci' * name.endswith('_ci')}": entry})
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
def _progress(num_schedulers: int) -> Iterator[Callable[[str, float], None] | None]:
    """A progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("compiling", total=float(num_schedulers))
        finished: list[str] = []

        def advance(name: str, share: float) -> None:
            progress.update(bar, description=name, completed=len(finished) + share)
            if share == 1.0:
                finished.append(name)

        yield advance


def _pm(value: float, interval: Interval, scale: float = 1.0) -> str:
    """Value and half width, to four figures and as many decimals."""
    half = 0.0 if interval is None else scale * 0.5 * (interval[1] - interval[0])
    value = scale * value
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    shown = f"{value:,.{digits}f}"
    return shown if interval is None else f"{shown} ±{half:,.{digits}f}"


def _print(comparison: Comparison, described: dict[str, Any]) -> None:
    """The table for people."""
    source = comparison.scenario if described["trace"] is None else f"{comparison.scenario} on {described['trace']}"
    title = f"{source}, load {described['load']:.3g}"
    if comparison.behaviour is not None:
        title += f", asked in the states that {comparison.behaviour} visits"
    table = Table(title=title, title_justify="left")
    table.add_column("scheduler")
    against = f"completion − {comparison.baseline}"
    headings = ("completion", "p50", "p95", "p99", "slowdown", "SLA violations %", "oracle's choice %", "reward")
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
    counted = f"{comparison.num_lanes:,} lanes x {comparison.num_tasks:,} tasks after {comparison.warmup:,} of warm-up"
    intervals = "± is half the 95 % interval over lanes" if comparison.num_lanes > 1 else "one lane: no intervals"
    console.print(f"{counted}; {intervals}; the difference is paired.", style="dim", highlight=False)
    overflows = {row.name: row.queue_overflows for row in comparison.schedulers if row.queue_overflows}
    if overflows:
        listed = ", ".join(f"{name} {count:,}" for name, count in overflows.items())
        console.print(
            f"queues longer than counted exactly (raise --set queue_capacity=...): {listed} tasks",
            style="dim",
            highlight=False,
        )


COMMANDS: dict[str, Callable[..., None]] = {
    "compare": compare_command,
    "scenarios": list_scenarios,
    "schedulers": list_schedulers,
}


def main() -> None:
    """Entry point; exits with 0, or with 2 and one line on standard error if the input is bad."""
    # One XLA device for each core: lanes run side by side instead of waiting for each other at every step.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    warnings.showwarning = lambda message, *_, **__: print(f"jaxlb: warning: {message}", file=sys.stderr)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxlb",
            description="Thousands of multiprocessor systems in parallel, and the schedulers that balance them.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except ValueError as error:
        print(f"jaxlb: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader has had enough, as in `jaxlb scenarios | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
