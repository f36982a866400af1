"""Rules on states where their choice is known, and on systems whose mean response is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxlb
from jaxlb import workload
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import resolved
from tests import small
from tests.choices import choose, observation


@pytest.mark.parametrize(
    ("name", "seen", "expected"),
    [
        ("jsq", {"wait": [0, 0, 0], "queue_length": [3, 1, 1]}, 1),
        ("least-connections", {"wait": [0, 0, 0], "queue_length": [3, 2, 2], "speed": [2, 1, 0.5]}, 0),
        ("least-connections", {"wait": [0, 0], "queue_length": [2, 1], "speed": [2, 1]}, 0),  # tie: fastest
        ("sed", {"wait": [0, 0], "queue_length": [2, 0], "speed": [2, 1]}, 1),
        ("sed", {"wait": [0, 0], "queue_length": [1, 0], "speed": [2, 1]}, 0),  # tie: fastest
        ("lwr", {"wait": [0, 0, 0], "load": [4, 1, 1], "speed": [8, 2, 2]}, 0),  # tie: lowest index
        ("lwr", {"wait": [9, 0], "load": [1, 4], "speed": [1, 5]}, 1),
        ("lwl", {"wait": [2, 1, 1], "speed": [9, 1, 2]}, 2),  # tie: fastest
        ("greedy", {"wait": [1, 0], "speed": [4, 0.5], "size": 1.0}, 0),
        ("greedy", {"wait": [1, 0], "speed": [4, 0.5], "size": 0.1}, 1),
        ("greedy", {"wait": [0, 0, 0], "speed": [1, 2, 2], "size": 1.0}, 1),
        ("oracle", {"wait": [1, 0], "speed": [4, 0.5], "size": 1.0}, 0),
        ("lwr-rr", {"wait": [0, 0, 0], "load": [5, 1, 4]}, 1),
        ("lwr-rr", {"wait": [0, 0, 0], "load": [5, 1, 1.05]}, 0),  # too close to call: the turn is 0's
    ],
)
def test_choices(name, seen, expected):
    assert choose(name, observation(**seen))[0] == expected


RULES = [name for name in jaxlb.schedulers() if name not in ("optimal", "hedge", "deadline-admission")]


@pytest.mark.parametrize("rule", small.mostly_slow(RULES, ["lwr"]))
def test_no_rule_chooses_a_processor_that_is_down_or_full(rule, key):
    heard = bool(jaxlb.scheduler(rule).departed)
    failing = {"speeds": "failing", "up_time": 5.0, "down_time": 5.0}
    env, params = jaxlb.make("heavy-tail", load=0.8, limit=3, answers=heard, **failing)
    tasks = jaxlb.workload.sample(key, params, 300, (8,))
    outcome, up = watch(env, params, jaxlb.scheduler(rule), tasks, key, lambda one, memory, seen: seen.up)
    chosen = np.take_along_axis(np.asarray(up), np.asarray(outcome.action)[:, None], 1)[:, 0]
    assert (chosen | ~np.asarray(up).any(1)).all()
    assert not (outcome.lost & np.asarray(up).any(1)).any()
    assert 0.02 < outcome.lost.mean() < 0.5
    assert 0.1 < np.asarray(up).mean() < 0.9
    assert len(np.unique(outcome.action)) > 1


def test_jsq_ties_can_go_to_the_fastest_or_be_split_evenly():
    seen = observation([0, 0, 0], queue_length=[1, 1, 2], speed=[1, 2, 3])
    assert choose("jsq", seen)[0] == 0
    assert choose("jsq", seen, ties="fastest")[0] == 1
    keys = jax.random.split(jax.random.key(1), 2000)
    scheduler = jaxlb.scheduler("jsq", ties="random")
    picked = np.asarray(jax.vmap(lambda key: scheduler.act(scheduler.variables, (), seen, key)[0])(keys))
    assert set(picked.tolist()) == {0, 1}
    assert stats.binomtest(int(picked.sum()), len(picked)).pvalue > 1e-4


def frequencies(name, seen, count=6000, **options):
    """How often each processor is chosen."""
    scheduler = jaxlb.scheduler(name, **options)
    keys = jax.random.split(jax.random.key(2), count)
    picked = jax.vmap(lambda key: scheduler.act(scheduler.variables, (), seen, key)[0])(keys)
    return np.bincount(np.asarray(picked), minlength=len(seen.speed))


@pytest.mark.parametrize(
    ("name", "seen", "shares"),
    [
        ("random", {"wait": [0, 0, 0, 0], "speed": [1, 2, 3, 4]}, [0.25] * 4),
        ("weighted-random", {"wait": [0, 0, 0, 0], "speed": [1, 2, 3, 4]}, [0.1, 0.2, 0.3, 0.4]),
        ("jiq", {"wait": [0] * 4, "speed": [1, 2, 3, 4], "queue_length": [0, 1, 0, 5]}, [0.25, 0, 0.75, 0]),
        ("jiq", {"wait": [0] * 4, "speed": [1, 2, 3, 4], "queue_length": [2, 1, 1, 5]}, [0.1, 0.2, 0.3, 0.4]),
        (
            "jiq(fastest=true)",
            {"wait": [0] * 4, "speed": [3, 2, 3, 4], "queue_length": [0, 0, 0, 5]},
            [0.5, 0, 0.5, 0],
        ),
        # Two samples with replacement: the shortest is missed with probability (2/3)^2.
        ("power-of-d", {"wait": [0] * 3, "queue_length": [0, 1, 2]}, [5 / 9, 3 / 9, 1 / 9]),
    ],
)
def test_random_rules_choose_with_their_probabilities(name, seen, shares):
    counts, shares = frequencies(name, observation(**seen)), np.array(shares)
    assert (counts[shares == 0] == 0).all()
    possible = shares > 0
    assert stats.chisquare(counts[possible], shares[possible] * counts.sum()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("speed", "load", "exact"),
    [
        # Bell and Stidham's formula for exponential sizes.
        ([0.5, 1.0, 2.5], 0.8, [0.327967, 0.756709, 2.115323]),
        ([0.1, 1.0, 2.5], 0.2, [0.0, 0.0, 0.72]),
        ([1.0, 1.0], 0.9, [0.9, 0.9]),
    ],
)
def test_the_static_split_is_the_best(speed, load, exact):
    env, params = jaxlb.make("stable", speed=speed, load=load)
    np.testing.assert_allclose(jaxlb.scheduler("static-split").start(env, params, ()), exact, atol=1e-6)


def test_the_static_split_equalises_what_one_more_task_costs():
    """Pollaczek and Khinchine's mean number of tasks, by differences; under sharing, sizes do not matter."""
    speed, settings = np.array([0.5, 1.0, 2.5]), {"size": "hyperexponential", "squared_cv": 10.0}
    rule = jaxlb.scheduler("static-split")

    def number(rates):
        load = rates / speed
        return load + 5.5 * load**2 / (1.0 - load)

    env, params = jaxlb.make("stable", speed=speed.tolist(), load=0.8, **settings)
    rates = np.asarray(rule.start(env, params, ()), np.float64)
    marginal = (number(rates + 1e-6) - number(rates - 1e-6)) / 2e-6
    np.testing.assert_allclose(marginal, marginal[0], rtol=1e-4)
    np.testing.assert_allclose(rates.sum(), 0.8 * speed.sum(), rtol=1e-5)
    shared = jaxlb.make("stable", speed=speed.tolist(), load=0.8, discipline="ps", **settings)
    np.testing.assert_allclose(rule.start(*shared, ()), [0.327967, 0.756709, 2.115323], atol=1e-6)


def turns(name, speed, count):
    seen, memory, picked = observation([0.0] * len(speed), speed=speed), None, []
    for _ in range(count):
        action, memory = choose(name, seen, memory=memory)
        picked.append(action)
    return picked


def test_round_robin_takes_turns():
    assert turns("rr", [1, 5, 1], 7) == [0, 1, 2, 0, 1, 2, 0]


def test_weighted_round_robin_is_smooth():
    # The published example of nginx's smooth algorithm: weights 5, 1, 1.
    assert turns("wrr", [5, 1, 1], 7) == [0, 0, 1, 0, 2, 0, 0]
    assert np.bincount(turns("wrr", [0.5, 0.8, 1.2, 2.0], 90)).tolist() == [10, 16, 24, 40]


OF_ONE_LANE = [name for name in jaxlb.schedulers() if jaxlb.scheduler(name).departed is not None]
"""Those that hear of departures are given lanes one by one; see tests/test_dispatchers.py."""


OF_LANES = sorted(set(jaxlb.schedulers()) - {"optimal", *OF_ONE_LANE})


@pytest.mark.parametrize("name", small.mostly_slow(OF_LANES, ["drift-aware", "guarded-sita", "jsq", "wrr"]))
def test_lanes_decide_alone_and_memory_keeps_its_types(name, key):
    """Lane n of many chooses as it would alone; works under vmap and scan."""
    env, params = jaxlb.make("heavy-tail", admission=name == "deadline-admission")
    scheduler = jaxlb.scheduler(name)
    rng = np.random.default_rng(0)
    lanes = 6
    many = observation(
        rng.exponential(5.0, (4, lanes)), speed=np.tile([[0.5], [0.8], [1.2], [2.0]], (1, lanes))
    )
    many = many.replace(
        size=jnp.asarray(rng.pareto(1.5, lanes) + 1.0, jnp.float32),
        queue_length=jnp.asarray(rng.integers(0, 4, (4, lanes)), jnp.int32),
    )
    many = many.replace(truth=many.truth.replace(size=many.size))
    many = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.broadcast_to(leaf, (lanes,)), many)
    memory = scheduler.start(env, with_lane_axis(params, (lanes,)), (lanes,))
    act = jax.jit(scheduler.act)
    action, after = act(scheduler.variables, memory, many, key)
    assert action.shape == (lanes,) and action.dtype == jnp.int32
    assert int(action.min()) >= 0 and int(action.max()) < env.num_actions
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), memory, after)
    if name not in (
        "random",
        "weighted-random",
        "static-split",
        "jiq",
        "power-of-d",
        "hedge",
        "tidal",
        "replicas",
    ):
        for lane in range(lanes):
            one = jax.tree.map(lambda leaf, lane=lane: leaf[..., lane] if leaf.ndim else leaf, many)
            alone, _ = act(scheduler.variables, scheduler.start(env, params, ()), one, key)
            assert int(alone) == int(action[lane])


def test_names_and_options_are_checked():
    with pytest.raises(ValueError, match="unknown scheduler 'lrw'; did you mean"):
        jaxlb.scheduler("lrw")
    with pytest.raises(ValueError, match=r"unknown option of scheduler 'power-of-d' 'k'"):
        jaxlb.scheduler("power-of-d", k=2)
    with pytest.raises(ValueError, match="d = 0: must be a whole number of at least 1"):
        jaxlb.scheduler("power-of-d", d=0)
    with pytest.raises(ValueError, match=r"share = -1: must be above 0"):
        jaxlb.scheduler("guarded-sita", share=-1)


def test_options_may_be_in_the_name():
    named = jaxlb.scheduler("guarded-sita(big=2, big_to=fastest,share=0.8)")
    assert named == jaxlb.scheduler("guarded-sita", big=2, big_to="fastest", share=0.8)
    assert named == jaxlb.scheduler("guarded-sita(big=2)", big_to="fastest", share=0.8)
    assert jaxlb.scheduler("lwr()") == jaxlb.scheduler("lwr")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guarded-sita(big=0)", "big = 0: must be a whole number of at least 1"),
        ("guarded-sita(big=two)", "big = 'two': must be a whole number of at least 1"),
        ("guarded-sita(big=[1, 2])", r"big = \(1, 2\): must be a whole number"),
        ('guarded-sita(big={"a": 1})', "big = {'a': 1}: must be a number, a word or a tuple"),
        ("guarded-sita(big_to=x)", "unknown big_to 'x'; allowed: fastest, slowest"),
        ("guarded-sita(large=2)", "unknown option of scheduler 'guarded-sita' 'large'; "),
        ("guarded-sita(2)", "option of scheduler 'guarded-sita' '2': must look like NAME=VALUE"),
        ("guarded-sita(big=2", r"unknown scheduler 'guarded-sita\(big=2'; did you mean guarded-sita"),
        ("guarded(big=2)", "unknown scheduler 'guarded'; did you mean guarded-sita"),
    ],
)
def test_bad_names_with_options_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.scheduler(name)
    with pytest.raises(ValueError, match="big = 1: given twice to scheduler 'guarded-sita'"):
        jaxlb.scheduler("guarded-sita(big=1)", big=2)


OF_SYSTEMS = sorted(set(jaxlb.schedulers()) - {"optimal", "deadline-admission"})
"""But those for two processors, and for systems that refuse tasks."""


@pytest.mark.parametrize("name", small.mostly_slow(OF_SYSTEMS, ["drift-aware", "hedge", "lwr", "prequal"]))
def test_a_rollout_calls_nothing_on_the_host(name):
    env, params = jaxlb.make("stale", measure_noise=0.1)
    rule, key = jaxlb.scheduler(name), jax.random.key(0)

    def summary(params, key):
        return jaxlb.rollout(env, params, rule, key, num_lanes=4, num_tasks=3)

    program = str(jax.make_jaxpr(summary)(params, key))
    assert "while" in program
    assert "callback" not in program


def test_a_scheduler_may_be_given_by_its_name():
    lwr = jaxlb.scheduler("lwr")
    assert resolved("lwr") == lwr and resolved(lwr) is lwr
    with pytest.raises(ValueError, match="unknown scheduler 'lwrr'; did you mean"):
        resolved("lwrr")
    told = r"scheduler = .*: must be a name or a jaxlb.Scheduler"
    with pytest.raises(ValueError, match="scheduler 'own': its variables are functions; must be numbers"):
        resolved(jaxlb.Scheduler("own", lambda key, seen: (), lwr.start, lwr.act))
    for bad in (3, None, (lwr, ()), ["lwr"], lambda: lwr, np.ones(100)):
        with pytest.raises(ValueError, match=told) as caught:
            resolved(bad)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_start_that_takes_too_few_arguments_is_told_what_it_must_take(key):
    env, params = jaxlb.make("stable")
    own = jaxlb.scheduler("lwr").replace(name="own", start=lambda params, lanes: ())
    said = r"scheduler 'own': its start takes \(params, lanes\), must take \(env, params, lanes\)"
    with pytest.raises(ValueError, match=said):
        jaxlb.rollout(env, params, own, key, 2, 10)
    with pytest.raises(ValueError, match=said):
        jaxlb.replay(env, params, own, workload.sample(key, params, 3), key)
    hedge = jaxlb.scheduler("hedge", candidates=(jaxlb.scheduler("lwr"), own))
    with pytest.raises(ValueError, match=said):
        jaxlb.rollout(env, params, hedge, key, 2, 10)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda v, m, o, key: (o.wait.min(0), m),
            r"its action is float32\[4\], must be int32\[4\], the index",
        ),
        (lambda v, m, o, key: (jnp.int32(o.wait), m), r"its action is int32\[4, 4\], must be int32\[4\]"),
        (lambda v, m, o, key: o.priority, r"its act must return a pair, \(action, memory\)"),
        (lambda v, m, o, key: (o.priority, (m, m)), r"its memory is .* before a task and .* after it"),
        (
            lambda v, m, o, key: (o.priority, o.wait),
            r"its memory is int32\[4\] before a task and float32\[4, 4\] after it: must stay",
        ),
    ],
)
def test_what_is_no_choice_is_refused_by_the_schedulers_name(act, message, key):
    env, params = jaxlb.make("stable")
    wrong = jaxlb.Scheduler("wrong", (), lambda env, params, lanes: jnp.zeros(lanes, jnp.int32), act)
    with pytest.raises(ValueError, match=f"scheduler 'wrong': {message}"):
        jaxlb.rollout(env, params, wrong, key, 4, 10)
    with pytest.raises(ValueError, match=r"scheduler 'wrong': its (action is|memory is|act must) "):
        jaxlb.compare(env, params, [wrong], key, num_lanes=4, num_tasks=10, behaviour="lwr")
    _, state = env.reset(key, params)
    with pytest.raises(ValueError, match=r"action: is float.*, must be a whole number"):
        env.step(jax.random.clone(key), state, 1.5, params)
