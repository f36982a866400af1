"""When prediction helps, when not, and by how much: writes docs/results/drift.md.

    python benchmarks/drift.py [--only stale shift] [--seeds 3] [--ship]

Predictors are trained on `stale` with intervals from 0.5 to 20, once for each seed, and judged on unseen
tasks: 1024 lanes x 4000 tasks after 1000 of warm-up, the same for all. `--ship` writes the predictor of the
first seed into the package first.
"""

import functools
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    Page,
    compared,
    line,
    ratio,
    rules,
    section,
)

import jaxlb
from jaxlb import drift, workload
from jaxlb.comparison import Entry, mean_interval, pair
from jaxlb.env import with_lane_axis
from jaxlb.report import plots
from jaxlb.rollout import continue_rollout, start_rollout, watch
from jaxlb.schedulers import predictive, predictors
from jaxlb.schedulers.predictors import Fit, Predictor

HEAD = f"""# When prediction helps

Written by `python benchmarks/drift.py` (`--only SECTION` writes one again). Predictors are trained on `stale`
with intervals from 0.5 to 20, once for each seed (that of seed 0 ships), and judged on {LANES:,} lanes x
{TASKS:,} unseen tasks after {WARMUP:,} of warm-up, the same for all, with half of 95 % intervals. A claim
holds if it holds for every seed. "Original" is the linear predictor on moving averages and the system's load
average. Machine: {os.cpu_count()} cores, {platform.machine()}, JAX {jax.__version__}.
"""
OUT = Path("docs/results")
SHIPPED = Path(predictive.__file__).parent / "predictor.json"


@functools.cache
def trained(name: str, seed: int) -> tuple[Predictor, Fit]:
    """A predictor for all intervals, trained on `stale`."""
    env, params = jaxlb.make("stale")
    config = jaxlb.PredictorConfig(predictor=predictors.predictor(name))
    params = params.replace(measure_interval=jnp.geomspace(0.5, 20.0, config.num_lanes))
    result = jaxlb.train_predictor(env, params, config, jax.random.key(seed))
    return config.predictor, result.variables


def scheduler_of(found: tuple[Predictor, Fit], detector: str | None = "threshold", hold: int = 1) -> Entry:
    """LWR with that predictor, switched by a detector or always on."""
    watching = None if detector is None else drift.detector(detector)
    return predictive.predicting("trained", found[0], watching, hold), found[1]


def ours(seeds: int) -> dict[str, Entry]:
    """`drift-aware` with the predictor of each seed; the first is the one that ships."""
    return {
        f"drift-aware, seed {seed}": scheduler_of(trained("linear", seed))
        if seed
        else jaxlb.scheduler("drift-aware")
        for seed in range(seeds)
    }


def others() -> dict[str, Entry]:
    """What shows where the gain comes from."""
    original = trained("original", 0)
    return {
        "predictive": jaxlb.scheduler("predictive"),
        "original, drift-aware": scheduler_of(original),
        "original, always on": scheduler_of(original, None),
    }


def at_most(
    table: jaxlb.Comparison, names: dict[str, Entry], bounds: dict[tuple[str, str], float], where: str = ""
) -> list[Claim]:
    """Claims that figures of all seeds are at most so many times those of rules."""
    return [
        Claim(f"{what} / {rule}'s{where}", [ratio(table, name, rule, FIGURES[what]) for name in names], bound)
        for (what, rule), bound in bounds.items()
    ]


def fresh(seeds: int) -> str:
    """Where nothing is stale."""
    rows, claims = [], []
    for scenario in ("stable", "heavy-tail", "seed"):
        env, params = jaxlb.make(scenario)
        table = compared(env, params, rules("lwr", "rr") | ours(seeds) | others())
        rows += [line(row, f"{scenario}: {row.name}") for row in table.schedulers]
        bounds = {(what, "lwr"): 1.01 for what in ("violations", "completion")} | {
            (what, "rr"): 1.0 for what in FIGURES
        }
        claims += at_most(table, ours(seeds), bounds, f" on `{scenario}`")
    return section("fresh", "All figures are those of this moment (on `seed`, smoothed).", rows, claims)


def stale(seeds: int) -> str:
    """The scenario it is for."""
    env, params = jaxlb.make("stale")
    entries = rules("lwr", "rr", "greedy", "oracle") | ours(seeds) | others()
    table = compared(env, params, entries)
    env, params = jaxlb.make("stale", measure_interval=None)
    informed = compared(env, params, rules("lwr", "greedy"))
    best = informed.row("lwr").mean_completion
    claims = at_most(table, ours(seeds), {("violations", "lwr"): 0.20})
    against = [table.row(name).mean_completion / best for name in ours(seeds)]
    claims.append(Claim("completion / that of lwr with fresh figures", against, 1.15))
    rows = [line(row, row.name) for row in table.schedulers]
    rows += [line(row, f"{row.name}, fresh figures") for row in informed.schedulers]
    return section("stale", "`stale`: 8 processors, measured every 5 time units.", rows, claims)


def intervals(seeds: int) -> str:
    """One predictor for all intervals."""
    rows, claims = [], []
    for interval in (0.5, 2.0, 10.0, 20.0):
        env, params = jaxlb.make("stale", measure_interval=interval)
        table = compared(env, params, rules("lwr", "rr") | ours(seeds) | others())
        rows += [line(row, f"every {interval:g}: {row.name}") for row in table.schedulers]
        bounds = {("violations", "lwr"): 0.25 if interval == 20 else 1.0, ("completion", "lwr"): 1.0}
        claims += at_most(table, ours(seeds), bounds, f", measured every {interval:g}")
    return section("intervals", "`stale`, measured more or less often; the same predictors.", rows, claims)


def shift(seeds: int) -> str:
    """Abrupt changes of rate and sizes."""
    env, params = jaxlb.make("shift")
    table = compared(env, params, rules("lwr", "rr", "greedy", "oracle") | ours(seeds) | others())
    claims = at_most(table, ours(seeds), {("violations", "lwr"): 0.6})
    return section(
        "shift",
        "`shift`: measured every 2, rate and size mix change at random.",
        [line(row, row.name) for row in table.schedulers],
        claims,
    )


def snapshot(seeds: int) -> str:
    """All asked in the states that LWR visits, as in the original experiments."""
    env, params = jaxlb.make("seed")
    entries = rules("lwr", "rr") | ours(seeds) | others()
    table = compared(env, params, entries, behaviour=jaxlb.scheduler("lwr"))
    agreement = [ratio(table, "lwr", name, "oracle_agreement") for name in ours(seeds)]
    claims = [Claim("oracle agreement of lwr / its own", agreement, 1.0)]
    claims += at_most(table, ours(seeds), {("violations", "lwr"): 1.0})
    rows = [f"{line(row, row.name)} {100 * row.oracle_agreement:.2f} |" for row in table.schedulers]
    return section("snapshot", "`seed`.", rows, claims)


def hidden(seeds: int) -> str:
    """Where the backlog cannot be known."""
    rows, claims = [], []
    for title, overrides in {
        "sizes hidden": {"size_visible": False},
        "noise 0.5": {"measure_noise": 0.5},
        "fresh, noise 0.5": {"measure_interval": None, "measure_noise": 0.5},
    }.items():
        env, params = jaxlb.make("stale", **overrides)
        table = compared(env, params, rules("lwr", "rr") | ours(seeds) | others())
        rows += [line(row, f"{title}: {row.name}") for row in table.schedulers]
        claims += at_most(
            table, ours(seeds), {("violations", "lwr"): 1.0, ("completion", "lwr"): 1.0}, f", {title}"
        )
    return section("uncertain", "`stale` with sizes that are not seen, or noisy figures.", rows, claims)


def recovery(seeds: int) -> str:
    """How soon completion times are those of the new load after it jumps."""
    before, after, smooth = 1500, 3500, 20
    claims, lines = [], ["| measured every | load | scheduler | own steady state | that of lwr, fresh |"]
    lines.append("|---|---|---|---|---|")
    for interval, first, second in itertools.product((2.0, 5.0), (0.5, 0.9), (0.5, 0.9)):
        if first == second:
            continue
        env, params = jaxlb.make("stale", measure_interval=interval)
        fresh_env, fresh_params = jaxlb.make("stale", measure_interval=None)
        parts = []
        for index, (load, count) in enumerate(((first, before), (second, after))):
            key = jax.random.fold_in(jax.random.key(TEST_SEED), index)
            at = with_lane_axis(params.replace(load=jnp.float32(load)), (LANES,))
            parts.append(workload.sample(key, at, count, (LANES,)))
        tasks = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        elapsed = np.cumsum(np.asarray(tasks.gap).mean(1)[before:])

        def path(env: Any, params: Any, entry: Entry, tasks: Any = tasks) -> np.ndarray:
            outcome = jaxlb.replay(env, params, *pair(entry), tasks, jax.random.key(0))
            return np.asarray(outcome.completion).mean(1)[before:]

        def returned(mean: np.ndarray, steady: float, elapsed: np.ndarray = elapsed) -> float:
            smoothed = np.convolve(mean, np.ones(smooth) / smooth, "valid")
            outside = np.flatnonzero(np.abs(smoothed / steady - 1.0) > 0.1)
            return float(elapsed[outside[-1] + 1]) if len(outside) else 0.0

        common = path(fresh_env, fresh_params, jaxlb.scheduler("lwr"))[-1500:].mean()
        times = {}
        for name, entry in (rules("lwr") | ours(seeds)).items():
            mean = path(env, params, entry)
            times[name] = returned(mean, mean[-1500:].mean()), returned(mean, common)
            shown = [f"{at:.1f}" if at < elapsed[-smooth] else "never" for at in times[name]]
            lines.append(f"| {interval:g} | {first} to {second} | {name} | {shown[0]} | {shown[1]} |")
        for which, title in enumerate(("its own", "lwr's with fresh figures")):
            ratios = [times[name][which] / max(times["lwr"][which], 1e-9) for name in ours(seeds)]
            what = f"every {interval:g}, load {first} to {second}: time to {title} / lwr's time"
            claims.append(Claim(what, ratios, 0.5))
    lines = [
        f"Load jumps; mean completion over {LANES} lanes and {smooth} tasks; time until it stays within",
        "10 % of the new steady state: the scheduler's own, and that of LWR with fresh figures.",
        "",
        *lines,
    ]
    return section("recovery", "\n".join(lines), [], claims)


def detectors(seeds: int) -> str:
    """Any detector with the shipped predictor."""
    del seeds
    rows = []
    for scenario in ("stale", "shift", "seed", "stable"):
        env, params = jaxlb.make(scenario)
        made = {
            f"{name}, hold {hold}": jaxlb.scheduler("drift-aware", detector=name, hold=hold)
            for name in drift.DETECTORS
            if name != "adwin"
            for hold in (1, 20)
        }
        table = compared(env, params, rules("lwr", "predictive") | made, num_tasks=1000, warmup=500)
        rows += [line(row, f"{scenario}: {row.name}") for row in table.schedulers]
    return section("detectors", "1000 tasks after 500 of warm-up.", rows, [])


def control(seeds: int) -> str:
    """Detectors set to a rate of false alarms, where nothing drifts."""
    del seeds
    env, params = jaxlb.make("stable", measure_interval=1.0, measure_noise=0.3)
    predictor, fit = predictive.shipped()
    rate, tasks, lanes = 0.01, 2000, 256
    scheduler = jaxlb.scheduler("predictive")

    def residual(memory: Any, observation: jaxlb.Observation) -> Any:
        _, backlog, error = predictive.forecast(predictor, fit, memory, observation)
        return (backlog - observation.load / memory.unit) / error

    def stream(seed: int) -> Any:
        task_key, key = jax.random.split(jax.random.key(TEST_SEED + seed))
        given = workload.sample(task_key, with_lane_axis(params, (lanes,)), tasks, (lanes,))
        return watch(env, params, scheduler, (), given, key, residual)[1][500:]

    quiet, other = stream(1), stream(2)
    lines = [
        "`stable`, measured every 1, with noise. Each detector is set to 1 false alarm in 100 numbers,",
        "on 256 lanes, and tried on 256 others.",
        "",
        "| detector | false alarms, % | 95 % interval |",
        "|---|---|---|",
    ]
    for name in drift.DETECTORS:
        if name == "adwin":
            continue
        detector = drift.calibrated(name, quiet, rate)
        _, alarms = jax.lax.scan(detector.update, detector.init(other.shape[1:]), other)
        mean, interval = mean_interval(np.asarray(alarms, np.float64).mean((0, 1)))
        assert interval is not None
        low, high = interval
        lines.append(f"| {name} | {100 * mean:.3f} | {100 * low:.3f} to {100 * high:.3f} |")
    return section("no drift", "\n".join(lines), [], [])


def adaptive(seeds: int) -> str:
    """The meta-scheduler, without knowing which of its candidates is best."""
    del seeds
    rows, claims = [], []
    for scenario in jaxlb.scenarios():
        env, params = jaxlb.make(scenario)
        candidates = rules("lwr", "predictive", "greedy")
        hedge = jaxlb.scheduler("hedge", wait_visible=env.wait_visible, queue_capacity=env.queue_capacity)
        few = {"num_lanes": 256, "num_tasks": 2000} if scenario == "large" else {}
        table = compared(env, params, candidates | {"hedge": hedge}, **few)
        best = min(table.row(name).mean_completion for name in candidates)
        rows += [line(row, f"{scenario}: {row.name}") for row in table.schedulers]
        claims.append(
            Claim(
                f"completion / the best candidate's, {scenario}",
                [table.row("hedge").mean_completion / best],
                1.05,
            )
        )
    return section("hedge", "Exponential weights over LWR, predictive and greedy.", rows, claims)


def cost(seeds: int) -> str:
    """Tasks per second against LWR, in one alternating run."""
    del seeds
    env, params = jaxlb.make("stale")
    key, lanes, tasks, rounds = jax.random.key(0), 4096, 512, 9

    def program(name: str) -> Callable[[], float]:
        scheduler = jaxlb.scheduler(name)
        carry = start_rollout(env, params, scheduler, key, lanes)

        def run() -> float:
            began = time.perf_counter()
            jax.block_until_ready(continue_rollout(env, params, scheduler, (), key, carry, tasks))
            return time.perf_counter() - began

        run()
        return run

    programs = {name: program(name) for name in ("lwr", "drift-aware", "predictive")}
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            seconds[name].append(run())
    median = {name: float(np.median(taken)) for name, taken in seconds.items()}
    claims = [
        Claim(f"time of a rollout / lwr's, {name}", [median[name] / median["lwr"]], 2.0)
        for name in ("drift-aware", "predictive")
    ]
    return section(
        "cost", f"{lanes} lanes x {tasks} tasks on `stale`, medians of {rounds} alternating runs.", [], claims
    )


def pictures(seeds: int) -> str:
    """Loads over time, and what detectors can do."""
    del seeds
    env, params = jaxlb.make("stale")
    predictor, fit = predictive.shipped()
    detector = drift.detector("threshold")

    def look(memory: Any, observation: jaxlb.Observation) -> Any:
        _, backlog, error = predictive.forecast(predictor, fit, memory, observation)
        work = memory.unit * observation.speed.mean(0)
        load = observation.load / work
        _, alarm = predictive.drifted(detector, memory.detector, load, backlog, error)
        return observation.truth.wait * observation.speed / work, load, backlog, alarm

    tasks = workload.sample(jax.random.key(TEST_SEED), params, 600)
    scheduler = jaxlb.scheduler("drift-aware")
    _, (truth, load, backlog, alarm) = watch(env, params, scheduler, (), tasks, jax.random.key(0), look)
    part, shown = slice(400, 600), [0, 3, 7]
    figure = plots.predictions(
        np.cumsum(np.asarray(tasks.gap))[part],
        {
            name: np.asarray(one)[part][:, shown]
            for name, one in (("true", truth), ("reported", load), ("predicted", backlog))
        },
        np.asarray(alarm)[part][:, shown],
        [f"processor {p} (speed {float(params.speed[p]):g})" for p in shown],
    )
    figure.savefig(OUT / "drift-loads.png")
    plots.detection(detection()).savefig(OUT / "drift-detectors.png")
    images = "![Loads over time](drift-loads.png)\n\n![Delay against false alarms](drift-detectors.png)"
    return section("pictures", images, [], [])


def detection() -> dict[str, np.ndarray]:
    """False alarms and delays of every detector on normal numbers, over its sensitivity."""
    key = jax.random.key(TEST_SEED)
    quiet = jax.random.normal(key, (4000, 64))
    settle, steps = 200, 1200
    shifted = jax.random.normal(jax.random.fold_in(key, 1), (steps, 512))
    shifted = shifted.at[settle:].add(1.0)
    curves = {}
    for name in drift.DETECTORS:
        points = []
        for rate in (0.03, 0.01, 0.003, 0.001):
            if name == "adwin" and rate > 1 / 32:
                continue
            one = drift.calibrated(name, quiet, rate)
            scan = jax.jit(lambda x, one=one: jax.lax.scan(one.update, one.init(x.shape[1:]), x)[1])
            false = float(np.asarray(scan(quiet)).mean())
            found = np.asarray(scan(shifted))[settle:]
            delay = np.where(found.any(0), found.argmax(0) + 1, steps - settle).mean()
            points.append((max(false, 1e-6), delay))
        curves[name] = np.array(points)
    return curves


SECTIONS: dict[str, Callable[[int], str]] = {
    "fresh": fresh,
    "stale": stale,
    "intervals": intervals,
    "shift": shift,
    "snapshot": snapshot,
    "recovery": recovery,
    "uncertain": hidden,
    "detectors": detectors,
    "no drift": control,
    "hedge": adaptive,
    "cost": cost,
    "pictures": pictures,
}


def main(only: tuple[str, ...] = (), seeds: int = 3, ship: bool = False) -> None:
    """Train, compare, write.

    Args:
      only: sections by name; all if not given.
      seeds: of the training.
      ship: write the package's predictor first.
    """
    for name in only:
        if name not in SECTIONS:
            raise ValueError(f"--only {name!r}: must be among {', '.join(map(repr, SECTIONS))}")
    if ship:
        plain = predictors.as_plain(*trained("linear", 0))
        SHIPPED.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        predictive.shipped.cache_clear()
    page = Page(OUT / "drift.md", HEAD, list(SECTIONS))
    for name in only or SECTIONS:
        page.put(name, SECTIONS[name](seeds))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.cli(main)
