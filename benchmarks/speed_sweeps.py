"""Throughput over numbers of lanes, processors or tasks: measured and drawn."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from programs import observing_lwr, rolling, system
from speed_rows import Settings, untrained
from timing import alternate

from jaxlb.charts import STYLE, line_style, plain_log
from jaxlb.scheduling import scheduler

SWEEPS = ("lanes", "processors", "tasks")


@dataclass(frozen=True)
class Sweep:
    """How throughput changes with one number.

    Attributes:
      over: what changes: "lanes", "processors" or "tasks".
      values: of it.
      rates: tasks per second at each value, of each scheduler: medians.
      detail: what stays.
    """

    over: str
    values: list[int]
    rates: dict[str, list[float]]
    detail: str


def sweep(settings: Settings, over: str) -> Sweep:
    """Measure rollouts over numbers of lanes, processors or tasks."""
    s = settings
    values = {
        "lanes": [4**power for power in range(9)],
        "processors": [4**power for power in range(6)],
        "tasks": [4**power for power in range(3, 9)],
    }[over]
    rates: dict[str, list[float]] = {}
    rules = {"random": scheduler("random"), "LWR, observing": observing_lwr()}
    if over == "lanes":
        rules["DQN, 64-64"] = untrained(*system(4), (64, 64))
    for value in values:
        lanes, processors = (value if over == name else 256 for name in ("lanes", "processors"))
        env, params = system(processors if over == "processors" else 4)
        steps = value if over == "tasks" else min(4096, max(8, s.steps(lanes, env.num_processors)))
        programs = {name: rolling(env, params, rule, lanes, steps) for name, rule in rules.items()}
        for name, found in alternate(programs, min(s.rounds, 3)).items():
            rates.setdefault(name, []).append(statistics.median(found))
        jax.clear_caches()
    detail = {"lanes": "P = 4", "processors": "256 lanes", "tasks": "P = 4, 256 lanes"}[over]
    return Sweep(over, values, rates, detail)


def throughput(sweeps: Sequence[Sweep]) -> Figure:
    """Draw tasks per second over lanes, processors or tasks; and what a task costs for each processor."""
    with plt.rc_context(STYLE):
        per_processor = [sweep for sweep in sweeps if sweep.over == "processors"]
        count = len(sweeps) + len(per_processor)
        figure, grid = plt.subplots(
            1, count, figsize=(3.4 * count + 0.8, 2.9), squeeze=False, layout="constrained"
        )
        panels = list(grid.flat)
        for panel, sweep in zip(panels, sweeps, strict=False):
            for index, (name, rates) in enumerate(sweep.rates.items()):
                panel.plot(
                    sweep.values, np.array(rates) / 1e6, marker="o", ms=4, label=name, **line_style(index)
                )
            panel.set(xlabel=sweep.over, ylabel="million tasks per second", title=sweep.detail)
        for panel, sweep in zip(panels[len(sweeps) :], per_processor, strict=True):
            for index, (name, rates) in enumerate(sweep.rates.items()):
                cost = 1e9 / (np.array(rates) * sweep.values)
                panel.plot(sweep.values, cost, marker="o", ms=4, label=name, **line_style(index))
            panel.set(xlabel="processors", ylabel="ns per task and processor", title=sweep.detail)
        for panel in panels:
            panel.set(xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                plain_log(axis)
            panel.legend(fontsize=8)
        return figure
