"""Tables: intervals that cover, quantiles that are right, the same tasks for all."""

import json

import jax
import numpy as np
import pytest
from scipy import integrate, stats

import jaxlb
from jaxlb import stationarity
from jaxlb.statistics import (
    Histogram,
    bin_edges,
    count_completions,
    mean_interval,
    quantile_interval,
    ratio_interval,
)
from jaxlb.workload import sizes
from tests import small


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
    times = np.array([[1e-37, 0.5, 1.0, 3e38]], np.float32)
    found = count_completions(times, 4)
    edges = bin_edges(found.first, found.last)
    assert (np.diff(edges) > 0).all() and (edges[1:] / edges[:-1]).max() < 1.01
    assert found.counts.sum() == 4 and found.counts[0, 0] == 1 and found.counts[3, -1] == 1
    place = np.flatnonzero(found.counts[2])[0]
    assert edges[place] == 1.0
    assert edges[0] <= times[0, 0] < edges[1] and edges[-2] <= times[0, 3] < edges[-1]


def test_histograms_add_up():
    times = np.random.default_rng(0).lognormal(0.0, 8.0, (50, 6)).astype(np.float32)
    whole = count_completions(times, 3)
    parts: Histogram = count_completions(times[:20], 3) + count_completions(times[20:], 3)
    assert (parts.first, parts.last) == (whole.first, whole.last)
    np.testing.assert_array_equal(parts.counts, whole.counts)


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_quantiles_do_not_depend_on_the_unit(unit, key):
    env, params = jaxlb.make("stable", mean_size=unit)
    rules = {"lwr": jaxlb.scheduler("lwr")}
    row = jaxlb.compare(env, params, rules, key, num_lanes=40, num_tasks=200, warmup=100).row("lwr")
    usual = few("stable", key, ("lwr",), 40, 200, 100).row("lwr")
    for figure in ("mean_completion", "p50_completion", "p95_completion", "p99_completion"):
        # A bin is a hundredth of its place wide, and lies elsewhere in another unit.
        np.testing.assert_allclose(getattr(row, figure) / unit, getattr(usual, figure), rtol=0.01)
        np.testing.assert_allclose(
            np.array(getattr(row, f"{figure}_ci")) / unit, getattr(usual, f"{figure}_ci"), rtol=0.01
        )


def few(name, key, rules, num_lanes=64, num_tasks=1000, warmup=250, **overrides):
    chosen = {rule: jaxlb.scheduler(rule) for rule in rules}
    made = jaxlb.make(name, **overrides)
    return jaxlb.compare(*made, chosen, key, num_lanes=num_lanes, num_tasks=num_tasks, warmup=warmup)


@pytest.mark.slow
def test_queue_lengths_are_exact_however_long(key):
    """Counted however far they go, rules that ask for lengths do what they do where all fits."""
    system = {
        "speed": [3, 3, 1, 1],
        "squared_cv": 9.0,
        "size": "lognormal",
        "arrival": "bursty",
        "load": 0.85,
    }
    rules = ("least-connections", "lwr")
    short = few("stable", key, rules, queue_capacity=2, **system)
    long = few("stable", key, rules, queue_capacity=1250, **system)
    for rule in rules:
        assert short.row(rule).queue_overflows == 0
        assert short.row(rule).mean_completion == pytest.approx(long.row(rule).mean_completion, rel=1e-6)
        assert short.row(rule).oracle_agreement == long.row(rule).oracle_agreement


@pytest.mark.slow
def test_lengths_too_long_for_memory_are_told(key, monkeypatch):
    monkeypatch.setattr("jaxlb.lengths._MOST_BYTES", 4 * 4 * 4 * 64)  # of 4 places for each queue
    with pytest.warns(
        UserWarning, match=r"jsq: [\d,]+ tasks found queues longer than 4, and there is no room"
    ):
        table = few("stable", key, ("jsq", "rr"), queue_capacity=2)
    assert table.row("jsq").queue_overflows > 0 and table.row("jsq").mark == "told lengths that are too short"
    assert table.row("rr").queue_overflows == 0 and not table.row("rr").mark  # asks for no lengths


def test_what_has_not_settled_says_so(key):
    table = few("seed", key, ("rr", "lwr"))
    rr, lwr = table.row("rr"), table.row("lwr")
    assert lwr.stationary and lwr.hint is None and lwr.mean_completion_ci is not None
    assert not rr.stationary and "busy all the time and falling behind: this rule overloads it" in rr.hint
    intervals = {name: value for name, value in rr.figures.items() if name.endswith("_ci")}
    for name in ("sla_violation_rate_by_priority_ci", "mean_completion_by_priority_ci"):
        assert intervals.pop(name) == [None] * 3
    assert len(intervals) == 16 and set(intervals.values()) == {None}
    assert json.loads(table.to_json())["schedulers"][0]["stationary"] is False
    # Nothing is compared with what has not settled.
    chosen = {rule: jaxlb.scheduler(rule) for rule in ("rr", "lwr")}
    run = {"num_lanes": 64, "num_tasks": 1000, "warmup": 250}
    against = jaxlb.compare(*jaxlb.make("seed"), chosen, key, **run, baseline="rr").row("lwr")
    assert against.stationary and against.mean_completion_ci is not None
    assert against.completion_difference_ci is None
    # In the states that another rule visits it has a mean.
    snapshot = jaxlb.compare(*jaxlb.make("seed"), chosen, key, **run, behaviour=chosen["lwr"])
    assert snapshot.row("rr").stationary and snapshot.row("rr").mean_completion_ci is not None


@pytest.mark.parametrize("num_lanes", [64, 1])
def test_a_warmup_too_short_for_the_load_says_so(num_lanes, key):
    """M/M/1 at load 0.99: a mean response of 100 that 2,500 tasks do not show."""
    row = few("stable", key, ("rr",), num_lanes, 2000, 500, speed=[1.0], load=0.99).row("rr")
    assert not row.stationary and row.mean_completion_ci is None
    assert "raise warmup (500 tasks now, theory asks for 1" in row.hint


@pytest.mark.slow
def test_settled_rows_are_called_settled(key):
    """Of ten thousand of them one is not, by each sign; 40 keys."""
    env, params = jaxlb.make("stable", load=0.6)
    run = {"num_lanes": 16, "num_tasks": 300, "warmup": 150}
    for each in jax.random.split(key, 40):
        row = jaxlb.compare(env, params, {"rr": jaxlb.scheduler("rr")}, each, **run).row("rr")
        assert row.stationary, row.hint


def test_the_transient_of_an_empty_queue_is_that_of_theory():
    """Of reflected Brownian motion, whose law at t is known (Harrison 1985): the mean by integrating it."""
    for t in (0.1, 0.5, 1.0, 2.0, 5.0):

        def above(x, t=t):
            return stats.norm.sf((x + t) / t**0.5) + np.exp(-2.0 * x) * stats.norm.cdf((t - x) / t**0.5)

        mean, _ = integrate.quad(above, 0.0, np.inf)
        assert stationarity._deviation(t) == pytest.approx(1.0 - mean / 0.5, abs=1e-7)


def test_rows_agree_with_rollouts_on_the_same_key(key):
    table = small.compared(key)
    env, params = jaxlb.make("seed")
    summary = jaxlb.rollout(env, params, jaxlb.scheduler("greedy"), key, 40, 150, 200)
    row = table.row("greedy")
    np.testing.assert_allclose(row.mean_completion, np.mean(summary.mean_completion), rtol=1e-5)
    np.testing.assert_allclose(row.sla_violation_rate, np.mean(summary.sla_violation_rate), rtol=1e-6)
    shares = np.sum(summary.class_count, 1) / np.sum(summary.class_count)
    np.testing.assert_allclose(
        np.dot(row.sla_violation_rate_by_priority, shares), row.sla_violation_rate, rtol=1e-5
    )
    np.testing.assert_allclose(
        np.dot(row.mean_completion_by_priority, shares), row.mean_completion, rtol=1e-5
    )
    assert row.p50_completion < row.p95_completion < row.p99_completion
    assert row.p95_completion_ci[0] < row.p95_completion < row.p95_completion_ci[1]
    assert table.row("oracle").oracle_agreement == 1.0
    assert sum(one.counts.sum() for one in table.histograms.values()) == 4 * 40 * 150


def test_differences_are_paired(key):
    table = small.compared(key)
    assert table.baseline == "lwr"
    greedy, lwr = table.row("greedy"), table.row("lwr")
    np.testing.assert_allclose(
        greedy.completion_difference, greedy.mean_completion - lwr.mean_completion, rtol=1e-6
    )
    assert lwr.completion_difference == 0.0 and lwr.completion_difference_ci == (0.0, 0.0)
    width = lambda interval: interval[1] - interval[0]  # noqa: E731
    assert width(greedy.completion_difference_ci) < width(greedy.mean_completion_ci)


@pytest.mark.slow
def test_snapshot_asks_all_in_the_same_states(key):
    behaviour = jaxlb.scheduler("weighted-random")
    table = small.compared(key, schedulers=("rr", "greedy", "oracle", "weighted-random"), behaviour=behaviour)
    assert table.behaviour == "weighted-random"
    # In every single state the oracle's completion is the smallest.
    best = table.row("oracle").mean_completion
    assert table.row("greedy").mean_completion == best < table.row("rr").mean_completion
    # The behaviour scheduler carried out its own choices in a plain rollout of its own.
    env, params = jaxlb.make("seed")
    alone = jaxlb.rollout(env, params, jaxlb.scheduler("oracle"), key, 40, 150, 200)
    assert float(np.mean(alone.mean_completion)) != best


def test_a_snapshot_of_the_behaviour_itself_changes_nothing(key):
    plain = small.compared(key, schedulers=("lwr",))
    snapshot = small.compared(key, schedulers=("lwr",), behaviour=jaxlb.scheduler("lwr"))
    np.testing.assert_allclose(
        plain.row("lwr").mean_completion, snapshot.row("lwr").mean_completion, rtol=1e-6
    )


def test_progress_rises_to_one_over_all_schedulers(key):
    seen = []
    small.compared(key, schedulers=("rr", "lwr"), on_progress=lambda name, share: seen.append((name, share)))
    names, shares = zip(*seen, strict=True)
    assert list(dict.fromkeys(names)) == ["rr", "lwr"]
    assert list(shares) == sorted(shares) and shares[-1] == 1.0
    assert shares[names.index("lwr") - 1] == 0.5


def test_bad_requests_are_refused(key):
    with pytest.raises(ValueError, match=r"schedulers = \{\}"):
        small.compared(key, schedulers=())
    with pytest.raises(ValueError, match=r"unknown baseline 'lwrr'; did you mean"):
        small.compared(key, baseline="lwrr")
    with pytest.raises(ValueError, match="num_lanes = 0"):
        small.compared(key, num_lanes=0)
    with pytest.raises(ValueError, match="unknown row"):
        small.compared(key, schedulers=("rr",)).row("lwr")


def test_schedulers_carry_their_variables(key):
    env, params = jaxlb.make("stable")
    fixed = jaxlb.Scheduler(
        name="fixed",
        variables=jax.numpy.int32(3),
        start=lambda env, params, lanes: (),
        act=lambda variables, memory, o, key: (
            jax.numpy.full(o.size.shape, variables, jax.numpy.int32),
            memory,
        ),
    )
    entries = {"last": fixed, "first": fixed.replace(variables=jax.numpy.int32(0))}
    table = jaxlb.compare(env, params.replace(load=0.2), entries, key, num_lanes=4, num_tasks=50)
    # Equal processors, the same tasks: it does not matter which one gets them all.
    np.testing.assert_allclose(
        table.row("last").mean_completion, table.row("first").mean_completion, rtol=1e-6
    )


def test_queues_that_overflow_in_the_warm_up_alone_are_counted_further(key):
    """What a rule was told then moves what is counted."""
    runs = [
        few("stable", jax.random.key(16), ("jsq",), 1, 20, 100, load=0.9, queue_capacity=capacity).row("jsq")
        for capacity in (4, 120)
    ]
    assert runs[0].mean_completion == pytest.approx(runs[1].mean_completion, rel=1e-6)


def test_one_task_drifts_nowhere(key):
    row = few("stable", key, ("lwr",), 64, 1, 200, load=0.3).row("lwr")
    assert row.stationary and row.mean_completion_ci is not None


@pytest.mark.parametrize("unit", [1e-25, 5e18])
def test_the_warmup_that_theory_asks_for_has_no_unit(unit):
    def needed(mean):
        made = jaxlb.make("stable", size="lognormal", squared_cv=40.0, mean_size=mean)
        return stationarity.needed_warmup(*made)

    assert needed(unit) == pytest.approx(needed(1.0), rel=1e-4) and needed(1.0) > 2000
    endless = jaxlb.make("stable", size=sizes.BoundedPareto(1.0, np.inf, 1.5))
    assert stationarity.needed_warmup(*endless) is None


def test_sizes_may_differ_from_lane_to_lane(key):
    env, params = jaxlb.make("stable", load=0.5)
    params = params.replace(size=sizes.Exponential(jax.numpy.linspace(0.5, 1.5, 8)))
    table = jaxlb.compare(env, params, {"lwr": "lwr"}, key, num_lanes=8, num_tasks=50, warmup=100)
    assert table.row("lwr").mean_completion > 0


def test_who_moves_the_system_is_blamed(key):
    run = {"num_lanes": 32, "num_tasks": 500, "warmup": 100}
    rows = jaxlb.compare(*jaxlb.make("seed"), {"lwr": "lwr"}, key, **run, behaviour="rr").schedulers
    assert rows[0].hint.endswith("rr overloads it")
