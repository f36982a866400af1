"""The scheduler of predicted completion times: decisions, feedback, wrong nominal speeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.learn import gnn
from jaxlb.learn.gnn import GNNConfig
from jaxlb.learn.settings import configure
from jaxlb.replaying import watch
from jaxlb.scheduling import features, regression
from jaxlb.scheduling.learned import Network
from jaxlb.scheduling.regression import Regression

PLACE = list(features.PROCESSOR_FEATURES).index("log forecast completion")
TOLD = Network(init=lambda key, x: (), apply=lambda parameters, x: x.processor[..., PLACE])
"""Predicts what it is told: the logarithm of forecast + size / speed."""


def variables(x) -> Regression:
    found = regression.untrained(TOLD, jax.random.key(0), x)
    # So that standardising changes nothing.
    moments = found.moments.replace(variance=jax.tree.map(lambda leaf: leaf - 1e-4, found.moments.variance))
    return found.replace(moments=moments)


def adaptive(scenario, **overrides):
    env, params = jaxlb.make(scenario, **overrides)
    _, state = env.reset(jax.random.key(0), params)
    seen = env.observe(state, params, jax.random.key(1))
    return env, params, variables(features.extract(seen, seen.wait, regression.NAMES))


def test_offsets_follow_tasks_once_they_have_departed():
    feedback = regression.no_feedback(2, ())
    action, completion, predicted = jnp.int32(1), jnp.float32(2.0), jnp.log(jnp.float32(0.5))
    feedback = regression.add_pending(feedback, action, completion, predicted)
    early = regression.update_offsets(feedback, jnp.float32(1.9), 0.25)
    np.testing.assert_array_equal(early.offset, [0.0, 0.0])
    late = regression.update_offsets(early, jnp.float32(0.2), 0.25)
    np.testing.assert_allclose(late.offset, [0.0, 0.25 * np.log(4.0)], rtol=1e-6)
    # Each task is heard of once.
    np.testing.assert_array_equal(regression.update_offsets(late, jnp.float32(5.0), 0.25).offset, late.offset)


def test_tasks_that_depart_together_count_each():
    feedback = regression.no_feedback(1, (3,))
    for _ in range(2):
        one, zero = jnp.ones(3), jnp.zeros(3)
        feedback = regression.add_pending(feedback, zero.astype(jnp.int32), one, zero - 1.0)
    found = regression.update_offsets(feedback, jnp.array([0.5, 1.0, 2.0]), 0.25).offset[0]
    np.testing.assert_allclose(found, [0.0, 1.0 - 0.75**2, 1.0 - 0.75**2], rtol=1e-6)


def test_the_newest_pending_tasks_are_remembered():
    feedback = regression.no_feedback(1, ())
    for index in range(regression.PENDING + 1):
        completion = jnp.float32(1.0 if index == 0 else 100.0)
        feedback = regression.add_pending(feedback, jnp.int32(0), completion, jnp.float32(0.0))
    assert float(regression.update_offsets(feedback, jnp.float32(2.0), 0.5).offset[0]) == 0.0
    assert float(regression.update_offsets(feedback, jnp.float32(101.0), 0.5).offset[0]) > 4.0


def test_decisions_on_a_distribution():
    """The expected completion is that of a log-normal law; the safe choice may be the slower one."""
    mean, spread = jnp.log(jnp.array([1.0, 1.5])), jnp.array([1.2, 0.1])
    expected = regression.cost("completion", mean, spread, jnp.float32(2.0))
    np.testing.assert_allclose(np.exp(expected), [np.exp(0.72), 1.5 * np.exp(0.005)], rtol=1e-5)
    draws = jnp.exp(mean + spread * jax.random.normal(jax.random.key(0), (200_000, 2)))
    late = (draws > 2.0).mean(0)
    by_probability = regression.cost("violation", mean, spread, jnp.float32(2.0))
    assert int(jnp.argmin(by_probability)) == int(jnp.argmin(late)) == 1
    np.testing.assert_allclose(jax.scipy.stats.norm.cdf(by_probability), late, atol=0.005)  # 5 sd
    assert int(jnp.argmin(regression.cost("violation", mean, spread, jnp.float32(np.inf)))) in (0, 1)


@pytest.mark.slow
def test_an_exact_prediction_makes_greedy_choices(key):
    env, params, ours = adaptive("heavy-tail")
    entries = {"greedy": jaxlb.scheduler("greedy"), "gnn": regression.gnn(TOLD, ours)}
    table = jaxlb.compare(env, params, entries, key, num_lanes=8, num_tasks=500)
    assert table.row("gnn").oracle_agreement > 0.995
    np.testing.assert_allclose(
        table.row("gnn").mean_completion, table.row("greedy").mean_completion, rtol=1e-3
    )


def test_offsets_find_out_the_true_speeds(key):
    """What is told of a processor's speed is off by a factor: in logarithms, that is the offset."""
    env, params, ours = adaptive("heavy-tail", nominal_speed=[2.0, 1.2, 0.8, 0.5])
    scheduler = regression.gnn(TOLD, ours, adaptation=0.1)
    tasks = workload.sample(key, params, 1500)
    _, offset = watch(env, params, scheduler, tasks, key, lambda rule, memory, seen: memory[2].offset)
    expected = np.log(np.asarray(params.nominal_speed) / np.asarray(params.speed))
    np.testing.assert_allclose(offset[-1], expected, atol=1e-3)


def test_schedulers_are_told_the_nominal_speed_and_work_is_done_at_the_true_one(key):
    speed, nominal = [1.0, 2.0], [2.0, 1.0]
    env, params = jaxlb.make("stable", speed=speed, nominal_speed=nominal)
    plain_env, plain = jaxlb.make("stable", speed=speed)
    tasks = workload.sample(key, plain, 300)
    for name in ("rr", "oracle"):
        rule = jaxlb.scheduler(name)
        wrong, right = (
            jaxlb.replay(*system, rule, tasks, key) for system in ((env, params), (plain_env, plain))
        )
        for one, other in zip(jax.tree.leaves(wrong), jax.tree.leaves(right), strict=True):
            np.testing.assert_array_equal(one, other)

    def record(rule, memory, seen):
        return seen.speed, seen.wait, seen.load, seen.truth

    _, (given, wait, load, truth) = watch(env, params, jaxlb.scheduler("greedy"), tasks, key, record)
    np.testing.assert_array_equal(given[0], nominal)
    np.testing.assert_array_equal(truth.speed[0], speed)
    np.testing.assert_allclose(load, truth.wait * np.array(speed), rtol=1e-6)
    np.testing.assert_allclose(wait, load / np.array(nominal), rtol=1e-6)


def test_a_bad_nominal_speed_is_refused():
    with pytest.raises(ValueError, match=r"nominal_speed has shape \(2,\): must be \(4,\)"):
        jaxlb.make("stable", nominal_speed=[1.0, 2.0])
    with pytest.raises(ValueError, match="nominal_speed"):
        jaxlb.make("stable", nominal_speed=[1.0, 1.0, 1.0, 0.0])


def _assert_small(off):
    """Errors of predictions, relative: 3 % typically, and no more than one in a thousand above 8 %."""
    assert np.sqrt((off**2).mean()) < 0.03
    assert (np.abs(off) > 0.08).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("target", ["mean", "log-time", "distribution"])
def test_targets_are_what_they_say(key, target):
    """Sizes hidden, waits seen, equal speeds: completion is wait + an exponential variable of mean 1."""
    env, params = jaxlb.make("stable", size_visible=False)
    outputs = 2 if target == "distribution" else 1
    config = configure(GNNConfig, target=target, outputs=outputs, num_iterations=3000, num_lanes=200)
    result = jaxlb.train_gnn(env, params, config, key)
    held_out = config.replace(num_lanes=400)
    found = gnn.examples(env, params, held_out, result.scheduler, jnp.array(False), jax.random.key(5))
    wait = np.expm1(np.asarray(found.features.processor[..., 0])) / 8.0
    predicted = np.asarray(gnn.predicted(config, result.scheduler.variables, found.features))
    truth, busy = np.asarray(found.completion), (wait > 0.5) & (wait < 3.0)
    if target == "mean":
        off = predicted[busy] / (wait[busy] + 1.0) - 1.0
        _assert_small(off)
    elif target == "log-time":
        # E log(w + S) by quadrature over the size.
        p = (np.arange(2000) + 0.5) / 2000
        at = np.linspace(0.5, 3.0, 20)
        expected = np.exp(np.log(at[:, None] - np.log(p)).mean(1))
        off = predicted[busy] / np.interp(wait[busy], at, expected) - 1.0
        _assert_small(off)
    else:
        out = gnn._outputs(config, result.scheduler.variables, found.features)
        mean, spread = regression.estimate(result.scheduler.variables, out, 4)
        z = (np.log(truth) - np.asarray(mean)) / np.asarray(spread)
        assert abs(z.std() - 1.0) < 0.05


def test_bad_settings_are_refused(key):
    env, params = jaxlb.make("stable")
    for config, message in (
        (GNNConfig(decision="violation"), 'must be "distribution"'),
        (GNNConfig(target="distribution"), "needs \\(4, 2\\)"),
        (GNNConfig(target="choice", adaptation=0.1), "must be one of logarithms"),
        (GNNConfig(adaptation=0.0), "adaptation = 0"),
        (GNNConfig(sequence=101), "num_tasks = 100: must be a whole number of at least 101"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxlb.train_gnn(env, params, config, key)
