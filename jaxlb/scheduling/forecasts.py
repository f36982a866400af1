"""What waits a learned scheduler expects: reckoned from the last measurement, or predicted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxlb import checks
from jaxlb.recipes import cached, picklable, recorded
from jaxlb.scheduling import predictors, tracking
from jaxlb.scheduling.predictors import Fit, Predictor
from jaxlb.scheduling.tracking import Tracking
from jaxlb.scheduling.units import in_mean_services, mean_service
from jaxlb.types import Array, EnvParams, Lanes, Observation


@picklable
class Forecaster(NamedTuple):
    """Of the wait at each processor, as pure functions.

    Attributes:
      name: what settings call it.
      start: (params, lanes) -> memory.
      look: (memory, observation) -> (memory, observation, waits `[P, ...]`), these two in mean services.
    """

    name: str
    start: Callable[[EnvParams, Lanes], Any]
    look: Callable[[Any, Observation], tuple[Any, Observation, Array]]


def _fluid_look(unit: Array, observation: Observation) -> tuple[Array, Observation, Array]:
    o = in_mean_services(observation, unit)
    return unit, o, jnp.maximum(o.wait + o.assigned / o.speed - o.age, 0.0)


@cached
def _fluid() -> Forecaster:
    return Forecaster("fluid", mean_service, _fluid_look)


FLUID = _fluid()
"""Waits as measured, and assigned since, less the time since: too small by the time a processor idled.

Where figures are fresh, they are the forecast. Its memory is the mean service.
"""


@recorded
def predicted(predictor: Predictor, fit: Fit) -> Forecaster:
    """Waits by a predictor that was trained, as in `drift-aware`. Its memory is of loads.

    Make it once: programs are compiled for each.
    """
    return _predicted(predictor, fit)


def _predicted(predictor: Predictor, fit: Fit) -> Forecaster:
    def look(memory: Tracking, observation: Observation) -> tuple[Tracking, Observation, Array]:
        memory, seen, backlog, _ = predictors.forecast(predictor, fit, memory, observation)
        return memory, seen, backlog / seen.speed

    return Forecaster("predicted", tracking.start, look)


@cached
def _shipped() -> Forecaster:
    return _predicted(*predictors.shipped())


FORECASTERS: dict[str, Callable[[], Forecaster]] = {"fluid": lambda: FLUID, "predicted": _shipped}


def forecaster(name: str) -> Forecaster:
    """A forecaster by name; `"predicted"` is by the predictor that comes with jaxlb.

    Raises:
      ValueError: an unknown name.
    """
    checks.known("forecaster", name, FORECASTERS)
    return FORECASTERS[name]()
