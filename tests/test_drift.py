"""Detectors alarm when the literature, and River, say they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from river import drift as river_drift

from jaxlb import drift
from tests import small


def alarms(detector, stream):
    """Whether each number `[T, ...]` raised an alarm."""
    _, found = jax.jit(lambda stream: jax.lax.scan(detector.update, detector.init(stream.shape[1:]), stream))(
        jnp.asarray(stream, jnp.float32)
    )
    return np.asarray(found)


def changing(seed):
    """A stream of four regimes."""
    random = np.random.default_rng(seed)
    parts = [(0.0, 1.0, 900), (1.5, 1.0, 700), (1.5, 0.3, 500), (0.2, 0.5, 900)]
    return np.concatenate([random.normal(mean, deviation, count) for mean, deviation, count in parts])


@pytest.mark.parametrize("seed", small.mostly_slow(range(3), [0]))
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (drift.page_hinkley(), "PageHinkley", {}),
        (
            drift.page_hinkley(delta=0.1, limit=8.0, forgetting=0.99, settle=10),
            "PageHinkley",
            {"delta": 0.1, "threshold": 8.0, "alpha": 0.99, "min_instances": 10},
        ),
    ],
)
def test_the_same_alarms_as_river(ours, theirs, options, seed):
    stream = changing(seed).astype(np.float32)
    other = getattr(river_drift, theirs)(**options)
    expected = []
    for number in stream:
        other.update(float(number))
        expected.append(other.drift_detected)
    found = alarms(ours, stream[:, None])[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(found), np.flatnonzero(expected))
    assert found.any()


@pytest.mark.parametrize(
    ("limit", "shift", "length"),
    [
        (4.0, 0.0, 167.7),
        (4.0, 1.0, 8.38),
        pytest.param(5.0, 0.0, 465.4, marks=pytest.mark.slow),
        pytest.param(5.0, 1.0, 10.38, marks=pytest.mark.slow),
    ],
)
def test_cusum_has_the_run_lengths_of_the_tables(key, limit, shift, length):
    """Means of at least 10,000 runs, 5 standard errors: fails a true program once in a million."""
    steps = int(60 * length)
    found = alarms(drift.cusum(0.5, limit), shift + jax.random.normal(key, (steps, 400)))
    runs = np.concatenate([np.diff(np.flatnonzero(lane), prepend=-1) for lane in found.T])
    # Runs cut off at the end were long ones: counting alarms over all time has no such bias but its edge.
    rate = found.sum() / found.size
    error = runs.std() / np.sqrt(len(runs))
    assert len(runs) > 10_000
    # The edge: the run that is under way at the end counts as time, not as an alarm.
    assert abs(1.0 / rate - length) < 5 * error + length / 60 * 0.6


def test_a_moving_average_keeps_to_its_limit_without_a_shift_and_finds_one(key):
    """Run lengths of the EWMA chart with rate 0.1, limit 2.814: 500 and 10.3 (Lucas and Saccucci 1990)."""
    quiet, shifted = (
        alarms(drift.moving_average(0.1, 2.814), shift + jax.random.normal(key, (20_000, 64)))
        for shift in (0.0, 1.0)
    )
    np.testing.assert_allclose(1.0 / quiet.mean(), 500.0, rtol=0.07)
    np.testing.assert_allclose(1.0 / shifted.mean(), 10.3, rtol=0.03)


def test_thresholds(key):
    x = jnp.array([[0.1], [-0.31], [0.29], [0.5]])
    np.testing.assert_array_equal(alarms(drift.threshold(0.3), x)[:, 0], [False, True, False, True])
    noise = jax.random.normal(key, (5000, 40))
    found = alarms(drift.adaptive_threshold(factor=3.0, rate=0.005), 5.0 + 0.01 * noise)
    # P(|normal| > 3) = 0.0027, and somewhat more as the deviation is an estimate of 200 numbers.
    assert 0.0022 < found[500:].mean() < 0.0045
    assert not found[:30].any()
    jump = alarms(drift.adaptive_threshold(), jnp.concatenate([noise, 8.0 + noise[:1]]))
    assert jump[-1].mean() > 0.95


@pytest.mark.parametrize("name", drift.DETECTORS)
def test_streams_do_not_disturb_each_other_and_types_stay(key, name):
    detector = drift.detector(name)
    streams = jnp.asarray(np.stack([changing(seed)[:1500] for seed in range(6)], 1), jnp.float32)
    together = alarms(detector, streams.reshape(-1, 2, 3)).reshape(-1, 6)
    alone = np.stack([alarms(detector, streams[:, lane]) for lane in range(6)], 1)
    np.testing.assert_array_equal(together, alone)
    state = detector.init((2, 3))
    after, _ = detector.update(state, streams[0].reshape(2, 3))
    kinds = [(leaf.dtype, leaf.shape, leaf.weak_type) for leaf in jax.tree.leaves(state)]
    assert [(leaf.dtype, leaf.shape, leaf.weak_type) for leaf in jax.tree.leaves(after)] == kinds


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="unknown detector 'kswin'"):
        drift.detector("kswin")
    with pytest.raises(ValueError, match="limit = 0: must be above 0"):
        drift.cusum(limit=0.0)


@pytest.mark.parametrize("name", drift.DETECTORS)
def test_a_detector_set_to_a_rate_alarms_at_that_rate(name):
    """On other numbers than it was set on, skewed ones at that; 4 standard errors of 100 streams."""
    set_key, test_key = jax.random.split(jax.random.key(5))
    quiet, other = (jax.random.gumbel(key, (4000, 100)) for key in (set_key, test_key))
    detector = drift.calibrated(name, quiet, 0.01)
    found = alarms(detector, other).mean(0)
    assert abs(found.mean() - 0.01) < 4 * found.std() / np.sqrt(100) * np.sqrt(2) + 1e-4
