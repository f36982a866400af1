"""What is remembered of the loads: averages as pandas has them, backlogs kept account of exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.replaying import watch
from jaxlb.scheduling import tracking
from jaxlb.scheduling.tracking import SPAN, WINDOW
from jaxlb.types import Scheduler


def act(variables, memory, observation, key):
    memory, seen = tracking.update(memory, observation)
    return jnp.argmin(seen.load / seen.speed, 0).astype(jnp.int32), memory


RULE = Scheduler("tracking lwr", (), lambda env, *given: tracking.start(*given), act)


def tracked(rule, memory, observation):
    memory, seen = tracking.update(memory, observation)
    names = tuple(tracking.FEATURES)
    return dict(zip(names, tracking.features(names, memory, seen), strict=True)), seen


def seen(key, lanes=(3,), num_tasks=60, **overrides):
    """Features, and observations, of tasks under LWR."""
    env, params = jaxlb.make("stale", **overrides)
    with_lanes = jaxlb.params.with_lane_axis(params, lanes)
    tasks = workload.sample(key, with_lanes, num_tasks, lanes)
    return jax.tree.map(np.asarray, watch(env, params, RULE, tasks, key, tracked)[1])


def test_moving_figures_are_those_of_pandas(key):
    features, observation = seen(key, measure_noise=0.5)
    for lane in range(3):
        loads = pd.DataFrame(observation.load[:, :, lane].astype(float))
        windows = loads.rolling(WINDOW, min_periods=1)
        for name, expected in {
            "sma": windows.mean(),
            "volatility": windows.std(ddof=0),
            "ewma": loads.ewm(span=SPAN, adjust=False).mean(),
            "trend": windows.apply(
                lambda x: np.polyfit(np.arange(len(x)), x, 1)[0] if len(x) > 1 else 0.0, raw=True
            ),
        }.items():
            np.testing.assert_allclose(features[name][:, :, lane], expected, rtol=1e-4, atol=1e-4)
    assert features["volatility"].max() > 1


@pytest.mark.parametrize("interval", [None, 0.05, 0.5, 5.0, 20.0])
def test_where_sizes_are_seen_the_backlog_is_known_however_old_the_figures(key, interval):
    features, observation = seen(key, num_tasks=400, measure_interval=interval)
    truth = observation.truth.wait * observation.speed
    np.testing.assert_allclose(features["reckoned backlog"], truth, atol=1e-4)
    stale = np.abs(observation.load - truth).max()
    assert stale == 0 if interval is None else stale > 0.5


def test_hidden_sizes_are_taken_for_the_mean(key):
    features, observation = seen(key, num_tasks=400, size_visible=False)
    truth = observation.truth.wait * observation.speed
    error = features["reckoned backlog"] - truth
    assert np.abs(error).max() > 1
    assert np.sqrt((error**2).mean()) < 0.7 * np.sqrt(((observation.load - truth) ** 2).mean())


def test_one_environment_is_tracked_like_many(key):
    env, params = jaxlb.make("stale")
    tasks = workload.sample(key, jaxlb.params.with_lane_axis(params, (2,)), 50, (2,))
    together, _ = watch(env, params, RULE, tasks, key, tracked)[1]
    alone, _ = watch(env, params, RULE, jax.tree.map(lambda leaf: leaf[:, 1], tasks), key, tracked)[1]
    for name, feature in alone.items():
        np.testing.assert_allclose(feature, together[name][..., 1], rtol=1e-6, atol=1e-6)
