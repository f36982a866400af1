"""How fast jaxlb is on this machine: against others on the same work, in alternating runs.

    python benchmarks/speed.py [--only dispatch CartPole ...] [--rounds 7] [--out DIR] [--json]

Machines differ and drift, so what counts are quotients of medians of one run. Peers that are not here are
skipped: gcc and the C programs (`--reference`), gymnax, SimPy.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from programs import (
    Skipped,
    apart,
    c_program,
    fastest,
    observing_lwr,
    products,
    rolling,
    simpy_program,
    system,
)
from rich.table import Table
from timing import Program, alternate

from jaxlb import checks, records
from jaxlb.cli import XLA_FLAGS
from jaxlb.cli.common import console, dumps, progress
from jaxlb.env import Env
from jaxlb.environments import make, scenarios
from jaxlb.learn import networks
from jaxlb.learn.dqn import DQNConfig, start_dqn
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.report.plots import STYLE, line_style, plain_log
from jaxlb.scheduling import learned, scheduler, schedulers
from jaxlb.types import EnvParams, Scheduler


@dataclass(frozen=True)
class Row:
    """A figure, and the bound that it is held to.

    Attributes:
      name: of the figure.
      bound: what it has to reach; None where it was skipped.
      aim: what it is hoped to reach.
      better: whether more or less is better.
      value: the median; None where it was skipped.
      lowest: of single rounds.
      highest: of single rounds.
      detail: how it was had, or why it was not.
    """

    name: str
    bound: float | None
    aim: float | None
    better: Literal["more", "less"]
    value: float | None
    lowest: float | None = None
    highest: float | None = None
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Return whether the bound is reached."""
        if self.value is None or self.bound is None:
            return False
        return self.value >= self.bound if self.better == "more" else self.value <= self.bound


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


def quotient(
    name: str, ours: Program, theirs: Program, rounds: int, bound: float, aim: float, detail: str
) -> Row:
    """Divide our rate by theirs: of medians, and of each round."""
    rates, others = alternate({"ours": ours, "theirs": theirs}, rounds).values()
    each = [rate / other for rate, other in zip(rates, others, strict=True)]
    value = statistics.median(rates) / statistics.median(others)
    return Row(name, bound, aim, "more", value, min(each), max(each), detail)


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
      reference: folder of the C programs.
      rounds: alternating runs of each pair.
      tasks: of all lanes together, in a run of four processors.
      lanes: numbers of lanes to choose from.
      threads: of the C programs.
    """

    reference: Path
    rounds: int
    tasks: int
    lanes: tuple[int, ...]
    threads: int

    def steps(self, lanes: int, work: float = 1.0) -> int:
        """Return each lane's tasks in a run; one takes `work` times as long as by a classical rule, P = 4."""
        return max(1, int(self.tasks / (work * lanes)))


def against_c(settings: Settings, num_processors: int, source: str, bound: float, aim: float) -> Row:
    """Measure LWR, all of the observation consumed, beside a C program."""
    s, name = settings, f"LWR, P = {num_processors}: rate / {source}.c"
    (env, params), rule, work = system(num_processors), observing_lwr(), num_processors / 4
    with tempfile.TemporaryDirectory() as folder:
        path = s.reference / f"{source}.c"

        def theirs(lanes: int) -> Program:
            return c_program(path, num_processors, lanes, s.steps(lanes, work), s.threads, folder)

        def ours(lanes: int) -> Program:
            return rolling(env, params, rule, lanes, s.steps(lanes, work))

        their_lanes, peer = fastest(theirs, s.lanes)
        our_lanes, own = fastest(ours, s.lanes)
        detail = f"{our_lanes:,} lanes against {their_lanes:,}, {s.threads} threads"
        return quotient(name, own, peer, s.rounds, bound, aim, detail)


def against_cartpole(settings: Settings, api: bool) -> Row:
    """Measure `rollout`, or a user's own loop, beside gymnax's CartPole with random actions.

    What is a user's own loop runs in processes of its own, with XLA's flags of here and without, and the
    better of both counts.
    """
    s = settings
    if importlib.util.find_spec("gymnax") is None:
        raise Skipped("pip install gymnax, if need be with --no-deps and what it imports")
    all_flags = sorted({"", os.environ.get("XLA_FLAGS", "")})
    with contextlib.ExitStack() as stack:

        def best(what: str) -> tuple[tuple[str, int], Program]:
            programs = {flags: stack.enter_context(apart(what, s.tasks // 4, flags)) for flags in all_flags}
            choices = [(flags, lanes) for flags in programs for lanes in s.lanes]
            return fastest(lambda choice: programs[choice[0]](choice[1]), choices)

        (their_flags, their_lanes), peer = best("CartPole")
        if api:
            (_, our_lanes), own = best("ours")
            name, bounds = "vmap(env.step) in a scan: rate / gymnax CartPole", (1.0, 1.0)
        else:
            (env, params), rule = system(4), observing_lwr()
            our_lanes, own = fastest(lambda lanes: rolling(env, params, rule, lanes, s.steps(lanes)), s.lanes)
            name, bounds = "LWR, P = 4: rate / gymnax CartPole", (4.0, 8.0)
        flagged = "with" if their_flags else "without"
        detail = f"{our_lanes:,} lanes against {their_lanes:,} {flagged} XLA_FLAGS"
        return quotient(name, own, peer, s.rounds, *bounds, detail)


def against_simpy(settings: Settings) -> Row:
    """Measure LWR beside SimPy; neither observes more than it needs."""
    s = settings
    peer, (env, params), rule = simpy_program(4, 20_000), system(4), scheduler("lwr")
    lanes, own = fastest(lambda lanes: rolling(env, params, rule, lanes, s.steps(lanes)), s.lanes)
    return quotient("LWR, P = 4: rate / SimPy", own, peer, s.rounds, 500.0, 1000.0, f"{lanes:,} lanes")


def untrained(env: Env, params: EnvParams, widths: tuple[int, ...]) -> Scheduler:
    """Make a DQN with such a perceptron, and its first weights."""
    network = networks.mlp(widths)
    config = DQNConfig(network=network, num_lanes=2, memory_rows=4)
    return learned.dqn(network, start_dqn(env, params, config, jax.random.key(0)).variables)


def overhead(settings: Settings) -> Row:
    """Divide a rollout's time, where a DQN chooses, by that of its network's matrix products."""
    s, widths = settings, (128, 128)
    env, params = system(4)
    rule = untrained(env, params, widths)
    kernels = [leaf for leaf in jax.tree.leaves(rule.variables.network) if leaf.ndim == 2]
    inputs = next(leaf.shape[0] for leaf in kernels if leaf.shape[0] not in widths)
    lanes, own = fastest(lambda lanes: rolling(env, params, rule, lanes, s.steps(lanes, 32)), s.lanes)
    alone = products((inputs, *widths, env.num_actions), lanes, s.steps(lanes, 32))
    name = "rollout with a 128-128 DQN: time / its matrix products alone"
    return dataclasses.replace(
        quotient(name, alone, own, s.rounds, 1.3, 1.15, f"{lanes:,} lanes"), better="less"
    )


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


def compiling(settings: Settings) -> Row:
    """Time the longest compilation of a rollout: what takes the longest by itself, together.

    The bound is for one rule; what `hedge` takes, several with a system for each, is given beside.
    """

    def seconds(scenario: str, name: str) -> float:
        (env, params), rule, key = make(scenario), scheduler(name), jax.random.key(0)
        carry = start_rollout(env, params, rule, key, 1024)
        jax.clear_caches()
        began = time.perf_counter()
        continue_rollout.lower(env, params, rule, carry, 1).compile()
        return time.perf_counter() - began

    # "optimal" serves two processors only.
    rules = sorted(set(schedulers()) - {"hedge", "optimal"}, key=lambda name: seconds("stable", name))[-3:]
    places = sorted(scenarios(), key=lambda scenario: seconds(scenario, "lwr"))[-3:]
    times = {
        (scenario, name): [seconds(scenario, name) for _ in range(settings.rounds)]
        for scenario in places
        for name in (*rules, "hedge")
    }

    def longest(names: list[str]) -> tuple[float, list[float], str]:
        medians = {pair: statistics.median(found) for pair, found in times.items() if pair[1] in names}
        scenario, name = pair = max(medians, key=lambda pair: medians[pair])
        return medians[pair], times[pair], f"{name} on {scenario}"

    (value, each, what), (mixed, _, where) = longest(rules), longest(["hedge"])
    title = "compilation of a rollout, seconds, the longest"
    detail = f"{what}; {where}: {mixed:.2g}"
    return Row(title, 3.0, 1.5, "less", value, min(each), max(each), detail)


def importing(settings: Settings) -> Row:
    """Time `import jaxlb` beyond `import jax, flax`."""

    def program(statement: str) -> Program:
        def run() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            return time.perf_counter() - began

        run()
        return run

    both = {"jaxlb": program("import jax, flax, jaxlb"), "others": program("import jax, flax")}
    each = [own - other for own, other in zip(*alternate(both, settings.rounds).values(), strict=True)]
    value = statistics.median(each)
    return Row("import jaxlb beyond jax and flax, seconds", 0.3, 0.1, "less", value, min(each), max(each))


def memory(lanes: int = 1024) -> Row:
    """Count the bytes of the state of a lane."""
    env, params = system(4)
    carry = start_rollout(env, params, scheduler("lwr"), jax.random.key(0), lanes)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.state))
    return Row("state of a lane, P = 4, bytes", 512.0, 384.0, "less", total / lanes)


SWEEPS = ("lanes", "processors", "tasks")


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
            sweeps.append(sweep(s, name))
            continue
        try:
            found.append(rows[name]())
        except Skipped as reason:
            found.append(Row(name, None, None, "more", None, detail=f"skipped: {reason}"))
        jax.clear_caches()
    return found, sweeps


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
      reference: folder of dispatch_scalar.c and dispatch_soa.c.
      rounds: alternating runs of each pair.
      only: what to measure, by part of a name: dispatch, CartPole, SimPy, network, compilation, import,
        memory; lanes, processors, tasks (throughput over numbers of them).
      quick: shorter runs and few numbers of lanes, to see that it works.
      out: folder for speed.json and, of throughput, speed.png.
      json: print one JSON object instead of a table.
    """
    checks.at_least("rounds", rounds, 1)
    threads = os.cpu_count() or 1
    lanes = (128, 1024) if quick else (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
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
