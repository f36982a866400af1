"""Laws of task sizes, each a pytree of its parameters, drawn from one uniform number.

`inverse_survival(u)` is the size exceeded with probability u: the inverse distribution function read from
the tail, where small floats are fine enough to resolve it. Laws that are mixtures have no closed inverse;
they let the uniform pick the branch and use its remainder within, which is exact too, but not monotone.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtri

from jaxlb import checks
from jaxlb.types import Array, Scalar


def _split(uniform: Array, probability: Scalar) -> tuple[Array, Array]:
    """Use one uniform twice: whether it falls below `probability`, and the rest of it, uniform again."""
    below = uniform < probability
    rest = jnp.where(below, uniform / probability, (uniform - probability) / (1.0 - probability))
    return below, jnp.clip(rest, 1e-9, 1.0 - 2.0**-24)


class Law(struct.PyTreeNode):
    """What laws derive from whose parameters are all numbers, finite and above 0; others check by themselves.

    See `jaxlb.protocols.SizeLaw` for what they need besides.
    """

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        for field in dataclasses.fields(self):
            checks.leaf(field.name, getattr(self, field.name), above=0)


class _OfMean(Law):
    """A law given by its mean."""

    mean_size: Scalar = 1.0

    def mean(self) -> Array:
        """Return the expected size."""
        return jnp.asarray(self.mean_size)


class _OfMeanAndVariation(_OfMean):
    """A law given by its mean and squared coefficient of variation."""

    squared_cv: Scalar = 1.0

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return self.mean() ** 2 * (1.0 + self.squared_cv)


class Exponential(_OfMean):
    """Exponential with the given mean."""

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return 2.0 * self.mean() ** 2

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        return -self.mean_size * jnp.log(uniform)


class Deterministic(_OfMean):
    """Every task has the same size."""

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return self.mean() ** 2

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        return jnp.broadcast_to(self.mean(), uniform.shape)


class Uniform(struct.PyTreeNode):
    """Uniform on [low, high]."""

    low: Scalar = 0.5
    high: Scalar = 1.5

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("low", self.low, low=0)
        checks.leaf("high", self.high, above=0)
        checks.leaf("high - low", np.asarray(self.high) - np.asarray(self.low), low=0)

    def mean(self) -> Array:
        """Return the expected size."""
        return 0.5 * (jnp.asarray(self.low) + self.high)

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return (jnp.asarray(self.low) ** 2 + self.low * self.high + self.high**2) / 3.0

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        return self.high - (self.high - self.low) * uniform


class LogNormal(_OfMeanAndVariation):
    """Lognormal with the given mean and squared coefficient of variation."""

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        variance = jnp.log1p(self.squared_cv)
        return self.mean_size * jnp.exp(-jnp.sqrt(variance) * ndtri(uniform) - 0.5 * variance)


class BoundedPareto(struct.PyTreeNode):
    """Pareto with the given tail index, conditioned on [low, high]; `high` may be infinite.

    P(size > x) = ((low/x)^a - (low/high)^a) / (1 - (low/high)^a) with tail index a; Harchol-Balter,
    Crovella, Murta (1999). Where `high` is infinite the tail index must exceed 1, or there is no mean.
    """

    low: Scalar = 1.0
    high: Scalar = 1000.0
    tail_index: Scalar = 1.5

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("low", self.low, above=0)
        checks.leaf("high", self.high, above=0, infinite=True)
        checks.leaf("high / low", np.asarray(self.high) / np.asarray(self.low), above=1, infinite=True)
        checks.leaf("tail_index", self.tail_index, above=0)
        if np.any(np.isinf(self.high)):
            checks.leaf("tail_index, as high is infinite,", self.tail_index, above=1)

    def _moment(self, order: int) -> Array:
        """Return E[size^order], exact, also where tail_index equals the order."""
        log_ratio = jnp.log(jnp.asarray(self.low) / self.high)
        excess = jnp.asarray(self.tail_index) - order
        near = jnp.abs(excess) < 1e-6
        safe = jnp.where(near, 1.0, excess)
        integral = jnp.where(near, -log_ratio, -jnp.expm1(safe * log_ratio) / safe)
        scale = jnp.asarray(self.low) ** order * self.tail_index
        return scale * integral / -jnp.expm1(self.tail_index * log_ratio)

    def mean(self) -> Array:
        """Return the expected size."""
        return self._moment(1)

    def second_moment(self) -> Array:
        """Return the expected squared size; infinite where the law has none."""
        return self._moment(2)

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        at_high = jnp.asarray(self.low / self.high) ** self.tail_index
        return self.low * (at_high + uniform * (1.0 - at_high)) ** (-1.0 / self.tail_index)


class Hyperexponential(_OfMeanAndVariation):
    """Two exponentials with balanced means: the given mean and squared coefficient of variation >= 1.

    With probability p the mean is mean_size / 2p, else mean_size / 2(1 - p), where
    p = (1 + sqrt((c - 1) / (c + 1))) / 2 (Tijms 1994).
    """

    squared_cv: Scalar = 4.0

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        super().check()
        checks.leaf("squared_cv", self.squared_cv, low=1)

    def inverse_survival(self, uniform: Array) -> Array:
        """Return a size from one uniform, by composition."""
        p = balanced_probability(self.squared_cv)
        short, rest = _split(uniform, p)
        return -self.mean_size * jnp.log(rest) / (2.0 * jnp.where(short, p, 1.0 - p))


def balanced_probability(squared_cv: Scalar) -> Array:
    """Return the short branch's probability in a hyperexponential law with balanced means (Tijms 1994)."""
    squared_cv = jnp.maximum(jnp.asarray(squared_cv), 1.0)
    return 0.5 * (1.0 + jnp.sqrt((squared_cv - 1.0) / (squared_cv + 1.0)))


class Bimodal(struct.PyTreeNode):
    """`large` with probability `large_probability`, else `small`."""

    small: Scalar = 1.0
    large: Scalar = 10.0
    large_probability: Scalar = 0.1

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("small", self.small, above=0)
        checks.leaf("large", self.large, above=0)
        checks.leaf("large - small", np.asarray(self.large) - np.asarray(self.small), low=0)
        checks.leaf("large_probability", self.large_probability, low=0, high=1)

    def mean(self) -> Array:
        """Return the expected size."""
        return self.small + (jnp.asarray(self.large) - self.small) * self.large_probability

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return self.small**2 + (jnp.asarray(self.large) ** 2 - self.small**2) * self.large_probability

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        return jnp.where(uniform < self.large_probability, self.large, self.small)


class Empirical(struct.PyTreeNode):
    """The sizes of a trace, each as likely as another."""

    descending: Array  # [T] work, largest first

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("sizes", self.descending, above=0)
        if np.ndim(self.descending) != 1 or np.any(np.diff(self.descending) > 0):
            raise ValueError(f"sizes have shape {np.shape(self.descending)}: must be (T,), the largest first")

    def mean(self) -> Array:
        """Return the expected size."""
        return self.descending.mean()

    def second_moment(self) -> Array:
        """Return the expected squared size."""
        return (self.descending**2).mean()

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size exceeded with probability `uniform`."""
        count = self.descending.shape[0]
        return self.descending[jnp.clip((uniform * float(count)).astype(jnp.int32), 0, count - 1)]
