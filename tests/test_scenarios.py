"""Scenarios: what they promise, and what `make` refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.workload import arrivals, sizes


def test_the_named_scenarios_are_there_and_valid():
    assert set(jaxlb.scenarios()) == {
        "seed", "stable", "heavy-tail", "heavy-tail-extreme", "slow-servers",
        "two-server", "stale", "shift", "park", "large",
    }  # fmt: skip
    for name in jaxlb.scenarios():
        env, params = jaxlb.make(name)
        env.check(params)
        env.check(env.default_params)


def test_scenarios_are_what_the_table_says():
    _, heavy = jaxlb.make("heavy-tail")
    np.testing.assert_allclose(heavy.speed, [0.5, 0.8, 1.2, 2.0])
    np.testing.assert_allclose(
        [heavy.load, heavy.size.low, heavy.size.high, heavy.size.tail_index], [0.7, 1, 1000, 1.5]
    )
    np.testing.assert_allclose(heavy.class_slack, [4.0])
    _, extreme = jaxlb.make("heavy-tail-extreme")
    np.testing.assert_allclose([extreme.size.high, extreme.size.tail_index], [10000, 1.1])
    _, slow = jaxlb.make("slow-servers")
    np.testing.assert_allclose(slow.speed, [0.2, 0.2, 0.2, 2.0])
    env, _ = jaxlb.make("two-server")
    assert not env.size_visible and not env.wait_visible
    env, stale = jaxlb.make("stale")
    np.testing.assert_allclose(stale.speed, [0.5, 0.5, 1, 1, 1, 1, 1.5, 1.5])
    assert float(stale.measure_interval) == 5.0 and float(stale.deadline_constant) == 3.0
    env, park = jaxlb.make("park")
    np.testing.assert_allclose(park.speed, np.arange(0.15, 1.06, 0.1), rtol=1e-6)
    np.testing.assert_allclose([park.size.mean(), 1 / workload.arrival_rate(park)], [300.0, 55.0], rtol=1e-5)
    assert env.reward == "holding-cost" and int(park.max_steps_in_episode) == 1000
    _, large = jaxlb.make("large")
    assert large.speed.shape == (64,) and float(large.speed[0]) == 0.25
    np.testing.assert_allclose(np.diff(np.log(large.speed)), np.log(16) / 63, rtol=1e-3)


def test_seed_reproduces_the_published_snapshot_table(key):
    """Round Robin 25.8 % agreement and 63.7 % violations, LWR 71.2 % and 42.6 %, oracle 39 % violations."""
    env, params = jaxlb.make("seed")
    chosen = {name: jaxlb.scheduler(name) for name in ("rr", "lwr", "oracle")}
    table = jaxlb.compare(
        env,
        params,
        chosen,
        key,
        num_lanes=1024,
        num_tasks=2500,
        warmup=1000,
        behaviour=jaxlb.scheduler("lwr"),
    )
    for name, agreement, within, violations, bound in [
        ("rr", 0.258, 0.01, 0.637, 0.015),
        ("lwr", 0.712, 0.015, 0.426, 0.015),
        ("oracle", 1.0, 0.0, 0.39, 0.01),
    ]:
        row = table.row(name)
        assert abs(row.oracle_agreement - agreement) <= within, (name, row.oracle_agreement)
        assert abs(row.sla_violation_rate - violations) <= bound, (name, row.sla_violation_rate)


def test_overrides_by_field_name_static_or_not():
    env, params = jaxlb.make(
        "heavy-tail", queue_capacity=7, load=0.3, tail_index=2.0, sla_weight=5, size_visible=False
    )
    assert (env.queue_capacity, env.size_visible) == (7, False)
    np.testing.assert_allclose([params.load, params.size.tail_index, params.sla_weight], [0.3, 2.0, 5.0])
    env, params = jaxlb.make(
        "stable", arrival=arrivals.Bursty(), size=sizes.LogNormal(), burst_ratio=4, squared_cv=9
    )
    np.testing.assert_allclose([params.arrival.burst_ratio, params.size.squared_cv], [4, 9])
    for count in (1, 2, 3, 9):
        env, params = jaxlb.make("heavy-tail", num_processors=count)
        assert params.speed.shape == (count,) and env.num_processors == count
        assert float(params.speed.min()) >= 0.5 and float(params.speed.max()) <= 2.0
    env, params = jaxlb.make("stable", speed=[3.0, 1.0])
    assert env.num_processors == 2
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in (params.load, params.max_steps_in_episode))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("heavytail", {}, "unknown scenario 'heavytail'; did you mean heavy-tail"),
        ("stable", {"laod": 0.5}, "unknown parameter 'laod'; did you mean load"),
        ("stable", {"load": 0}, "load = 0: must be above 0"),
        ("stable", {"load": -0.5}, "load = -0.5: must be above 0"),
        ("stable", {"load": float("nan")}, "load = nan: must be a number, not NaN"),
        ("stable", {"load": 1.0}, "load = 1: must be below 1"),
        ("stable", {"load": "much"}, "load = 'much': must be a number"),
        ("stable", {"load": None}, "load = nan: must be a number, not NaN"),
        ("stable", {"load": [0.5, 0.6]}, r"load = \[0.5, 0.6\]: must be one number"),
        ("stable", {"size": 5}, "size = 5: must be one of jaxlb.workload's"),
        ("stable", {"arrival": 5}, "arrival = 5: must be one of jaxlb.workload's"),
        ("stable", {"arrival": "poison"}, "unknown arrival process 'poison'; did you mean poisson"),
        ("stable", {"size": "pareto"}, "unknown size law 'pareto'; did you mean bounded-pareto"),
        ("stable", {"speed": [1.0, -1.0]}, "speed = -1: must be above 0"),
        ("stable", {"speed": [1.0, 0.0]}, "speed = 0: must be above 0"),
        ("stable", {"speed": [1.0, float("inf")]}, "speed = inf: must be finite"),
        ("stable", {"speed": []}, "must be a list, one speed for each processor"),
        ("stable", {"speed": 2.0}, "must be a list, one speed for each processor"),
        ("stable", {"speed": ["a"]}, r"speed = \['a'\]: must be a number"),
        ("stable", {"speed": [1.0], "num_processors": 2}, r"speed has shape \(1,\): must be \(2,\)"),
        ("stable", {"num_processors": 0}, "num_processors = 0: must be a whole number of at least 1"),
        ("stable", {"num_processors": 2.5}, "num_processors = 2.5: must be a whole number"),
        ("stable", {"queue_capacity": 0}, "queue_capacity = 0"),
        ("stable", {"size_visible": 1}, "size_visible = 1: must be True or False"),
        ("stable", {"reward": "holding"}, "unknown reward 'holding'; did you mean holding-cost"),
        ("heavy-tail", {"tail_index": 0}, "tail_index = 0: must be above 0"),
        ("heavy-tail", {"high": float("inf"), "tail_index": 0.9}, "tail_index, as high is infinite, = 0.9"),
        ("heavy-tail", {"high": 0.5}, "high / low = 0.5: must be above 1"),
        ("stale", {"measure_interval": 0}, "measure_interval = 0: must be above 0"),
        ("stable", {"measure_noise": -1}, "measure_noise = -1: must be at least 0"),
        ("stable", {"class_probability": [0.5, 0.4], "class_slack": [1, 2]}, "class_probability sums to 0.9"),
        ("stable", {"class_probability": [0.5, 0.5]}, "must both be"),
        ("stable", {"class_slack": [-1.0]}, "class_slack = -1: must be at least 0"),
        ("stable", {"max_steps_in_episode": 0}, "max_steps_in_episode = 0: must be at least 1"),
        ("stable", {"arrival": arrivals.Renewal(0.05)}, "squared_cv with stages=8, if not 0, = 0.05"),
        ("large", {"burst_fraction": 1.0}, "burst_fraction = 1: must be below 1"),
        ("stable", {"arrival": arrivals.Diurnal(1.2)}, "amplitude = 1.2: must be at most 0.95"),
    ],
)
def test_bad_values_are_refused_by_name(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make(name, **overrides)


def test_overload_is_accepted_where_it_is_meant():
    _, params = jaxlb.make("stable", load=1.5, allow_overload=True)
    assert float(params.load) == 1.5
