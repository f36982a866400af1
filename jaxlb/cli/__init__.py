"""The command line: the only place that parses arguments and prints."""

import _thread
import argparse
import contextlib
import dataclasses
import hashlib
import io
import itertools
import logging
import os
import platform
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import jax
import tyro
from rich.text import Text

from jaxlb import checks
from jaxlb.cli import folders
from jaxlb.cli.calibrate import Calibrate
from jaxlb.cli.cite import Cite
from jaxlb.cli.common import LOG, Imports
from jaxlb.cli.compare import Compare, Evaluate
from jaxlb.cli.demo import Demo
from jaxlb.cli.export import Export
from jaxlb.cli.lists import Runs, Scenarios, Schedulers
from jaxlb.cli.render import Render
from jaxlb.cli.sweep import Sweep
from jaxlb.cli.train import Train
from jaxlb.cli.tune import Tune
from jaxlb.cli.verify import Verify
from jaxlb.version import __version__

COMMANDS: dict[str, type] = {
    "demo": Demo,
    "compare": Compare,
    "sweep": Sweep,
    "tune": Tune,
    "train": Train,
    "evaluate": Evaluate,
    "calibrate": Calibrate,
    "export": Export,
    "render": Render,
    "runs": Runs,
    "verify": Verify,
    "scenarios": Scenarios,
    "schedulers": Schedulers,
    "cite": Cite,
}

XLA_FLAGS = " ".join(
    [
        # The whole width of AVX-512 where there is one, which XLA leaves half unused.
        "--xla_cpu_prefer_vector_width=512",
        # The loop over tasks becomes one piece of machine code, as newer versions of XLA make it anyway.
        "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=4000000",
    ]
)
"""The flags of XLA where the environment does not set them."""

_PATHS = ("--out", "--trace", "--config")
"""Options that are paths."""
_LISTS = ("--set", "--over", "--train", "--trace-options")
"""Options that take several values at once, of which a second one would replace the first."""

STOPPED = 130
"""Exit code after Ctrl-C, as of a shell."""


def _parse(arguments: Sequence[str]) -> Any:
    """Read the arguments: the command, and whether to be verbose or quiet.

    Raises:
      ValueError: they cannot be understood.
    """
    for word, following in itertools.pairwise([*arguments, "--"]):
        # pathlib would take nothing for the working directory.
        if word.removesuffix("=") in _PATHS and (word.endswith("=") or following == ""):
            raise ValueError(f"{word.removesuffix('=')} '': must be a path")
        if word in _LISTS and arguments.count(word) > 1:
            raise ValueError(f"{word}: given twice; all its NAME=VALUE go behind one")
    configured = _configured(arguments)
    settings = vars(configured) if configured else {}
    lists = {name: value for name, value in settings.items() if isinstance(value, tuple)}

    def subcommand(name: str, command: type) -> Any:
        mine = type(configured) is command
        # What is typed is added to lists: they are empty until then.
        default = {"default": dataclasses.replace(configured, **dict.fromkeys(lists, ()))} if mine else {}
        return Annotated[command, tyro.conf.subcommand(name, **default)]

    commands = Union[tuple(subcommand(*entry) for entry in COMMANDS.items())]  # noqa: UP007

    def option(letter: str, text: str) -> tuple[Any, bool]:
        return Annotated[bool, tyro.conf.arg(aliases=[letter], help=text, help_behavior_hint="")], False

    program = dataclasses.make_dataclass(
        "Program",
        [
            ("command", commands),
            ("verbose", *option("-v", "Tracebacks, and what JAX compiles.")),
            ("quiet", *option("-q", "Results and errors only.")),
            # Done before anything is parsed, since it needs no command; here for the help.
            ("version", *option("-V", "Print the version.")),
        ],
    )
    parsed = _tyro(
        program,
        arguments,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.CascadeSubcommandArgs,
    )
    for name, value in lists.items():
        # Of what is there twice, the later: of settings, the later counts.
        both = reversed(dict.fromkeys(reversed(value + getattr(parsed.command, name))))
        parsed.command = dataclasses.replace(parsed.command, **{name: tuple(both)})
    return parsed


def _configured(arguments: Sequence[str]) -> Any:
    """Return the command that `--config FILE` makes; None if there is none among the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        options, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return None  # no FILE: tyro says so
    path = options.config
    if path is None:
        return None
    name, settings = folders.read_config(path)
    typed = next((word for word in rest if not word.startswith("-")), None)
    if name != typed:
        raise ValueError(f"--config {path}: of jaxlb {name}, not of jaxlb {typed}")
    checks.known("command", name, COMMANDS)
    try:
        return _command(COMMANDS[name], settings)
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from None


def _command(command: type, settings: dict[str, Any]) -> Any:
    """Make a command with settings from a file, which are checked as if they had been typed."""
    fields = {field.name: field for field in dataclasses.fields(command)}
    arguments = []
    for name, value in settings.items():
        checks.known("option", name, fields)
        positional = fields[name].default is dataclasses.MISSING and not isinstance(value, list)
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            arguments.append(f"{entry}" if positional else f"--{name.rstrip('_')}={entry}")
    return _tyro(command, arguments, tyro.conf.FlagConversionOff, tyro.conf.UseAppendAction)


def _tyro(target: Any, arguments: Sequence[str], *config: Any) -> Any:
    """Make a dataclass of arguments; raise ValueError with one line if they cannot be understood."""
    errors, helped = io.StringIO(), io.StringIO()
    # tyro's help is coloured on any terminal.
    plain = contextlib.redirect_stdout(helped) if os.environ.get("NO_COLOR") else contextlib.nullcontext()
    try:
        with contextlib.redirect_stderr(errors), plain:
            return tyro.cli(
                target,
                args=arguments,
                prog="jaxlb",
                description="",
                config=config,
            )
    except SystemExit as stop:
        if not stop.code:
            print(helped.getvalue(), end="")
            raise SystemExit(0) from None
        # tyro draws a box; scripts and logs want a line.
        words = [line.strip("╭╮╰╯│─ ") for line in Text.from_ansi(errors.getvalue()).plain.splitlines()]
        raise ValueError(" ".join(word for word in words[1:] if word)) from None


def _join() -> bool:
    """Join the processes that the environment names; return whether this one prints.

    Slurm and Open MPI give their number and place; without them JAX_NUM_PROCESSES and JAX_PROCESS_ID do.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ:
        return True
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        count, place = (int(os.environ[name]) if name in os.environ else None for name in names)
    except ValueError:
        raise ValueError(f"{' and '.join(names)} must be whole numbers") from None
    # Gloo writes to standard output, which is for results.
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(results, "w", encoding="utf-8")
    jax.distributed.initialize(num_processes=count, process_id=place)
    return jax.process_index() == 0


def _run_silently(command: Any) -> None:
    """Do a process's share of the work; the first one prints and writes."""
    LOG.setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        (dataclasses.replace(command, out=None) if hasattr(command, "out") else command).run()


def _set_verbosity(verbose: bool, quiet: bool) -> None:
    """Set what goes to standard error besides errors."""
    LOG.handlers, LOG.propagate = [logging.StreamHandler(sys.stderr)], False
    LOG.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    jax.config.update("jax_log_compiles", verbose)


def _keep_programs() -> None:
    """Keep what is compiled for the next command, in a folder of the user's cache, up to a gigabyte.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxlb" / _processor()))
        jax.config.update("jax_compilation_cache_max_size", 2**30)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _processor() -> str:
    """Return a name for the processor and its instructions: compiled programs only run on their like."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        about = next(line for line in about.splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        about = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {about}".encode()).hexdigest()[:12]


def run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name.

    Returns:
      0; 1 if a verification failed or a training diverged; 2 if the input is bad; 130 after Ctrl-C. What is
      not 0 comes with one line on standard error.
    """
    verbose = False
    try:
        if {"-V", "--version"} & set(arguments):
            print(f"jaxlb {__version__}", flush=True)
            return 0
        parsed = _parse(arguments)
        verbose = parsed.verbose
        _set_verbosity(verbose, parsed.quiet)
        _keep_programs()
        command: Any = parsed.command
        first = _join()  # before anything is imported, which may start JAX
        if isinstance(command, Imports):
            command = command.with_parts()
        if first:
            command.run()
        else:
            _run_silently(command)
        sys.stdout.flush()
        return 0
    except (KeyboardInterrupt, ValueError, FloatingPointError, OSError) as raised:
        try:
            sys.stdout.flush()
        except OSError:
            # What is still to be written has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(raised, BrokenPipeError):  # the reader has had enough, as in `jaxlb scenarios | head`
            return 0
        if verbose:
            traceback.print_exc()
        stopped = isinstance(raised, KeyboardInterrupt)
        words = (str(raised) or "stopped") if stopped else f"error: {raised}"
        print(f"jaxlb: {' '.join(words.split())}", file=sys.stderr)
        return STOPPED if stopped else 1 if isinstance(raised, FloatingPointError) else 2


def _stop_again(lost: Any) -> None:
    """Press Ctrl-C again where it was lost, as it is within JAX's callback of the garbage collector."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        # Later: here it would be lost again.
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Run the command of this process's arguments and exit."""
    # One XLA device for each core: lanes run side by side instead of waiting for each other at every step.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    os.environ.setdefault("MPLBACKEND", "agg")  # pictures are files
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that a terminal cannot show
    sys.unraisablehook = _stop_again
    warnings.showwarning = lambda message, *_, **__: LOG.warning("jaxlb: warning: %s", message)
    code = run(sys.argv[1:])
    if code == STOPPED:
        # XLA may still be at work, and Python, as it ends, would take its memory from under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
