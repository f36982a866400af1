"""The running scale of discounted returns, by which a training loop divides its rewards."""

import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import mixed_variance
from jaxlb.types import Array, Lanes


class Returns(struct.PyTreeNode):
    """Discounted returns of N lanes, and their moments over all steps so far.

    Attributes:
      current: `[N]` of the rewards up to now.
      mean: over lanes and steps.
      variance: the same.
      count: steps that these are of.
    """

    current: Array
    mean: Array
    variance: Array
    count: Array


def no_returns(lanes: Lanes) -> Returns:
    """Return returns before the first step."""
    zero = jnp.float32(0.0)
    return Returns(jnp.zeros(lanes, jnp.float32), zero, zero, zero)


def scaled(returns: Returns, reward: Array, done: Array, discount: float = 0.99) -> tuple[Array, Returns]:
    """Divide rewards by the standard deviation of discounted returns so far, these included.

    What is learned from them is what the rewards themselves would teach: they are neither shifted nor cut.

    Args:
      returns: so far.
      reward: `[N]` of this step.
      done: `[N]` bool, whether an episode ended with it.
      discount: of the reward one step later.

    Returns:
      The rewards, divided, and the returns with this step.
    """
    current = discount * returns.current + reward
    count, new = returns.count + 1.0, current.mean()
    mean = returns.mean + (new - returns.mean) / count
    variance = mixed_variance(1.0 / count, returns.variance, current.var(), returns.mean, new)
    after = Returns(jnp.where(done, 0.0, current), mean, variance, count)
    spread = jnp.sqrt(variance)
    # What only rounding made differ never varied.
    return reward / jnp.where(spread > 1e-6 * jnp.abs(mean), spread, jnp.inf), after
