"""What happens between two decisions, written once: a task is assigned, time passes, figures are measured.

The environment goes through here, and so do rollouts and trainers, and the systems that `hedge` runs beside
the real one. Deterministic but for the noise of the monitor; any lane axes.
"""

from typing import Any

import jax.numpy as jnp

from jaxlb import observe
from jaxlb.numerics import stored
from jaxlb.types import (
    Array,
    Departures,
    EnvParams,
    Key,
    Lanes,
    Observation,
    Outcome,
    Static,
    System,
    Task,
)


def start(env: Static, params: EnvParams, lanes: Lanes, station: Any = None) -> System:
    """Return empty processors, or a `station` as it is, and a monitor that has just published empty ones."""
    if station is None:
        station = env.station.init(env.num_processors, lanes)
    return System(station=station, monitor=observe.start(params, env.num_processors, lanes))


def empty(env: Static, params: EnvParams, system: System) -> System:
    """Return the same processors, empty, and a monitor that has just published so."""
    lanes = env.station.view(system.station, params.speed).wait.shape[1:]
    return start(env, params, lanes, env.station.empty(system.station))


def advance(
    env: Static, params: EnvParams, system: System, gap: Array, key: Key
) -> tuple[System, Departures | None]:
    """Let `gap` `[...]` time pass without arrivals; the key is consumed where there is noise."""
    station, before, speed = env.station, system.station, params.speed
    monitor = observe.advance(
        system.monitor,
        lambda time: station.view(station.advance(before, speed, time)[0], speed),
        station.view(before, speed),
        params,
        gap,
        env.wait_visible,
        key,
    )
    after, departures = station.advance(before, speed, gap)
    return System(station=after, monitor=monitor), departures


def measure(env: Static, params: EnvParams, system: System, task: Task, seen: Task, key: Key) -> Observation:
    """Return what a scheduler sees of a task that has arrived; the key is consumed where there is noise.

    Args:
      env: static.
      params: of the environment.
      system: at the arrival.
      task: the true one, for the oracle.
      seen: the task as the scheduler may see it.
      key: consumed where there is noise and figures are always fresh.
    """
    found = env.station.view(system.station, params.speed)
    # In a queue it follows from the wait.
    station = env.station
    completion = None if station.settled else station.response(system.station, params.speed, task)
    return observe.observe(system.monitor, found, params, task, seen, env.wait_visible, key, completion)


def assign(
    env: Static, params: EnvParams, system: System, task: Task, seen: Task, number: Array, action: Array
) -> tuple[System, Outcome]:
    """Give the task that has arrived to processor `action` `[...]`, clipped to those that there are."""
    action = stored(jnp.clip(jnp.asarray(action, jnp.int32), 0, env.num_processors - 1))
    station, wait, service = env.station.assign(system.station, params.speed, task, number, action)
    completion = stored(wait + service)
    outcome = Outcome(
        action=action,
        wait=wait,
        service=service,
        completion=completion,
        violation=completion > task.deadline,
    )
    return System(station=station, monitor=observe.record(system.monitor, action, seen.size)), outcome
