"""Detectors of drift beside each other: what they change, and their false alarms and delays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from claims import TEST_SEED, Claim, compared, line, rules, section

import jaxlb
from jaxlb import drift, workload
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import predictors
from jaxlb.statistics import mean_interval
from jaxlb.types import Scheduler


def detectors(seeds: int) -> str:
    """Compare detectors, with the account of backlogs that is kept."""
    del seeds
    rows = []
    for scenario in ("stale", "shift", "seed", "stable"):
        env, params = jaxlb.make(scenario)
        made = {
            f"{name}, hold {hold}": jaxlb.scheduler("drift-aware", detector=name, hold=hold)
            for name in drift.DETECTORS
            for hold in (1, 20)
        }
        table = compared(env, params, rules("lwr", "predictive") | made, num_tasks=1000, warmup=500)
        rows += [line(row, f"{scenario}: {row.name}") for row in table.schedulers]
    text = """Any detector, with the account of backlogs that is kept; 1000 tasks after 500 of warm-up. Those
that measure what they read against its own past (the adaptive threshold, Page-Hinkley) alarm when reports
begin to differ from predictions, and then get used to it; what matters here is that they differ."""
    return section("detectors", text, rows, [])


def control(seeds: int) -> str:
    """Compare detectors set to a rate of false alarms, where nothing drifts."""
    del seeds
    env, params = jaxlb.make("stable", measure_interval=1.0, measure_noise=0.3)
    tasks, lanes = 2000, 64
    predictor, scheduler = predictors.reckoned()[0], jaxlb.scheduler("predictive")

    def loads(rule: Scheduler, memory: Any, observation: jaxlb.Observation) -> Any:
        _, seen, backlog, _ = predictors.forecast(predictor, rule.variables, memory.tracking, observation)
        return seen.load, backlog

    def stream(seed: int) -> Any:
        task_key, key = jax.random.split(jax.random.key(TEST_SEED + seed))
        given = workload.sample(task_key, with_lane_axis(params, (lanes,)), tasks, (lanes,))
        _, (load, backlog) = watch(env, params, scheduler, given, key, loads)
        return load[500:], backlog[500:] - load[500:]

    (quiet_load, quiet), (other_load, other) = stream(1), stream(2)
    middle, deviation = quiet.mean(), quiet.std()
    lines = [
        "`stable`, measured every 1, with noise 0.3. Each detector reads predicted less reported load of",
        f"every processor, is set to a rate of false alarms on {lanes} lanes and tried on {lanes} others.",
        "The interval is that of the difference between the two, from lane to lane.",
        "",
        "| detector | set to, % | false alarms, % | 95 % interval of the difference |",
        "|---|---|---|---|",
    ]
    claims = []
    for name in drift.DETECTORS:
        rate = 0.01
        if drift.detector(name).relative:
            a, b = quiet / jnp.maximum(quiet_load, deviation), other / jnp.maximum(other_load, deviation)
        else:
            a, b = (quiet - middle) / deviation, (other - middle) / deviation
        detector = drift.calibrated(name, a, rate)

        def alarms(x: Any, detector: drift.Detector = detector) -> np.ndarray:
            _, found = jax.lax.scan(detector.update, detector.init(x.shape[1:]), x)
            return np.asarray(found, np.float64).mean((0, 1))

        found = alarms(b)
        mean, interval = mean_interval(found - alarms(a))
        assert interval is not None
        low, high = interval
        lines.append(
            f"| {name} | {100 * rate:g} | {100 * found.mean():.3f} | {100 * low:.3f} to {100 * high:.3f} |"
        )
        off = 2 * abs(mean) / (high - low)
        claims.append(Claim(f"distance from the rate / half of the interval, {name}", [off], 1.0))
    return section("no drift", "\n".join(lines), [], claims)


def detection() -> dict[str, np.ndarray]:
    """Return false alarms and delays of every detector on normal numbers, over its sensitivity."""
    key = jax.random.key(TEST_SEED)
    quiet = jax.random.normal(key, (4000, 64))
    settle, steps = 200, 1200
    shifted = jax.random.normal(jax.random.fold_in(key, 1), (steps, 512))
    shifted = shifted.at[settle:].add(1.0)
    curves = {}
    for name in drift.DETECTORS:
        points = []
        for rate in (0.03, 0.01, 0.003, 0.001):
            one = drift.calibrated(name, quiet, rate)
            scan = jax.jit(lambda x, one=one: jax.lax.scan(one.update, one.init(x.shape[1:]), x)[1])
            false = float(np.asarray(scan(quiet)).mean())
            found = np.asarray(scan(shifted))[settle:]
            delay = np.where(found.any(0), found.argmax(0) + 1, steps - settle).mean()
            points.append((max(false, 1e-6), delay))
        curves[name] = np.array(points)
    return curves
