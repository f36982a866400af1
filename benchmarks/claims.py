"""What the pages of learned schedulers share: claims with bounds, lines of tables, sections in a file."""

import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import jaxlb
from jaxlb.types import Scheduler

LANES, TASKS, WARMUP = 1024, 4000, 10_000
TEST_SEED = 1_000_003
"""No training has it."""

FIGURES = {
    "violations": "sla_violation_rate",
    "completion": "mean_completion",
    "slowdown": "mean_slowdown",
}


@dataclass(frozen=True)
class Claim:
    """A figure of each seed, and the most that each may be."""

    name: str
    figures: Sequence[float]
    bound: float

    def line(self) -> str:
        """Write a line of the table."""
        if any(math.isnan(figure) for figure in self.figures):
            return f"| {self.name} | {self.bound:g} | | no claim: one of the two is not stationary |"
        holds = all(figure <= self.bound for figure in self.figures)
        figures = ", ".join(f"{figure:.3f}" for figure in self.figures)
        return f"| {self.name} | {self.bound:g} | {figures} | {'holds' if holds else '**missed**'} |"


def rules(*names: str) -> dict[str, Scheduler]:
    """Make schedulers by their names."""
    return {name: jaxlb.scheduler(name) for name in names}


def compared(
    env: jaxlb.Env, params: jaxlb.EnvParams, entries: Mapping[str, str | jaxlb.Scheduler], **options: Any
) -> jaxlb.Comparison:
    """Compare all on the same tasks, which no training had; differences are to the first."""
    key = jax.random.key(TEST_SEED)
    options = {"num_lanes": LANES, "num_tasks": TASKS, "warmup": WARMUP} | options
    return jaxlb.compare(env, params, entries, key, baseline=next(iter(entries)), **options)


def settled(table: jaxlb.Comparison, name: str, what: str) -> float:
    """Return a row's figure; not a number where it has not settled."""
    row = table.row(name)
    return math.nan if row.mark else getattr(row, what)


def ratio(table: jaxlb.Comparison, name: str, rule: str, what: str) -> float:
    """Divide one row's figure by another's; not a number where one of them has not settled."""
    return settled(table, name, what) / settled(table, rule, what)


def at_most(
    ratios: Callable[[str, str], Sequence[float]], bounds: Mapping[tuple[str, str], float], where: str = ""
) -> list[Claim]:
    """Claim that figures are at most so many times those of rules.

    Args:
      ratios: (figure of a row, rule) -> the figure of each seed / that of the rule.
      bounds: by what is claimed, among `FIGURES`, and rule.
      where: end of each claim's name.
    """
    return [
        Claim(f"{what} / {rule}'s{where}", ratios(FIGURES[what], rule), bound)
        for (what, rule), bound in bounds.items()
    ]


def line(row: Any, name: str) -> str:
    """Write a line of one scheduler's figures."""
    cells = []
    for figure, scale in (("sla_violation_rate", 100.0), ("mean_completion", 1.0), ("mean_slowdown", 1.0)):
        interval = getattr(row, f"{figure}_ci")
        half = f" ± {scale * (interval[1] - interval[0]) / 2:.3f}" if interval else ""
        cells.append(f"{scale * getattr(row, figure):.3f}{half}")
    return f"| {name}{f', {row.mark}' if row.mark else ''} | " + " | ".join(cells) + " |"


def machine() -> str:
    """Return what this runs on: JAX's first device, as its maker calls it."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    wide = "with" if "avx512f" in text else "without"
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, {wide} AVX-512"


def made_on() -> str:
    """Write the last line of a section."""
    return f"Made on {machine()}, JAX {jax.__version__}."


def section(name: str, text: str, rows: Sequence[str], claims: Sequence[Claim], *more: str) -> str:
    """Write a part of a page: what was done, the table, perhaps with more columns, and what is claimed."""
    lines = [f"## {name}", "", text, ""]
    if rows:
        headings = ("scheduler", "violations %", "completion", "slowdown", *more)
        lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *rows, ""]
    if claims:
        lines += ["| claim | at most | each seed | |", "|---|---|---|---|"]
        lines += [*(claim.line() for claim in claims), ""]
    lines += [made_on(), ""]
    return "\n".join(lines)


def check(only: Sequence[str], names: Sequence[str]) -> None:
    """Refuse names of which there is no section or setting."""
    for name in only:
        if name not in names:
            raise ValueError(f"--only {name!r}: must be among {', '.join(map(repr, names))}")


class Page:
    """A page of sections, each of which can be made again by itself."""

    def __init__(self, path: Path, head: str, names: Sequence[str]) -> None:
        """Read those of the named sections that the page has already."""
        self.path, self.head, self.names = path, head, names
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        parts = text.split("\n## ")[1:]
        self.sections = {part.split("\n")[0]: f"## {part.rstrip()}\n" for part in parts}

    def put(self, name: str, section: str) -> None:
        """Write the page with this section, in place of what it had by that name."""
        self.sections[name] = section
        print(self.sections[name], flush=True)
        sections = [self.sections[name] for name in self.names if name in self.sections]
        self.path.write_text("\n".join([self.head, *sections]), encoding="utf-8")


def write(
    path: Path, head: str, sections: Mapping[str, Callable[[int], str]], only: Sequence[str], seeds: int
) -> None:
    """Make sections of a page one after the other: those that are named, all if none is."""
    page = Page(path, head, list(sections))
    check(only, page.names)
    for name in only or sections:
        began = time.perf_counter()
        page.put(name, sections[name](seeds))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        # Hundreds of programs in one process use up the memory maps that Linux allows it (vm.max_map_count).
        jax.clear_caches()
