"""Systems drawn at random are what their bounds say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlb.learn import prior


@pytest.mark.slow
def test_a_prior_draws_what_it_says(key):
    params, objective = prior.Prior(num_lanes=500, least_load=0.4, most_load=0.6).draw(4, key)
    assert 0.4 <= params.load.min() < params.load.max() <= 0.6
    np.testing.assert_allclose(params.nominal_speed.mean(0), 1.0, rtol=1e-5)
    wrong = (params.speed != params.nominal_speed).any(0).mean()
    assert 0.05 < wrong < 0.16  # 0.1 of 500 lanes, four standard deviations
    np.testing.assert_allclose(params.class_probability.sum(0), 1.0, rtol=1e-5)
    share = jax.random.uniform(jax.random.key(1), (20_000, 500), jnp.float32, 1e-7)
    sizes = jax.jit(lambda params, share: params.size.inverse_survival(share).mean(0))(params, share)
    light = np.asarray(params.size.second_moment()) < 20
    np.testing.assert_allclose(sizes[light], 1.0, atol=0.16)  # five standard errors
    shares = sum(np.asarray(leaf) for leaf in objective.shares(jnp.float32(1.0)))
    np.testing.assert_allclose(shares, 1.0, rtol=1e-5)
