"""More on the universal scheduler: writes docs/results/universal-more.md, section by section.

python benchmarks/universal_more.py [--only changes cost]
"""

import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
import jax
import numpy as np
import tyro
from claims import TEST_SEED, Claim, section
from dqn_rows import rows
from timing import alternate, timed
from universal_parts import parts

import jaxlb
from jaxlb.learn import networks
from jaxlb.learn.universal import TUNING, UniversalConfig
from jaxlb.loop import continue_rollout, start_rollout

HEAD = """# More on the scheduler for any system

Written by `python benchmarks/universal_more.py` (`--only SECTION` writes one section again).
[Setting by setting](universal.md) it is compared with rules.
"""


def specialists(seeds: int) -> str:
    """Compare with the DQNs that were trained for one scenario each, on the tasks of their page."""
    del seeds
    page = Path("docs/results/dqn.md").read_text(encoding="utf-8")
    lines = [
        "| scenario | violations %, ours | theirs | ours / best | completion, ours | theirs | ours / best |",
        "|---|---|---|---|---|---|---|",
    ]
    worst: dict[str, list[float]] = {"violations": [], "completion": []}
    for name, row in rows().items():
        part = page.split(f"\n## {name}\n")[-1].split("\n## ")[0]
        theirs = re.findall(r"\| dqn, seed \d+, \d+ s of training \| ([\d.]+).*? \| ([\d.]+)", part)
        if row.trace is not None or row.loads is not None or not theirs:
            continue  # halves of a trace, several loads: rows of their own kind
        env, params = jaxlb.make(row.scenario, **row.overrides)
        entries = {
            "violations": jaxlb.scheduler("universal", objective="violations"),
            "completion": jaxlb.scheduler("universal"),
        }
        table = claims.compared(env, params, entries)
        ours = (
            100.0 * table.row("violations").sla_violation_rate,
            table.row("completion").mean_completion,
        )
        cells = [name]
        for what, own, each in zip(worst, ours, zip(*theirs, strict=True), strict=True):
            others = [float(one) for one in each]
            worst[what].append(own / min(others))
            cells += [f"{own:.3f}", ", ".join(f"{one:.3f}" for one in others), f"{worst[what][-1]:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    text = (
        "The DQNs of [their page](dqn.md), each trained for one scenario, with three seeds, and for its own\n"
        "objective, which often weighs both figures; ours has one of the two as objective, and its network\n"
        "never saw the scenario. 1,024 lanes x 4,000 tasks after 10,000, the same tasks for all."
    )
    found = [Claim(f"worst {what} / that of the best DQN", [max(each)], 1.10) for what, each in worst.items()]
    return section("specialists", "\n".join([text, "", *lines]), [], found)


WINDOW = 250


def changes(seeds: int) -> str:
    """Measure how long it takes to get used to a system that changes without being announced."""
    del seeds
    env, before = jaxlb.make("heavy-tail")
    speed = np.asarray(before.speed)
    after = {
        "speeds permuted": before.replace(speed=np.array(speed[::-1]), nominal_speed=np.array(speed)),
        "tail index 1.5 to 2.5": jaxlb.make("heavy-tail", tail_index=2.5)[1],
        "load 0.4 to 0.8": before.replace(load=np.float32(0.8)),
    }
    begun = {name: before for name in after} | {"load 0.4 to 0.8": before.replace(load=np.float32(0.4))}
    lines = [
        f"| change | completion of the first {WINDOW} tasks / without a change | within 5 % from task |",
        "|---|---|---|",
    ]
    latest = []
    for name, params in after.items():
        ratios = completions(env, begun[name], params) / completions(env, params, params)
        off = np.flatnonzero(np.abs(ratios - 1.0) > 0.05)
        settled = int((off[-1] + 1) * WINDOW) if off.size else 0
        latest.append(settled)
        lines.append(f"| {name} | {ratios[0]:.3f} | {settled:,} |")
    text = (
        "`heavy-tail`, 1,024 lanes; after 6,000 tasks the system is another one, which nobody tells.\n"
        f"Windows of {WINDOW} tasks, beside the same scheduler on the same tasks in a system that was that\n"
        "one from the start."
    )
    bound = [Claim("tasks until it is within 5 %", [float(max(latest))], 2000)]
    return section("changes", "\n".join([text, "", *lines]), [], bound)


def completions(env: jaxlb.Env, first: Any, then: Any) -> np.ndarray:
    """Return mean completion times of windows of tasks, after 6,000 tasks in a first system."""
    rule = jaxlb.scheduler("universal")
    first, then = (jaxlb.params.canonical(one) for one in (first, then))
    carry = start_rollout(env, first, rule, jax.random.key(TEST_SEED), 1024, num_recent=WINDOW)
    carry = continue_rollout(env, first, rule, carry, 6000)
    found = []
    for _ in range(24):
        carry = continue_rollout(env, then, rule, carry, WINDOW)
        found.append(float(np.asarray(carry.recent, np.float64).mean()))
    return np.array(found)


def rollout(env: jaxlb.Env, params: jaxlb.EnvParams, rule: Any, lanes: int) -> Any:
    """Run what is timed."""
    return jaxlb.rollout(env, params, rule, jax.random.key(1), lanes, 500)


def cost(seeds: int) -> str:
    """Time a rollout beside one with a DQN's network, in turns."""
    del seeds
    env, params = jaxlb.make("heavy-tail", num_processors=8)
    config = jaxlb.DQNConfig(network=networks.mlp((128, 128)), num_iterations=1, num_evaluations=1)
    small = config.replace(evaluation_tasks=1)
    dqn = jaxlb.train_dqn(env, params, small, jax.random.key(0)).scheduler
    lines = ["| lanes | time / that with a 128-128 DQN | / that with LWR |", "|---|---|---|"]
    ratios = []
    for lanes in (128, 1024):
        programs = {
            name: timed(functools.partial(rollout, env, params, rule, lanes))
            for name, rule in {"ours": "universal", "dqn": dqn, "lwr": "lwr"}.items()
        }
        taken = {name: float(np.median(each)) for name, each in alternate(programs, 5).items()}
        ratios.append(taken["ours"] / taken["dqn"])
        lines.append(f"| {lanes:,} | {ratios[-1]:.2f} | {taken['ours'] / taken['lwr']:.1f} |")
    text = "`heavy-tail` with P = 8, 500 tasks, medians of five rounds in turns."
    return section("cost", "\n".join([text, "", *lines]), [], [Claim("time / a DQN's", ratios, 4.0)])


def tuned(seeds: int) -> str:
    """Tune to one scenario, and train a DQN for it from nothing."""
    lines = [
        "| scenario | seed | scheduler | seconds, with compiling | violations % | completion |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("heavy-tail", "slow-servers", "stale"):
        row = rows()[name]
        env, params = jaxlb.make(row.scenario, **row.overrides)
        objective = jaxlb.scheduler("universal", objective=row.config.weights).variables.objective
        entries: dict[str, Any] = {"as it comes": jaxlb.scheduler("universal", objective=objective)}
        taken = {"as it comes": 0.0}
        for seed in range(seeds):
            config = UniversalConfig(objective=objective, **TUNING)
            trainings: dict[str, tuple[Any, Any]] = {
                "tuned": (jaxlb.train_universal, config),
                "dqn": (jaxlb.train_dqn, row.config),
            }
            for kind, (train, settings) in trainings.items():
                jax.clear_caches()
                began = time.perf_counter()
                result = jax.block_until_ready(train(env, params, settings, jax.random.key(seed)))
                one = f"{kind}, {seed}"
                taken[one], entries[one] = time.perf_counter() - began, result.scheduler
        table = claims.compared(env, params, entries)
        for one, seconds in taken.items():
            found = table.row(one)
            kind, _, seed = one.partition(", ")
            lines.append(
                f"| {name} | {seed} | {kind} | {seconds:.0f} | {100.0 * found.sla_violation_rate:.3f} | "
                f"{found.mean_completion:.3f}{f', {found.mark}' if found.mark else ''} |"
            )
    text = "Each for the weights that the DQN of its page has; 1,024 lanes x 4,000 tasks after 10,000."
    return section("tuned", "\n".join([text, "", *lines]), [], [])


SECTIONS = {"specialists": specialists, "changes": changes, "cost": cost, "tuned": tuned, "parts": parts}


def main(
    only: Sequence[str] = (), seeds: int = 3, out: Path = Path("docs/results/universal-more.md")
) -> None:
    """Write the page.

    Args:
      only: sections by name; all if not given.
      seeds: of trainings.
      out: the page.
    """
    claims.write(out, HEAD, SECTIONS, only, seeds)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    tyro.cli(main)
