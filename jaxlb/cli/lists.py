"""jaxlb scenarios, schedulers, runs: what there is."""

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from jaxlb import records
from jaxlb.cli.common import Imports, console, dumps
from jaxlb.environments import scenarios
from jaxlb.scheduling import schedulers


@dataclass(frozen=True)
class Scenarios(Imports):
    """List the scenarios."""

    def run(self) -> None:
        """Print the list."""
        _list("scenarios", scenarios())


@dataclass(frozen=True)
class Schedulers(Imports):
    """List the schedulers."""

    def run(self) -> None:
        """Print the list."""
        _list("schedulers", schedulers())


@dataclass(frozen=True)
class Runs:
    """List the run folders, the newest first."""

    directory: tyro.conf.Positional[Path] = Path("runs")
    """Where they are, at any depth."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the list."""
        if not self.directory.is_dir():
            raise ValueError(f"{self.directory}: no such folder")
        # `walk` follows no links, so there is no way round in circles.
        found = [Path(place) for place, _, files in os.walk(self.directory) if records.RECORD in files]
        known = []
        for directory in found:
            try:
                known.append({"directory": str(directory), **(records.read(directory) or {})})
            except ValueError as error:
                warnings.warn(str(error), stacklevel=1)
        known.sort(key=lambda about: about["started"], reverse=True)
        if self.json:
            sys.stdout.write(dumps({"runs": known}))
            return
        table = Table("run", "command", "scenario", "seed", "started", "jaxlb", "commit", "result")
        for about in known:
            table.add_row(*_shown(about, self.directory))
        console().print(table if known else f"no runs in {self.directory}")


def _shown(about: dict[str, Any], directory: Path) -> list[str]:
    name = os.path.relpath(about["directory"], directory)
    started = about["started"][:16].replace("T", " ")
    cells = (about["command"], about["scenario"], about["seed"], started)
    result = about["result"] or "not finished"
    return [
        "" if cell is None else str(cell)
        for cell in (name, *cells, about["versions"]["jaxlb"], about["commit"], result)
    ]


def _list(title: str, entries: dict[str, str]) -> None:
    table = Table("name", "description", title=title, title_justify="left")
    for name, description in entries.items():
        table.add_row(name, description)
    console().print(table)
