"""What the commands share: tables, notes, progress, the options that name an environment."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxlb import checks
from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.types import EnvParams
from jaxlb.workload import read_trace

LOG = logging.getLogger("jaxlb")
"""What is no result goes here: warnings, notes, and progress where notes are wanted."""


class _Screen(Console):
    """Standard output, whose reader may have had enough: `run` knows what to do then."""

    def on_broken_pipe(self) -> None:
        """Raise it."""
        raise


def console() -> Console:
    """Standard output for people."""
    # A pipe has no width; a wide table is what its reader wants.
    return _Screen(width=None if sys.stdout.isatty() else 132)


def note(text: str) -> None:
    """Standard error for people, unless they want it quiet."""
    LOG.info(text)


@dataclass(frozen=True, kw_only=True)
class Writes:
    """The option of commands that write."""

    config: Path | None = None
    """The config.yaml of a run folder; options given besides count more, lists are added to."""


@dataclass(frozen=True)
class Where:
    """The options that name an environment."""

    scenario: str = "heavy-tail"
    """A name from `jaxlb scenarios`."""
    trace: Path | None = None
    """A recorded trace whose tasks replace the scenario's workload."""
    trace_format: str | None = None
    """azure-llm, swf, swim, csv or jsonl."""
    trace_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Columns, units and window of the trace, such as time_column=at size_column=work start=3600."""
    load: float | None = None
    """Arrival rate x mean size / total speed; if not given, the scenario's."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other parameters of the scenario, such as tail_index=1.2 or speed=[1,2]."""
    allow_overload: bool = False
    """Accept a load of 1 or more."""

    def overrides(self) -> dict[str, Any]:
        """Parameters of the scenario by name."""
        return checks.settings("--set", self.set) | ({} if self.load is None else {"load": self.load})

    def recorded(self) -> list[Any] | None:
        """The trace, if there is one: path, format, options."""
        if self.trace is None:
            return None
        return [
            str(self.trace.absolute()),
            self.trace_format,
            checks.settings("--trace-options", self.trace_options),
        ]

    def environment(self) -> tuple[Env, EnvParams, dict[str, Any]]:
        """The environment, its parameters, and how the output names it."""
        if (self.trace is None) != (self.trace_format is None):
            raise ValueError("--trace and --trace-format go together: give both or none")
        if self.trace_options and self.trace is None:
            raise ValueError("--trace-options: of which trace? --trace and --trace-format name it")
        recorded = self.recorded()
        trace = None if recorded is None else read_trace(recorded[0], recorded[1], **recorded[2])
        env, params = make(self.scenario, trace=trace, allow_overload=self.allow_overload, **self.overrides())
        name = None if trace is None else trace.name
        return env, params, {"scenario": env.name, "trace": name, "load": float(params.load)}


def settings(values: dict[str, Any]) -> tuple[str, ...]:
    """Values by name as settings NAME=VALUE, from which `checks.settings` makes the same values."""
    return tuple(f"{name}={json.dumps(value)}" for name, value in values.items())


def alone(command: str) -> None:
    """Raise ValueError where a command would be run by several processes, and can only be by one."""
    if jax.process_count() > 1:
        raise ValueError(f"jaxlb {command} runs in one process, not in {jax.process_count()}")


def dumps(result: dict[str, Any]) -> str:
    """A JSON object for files and standard output."""
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float], None] | None]:
    """A progress bar on standard error, if that is a terminal; until something moves, it says "compiling"."""
    if not sys.stderr.isatty() or not LOG.isEnabledFor(logging.INFO):
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("compiling", total=None)
        yield lambda name, share: progress.update(bar, description=name, completed=share, total=1.0)
