"""Shapes, symmetries and descriptions of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxlb
from jaxlb.learn import networks
from jaxlb.learn.dqn import DQNConfig, start_dqn
from jaxlb.scheduling import learned
from jaxlb.scheduling.features import PROCESSOR_FEATURES, Features
from tests import small


def parameters_of(network, key, x):
    """As after some training: none is zero."""
    leaves, tree = jax.tree.flatten(network.init(key, x))
    keys = jax.random.split(key, len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def features(key, num_processors, lanes=(5,)):
    task_key, processor_key = jax.random.split(key)
    return Features(
        task=jax.random.normal(task_key, (*lanes, 3)),
        processor=jax.random.normal(processor_key, (*lanes, num_processors, len(PROCESSOR_FEATURES))),
    )


GRAPHS = [
    {},
    {"rounds": 2, "pooling": "max"},
    {"pooling": "attention"},
    {"graph": "speed", "neighbours": 3},
    {"graph": "load", "neighbours": 2, "pooling": "attention"},
    {"graph": "learned", "neighbours": 3, "rounds": 2},
    {"graph": "learned", "neighbours": 3, "pooling": "attention"},
]
"""Options of message passing."""


@pytest.mark.parametrize("duelling", small.mostly_slow([False, True], [True]))
@pytest.mark.parametrize(
    "make",
    [networks.mlp, networks.per_processor, lambda widths, duelling: networks.gnn(widths, duelling=duelling)],
)
def test_a_value_for_each_processor_of_each_lane(key, make, duelling):
    network = make((8, 8), duelling)
    for lanes in ((), (5,)):
        x = features(key, 6, lanes)
        values = network.apply(parameters_of(network, key, x), x)
        assert (values.shape, values.dtype) == ((*lanes, 6), jnp.float32)


@pytest.mark.parametrize(
    "network",
    [
        networks.per_processor((16, 16)),
        networks.per_processor((16, 16), True),
        *(networks.gnn((16, 16), **options) for options in GRAPHS),
    ],
)
def test_permuting_processors_permutes_the_values(key, network):
    x = features(key, 6)
    parameters = parameters_of(network, key, x)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    permuted = x.replace(processor=x.processor[:, order])
    values = network.apply(parameters, x)
    np.testing.assert_allclose(network.apply(parameters, permuted), values[:, order], atol=1e-5)
    assert float(jnp.std(values, axis=-1).min()) > 1e-3


@pytest.mark.parametrize(
    "network", [networks.per_processor((16,)), *(networks.gnn((16, 16), **options) for options in GRAPHS)]
)
def test_weights_serve_any_number_of_processors(key, network):
    parameters = network.init(key, features(key, 4))
    assert network.apply(parameters, features(key, 32)).shape == (5, 32)


def change(network, key, num_processors=4):
    """Of the values when what is known of processor 0 changes, `[N, P]`."""
    x = features(key, num_processors)
    parameters = parameters_of(network, key, x)
    moved = x.replace(processor=x.processor.at[:, 0].add(1.0))
    return np.abs(network.apply(parameters, moved) - network.apply(parameters, x))


@pytest.mark.parametrize(
    "network", [networks.per_processor((16, 16)), *(networks.gnn((16, 16), **options) for options in GRAPHS)]
)
def test_what_other_processors_do_matters(key, network):
    assert change(network, key)[:, 1:].max() > 1e-3


def test_without_rounds_nobody_is_told_of_others(key):
    found = change(networks.gnn((16, 16), rounds=0), key)
    assert found[:, 0].min() > 1e-4
    assert not found[:, 1:].any()


@pytest.mark.parametrize("by", ["speed", "load"])
def test_neighbours_are_the_nearest(key, by):
    """One round: only those next to processor 0 in that order hear of it."""
    x = features(key, 12, ())
    place = networks.SPEED if by == "speed" else networks.LOAD
    x = x.replace(processor=x.processor.at[:, place].set(jax.random.permutation(key, 12).astype(jnp.float32)))
    network = networks.gnn((16, 16), graph=by, neighbours=3)
    parameters = parameters_of(network, key, x)
    other = (place + 1) % x.processor.shape[-1]
    moved = x.replace(processor=x.processor.at[0, other].add(1.0))
    told = np.flatnonzero(np.abs(network.apply(parameters, moved) - network.apply(parameters, x)) > 1e-6)
    rank = np.asarray(x.processor[:, place])
    window = np.clip(rank - 1, 0, 12 - 3)  # the first of the three
    expected = [i for i in range(12) if i == 0 or window[i] <= rank[0] < window[i] + 3]
    assert set(told) <= set(expected)
    assert len(told) >= 2


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match=r"widths = \(\): must be at least one layer"):
        networks.mlp(())
    with pytest.raises(ValueError, match=r"widths = \(8, 0\)"):
        networks.per_processor((8, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 3}, "rounds = 3: must be at most the number of layers, 2"),
        ({"pooling": "sum"}, "unknown pooling 'sum'"),
        ({"graph": "ring"}, "unknown graph 'ring'"),
        ({"neighbours": 0}, "neighbours = 0: must be a whole number of at least 1"),
        ({"depth": 2}, "unknown option of network 'gnn' 'depth'"),
    ],
)
def test_graphs_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        networks.network("gnn", **options)


def test_a_perceptron_for_other_processors_is_refused_in_one_line(key):
    env, params = jaxlb.make("heavy-tail")
    wide, wide_params = jaxlb.make("heavy-tail", num_processors=8)
    config = DQNConfig(network=networks.mlp((4,)), num_lanes=2, memory_rows=4)
    scheduler = learned.dqn(config.network, start_dqn(env, params, config, key).variables)
    told = "a perceptron trained for 4 processors, here are 8: must be as many"
    with pytest.raises(ValueError, match=told) as caught:
        jaxlb.rollout(wide, wide_params, scheduler, key, 2, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        networks.mlp,
        lambda: networks.per_processor((4, 8), duelling=True),
        lambda: networks.gnn(rounds=2, pooling="max"),
        networks.recurrent_gnn,
    ],
)
def test_built_in_networks_are_described(make):
    made = make()
    settings = networks.described(made)
    name = settings.pop("network")
    assert networks.network(name, **settings) == made
    assert networks.described(made._replace(apply=lambda *given: made.apply(*given))) is None


class Linear(nn.Module):
    widths: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(self, features):
        return nn.Dense(1)(features.processor)[..., 0]


def test_a_flax_module_is_a_network(key):
    env, params = jaxlb.make("heavy-tail")
    config = jaxlb.GNNConfig(network=Linear(), num_lanes=8, num_iterations=8, batch_size=8)
    assert jaxlb.train_gnn(env, params, config, key).scheduler.name == "gnn"
    # So are programs shared between equal ones.
    assert learned.remembering(Linear()) == learned.remembering(Linear())
    bad = {Linear: "must have init and apply", 5: "must have init and apply"}
    for network, message in [*bad.items(), (Linear(widths=[1]), "must be hashable")]:
        with pytest.raises(ValueError, match=f"network = .*: {message}"):
            jaxlb.train_gnn(env, params, config.replace(network=network), key)
