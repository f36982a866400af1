"""What the DQN reaches, scenario by scenario, on tasks it has not seen: writes docs/results/dqn.md.

    python benchmarks/dqn.py [--only heavy-tail,stable] [--seeds 3] [--out docs/results]

Every claim is held for every seed: figures are the DQN's divided by the baseline's on the same tasks, from
`compare` over 1024 lanes x 4000 tasks after 1000 of warm-up. Training time includes compilation.
"""

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxlb
from jaxlb import theory
from jaxlb.learn import networks
from jaxlb.types import Scheduler
from jaxlb.workload import TraceData

LANES, TASKS, WARMUP = 1024, 4000, 1000
TEST_SEED = 1_000_003


@dataclass(frozen=True)
class Found:
    """What one seed brought: the training, and the comparison on unseen tasks."""

    env: jaxlb.Env
    params: jaxlb.EnvParams
    result: jaxlb.TrainResult
    table: jaxlb.Comparison
    seconds: float

    def ratio(self, what: str, rule: str) -> float:
        """The DQN's figure divided by that of a rule."""
        return getattr(self.table.row("dqn"), what) / getattr(self.table.row(rule), what)


@dataclass(frozen=True)
class Claim:
    """A figure and the most it may be."""

    name: str
    figure: float
    bound: float

    def holds(self) -> bool:
        """Whether the figure is within its bound."""
        return bool(self.figure <= self.bound)


Claims = Callable[[Found], list[Claim]]

FIGURES = {
    "violations": "sla_violation_rate",
    "completion": "mean_completion",
    "slowdown": "mean_slowdown",
}


@dataclass(frozen=True)
class Row:
    """One line of the table: where to train, how, and what is claimed.

    Attributes:
      scenario: for `jaxlb.make`, with `overrides`.
      config: of the trainer.
      rules: the baselines, by name.
      claims: what one seed found -> what is claimed of it.
      overrides: for `jaxlb.make`.
      trace: CSV file in the folder of traces; trained on its first half, tested on its second.
      loads: to test at; trained on loads evenly spread over the lanes, from 0.3 to 0.9.
    """

    scenario: str
    config: jaxlb.DQNConfig
    rules: Mapping[str, Scheduler]
    claims: Claims
    overrides: Mapping[str, Any] = field(default_factory=dict)
    trace: str | None = None
    loads: tuple[float, ...] | None = None


def completion_time(exponent: float = 1.0) -> jaxlb.Weights:
    """Completion times alone."""
    return jaxlb.Weights(1.0, exponent, 0.0, 0.0)


def at_most(bounds: Mapping[tuple[str, str], float]) -> Claims:
    """Claims that figures are at most so many times those of rules."""

    def claims(found: Found) -> list[Claim]:
        return [
            Claim(f"{what} / {rule}'s", found.ratio(FIGURES[what], rule), bound)
            for (what, rule), bound in bounds.items()
        ]

    return claims


def rules(*names: str) -> dict[str, Scheduler]:
    """Schedulers by their names."""
    return {name: jaxlb.scheduler(name) for name in names}


def guarded() -> dict[str, Scheduler]:
    """Guarded SITA in every setting of a grid, and FPI."""
    settings = [
        {"big": big, "big_to": big_to, "share": share}
        for big in (1, 2)
        for big_to in ("slowest", "fastest")
        for share in (0.4, 0.6, 0.8, 1.0, 1.2)
    ]
    found = {f"guarded {s}": jaxlb.scheduler("guarded-sita", **s) for s in settings}
    return found | rules("fpi")


def heavy_tail(found: Found) -> list[Claim]:
    """Against LWR and greedy, and better than each guarded SITA and FPI in all three figures at once."""
    bounds = {("violations", "lwr"): 0.10, ("slowdown", "lwr"): 0.40}
    bounds |= {("completion", rule): 0.70 for rule in ("lwr", "greedy")}
    others = [row.name for row in found.table.schedulers if row.name not in ("dqn", "lwr", "greedy")]
    closest = {
        name: max(
            getattr(found.table.row("dqn"), name) / getattr(found.table.row(other), name) for other in others
        )
        for name in FIGURES.values()
    }
    return at_most(bounds)(found) + [
        Claim(f"{what} / that of the best of {len(others)} guarded SITA and FPI", closest[name], 1.0)
        for what, name in FIGURES.items()
    ]


def seed_scenario(found: Found) -> list[Claim]:
    """Reward rises by 40 % while it learns; better than RR in everything, violations at most LWR's."""
    reward = np.asarray(found.result.history.reward)
    bounds = {(what, "rr"): 1.0 for what in FIGURES} | {("violations", "lwr"): 1.0}
    return [
        *at_most(bounds)(found),
        Claim("cost of the last tenth / of the first", float(reward[-1] / reward[0]), 0.6),
        Claim("imbalance / rr's", found.ratio("load_imbalance", "rr"), 1.0),
    ]


def exactly(optimum: float, within: float) -> Claims:
    """Mean completion within a share of the optimum, and of the rules at most their own."""

    def claims(found: Found) -> list[Claim]:
        mean = found.table.row("dqn").mean_completion
        others = [row.name for row in found.table.schedulers if row.name != "dqn"]
        return [
            Claim("completion / the optimum's", mean / optimum, 1.0 + within),
            *(Claim(f"completion / {rule}'s", found.ratio("mean_completion", rule), 1.0) for rule in others),
        ]

    return claims


def control(found: Found) -> list[Claim]:
    """Within 2 % of JSQ, and not significantly better."""
    interval = found.table.row("dqn").completion_difference_ci
    assert interval is not None
    mean = found.table.row("jsq").mean_completion
    return [
        Claim("completion / jsq's", found.ratio("mean_completion", "jsq"), 1.02),
        Claim("(jsq's completion - largest plausible of the DQN) / jsq's", -interval[1] / mean, 0.0),
    ]


def rows() -> dict[str, Row]:
    """All of them."""
    small = {"size_visible": True, "wait_visible": True}
    dqn = jaxlb.DQNConfig
    exact = dqn(weights=completion_time())
    optimal_within = at_most({("completion", "optimal"): 1.01})
    return {
        "heavy-tail": Row("heavy-tail", dqn(), rules("lwr", "greedy") | guarded(), heavy_tail),
        "heavy-tail-extreme": Row(
            "heavy-tail-extreme",
            dqn(weights=jaxlb.Weights(sla_weight=2.0)),
            rules("lwr", "greedy"),
            at_most({("violations", "lwr"): 0.10, ("completion", "lwr"): 0.40}),
        ),
        "seed": Row(
            "seed",
            dqn(weights=jaxlb.Weights(1.0, 1.0, 0.0, 1.0)),
            rules("rr", "lwr", "greedy"),
            seed_scenario,
        ),
        "slow-servers": Row(
            "slow-servers",
            dqn(weights=completion_time(0.8)),
            rules("greedy", "lwr"),
            at_most({("completion", "greedy"): 0.97}),
        ),
        "two-server": Row(
            "two-server",
            exact,
            rules("sed", "jsq", "least-connections"),
            exactly(float(theory.Lengths(0.7, (1.0, 0.2), capacity=70).optimum()[0]), 0.03),
        ),
        "two equal, all visible": Row(
            "two-server", exact, rules("optimal"), optimal_within, small | {"speed": [1.0, 1.0], "load": 0.8}
        ),
        "two unequal, all visible": Row("two-server", exact, rules("optimal"), optimal_within, small),
        "stable, sizes unknown": Row(
            "stable",
            dqn(weights=completion_time(), network=networks.per_processor((32, 32)), num_lanes=512),
            rules("jsq"),
            control,
            {"size_visible": False, "wait_visible": False},
        ),
        "park": Row("park", dqn(), rules("lwl"), park),
        "azure-llm-2023-code": Row(
            "heavy-tail",
            dqn(),
            rules("lwr", "greedy"),
            at_most({(what, rule): 1.0 for what in ("violations", "slowdown") for rule in ("lwr", "greedy")}),
            trace="azure-llm-2023-code.csv",
        ),
        "loads 0.3 to 0.9": Row(
            "heavy-tail",
            dqn(),
            rules("lwr"),
            at_most({("violations", "lwr"): 0.25}),
            loads=(0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9),
        ),
    }


def park(found: Found) -> list[Claim]:
    """The median over paired episodes, from empty, of the total response, divided by LWL's."""
    key, run = jax.random.key(TEST_SEED), (LANES, 1000)
    ours = jaxlb.rollout(found.env, found.params, found.result.scheduler, found.result.variables, key, *run)
    lwl = jaxlb.rollout(found.env, found.params, jaxlb.scheduler("lwl"), (), key, *run)
    each = np.asarray(ours.mean_completion) / np.asarray(lwl.mean_completion)
    return [Claim(f"median over {LANES} episodes of response / lwl's", float(np.median(each)), 1.0)]


@functools.cache
def halves(path: Path) -> tuple[TraceData, TraceData]:
    """The first and the second half of a recorded task stream."""
    trace = jaxlb.read_trace(path, "azure-llm")
    middle = len(trace.time) // 2

    def part(rows: slice) -> TraceData:
        return dataclasses.replace(trace, time=trace.time[rows], size=trace.size[rows])

    return part(slice(None, middle)), part(slice(middle, None))


def measure(row: Row, seed: int, traces: Path) -> list[Found]:
    """Train with one seed and compare on unseen tasks, at each of the row's loads."""
    first, second = halves(traces / row.trace) if row.trace else (None, None)
    env, params = jaxlb.make(row.scenario, trace=first, **row.overrides)
    _, test = jaxlb.make(row.scenario, trace=second, **row.overrides)
    if row.loads:
        params = params.replace(load=jnp.linspace(0.3, 0.9, row.config.num_lanes))
    began = time.perf_counter()
    result = jax.block_until_ready(jaxlb.train_dqn(env, params, row.config, jax.random.key(seed)))
    seconds = time.perf_counter() - began
    entries = {**row.rules, "dqn": (result.scheduler, result.variables)}
    found = []
    for load in row.loads or (None,):
        at = test if load is None else test.replace(load=jnp.float32(load))
        table = jaxlb.compare(
            env,
            at,
            entries,
            jax.random.key(TEST_SEED),
            num_lanes=LANES,
            num_tasks=TASKS,
            warmup=WARMUP,
            baseline=next(iter(row.rules)),
        )
        found.append(Found(env, at, result, table, seconds))
    return found


def page(
    results: dict[str, list[list[Found]]], claims: dict[str, list[list[list[Claim]]]], command: str
) -> str:
    """The table in Markdown."""
    lines = [
        "# What the DQN reaches",
        "",
        f"Written by `{command}`. {LANES} lanes x {TASKS} unseen tasks after {WARMUP} of warm-up; figures",
        "are those of each seed, means with half their 95 % interval; training time includes compilation.",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__}.",
        "",
    ]
    for name, seeds in results.items():
        lines += [
            f"## {name}",
            "",
            "| scheduler | violations % | completion | slowdown |",
            "|---|---|---|---|",
        ]
        for at in range(len(seeds[0])):
            shown = [row for row in seeds[0][at].table.schedulers if row.name != "dqn"][:4]
            load = f" at load {float(seeds[0][at].params.load):.2f}" if len(seeds[0]) > 1 else ""
            lines += [line(row, row.name + load) for row in shown]
            lines += [
                line(found[at].table.row("dqn"), f"DQN, seed {seed}{load}, trained {found[at].seconds:.0f} s")
                for seed, found in enumerate(seeds)
            ]
        lines += ["", "| claim | at most | seeds | |", "|---|---|---|---|"]
        for at in range(len(seeds[0])):
            for index, claim in enumerate(claims[name][0][at]):
                each = [claims[name][seed][at][index] for seed in range(len(seeds))]
                figures = ", ".join(f"{one.figure:.3f}" for one in each)
                verdict = "holds" if all(one.holds() for one in each) else "**missed**"
                lines.append(f"| {claim.name} | {claim.bound:g} | {figures} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def line(row: Any, name: str) -> str:
    """One scheduler's figures."""
    cells = []
    for figure, scale in (("sla_violation_rate", 100.0), ("mean_completion", 1.0), ("mean_slowdown", 1.0)):
        low, high = getattr(row, f"{figure}_ci")
        cells.append(f"{scale * getattr(row, figure):.3f} ± {scale * (high - low) / 2:.3f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main(
    only: str = "", seeds: int = 3, out: Path = Path("docs/results"), traces: Path = Path("../shared/traces")
) -> None:
    """Train, compare, write.

    Args:
      only: rows, separated by commas; all if not given.
      seeds: of each row.
      out: folder of the page.
      traces: folder of the recorded traces.
    """
    chosen = {name: row for name, row in rows().items() if not only or name in only.split(",")}
    results: dict[str, list[list[Found]]] = {}
    claims: dict[str, list[list[list[Claim]]]] = {}
    for name, row in chosen.items():
        results[name] = []
        claims[name] = []
        for seed in range(seeds):
            found = measure(row, seed, traces)
            results[name].append(found)
            claims[name].append([row.claims(one) for one in found])
            for one, made in zip(found, claims[name][-1], strict=True):
                said = "; ".join(f"{c.name} {c.figure:.3f} <= {c.bound:g} {c.holds()}" for c in made)
                print(
                    f"{name}, seed {seed}, load {float(one.params.load):.2f}, {one.seconds:.0f} s: {said}",
                    flush=True,
                )
    out.mkdir(parents=True, exist_ok=True)
    command = (
        "python benchmarks/dqn.py" + f" --only '{only}'" * bool(only) + f" --seeds {seeds}" * (seeds != 3)
    )
    (out / "dqn.md").write_text(page(results, claims, command), encoding="utf-8")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.cli(main)
