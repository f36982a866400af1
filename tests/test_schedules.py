"""Schedules at known places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlb.learn.schedules import schedule


@pytest.mark.parametrize(
    ("kind", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.505, 0.01), ("exponential", 0.1, 0.01), ("cosine", 0.505, 0.01)],
)
def test_a_schedule_at_its_beginning_middle_and_end(kind, middle, last):
    progress = jnp.array([0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(
        jax.vmap(lambda p: schedule(kind, 1.0, 0.01, p))(progress), [1.0, middle, last, last], rtol=1e-5
    )


def test_cosine_starts_and_ends_slowly():
    at = [float(schedule("cosine", 1.0, 0.0, jnp.float32(p))) for p in (0.1, 0.9)]
    np.testing.assert_allclose(
        at, [0.5 + 0.5 * np.cos(0.1 * np.pi), 0.5 - 0.5 * np.cos(0.1 * np.pi)], rtol=1e-5
    )


def test_its_ends_can_be_vmapped():
    rates = jax.vmap(lambda first: schedule("linear", first, 0.0, jnp.float32(0.5)))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(rates, [0.5, 1.0])
