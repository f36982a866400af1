"""Least Work Remaining on predicted loads: always, or where a detector says that the reported drifted."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxlb import checks, drift
from jaxlb.drift import Detector
from jaxlb.functions import partial
from jaxlb.scheduling import predictors, tracking
from jaxlb.scheduling.base import cheapest
from jaxlb.scheduling.predictors import Fit, Predictor
from jaxlb.scheduling.tracking import Tracking
from jaxlb.scheduling.units import mean_size
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

IDLE = 1e-3
"""Work, in mean sizes, that is as good as none: rounding decides nothing between idle processors."""


class Memory(struct.PyTreeNode):
    """What these schedulers carry from task to task."""

    tracking: Tracking
    detector: Any  # state, of streams [P, ...]
    trusted: Array  # [...] int32, decisions for which the prediction is still used


def drifted(detector: Detector, state: Any, load: Array, backlog: Array, error: Array) -> tuple[Any, Array]:
    """Return the detector's state, and where predictions and reports have come apart.

    Args:
      detector: of drift.
      state: its state, of streams `[P, ...]`.
      load: `[P, ...]` mean sizes, as reported.
      backlog: the same, as predicted.
      error: its standard error.
    """
    # Deviations below the predictor's own error say nothing.
    error = jnp.maximum(error, IDLE)
    return detector.update(
        state, (backlog - load) / (jnp.maximum(load, error) if detector.relative else error)
    )


def _start(detector: Detector | None, env: Static, params: EnvParams, lanes: Lanes) -> Memory:
    del env
    return Memory(
        tracking=tracking.start(params, lanes),
        detector=() if detector is None else detector.init((params.speed.shape[0], *lanes)),
        trusted=jnp.zeros(lanes, jnp.int32),
    )


def _act(
    predictor: Predictor,
    detector: Detector | None,
    hold: int,
    fit: Fit,
    memory: Memory,
    observation: Observation,
    key: Key,
) -> tuple[Array, Memory]:
    del key
    tracked, _, backlog, error = predictors.forecast(predictor, fit, memory.tracking, observation)
    work, state, trusted = mean_size(observation, tracked.unit), memory.detector, memory.trusted
    load = work * jnp.where(backlog < IDLE, 0.0, backlog)
    tiebreak = -observation.speed
    if detector is not None:
        state, alarm = drifted(detector, state, observation.load / work, backlog, error)
        trusted = jnp.where(alarm.any(0), hold, jnp.maximum(trusted - 1, 0))
        load = jnp.where(trusted > 0, load, observation.load)
        tiebreak = jnp.where(trusted > 0, tiebreak, 0.0)
    action = cheapest(observation, load / observation.speed, tiebreak)
    return action, Memory(tracked, state, trusted)


def predicting(
    name: str, predictor: Predictor, fit: Fit, detector: Detector | None, hold: int = 1
) -> Scheduler:
    """Follow LWR on predicted loads for `hold` decisions after every alarm; without a detector, always.

    Ties of predicted loads go to the fastest, those of reported ones to the lowest index, as in LWR.
    """
    return Scheduler(name, fit, partial(_start, detector), partial(_act, predictor, detector, hold))


def predictive() -> Scheduler:
    """Minimise the predicted work remaining, whatever is reported: by the account of it that is kept."""
    return predicting("predictive", *predictors.reckoned(), detector=None)


def drift_aware(detector: str = "threshold", hold: int = 1) -> Scheduler:
    """Follow LWR on predicted loads while reported ones have drifted from them, else on the reported ones.

    Args:
      detector: of drift, by name: `jaxlb.drift.DETECTORS`.
      hold: decisions for which an alarm lasts.
    """
    checks.at_least("hold", hold, 1)
    return predicting("drift-aware", *predictors.reckoned(), drift.detector(detector), hold)
