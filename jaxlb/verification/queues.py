"""One processor, or processors behind one queue."""

import jax.numpy as jnp
import numpy as np

from jaxlb import theory, workload
from jaxlb.replaying import replay
from jaxlb.scheduling import scheduler
from jaxlb.types import Key
from jaxlb.verification.base import (
    Finding,
    each,
    equal_processors,
    response,
    simulate,
    violation,
)
from jaxlb.verification.laws import Law
from jaxlb.workload import arrivals, sizes


def mm1(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare M/M/1 with its formulas: response and its tail."""
    findings = {}
    cases = (0.5, 20), (0.8, 40), (0.9, 90)
    for run_key, (load, millions) in each(key, cases):
        env, params = equal_processors(1, load, class_slack=(0.0,), deadline_constant=5.0)
        run = simulate(env, params, scheduler("lwl"), run_key, millions * thoroughness)
        findings[f"M/M/1, load {load}: mean response"] = Finding(response(run), 1.0 / (1.0 - load))
        exact = theory.mm1_response_tail(load, 5.0)
        findings[f"M/M/1, load {load}: P(response > 5)"] = Finding(violation(run), exact)
    return findings


def mg1(name: str, law: Law, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare one law at load 0.8 with Pollaczek and Khinchine's formula."""
    env, params = equal_processors(1, 0.8, size=law.law)
    run = simulate(env, params, scheduler("lwl"), key, law.millions * thoroughness)
    exact = theory.mg1_wait(0.8, law.mean, law.second_moment)
    return {
        f"M/G/1, {name} sizes: mean wait": Finding(response(run) - law.mean, exact, precision=law.precision)
    }


def mmk(num_processors: int, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare LWL on equal processors with M/M/k."""
    findings = {}
    cases = (0.5, 30, 0.5), (0.8, 40, 1.0), (0.9, 70, 1.0)
    for run_key, (load, millions, time) in each(key, cases):
        # Deadline = size + time: a violation is a wait longer than that time.
        env, params = equal_processors(num_processors, load, class_slack=(1.0,), deadline_constant=time)
        run = simulate(env, params, scheduler("lwl"), run_key, millions * thoroughness)
        label = f"LWL on {num_processors}, load {load}"
        findings[f"{label}: mean response, M/M/k"] = Finding(
            response(run), theory.mmk_response(num_processors, load)
        )
        findings[f"{label}: P(wait > {time}), M/M/k"] = Finding(
            violation(run), theory.mmk_wait_tail(num_processors, load, time)
        )
    return findings


def pathwise(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare LWL on equal processors with a central queue: the same waits, task by task."""
    del thoroughness
    findings, num_tasks = {}, 20_000
    for num_processors, arrival, law in (
        (2, arrivals.Poisson(), sizes.Exponential(1.0)),
        (4, arrivals.Renewal(0.25), sizes.BoundedPareto(0.1, 100.0, 1.5)),
        (8, arrivals.Bursty(), sizes.Hyperexponential(1.0, 10.0)),
    ):
        env, params = equal_processors(num_processors, 0.9, arrival=arrival, size=law)
        tasks = workload.sample(key, params, num_tasks)
        # On a grid of 2^-10 all sums of float32 are exact.
        gap, size = (jnp.ceil(leaf * 1024.0) / 1024.0 for leaf in (tasks.gap, tasks.size))
        tasks = tasks.replace(gap=gap, size=size)
        waits = replay(env, params, scheduler("lwl"), tasks, key).wait
        exact = theory.kiefer_wolfowitz(np.asarray(gap), np.asarray(size), num_processors)
        name = f"{type(arrival).__name__} / {type(law).__name__} / {num_processors}"
        findings[f"{name}: largest difference of {num_tasks:,} waits to Kiefer-Wolfowitz"] = Finding(
            np.abs(np.asarray(waits, np.float64) - exact).max(), 0.0, tolerance=0.0
        )
    return findings
