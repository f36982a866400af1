"""When prediction helps, when not, and by how much: writes docs/results/drift.md.

    python benchmarks/drift.py [--only stale shift] [--seeds 3]

Predictors are trained on `stale` with intervals from 0.5 to 20, once for each seed, and judged on unseen
tasks: 1024 lanes x 4000 tasks after 10,000 of warm-up, the same for all.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import jax
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
from drift_detectors import control, detection, detectors
from drift_recovery import recovery
from drift_schedulers import others, ours
from timing import Program, alternate, timed

import jaxlb
from jaxlb import drift, workload
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.replaying import watch
from jaxlb.scheduling import forecasts, predictive, predictors
from jaxlb.scheduling.forecasts import Forecaster
from jaxlb.scheduling.units import in_mean_services, mean_service
from jaxlb.types import Scheduler

HEAD = f"""# When prediction helps

Written by `python benchmarks/drift.py` (`--only SECTION` writes one again). Predictors are trained on `stale`
with intervals from 0.5 to 20, once for each seed (for seed 0 the account of backlogs itself is
taken, which is what training comes to), and judged on {LANES:,} lanes x
{TASKS:,} unseen tasks after {WARMUP:,} of warm-up, the same for all, with half of 95 % intervals. A claim
holds if it holds for every seed. "Original" is the linear predictor on moving averages and the system's load
average.
"""
OUT = Path("docs/results")


SHORT = """SLA violations of LWR, and how they change when it takes predicted loads: paired differences, in
per cent of LWR's rate, with half of 95 % intervals. "Helps" and "hurts" leave out zero.

- **Prediction helps where figures are old** (or smoothed), the more the older they are. What helps
  is not the forecast of a trend but an account of what was assigned since the measurement and must have been
  served: on it the regression puts all its weight.
- **It does not help where figures are those of this moment**, noisy ones too: there the best prediction is
  the figure, and `drift-aware` makes LWR's choices. `predictive` differs in ties only, which it gives to the
  fastest: what it gains there is no gain of prediction.
- **A bad predictor hurts.** The original one uses moving averages only. Where figures are fresh it loses to
  LWR, as it did in the original experiments; there the detector takes back part of the loss. Where figures
  are old even it is better than LWR, and both are bad.
- Switching is an insurance against bad predictors. With a good one it costs or gains next to nothing
  against being always on."""


def bounded(
    table: jaxlb.Comparison, seeds: int, bounds: dict[tuple[str, str], float], where: str = ""
) -> list[Claim]:
    """Claim that figures of all seeds are at most so many times those of rules."""
    return at_most(
        lambda figure, rule: [ratio(table, name, rule, figure) for name in ours(seeds)], bounds, where
    )


def short(seeds: int) -> str:
    """List situations, and whether prediction helps there."""
    del seeds
    situations: dict[str, tuple[str, dict[str, Any]]] = {
        "fresh: `stable`": ("stable", {}),
        "fresh: `heavy-tail`": ("heavy-tail", {}),
        "fresh: `slow-servers`": ("slow-servers", {}),
        "smoothed, closed loop: `seed`": ("seed", {}),
        "fresh but noisy (0.5): `stale`": ("stale", {"measure_interval": None, "measure_noise": 0.5}),
        "measured every 0.5: `stale`": ("stale", {"measure_interval": 0.5}),
        "every 5": ("stale", {}),
        "every 5, load 0.5": ("stale", {"load": 0.5}),
        "every 5, noisy (0.5)": ("stale", {"measure_noise": 0.5}),
        "every 5, sizes hidden": ("stale", {"size_visible": False}),
        "every 20": ("stale", {"measure_interval": 20.0}),
        "every 2, shifting: `shift`": ("shift", {}),
    }
    entries = rules("lwr", "drift-aware") | others()
    lines = ["| situation | LWR | " + " | ".join(list(entries)[1:]) + " |", "|---|" + "---|" * len(entries)]
    for title, (scenario, overrides) in situations.items():
        table = compared(*jaxlb.make(scenario, **overrides), entries)
        lwr, *rest = table.schedulers
        base = lwr.sla_violation_rate
        cells = [f"{100 * base:.2f} %{f', {lwr.mark}' if lwr.mark else ''}"]
        for row in rest:
            interval = row.sla_violation_difference_ci
            if interval is None:
                cells.append(f"{100 * row.sla_violation_rate:.2f} %{f', {row.mark}' if row.mark else ''}")
                continue
            low, high = interval
            verdict = "helps" if high < 0 else "hurts" if low > 0 else "level"
            change = 100 * row.sla_violation_difference / base
            cells.append(f"{verdict}, {change:+.1f} ± {50 * (high - low) / base:.1f} %")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return section("in short", "\n".join([SHORT, "", *lines]), [], [])


def fresh(seeds: int) -> str:
    """Compare where nothing is stale."""
    rows, claims = [], []
    for scenario in ("stable", "heavy-tail", "seed"):
        env, params = jaxlb.make(scenario)
        table = compared(env, params, rules("lwr", "rr") | ours(seeds) | others())
        rows += [line(row, f"{scenario}: {row.name}") for row in table.schedulers]
        bounds = {(what, "lwr"): 1.01 for what in ("violations", "completion")} | {
            (what, "rr"): 1.0 for what in FIGURES
        }
        claims += bounded(table, seeds, bounds, f" on `{scenario}`")
    return section("fresh", "All figures are those of this moment (on `seed`, smoothed).", rows, claims)


def stale(seeds: int) -> str:
    """Compare in the scenario that it is for."""
    env, params = jaxlb.make("stale")
    entries = rules("lwr", "rr", "greedy", "oracle") | ours(seeds) | others()
    table = compared(env, params, entries)
    env, params = jaxlb.make("stale", measure_interval=None)
    informed = compared(env, params, rules("lwr", "greedy"))
    best = settled(informed, "lwr", "mean_completion")
    claims = bounded(table, seeds, {("violations", "lwr"): 0.20})
    against = [settled(table, name, "mean_completion") / best for name in ours(seeds)]
    claims.append(Claim("completion / that of lwr with fresh figures", against, 1.15))
    rows = [line(row, row.name) for row in table.schedulers]
    rows += [line(row, f"{row.name}, fresh figures") for row in informed.schedulers]
    return section("stale", "`stale`: 8 processors, measured every 5 time units.", rows, claims)


def intervals(seeds: int) -> str:
    """Compare one predictor over all intervals."""
    rows, claims = [], []
    for interval in (0.5, 2.0, 10.0, 20.0):
        env, params = jaxlb.make("stale", measure_interval=interval)
        table = compared(env, params, rules("lwr", "rr") | ours(seeds) | others())
        rows += [line(row, f"every {interval:g}: {row.name}") for row in table.schedulers]
        bounds = {("violations", "lwr"): 0.25 if interval == 20 else 1.0, ("completion", "lwr"): 1.0}
        claims += bounded(table, seeds, bounds, f", measured every {interval:g}")
    return section("intervals", "`stale`, measured more or less often; the same predictors.", rows, claims)


def shift(seeds: int) -> str:
    """Compare under abrupt changes of rate and sizes."""
    env, params = jaxlb.make("shift")
    table = compared(env, params, rules("lwr", "rr", "greedy", "oracle") | ours(seeds) | others())
    claims = bounded(table, seeds, {("violations", "lwr"): 0.6})
    return section(
        "shift",
        "`shift`: measured every 2, rate and size mix change at random.",
        [line(row, row.name) for row in table.schedulers],
        claims,
    )


def snapshot(seeds: int) -> str:
    """Compare all in the states that LWR visits, as in the original experiments."""
    env, params = jaxlb.make("seed")
    entries = rules("lwr", "rr") | ours(seeds) | others()
    table = compared(env, params, entries, behaviour=jaxlb.scheduler("lwr"))
    agreement = [ratio(table, "lwr", name, "oracle_agreement") for name in ours(seeds)]
    claims = [Claim("oracle agreement of lwr / its own", agreement, 1.0)]
    claims += bounded(table, seeds, {("violations", "lwr"): 1.0})
    rows = [f"{line(row, row.name)} {100 * row.oracle_agreement:.2f} |" for row in table.schedulers]
    return section("snapshot", "`seed`.", rows, claims, "oracle's choice %")


def hidden(seeds: int) -> str:
    """Compare where the backlog cannot be known."""
    rows, claims = [], []
    for title, overrides in {
        "sizes hidden": {"size_visible": False},
        "noise 0.5": {"measure_noise": 0.5},
        "fresh, noise 0.5": {"measure_interval": None, "measure_noise": 0.5},
    }.items():
        env, params = jaxlb.make("stale", **overrides)
        table = compared(env, params, rules("lwr", "rr") | ours(seeds) | others())
        rows += [line(row, f"{title}: {row.name}") for row in table.schedulers]
        claims += bounded(
            table, seeds, {("violations", "lwr"): 1.0, ("completion", "lwr"): 1.0}, f", {title}"
        )
    return section("uncertain", "`stale` with sizes that are not visible, or noisy figures.", rows, claims)


def adaptive(seeds: int) -> str:
    """Compare the meta-scheduler, which does not know which of its candidates is best."""
    del seeds
    rows, claims = [], []
    for scenario in jaxlb.scenarios():
        env, params = jaxlb.make(scenario)
        if not env.station.settled:  # whose outcomes the account of the candidates does not know in time
            continue
        candidates = rules("lwr", "predictive", "greedy")
        hedge = jaxlb.scheduler("hedge")
        few = {"num_lanes": 256, "num_tasks": 2000} if scenario == "large" else {}
        table = compared(env, params, candidates | {"hedge": hedge}, **few)
        best = table.best("mean_completion", candidates).name
        rows += [line(row, f"{scenario}: {row.name}") for row in table.schedulers]
        claims.append(
            Claim(
                f"completion / the best candidate's, {scenario}",
                [ratio(table, "hedge", best, "mean_completion")],
                1.05,
            )
        )
    text = (
        "Exponential weights over LWR, `predictive` and greedy, by what each would have cost. The claim is\n"
        "its regret: completion against that of the best candidate in hindsight. `large`: 256 lanes x 2000\n"
        "tasks."
    )
    return section("hedge", text, rows, claims)


def network(seeds: int) -> str:
    """Compare what a DQN makes of the predicted waits."""

    def as_reported(variables: Any, unit: Any, observation: jaxlb.Observation) -> Any:
        del variables
        seen = in_mean_services(observation, unit)
        return unit, seen, seen.wait

    forecasters = {
        "reported": Forecaster("reported", (), mean_service, as_reported),
        "reckoned": forecasts.forecaster("fluid"),
        "predicted": forecasts.forecaster("predicted"),
    }
    env, params = jaxlb.make("stale")
    entries = {**rules("lwr", "drift-aware", "oracle")}
    for (kind, forecaster), seed in itertools.product(forecasters.items(), range(seeds)):
        config = jaxlb.DQNConfig(forecaster=forecaster, weights=jaxlb.Weights(sla_weight=1.0))
        found = jaxlb.train_dqn(env, params, config, jax.random.key(seed))
        entries[f"dqn, {kind} waits, seed {seed}"] = found.scheduler
    table = compared(env, params, entries)
    claims = []
    for rule, what in (
        ("drift-aware", "violations"),
        ("dqn, reckoned waits", "violations"),
        ("dqn, reckoned waits", "completion"),
    ):
        names = [(f"dqn, predicted waits, seed {n}", f"{rule}, seed {n}") for n in range(seeds)]
        pairs = [(ours, rule if rule == "drift-aware" else theirs) for ours, theirs in names]
        ratios = [ratio(table, *pair, FIGURES[what]) for pair in pairs]
        claims.append(Claim(f"{what} of the dqn on predicted waits / that of {rule}", ratios, 1.0))
    text = (
        "`stale`: a DQN with the waits as reported, as reckoned without idling, and as predicted. It learns\n"
        "to avoid violations first, at the cost of some completion time."
    )
    return section("dqn", text, [line(row, row.name) for row in table.schedulers], claims)


def cost(seeds: int) -> str:
    """Measure tasks per second against LWR, in one alternating run."""
    del seeds
    env, params = jaxlb.make("stale")
    key, lanes, tasks, rounds = jax.random.key(0), 4096, 512, 9

    def program(name: str) -> Program:
        scheduler = jaxlb.scheduler(name)
        carry = start_rollout(env, params, scheduler, key, lanes)
        return timed(lambda: continue_rollout(env, params, scheduler, carry, tasks))

    programs = {name: program(name) for name in ("lwr", "drift-aware", "predictive")}
    seconds = alternate(programs, rounds)
    median = {name: float(np.median(taken)) for name, taken in seconds.items()}
    claims = [
        Claim(f"time of a rollout / lwr's, {name}", [median[name] / median["lwr"]], 2.0)
        for name in ("drift-aware", "predictive")
    ]
    return section(
        "cost", f"{lanes} lanes x {tasks} tasks on `stale`, medians of {rounds} alternating runs.", [], claims
    )


def pictures(seeds: int) -> str:
    """Draw loads over time, and what detectors can do."""
    del seeds
    env, params = jaxlb.make("stale")
    predictor, detector = predictors.reckoned()[0], drift.detector("threshold")

    def record(rule: Scheduler, memory: Any, observation: jaxlb.Observation) -> Any:
        _, seen, backlog, error = predictors.forecast(predictor, rule.variables, memory.tracking, observation)
        load = seen.load
        _, alarm = predictive.drifted(detector, memory.detector, load, backlog, error)
        return seen.truth.wait * seen.speed, load, backlog, alarm

    tasks = workload.sample(jax.random.key(TEST_SEED), params, 600)
    scheduler = jaxlb.scheduler("drift-aware")
    _, (truth, load, backlog, alarm) = watch(env, params, scheduler, tasks, jax.random.key(0), record)
    part, shown = slice(400, 600), [0, 3, 7]
    figure = figures.predictions(
        np.cumsum(np.asarray(tasks.gap))[part],
        {
            name: np.asarray(one)[part][:, shown]
            for name, one in (("true", truth), ("reported", load), ("predicted", backlog))
        },
        np.asarray(alarm)[part][:, shown],
        [f"processor {p} (speed {float(params.speed[p]):g})" for p in shown],
    )
    figure.savefig(OUT / "drift-loads.png")
    figures.detection(detection()).savefig(OUT / "drift-detectors.png")
    images = "![Loads over time](drift-loads.png)\n\n![Delay against false alarms](drift-detectors.png)"
    return section("pictures", images, [], [])


SECTIONS: dict[str, Callable[[int], str]] = {
    "in short": short,
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
    "dqn": network,
    "cost": cost,
    "pictures": pictures,
}


def main(only: tuple[str, ...] = (), seeds: int = 3) -> None:
    """Train, compare, write.

    Args:
      only: sections by name; all if not given.
      seeds: of the training.
    """
    write(OUT / "drift.md", HEAD, SECTIONS, only, seeds)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.cli(main)
