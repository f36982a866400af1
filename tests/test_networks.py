"""Shapes and symmetries of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlb.learn import networks
from jaxlb.schedulers.learned import Features


def features(key, num_processors, lanes=(5,)):
    task_key, processor_key = jax.random.split(key)
    return Features(
        task=jax.random.normal(task_key, (*lanes, 3)),
        processor=jax.random.normal(processor_key, (*lanes, num_processors, 4)),
    )


@pytest.mark.parametrize("duelling", [False, True])
@pytest.mark.parametrize("make", [networks.mlp, networks.per_processor])
def test_a_value_for_each_processor_of_each_lane(key, make, duelling):
    network = make((8, 8), duelling)
    for lanes in ((), (5,)):
        x = features(key, 6, lanes)
        values = network.apply(network.init(key, x), x)
        assert (values.shape, values.dtype) == ((*lanes, 6), jnp.float32)


@pytest.mark.parametrize("duelling", [False, True])
def test_permuting_processors_permutes_the_values(key, duelling):
    network = networks.per_processor((16, 16), duelling)
    x = features(key, 6)
    parameters = network.init(key, x)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    permuted = x.replace(processor=x.processor[:, order])
    values = network.apply(parameters, x)
    np.testing.assert_allclose(network.apply(parameters, permuted), values[:, order], atol=1e-5)
    assert float(jnp.std(values, axis=-1).min()) > 1e-3


def test_per_processor_weights_serve_any_number_of_processors(key):
    network = networks.per_processor((16,))
    parameters = network.init(key, features(key, 4))
    assert network.apply(parameters, features(key, 32)).shape == (5, 32)


def test_what_other_processors_do_matters(key):
    network = networks.per_processor((16, 16))
    x = features(key, 4)
    parameters = network.init(key, x)
    moved = x.replace(processor=x.processor.at[:, 0].add(1.0))
    change = network.apply(parameters, moved) - network.apply(parameters, x)
    assert float(jnp.abs(change[:, 1:]).max()) > 1e-3


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match=r"widths = \(\): must be at least one layer"):
        networks.mlp(())
    with pytest.raises(ValueError, match=r"widths = \(8, 0\)"):
        networks.per_processor((8, 0))
