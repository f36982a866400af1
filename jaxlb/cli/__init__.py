"""The command line: the only place that parses arguments, prints, or writes files."""

import contextlib
import dataclasses
import io
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import tyro
from rich.table import Table

from jaxlb.cli.bench import Bench
from jaxlb.cli.common import console
from jaxlb.cli.compare import Compare, Evaluate
from jaxlb.cli.demo import Demo
from jaxlb.cli.render import Render
from jaxlb.cli.train import Train
from jaxlb.cli.verify import Verify
from jaxlb.scenarios import scenarios
from jaxlb.schedulers import schedulers

XLA_FLAGS = " ".join(
    [
        # The whole width of AVX-512 where there is one, which XLA leaves half unused.
        "--xla_cpu_prefer_vector_width=512",
        # The loop over tasks becomes one piece of machine code, as newer versions of XLA make it anyway.
        "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=4000000",
    ]
)
"""What XLA is told where the environment does not say otherwise."""


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


def _list(title: str, entries: dict[str, str]) -> None:
    table = Table("name", "description", title=title, title_justify="left")
    for name, description in entries.items():
        table.add_row(name, description)
    console().print(table)


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Scenarios, tyro.conf.subcommand("scenarios")]
    | Annotated[Schedulers, tyro.conf.subcommand("schedulers")]
)


def _parse() -> Demo | Compare | Train | Evaluate | Render | Verify | Bench | Scenarios | Schedulers:
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


def _join() -> bool:
    """Join the processes that the environment names; whether this one is to be heard.

    Slurm and Open MPI tell their number and place; without them JAX_NUM_PROCESSES and JAX_PROCESS_ID do.
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


def _run_unheard(command: Any) -> None:
    """Do a process's share of the work; the first one prints and writes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        (dataclasses.replace(command, out=None) if hasattr(command, "out") else command).run()


def main() -> None:
    """Entry point; exits with 0, or with 2 and one line on standard error if the input is bad."""
    # One XLA device for each core: lanes run side by side instead of waiting for each other at every step.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    warnings.showwarning = lambda message, *_, **__: print(f"jaxlb: warning: {message}", file=sys.stderr)
    try:
        command = _parse()
        if _join():
            command.run()
        else:
            _run_unheard(command)
    except ValueError as error:
        print(f"jaxlb: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"jaxlb: error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader has had enough, as in `jaxlb scenarios | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
