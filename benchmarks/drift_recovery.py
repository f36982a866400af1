"""How soon prediction recovers from a jump of the load."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from claims import LANES, TEST_SEED, Claim, rules, section
from drift_schedulers import ours

import jaxlb
from jaxlb import workload
from jaxlb.params import with_lane_axis
from jaxlb.types import Scheduler


def recovery(seeds: int) -> str:
    """Measure how soon completion times are those of the new load after it jumps."""
    before, after, smooth = 1500, 3500, 20
    lines = ["| measured every | load | scheduler | steady state | reached after | good after |"]
    lines.append("|---|---|---|---|---|---|")
    claims = []
    for interval, (first, second) in itertools.product((2.0, 5.0), ((0.5, 0.9), (0.9, 0.5))):
        env, params = jaxlb.make("stale", measure_interval=interval)
        fresh = jaxlb.make("stale", measure_interval=None)
        parts = []
        for index, (load, count) in enumerate(((first, before), (second, after))):
            key = jax.random.fold_in(jax.random.key(TEST_SEED), index)
            at = with_lane_axis(params.replace(load=jnp.float32(load)), (LANES,))
            parts.append(workload.sample(key, at, count, (LANES,)))
        tasks = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        elapsed = np.cumsum(np.asarray(tasks.gap).mean(1)[before:])

        def path(env: Any, params: Any, entry: Scheduler, tasks: Any = tasks) -> np.ndarray:
            outcome = jaxlb.replay(env, params, entry, tasks, jax.random.key(0))
            mean = np.asarray(outcome.completion).mean(1)[before:]
            return np.convolve(mean, np.ones(smooth) / smooth, "valid")

        def until(inside: np.ndarray, elapsed: np.ndarray = elapsed) -> float:
            """Return when it is inside for good."""
            outside = np.flatnonzero(~inside)
            if not len(outside):
                return 0.0
            return float(elapsed[outside[-1] + 1]) if outside[-1] + 1 < len(inside) else np.inf

        paths = {name: path(env, params, entry) for name, entry in (rules("lwr") | ours(seeds)).items()}
        paths["lwr, fresh figures"] = path(*fresh, jaxlb.scheduler("lwr"))
        paths["oracle"] = path(env, params, jaxlb.scheduler("oracle"))
        steady = {name: mean[-1500:].mean() for name, mean in paths.items()}
        reached = {name: until(abs(mean / steady[name] - 1.0) <= 0.1) for name, mean in paths.items()}
        good = {name: until(mean <= 1.1 * steady["lwr, fresh figures"]) for name, mean in paths.items()}
        for name in paths:
            cells = [f"{at:.1f}" if np.isfinite(at) else "never" for at in (reached[name], good[name])]
            where = f"| {interval:g} | {first} to {second} | {name} | {steady[name]:.2f} | "
            lines.append(where + " | ".join(cells) + " |")
        where = f"every {interval:g}, load {first} to {second}"
        for title, times in ((f"good again, {where}", good), (f"its own steady state, {where}", reached)):
            # Where LWR is never good, it is taken to be so at the end.
            theirs = min(times["lwr"], elapsed[-1])
            ratios = [times[name] / theirs if theirs else np.inf for name in ours(seeds)]
            claims.append(Claim(f"time until {title} / lwr's", ratios, 0.5))
    lines = [
        f'Load jumps; completion, mean over {LANES} lanes and {smooth} tasks. "Reached": it stays within',
        '10 % of the new steady state that the scheduler itself has. "Good": it stays below that of LWR with',
        "fresh figures + 10 %.",
        "",
        *lines,
        "",
        "LWR's own steady state is a bad one, which herding brings about within an interval or two, and",
        "which may be the same at both loads. A queue takes its own time to fill after the load has risen:",
        "that of the oracle is no shorter.",
    ]
    return section("recovery", "\n".join(lines), [], claims)
