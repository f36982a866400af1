"""Laws of task sizes, with all that is known of them exactly."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxlb.protocols import SizeLaw
from jaxlb.verification.base import (
    DEAR,
)
from jaxlb.workload import sizes


class Law(NamedTuple):
    """A size law and what is known of it.

    Attributes:
      law: itself.
      mean: work.
      second_moment: work squared.
      millions: of tasks that make the mean wait precise.
      precision: of that mean wait.
      drawn: millions of sizes that make their own moments precise.
      cdf: distribution function, if it is continuous.
    """

    law: SizeLaw
    mean: float
    second_moment: float
    millions: float
    precision: float = 0.005
    drawn: float = 10
    cdf: Callable[[np.ndarray], np.ndarray] | None = None

    def squared_cv(self) -> float:
        """Return the squared coefficient of variation."""
        return self.second_moment / self.mean**2 - 1.0


def _hyperexponential_cdf(squared_cv: float) -> Callable[[np.ndarray], np.ndarray]:
    p = 0.5 * (1.0 + np.sqrt((squared_cv - 1.0) / (squared_cv + 1.0)))
    return lambda x: -p * np.expm1(-2.0 * p * x) - (1.0 - p) * np.expm1(-2.0 * (1.0 - p) * x)


RECORDED = (0.2, 0.3, 0.3, 0.5, 0.5, 0.7, 1.0, 1.1, 2.4, 3.0)
PARETO = (1.5, 0.339589, 1000.0)  # tail index, smallest, largest: mean 1


def laws() -> dict[str, Law]:
    """List every size law, with mean 1 or near it."""
    tail_index, low, high = PARETO
    pareto = stats.truncpareto(tail_index, high / low, scale=low)
    recorded = np.array(RECORDED)
    lognormal = stats.lognorm(np.log(4.0) ** 0.5, scale=0.5)
    return {
        "deterministic": Law(sizes.Deterministic(1.0), 1.0, 1.0, 20),
        "uniform": Law(sizes.Uniform(0.0, 2.0), 1.0, 4 / 3, 30, cdf=stats.uniform(0.0, 2.0).cdf),
        "exponential": Law(sizes.Exponential(1.0), 1.0, 2.0, 40, cdf=stats.expon.cdf),
        "hyperexponential, C2 = 10": Law(
            sizes.Hyperexponential(1.0, 10.0), 1.0, 11.0, 200, DEAR, cdf=_hyperexponential_cdf(10.0)
        ),
        "lognormal, C2 = 3": Law(sizes.LogNormal(1.0, 3.0), 1.0, 4.0, 150, cdf=lognormal.cdf),
        "bounded Pareto": Law(
            sizes.BoundedPareto(low, high, tail_index),
            float(pareto.mean()),
            float(pareto.moment(2)),
            250,
            DEAR,
            drawn=150,
            cdf=pareto.cdf,
        ),
        "bimodal": Law(sizes.Bimodal(0.5, 10.5, 0.05), 1.0, 0.95 * 0.25 + 0.05 * 110.25, 100, DEAR),
        "empirical": Law(
            sizes.Empirical(jnp.asarray(np.sort(recorded)[::-1], jnp.float32)),
            float(recorded.mean()),
            float((recorded**2).mean()),
            40,
        ),
    }
