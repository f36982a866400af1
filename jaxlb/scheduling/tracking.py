"""What a scheduler remembers of the loads it was shown, and what it makes of them; work in mean sizes."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import struct

from jaxlb.scheduling.units import in_mean_services, mean_service
from jaxlb.types import Array, EnvParams, Lanes, Observation

WINDOW, SPAN = 10, 10.0
"""Decisions W that the moving averages are over: in a window, and with weight 2 / (W + 1) of the newest."""


class Tracking(struct.PyTreeNode):
    """Memory of loads, up to the last decision."""

    unit: Array  # [...] time, the mean service
    count: Array  # int32, decisions seen
    recent: Array  # [W, P, ...] work, reported loads, that of decision i in row i % W
    average: Array  # [P, ...] work, exponentially weighted mean of reported loads
    reckoned: Array  # [P, ...] work, backlog as it should be: measured, and then kept account of
    age: Array  # [...] time since the figures were measured
    assigned: Array  # [P, ...] work assigned since then


def start(params: EnvParams, lanes: Lanes) -> Tracking:
    """Return a memory without any observation."""
    nothing = jnp.zeros((params.speed.shape[0], *lanes), jnp.float32)
    return Tracking(
        unit=mean_service(params, lanes),
        count=jnp.int32(0),
        recent=jnp.zeros((WINDOW, *nothing.shape), jnp.float32),
        average=nothing,
        reckoned=nothing,
        age=nothing[0],
        assigned=nothing,
    )


def update(tracking: Tracking, observation: Observation) -> tuple[Tracking, Observation]:
    """Update the memory by an observation; return it, and the observation in mean services."""
    o = in_mean_services(observation, tracking.unit)
    first = tracking.count == 0
    newest = jnp.arange(WINDOW, dtype=jnp.int32) == tracking.count % WINDOW
    newest = newest.reshape(-1, *(1,) * o.load.ndim)
    # Nothing assigned since the measurement: it is newer than the last assignment. Otherwise what was
    # assigned since the last update came then, whoever decided it.
    measured = ~(o.assigned > 0).any(0)
    kept = tracking.reckoned + o.assigned - tracking.assigned
    before = jnp.where(measured, o.wait * o.speed, kept)
    passed = jnp.where(measured, o.age, o.age - tracking.age)
    average = tracking.average + 2.0 / (SPAN + 1.0) * (o.load - tracking.average)
    tracking = Tracking(
        unit=tracking.unit,
        count=tracking.count + 1,
        recent=jnp.where(newest, o.load, tracking.recent),
        average=jnp.where(first, o.load, average),
        reckoned=jnp.maximum(before - passed * o.speed, 0.0),
        age=o.age,
        assigned=o.assigned,
    )
    return tracking, o


def _moving(tracking: Tracking) -> tuple[Array, Array, Array]:
    """Return mean, slope per decision and standard deviation of the loads in the window, `[P, ...]` each."""
    back = (tracking.count - 1 - jnp.arange(WINDOW, dtype=jnp.int32)) % WINDOW
    used = (back < tracking.count).astype(jnp.float32)
    count = used.sum()
    place = -back.astype(jnp.float32)
    place = used * (place - (used * place).sum() / count)

    def weighted(weight: Array, x: Array) -> Array:
        return (weight.reshape(-1, *(1,) * (x.ndim - 1)) * x).sum(0)

    mean = weighted(used / count, tracking.recent)
    slope = weighted(place / jnp.maximum((place**2).sum(), 1.0), tracking.recent)
    return mean, slope, jnp.sqrt(weighted(used / count, (tracking.recent - mean) ** 2))


FEATURES: dict[str, Callable[[Tracking, Observation], Array]] = {
    "sma": lambda tracking, o: _moving(tracking)[0],
    "ewma": lambda tracking, o: tracking.average,
    "trend": lambda tracking, o: _moving(tracking)[1],
    "volatility": lambda tracking, o: _moving(tracking)[2],
    "load": lambda tracking, o: o.load,
    "reckoned backlog": lambda tracking, o: tracking.reckoned,
    "assigned": lambda tracking, o: o.assigned,
    "served at most": lambda tracking, o: o.age * o.speed,
    "queue length": lambda tracking, o: o.queue_length.astype(jnp.float32),
    "speed": lambda tracking, o: o.speed,
    "system load average": lambda tracking, o: jnp.broadcast_to(o.load_average, o.load.shape),
    "system load deviation": lambda tracking, o: jnp.broadcast_to(jnp.sqrt(o.load_variance), o.load.shape),
}
"""What a predictor may read of each processor, after `update`: name -> `[P, ...]`."""


def features(names: tuple[str, ...], tracking: Tracking, observation: Observation) -> Array:
    """Return those features of every processor, `[L, P, ...]`."""
    return jnp.stack([FEATURES[name](tracking, observation) for name in names])
