"""What the commands share: tables, notes, progress, the options that name an environment."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxlb import checks, records
from jaxlb.env import Env
from jaxlb.environments import Spec

FORMATS = ("png", "pdf", "svg")
_LINE_EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal."""
LOG = logging.getLogger("jaxlb")
"""What is no result goes here: warnings, notes, and progress where notes are wanted."""


class _Screen(Console):
    """Standard output, whose reader may have had enough: `run` knows what to do then."""

    def on_broken_pipe(self) -> None:
        """Raise the error."""
        raise


def console() -> Console:
    """Return a console that writes to standard output, for people."""
    # A pipe has no width; a wide table is what its reader wants.
    return _Screen(width=None if sys.stdout.isatty() else 240)


def note(text: str) -> None:
    """Write a line for people to standard error, unless they want it quiet."""
    LOG.info(text)


@dataclass(frozen=True, kw_only=True)
class Imports:
    """The option of commands that know names, which others may register."""

    import_: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import")] = ()
    """Module, or file, that registers parts of your own first; may be given several times."""

    def run_folders(self) -> Sequence[Path]:
        """Return the run folders that the command reads, which remember what they need."""
        return ()

    def with_parts(self) -> Self:
        """Import them, and what run folders remember; return the command with all of it.

        What is given replaces a remembered file of the same name; one that is not there any more is left out.

        Raises:
          ValueError: one cannot be imported.
        """
        names = [_whole(name) for name in self.import_]
        given = {Path(name).name for name in names if name.endswith(".py")}
        for name in names:  # first: what they register is no folder, even if one is called so
            _import(name)
        for folder in self.run_folders():
            for name in map(_whole, _remembered(folder)):
                if name in names or Path(name).name in given:
                    continue
                if name.endswith(".py") and not Path(name).exists():
                    note(f"{folder} remembers {name}, which is not there; --import names where it is now")
                    continue
                note(f"imports {name}, as {folder} remembers")
                _import(name)
                names.append(name)
        return dataclasses.replace(self, import_=tuple(names))


def _whole(name: str) -> str:
    """Return the whole path of a file; the name of a module is what it is."""
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _remembered(folder: Path) -> list[str]:
    """Return what the run in a folder imported."""
    options = (records.read(folder) or {}).get("options") if folder.is_dir() else None
    names = options.get("import_", []) if isinstance(options, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{folder / records.RECORD}: import_ = {checks.shown(names)}: must be a list of names"
        )
    return names


def _import(name: str) -> None:
    """Import a module, of the working directory too, or a file."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            importlib.import_module(name)
    except Exception as error:  # whatever a user's file raises
        module = sys.modules.get(name)
        file = name if name.endswith(".py") else getattr(module, "__file__", None)
        where = traceback.extract_tb(error.__traceback__)
        own = [f" (line {frame.lineno})" for frame in where if frame.filename == file]
        place = own[-1] if own else ""
        raise ValueError(f"--import {name}{place}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    """Import a file, once, under its own name, or another one where that is taken."""
    if any(getattr(module, "__file__", None) == str(path) for module in list(sys.modules.values())):
        return
    name = f"imported_{path.stem}" if path.stem in sys.modules else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


@dataclass(frozen=True, kw_only=True)
class Writes(Imports):
    """The option of commands that write."""

    config: Path | None = None
    """The run.json of a run folder; options given besides count more, lists are added to."""


@dataclass(frozen=True, kw_only=True)
class Draws(Writes):
    """The options of commands that draw pictures."""

    format: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "png"
    """Of pictures: png, pdf, svg, separated by commas."""

    def formats(self) -> list[str]:
        """Return the formats.

        Raises:
          ValueError: an unknown one, or none.
        """
        given = checks.entries(self.format)
        for name in given or [""]:
            checks.known("--format", name, FORMATS)
        return given


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
    discipline: str | None = None
    """How processors serve, such as ps or srpt; if not given, as the scenario has it."""
    dispatchers: int | None = None
    """How many there are, each with a scheduler of its own; if not given, as the scenario has it."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other parameters of the scenario, such as tail_index=1.2 or speed=[1,2]."""
    allow_overload: bool = False
    """Accept a load that processors cannot bear."""

    def overrides(self) -> dict[str, Any]:
        """Return the parameters of the scenario that the options set, by name."""
        given = {name: getattr(self, name) for name in ("load", "discipline", "dispatchers")}
        own = {name: value for name, value in given.items() if value is not None}
        return checks.settings("--set", self.set) | own

    def spec(self) -> Spec:
        """Return what the environment is made from."""
        if (self.trace is None) != (self.trace_format is None):
            raise ValueError("--trace and --trace-format go together: give both or none")
        if self.trace_options and self.trace is None:
            raise ValueError("--trace-options: of which trace? --trace and --trace-format name it")
        options = checks.settings("--trace-options", self.trace_options)
        trace = None if self.trace is None else [str(self.trace.absolute()), self.trace_format, options]
        return Spec(self.scenario, self.overrides(), trace, self.allow_overload)


def described(spec: Spec, env: Env, seed: int, **more: Any) -> dict[str, Any]:
    """Return how results name where they were found."""
    trace = None if spec.trace is None else Path(spec.trace[0]).name
    return {"scenario": env.name, "trace": trace, **more, "seed": seed}


def grid_of(option: str, texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each name from texts NAME=VALUES.

    Raises:
      ValueError: one looks different, or names what another did.
    """
    grid: dict[str, list[Any]] = {}
    for name, values in (_values_of(option, text) for text in texts):
        if name in grid:
            raise ValueError(f"{option} {name}: given twice; all its values go behind one")
        grid[name] = values
    return grid


def _values_of(option: str, text: str) -> tuple[str, list[Any]]:
    """Return a name and its values: NAME=1,2,3, NAME=first:last:count or, in equal ratios, NAME=log:..."""
    ((name, _),) = checks.settings(option, [text]).items()
    value = text.partition("=")[2].strip()
    spread = re.fullmatch(r"(log:)?([^:,\[\]]+):([^:,\[\]]+):(\d+)", value)
    if spread is None:
        return name, [checks.settings(option, [f"{name}={one}"])[name] for one in checks.entries(value)]
    try:
        first, last, count = float(spread[2]), float(spread[3]), int(spread[4])
    except ValueError:
        raise ValueError(f"{option} {text!r}: must look like {name}=0.3:0.9:7") from None
    if not np.isfinite([first, last]).all() or count < 2 or (spread[1] and min(first, last) <= 0):
        raise ValueError(f"{option} {text!r}: must be at least 2 finite values, above 0 in equal ratios")
    values = np.geomspace(first, last, count) if spread[1] else np.linspace(first, last, count)
    shown = [float(f"{value:.6g}") for value in values]
    whole = all(re.fullmatch(r"[+-]?\d+", end.strip()) for end in (spread[2], spread[3]))
    if whole and all(value.is_integer() for value in shown):
        return name, [int(value) for value in shown]
    return name, shown


def command_line(command: Any) -> str:
    """Return the line that runs a command; options that have their defaults are left out."""
    words = ["jaxlb", type(command).__name__.lower()]
    for field in dataclasses.fields(command):
        value, option = getattr(command, field.name), f"--{field.name.rstrip('_').replace('_', '-')}"
        if field.default is dataclasses.MISSING and not isinstance(value, tuple):  # positional
            words.append(str(value))
        elif value is True:
            words.append(option)
        elif value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            # Of paths there is one for each option, of settings any number.
            each = isinstance(values[0], Path) or field.name == "import_"
            lines = [[one] for one in values] if each else [values]
            words += [str(word) for line in lines for word in (option, *line)]
    return shlex.join(words)


def alone(command: str) -> None:
    """Raise ValueError where a command would be run by several processes, and can only be by one."""
    if jax.process_count() > 1:
        raise ValueError(f"jaxlb {command} runs in one process, not in {jax.process_count()}")


def dumps(result: dict[str, Any]) -> str:
    """Write a JSON object for files and standard output."""
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float], None] | None]:
    """Show a progress bar on standard error; where that is no terminal, a line now and then.

    Until something moves, the bar reads "compiling".
    """
    if not LOG.isEnabledFor(logging.INFO):
        yield None
        return
    if not sys.stderr.isatty():
        due = time.monotonic() + _LINE_EVERY

        def line(name: str, share: float) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _LINE_EVERY
                note(f"{share:.0%} done, at {name}")

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("compiling", total=None)
        yield lambda name, share: progress.update(bar, description=name, completed=share, total=1.0)
