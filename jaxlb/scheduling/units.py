"""Observations free of units: mean size 1, mean speed 1, so that what is learned of one system serves any."""

import jax.numpy as jnp

from jaxlb.types import Array, EnvParams, Held, Lanes, Observation


def mean_service(params: EnvParams, lanes: Lanes) -> Array:
    """Return the time that a task of mean size takes at mean speed, of each lane."""
    return jnp.broadcast_to(params.size.mean() / params.speed.mean(0), lanes)


def mean_size(observation: Observation, unit: Array) -> Array:
    """Return the work that takes `unit` `[...]` time at the processors' mean speed."""
    return unit * observation.speed.mean(0)


def held_in(held: Held, unit: Array, work: Array) -> Held:
    """Express the tasks that are there in units of time and of work."""
    return held.replace(
        size=held.size / work,
        deadline=held.deadline / unit,
        without=held.without / unit,
        joined=held.joined / unit,
    )


def in_mean_services(observation: Observation, unit: Array) -> Observation:
    """Express work in mean sizes, speed in mean speeds, times in mean services.

    Args:
      observation: of lanes `[...]`.
      unit: `[...]` time, mean size / mean speed.
    """
    o, work = observation, mean_size(observation, unit)
    held = None if o.held is None else held_in(o.held, unit, work)
    return o.replace(
        gap=o.gap / unit,
        size=o.size / work,
        deadline=o.deadline / unit,
        load_average=o.load_average / work,
        load_variance=o.load_variance / work**2,
        load=o.load / work,
        wait=o.wait / unit,
        speed=o.speed / o.speed.mean(0),
        age=o.age / unit,
        assigned=o.assigned / work,
        completion=None if o.completion is None else o.completion / unit,
        held=held,
        truth=o.truth.replace(
            size=o.truth.size / work,
            wait=o.truth.wait / unit,
            speed=o.truth.speed / o.speed.mean(0),
            completion=None if o.truth.completion is None else o.truth.completion / unit,
        ),
    )
