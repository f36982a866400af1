"""What message passing reaches, and where it earns its place: writes docs/results/gnn.md.

    python benchmarks/gnn.py [--only snapshot stale] [--seeds 3] [--out docs/results]

Every claim is held for every seed, on tasks that no training saw. Training time includes compilation.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from claims import (
    FIGURES,
    LANES,
    TASKS,
    TEST_SEED,
    WARMUP,
    Claim,
    at_most,
    compared,
    line,
    ratio,
    rules,
    section,
    settled,
    write,
)
from gnn_cost import cost
from gnn_errors import ablations, hidden, memory, unexplained
from gnn_training import ALONE, CONFIG, linear_forecaster, noisy, trained, with_memory

import jaxlb
from jaxlb.learn import gnn, networks
from jaxlb.learn.gnn import GNNConfig
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.report import plots
from jaxlb.tally import summarise

HEAD = f"""# What message passing reaches

Written by `python benchmarks/gnn.py` (`--only SECTION` writes one again). Unless stated otherwise:
networks of widths 64 and 32, three trainings with seeds 0, 1, 2, {LANES:,} lanes x {TASKS:,} unseen tasks
after {WARMUP:,} of warm-up, the same for all; means with half their 95 % interval. A claim holds if it holds
for every seed. Training time includes compilation, beside other work on the same machine.
"""

OPTIONS: dict[str, Any] = {"out": Path("docs/results")}


def ratios(table: jaxlb.Comparison, seeds: int, name: str = "gnn") -> Callable[[str, str], list[float]]:
    """Divide figures of every seed by those of a rule."""
    return lambda figure, rule: [ratio(table, f"{name}, seed {seed}", rule, figure) for seed in range(seeds)]


def beside(table: jaxlb.Comparison, seeds: int, ours: str, theirs: str, what: str) -> list[float]:
    """Divide figures of one training by those of another with the same seed."""
    return [
        ratio(table, f"{ours}, seed {seed}", f"{theirs}, seed {seed}", FIGURES[what]) for seed in range(seeds)
    ]


def rows_of(table: jaxlb.Comparison, where: str = "", agreement: bool = False) -> list[str]:
    """Return a line for each scheduler."""
    more = [f" {100 * row.oracle_agreement:.2f} |" if agreement else "" for row in table.schedulers]
    return [line(row, where + row.name) + end for row, end in zip(table.schedulers, more, strict=True)]


AGREEMENT = "oracle's choice %"


def disagreement(table: jaxlb.Comparison, seeds: int, name: str = "gnn") -> list[float]:
    """Return the share of choices that are not the oracle's."""
    return [1.0 - settled(table, f"{name}, seed {seed}", "oracle_agreement") for seed in range(seeds)]


def snapshot(seeds: int) -> str:
    """Compare all in the states that LWR visits: the original's table."""
    env, params = jaxlb.make("seed")
    entries, results, seconds = trained(seeds, env, params)
    table = compared(
        env,
        params,
        rules("oracle", "rr", "lwr", "greedy", "drift-aware") | entries,
        behaviour=jaxlb.scheduler("lwr"),
    )
    closed = compared(env, params, rules("lwr", "rr", "oracle") | entries)
    rate = "sla_violation_rate"
    more = [settled(table, name, rate) - settled(table, "oracle", rate) for name in entries]
    held_out = [
        gnn.inspect(env, params, CONFIG, result.scheduler.variables, jax.random.key(TEST_SEED))
        for result in results
    ]
    claims = [
        Claim("1 - oracle agreement, snapshot", disagreement(table, seeds), 0.01),
        Claim("violations - oracle's, snapshot", more, 0.002),
        Claim("1 - oracle agreement, closed loop", disagreement(closed, seeds), 0.02),
        Claim("1 - R² of completion, own states", [unexplained(found) for found in held_out], 0.001),
        Claim("seconds of training", seconds, 60.0),
        *at_most(ratios(closed, seeds), {("violations", "lwr"): 1.0}, ", closed loop"),
    ]
    rows = rows_of(table, "snapshot: ", True) + rows_of(closed, "closed loop: ", True)
    text = (
        "`seed`. Snapshot, as in the original experiments: all choose in the states that LWR visits.\n"
        "Closed loop: each meets the states that its own choices lead to."
    )
    return section("snapshot", text, rows, claims, AGREEMENT)


def stale(seeds: int) -> str:
    """Compare in closed loop on old and noisy figures."""
    rows, claims = [], []
    for title, overrides in {"stale": {}, "noise 0.5": {"measure_noise": 0.5}}.items():
        env, params = jaxlb.make("stale", **overrides)
        base = noisy("drift-aware", linear_forecaster(env, params, 0))
        entries: dict[str, str | jaxlb.Scheduler] = dict(rules("lwr", "drift-aware", "oracle"))
        for name, config in {
            "gnn": base,
            "without messages": base.replace(network=ALONE),
            "with memory": with_memory(base),
            "by probability": base.replace(
                network=networks.gnn(outputs=2), target="distribution", decision="violation"
            ),
        }.items():
            entries |= trained(seeds, env, params, config, name)[0]
        table = compared(env, params, entries, num_lanes=256)
        rows += rows_of(table, f"{title}: ")
        claims += at_most(ratios(table, seeds), {("violations", "lwr"): 0.5}, f", {title}")
        for name, what in (("with memory", "completion"), ("by probability", "violations")):
            found = beside(table, seeds, name, "gnn", what)
            claims.append(Claim(f"{what}, {name} / gnn, {title}", found, 1.0))
        jax.clear_caches()
    text = (
        "`stale`: 8 processors, measured every 5; 256 lanes. The networks have the forecast of a\n"
        'linear predictor trained there. "With memory": every node keeps a recurrent state from task to\n'
        'task. "By probability": mean and spread are predicted, and the smallest probability of a\n'
        "violation is chosen."
    )
    return section("stale", text, rows, claims)


def several_systems() -> tuple[tuple, tuple, GNNConfig]:
    """Make systems of 4 to 16 processors, each lane with speeds and a load of its own."""
    config = CONFIG.replace(num_lanes=80, num_tasks=100, batch_size=500)
    envs, all_params = [], []
    for index, number in enumerate((4, 6, 8, 12, 16)):
        env, params = jaxlb.make("stable", num_processors=number)
        speed_key, load_key = jax.random.split(jax.random.key(index))
        shape = (number, config.num_lanes)
        speed = jnp.exp(jax.random.uniform(speed_key, shape, minval=-1.4, maxval=1.4))
        load = jax.random.uniform(load_key, shape[1:], minval=0.3, maxval=0.95)
        envs.append(env)
        all_params.append(params.replace(speed=speed, load=load))
    return tuple(envs), tuple(all_params), config


def sizes(seeds: int) -> str:
    """Compare one network over numbers of processors."""
    envs, all_params, config = several_systems()
    entries, _, _ = trained(seeds, envs, all_params, config)
    rows, claims = [], []
    for number in (2, 4, 16, 32, 64, 256):
        speed = [float(v) for v in np.geomspace(0.25, 4.0, number)]
        env, params = jaxlb.make("stable", speed=speed)
        few = {"num_lanes": max(32, 8192 // number), "num_tasks": 1000, "warmup": max(500, 20 * number)}
        table = compared(env, params, rules("greedy", "lwr") | entries, **few)
        rows += rows_of(table, f"P = {number}: ", True)
        claims += at_most(ratios(table, seeds), {("completion", "greedy"): 1.01}, f", P = {number}")
        bound = 0.1 if number > 64 else 0.03
        claims.append(Claim(f"1 - oracle agreement, P = {number}", disagreement(table, seeds), bound))
        jax.clear_caches()
    text = (
        "One network, trained on systems of 4, 6, 8, 12 and 16 processors with random speeds (0.25 to 4)\n"
        "and loads (0.3 to 0.95), each lane its own; tested as it is on speeds from 0.25 to 4 at load 0.8.\n"
        "8192 / P lanes, at least 32, x 1000 tasks after 20 P, at least 500."
    )
    return section("any number of processors", text, rows, claims, AGREEMENT)


def q_network(seeds: int) -> str:
    """Train the same network as Q-network of the DQN."""
    env, params = jaxlb.make("heavy-tail")
    weights = jaxlb.Weights(completion_exponent=0.67, sla_weight=2.0)
    config = jaxlb.DQNConfig(weights=weights, network=networks.gnn((64, 64, 64), rounds=3))
    entries: dict[str, str | jaxlb.Scheduler] = {}
    seconds = []
    for seed in range(seeds):
        began = time.perf_counter()
        result = jax.block_until_ready(jaxlb.train_dqn(env, params, config, jax.random.key(seed)))
        seconds.append(time.perf_counter() - began)
        entries[f"gnn, seed {seed}"] = result.scheduler
    table = compared(env, params, rules("lwr", "greedy") | entries)
    env, params = jaxlb.make("heavy-tail", num_processors=8)
    larger = compared(env, params, rules("lwr", "greedy") | entries)
    bounds = {("violations", "lwr"): 0.1, ("completion", "lwr"): 0.7}
    claims = at_most(ratios(table, seeds), bounds, ", P = 4")
    claims += at_most(ratios(larger, seeds), {("violations", "lwr"): 0.5}, ", P = 8")
    text = (
        "`heavy-tail`, trained by `train_dqn` at P = 4 with three rounds of messages, and tested there and,\n"
        f"as it is, at P = 8. Seconds of training: {', '.join(f'{s:.0f}' for s in seconds)}."
    )
    return section("q-network", text, rows_of(table, "P = 4: ") + rows_of(larger, "P = 8: "), claims)


def adaptation(seeds: int) -> str:
    """Permute speeds in mid-run, which no scheduler observes."""
    chunk, before, after = 250, 8, 16
    settings = {"frozen": CONFIG, "adapting": CONFIG.replace(adaptation=0.05)}
    text = (
        f"After {before * chunk:,} tasks the speeds are reversed, while all observe the old ones; figures\n"
        f'are fresh. Violations in parts of {chunk} tasks, {LANES:,} lanes. "Adapting": the same weights,\n'
        "with offsets that follow the completion times of departed tasks. Where the tails are heavy, the\n"
        "wrong belief happens to help: it keeps large tasks on what are now the slow processors, and the\n"
        "small ones off them, as no greedy choice does. The adapting network returns to its old rate."
    )
    parts, claims = [text], []
    changed: dict[str, dict[str, Any]] = {"stale": {"measure_interval": None}, "heavy-tail": {}}
    for title, overrides in changed.items():
        env, params = jaxlb.make(title, **overrides)
        params = params.replace(nominal_speed=params.speed)
        permuted = params.replace(speed=params.speed[::-1])
        _, results, _ = trained(seeds, env, params)
        entries = {
            (name, seed): gnn.GNN.acting(config, result.scheduler.variables, dict(gnn.GNN.features))
            for name, config in settings.items()
            for seed, result in enumerate(results)
        }
        entries |= {(name, 0): jaxlb.scheduler(name) for name in ("lwr", "greedy", "oracle")}
        lines = ["| scheduler | before | first 250 tasks after | last 1000 tasks |", "|---|---|---|---|"]
        recovered: dict[str, list[float]] = {name: [] for name in settings}
        paths: dict[str, np.ndarray] = {}
        for (name, seed), rule in entries.items():
            key, sums = jax.random.key(TEST_SEED), [0.0]
            carry = start_rollout(env, params, rule, key, LANES)
            for index in range(before + after):
                now = params if index < before else permuted
                carry = continue_rollout(env, now, rule, carry, chunk)
                found = summarise(carry.totals, env.view(carry.state, params))
                sums.append(float(found.sla_violation_rate.mean()) * chunk * (index + 1))
            path = 100 * np.diff(sums) / chunk
            # The first half of the time before is warm-up.
            level, last = path[before // 2 : before].mean(), path[-4:].mean()
            numbered = f"{name}, seed {seed}" if name in settings else name
            lines.append(f"| {title}: {numbered} | {level:.2f} % | {path[before]:.2f} % | {last:.2f} % |")
            if name in settings:
                recovered[name].append(float(last / level))
            if seed == 0:
                paths[name] = path
        times = (np.arange(before + after) + 0.5) * chunk
        figure = figures.over_time(times, paths, before * chunk, "SLA violations, %")
        figure.savefig(OPTIONS["out"] / f"gnn-adaptation-{title}.png")
        parts += ["", f"![Violations over time, `{title}`](gnn-adaptation-{title}.png)", "", *lines]
        of_adapting = f"violations of the last 1000 tasks / before, adapting, {title}"
        claims.append(Claim(of_adapting, recovered["adapting"], 1.1))
        if title == "stale":
            never = [1.0 / quotient for quotient in recovered["frozen"]]
            claims.append(
                Claim(f"before / violations of the last 1000 tasks, frozen, {title}", never, 1 / 1.1)
            )
    return section("online adaptation", "\n".join(parts), [], claims)


def objectives(seeds: int) -> str:
    """Compare imitation of the oracle's choice with regression of what each choice takes."""
    rows, claims = [], []
    situations: dict[str, tuple[str, dict[str, Any]]] = {
        "seed": ("seed", {}),
        "stale, noise 0.5": ("stale", {"measure_noise": 0.5}),
    }
    for title, (scenario, overrides) in situations.items():
        env, params = jaxlb.make(scenario, **overrides)
        entries: dict[str, str | jaxlb.Scheduler] = dict(rules("lwr", "oracle"))
        for target in ("log-time", "mean", "time", "choice"):
            entries |= trained(seeds, env, params, CONFIG.replace(target=target), target)[0]
        table = compared(env, params, entries)
        rows += rows_of(table, f"{title}: ", True)
        for what in ("violations", "completion"):
            found = beside(table, seeds, "mean", "choice", what)
            claims.append(Claim(f"{what}, regression of the mean / classification, {title}", found, 1.0))
        jax.clear_caches()
    text = (
        '"choice": imitation of the oracle\'s choice, by cross entropy; "time": squared errors of\n'
        'completion times, as in the original; "log-time": of their logarithms; "mean": of a gamma law.'
    )
    return section("classification or regression", text, rows, claims, AGREEMENT)


def pictures(seeds: int) -> str:
    """Draw predictions, agreement, and how far each processor counts for each."""
    del seeds
    env, params = jaxlb.make("seed")
    _, results, _ = trained(1, env, params)
    images = []

    def draw(name: str, title: str, figure: Any) -> None:
        figure.savefig(OPTIONS["out"] / f"gnn-{name}.png")
        images.append(f"![{title}](gnn-{name}.png)")

    def flat(found: gnn.Inspection) -> list[np.ndarray]:
        leaves = (found.predicted, found.truth, found.chosen, found.load)
        return [np.asarray(leaf).reshape(-1, *leaf.shape[2:]) for leaf in leaves]

    found = gnn.inspect(env, params, CONFIG, results[0].scheduler.variables, jax.random.key(TEST_SEED))
    draw("seed", "`seed`, everything visible", plots.completions(*flat(found)))

    env, params = jaxlb.make("stale", measure_noise=0.5)
    network = networks.gnn(rounds=2, pooling="attention")
    config = noisy("drift-aware", linear_forecaster(env, params, 0)).replace(network=network)
    _, results, _ = trained(1, env, params, config)
    found = gnn.inspect(env, params, config, results[0].scheduler.variables, jax.random.key(TEST_SEED))
    draw("stale", "`stale` with noise 0.5", plots.completions(*flat(found)))
    names = [f"{p} (speed {float(speed):g})" for p, speed in enumerate(params.speed)]
    draw("influence", "Who listens to whom", plots.influence(np.asarray(found.influence), names))
    return section("pictures", "\n\n".join(images), [], [])


SECTIONS: dict[str, Callable[[int], str]] = {
    "snapshot": snapshot,
    "ablation": ablations,
    "hidden": hidden,
    "memory": memory,
    "stale": stale,
    "any number of processors": sizes,
    "q-network": q_network,
    "online adaptation": adaptation,
    "classification or regression": objectives,
    "cost": cost,
    "pictures": pictures,
}


def main(only: tuple[str, ...] = (), seeds: int = 3, out: Path = Path("docs/results")) -> None:
    """Train, compare, write.

    Args:
      only: sections by name; all if not given.
      seeds: of the training.
      out: folder of the page.
    """
    OPTIONS["out"] = out
    write(out / "gnn.md", HEAD, SECTIONS, only, seeds)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.cli(main)
