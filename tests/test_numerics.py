"""The small tools, against exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlb.numerics import at_processor, divide, first_smallest, two_sum

floats = st.floats(2.0**-60, 2.0**60, width=32)


@settings(max_examples=300, deadline=None)
@given(a=floats, b=floats, sign=st.sampled_from([1, -1]))
def test_two_sum_is_exact(a, b, sign):
    total, error = jax.jit(two_sum)(jnp.float32(a), jnp.float32(sign * b))
    assert Fraction(float(total)) + Fraction(float(error)) == Fraction(a) + Fraction(sign * b)


# Times and speeds of any use: here nothing underflows.
ordinary = st.floats(2.0**-30, 2.0**30, width=32)


@settings(max_examples=300, deadline=None)
@given(a=ordinary, b=ordinary)
def test_division_keeps_35_bits(a, b):
    head, tail = jax.jit(divide)(jnp.float32(a), jnp.float32(b))
    exact = Fraction(a) / Fraction(b)
    assert abs(Fraction(float(head)) + Fraction(float(tail)) - exact) <= exact * Fraction(2) ** -34


def test_the_first_smallest_wins_and_ties_go_to_the_tiebreak():
    cost = jnp.array([[3.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(first_smallest(cost), [1, 0])
    tiebreak = jnp.array([[0.0, 5.0], [2.0, 4.0], [1.0, 4.0]])
    np.testing.assert_array_equal(first_smallest(cost, tiebreak), [2, 1])
    np.testing.assert_array_equal(at_processor(cost, jnp.array([0, 2])), [3.0, 1.0])


def test_a_cost_that_the_compiler_computes_twice_still_has_a_smallest():
    # A product fused into a sum here and not there: the minimum then equals none of the costs.
    rng = np.random.default_rng(0)
    a, b, c = (jnp.asarray(rng.normal(size=(3, 100_000)), jnp.float32) for _ in range(3))

    @jax.jit
    def choose(a, b, c):
        return first_smallest(a * b + c * a, -b)

    chosen = np.asarray(choose(a, b, c))
    cost = np.float64(a) * np.float64(b) + np.float64(c) * np.float64(a)
    regret = cost[chosen, np.arange(cost.shape[1])] - cost.min(0)
    assert (regret <= 1e-5 * np.abs(cost).max(0)).all()
