"""What waits a learned scheduler expects: reckoned from the last measurement, or predicted."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.scheduling import predictors, tracking
from jaxlb.scheduling.predictors import Fit, Predictor
from jaxlb.scheduling.tracking import Tracking
from jaxlb.scheduling.units import in_mean_services, mean_service
from jaxlb.types import Array, EnvParams, Lanes, Observation


class Forecaster(struct.PyTreeNode):
    """Of the wait at each processor: pure functions, which are static, and the variables they need.

    Attributes:
      name: what settings call it.
      variables: any pytree.
      start: (params, lanes) -> memory.
      update: (variables, memory, observation) -> (memory, observation, waits `[P, ...]`), these two in mean
        services.
    """

    name: str = struct.field(pytree_node=False)
    variables: Any
    start: Callable[[EnvParams, Lanes], Any] = struct.field(pytree_node=False)
    update: Callable[[Any, Any, Observation], tuple[Any, Observation, Array]] = struct.field(
        pytree_node=False
    )


def _fluid(variables: tuple, unit: Array, observation: Observation) -> tuple[Array, Observation, Array]:
    del variables
    o = in_mean_services(observation, unit)
    return unit, o, jnp.maximum(o.wait + o.assigned / o.speed - o.age, 0.0)


FLUID = Forecaster("fluid", (), mean_service, _fluid)
"""Waits as measured, and assigned since, less the time since: too small by the time a processor idled.

Where figures are fresh, they are the forecast. Its memory is the mean service.
"""


def _predicted(
    predictor: Predictor, fit: Fit, memory: Tracking, observation: Observation
) -> tuple[Tracking, Observation, Array]:
    memory, seen, backlog, _ = predictors.forecast(predictor, fit, memory, observation)
    return memory, seen, backlog / seen.speed


def predicted(predictor: Predictor, fit: Fit) -> Forecaster:
    """Predict waits by a predictor that was trained, as in `drift-aware`. Its memory is of loads."""
    return Forecaster("predicted", fit, tracking.start, partial(_predicted, predictor))


FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "fluid": lambda: FLUID,
    "predicted": lambda: predicted(*predictors.reckoned()),
}


def forecaster(name: str) -> Forecaster:
    """Make a forecaster by name; `"predicted"` takes the account of backlogs that is kept.

    Raises:
      ValueError: an unknown name.
    """
    checks.known("forecaster", name, FORECASTERS)
    return FORECASTERS[name]()
