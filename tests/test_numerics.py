"""The small tools, against exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlb.numerics import (
    at_processor,
    divide,
    first_smallest,
    least,
    mean,
    put_at,
    stored,
    total,
    two_sum,
    variance,
    variance_grown,
)

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


@pytest.mark.parametrize("num_processors", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("lanes", [(), (1,), (7,), (3, 5)])
def test_one_entry_of_each_lane_is_read_and_written(num_processors, lanes):
    rng = np.random.default_rng(num_processors)
    values, ring = rng.normal(size=(num_processors, *lanes)), rng.normal(size=(num_processors, 3, *lanes))
    action, place = rng.integers(num_processors, size=lanes), rng.integers(3, size=lanes)
    values, ring, new = (x.astype(np.float32) for x in (values, ring, rng.normal(size=lanes)))
    written, ring_written = values.copy(), ring.copy()
    for lane in np.ndindex(lanes):
        written[(action[lane], *lane)] = new[lane]
        ring_written[(action[lane], place[lane], *lane)] = new[lane]
    read = np.take_along_axis(values, action[None], 0)[0]
    same = values.reshape(num_processors, -1)[:, :1].reshape(num_processors, *(1,) * len(lanes))
    action, place = jnp.asarray(action, jnp.int32), jnp.asarray(place, jnp.int32)
    np.testing.assert_array_equal(at_processor(jnp.asarray(values), action), read)
    np.testing.assert_array_equal(at_processor(jnp.asarray(same), action), same.reshape(-1)[action])
    np.testing.assert_array_equal(put_at(jnp.asarray(values), jnp.asarray(new), action), written)
    np.testing.assert_array_equal(put_at(jnp.asarray(ring), jnp.asarray(new), action, place), ring_written)
    if len(lanes) == 1:
        alone = jax.vmap(put_at, (1, 0, 0), 1)(jnp.asarray(values), jnp.asarray(new), action)
        np.testing.assert_array_equal(alone, written)
        np.testing.assert_array_equal(jax.vmap(at_processor, (1, 0))(jnp.asarray(values), action), read)


@pytest.mark.parametrize("num_processors", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("lanes", [(), (7,)])
def test_reductions_over_processors(num_processors, lanes):
    x = np.random.default_rng(0).normal(size=(num_processors, *lanes)).astype(np.float32)
    for ours, theirs in ((total, np.sum), (least, np.min), (mean, np.mean), (variance, np.var)):
        np.testing.assert_allclose(ours(jnp.asarray(x)), theirs(np.float64(x), 0), rtol=1e-5, atol=1e-6)


def test_what_is_stored_is_what_it_was():
    values = jnp.array([0.0, -0.0, 1.2e-38, -2.5, 3e38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(jax.jit(stored)(values), values)
    whole = jnp.array([0, -7, 2**24 - 1], jnp.int32)
    kept = jax.jit(stored)(whole)
    assert kept.dtype == jnp.int32
    np.testing.assert_array_equal(kept, whole)


def test_variance_after_one_entry_has_grown():
    rng = np.random.default_rng(0)
    for num_processors in (1, 2, 5, 100):
        x = rng.exponential(size=(num_processors, 1000)).astype(np.float32)
        growth, which = rng.pareto(1.5, 1000).astype(np.float32), rng.integers(num_processors, size=1000)
        after = np.float64(x)
        after[which, np.arange(1000)] += growth
        found = variance_grown(jnp.asarray(x), jnp.asarray(x[which, np.arange(1000)]), jnp.asarray(growth))
        # Off by roundings of the squares that it is made of.
        squares = np.float64(x).var(0) + np.float64(growth) ** 2
        assert (np.abs(found - after.var(0)) <= 1e-6 * squares).all()


@pytest.mark.parametrize("num_processors", [3, 12])
def test_a_cost_that_the_compiler_computes_twice_still_has_a_smallest(num_processors):
    # A product fused into a sum here and not there: the minimum then equals none of the costs.
    rng = np.random.default_rng(0)
    a, b, c = (jnp.asarray(rng.normal(size=(num_processors, 100_000)), jnp.float32) for _ in range(3))

    @jax.jit
    def choose(a, b, c):
        return first_smallest(a * b + c * a, -b)

    chosen = np.asarray(choose(a, b, c))
    cost = np.float64(a) * np.float64(b) + np.float64(c) * np.float64(a)
    regret = cost[chosen, np.arange(cost.shape[1])] - cost.min(0)
    assert (regret <= 1e-5 * np.abs(cost).max(0)).all()
