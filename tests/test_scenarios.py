"""Scenarios: what they promise, and what `make` refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import rewards, workload
from jaxlb.stations import FCFS
from jaxlb.workload import arrivals, sizes


def test_the_named_scenarios_are_there_and_valid():
    assert set(jaxlb.scenarios()) == {
        "seed", "stable", "heavy-tail", "heavy-tail-extreme", "slow-servers",
        "two-server", "stale", "shift", "park", "large", "time-sharing", "priorities", "multicore",
        "inference", "failures",
        "throttling",
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
    assert env.reward == rewards.HoldingCost() and int(park.max_steps_in_episode) == 1000
    _, large = jaxlb.make("large")
    assert large.speed.shape == (64,) and float(large.speed[0]) == 0.25
    np.testing.assert_allclose(np.diff(np.log(large.speed)), np.log(16) / 63, rtol=1e-3)


@pytest.mark.slow
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


def test_a_system_from_nothing_is_what_its_user_says():
    own, own_params = jaxlb.make(speed=[1.0] * 4, load=0.8, title="four")
    env, params = jaxlb.make("stable")
    chex.assert_trees_all_equal(own_params, params)
    assert (own.name, own.station, own.num_processors) == ("four", env.station, 4)
    assert jaxlb.make(num_processors=3, load=0.5)[0].name == "custom"
    assert jaxlb.make("stable", title="mine")[0].name == "mine"
    # Static settings alone decide whether all is compiled again.
    assert jaxlb.make(speed=[2.0] * 4, load=0.7, title="four")[0] == own
    row = jaxlb.compare(own, own_params, ["lwr"], jax.random.key(0), num_lanes=2, num_tasks=20)
    assert row.scenario == "four"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "speed or num_processors: must be given"),
        ({"load": 0.5}, "speed or num_processors: must be given"),
        ({"speed": [1.0, 2.0]}, "load: must be given"),
        ({"load": 0.5, "speed": 3.0}, "speed = 3.0: must be a list"),
        ({"load": 0.5, "speed": []}, r"speed = \[\]: must be a list"),
        ({"load": 0.5, "speed": [1.0], "title": ""}, "title = '': must be a text"),
        ({"load": 0.5, "speed": [1.0], "sped": 1}, "unknown parameter 'sped'"),
    ],
)
def test_what_is_missing_of_a_system_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make(**settings)


def test_overrides_by_field_name_static_or_not():
    env, params = jaxlb.make(
        "heavy-tail", queue_capacity=7, load=0.3, tail_index=2.0, sla_weight=5, size_visible=False
    )
    assert (env.station, env.size_visible) == (FCFS(7), False)
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
        ("stable", {"load": None}, "load = None: must be a number"),
        ("stable", {"load": "0.5"}, "load = '0.5': must be a number"),
        ("stable", {"load": True}, "load = True: must be a number"),
        ("stable", {"load": 0.5 + 1j}, r"load = \(0.5\+1j\): must be a number"),
        ("stable", {"load": lambda: 0.5}, "load = <function .*>: must be a number"),
        ("stable", {"load": float("inf")}, "load = inf: must be finite"),
        ("stable", {"load": 1e-50}, "load = 1e-50: must be within float32"),
        ("stable", {"sla_weight": 1e300}, r"sla_weight = 1e\+300: must be within float32"),
        ("stable", {"mean_size": "2"}, "mean_size = '2': must be a number"),
        ("stable", {"speed": [1.0, "2"]}, r"speed = \[1.0, '2'\]: must be a number"),
        ("stable", {"speed": [1.0, True, None]}, r"speed = \[1.0, True, None\]: must be a number"),
        ("stable", {"speed": [[1.0], [2.0]]}, "must be a list, one speed for each processor"),
        ("stable", {"sla_weight": lambda task: 1.0}, "sla_weight = <function .*>: must be a number"),
        ("stable", {"reward": lambda state, outcome: 0.0}, "reward = <function "),
        (
            "stable",
            {"max_steps_in_episode": 3e9},
            r"max_steps_in_episode = 3e\+09: must be at most 2147483647",
        ),
        ("stable", {"max_steps_in_episode": 2.5}, "max_steps_in_episode = 2.5: must be a whole number"),
        ("stable", {"queue_capacity": 2**31}, "queue_capacity = 2147483648: must be at most 2147483647"),
        ("stable", {"nominal_speed": [1.0]}, r"nominal_speed has shape \(1,\): must be \(4,\)"),
        ("stable", {"sla_weight": [1.0, 2.0]}, r"sla_weight has shape \(2,\): must be one number, or \(1,\)"),
        ("stable", {"size": sizes.Uniform(float("nan"), 1.0)}, "low = nan: must be a number, not NaN"),
        ("stable", {"size": sizes.Uniform(2.0, 1.0)}, "high - low = -1: must be at least 0"),
        ("stable", {"size": sizes.Bimodal(2.0, 1.0)}, "large - small = -1: must be at least 0"),
        ("stable", {"size": sizes.Empirical(jnp.array([1.0, 2.0]))}, "the largest first"),
        ("shift", {"large_fraction": 0.6}, "large_fraction = 0.6: must be at most 0.5"),
        ("stable", {"load": [0.5, 0.6]}, r"load = \[0.5, 0.6\]: must be one number"),
        ("stable", {"size": 5}, "size = 5: is no size law"),
        ("stable", {"arrival": 5}, "arrival = 5: is no arrival process"),
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
    with pytest.raises(ValueError, match=message) as caught:
        jaxlb.make(name, **overrides)
    assert "\n" not in str(caught.value)


def test_overload_is_accepted_where_it_is_meant():
    _, params = jaxlb.make("stable", load=1.5, allow_overload=True)
    assert float(params.load) == 1.5


@pytest.mark.slow
def test_overload_that_is_not_meant_is_refused_wherever_tasks_are_drawn(key):
    env, params = jaxlb.make("stable")
    lwr = jaxlb.scheduler("lwr")
    over = params.replace(load=1.5)
    trainings = [
        (jaxlb.train_dqn, jaxlb.DQNConfig()),
        (jaxlb.train_gnn, jaxlb.GNNConfig()),
        (jaxlb.train_predictor, jaxlb.PredictorConfig()),
    ]
    calls = [
        lambda env: jaxlb.rollout(env, over, lwr, key, 2, 3),
        lambda env: jaxlb.compare(env, over, {"lwr": lwr}, key, num_lanes=2, num_tasks=3),
    ]
    calls += [lambda env, t=train, c=config: t(env, over, c, key) for train, config in trainings]
    for call in calls:
        with pytest.raises(ValueError, match=r"load = 1.5: must be below 1.*; allow_overload .* permits it"):
            call(env)
    meant, _ = jaxlb.make("stable", load=1.5, allow_overload=True)
    for call in calls[:2]:
        call(meant)
    # Given tasks have the load they have, and what is traced cannot be known.
    tasks = workload.sample(key, params, 4)
    jaxlb.replay(env, over, lwr, tasks, key)
    means = jax.vmap(
        lambda load: jaxlb.rollout(env, params.replace(load=load), lwr, key, 2, 3).mean_completion
    )(jnp.array([0.5, 1.5]))
    assert means.shape == (2, 2)


def trace_of(priority=None, size=(1.0, 2.0, 3.0), gap=(1.0, 0.5, 1.5)):
    priority = None if priority is None else jnp.asarray(priority)
    return arrivals.Trace(jnp.asarray(gap), jnp.asarray(size), priority), sizes.Empirical(
        jnp.asarray(sorted(size, reverse=True))
    )


def test_what_must_agree_is_refused_where_it_does_not(key):
    arrival, size = trace_of([0, 1, 2])
    recorded = {"arrival": arrival, "size": size}
    told = (
        "task_priority = 2: must be at most 0, as the number of priority classes is 1; class_probability and "
        "class_slack, an entry for each, set it"
    )
    with pytest.raises(ValueError, match=told):
        jaxlb.make("stable", **recorded)
    env, params = jaxlb.make(
        "stable", **recorded, class_probability=[0.2, 0.3, 0.5], class_slack=[1.0, 2.0, 3.0]
    )
    summary = jaxlb.rollout(env, params, jaxlb.scheduler("lwr"), key, 8, 300)
    assert summary.class_count.sum() == 8 * 300
    # As rollout, compare and trainers ask.
    fewer = params.replace(class_probability=jnp.array([0.5, 0.5]), class_slack=jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="task_priority = 2: must be at most 1, as the number of"):
        jaxlb.rollout(env, fewer, jaxlb.scheduler("lwr"), key, 2, 3)

    with pytest.raises(
        ValueError, match="size: a law of mean 5 with a trace of mean size 2: must be the same"
    ):
        jaxlb.make("stable", arrival=arrival.replace(task_priority=None), size=sizes.LogNormal(5.0, 1.0))
    with pytest.raises(ValueError, match=r"a trace has shapes .*: must all be \(T,\)"):
        jaxlb.make("stable", arrival=trace_of([0, 0])[0], size=size)
    with pytest.raises(ValueError, match=r"mean of unit_gap = 2: must be at most 1.001"):
        jaxlb.make("stable", arrival=trace_of(gap=(2.0, 1.0, 3.0))[0], size=size)
    with pytest.raises(ValueError, match=r"task_priority = 0.5: must be a whole number"):
        jaxlb.make("stable", arrival=trace_of([0.0, 0.5, 0.0])[0], size=size)


def test_lanes_that_do_not_fit_are_refused_by_name(key):
    env, params = jaxlb.make("stable")
    lwr, ones = jaxlb.scheduler("lwr"), jnp.ones(3)
    odd = {
        "speed": jnp.ones((4, 3)),
        "nominal_speed": jnp.ones((4, 3)),
        "class_slack": jnp.ones((1, 3)),
        "class_probability": jnp.ones((1, 3)),
        "sla_weight": jnp.ones((1, 3)),
        "load": 0.5 * ones,
        "completion_weight": ones,
        "max_steps_in_episode": jnp.array([1, 2, 3]),
    }
    for name, value in odd.items():
        wrong = params.replace(**{name: value})
        env.check(wrong)  # lanes are not known yet
        env.check(wrong, (3,))
        with pytest.raises(ValueError, match=rf"{name} has lane axes \(3,\): must be \(\) or \(2,\)"):
            env.check(wrong, (2,))
        with pytest.raises(ValueError, match=rf"{name} has lane axes \(3,\): must be \(\)$"):
            jaxlb.replay(env, wrong, lwr, workload.sample(key, params, 4), key)
        with pytest.raises(ValueError, match=rf"{name} has lane axes \(3,\): must be \(\)$"):
            env.reset(key, wrong)
    for train, config in (
        (jaxlb.train_dqn, jaxlb.DQNConfig()),
        (jaxlb.train_gnn, jaxlb.GNNConfig()),
        (jaxlb.train_predictor, jaxlb.PredictorConfig()),
    ):
        with pytest.raises(ValueError, match="speed has lane axes"):
            train(env, params.replace(speed=odd["speed"]), config, key)
    with pytest.raises(ValueError, match=r"completion_weight has lane axes \(3,\)"):
        jaxlb.train_dqn(env, params, jaxlb.DQNConfig(weights=jaxlb.Weights(completion_weight=ones)), key)
    with pytest.raises(ValueError, match=r"load has lane axes \(2,\): must be \(\) or \(3,\)"):
        env.check(params.replace(speed=odd["speed"], load=jnp.full(2, 0.5)))
    with pytest.raises(ValueError, match=r"speed has lane axes \(3, 1\)"):
        env.check(params.replace(speed=jnp.ones((4, 3, 1))))
    with pytest.raises(
        ValueError, match=r"leaves of shapes \[\(3,\)\]: must be numbers, or fit lanes \(2,\)"
    ):
        env.check(params.replace(size=sizes.Exponential(ones)), (2,))
    env.check(params.replace(size=sizes.Exponential(ones)), (3,))


def test_lanes_may_have_classes_of_their_own(key):
    """Equal to rollouts of one setting each, lane by lane."""
    probability, slack = jnp.array([[0.2, 0.9, 0.5], [0.8, 0.1, 0.5]]), jnp.array([[1.0, 2, 3], [4, 5, 6]])
    env, params = jaxlb.make("stable", class_probability=[0.5, 0.5], class_slack=[1.0, 2.0])
    lwr = jaxlb.scheduler("lwr")
    both = jaxlb.rollout(
        env, params.replace(class_probability=probability, class_slack=slack), lwr, key, 3, 400
    )
    assert len(set(both.class_violations[0].tolist())) > 1
    for lane in range(3):
        own = params.replace(class_probability=probability[:, lane], class_slack=slack[:, lane])
        alone = jaxlb.rollout(env, own, lwr, key, 3, 400)
        np.testing.assert_array_equal(alone.class_count[:, lane], both.class_count[:, lane])
        np.testing.assert_array_equal(alone.class_violations[:, lane], both.class_violations[:, lane])
    with pytest.raises(ValueError, match=r"class_probability sums to 0.7: must sum to 1"):
        env.check(params.replace(class_probability=probability.at[0, 2].set(0.2), class_slack=slack))
