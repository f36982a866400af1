"""Rules of production routers beside the universal scheduler: writes docs/results/routers.md.

Figures of every cell are kept in docs/results/routers.json: stopped, it goes on.

python benchmarks/routers.py [--only web] [--lanes 32]
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from claims import TEST_SEED, machine
from matplotlib import pyplot as plt

import jaxlb
from jaxlb import charts
from jaxlb.statistics import plus_minus

AGES = (None, 1.0, 10.0, 100.0)
"""Mean services between two polls; None: figures of this moment."""
DISPATCHERS = (1, 4, 16)
PRODUCTION = (
    *("wrr", "least-request", "least-request(bias=1)", "peak-ewma", "client-wrr", "c3", "bounded-loads"),
    *("prequal", "jbt", "lsq(ask=2)", "tidal", "gateway", "power-of-d", "lwr", "least-connections"),
)
OURS = "corrected", "corrected(rule=universal(objective=violations))"
"""The universal scheduler, with what a router hears: in place of "universal", which hears nothing."""
BESIDE = ("universal", "corrected(rule=least-connections)")
FIGURES = ("mean_completion", "p99_completion", "sla_violation_rate")
_SPEED = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0]


def _servers(hidden: bool, slow: bool, **options: Any) -> tuple[jaxlb.Env, jaxlb.EnvParams]:
    workload = {"size": "lognormal", "squared_cv": 4.0, "load": 0.7}
    # The fastest does half of what routers are told.
    told = {"nominal_speed": _SPEED, "speed": [*_SPEED[:-1], 0.5 * _SPEED[-1]]} if slow else {"speed": _SPEED}
    seen = {"size_visible": False, "wait_visible": False, "queue_capacity": 64} if hidden else {}
    return jaxlb.make(title="servers", **workload, **told, **seen, **options)


SYSTEMS: dict[str, tuple[str, Callable[..., tuple[jaxlb.Env, jaxlb.EnvParams]]]] = {
    "web": (
        "8 servers of speeds 1, 1, 1, 1, 2, 2, 2, 4; lognormal sizes of squared CV 4, load 0.7. Nobody knows "
        "a request's size; what is polled is how many requests a server has.",
        functools.partial(_servers, True, False),
    ),
    "sizes known": (
        "The same servers and requests, but sizes are known, and what is polled is unfinished work, too.",
        functools.partial(_servers, False, False),
    ),
    "one slow": (
        "As the first, but the fastest server does half of what routers are told.",
        functools.partial(_servers, True, True),
    ),
}


_WORDS = """## In words

Where nobody knows how large a request is:

- **Keep account of what you sent and what came back**: `corrected`, before the universal scheduler or
  before least connections, is worth more than the rule behind it. With one router it makes the age of
  polls irrelevant.
- With fresh counts, least connections is enough, and with several routers it is best.
- With several routers and old polls, `corrected` and `c3` are close on completion, and `c3` misses
  fewer deadlines.
- Never go by old counts alone (`lwr`, `least-connections`, `power-of-d`, `tidal`, `universal` as it
  is): all send to the same servers until the next poll.
- Two choices by one's own latencies or requests (`peak-ewma`, `least-request`) never come first here.
"""


def _measured(system: str, age: float | None, dispatchers: int, lanes: int, tasks: int) -> dict[str, Any]:
    """Return the figures of all rules in one cell."""
    own = {} if age is None else {"measure_interval": age * 8.0 / sum(_SPEED)}
    env, params = SYSTEMS[system][1](dispatchers=dispatchers, polled_apart=True, **own)
    began = time.perf_counter()
    table = jaxlb.compare(
        env,
        params,
        [*OURS, *BESIDE, *PRODUCTION],
        jax.random.key(TEST_SEED),
        num_lanes=lanes,
        num_tasks=tasks,
        warmup=tasks,
        baseline=OURS[0],
    )
    rows = {
        row.name: {
            "stationary": row.stationary,
            "completion_difference_ci": row.completion_difference_ci,
            "sla_violation_difference_ci": row.sla_violation_difference_ci,
            **{name: getattr(row, name) for name in FIGURES},
            **{f"{name}_ci": getattr(row, f"{name}_ci") for name in FIGURES},
        }
        for row in table.schedulers
    }
    return {"seconds": time.perf_counter() - began, "rows": rows}


def _name(system: str, age: float | None, dispatchers: int) -> str:
    return f"{system}, {'fresh' if age is None else f'every {age:g}'}, {dispatchers}"


def _best(cell: dict[str, Any], figure: str) -> str:
    return min(PRODUCTION, key=lambda name: cell["rows"][name][figure])


def _table(system: str, cells: dict[str, Any], figure: str, ours: str, scale: float) -> list[str]:
    """Write a figure of every rule in every cell: ours as it is, the best rule by name, others / the best."""
    columns = [(age, number) for number in DISPATCHERS for age in AGES if _name(system, age, number) in cells]
    head = [f"{number}: {'fresh' if age is None else f'{age:g}'}" for age, number in columns]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    found = [cells[_name(system, age, number)] for age, number in columns]
    best = [_best(cell, figure) for cell in found]
    lowest = [cell["rows"][name][figure] for cell, name in zip(found, best, strict=True)]
    lines.append(f"| best rule | {' | '.join(best)} |")
    shown = [
        plus_minus(value, tuple(cell["rows"][name][f"{figure}_ci"]), scale)
        for cell, name, value in zip(found, best, lowest, strict=True)
    ]
    lines.append(f"| its figure | {' | '.join(shown)} |")
    shown = [
        plus_minus(cell["rows"][ours][figure], tuple(cell["rows"][ours][f"{figure}_ci"]), scale)
        for cell in found
    ]
    lines.append(f"| that of {ours} | {' | '.join(shown)} |")
    for name in (ours, *BESIDE, *PRODUCTION):
        ratios = []
        for cell, value in zip(found, lowest, strict=True):
            row = cell["rows"][name]
            mark = "" if row["stationary"] else " ?"
            ratio = row[figure] / value if value > 0 else float("nan")
            ratios.append(f"**{ratio:.2f}**{mark}" if ratio <= 1 else f"{ratio:.2f}{mark}")
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    return lines


def _picture(system: str, cells: dict[str, Any], directory: Path) -> None:
    """Draw completion over the age of figures, for each number of dispatchers."""
    with plt.rc_context(charts.STYLE):
        figure, axes = plt.subplots(1, len(DISPATCHERS), figsize=(11, 3.6), sharey=True, layout="constrained")
        for axis, number in zip(axes, DISPATCHERS, strict=True):
            there = [age for age in AGES if _name(system, age, number) in cells]
            ticks = [0.1 if age is None else age for age in there]
            for name in (
                "corrected",
                "universal",
                "c3",
                "prequal",
                "peak-ewma",
                "least-request",
                "lwr",
                "jbt",
            ):
                values = [cells[_name(system, age, number)]["rows"][name]["mean_completion"] for age in there]
                axis.plot(ticks, values, marker="o", ms=3, lw=2 if name in OURS else 1, label=name)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(ticks, ["fresh" if age is None else f"{age:g}" for age in there])
            axis.minorticks_off()
            axis.set_title(f"{number} dispatcher{'s' if number > 1 else ''}")
            axis.set_xlabel("mean services between polls")
        axes[0].set_ylabel("mean completion")
        axes[-1].legend(fontsize=7, loc="upper left")
        charts.save(figure, directory, f"routers-{system.replace(' ', '-')}")


def _won(system: str, cells: dict[str, Any], figure: str, ours: str) -> tuple[list[str], list[float]]:
    """Return the cells of a system in which a rule wins, and ours / the best rule's in all."""
    lost, ratios = [], []
    for age in AGES:
        for number in DISPATCHERS:
            cell = cells.get(_name(system, age, number))
            if cell is None:
                continue
            best = _best(cell, figure)
            ratio = cell["rows"][ours][figure] / max(cell["rows"][best][figure], 1e-12)
            ratios.append(ratio)
            if ratio > 1:
                lost.append(f"{_name(system, age, number)} ({best}, {ratio:.3f})")
    return lost, ratios


def page(cells: dict[str, Any], lanes: int, tasks: int, directory: Path) -> str:
    """Write the page."""
    lines = [
        "# Which rule should a router run?",
        "",
        f"Written by `python benchmarks/routers.py --lanes {lanes} --tasks {tasks}`. {lanes} lanes",
        f"x {tasks:,} tasks after as many of warm-up, the same for all rules. Cells differ in how often",
        "figures are polled (in mean services; by each dispatcher at another time), and in how many",
        "dispatchers there are, each with its own memory. Where `?` stands, the row was not stationary.",
        "Rules have their default options; the universal scheduler has never seen a second dispatcher in",
        "training. `corrected` is the universal scheduler behind an account of what was sent and came back,",
        f"as the routers' own rules have one. {machine()}.",
        "",
    ]
    lines += [_WORDS, ""]
    missing = [system for system in SYSTEMS if not any(name.startswith(f"{system}, ") for name in cells)]
    if missing:
        lines += [f"Not measured yet: {', '.join(missing)}.", ""]
    for system, (text, _) in SYSTEMS.items():
        if not any(name.startswith(f"{system}, ") for name in cells):
            continue
        _picture(system, cells, directory)
        lines += [f"## {system[0].upper()}{system[1:]}", "", text, ""]
        for figure, ours, title, scale in (
            ("mean_completion", OURS[0], "Mean completion", 1.0),
            ("p99_completion", OURS[0], "99th percentile of completion", 1.0),
            ("sla_violation_rate", OURS[1], "SLA violations, %", 100.0),
        ):
            lost, ratios = _won(system, cells, figure, ours)
            mean = float(np.exp(np.mean(np.log(ratios))))
            lines += [f"### {title}", ""]
            lines.append(f"The best rule wins in {len(lost)} of {len(ratios)} cells{': ' * bool(lost)}")
            lines[-1] += ", ".join(lost) + "."
            lines.append(
                f"Ours / the best rule's, geometric mean of the cells: {mean:.3f}; worst {max(ratios):.3f}."
            )
            lines += ["", "Number of dispatchers: polls. Figures are / the best rule's.", ""]
            lines += [*_table(system, cells, figure, ours, scale), ""]
        lines += [f"![Completion over the age of figures](routers-{system.replace(' ', '-')}.png)", ""]
    return "\n".join(lines)


def main(
    only: Sequence[str] = tuple(SYSTEMS), lanes: int = 32, tasks: int = 2000, out: Path = Path("docs/results")
) -> None:
    """Measure the cells that are missing, and write the page."""
    kept = out / "routers.json"
    cells: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for system in only:
        for number in DISPATCHERS:
            for age in AGES:
                name = _name(system, age, number)
                if name in cells:
                    continue
                cells[name] = _measured(system, age, number, lanes, tasks)
                kept.write_text(json.dumps(cells, indent=1, default=float) + "\n", encoding="utf-8")
                print(f"{name}: {cells[name]['seconds']:.0f} s", flush=True)
                jax.clear_caches()  # programs of many cells would leave no room for maps of memory
    (out / "routers.md").write_text(page(cells, lanes, tasks, out), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
