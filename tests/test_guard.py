"""Within the guard any scheduler is stable where greedy is, and a good one chooses as it would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.scheduling import guarded, stateless
from jaxlb.scheduling import universal as acting
from jaxlb.scheduling.objective import Objective
from jaxlb.scheduling.universal import Universal

SLOWEST = stateless("slowest", lambda o, key: jnp.argmin(o.speed, 0).astype(jnp.int32))
"""Alone, it overloads one processor."""


def test_a_choice_within_the_guard_stays(key):
    env, params = jaxlb.make("heavy-tail")
    tasks = jaxlb.workload.sample(key, params, 300, (4,))
    run = jax.random.key(1)
    for name in ("greedy", "sed"):
        alone, within = (
            jaxlb.replay(env, params, one, tasks, run)
            for one in (jaxlb.scheduler(name), guarded(jaxlb.scheduler(name)))
        )
        np.testing.assert_array_equal(alone.action, within.action)


def test_no_task_takes_much_longer_than_it_has_to():
    env, params = jaxlb.make("stable", num_processors=2, speed=[0.5, 1.5])
    tasks = jaxlb.workload.sample(jax.random.key(0), params, 1000)
    outcome = jaxlb.replay(env, params, guarded(SLOWEST), tasks, jax.random.key(1))
    gap, size = np.asarray(tasks.gap, np.float64), np.asarray(tasks.size, np.float64)
    wait, speed = np.zeros(2), np.array([0.5, 1.5])
    overruled = 0
    for number, action in enumerate(np.asarray(outcome.action)):
        wait = np.maximum(wait - gap[number], 0.0)
        completion = wait + size[number] / speed
        seen = size[: number + 1]
        spread = max((seen**2).mean() / seen.mean() ** 2, 1.0)
        most = 10.0 * completion.min() + 100.0 * spread * seen.mean() / speed.mean()
        assert action == (0 if completion[0] <= most else completion.argmin()), number
        overruled += action != 0
        wait[action] += size[number] / speed[action]
    assert 50 < overruled < 900


def settled(env, params, rule):
    """Mean completion in the second half of a run, relative to the first, and to that of greedy."""
    halves = {}
    for name, one in {"greedy": jaxlb.scheduler("greedy"), "rule": rule}.items():
        first, both = (
            jaxlb.rollout(env, params, one, jax.random.key(0), LANES, number).mean_completion.mean()
            for number in (HALF, 2 * HALF)
        )
        halves[name] = (2.0 * both - first) / first
    return float(halves["rule"] / halves["greedy"])


LANES, HALF = 16, 31_250
"""A million tasks."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "arrival"),
    [
        ("exponential", "poisson"),
        ("deterministic", "batch"),
        ("bounded-pareto", "bursty"),
        ("bounded-pareto", "batch"),
        ("lognormal", "diurnal"),
        ("bimodal", "bursty"),
    ],
)
def test_what_would_overload_a_processor_does_not_drift(size, arrival):
    """Where backlog grows all the time, the second half has three times that of the first."""
    env, params = jaxlb.make("stable", load=0.98, size=size, arrival=arrival)
    assert settled(env, params, guarded(SLOWEST)) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_arbitrary_prices_do_not_drift(seed):
    module = acting.prices()
    network = module.init(jax.random.key(seed), acting.no_features(2))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
    network = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), network)
    env, params = jaxlb.make("stable", load=0.98)
    assert settled(env, params, acting.priced(module, Universal(network, Objective()))) < 1.5


def test_without_the_guard_it_drifts():
    env, params = jaxlb.make("stable", load=0.98)
    ratios = [
        jaxlb.rollout(env, params, SLOWEST, jax.random.key(0), 4, number).mean_completion.mean()
        for number in (500, 1000)
    ]
    assert (2.0 * ratios[1] - ratios[0]) / ratios[0] > 2.5
