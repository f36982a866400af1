"""LWR on predicted loads: the same choices where figures are fresh, better ones where they are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import drift, workload
from jaxlb.loop import first_arrival
from jaxlb.params import with_lane_axis
from jaxlb.scheduling import predictive
from tests import small
from tests.lines import from_plain

REPORTED = from_plain({"load": 1.0})


def actions(env, params, scheduler, key, lanes=(8,), num_tasks=300):
    tasks = workload.sample(key, with_lane_axis(params, lanes), num_tasks, lanes)
    return np.asarray(jaxlb.replay(env, params, scheduler, tasks, key).action)


@pytest.mark.parametrize(
    "scenario", small.mostly_slow(["stable", "heavy-tail", "slow-servers", "large"], ["heavy-tail"])
)
def test_where_figures_are_fresh_drift_aware_is_lwr(key, scenario):
    env, params = jaxlb.make(scenario)
    lwr = actions(env, params, jaxlb.scheduler("lwr"), key)
    found = actions(env, params, jaxlb.scheduler("drift-aware"), key)
    np.testing.assert_array_equal(found, lwr)


@pytest.mark.slow
def test_a_prediction_that_says_nothing_new_changes_nothing(key):
    """The reported load as prediction: whatever detector, LWR's choices."""
    env, params = jaxlb.make("stale")
    lwr = actions(env, params, jaxlb.scheduler("lwr"), key)
    for name in drift.DETECTORS:
        detector = drift.detector(name)
        scheduler = predictive.predicting("idle", *REPORTED, detector, hold=5)
        np.testing.assert_array_equal(actions(env, params, scheduler, key), lwr)


def test_always_on_it_is_least_work_left_where_the_backlog_is_known(key):
    env, params = jaxlb.make("stale")
    scheduler = predictive.predicting("knowing", *from_plain({"reckoned backlog": 1.0}), None)
    fresh, fresh_params = jaxlb.make("stale", measure_interval=None)
    informed = actions(fresh, fresh_params, jaxlb.scheduler("lwl"), key)
    found = actions(env, params, scheduler, key)
    # Sums in another order: a backlog of nearly nothing may be none, nothing else differs.
    assert (found == informed).mean() > 0.99


def test_an_alarm_lasts_as_long_as_it_is_to(key):
    never = from_plain({"load": 0.0}, level=5.0, error=1.0)
    scheduler = predictive.predicting("held", *never, drift.threshold(1.0), hold=3)
    env, params = jaxlb.make("stable")
    memory = scheduler.start(env, params, ())
    state, _ = first_arrival(env, params, key, ())
    observation = env.observe(state, params, key)
    trusted = []
    for load in (0.0, 5.0, 5.0, 5.0, 5.0):
        seen = observation.replace(load=jnp.full(4, load), wait=jnp.full(4, load))
        _, memory = scheduler.act(scheduler.variables, memory, seen, key)
        trusted.append(int(memory.trusted))
    assert trusted == [3, 2, 1, 0, 0]


@pytest.mark.slow
def test_stale_figures_cost_it_little(key):
    env, params = jaxlb.make("stale")
    entries = {name: jaxlb.scheduler(name) for name in ("lwr", "rr", "drift-aware", "predictive")}
    table = jaxlb.compare(env, params, entries, key, num_lanes=64, num_tasks=500, warmup=200)
    ours, lwr = table.row("drift-aware"), table.row("lwr")
    assert ours.sla_violation_rate < 0.25 * lwr.sla_violation_rate
    assert ours.mean_completion < 0.5 * min(lwr.mean_completion, table.row("rr").mean_completion)


def test_types_stay(key):
    scheduler = jaxlb.scheduler("drift-aware", detector="cusum", hold=4)
    env, params = jaxlb.make("two-server")
    with_lanes = with_lane_axis(params, (3,))
    memory = scheduler.start(env, with_lanes, (3,))
    tasks = workload.sample(key, with_lanes, 2, (3,))
    state = env.start(with_lanes, jax.tree.map(lambda leaf: leaf[0], tasks), key)
    action, after = jax.jit(scheduler.act)(
        scheduler.variables, memory, env.observe(state, with_lanes, key), key
    )
    assert action.dtype == jnp.int32 and action.shape == (3,)
    chex.assert_trees_all_equal_shapes_and_dtypes(memory, after)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="hold = 0: must be a whole number of at least 1"):
        jaxlb.scheduler("drift-aware", hold=0)
    with pytest.raises(ValueError, match="unknown detector 'kswin'"):
        jaxlb.scheduler("drift-aware", detector="kswin")
