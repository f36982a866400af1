"""What is learned where processors share, interrupt, slow down and fail: writes docs/results/processors.md.

    python benchmarks/processors.py [--only time-sharing failures] [--seeds 3] [--out docs/results]

In each scenario one DQN is trained with each seed, for two objectives at once, of which every lane has one; a
GNN predicts completion times. Both are compared with the best of all rules on tasks that they have not seen.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claims
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from claims import FIGURES, TEST_SEED, Claim, Page, line, rules

import jaxlb
from jaxlb import tuning
from jaxlb.types import Scheduler

RULES = ("myopic", "greedy", "lwr", "sed", "jsq", "lwl", "jiq", "least-connections", "fpi", "drift-aware")
TUNED = (tuning.GUARDED_SITA, tuning.CARD)
ITERATIONS, TRAINING_LANES = 8000, 128
OBJECTIVES = {
    "completion": jaxlb.Weights(completion_weight=1.0, completion_exponent=1.0, sla_weight=0.0),
    "violations": jaxlb.Weights(completion_weight=0.1, completion_exponent=0.5, sla_weight=3.0),
}
"""In mean services; and each figure is compared where it is the objective."""
AT_MOST = {"completion": 0.95, "violations": 0.75}


@dataclass(frozen=True)
class Row:
    """A scenario, and how much of it is simulated."""

    lanes: int = 256
    tasks: int = 4000
    warmup: int = 2000


ROWS = {
    "time-sharing": Row(),
    "priorities": Row(),
    "failures": Row(warmup=4000),
    "throttling": Row(),
    "multicore": Row(128, 2000, 1000),
    "inference": Row(128, 2000, 1000),
}

HEAD = f"""# What is learned where processors share, interrupt, slow down and fail

Written by `python benchmarks/processors.py` (`--only SCENARIO` writes one section again). In each scenario
one DQN is trained with each seed ({ITERATIONS:,} iterations of {TRAINING_LANES} lanes), half of the lanes for
completion times and half for violations, and then asked for one of them. Tasks are unseen, the same for all;
means with half their 95 % interval. A claim holds if it holds for every seed. Training time includes
compilation.
"""


def mixed() -> jaxlb.DQNConfig:
    """Return settings under which each lane has one of the objectives."""
    half = TRAINING_LANES // len(OBJECTIVES)
    each = jax.tree.map(lambda *leaves: np.repeat(np.array(leaves, np.float32), half), *OBJECTIVES.values())
    weights = each.replace(sla_weight=each.sla_weight[None])
    return jaxlb.DQNConfig(weights=weights, num_iterations=ITERATIONS, num_lanes=TRAINING_LANES)


def aimed(scheduler: Scheduler, objective: str, num_classes: int) -> Scheduler:
    """Return the DQN with one of its objectives."""
    weights = OBJECTIVES[objective]
    weights = weights.replace(sla_weight=np.full(num_classes, weights.sla_weight))
    weights = jax.tree.map(jnp.float32, weights)
    return scheduler.replace(variables=scheduler.variables.replace(weights=weights))


def trained(env: jaxlb.Env, params: jaxlb.EnvParams, seeds: int) -> tuple[dict[str, Scheduler], list[str]]:
    """Train with each seed; return the schedulers, and how long each training took."""
    entries, seconds = {}, []
    num_classes = np.shape(params.class_probability)[0]
    config = mixed()
    each_class = np.repeat(config.weights.sla_weight, num_classes, 0)
    config = config.replace(weights=config.weights.replace(sla_weight=each_class))
    for seed in range(seeds):
        began = time.perf_counter()
        key = jax.random.key(seed)
        result = jax.block_until_ready(jaxlb.train_dqn(env, params, config, key))
        seconds.append(f"{time.perf_counter() - began:.0f}")
        for objective in OBJECTIVES:
            entries[f"dqn, seed {seed}, {objective}"] = aimed(result.scheduler, objective, num_classes)
    began = time.perf_counter()
    result = jax.block_until_ready(jaxlb.train_gnn(env, params, None, jax.random.key(0)))
    entries["gnn, seed 0"] = result.scheduler
    return entries, [*seconds, f"{time.perf_counter() - began:.0f}"]


def section(name: str, row: Row, seeds: int) -> str:
    """Train, compare, and write a scenario's part of the page."""
    env, params = jaxlb.make(name)
    ours, seconds = trained(env, params, seeds)
    some: Mapping[str, Any] = {"num_lanes": row.lanes, "num_tasks": row.tasks, "warmup": row.warmup}
    key = jax.random.key(TEST_SEED + 1)
    others = rules(*RULES)
    for names in TUNED:
        fewer = some | {"num_lanes": row.lanes // 2}
        best = tuning.best(env, params, jax.random.clone(key), names, **fewer)
        others |= {one.name: one.scheduler for one in best.values()}
    table = claims.compared(env, params, others | ours, **some)
    lines, found = best_rules(table, list(others), seeds)
    text = (
        f"{jaxlb.scenarios()[name]}. {row.lanes} lanes x {row.tasks:,} tasks after {row.warmup:,}. Trained\n"
        f"in {', '.join(seconds[:-1])} s, the GNN in {seconds[-1]} s; {len(RULES)} rules, and the best of\n"
        f"{sum(map(len, TUNED))} settings of guarded SITA and CARD by each figure.\n\n" + "\n".join(lines)
    )
    rows = [line(one, one.name) for one in table.schedulers]
    return claims.section(name, text, rows, found)


def best_rules(table: jaxlb.Comparison, names: Sequence[str], seeds: int) -> tuple[list[str], list[Claim]]:
    """Name the best rule by each figure; claim what the DQN with that objective reaches beside it."""
    lines, found = [], []
    for objective, most in AT_MOST.items():
        what = FIGURES[objective]
        best = table.best(what, names)
        ratios = [
            claims.ratio(table, f"dqn, seed {seed}, {objective}", best.name, what) for seed in range(seeds)
        ]
        wins = "the rule wins" if min(ratios) > 1 else "the DQN wins" if max(ratios) < 1 else "undecided"
        lines.append(f"- {objective}: best rule {best.name}; {wins}.")
        found.append(Claim(f"{objective} / the best rule's", ratios, most))
    return lines, found


def main(only: tuple[str, ...] = (), seeds: int = 3, out: Path = Path("docs/results")) -> None:
    """Train, compare, write.

    Args:
      only: scenarios; all if not given.
      seeds: of each.
      out: folder of the page.
    """
    page = Page(out / "processors.md", HEAD, tuple(ROWS))
    claims.check(only, page.names)
    for name in only or ROWS:
        page.put(name, section(name, ROWS[name], seeds))
        jax.clear_caches()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.cli(main)
