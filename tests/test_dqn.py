"""The trainer: what it collects, what it learns from that, and that it is one pure program."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlb
from jaxlb.learn import dqn, networks, replay
from jaxlb.learn.dqn import DQNConfig, continue_dqn, start_dqn, train_dqn
from jaxlb.learn.settings import configure, plain
from jaxlb.rewards import Weights
from jaxlb.scheduling import features, forecasts, learned
from jaxlb.workload import arrivals

SMALL = DQNConfig(
    network=networks.mlp((16,)),
    num_lanes=8,
    memory_rows=64,
    batch_size=32,
    num_iterations=40,
    num_evaluations=2,
    evaluation_tasks=20,
)


def trained_for(iterations, key, config=SMALL, **overrides):
    """Environment, parameters and state after some iterations."""
    env, params = jaxlb.make("heavy-tail", **overrides)
    state = start_dqn(env, params, config, key)
    iterate = jax.jit(lambda state: dqn._iterate(env, params, config, state))
    for _ in range(iterations):
        state, figures = iterate(state)
    return env, params, state, figures


def some_slow(discipline, **options):
    return pytest.param(
        {"discipline": discipline, "load": 0.5, **options}, id=discipline, marks=pytest.mark.slow
    )


@pytest.mark.parametrize(
    "served",
    [
        pytest.param({}, id="fcfs"),
        some_slow("priority", slots=2),
        some_slow("ps"),
        some_slow("srpt"),
        some_slow("fb"),
        some_slow("edf"),
        some_slow("limited-ps", slots=2, capacity="batching(0.2)"),
        pytest.param({"affinity": [[1.0, 0.5, 2.0, 0.0]], "load": 0.4}, id="affinity"),
    ],
)
def test_where_everything_is_visible_the_known_reward_is_the_reward(served, key):
    _, _, state, _ = trained_for(50, key, SMALL.replace(weights=Weights(imbalance_weight=0.1)), **served)
    rows = jax.tree.map(lambda leaf: np.asarray(leaf[:50]), state.systems[0].memory.rows)
    known = np.take_along_axis(rows.known, rows.action[..., None], -1)[..., 0]
    size = np.exp(rows.features.task[..., 0].astype(float))  # in mean services
    alone = -0.5 * np.sqrt(size)
    np.testing.assert_allclose(rows.reward, known - alone, rtol=1e-3, atol=1e-4)
    allowed = np.asarray(served.get("affinity", np.ones((1, 4))))[0] > 0
    np.testing.assert_array_equal(np.unique(rows.action), np.flatnonzero(allowed))


@pytest.mark.parametrize(
    "losing", [{"limit": 2}, pytest.param({"leaving": "waiting", "limit": 3}, marks=pytest.mark.slow)]
)
def test_where_tasks_are_lost_a_full_processor_is_no_choice(losing, key):
    """What is known of those that may be chosen is finite; a refused task costs its loss and nothing else."""
    state = trained_for(80, key, load=1.5, **losing)[2]
    rows = jax.tree.map(lambda leaf: np.asarray(leaf[:80]), state.systems[0].memory.rows)
    known = np.take_along_axis(rows.known, rows.action[..., None], -1)[..., 0]
    assert np.isfinite(known).all()
    refused = (rows.known == 0).all(-1)
    assert 0.02 < refused.mean() < 0.9
    assert (rows.known[~refused] < 0).all()
    assert np.isneginf(rows.known[~refused]).any()
    assert int(state.diverged) == -1


def test_the_network_is_told_the_predicted_waits(key):
    """Sizes are seen, so that predictions are good; every seventh task finds the queues emptied."""
    config = SMALL.replace(forecaster=forecasts.forecaster("predicted"))
    env, params = jaxlb.make("stale", max_steps_in_episode=7)
    state = start_dqn(env, params, config, key)
    iterate = jax.jit(lambda state: dqn._iterate(env, params, config, state))
    unit, index = float(params.size.mean() / params.speed.mean()), list(features.PROCESSOR_FEATURES)
    index, longest = index.index("log forecast wait"), 0.0
    for iteration in range(30):
        true = np.asarray(state.systems[0].env.system.station.wait) / unit  # [P, N]
        state, _ = iterate(state)
        told = np.expm1(state.systems[0].memory.rows.features.processor[iteration, ..., index].T) / 8.0
        np.testing.assert_allclose(told, true, atol=0.01, err_msg=str(iteration))
        longest = max(longest, told.max())
    assert longest > 1.0


def test_rows_follow_each_other_until_the_queues_are_emptied(key):
    _, _, state, _ = trained_for(50, key, max_steps_in_episode=7)
    rows = jax.tree.map(lambda leaf: np.asarray(leaf[:50]), state.systems[0].memory.rows)
    steps = np.arange(1, 51)
    np.testing.assert_array_equal(rows.ended, np.repeat((steps % 7 == 0)[:, None], 8, 1))
    length = list(features.PROCESSOR_FEATURES).index("log queue length")
    queue = np.expm1(rows.features.processor[..., length])  # tasks
    np.testing.assert_allclose(queue[1:][rows.ended[:-1]], 0.0, atol=1e-6)
    assert queue.max() > 0.9
    # A queue grows by the task it was given, and by nothing else.
    grown = queue[1:] - queue[:-1]
    given = np.eye(4)[rows.action[:-1]]
    assert (grown[~rows.ended[:-1]] <= given[~rows.ended[:-1]] + 1e-5).all()


@pytest.mark.slow
def test_the_stream_of_tasks_goes_on_when_the_queues_are_emptied(key):
    # A process with a memory: emptied or not, the tasks are the same.
    tasks, processes = [], []
    for steps in (7, 1000):
        _, _, state, _ = trained_for(30, key, max_steps_in_episode=steps, arrival=arrivals.Bursty())
        tasks.append(state.systems[0].env.task)
        processes.append(state.systems[0].env.workload)
    chex.assert_trees_all_equal(*tasks)
    chex.assert_trees_all_equal(*processes)


def test_running_moments_are_those_of_the_features(key):
    _, _, state, _ = trained_for(60, key)
    rows = jax.tree.map(lambda leaf: np.asarray(leaf[:60], np.float64), state.systems[0].memory.rows.features)
    for leaf, mean, variance in (
        (rows.task, state.variables.moments.mean.task, state.variables.moments.variance.task),
        (rows.processor, state.variables.moments.mean.processor, state.variables.moments.variance.processor),
    ):
        axes = tuple(range(leaf.ndim - 1))
        np.testing.assert_allclose(mean, leaf.mean(axes), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(variance, leaf.var(axes), rtol=1e-2, atol=1e-3)


def test_the_default_network_serves_processors_in_any_order():
    default = networks.per_processor()
    assert DQNConfig().network == default == configure(DQNConfig).network
    assert configure(DQNConfig, **plain(DQNConfig())) == DQNConfig()


def test_the_running_variance_of_what_never_varies_is_next_to_nothing():
    """However large it is, and from the first step on."""
    x = features.Features(jnp.full((48, 2), jnp.array([813.7, -0.6733])), jnp.full((48, 3, 1), 1e-3))
    moments = features.no_moments(x)
    update = jax.jit(lambda moments, x, rate: features.followed(moments, [x], rate))
    for step in range(300):
        moments = update(moments, x, 1.0 / (1.0 + step))
        for mean, variance in zip(*map(jax.tree.leaves, (moments.mean, moments.variance)), strict=True):
            assert (variance >= 0.0).all()
            np.testing.assert_array_less(jnp.sqrt(variance), 1e-5 * jnp.abs(mean))
        # Nor is it listened to.
        shown = features.standardise(moments, jax.tree.map(lambda leaf: leaf + 100.0, x))
        chex.assert_trees_all_equal(shown, jax.tree.map(jnp.zeros_like, shown))


learn = jax.jit(dqn._learn)


@functools.cache
def remembered():
    """A state with a memory full of short episodes, a target network and an average reward of its own."""
    config = SMALL.replace(memory_rows=40)
    _, _, state, _ = trained_for(45, jax.random.key(7), config, max_steps_in_episode=9)
    target = jax.tree.map(lambda leaf: 1.3 * leaf, state.target)
    return state.replace(target=target, average=jnp.float32(-0.7))


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"n_step": 1, "double": False}, marks=pytest.mark.slow),
        pytest.param({"discount": 1.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_loss_is_that_of_the_textbook(key, change):
    config = SMALL.replace(memory_rows=40, **change)
    state = remembered()
    after, figures = learn(config, key, state)

    row, lane = (np.asarray(place) for place in replay.draw(state.systems[0].memory, key, 32, config.n_step))
    last = config.n_step
    rows = jax.tree.map(np.asarray, state.systems[0].memory.rows)

    def values(network, at):
        x = jax.tree.map(lambda leaf: leaf[at, lane], rows.features)
        shown = features.standardise(state.variables.moments, x)
        return np.asarray(rows.known[at, lane] + config.network.apply(network, shown), np.float64)

    following = (row + last) % 40
    online, judged = values(state.variables.network, following), values(state.target, following)
    target, usable = np.zeros(32), np.ones(32)
    for b in range(32):
        for k in range(last):
            at = (row[b] + k) % 40, lane[b]
            target[b] += config.discount**k * (rows.reward[at] + 0.7)
            usable[b] *= not rows.ended[at]
        choice = (online if config.double else judged)[b].argmax()
        target[b] += config.discount**last * judged[b, choice]
    estimate = values(state.variables.network, row)[np.arange(32), rows.action[row, lane]]
    error = target - estimate
    assert usable.sum() > 0 and (last == 1 or usable.sum() < 32)
    np.testing.assert_allclose(figures["loss"], (0.5 * error**2 * usable).mean(), rtol=1e-4)
    np.testing.assert_allclose(figures["td_error"], np.abs(error * usable).mean(), rtol=1e-4)
    average = -0.7 + config.average_rate * (error * usable).mean() / last
    np.testing.assert_allclose(after.average, average, rtol=1e-5)


def test_a_gradient_is_cut_to_its_largest_norm(key):
    state = remembered()
    free, figures = learn(SMALL.replace(memory_rows=40), key, state)
    norm = float(figures["gradient_norm"])
    for limit, factor in ((2.0 * norm, 1.0), (0.5 * norm, 0.5)):
        cut, _ = learn(SMALL.replace(memory_rows=40, max_gradient_norm=limit), key, state)
        expected = jax.tree.map(
            lambda old, new, factor=factor: 0.9 * old + factor * (new - 0.9 * old),
            optax.tree.get(state.optimiser, "mu"),
            optax.tree.get(free.optimiser, "mu"),
        )
        chex.assert_trees_all_close(optax.tree.get(cut.optimiser, "mu"), expected, rtol=1e-4, atol=1e-6)


def test_the_target_network_follows(key):
    state = remembered()
    for rate in (0.25, 1.0):
        after, _ = learn(SMALL.replace(memory_rows=40, target_rate=rate), key, state)
        wanted = jax.tree.map(
            lambda old, new, rate=rate: old + rate * (new - old), state.target, after.variables.network
        )
        chex.assert_trees_all_close(after.target, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_training_is_its_parts(key):
    env, params = jaxlb.make("heavy-tail")
    result = train_dqn(env, params, SMALL, key)
    state = start_dqn(env, params, SMALL, key)
    rows = []
    for _ in range(SMALL.num_evaluations):
        state, row = continue_dqn(env, params, SMALL, state)
        rows.append(row)
    parts = state.variables, state.best, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    # Another program may round otherwise.
    chex.assert_trees_all_close(
        (result.last.variables, result.scheduler.variables, result.history), parts, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(result.history.iteration, [20, 40])
    assert int(result.diverged) == -1


@pytest.mark.slow
def test_seeds_settings_and_environments_can_be_vmapped(key):
    env, params = jaxlb.make("heavy-tail")
    keys = jax.random.split(key, 2)
    rates, loads = jnp.array([1e-3, 1e-2]), jnp.array([0.5, 0.7])

    def train(key, rate, load):
        return train_dqn(env, params.replace(load=load), SMALL.replace(learning_rate=rate), key).history

    together = jax.jit(jax.vmap(train))(keys, rates, loads)
    for index in range(2):
        alone = train(keys[index], rates[index], loads[index])
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], together), alone, rtol=2e-2, atol=2e-3
        )


def test_a_number_that_changes_compiles_nothing(key):
    env, params = jaxlb.make("heavy-tail")
    state = start_dqn(env, params, SMALL, key)
    continue_dqn(env, params, SMALL, state)
    compiled = continue_dqn._cache_size()
    other = SMALL.replace(learning_rate=3e-4, discount=0.9, weights=Weights(sla_weight=2.0))
    continue_dqn(env, params.replace(load=jnp.float32(0.4)), other, state)
    assert continue_dqn._cache_size() == compiled


@pytest.mark.slow
def test_lanes_may_differ_in_load_and_objective(key):
    env, params = jaxlb.make("heavy-tail")
    config = SMALL.replace(weights=Weights(sla_weight=jnp.linspace(0.1, 2.0, 8)[None]))
    result = train_dqn(env, params.replace(load=jnp.linspace(0.3, 0.9, 8)), config, key)
    chex.assert_tree_all_finite(result.history)
    # What was learned for many objectives acts for one.
    trained = result.scheduler.variables
    one = trained.replace(weights=trained.weights.replace(sla_weight=jnp.float32(1.0)))
    summary = jaxlb.rollout(env, params, result.scheduler.replace(variables=one), key, 4, 20)
    chex.assert_tree_all_finite(summary)


@pytest.mark.slow
def test_a_diverging_run_stops_learning_and_says_so(key):
    env, params = jaxlb.make("heavy-tail")
    config = SMALL.replace(learning_rate=1e30)
    with pytest.raises(
        FloatingPointError, match=r"not finite at iteration [0-9]+; try a smaller learning_rate"
    ):
        train_dqn(env, params, config, key)
    # Under a trace nothing can be raised.
    result = jax.jit(lambda key: train_dqn(env, params, config, key))(key)
    assert int(result.diverged) >= 0
    chex.assert_tree_all_finite((result.scheduler, result.last))


@pytest.mark.slow
def test_training_beats_the_greedy_rules_on_heavy_tails(key):
    env, params = jaxlb.make("heavy-tail")
    config = DQNConfig(network=networks.mlp((32, 32)), num_lanes=64, batch_size=128, num_iterations=3000)
    result = train_dqn(env, params, config, key)
    table = jaxlb.compare(
        env,
        params,
        {
            "lwr": jaxlb.scheduler("lwr"),
            "greedy": jaxlb.scheduler("greedy"),
            "dqn": result.scheduler,
        },
        jax.random.key(1),
        num_lanes=256,
        num_tasks=1000,
        warmup=500,
    )
    for rule in ("lwr", "greedy"):
        assert table.row("dqn").sla_violation_rate < 0.5 * table.row(rule).sla_violation_rate
        assert table.row("dqn").mean_slowdown < 0.7 * table.row(rule).mean_slowdown
    # It gets better on its way.
    assert result.history.objective[-1] > result.history.objective[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0: must be above 0"),
        ({"discount": 0.0}, "discount = 0: must be above 0"),
        ({"discount": 1.01}, r"discount = 1.01: must be at most 1"),
        ({"discount": 1.0, "average_rate": 0.0}, "discount = 1, average_rate = 0"),
        ({"exploration": 1.5}, r"exploration = 1.5: must be at most 1"),
        ({"target_rate": 0.0}, "target_rate = 0: must be above 0"),
        ({"weights": Weights(sla_weight=-1.0)}, "sla_weight = -1: must be at least 0"),
        ({"weights": Weights(sla_weight=jnp.ones(8))}, r"sla_weight has shape \(8,\): must be one number"),
        ({"num_lanes": 0}, "num_lanes = 0: must be a whole number of at least 1"),
        ({"double": "yes"}, "double = 'yes': must be true or false"),
        ({"double": 2}, "double = 2: must be true or false"),
        ({"memory_rows": 3}, "memory_rows = 3: must be a whole number of at least 4"),
        ({"batch_size": 1000}, "memory_rows = 64 of 8 lanes: must hold at least a batch, 1000 steps"),
        ({"num_iterations": 41}, "num_iterations = 41: must be a multiple of num_evaluations, 2"),
    ],
)
def test_bad_settings_are_refused(key, change, message):
    env, params = jaxlb.make("heavy-tail")
    with pytest.raises(ValueError, match=message):
        train_dqn(env, params, SMALL.replace(**change), key)


@pytest.mark.slow
def test_one_network_is_trained_in_several_systems(key):
    """In one of them it is the same training, bit for bit; in two, it serves both, and a batch is of both."""
    config = SMALL.replace(network=networks.per_processor((8,)))
    small, wide = jaxlb.make("heavy-tail", speed=[1.0, 4.0]), jaxlb.make("heavy-tail", num_processors=6)
    alone, listed = train_dqn(*small, config, key), train_dqn((small[0],), (small[1],), config, key)
    chex.assert_trees_all_equal(alone.scheduler.variables, listed.scheduler.variables)
    systems = (small[0], wide[0]), (small[1], wide[1])
    both = train_dqn(*systems, config, key)
    for env, params in (small, wide):
        found = jaxlb.rollout(env, params, both.scheduler, key, 8, 50)
        assert np.isfinite(found.mean_completion).all()
    # The moments are those of both together: of speeds in mean speeds, for one.
    mean = both.scheduler.variables.moments.mean.processor[learned.NAMES.processor.index("log speed")]
    each = [np.log(np.asarray(one.speed) / np.asarray(one.speed).mean()).mean() for _, one in (small, wide)]
    assert float(mean) == pytest.approx(np.mean(each), rel=1e-4)
    with pytest.raises(ValueError, match="2 environments with 1 parameters"):
        train_dqn(systems[0], systems[1][:1], config, key)
