"""Laws that hold in every scenario, what goes in, and precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxlb import theory, workload
from jaxlb.environments import make
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.params import with_lane_axis
from jaxlb.protocols import ArrivalProcess
from jaxlb.replaying import replay
from jaxlb.scheduling import scheduler
from jaxlb.types import EnvParams, Key, Task
from jaxlb.verification.base import (
    DEAR,
    Finding,
    equal_processors,
    relaxation_tasks,
    response,
    simulate,
    summed,
)
from jaxlb.verification.laws import RECORDED, Law
from jaxlb.workload import arrivals


def balance(name: str, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Check Little's law and utilisation in one scenario.

    The number in the system is integrated from the queues' memory, the responses are summed as tasks are
    assigned: two accounts that share nothing.
    """
    # Lower loads where one huge task would make queues longer than a memory can count, and no infinite
    # variance, which has no standard error.
    overrides: dict[str, Any] = {
        "heavy-tail-extreme": {"load": 0.3, "queue_capacity": 1024},
        "shift": {"queue_capacity": 1024},
        "park": {"load": 0.5, "high": 1e5},
    }.get(name, {})
    env, params = make(name, **{"reward": "holding-cost", "queue_capacity": 256} | overrides)
    millions = max(5.0 / env.num_processors, 1.2)
    lanes = min(64, 1024 // env.num_processors)
    warmup = min(relaxation_tasks(params), 10_000)
    run = simulate(env, params, scheduler("sed"), key, millions * thoroughness, warmup, lanes)
    label = f"{name}, load {float(params.load):.3g}" + ", sizes to 1e5" * (name == "park")
    held = -np.asarray(run.mean_reward, np.float64)  # integral of the number in the system, for each task
    speed = np.asarray(params.speed, np.float64)[:, None]
    used = (speed * np.asarray(run.utilisation, np.float64)).sum(0) / speed.sum()
    overflowed = float(np.asarray(run.queue_overflows).sum())
    return {
        f"{label}: L / (arrival rate x response)": Finding(
            np.where(overflowed, np.nan, held / response(run)), 1.0, precision=DEAR
        ),
        f"{label}: utilisation": Finding(used, float(params.load), precision=DEAR),
    }


def lane_figures(
    key: Key, params: EnvParams, figures: Callable[[Task], Any], millions: float, num_lanes: int = 4096
) -> Any:
    """Return figures `[N]` of each lane's tasks, averaged over as many batches of 1000 as it takes."""

    @jax.jit
    def run(key: Key, params: EnvParams) -> Any:
        lanes = (num_lanes,)
        return figures(workload.sample(key, with_lane_axis(params, lanes), 1000, lanes))

    keys = jax.random.split(key, max(int(millions * 1e3 / num_lanes), 1))
    batches = [run(batch_key, params) for batch_key in keys]
    return jax.tree.map(lambda *leaves: np.mean(np.asarray(leaves, np.float64), axis=0), *batches)


def processes() -> dict[str, tuple[Any, float, float]]:
    """List arrival processes with the squared coefficient of variation and lag-1 autocorrelation of gaps."""
    recorded = np.array(RECORDED) / np.mean(RECORDED)
    deviation = recorded - 1.0
    squared_cv = float((deviation**2).mean())
    autocorrelation = float((deviation * np.roll(deviation, 1)).mean()) / squared_cv
    trace = arrivals.Trace(
        jnp.asarray(recorded, jnp.float32), jnp.ones(len(recorded), jnp.float32), None, None
    )
    return {
        "Poisson": (arrivals.Poisson(), 1.0, 0.0),
        "renewal, Erlang-4": (arrivals.Renewal(0.25), 0.25, 0.0),
        "renewal, C2 = 0.4": (arrivals.Renewal(0.4), 0.4, 0.0),
        "renewal, C2 = 4": (arrivals.Renewal(4.0), 4.0, 0.0),
        "MMPP(2)": (arrivals.Bursty(10.0, 0.1, 20.0), *theory.mmpp_gaps(10.0, 0.1, 20.0)),
        "diurnal": (arrivals.Diurnal(0.8, 50.0), *theory.diurnal_gaps(0.8, 50.0)),
        "drift": (arrivals.Drift(0.5, 5.0), *theory.drift_gaps(0.5, 5.0)),
        "shift": (arrivals.Shift(regime_tasks=20.0, rate_spread=2.0), *theory.shift_gaps(20.0, 2.0)),
        "batches of 4": (arrivals.Batch(4.0), 2 * 4.0 - 1.0, 0.0),
        "trace": (trace, squared_cv, autocorrelation),
    }


def gaps(
    name: str,
    process: ArrivalProcess,
    squared_cv: float,
    autocorrelation: float,
    key: Key,
    thoroughness: float,
) -> dict[str, Finding]:
    """Compare mean, squared coefficient of variation and lag-1 autocorrelation of the gaps of one process."""
    _, params = equal_processors(1, 0.5, arrival=process)

    def figures(task: Task) -> tuple:
        off = 0.5 * task.gap - 1.0  # in mean gaps: the rate is 0.5
        return off.mean(0), (off**2).mean(0), (off[1:] * off[:-1]).mean(0)

    mean, square, product = lane_figures(key, params, figures, 10 * thoroughness)
    # What should be 0 may be off by 4 standard errors, and nothing else.
    uncorrelated = 0.0 if autocorrelation == 0 else 0.005
    return {
        f"{name}: gaps' mean": Finding(1.0 + mean, 1.0),
        f"{name}: gaps' C2": Finding(square, squared_cv, precision=DEAR),
        f"{name}: gaps' lag-1 autocorrelation": Finding(
            product / squared_cv, autocorrelation, tolerance=uncorrelated, precision=DEAR
        ),
    }


def task_sizes(name: str, law: Law, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare mean, squared coefficient of variation and law of one size law."""
    _, params = equal_processors(1, 0.5, size=law.law)

    def figures(task: Task) -> tuple:
        return task.size.mean(0), (task.size**2).mean(0)

    mean_key, law_key = jax.random.split(key)
    mean, square = lane_figures(mean_key, params, figures, law.drawn * thoroughness)
    findings = {
        f"{name}: sizes' mean": Finding(mean, law.mean),
        f"{name}: sizes' C2": Finding(square / law.mean**2 - 1.0, law.squared_cv(), precision=DEAR),
    }
    if law.cdf is not None:
        drawn = np.asarray(
            jax.jit(workload.sample, static_argnums=(2, 3))(law_key, params, 250, (4000,)).size
        )
        # sqrt(n) D exceeds 2.276 as rarely as a normal variable exceeds 4 standard deviations.
        distance = stats.kstest(drawn.ravel().astype(float), law.cdf).statistic
        findings[f"{name}: Kolmogorov-Smirnov distance of {drawn.size:,} sizes"] = Finding(
            distance, 0.0, tolerance=0.0, standard_error=2.276 / 4.0 / drawn.size**0.5
        )
    return findings


def endurance(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Run 10^9 tasks on end: nothing drifts, nothing sticks, and float64 still agrees."""
    lanes, parts, exact = 4096, 10, theory.mmk_response(4, 0.8)
    run_key, task_key = jax.random.split(key)
    env, params = make("stable", queue_capacity=8)
    rule = scheduler("lwl")
    warmup, part = 2000, int(1e9 * thoroughness / lanes / parts) + 1
    carry = start_rollout(env, params, rule, run_key, lanes)
    carry = continue_rollout(env, params, rule, carry, warmup, warmup)

    def sums() -> list[np.ndarray]:
        return [summed(carry.totals, name) for name in ("mean_completion", "elapsed")]

    totals = [sums()]
    for _ in range(parts):
        carry = continue_rollout(env, params, rule, carry, part, warmup)
        totals.append(sums())
    means, gaps = np.diff(np.array(totals), axis=0).transpose(1, 0, 2) / part
    healthy = np.isfinite(means[-1]) & (means[-1] > 1.0 / 2) & (np.abs(gaps[-1] * 3.2 - 1.0) < 0.5)

    # From here on in float64, given the same choices.
    few = 64
    tasks = workload.sample(task_key, with_lane_axis(params, (few,)), 10_000, (few,))
    found = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)[..., :few] if leaf.ndim else leaf),
        carry.state.system.station,
    )
    outcome = replay(env, params, rule, tasks, task_key, station=found)
    free, clock = np.float64(found.free) + np.float64(found.free_error), np.float64(found.clock)
    wait = np.maximum(free - (clock + np.float64(found.clock_error)), 0.0)
    worst = 0.0
    for gap, size, action, completion in zip(
        *(np.asarray(leaf) for leaf in (tasks.gap, tasks.size, outcome.action, outcome.completion)),
        strict=True,
    ):
        wait = np.maximum(wait - np.float64(gap), 0.0)
        wait[action, np.arange(few)] += np.float64(size)
        expected = wait[action, np.arange(few)]
        worst = max(worst, float((np.abs(completion - expected) / expected).max()))
    count = f"{lanes * part * parts:.1e}"
    return {
        f"mean response of the last tenth of {count} tasks, M/M/4": Finding(means[-1], exact),
        f"first tenth - last tenth of {count} tasks, mean response": Finding(
            means[0] - means[-1], 0.0, tolerance=0.0
        ),
        f"lanes not finite or stuck after {count} tasks": Finding((~healthy).sum(), 0.0, tolerance=0.0),
        f"after {count} tasks, 640,000 completions against float64, largest relative difference": Finding(
            worst, 0.0, tolerance=1e-6
        ),
    }
