"""Prices of backlog are derivatives of what follows; the scheduler permutes, learns, and is stable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import observe
from jaxlb.learn import pricing
from jaxlb.learn.universal import UniversalConfig
from jaxlb.loop import first_arrival
from jaxlb.params import canonical, with_lane_axis
from jaxlb.scheduling import belief, situation
from jaxlb.scheduling import universal as acting
from jaxlb.scheduling.objective import COSTS, Objective
from jaxlb.scheduling.universal import Universal


def random_network(seed, scale=1.0):
    """A network of large, arbitrary prices."""
    module = acting.prices()
    network = module.init(jax.random.key(seed), acting.no_features(2))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
    return module, jax.tree.map(lambda leaf: scale * jax.random.normal(next(keys), leaf.shape), network)


def costs_of(wait, gaps, service, actions, exponent):
    """Total cost of tasks with these services at these processors, in plain Python."""
    wait, total = list(wait), 0.0
    for gap, own, action in zip(gaps, service, actions, strict=True):
        wait = [max(one - gap, 0.0) for one in wait]
        wait[action] += own
        total += wait[action] ** exponent
    return total


def test_returns_are_the_derivatives_of_what_follows():
    """A delay of one processor, later choices being what they are: by differences, in plain Python."""
    draw, number, exponent = np.random.default_rng(0), 40, 0.7
    gaps, service = draw.exponential(0.4, number), draw.exponential(1.0, number)
    actions = draw.integers(0, 3, number)
    wait, rows = np.zeros(3), []
    for gap, own, action in zip(gaps, service, actions, strict=True):
        wait = np.maximum(wait - gap, 0.0)
        wait[action] += own
        rows.append((wait.copy(), exponent * wait[action] ** (exponent - 1.0)))
    waits, marginal = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    busy = waits > np.append(gaps[1:], 1e9)[:, None]
    no_price = jnp.zeros((number, 1, 3, 3), jnp.float32)
    rows = pricing.Row(
        x=None,
        action=jnp.asarray(actions, jnp.int32)[:, None],
        marginal=jnp.asarray(marginal, jnp.float32)[:, None, None] * jnp.ones(3, jnp.float32),
        kept=jnp.ones((number, 1), bool),
        busy=jnp.asarray(busy, jnp.float32)[:, None],
    )
    found = pricing.returns(UniversalConfig(trace=1.0), rows, no_price)[:, 0, :, 0]
    # A choice of no scheduler's own ends them: what is predicted after the choice before it counts there.
    strange, predicted = 12, no_price + 2.5
    cut = pricing.returns(
        UniversalConfig(trace=1.0), rows.replace(kept=rows.kept.at[strange].set(False)), predicted
    )[:, 0, :, 0]
    whole = pricing.returns(UniversalConfig(trace=1.0), rows, predicted)[:, 0, :, 0]
    np.testing.assert_array_equal(cut[strange:], whole[strange:])
    before = np.where(busy[strange - 2, :, None], 2.5, 0.0)[:, 0]
    before[actions[strange - 1]] += marginal[strange - 1] * busy[strange - 2, actions[strange - 1]]
    np.testing.assert_allclose(cut[strange - 2], before, rtol=1e-5)
    small = 1e-7
    for step in (0, 5, 17, 30):
        later = gaps[step + 1 :], service[step + 1 :], actions[step + 1 :]
        base = costs_of(waits[step], *later, exponent)
        for processor in range(3):
            delayed = waits[step].copy()
            if delayed[processor] == 0:
                continue  # an idle processor has nothing to delay
            delayed[processor] += small
            slope = (costs_of(delayed, *later, exponent) - base) / small
            np.testing.assert_allclose(found[step, processor], slope, rtol=1e-3, atol=1e-3)


def test_all_that_is_told_has_a_name():
    env, params = jaxlb.make("stable")
    b = belief.start(env, params, ()).replace(count=jnp.int32(1), size=jnp.float32(1.0))
    s = situation.Situation(*[jnp.float32(1.0)] * 5, *[jnp.ones(4)] * 3)
    named = (*situation.workload(b, s), "processors", "spread of speeds", *COSTS, "exponent")
    assert named == acting.CONTEXT
    x = acting.price_features(b, s, Objective(), jnp.ones((2, 4)))
    assert (x.context.shape, x.asked.shape) == ((len(acting.CONTEXT),), (2, 4, len(acting.PROCESSOR)))
    assert x.others.shape == (4, len(acting.OTHERS))


def situation_of(wait):
    wait = jnp.asarray(wait)
    return situation.Situation(
        *[jnp.float32(1.0)] * 4, jnp.int32(0), jnp.array([0.5, 1.0, 1.5]), wait, wait + 1.0
    )


@pytest.mark.slow
def test_the_price_of_a_wait_is_the_same_whatever_wait_the_processor_has():
    """What a task costs others is an integral over waits that the processor does not have yet."""
    module, network = random_network(0, 0.15)
    env, params = jaxlb.make("stable", num_processors=3)
    b = belief.start(env, params, ()).replace(count=jnp.int32(1), size=jnp.float32(1.0))
    asked = jnp.array([[3.0, 2.0, 4.0]])

    @jax.jit
    def price(wait):
        return module.apply(network, acting.price_features(b, situation_of(wait), Objective(), asked))[0]

    one, other = price(jnp.array([1.0, 2.0, 3.0])), price(jnp.array([9.0, 2.0, 3.0]))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    assert (np.abs(one[1:] / other[1:] - 1.0) > 1e-3).any()  # for others it counts


def test_what_is_known_does_not_hang_on_the_task_at_hand(key):
    env, params = jaxlb.make("heavy-tail")
    params = with_lane_axis(canonical(params), (2,))
    state, _ = first_arrival(env, params, key, (2,))
    task = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), state.task)
    state = state.replace(task=task.replace(size=jnp.ones(2)))
    b = belief.start(env, observe.nominal(params), (2,))
    observed = env.observe(state, params, key)
    b = belief.decided(
        belief.sized(belief.update(b, observed, jnp.ones(2)), jnp.ones(2)), observed, jnp.zeros(2, jnp.int32)
    )
    sizes = jnp.array([1.0, 500.0])
    observed = env.observe(state.replace(task=task.replace(size=sizes)), params, key)
    after = belief.update(b, observed, jnp.ones(2))
    told = situation.workload(after, situation.situation(after, observed))
    for name in {*told} - {"deadlines", "spread of deadlines"}:  # which the task itself has set
        assert told[name][0] == told[name][1], name


@pytest.mark.slow
def test_choices_permute_as_processors_do(key):
    module, network = random_network(0, 0.3)
    rule = acting.priced(module, Universal(network, Objective(0.5, 1.0, 0.2, 0.3)))
    env, params = jaxlb.make("seed", speed=[0.4, 0.7, 1.1, 1.9])
    order = jnp.array([2, 0, 3, 1])
    tasks = jaxlb.workload.sample(key, params, 200)
    run = jax.random.key(1)
    one = jaxlb.replay(env, params, rule, tasks, run)
    other = jaxlb.replay(env, params.replace(speed=params.speed[order]), rule, tasks, run)
    assert (np.asarray(one.action) == np.asarray(order)[np.asarray(other.action)]).mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_arbitrary_prices_are_stable_within_the_guard(seed):
    module, network = random_network(seed, 1.0)
    rule = acting.priced(module, Universal(network, Objective()))
    env, params = jaxlb.make("stable", load=0.9, discipline=("fcfs", "ps")[seed])
    table = jaxlb.compare(
        env, params, {"greedy": "greedy", "random prices": rule}, jax.random.key(3),
        num_lanes=64, num_tasks=1500, warmup=1500,
    )  # fmt: skip
    assert table.row("random prices").stationary
    assert table.row("random prices").utilisation == pytest.approx(0.9, abs=0.01)


def test_an_imbalance_is_what_the_variance_grows_by():
    env, params = jaxlb.make("stable")
    s = situation.Situation(
        unit=jnp.float32(1.0), size=jnp.float32(0.7), deadline=jnp.float32(1.0), age=jnp.float32(0.0),
        priority=jnp.int32(0), speed=jnp.array([0.5, 1.0, 1.5]), wait=jnp.array([1.0, 0.2, 3.0]),
        completion=jnp.zeros(3),
    )  # fmt: skip
    b = belief.start(env, params, ())
    b = b.replace(size=jnp.float32(1.0), inverse_size=jnp.float32(1.0), weight=jnp.float32(1.0))
    grown = acting.own_costs(b, s, Objective(completion=0.0, imbalance=1.0), jnp.float32(1.0))
    work = np.asarray(s.wait * s.speed)
    expected = [np.var(work + 0.7 * (np.arange(3) == place)) - np.var(work) for place in range(3)]
    np.testing.assert_allclose(grown - grown[0], np.array(expected) - expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_wrong_account_of_hidden_waits_does_not_overload(key):
    """The nominal speeds are wrong, and nothing but lengths of queues shows it."""
    env, params = jaxlb.make("stable", wait_visible=False, load=0.7)
    params = params.replace(nominal_speed=jnp.array([2.5, 1.0, 1.0, 1.0]))
    table = jaxlb.compare(
        env, params, {"greedy": "greedy", "universal": "universal"}, key,
        num_lanes=32, num_tasks=1000, warmup=1000,
    )  # fmt: skip
    assert table.row("universal").stationary


def test_weights_of_violations_keep_their_scale():
    s = situation.Situation(*[jnp.float32(1.0)] * 4, jnp.int32(0), *[jnp.ones(2)] * 2, jnp.array([0.5, 2.0]))
    env, params = jaxlb.make("stable", num_processors=2)
    b = belief.start(env, params, ()).replace(size=jnp.float32(1.0), inverse_size=jnp.float32(1.0))
    for weight in (1.0, 1e-3):
        objective = Objective(1.0, 1.0, 0.0, 1.0, class_weights=(weight,))
        found = acting.own_costs(b.replace(weight=jnp.float32(weight)), s, objective, jnp.float32(weight))
        np.testing.assert_allclose(found * (1.0 + weight), [0.5, 2.0 + weight], rtol=1e-5)


def test_it_comes_trained_and_is_told_nothing(key):
    """In a system that no training saw; the bound is far above what other keys bring, 0.6 to 0.7."""
    env, params = jaxlb.make("heavy-tail", num_processors=6, load=0.75)
    table = jaxlb.compare(
        env, params, {"greedy": "greedy", "universal": "universal"}, key,
        num_lanes=128, num_tasks=800, warmup=800,
    )  # fmt: skip
    assert table.row("universal").mean_completion < 0.85 * table.row("greedy").mean_completion


@pytest.mark.slow
def test_prices_count_more_and_more(monkeypatch):
    module, network = random_network(0, 0.3)
    env, params = jaxlb.make("stable")
    s = situation.Situation(
        *[jnp.float32(1.0)] * 4, jnp.int32(0), jnp.ones(4), jnp.arange(4.0), 1.0 + jnp.arange(4.0)
    )

    def prices(count):
        b = belief.start(env, params, ()).replace(count=jnp.int32(count))
        variables = Universal(network, Objective())
        return np.asarray(acting.costs(module, variables, b, s, jnp.float32(1.0)) - s.completion, np.float64)

    np.testing.assert_array_equal(prices(0), 0.0)
    counted = prices(160)  # eight for each of four processors and 16 more
    monkeypatch.setattr(acting, "LEARNING", 1e-6)
    np.testing.assert_allclose(counted, (1.0 - np.exp(-1.0)) * prices(160), rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("discipline", ["ps", "priority"])
def test_without_prices_it_is_myopic_under_any_discipline(discipline, key, monkeypatch):
    """With several slots, too: what a choice costs the task and those that are there is known."""
    settings = {"discipline": discipline} | ({"slots": 2, "load": 1.6} if discipline == "priority" else {})
    env, params = jaxlb.make("seed", load_time_constant=None, **{"load": 0.8, **settings})
    tasks = jaxlb.workload.sample(key, params, 150, (2,))
    one = jaxlb.replay(env, params, "myopic", tasks, key)
    monkeypatch.setattr(acting, "LEARNING", 1e9)
    jax.clear_caches()
    try:
        other = jaxlb.replay(env, params, "universal", tasks, jax.random.clone(key))
    finally:
        jax.clear_caches()
    np.testing.assert_array_equal(one.action, other.action)


@pytest.mark.parametrize("deadline", [2.0, 3.1])
@pytest.mark.parametrize("constant", [0.0, 0.25, 1.0])
def test_a_hidden_size_costs_what_its_law_costs_on_average(constant, deadline):
    """Own costs are means over the law; prices are asked at quartiles of its work, half done."""
    size = 2.0 ** np.array([-1.0, 0.0, 4.0])
    share = np.array([0.6, 0.35, 0.05])
    mean = (share * size).sum()
    env, params = jaxlb.make("heavy-tail", size_visible=False, class_slack=(0.0, deadline * (1 - constant)),
                             class_probability=(0.5, 0.5))  # fmt: skip
    params = params.replace(deadline_constant=deadline * constant * params.size.mean() / params.speed.mean())
    b = belief.start(env, params, ())
    octaves = np.array(belief.OCTAVES)[:, None]
    at_most = np.log2(size) <= octaves
    b = b.replace(
        share=jnp.float32((share * at_most).sum(1)), work=jnp.float32((share * size * at_most).sum(1)),
        weight=jnp.float32(1.0), inverse_size=jnp.float32((share / size).sum()),
        size_square=jnp.float32((share * size**2).sum()),
    )  # fmt: skip
    assert float(belief.spread_of_sizes(b)) == pytest.approx((share * size**2).sum() / mean**2)
    wait, speed = np.array([0.5, 2.0]), np.array([0.5, 1.5])
    s = situation.Situation(
        *[jnp.float32(1.0)] * 4, jnp.int32(1), jnp.float32(speed), jnp.float32(wait),
        jnp.float32(wait + 1.0 / speed),
    ).replace(deadline=jnp.float32(deadline))  # fmt: skip
    completion = wait[:, None] + size / mean / speed[:, None]
    late = completion > deadline * (constant + (1 - constant) * size / mean)
    found = acting.own_costs(b, s, Objective(completion=0.0, violations=1.0), jnp.float32(1.0))
    np.testing.assert_allclose(found, (share * late).sum(1), atol=1e-6)
    found = acting.own_costs(b, s, Objective(completion=0.0, slowdown=1.0), jnp.float32(1.0))
    expected = (share * completion / (size / mean)).sum(1) / (share * mean / size).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Half of all work is in the largest tasks.
    for part, largest in ((0.25, 1.0), (0.75, 16.0)):
        assert float(belief.size_by_work(b, part)) * mean == pytest.approx(largest, rel=0.5)


@pytest.mark.slow
def test_a_processor_of_many_slots_counts_as_a_fast_one():
    env, params = jaxlb.make("stable", discipline="fcfs", speed=[1.0, 2.0, 0.5], slots=(4, 2, 16), load=1.0)
    observation = env.observe(env.reset(jax.random.key(0), params)[1], params, jax.random.key(1))
    b = belief.start(env, params, ())
    s = situation.situation(belief.update(b, observation, jnp.float32(1.0)), observation)
    np.testing.assert_allclose(s.speed, np.array([4.0, 4.0, 8.0]) / (16 / 3), rtol=1e-6)
    # A task of mean size takes 1 where the mean processor gives it all it has.
    np.testing.assert_allclose(s.completion, (16 / 3) / np.array([1.0, 2.0, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(s.own, s.completion, rtol=1e-6)


def test_networks_are_told_of_64_processors_at_most():
    told = {}
    for number in (32, 64, 128):
        env, params = jaxlb.make("stable", num_processors=number)
        b = belief.start(env, params, ())
        speed = jnp.ones(number)
        s = situation.Situation(*[jnp.float32(1.0)] * 4, jnp.int32(0), speed, speed, speed)
        x = jax.jit(lambda b, s: acting.price_features(b, s, Objective(), s.wait[None]))(b, s)
        told[number] = float(x.context[acting.CONTEXT.index("processors")])
    assert told[32] < told[64] == told[128]
