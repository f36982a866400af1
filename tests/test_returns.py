"""Rewards in units of the deviation of discounted returns, against NumPy over all of them."""

import jax
import numpy as np

from jaxlb.learn import returns


def test_rewards_are_divided_by_the_deviation_of_all_returns_so_far():
    rng = np.random.default_rng(0)
    reward = rng.exponential(size=(50, 8)).astype(np.float32) * 100.0 - 30.0
    done = rng.random((50, 8)) < 0.1
    state, current, every = returns.no_returns((8,)), np.zeros(8), []
    step = jax.jit(returns.scaled)
    for one, ended in zip(reward, done, strict=True):
        shown, state = step(state, one, ended, 0.9)
        current = 0.9 * current + one
        every.append(current)
        np.testing.assert_allclose(shown, one / np.std(every), rtol=1e-4)
        current = np.where(ended, 0.0, current)
    np.testing.assert_allclose(state.mean, np.mean(every), rtol=1e-4)


def test_small_rewards_are_as_large_as_others():
    reward = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    found = []
    for scale in (1.0, 1e-6):
        state = returns.no_returns((4,))
        for one in reward:
            shown, state = returns.scaled(state, np.float32(scale) * one, np.zeros(4, bool))
        found.append(shown)
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_rewards_that_never_differ_are_nothing():
    state = returns.no_returns((4,))
    shown, _ = returns.scaled(state, np.full(4, 7.0, np.float32), np.zeros(4, bool))
    np.testing.assert_array_equal(shown, np.zeros(4))
