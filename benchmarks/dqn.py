"""What the DQN reaches, scenario by scenario, on tasks it has not seen: writes docs/results/dqn.md.

    python benchmarks/dqn.py [--only heavy-tail stale] [--seeds 3] [--out docs/results]

Every claim is held for every seed: figures are the DQN's divided by the baseline's on the same tasks, from
`compare` over 1024 lanes x 4000 tasks after 10,000 of warm-up. Training time includes compilation.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
import figures
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from claims import FIGURES, LANES, TASKS, TEST_SEED, WARMUP, Claim, Page, compared, line, rules
from dqn_rows import Found, Row, guarded, rows

import jaxlb
from jaxlb import tuning, workload
from jaxlb.learn.settings import plain
from jaxlb.report import plots
from jaxlb.workload import TraceData

RULES = ("lwr", "greedy", "sed", "jsq", "least-connections", "fpi", "drift-aware")
"""Asked in every row, beside the best settings of guarded SITA."""

HEAD = f"""# What the DQN reaches

Written by `python benchmarks/dqn.py` (`--only ROW` writes one section again). {LANES:,} lanes x {TASKS:,}
unseen tasks after {WARMUP:,} of warm-up, the same for all; means with half their 95 % interval. A claim holds
if it holds for every seed. Training time includes compilation, beside other work on the same machine. Why it
wins: [the DQN](../dqn.md#why-it-wins-where-it-wins).
"""


@functools.cache
def halves(path: Path) -> tuple[TraceData, TraceData]:
    """Return the first and the second half of a recorded task stream."""
    trace = jaxlb.read_trace(path, "azure-llm")
    middle = len(trace.time) // 2

    def part(rows: slice) -> TraceData:
        return dataclasses.replace(trace, time=trace.time[rows], size=trace.size[rows])

    return part(slice(None, middle)), part(slice(middle, None))


def measure(row: Row, seeds: int, traces: Path) -> list[list[Found]]:
    """Train with each seed and compare all on the same unseen tasks, at each of the row's loads."""
    first, second = halves(traces / row.trace) if row.trace else (None, None)
    env, params = jaxlb.make(row.scenario, trace=first, **row.overrides)
    _, test = jaxlb.make(row.scenario, trace=second, **row.overrides)
    if row.trained_at:
        params = params.replace(load=jnp.linspace(*row.trained_at, row.config.num_lanes))
    results, seconds = [], []
    for seed in range(seeds):
        result, taken = train(env, params, row.config, seed)
        results.append(result)
        seconds.append(taken)
    names = [f"dqn, seed {seed}" for seed in range(seeds)]
    trained = {name: one.scheduler for name, one in zip(names, results, strict=True)}
    found: list[list[Found]] = [[] for _ in range(seeds)]
    # The table has no rewards, and one that asks for lengths would have all long queues counted.
    env = dataclasses.replace(env, reward="weighted")
    for load in row.loads or (None,):
        at = test if load is None else test.replace(load=jnp.float32(load))
        tuned = tuning.best(env, at, jax.random.key(TEST_SEED + 1), warmup=2000)
        others = rules(*RULES) | {one.name: one.scheduler for one in tuned.values()}
        table = compared(env, at, {**row.rules, **others, **trained})
        for seed in range(seeds):
            found[seed].append(Found(env, at, results[seed], seconds[seed], table, names[seed]))
    return found


def best_rules(found: Sequence[Found], where: str = "") -> str:
    """Name the rules that do best, what they reach, and each seed's figures divided by that."""
    table, ours = found[0].table, {one.name for one in found}
    names = [row.name for row in table.schedulers if row.name not in {*ours, "oracle", "optimal"}]
    sentences = []
    for what, scale in (("violations", 100.0), ("completion", 1.0)):
        best = table.best(FIGURES[what], names)
        reached = f"{scale * getattr(best, FIGURES[what]):.3f}{' %' if scale > 1 else ''}"
        ratios = [one.ratio(FIGURES[what], best.name) for one in found]
        wins = "the rule wins" if min(ratios) > 1 else "the DQN wins" if max(ratios) < 1 else "undecided"
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios if not math.isnan(ratio))
        missing = sum(math.isnan(ratio) for ratio in ratios)
        if missing:
            wins = f"no comparison with {missing} of {len(ratios)} seeds, for what is not stationary"
        wins += f", the DQN's are {shown} times that" if shown else ""
        sentences.append(f"{what} {best.title} ({reached}): {wins}")
    count = len(names) + len(tuning.GUARDED_SITA) - len(set(names) & set(tuning.GUARDED_SITA))
    return f"Best of {count} rules and settings{where}, by " + "; by ".join(sentences) + "."


def train(
    env: jaxlb.Env, params: jaxlb.EnvParams, config: jaxlb.DQNConfig, seed: int
) -> tuple[jaxlb.TrainResult, float]:
    """Train a scheduler; return it and the seconds that took, compilation included."""
    began = time.perf_counter()
    result = jax.block_until_ready(jaxlb.train_dqn(env, params, config, jax.random.key(seed)))
    return result, time.perf_counter() - began


def front(out: Path) -> str:
    """Draw one network's front of completion and violations over many objectives; write the section."""
    env, params = jaxlb.make("heavy-tail")
    exponent_key, weight_key = jax.random.split(jax.random.key(TEST_SEED))
    lanes = jaxlb.DQNConfig().num_lanes
    drawn = jaxlb.Weights(
        completion_weight=jnp.full(lanes, 0.5),
        completion_exponent=jax.random.uniform(exponent_key, (lanes,), minval=0.25, maxval=1.0),
        imbalance_weight=jnp.zeros(lanes),
        sla_weight=10.0 ** jax.random.uniform(weight_key, (1, lanes), minval=-1.5, maxval=0.7),
    )
    result, seconds = train(env, params, jaxlb.DQNConfig(weights=drawn), 0)
    weightings = {
        f"exponent {exponent:g}, sla_weight {weight:g}": jaxlb.Weights(0.5, exponent, 0.0, weight)
        for exponent in (0.25, 0.5, 0.75, 1.0)
        for weight in (0.03, 0.3, 3.0)
    }
    ours, learned = result.scheduler, result.scheduler.variables
    points = {
        name: ours.replace(variables=learned.replace(weights=jax.tree.map(jnp.float32, weights)))
        for name, weights in weightings.items()
    }
    others = rules("jsq", "sed", "lwr", "lwl", "greedy", "sita-e") | guarded()
    table = compared(env, params, {**others, **points})

    def found(name: str) -> tuple[float, float]:
        row = table.row(name)
        return row.mean_completion, row.sla_violation_rate

    ours, theirs = [found(name) for name in points], {name: found(name) for name in others}
    shown = {name: found for name, found in theirs.items() if not name.startswith("guarded")}
    fronts = {
        "one DQN": np.array(ours),
        "guarded SITA, 20 settings": np.array([theirs[name] for name in others if name not in shown]),
    }
    figures.trade_off(fronts, shown).savefig(out / "dqn-front.png")
    beaten = [
        name
        for name, (time, rate) in theirs.items()
        if any(mine[0] < time and mine[1] < rate for mine in ours)
    ]
    lines = [
        "## front",
        "",
        f"One network, many objectives: trained once ({seconds:.0f} s) on `heavy-tail` with completion",
        "exponents from 0.25 to 1 and `sla_weight` from 0.03 to 5, drawn for each lane and an input of the",
        f"network; then with one pair at a time. Of the {len(theirs)} classical rules and settings,",
        f"{len(beaten)} are beaten in mean completion *and* violations by one of these points at once"
        + ("." if len(beaten) == len(theirs) else f"; not: {', '.join(sorted(set(theirs) - set(beaten)))}."),
        "",
        "![Mean completion against violations](dqn-front.png)",
        "",
        "| objective | violations % | completion | slowdown |",
        "|---|---|---|---|",
        *(line(table.row(name), name) for name in points),
        "",
        claims.made_on(),
        "",
    ]
    return "\n".join(lines)


def choices(found: Found, out: Path) -> None:
    """Draw which processor gets which tasks."""
    tasks = workload.sample(jax.random.key(TEST_SEED), found.params, 2000, (128,))
    best = found.table.best("sla_violation_rate", tuning.GUARDED_SITA).name
    entries = {
        "lwr": "lwr",
        "greedy": "greedy",
        "guarded SITA": best,
        "DQN": found.result.scheduler,
    }
    key = jax.random.key(0)
    outcomes = {
        name: jaxlb.replay(found.env, found.params, rule, tasks, key) for name, rule in entries.items()
    }

    def later(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[500:], tree)

    figure = plots.choices(
        found.env, found.params, later(tasks), {name: later(one) for name, one in outcomes.items()}
    )
    figure.savefig(out / "dqn-choices.png")


def settings(config: jaxlb.DQNConfig) -> str:
    """List what differs from the defaults."""
    default = plain(jaxlb.DQNConfig())
    changed = {name: value for name, value in plain(config).items() if value != default.get(name)}
    if config.network != jaxlb.DQNConfig().network:
        changed["network"] = "per-processor, widths [32, 32]"
    return ", ".join(f"{name} = {value}" for name, value in changed.items()) or "the defaults"


def best_guarded(table: jaxlb.Comparison) -> list[Any]:
    """Return the rows of a table, but of guarded SITA only settings that are the best in some figure."""
    settings = [row for row in table.schedulers if row.name in tuning.GUARDED_SITA]
    best = {table.best(figure, tuning.GUARDED_SITA).name for figure in FIGURES.values()}
    return [row for row in table.schedulers if row not in settings or row.name in best]


def section(name: str, row: Row, seeds: list[list[Found]]) -> str:
    """Write a row's part of the page."""
    overrides = f" with {dict(row.overrides)}" if row.overrides else ""
    trace = f", tasks from the first half of {row.trace}, tested on the second" if row.trace else ""
    loads = f", loads {row.trained_at[0]} to {row.trained_at[1]}" if row.trained_at else ""
    text = f"`{row.scenario}`{overrides}{trace}{loads}. Settings: {settings(row.config)}."
    lines, claimed = [], []
    for at, found in enumerate(seeds[0]):
        suffix = f" at load {float(found.params.load):.2f}" if len(seeds[0]) > 1 else ""
        text += f"\n\n{best_rules([each[at] for each in seeds], suffix)}"
        taken = {each[at].name: f", {each[at].seconds:.0f} s of training" for each in seeds}
        shown = best_guarded(found.table)
        lines += [line(one, one.name + suffix + taken.get(one.name, "")) for one in shown]
        for each in zip(*(row.claims(one[at]) for one in seeds), strict=True):
            claimed.append(Claim(each[0].name + suffix, [one.figures[0] for one in each], each[0].bound))
    return claims.section(name, text, lines, claimed)


def main(
    only: tuple[str, ...] = (),
    seeds: int = 3,
    out: Path = Path("docs/results"),
    traces: Path = Path("../shared/traces"),
) -> None:
    """Train, compare, write.

    Args:
      only: rows by name, "front" being the trade-off; all if not given.
      seeds: of each row.
      out: folder of the page.
      traces: folder of the recorded traces.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = rows()
    page = Page(out / "dqn.md", HEAD, (*table, "front"))
    claims.check(only, page.names)
    for name, row in table.items():
        if only and name not in only:
            continue
        found = measure(row, seeds, traces)
        page.put(name, section(name, row, found))
        if name == "heavy-tail":
            choices(found[0][0], out)
    if not only or "front" in only:
        page.put("front", front(out))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.cli(main)
