"""The optimal choice of two processors, beside an independent solver and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate

import jaxlb
from jaxlb import workload
from jaxlb.scheduling import optimal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speed", "load", "response"),
    [([1.0, 1.0], 0.8, 2.405), ([1.0, 0.2], 0.7, 2.951)],
)
def test_optimal_promises_what_an_independent_solver_found_and_keeps_it(speed, load, response, key):
    env, params = jaxlb.make("stable", speed=speed, load=load)
    values = jax.jit(optimal.solve)(params)
    assert float(values.mean_response) == pytest.approx(response, rel=3e-3)
    summary = jaxlb.rollout(env, params, jaxlb.scheduler("optimal"), key, 1024, 3000, 1000)
    lanes = np.asarray(summary.mean_completion, np.float64)
    assert abs(lanes.mean() - response) < 5 * lanes.std(ddof=1) / np.sqrt(len(lanes)) + 3e-3 * response
    # On the same tasks it beats whoever looks no further than the task itself.
    greedy = jaxlb.rollout(env, params, jaxlb.scheduler("greedy"), key, 1024, 3000, 1000)
    assert (np.asarray(greedy.mean_completion) - lanes).mean() > 0.01 * response


@pytest.mark.slow
def test_optimal_acts_on_its_values(key):
    # Its choices, task by task, from the solved table in float64 with SciPy's interpolation.
    env, params = jaxlb.make("stable", speed=[1.0, 0.5], load=0.7)
    tasks = workload.sample(key, params, 4000)
    outcome = jaxlb.replay(env, params, jaxlb.scheduler("optimal"), tasks, key)
    values = jax.jit(optimal.solve)(params)
    count = values.table.shape[0]
    knots = np.asarray(optimal._knots(jnp.arange(count), values.first, values.growth), np.float64)
    table = interpolate.RegularGridInterpolator(
        (knots, knots), np.asarray(values.table, np.float64), bounds_error=False, fill_value=None
    )
    wait, speed, close = np.zeros(2), np.array([1.0, 0.5]), 0
    for gap, size, action in zip(*map(np.asarray, (tasks.gap, tasks.size, outcome.action)), strict=True):
        wait = np.maximum(wait - float(gap), 0.0)
        done = wait + float(size) / speed
        after = table([[done[0], wait[1]], [wait[0], done[1]]])
        cost = done + after
        close += action != cost.argmin()
        assert cost[action] <= cost.min() + 2e-5 * abs(cost).max()
        wait[action] = done[action]
    assert close <= 4  # choices within rounding of each other


def test_optimal_is_for_two_processors(key):
    env, params = jaxlb.make("stable")
    with pytest.raises(ValueError, match="num_processors = 4: must be 2 for scheduler 'optimal'"):
        jaxlb.rollout(env, params, jaxlb.scheduler("optimal"), key, 4, 4)
