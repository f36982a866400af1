"""One page that shows what was trained and how it compares: a single file that needs nothing else."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np

from jaxlb import metrics, runs, theory
from jaxlb.comparison import Comparison, Row
from jaxlb.env import Env
from jaxlb.environments import scenarios
from jaxlb.report import data
from jaxlb.runs import Run
from jaxlb.types import EnvParams, Outcome, Task

ORACLE = "oracle"
_MOST_TIMES = 160  # of a tail: a screen shows no more
_DIGITS = 5  # of what is only drawn

ANYWHERE = "systems drawn at random"
"""Where a scheduler for any system was trained."""

FIGURES = {"sla_violation_rate": "SLA violations", "mean_completion": "mean completion time"}
"""What the page's first lines are about; less is better."""


def training(run: Run, command: str, seconds: float) -> dict[str, Any]:
    """Describe what a training went through.

    Args:
      run: with one seed.
      command: that trained it.
      seconds: that took.
    """
    trainer, rows = run.training.trainer(), run.logged()
    curves = [
        {"label": label, "values": [_scaled(row[name], scale) for row in rows]}
        for name in trainer.reached
        for label, scale in [data.curve(name)]
    ]
    return {
        "name": run.directory.name,
        "method": trainer.name,
        "aim": trainer.aim,
        "scenario": run.training.spec().scenario,
        "command": command,
        "seconds": round(seconds, 1),
        "iterations": [row["iteration"] for row in rows],
        "best": runs.best(run)["iteration"],
        "curves": curves,
    }


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def section(
    comparison: Comparison,
    env: Env,
    params: EnvParams,
    tasks: Task,
    outcomes: Mapping[str, Outcome],
    command: str,
    trained: Mapping[str, str],
) -> dict[str, Any]:
    """Collect all that the page shows of a scenario.

    Args:
      comparison: of the schedulers.
      env: that they were compared in.
      params: of the environment.
      tasks: whose fates by size are shown, leaves `[T, N]`.
      outcomes: of these tasks, by scheduler.
      command: that makes the comparison again.
      trained: where each learned scheduler was trained, by its name: a scenario, or `ANYWHERE`.
    """
    rows = comparison.schedulers
    names = [row.name for row in rows]
    kinds = {name: "learned" if name in trained else ORACLE if name == ORACLE else "rule" for name in names}
    tails = data.tails(comparison)
    # From where the first scheduler has finished a task in a thousand.
    first = min(int(np.argmax(longer < 0.999)) for longer in tails.longer.values())
    shown = slice(first, None, -(-(len(tails.time) - first) // _MOST_TIMES))
    tasks, outcomes = jax.tree.map(lambda leaf: leaf[data.WARMUP :], (tasks, outcomes))
    sizes = data.by_size(params, tasks, outcomes)
    return {
        "name": env.name,
        "description": scenarios()[env.name],
        "discipline": discipline(env, params),
        "load": _short(params.load),
        "speed": _short(params.speed),
        "command": command,
        "lanes": comparison.num_lanes,
        "tasks": comparison.num_tasks,
        "warmup": comparison.warmup,
        "baseline": comparison.baseline,
        "figures": [
            {
                "name": name,
                "heading": figure.heading,
                "scale": figure.scale,
                "plain": figure.plain,
                "paired": figure.paired,
            }
            for name, figure in metrics.columns(rows).items()
            if not figure.by_priority
        ],
        "schedulers": [
            row.as_dict() | {"kind": kinds[row.name], "trained": trained.get(row.name), "mark": row.mark}
            for row in rows
        ],
        "verdicts": [verdict(figure, rows, trained, env.name) for figure in FIGURES],
        "remarks": list(remarks(rows)),
        "tails": {
            "time": _short(tails.time[shown]),
            "longer": {name: _short(longer[shown]) for name, longer in tails.longer.items()},
        },
        "sizes": {
            "edges": _short(sizes.edges),
            "count": sizes.number.tolist(),
            "share": {name: _short(share) for name, share in sizes.share.items()},
            "slowdown": {name: _short(slowdown) for name, slowdown in sizes.slowdown.items()},
        },
    }


def discipline(env: Env, params: EnvParams) -> str:
    """Say how processors serve; and where in order of arrival, what sharing would do to one of them."""
    if not env.station.settled:
        return f"Processors serve by {getattr(env.station, 'discipline', env.station)}."
    mean, second, load = (
        float(one) for one in (params.size.mean(), params.size.second_moment(), params.load)
    )
    response = 1.0 + theory.mg1_wait(load, mean, second) / mean
    return (
        "Processors serve first come, first served. One alone at this load would keep a task for "
        f"{response:.3g} mean services on average; if it shared its speed among all that are there, for "
        f"{1.0 / (1.0 - load):.3g}, and small tasks for less (--discipline ps)."
    )


def verdict(figure: str, rows: Sequence[Row], trained: Mapping[str, str], scenario: str) -> dict[str, Any]:
    """Judge who wins by a figure: what was learned here or for anywhere, or the best rule.

    Two whose 95 % intervals overlap are level; so are two without intervals. What is marked, not stationary
    for example, wins nothing.

    Args:
      figure: a name of `FIGURES`.
      rows: of the comparison.
      trained: where each learned scheduler was trained, by its name.
      scenario: where they were compared.

    Returns:
      The names of the learned scheduler and of the best rule, whether the first is "better", "worse",
      "level" or "unsettled", the best of all but the oracle, and a sentence that says all that.
    """

    def value(row: Row) -> float:
        return getattr(row, figure)

    def order(row: Row) -> tuple[bool, float]:
        return bool(row.mark), value(row)

    def formatted(row: Row) -> str:
        scale = metrics.FIGURES[figure].scale
        return f"{value(row):.3g}" if scale == 1 else f"{scale * value(row):.2f} %"

    rule = min((row for row in rows if row.name not in trained and row.name != ORACLE), key=order)
    mine = min((row for row in rows if trained.get(row.name) in (scenario, ANYWHERE)), key=order)
    best = min((row for row in rows if row.name != ORACLE), key=order)
    ours, theirs = (getattr(row, f"{figure}_ci") for row in (mine, rule))
    if mine.mark or rule.mark:
        outcome, words = "unsettled", "cannot be compared with"
    elif ours is None or theirs is None or (ours[0] <= theirs[1] and theirs[0] <= ours[1]):
        outcome, words = "level", "is level with"
    elif value(mine) < value(rule):
        outcome, words = "better", "beats"
    else:
        outcome, words = "worse", "loses to"
    text = f"{FIGURES[figure]}: {mine.title} ({formatted(mine)}) {words} "
    text += f"the best rule, {rule.title} ({formatted(rule)})."
    if best is not mine and best is not rule:
        text += f" The best of all is {best.name}, trained on {trained[best.name]} ({formatted(best)})."
    return {
        "figure": figure,
        "learned": mine.name,
        "rule": rule.name,
        "outcome": outcome,
        "best": best.name,
        "text": text[0].upper() + text[1:],
    }


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a remark on each row that is marked."""
    for row in rows:
        if row.hint:
            yield f"{row.name} is not stationary: {row.hint}."
        if row.queue_overflows:
            yield f"{row.name} was told queue lengths that are too short for {row.queue_overflows:,} tasks."


def _short(values: Any) -> Any:
    """Round plain numbers to a few digits; None stands for what is not finite."""

    def short(value: float) -> float | None:
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None

    array = np.asarray(values, np.float64)
    return short(float(array)) if array.ndim == 0 else [_short(part) for part in array]


def page(report: Mapping[str, Any]) -> str:
    """Write the whole page, with the report as the JSON that its figures and tables are made from.

    Args:
      report: `command`, `seconds`, `versions` by name, `trainings` and `scenarios`, as the functions above
        make them.
    """
    template = resources.files("jaxlb.report").joinpath("report.html").read_text(encoding="utf-8")
    # Within a script element, only this ends it or changes how it is read.
    as_json = json.dumps(report, allow_nan=False).replace("<", "\\u003c")
    before, after = template.split("{{report}}")
    return before + as_json + after
