"""What a scheduler for any system is to make small."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import checks
from jaxlb.numerics import at_processor
from jaxlb.rewards import Weights
from jaxlb.types import Array

COSTS = ("completion", "slowdown", "violations")
"""What is priced: the completion time to a power, the same relative to the size, violated deadlines."""


class Objective(struct.PyTreeNode):
    """What is to be small, per task: a weighted sum, in mean services; leaves numbers, or `[N]`.

    Attributes:
      completion: weight of completion times.
      exponent: of completion times.
      slowdown: completion time / size, where an average task of the law has 1.
      violations: weight of violated deadlines.
      class_weights: `[C]` of a violation, by priority; those beyond C count as the last.
      imbalance: variance over processors of the backlog after the assignment, in mean sizes.
      crowding: crowding / (share of the capacity that is free) is added to `completion`.
    """

    completion: Any = 1.0
    exponent: Any = 1.0
    slowdown: Any = 0.0
    violations: Any = 0.0
    class_weights: Any = (1.0,)
    imbalance: Any = 0.0
    crowding: Any = 0.0

    def check(self) -> None:
        """Raise ValueError if a weight is out of bounds, or there is none."""
        for name in ("completion", "slowdown", "violations", "class_weights", "imbalance", "crowding"):
            checks.leaf(name, getattr(self, name), low=0)
        checks.leaf("exponent", self.exponent, above=0)
        if np.size(self.class_weights) == 0:
            raise ValueError("class_weights = (): must be at least one weight")
        names = ("completion", "slowdown", "violations", "imbalance", "crowding")
        weights = [getattr(self, name) for name in names]
        if not checks.traced(weights) and not any(np.any(np.asarray(weight) > 0) for weight in weights):
            raise ValueError(f"objective: one of {', '.join(names)} must be above 0")

    def crowded(self, free: Array) -> "Objective":
        """Return it for a system of which this share `[...]` of the capacity is free."""
        completion, crowding = (jnp.asarray(one, jnp.float32) for one in (self.completion, self.crowding))
        return self.replace(completion=completion + crowding / free, crowding=jnp.float32(0.0))

    def shares(self, weight: Array) -> list[Array]:
        """Return the weights of `COSTS`, adding up to 1; a violation has the mean `weight` `[...]`."""
        whole = self._whole(weight)
        return [each / whole for each in self._priced(weight)]

    def imbalance_share(self, weight: Array) -> Array:
        """Return the weight of the imbalance, on the same scale."""
        return jnp.asarray(self.imbalance, jnp.float32) / self._whole(weight)

    def _priced(self, weight: Array) -> list[Array]:
        each = (self.completion, self.slowdown, self.violations * weight)
        return [jnp.asarray(one, jnp.float32) for one in each]

    def _whole(self, weight: Array) -> Array:
        completion, slowdown, violations = self._priced(weight)
        whole = completion + slowdown + violations
        return jnp.where(whole > 0, whole, 1.0)


def violation_weight(objective: Objective, priority: Array) -> Array:
    """Return the weight `[...]` of a violation by a task."""
    weights = jnp.asarray(objective.class_weights, jnp.float32)
    weights = weights.reshape(-1, *weights.shape[1:], *(1,) * (priority.ndim + 1 - weights.ndim))
    return at_processor(weights, jnp.minimum(priority, len(weights) - 1))


OBJECTIVES = {
    "completion": Objective(),
    "slowdown": Objective(completion=0.0, slowdown=1.0),
    "violations": Objective(completion=0.0, violations=1.0, crowding=0.0003),
    "imbalance": Objective(completion=0.0, imbalance=1.0),
}
"""By name: mean completion time, slowdown, violated deadlines, imbalance.

Violations alone would let tasks that are late anyway wait for ever, the more so the less capacity is free.
"""


def as_objective(objective: "str | Weights | Objective") -> Objective:
    """Return the objective of a name, or of weights.

    Raises:
      ValueError: an unknown one, or weights out of bounds.
    """
    if isinstance(objective, str):
        checks.known("objective", objective, OBJECTIVES)
        objective = OBJECTIVES[objective]
    elif isinstance(objective, Weights):
        sla = np.atleast_1d(np.asarray(objective.sla_weight, np.float32))
        objective = Objective(
            completion=objective.completion_weight,
            exponent=objective.completion_exponent,
            violations=float(sla.max()),
            class_weights=tuple((sla / max(float(sla.max()), 1e-30)).tolist()),
            imbalance=objective.imbalance_weight,
        )
    if not isinstance(objective, Objective):
        names = ", ".join(map(repr, OBJECTIVES))
        raise ValueError(f"objective = {checks.shown(objective)}: must be {names}, or jaxlb.Weights")
    objective.check()
    return objective
