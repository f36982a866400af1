"""jaxlb verify: the simulator against queueing theory."""

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.table import Table

from jaxlb import checks
from jaxlb.cli import folders
from jaxlb.cli.common import Writes, console, dumps, progress
from jaxlb.verification import Case, verify

CASES = "cases.jsonl"
"""Where a run folder keeps the cases of finished experiments until all are there."""


@dataclass(frozen=True)
class Verify(Writes):
    """Check the simulator against queueing theory."""

    quick: bool = False
    """A tenth of the tasks and fewer cases, in under a minute on two cores."""
    seed: int = 0
    """Of the random tasks."""
    out: Path | None = None
    """Folder for verification.md, its picture and verification.json; one that was stopped goes on in it."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> None:
        """Verify, write, print; leave with 1 if a case fails."""
        checks.seed("seed", self.seed)
        keep = self.out and self.out / CASES
        with folders.begin(self, self.out, kept=keep) as folder:
            began, whole = time.perf_counter(), keep is None or not keep.exists()
            with progress() as advance:
                cases = verify(jax.random.key(self.seed), quick=self.quick, keep=keep, on_progress=advance)
            minutes = (time.perf_counter() - began) / 60.0 if whole else None
            result = {"cases": [case._asdict() for case in cases]}
            failed = sum(not case.passed for case in cases)
            verdict = f"{failed} of {len(cases)} cases failed" if failed else f"{len(cases)} cases passed"
            if self.out is not None:
                from jaxlb.report import pages, plots

                command = "jaxlb verify" + " --quick" * self.quick + f" --seed {self.seed}" * (self.seed != 0)
                page = pages.verification(cases, f"{command} --out {self.out}", minutes)
                (self.out / "verification.md").write_text(page, encoding="utf-8")
                (self.out / "verification.json").write_text(dumps(result), encoding="utf-8")
                plots.deviations(cases).savefig(self.out / "verification.png")
            if keep is not None:  # another verification runs all of it again
                keep.unlink()
            folder.finish(verdict)
        if self.json:
            sys.stdout.write(dumps(result))
        else:
            _print_cases(cases)
            taken = f" in {minutes:.1f} minutes" if minutes else ""
            console().print(f"{'[red]' * bool(failed)}{verdict}{taken}")
        if failed:
            sys.exit(1)


def _print_cases(cases: list[Case]) -> None:
    """Print the cases for people, a table for each group."""
    screen = console()
    for group, members in itertools.groupby(cases, key=lambda case: case.group):
        table = Table(title=group, title_justify="left")
        table.add_column("case")
        for heading in ("measured", "± (95 %)", "exact", "deviation / SE", ""):
            table.add_column(heading, justify="right")
        for case in members:
            verdict = "passed" if case.passed else "FAILED"
            table.add_row(case.name, *case.figures(), verdict, style=None if case.passed else "bold red")
        screen.print(table)
