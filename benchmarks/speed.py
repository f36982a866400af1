"""How fast jaxlb is on this machine: against others on the same work, in alternating runs.

    python benchmarks/speed.py [--only dispatch CartPole ...] [--rounds 7] [--out DIR] [--json]

Machines differ and drift, so what counts are quotients of medians of one run. Peers that are not here are
skipped: gcc and the C programs (`--reference`), gymnax, SimPy.
"""

import dataclasses
import functools
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import speed_sweeps
import tyro
from programs import Skipped
from rich.table import Table
from speed_rows import (
    Row,
    Settings,
    against_c,
    against_cartpole,
    against_simpy,
    compiling,
    importing,
    memory,
    overhead,
)
from speed_sweeps import SWEEPS, Sweep, throughput

from jaxlb import checks, records
from jaxlb.cli import XLA_FLAGS
from jaxlb.cli.common import console, dumps, progress


def measure(
    settings: Settings, only: tuple[str, ...] = (), on_progress: Callable[[str, float], None] | None = None
) -> tuple[list[Row], list[Sweep]]:
    """Measure the rows and sweeps whose names hold one of the words `only`; all, if there is none.

    Raises:
      ValueError: none has such a name.
    """
    s = settings
    rows: dict[str, Callable[[], Row]] = {
        f"dispatch_scalar.c, P = {number}": functools.partial(
            against_c, s, number, "dispatch_scalar", 1.0, 2.0
        )
        for number in (4, 16, 64)
    }
    rows |= {
        "dispatch_soa.c, P = 4": functools.partial(against_c, s, 4, "dispatch_soa", 0.12, 0.35),
        # Their processors hold 16 tasks each.
        "dispatch_events.c, sharing": functools.partial(
            against_c, s, 4, "dispatch_events", 0.4, 1.0, work=4.0, discipline="ps", queue_capacity=16
        ),
        "dispatch_events.c, in order": functools.partial(
            against_c,
            s,
            4,
            "dispatch_events",
            0.4,
            1.0,
            "-DFCFS",
            work=4.0,
            discipline="srpt",
            queue_capacity=16,
        ),
        "CartPole": functools.partial(against_cartpole, s, api=False),
        "CartPole, own loop": functools.partial(against_cartpole, s, api=True),
        "SimPy": functools.partial(against_simpy, s),
        "network": functools.partial(overhead, s),
        "compilation": functools.partial(compiling, s),
        "import": functools.partial(importing, s),
        "memory": memory,
    }
    names = [name for name in (*rows, *SWEEPS) if not only or any(word in name for word in only)]
    if not names:
        raise ValueError(f"only = {only!r}: nothing has such a name")
    found, sweeps = [], []
    for done, name in enumerate(names):
        if on_progress is not None:
            on_progress(name, done / len(names))
        if name in SWEEPS:
            sweeps.append(speed_sweeps.sweep(s, name))
            continue
        try:
            found.append(rows[name]())
        except Skipped as reason:
            found.append(Row(name, None, None, "more", None, detail=f"skipped: {reason}"))
        jax.clear_caches()
    return found, sweeps


def machine(threads: int) -> dict[str, Any]:
    """Return where this runs, and what it runs."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        **records.versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": records.commit(),
    }


def show(rows: list[Row], sweeps: list[Sweep], where: dict[str, Any]) -> None:
    """Print tables."""
    shown = [f"{name} {value}" for name, value in where.items() if name != "xla_flags"]
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


def main(
    reference: Path = Path("../shared/reference"),
    rounds: int = 7,
    only: tuple[str, ...] = (),
    quick: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure, write, print.

    Args:
      reference: folder of the C programs.
      rounds: alternating runs of each pair.
      only: what to measure, by part of a name: dispatch, CartPole, SimPy, network, compilation, import,
        memory; lanes, processors, tasks (throughput over numbers of them).
      quick: shorter runs and few numbers of lanes, to see that it works.
      out: folder for speed.json and, of throughput, speed.png.
      json: print one JSON object instead of a table.
    """
    checks.at_least("rounds", rounds, 1)
    threads = os.cpu_count() or 1
    lanes = (64, 1024) if quick else (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    settings = Settings(reference, rounds, 2**17 if quick else 2**22, lanes, threads)
    with progress() as advance:
        rows, sweeps = measure(settings, only, advance)
    found = {
        "machine": machine(threads),
        "rows": [dataclasses.asdict(row) for row in rows],
        "sweeps": [dataclasses.asdict(sweep) for sweep in sweeps],
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "speed.json").write_text(dumps(found), encoding="utf-8")
        if sweeps:
            throughput(sweeps).savefig(out / "speed.png")
    if json:
        sys.stdout.write(dumps(found))
    else:
        show(rows, sweeps, found["machine"])


if __name__ == "__main__":
    # As the command line sets them.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    tyro.cli(main)
