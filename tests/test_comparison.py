"""Tables: intervals that cover, quantiles that are right, the same tasks for all."""

import json

import jax
import numpy as np
import pytest
from scipy import stats

import jaxlb
from jaxlb.comparison import bin_edges, count_completions, mean_interval, quantile_interval, ratio_interval


def test_quantiles_of_a_known_law_and_their_coverage():
    # Lanes are independent but a lane's tasks share a factor, as a busy system's do.
    covered, exact = 0, stats.lognorm(np.sqrt(1.25)).ppf(0.95)
    rng = np.random.default_rng(0)
    for _ in range(200):
        lane = rng.normal(size=256) * 0.5
        times = np.exp(lane + rng.normal(size=(200, 256))).astype(np.float32)
        value, (low, high) = quantile_interval(count_completions(times, 128), 0.95)
        np.testing.assert_allclose(value, np.quantile(times, 0.95), rtol=2e-3)
        covered += low <= exact <= high
    # 95 % intervals: outside 178..200 with probability below 10^-3.
    assert 178 <= covered <= 200


def test_mean_and_ratio_intervals_cover():
    rng = np.random.default_rng(1)
    means = ratios = 0
    for _ in range(400):
        lanes = rng.exponential(size=30)
        _, (low, high) = mean_interval(lanes)
        means += low <= 1.0 <= high
        count = rng.poisson(50, 60).astype(float)
        _, (low, high) = ratio_interval(rng.binomial(count.astype(int), 0.2).astype(float), count)
        ratios += low <= 0.2 <= high
    assert 355 <= means <= 400 and 355 <= ratios <= 400
    assert mean_interval(np.array([3.0])) == (3.0, None)
    np.testing.assert_allclose(
        mean_interval(np.array([1.0, 2.0, 3.0]))[1], 2.0 + np.array([-1, 1]) * 4.302652729911275 / 3**0.5
    )


def test_bins_are_fine_and_nothing_falls_outside():
    edges = bin_edges()
    assert (np.diff(edges) > 0).all() and (edges[1:] / edges[:-1]).max() < 1.01
    times = np.array([[1e-30, 0.5, 1.0, 1e30]], np.float32)
    counts = count_completions(times, 4)
    assert counts.sum() == 4 and counts[0, 0] == 1 and counts[3, -1] == 1
    place = np.flatnonzero(counts[2])[0]
    assert edges[place] == 1.0


def small(key, schedulers=("rr", "lwr", "greedy", "oracle"), scenario="seed", **options):
    env, params = jaxlb.make(scenario)
    chosen = {name: jaxlb.scheduler(name) for name in schedulers}
    counts = {"num_lanes": 40, "num_tasks": 150, "warmup": 30} | options
    return jaxlb.compare(env, params, chosen, key, **counts)


def test_rows_agree_with_rollouts_on_the_same_key(key):
    table = small(key)
    env, params = jaxlb.make("seed")
    summary = jaxlb.rollout(env, params, jaxlb.scheduler("greedy"), (), key, 40, 150, 30)
    row = table.row("greedy")
    np.testing.assert_allclose(row.mean_completion, np.mean(summary.mean_completion), rtol=1e-5)
    np.testing.assert_allclose(row.sla_violation_rate, np.mean(summary.sla_violation_rate), rtol=1e-6)
    shares = np.sum(summary.class_count, 1) / np.sum(summary.class_count)
    np.testing.assert_allclose(
        np.dot(row.sla_violation_rate_by_priority, shares), row.sla_violation_rate, rtol=1e-5
    )
    assert row.p50_completion < row.p95_completion < row.p99_completion
    assert row.p95_completion_ci[0] < row.p95_completion < row.p95_completion_ci[1]
    assert table.row("oracle").oracle_agreement == 1.0
    assert sum(histogram.sum() for histogram in table.histograms.values()) == 4 * 40 * 150


def test_differences_are_paired(key):
    table = small(key)
    assert table.baseline == "lwr"
    greedy, lwr = table.row("greedy"), table.row("lwr")
    np.testing.assert_allclose(
        greedy.completion_difference, greedy.mean_completion - lwr.mean_completion, rtol=1e-6
    )
    assert lwr.completion_difference == 0.0 and lwr.completion_difference_ci == (0.0, 0.0)
    width = lambda interval: interval[1] - interval[0]  # noqa: E731
    assert width(greedy.completion_difference_ci) < width(greedy.mean_completion_ci)


def test_json_has_the_promised_fields_and_no_nan(key):
    table = small(key, num_lanes=1, warmup=0)
    loaded = json.loads(table.to_json())
    assert loaded["scenario"] == "seed" and loaded["num_lanes"] == 1 and loaded["num_tasks"] == 150
    wanted = (
        "name mean_completion mean_completion_ci p50_completion p95_completion p99_completion mean_slowdown "
        "sla_violation_rate sla_violation_rate_ci oracle_agreement mean_reward load_imbalance queue_overflows"
    )
    for row in loaded["schedulers"]:
        assert set(wanted.split()) <= set(row)
        assert row["mean_completion_ci"] is None


def test_snapshot_asks_all_in_the_same_states(key):
    behaviour = jaxlb.scheduler("weighted-random")
    table = small(key, schedulers=("rr", "greedy", "oracle", "weighted-random"), behaviour=behaviour)
    assert table.behaviour == "weighted-random"
    # In every single state the oracle's completion is the smallest.
    best = table.row("oracle").mean_completion
    assert table.row("greedy").mean_completion == best < table.row("rr").mean_completion
    # The behaviour scheduler carried out its own choices in a plain rollout of its own.
    env, params = jaxlb.make("seed")
    alone = jaxlb.rollout(env, params, jaxlb.scheduler("oracle"), (), key, 40, 150, 30)
    assert float(np.mean(alone.mean_completion)) != best


def test_a_snapshot_of_the_behaviour_itself_changes_nothing(key):
    plain = small(key, schedulers=("lwr",))
    snapshot = small(key, schedulers=("lwr",), behaviour=jaxlb.scheduler("lwr"))
    np.testing.assert_allclose(
        plain.row("lwr").mean_completion, snapshot.row("lwr").mean_completion, rtol=1e-6
    )


def test_progress_rises_to_one_over_all_schedulers(key):
    seen = []
    small(key, schedulers=("rr", "lwr"), on_progress=lambda name, share: seen.append((name, share)))
    names, shares = zip(*seen, strict=True)
    assert list(dict.fromkeys(names)) == ["rr", "lwr"]
    assert list(shares) == sorted(shares) and shares[-1] == 1.0
    assert shares[names.index("lwr") - 1] == 0.5


def test_bad_requests_are_refused(key):
    with pytest.raises(ValueError, match=r"schedulers = \{\}"):
        small(key, schedulers=())
    with pytest.raises(ValueError, match=r"unknown baseline 'lwrr'; did you mean"):
        small(key, baseline="lwrr")
    with pytest.raises(ValueError, match="num_lanes = 0"):
        small(key, num_lanes=0)
    with pytest.raises(ValueError, match="unknown row"):
        small(key, schedulers=("rr",)).row("lwr")


def test_scheduler_pairs_carry_their_variables(key):
    env, params = jaxlb.make("stable")
    fixed = jaxlb.Scheduler(
        name="fixed",
        init=lambda key, observation: 0,
        start=lambda env, params, lanes: (),
        act=lambda variables, memory, o, key: (
            jax.numpy.full(o.size.shape, variables, jax.numpy.int32),
            memory,
        ),
    )
    entries = {"last": (fixed, jax.numpy.int32(3)), "first": (fixed, jax.numpy.int32(0))}
    table = jaxlb.compare(env, params.replace(load=0.2), entries, key, num_lanes=4, num_tasks=50)
    # Equal processors, the same tasks: it does not matter which one gets them all.
    np.testing.assert_allclose(
        table.row("last").mean_completion, table.row("first").mean_completion, rtol=1e-6
    )
