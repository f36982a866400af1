"""What `jaxlb.scheduler("universal")` reaches in systems it has never seen: writes docs/results/universal.md.

    python benchmarks/universal.py [--only heavy-tail stale] [--lanes 512]
    python benchmarks/universal.py --ship     # trains the network of the package; stopped, it goes on

Every setting is a system of its own, with the best of the rules there in the same row: each rule as it is,
power of two, three and five choices, and guarded SITA, CARD with one band and with four, and Dice in the best
of 86 settings together. Other tasks than those of the comparison chose it, once for all networks:
`universal-rules.json` keeps it. Four systems have the optimum in its place, and one the rule that nothing can
beat there.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import jax
import numpy as np
import tyro
from claims import TEST_SEED, check, machine
from universal_settings import (
    CONTROL,
    DIFFERENCES,
    MANY,
    OPTIMUM,
    OURS,
    PROCESSORS,
    SETTINGS,
    best_rules,
    lanes_of,
    made,
    tried,
)

import jaxlb
from jaxlb import runs, weights
from jaxlb.learn import prior
from jaxlb.learn.universal import UniversalConfig
from jaxlb.scheduling import universal
from jaxlb.types import Scheduler


@dataclass(frozen=True)
class Found:
    """What a network with an objective reaches in a setting, beside the best rule."""

    setting: str
    objective: str
    seed: int
    rule: str
    theirs: float
    ratio: float
    low: float
    high: float
    note: str
    first: float  # of the first 200 tasks, completion / greedy's


def measure(
    name: str,
    env: jaxlb.Env,
    params: jaxlb.EnvParams,
    best: Mapping[str, Any],
    networks: Mapping[int, Any],
    some: Mapping[str, Any],
) -> list[Found]:
    """Compare each network with the rule that is best, in pairs, on tasks that chose nothing."""
    key = jax.random.key(TEST_SEED)
    begun_key = jax.random.fold_in(key, 1)
    objectives = list(OURS) if SETTINGS[name].group in ("", PROCESSORS) else ["completion"]
    found = []
    begun = jaxlb.compare(
        env,
        params,
        {"greedy": "greedy"} | {str(seed): ours(network, "completion") for seed, network in networks.items()},
        begun_key,
        **{**some, "num_tasks": 200, "warmup": 0},
    )
    for objective in objectives:
        figure = OURS[objective]
        each = {str(seed): ours(network, objective) for seed, network in networks.items()}
        rule = jaxlb.scheduler(best[objective])
        table = jaxlb.compare(
            env, params, {"rule": rule} | each, jax.random.clone(key), **some, baseline="rule"
        )
        theirs = getattr(table.row("rule"), figure)
        for seed in networks:
            row = table.row(str(seed))
            interval = getattr(row, DIFFERENCES[objective])
            low, high = (
                (1 + end / theirs for end in interval) if interval and theirs else (math.nan, math.nan)
            )
            found.append(
                Found(
                    setting=name,
                    objective=objective,
                    seed=seed,
                    rule=best[objective],
                    theirs=theirs,
                    ratio=getattr(row, figure) / theirs if theirs else math.nan,
                    low=low,
                    high=high,
                    note="" if row.stationary and table.row("rule").stationary else "not stationary",
                    first=begun.row(str(seed)).mean_completion / begun.row("greedy").mean_completion,
                )
            )
    return found


def ours(network: Any, objective: str) -> Scheduler:
    """Return the scheduler of a network, for an objective."""
    shipped = jaxlb.scheduler("universal", objective=objective)
    return shipped.replace(variables=shipped.variables.replace(network=network))


def page(found: Sequence[Found], about: str) -> str:
    """Write the page: what it loses first, then all, then what rules are no measure for."""
    lines = ["# One scheduler for any system", "", about, ""]
    main = [one for one in found if not SETTINGS[one.setting].group]
    for objective in OURS:
        rows = [one for one in main if one.objective == objective]
        lost = sorted(
            (one for one in rows if one.seed == SHIPPED and one.low > 1), key=lambda one: -one.ratio
        )
        open_ = [one for one in rows if one.seed == SHIPPED and one.ratio > 1 and math.isnan(one.low)]
        named, undecided = (
            ", ".join(f"{one.setting} ({one.ratio:.3f}, {one.rule})" for one in part)
            for part in (lost, open_)
        )
        settings = len({one.setting for one in rows})
        lines += [
            f"## Objective: {objective}",
            "",
            f"The best rule wins in {len(lost)} of {settings} settings{': ' + named if lost else ''}.",
            *([f"Not stationary, so undecided, and above 1: {undecided}."] if open_ else []),
            "",
            "| seed | worst setting | geometric mean of all |",
            "|---|---|---|",
        ]
        for seed in sorted({one.seed for one in rows}):
            own = [one for one in rows if one.seed == seed and one.ratio > 0]
            worst = max(own, key=lambda one: one.ratio)
            mean = np.exp(np.log([one.ratio for one in own]).mean())
            lines.append(f"| {seed} | {worst.ratio:.3f} ({worst.setting}) | {mean:.3f} |")
        lines += ["", f"![Ratios](universal-{objective}.png)", "", *table(rows, objective)]
    for group in (PROCESSORS, OPTIMUM, MANY, CONTROL):
        for objective in OURS:
            rows = [
                one for one in found if (SETTINGS[one.setting].group, one.objective) == (group, objective)
            ]
            if rows:
                lines += [f"## {group}: {objective}", "", *table(rows, objective)]
    lines += ["## Who gets which tasks", "", "![Shares of the work, by processor](universal-choices.png)", ""]
    begun = [one for one in found if one.objective == "completion" and one.seed == SHIPPED]
    begun.sort(key=lambda one: -one.first)
    slow = ", ".join(f"{one.setting} ({one.first:.3f})" for one in begun if one.first > 1.02)
    lines += [
        "## The first 200 tasks",
        "",
        "Completion / greedy's, from empty queues, nothing learned yet. Above 1.02: "
        + (slow or "none")
        + ".",
        "",
    ]
    return "\n".join(lines)


def table(rows: Sequence[Found], objective: str) -> list[str]:
    """Write the lines of a table, the worst first; the seed of the package has its interval."""
    shown = sorted((one for one in rows if one.seed == SHIPPED), key=lambda one: -one.ratio)
    others = {
        one.setting: ", ".join(
            f"{other.ratio:.3f}" for other in rows if other.setting == one.setting and other.seed != SHIPPED
        )
        for one in shown
    }
    return [
        f"| setting | best rule | its {OURS[objective].replace('_', ' ')} | ours / its | 95 % interval "
        "| other seeds | |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one.setting} | {one.rule} | {one.theirs:.4g} | {one.ratio:.3f} | "
            f"{one.low:.3f} to {one.high:.3f} | {others[one.setting]} | {one.note} |"
            for one in shown
        ),
        "",
    ]


def choices(out: Path) -> None:
    """Draw who gets which tasks, at three loads and two numbers of processors."""
    rows, speeds = {}, {}
    for number in (2, 4):
        for load in (0.5, 0.7, 0.9):
            env, params = jaxlb.make("heavy-tail", num_processors=number, load=load)
            tasks = jaxlb.workload.sample(jax.random.key(TEST_SEED), params, 4000, (64,))
            named = {"greedy": "greedy", "guarded SITA": "guarded-sita", "universal": "universal"}
            order = np.argsort(np.asarray(tasks.size[1000:]).ravel())
            work = np.cumsum(np.asarray(tasks.size[1000:], np.float64).ravel()[order])
            tenth = np.minimum((10 * work / work[-1]).astype(int), 9)
            system = f"P = {number}, load {load:g}"
            rows[system], speeds[system] = {}, np.asarray(params.speed)
            for name, rule in named.items():
                outcome = jaxlb.replay(env, params, jaxlb.scheduler(rule), tasks, jax.random.key(1))
                action = np.asarray(outcome.action[1000:]).ravel()[order]
                cells = np.bincount(action * 10 + tenth, minlength=10 * number).reshape(number, 10)
                rows[system][name] = cells / np.maximum(cells.sum(0), 1)
    figures.work_ranks(rows, speeds).savefig(out / "universal-choices.png")


SHIPPED = weights.about(universal.WEIGHTS)["trained"]["seed"]
"""Of three seeds, the one whose costs relative to greedy's were least at the end of its training."""
OTHERS = tuple(sorted(Path(__file__).parent.glob("universal-seed-*.weights")))
"""Networks trained as the one of the package was, with other seeds."""


def train(iterations: int, seed: int, lanes: int, directory: Path, to: Path) -> None:
    """Train a network as the one that comes with the package was."""
    envs, priors = prior.systems()
    priors = tuple(one.replace(num_lanes=one.num_lanes * lanes) for one in priors)
    config = UniversalConfig(num_iterations=iterations, num_evaluations=10)
    began = time.perf_counter()

    def told(rows: list[dict[str, Any]]) -> None:
        print(json.dumps(rows), flush=True)

    resume = (directory / "run.json").exists()
    run = runs.train(directory, envs, priors, config, seeds=(seed,), resume=resume, on_rows=told)
    about = {"seed": seed, "iterations": iterations, "lanes": lanes, "machine": jax.devices()[0].device_kind}
    put(run.load()[seed], about | {"seconds": round(time.perf_counter() - began)}, to)


def put(scheduler: Scheduler, about: Mapping[str, Any], to: Path) -> None:
    """Write a network as the package has it."""
    described = {
        "jaxlb": jaxlb.__version__,
        **(universal.described(UniversalConfig().network) or {}),
        "features": {group: list(names) for group, names in universal.FEATURES},
        "trained": dict(about),
    }
    half = jax.tree.map(np.float16, scheduler.variables.network)
    weights.write(to, described, half)
    print(f"wrote {to}, {to.stat().st_size / 1000:.0f} kB")


def main(
    only: tuple[str, ...] = (),
    lanes: int = 512,
    tasks: int = 4000,
    ship: bool = False,
    iterations: int = 900,
    seed: int = SHIPPED,
    times: int = 1,
    to: Path | None = None,
    traces: Path = Path("../shared/traces"),
    out: Path = Path("docs/results"),
) -> None:
    """Compare and write, or train and ship.

    Args:
      only: settings by name; all if not given.
      lanes: environments of a setting; fewer where there are many processors.
      tasks: counted in each lane, after as many that are not; more of these where there are many processors.
      ship: train the network that comes with the package.
      iterations: of it.
      seed: of it.
      times: as many lanes of each system.
      to: file of the network; if not given, that of the package, or beside this program for other seeds.
      traces: folder of the recorded traces.
      out: folder of the page.
    """
    if ship:
        beside = Path(__file__).with_name(f"universal-seed-{seed}.weights")
        named = universal.WEIGHTS if seed == SHIPPED else beside
        train(iterations, seed, times, Path(f"runs/universal-{seed}"), to or named)
        return
    check(only, list(SETTINGS))
    paths = {weights.about(path)["trained"]["seed"]: path for path in (universal.WEIGHTS, *OTHERS)}
    networks = {seed: universal.shipped(path)[1] for seed, path in paths.items()}
    kept, known = out / "universal.json", out / "universal-rules.json"
    about = {str(seed): weights.about(path)["trained"] for seed, path in paths.items()}
    before = json.loads(kept.read_text()) if kept.exists() else {}
    # Of other networks nothing is kept.
    found = [Found(**one) for one in before.get("found", [])] if before.get("networks") == about else []
    best = json.loads(known.read_text()) if known.exists() else {}
    last = None
    for name in only or SETTINGS:
        # Programs are kept from one setting to the next where only numbers differ.
        began, (env, params) = time.perf_counter(), made(SETTINGS[name], traces)
        like = env, jax.tree.structure(params), jax.tree.map(np.shape, params)
        if like != last:
            jax.clear_caches()
        last = like
        if best.get(name, {}).get("tried") != tried(SETTINGS[name]):
            best[name] = best_rules(SETTINGS[name], env, params)
            known.write_text(json.dumps(best, indent=1))
        some = lanes_of(env, lanes // SETTINGS[name].fewer, tasks)
        new = measure(name, env, params, best[name], networks, some)
        found = [one for one in found if one.setting != name] + new
        kept.write_text(json.dumps({"networks": about, "found": [vars(one) for one in found]}, indent=1))
        for one in new:
            seconds = time.perf_counter() - began
            print(
                f"{name}: {one.objective}, seed {one.seed}, {one.ratio:.3f} of {one.rule}'s, {seconds:.0f} s",
                flush=True,
            )
    write(found, lanes, tasks, out)


def write(found: Sequence[Found], lanes: int, tasks: int, out: Path) -> None:
    """Write the page and its pictures."""
    about = json.dumps(weights.about(universal.WEIGHTS)["trained"])
    measured = len({one.setting for one in found} & set(SETTINGS))
    text = (
        f"Written by `python benchmarks/universal.py --lanes {lanes} --tasks {tasks}`. {lanes:,} lanes\n"
        "(fewer of more than 8 processors) x\n"
        f"{tasks:,} tasks after as many of warm-up (more of 64 and more), which no training saw. Ratios are\n"
        f"paired, with 95 % intervals. Seed {SHIPPED} is the network of the package: {about}. Measured\n"
        f"so far: {measured} of {len(SETTINGS)} settings, the last on {machine()}."
    )
    (out / "universal.md").write_text(page(found, text))
    choices(out)
    for objective in OURS:
        rows = [one for one in found if (one.objective, one.seed) == (objective, SHIPPED)]
        rows = [one for one in rows if not SETTINGS[one.setting].group]
        rows.sort(key=lambda one: one.ratio)
        figures.ratios([vars(one) for one in rows], f"{objective} / the best rule's").savefig(
            out / f"universal-{objective}.png"
        )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    tyro.cli(main)
