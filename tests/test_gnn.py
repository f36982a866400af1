"""Regression by message passing: examples are the truth, fits agree with the oracle, training is pure."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.learn import gnn, networks
from jaxlb.learn.gnn import GNNConfig, continue_gnn, start_gnn, train_gnn
from jaxlb.learn.settings import configure
from jaxlb.params import with_lane_axis
from jaxlb.scheduling import features

SMALL = GNNConfig(
    network=networks.gnn((16,)),
    num_lanes=20,
    num_tasks=20,
    warmup=10,
    batch_size=32,
    num_iterations=40,
    num_evaluations=2,
)


def make(**overrides):
    return jaxlb.make("heavy-tail", **overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "overrides"),
    [
        ("log-time", {"speeds": "failing", "up_time": 20.0, "down_time": 10.0, "load": 0.4}),
        ("log-time", {"affinity": [[1.0, 0.5, 0.0, 2.0]], "load": 0.4}),
        ("mean", {"limit": 2, "load": 1.5}),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else given,
)
def test_choices_that_nobody_has_teach_nothing(target, overrides, key):
    """What a processor that is down, barred or full would bring is infinite, and no example."""
    env, params = make(**overrides)
    config = SMALL.replace(target=target)
    state = start_gnn(env, params, config, key)
    found = gnn.examples(env, params, config, gnn._acting(config, state.variables), jnp.array(False), key)
    share = np.isinf(found.completion).mean()
    assert 0.05 < share < 0.9
    nobody = found.replace(completion=jnp.full_like(found.completion, jnp.inf))
    assert gnn.loss(config, state.variables, nobody) == 0.0
    result = train_gnn(env, params, config, key)
    for figure in ("regression_loss", "held_out_loss", "r_squared"):
        assert np.isfinite(getattr(result.history, figure)).all()
    tasks = workload.sample(key, params, 200)
    outcome = jaxlb.replay(env, params, result.scheduler, tasks, key)
    if "affinity" in overrides:
        assert 2 not in np.asarray(outcome.action)


@pytest.fixture(scope="module")
def trained():
    env, params = make()
    config = SMALL.replace(network=networks.gnn((32, 32)), num_lanes=40, num_tasks=50)
    config = config.replace(num_iterations=1200, num_evaluations=3, batch_size=128)
    return env, params, train_gnn(env, params, config, jax.random.key(0))


@pytest.mark.slow
def test_examples_are_what_each_choice_leads_to(key):
    """The completion that an example gives a choice is the one that it then has."""
    env, params = make()
    state = start_gnn(env, params, SMALL, key)
    found = gnn.examples(env, params, SMALL, gnn._acting(SMALL, state.variables), jnp.array(False), key)
    assert found.completion.shape == (20, 20, 4)
    task_key, replay_key = jax.random.split(key)
    tasks = workload.sample(task_key, with_lane_axis(params, (20,)), 30, (20,))
    unit = float(params.size.mean() / params.speed.mean())
    for lane, name in ((0, "lwr"), (2, "greedy"), (4, "rr"), (9, "lwr"), (11, "greedy")):
        outcome = jaxlb.replay(env, params, jaxlb.scheduler(name), tasks, replay_key)
        chosen = np.take_along_axis(
            np.asarray(found.completion[:, lane]), np.asarray(outcome.action[10:, lane, None]), -1
        )
        np.testing.assert_allclose(chosen[:, 0], outcome.completion[10:, lane] / unit, rtol=1e-5)


@pytest.mark.slow
def test_everything_visible_is_learned(trained):
    env, params, result = trained
    assert result.history.r_squared[-1] > 0.97
    entries = {"lwr": jaxlb.scheduler("lwr"), "gnn": result.scheduler}
    table = jaxlb.compare(env, params, entries, jax.random.key(1), num_lanes=32, num_tasks=200)
    assert table.row("gnn").oracle_agreement > max(0.85, table.row("lwr").oracle_agreement)


@pytest.mark.slow
def test_the_same_weights_serve_more_processors(trained):
    _, _, result = trained
    env, params = make(speed=[0.5, 0.8, 1.2, 2.0] * 2)
    entries = {"rr": jaxlb.scheduler("rr"), "gnn": result.scheduler}
    table = jaxlb.compare(env, params, entries, jax.random.key(1), num_lanes=32, num_tasks=200)
    assert table.row("gnn").oracle_agreement > 2.0 * table.row("rr").oracle_agreement


@pytest.mark.slow
def test_training_is_its_rounds(key):
    env, params = make()
    result = train_gnn(env, params, SMALL, key)
    state, rows = start_gnn(env, params, SMALL, key), []
    for _ in range(2):
        state, row = continue_gnn(env, params, SMALL, state)
        rows.append(row)
    history = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    chex.assert_trees_all_close(
        (result.scheduler.variables, result.history), (state.best, history), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(result.history.iteration, [20, 40])
    # Held-out lanes and all others: no example of a round is missing.
    assert bool((state.examples[0].completion > 0).all())


@pytest.mark.slow
def test_the_second_round_is_of_its_own_states(key):
    """A policy that always takes processor 3 fills that queue in its lanes, and in no others."""
    env, params = make(speed=[1.0, 1.0, 1.0, 1.0], load=0.5)
    network = networks.gnn((4,))._replace(
        apply=lambda parameters, x: jnp.broadcast_to(jnp.array([1.0, 1.0, 1.0, 0.0]), x.processor.shape[:-1])
    )
    config = SMALL.replace(network=network, behaviours=("greedy",))
    variables = start_gnn(env, params, config, key).variables
    place = list(features.PROCESSOR_FEATURES).index("log queue length")
    for trained in (False, True):
        found = gnn.examples(env, params, config, gnn._acting(config, variables), jnp.array(trained), key)
        queue = np.asarray(found.features.processor[..., place]).mean(0)  # [N, P]
        own, others = queue[1::2, 3].mean(), queue[::2, 3].mean()
        assert (own > 2.0 * others) == trained


@pytest.mark.slow
@pytest.mark.parametrize("target", ["time", "choice"])
def test_other_targets_are_learned_too(key, target):
    env, params = jaxlb.make("stable")
    config = SMALL.replace(target=target, num_iterations=800, num_lanes=40, batch_size=128)
    history = train_gnn(env, params, config, key).history
    assert history.agreement[-1] > 0.8
    assert np.isnan(history.r_squared[-1]) == (target == "choice")


@pytest.mark.slow
def test_one_network_for_several_numbers_of_processors(key):
    systems = [jaxlb.make("stable", num_processors=number) for number in (2, 3)]
    envs, params = zip(*systems, strict=True)
    config = SMALL.replace(num_iterations=800)
    result = train_gnn(envs, params, config, key)
    env, wider = jaxlb.make("stable", num_processors=5)
    entries = {"greedy": jaxlb.scheduler("greedy"), "gnn": result.scheduler}
    table = jaxlb.compare(env, wider, entries, key, num_lanes=16, num_tasks=200)
    assert table.row("gnn").oracle_agreement > 0.9
    with pytest.raises(ValueError, match="2 environments with 1 parameters"):
        train_gnn(envs, params[:1], config, key)


@pytest.mark.slow
def test_a_network_that_remembers(key):
    """Its state stays with the processor, and what it says depends on what it saw before."""
    env, params = make(measure_interval=2.0, measure_noise=0.5)
    network = networks.recurrent_gnn((16, 16))
    config = SMALL.replace(network=network, sequence=8)
    result = train_gnn(env, params, config, key)
    assert np.isfinite(result.history.held_out_loss).all()
    found = gnn.examples(env, params, config, result.scheduler, jnp.array(True), key)
    x = jax.tree.map(lambda leaf: leaf[:8], found.features)
    whole, tail = (
        gnn.predicted(
            config, result.scheduler.variables, jax.tree.map(lambda leaf, first=first: leaf[first:], x)
        )
        for first in (0, 4)
    )
    assert np.abs(whole[4:] - tail).max() > 1e-4
    order = jnp.array([2, 0, 3, 1])
    permuted = gnn.predicted(
        config, result.scheduler.variables, x.replace(processor=x.processor[..., order, :])
    )
    np.testing.assert_allclose(permuted, whole[..., order], rtol=1e-5)
    # Step by step, as a scheduler, it says the same as over a sequence.
    memory = network.start((20,), 4)
    for time in range(8):
        one = features.standardise(
            result.scheduler.variables.moments, jax.tree.map(lambda leaf, t=time: leaf[t], x)
        )
        out, memory = network.apply(result.scheduler.variables.network, memory, one)
    np.testing.assert_allclose(
        jnp.exp(result.scheduler.variables.mean + result.scheduler.variables.deviation * out),
        whole[-1],
        rtol=1e-5,
    )
    # As a scheduler, on the devices of a comparison, in a tenth of the lanes that it was trained on.
    entries = {"gnn": result.scheduler, "lwr": jaxlb.scheduler("lwr")}
    table = jaxlb.compare(env, params, entries, key, num_lanes=2, num_tasks=50)
    assert np.isfinite(table.row("gnn").mean_completion)
    with pytest.raises(ValueError, match="one that remembers, as recurrent-gnn"):
        jaxlb.train_dqn(env, params, jaxlb.DQNConfig(network=network), key)


@pytest.mark.slow
def test_seeds_and_rates_can_be_vmapped(key):
    env, params = make()
    keys, rates = jax.random.split(key, 2), jnp.array([1e-3, 1e-2])

    def train(key, rate):
        return train_gnn(env, params, SMALL.replace(learning_rate=rate), key).history

    together = jax.vmap(train)(keys, rates)
    alone = train(keys[1], rates[1])
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], together), alone, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_a_diverging_run_says_so_and_keeps_what_was(key):
    env, params = make()
    config = SMALL.replace(learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="try a smaller learning_rate"):
        train_gnn(env, params, config, key)
    result = jax.jit(lambda key: train_gnn(env, params, config, key))(key)
    chex.assert_tree_all_finite((result.scheduler, result.last))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_lanes": 5}, "num_lanes = 5: must be a whole number of at least 6"),
        ({"num_iterations": 41}, "num_iterations = 41: must be a multiple of num_evaluations, 8"),
        ({"target": "rank"}, "unknown target 'rank'"),
        ({"behaviours": ["best"]}, "unknown scheduler 'best'"),
        ({"behaviours": []}, "must be a list of at least one name"),
        ({"learning_rate": 0}, "learning_rate = 0: must be above 0"),
        ({"depth": 3}, "unknown setting 'depth'"),
        ({"pooling": "sum"}, "unknown pooling 'sum'"),
    ],
)
def test_bad_settings_are_refused(key, settings, message):
    env, params = make()
    with pytest.raises(ValueError, match=message):
        train_gnn(env, params, configure(GNNConfig, **settings), key)
