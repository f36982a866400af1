"""jaxlb bench: how fast it is on this machine, beside others."""

import dataclasses
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from jaxlb import bench, checks
from jaxlb.bench import Row, Settings, Sweep
from jaxlb.cli import folders
from jaxlb.cli.common import Writes, console, dumps, progress


@dataclass(frozen=True)
class Bench(Writes):
    """Measure speed beside C, gymnax and SimPy."""

    reference: Path = Path("../shared/reference")
    """Folder of dispatch_scalar.c and dispatch_soa.c."""
    rounds: int = 7
    """Alternating runs of each pair; what is not installed is skipped."""
    only: tuple[str, ...] = ()
    """What to measure, by part of a name: dispatch, CartPole, SimPy, network, compilation, import, memory;
    lanes, processors, tasks (throughput over numbers of them)."""
    quick: bool = False
    """Shorter runs and few numbers of lanes: to see that it works."""
    out: Path | None = None
    """Folder for bench.json and, of throughput over lanes, processors and tasks, bench.png."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Measure, write, print."""
        checks.at_least("rounds", self.rounds, 1)
        threads = os.cpu_count() or 1
        lanes = (128, 1024) if self.quick else (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
        tasks = 2**17 if self.quick else 2**22
        settings = Settings(self.reference, self.rounds, tasks, lanes, threads)
        with folders.begin(self, self.out) as folder:
            with progress() as advance:
                rows, sweeps = bench.measure(settings, self.only, advance)
            result = {
                "machine": _machine(threads),
                "rows": [dataclasses.asdict(row) for row in rows],
                "sweeps": [dataclasses.asdict(sweep) for sweep in sweeps],
            }
            if self.out is not None:
                (self.out / "bench.json").write_text(dumps(result), encoding="utf-8")
                if sweeps:
                    from jaxlb.report import plots

                    plots.throughput(sweeps).savefig(self.out / "bench.png")
            measured = [row for row in rows if row.value is not None]
            folder.finish(f"{sum(row.holds for row in measured)} of {len(measured)} bounds hold")
        if self.json:
            sys.stdout.write(dumps(result))
        else:
            _print(rows, sweeps, result["machine"])


def _machine(threads: int) -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        **folders.versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": folders.commit(),
    }


def _print(rows: list[Row], sweeps: list[Sweep], machine: dict[str, Any]) -> None:
    shown = [f"{name} {value}" for name, value in machine.items() if name != "xla_flags"]
    table = Table(title=", ".join(shown), title_justify="left")
    table.add_column("figure")
    for heading in ("value", "rounds", "bound", "aim"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("detail")
    for row in rows:
        if row.value is None:
            table.add_row(row.name, "", "", "", "", "", row.detail, style="dim")
            continue
        sign = "at least" if row.better == "more" else "at most"
        spread = "" if row.lowest is None else f"{row.lowest:.3g} to {row.highest:.3g}"
        verdict = "[green]holds" if row.holds else "[red]missed"
        bounds = f"{sign} {row.bound:g}", f"{row.aim:g}"
        table.add_row(row.name, f"{row.value:.3g}", spread, *bounds, verdict, row.detail)
    if rows:
        console().print(table)
    for sweep in sweeps:
        title = f"Million tasks per second over {sweep.over}, {sweep.detail}"
        table = Table(sweep.over, title=title, title_justify="left")
        for name in sweep.rates:
            table.add_column(name, justify="right")
        for value, *rates in zip(sweep.values, *sweep.rates.values(), strict=True):
            table.add_row(f"{value:,}", *(f"{rate / 1e6:.3g}" for rate in rates))
        console().print(table)
