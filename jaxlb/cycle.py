"""What happens between two decisions, written once: a task is assigned, time passes, figures are measured.

The environment goes through here, and so do rollouts and trainers, and the systems that `hedge` runs beside
the real one. Deterministic but for the noise of the monitor; any lane axes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlb import departures, observe
from jaxlb.devices import differing
from jaxlb.numerics import at_processor, compensated_add, first_smallest, of_usable, stored
from jaxlb.params import affinity_of, at_its_processor, work_at
from jaxlb.protocols import SpeedProcess
from jaxlb.random import fold_in, split
from jaxlb.types import Array, Departures, EnvParams, Key, Lanes, Observation, Outcome, Static, System, Task
from jaxlb.workload.speeds import SLOWEST, at_present, of_service


def start(env: Static, params: EnvParams, lanes: Lanes, station: Any = None, speeds: Any = None) -> System:
    """Return empty processors, or a `station` as it is, and a monitor that has just published empty ones.

    Of speeds that change, `speeds` is the state, from `params.speeds.start`.
    """
    if station is None:
        station = env.station.init(env.num_processors, lanes)
    params, up = at_present(params, speeds)
    found = env.station.view(station, params.speed)
    monitor = observe.start(params, found, up, env.dispatchers, env.polled_apart)
    return System(station, monitor, speeds)


def empty(env: Static, params: EnvParams, system: System) -> System:
    """Return the same processors, empty, and a monitor that has just published so."""
    lanes = env.station.view(system.station, params.speed).wait.shape[1:]
    return start(env, params, lanes, env.station.empty(system.station), system.speeds)


def advance(
    env: Static, params: EnvParams, system: System, gap: Array, key: Key
) -> tuple[System, Departures | None]:
    """Let `gap` `[...]` time pass without arrivals.

    Where speeds change, or tasks leave unserved, it passes in pieces in which that does not happen. The key
    is consumed where speeds change, or where there is noise.
    """
    in_pieces = params.speeds is not None or env.station.leaving is not None
    passed = _in_pieces if in_pieces else _piece
    after, gone = passed(env, params, system, gap, key)
    station = env.station.arranged(after.station)
    if params.speeds is not None and params.speeds.interrupted == "handed-over":
        takes = params.speeds.takes_tasks(after.speeds, env.num_processors)
        station = env.station.hand_over(station, params.speed, takes)
    return after.replace(station=station), gone


def _in_pieces(
    env: Static, params: EnvParams, system: System, gap: Array, key: Key
) -> tuple[System, Departures]:
    """Let time pass in which speeds change or tasks leave unserved; the key is consumed."""
    process, station = params.speeds, env.station

    def goes_on(carry: tuple) -> Array:
        _, (rest, _), *_ = carry
        return (rest > 0).any()

    def piece(carry: tuple) -> tuple:
        index, (rest, error), system, seen = carry
        noise_key, change_key = split(fold_in(key, index), 2)
        served, time, busy = params.speed, rest, None
        if process is not None:
            served = params.speed * jnp.maximum(process.factor_of(system.speeds, env.num_processors), SLOWEST)
            busy = station.busy(system.station, served)
            time = jnp.minimum(time, process.until_change(system.speeds, busy))
        if station.leaving is not None:
            time = jnp.minimum(time, station.until_leaving(system.station))
        after, gone = _piece(env, params, system, time, noise_key, served)
        assert gone is not None
        if process is not None:
            speeds = process.advance(system.speeds, time, busy, change_key)
            after, gone = _changed(env, process, after, gone, speeds)
        # A lane whose gap is over waits for the others as it is.
        after = jax.tree.map(lambda new, old: jnp.where(rest > 0, new, old), after, system)
        leaves, lost = gone.known & (rest > 0), gone.outcome.lost
        known, completion, unserved = seen
        seen = (
            known | leaves,
            jnp.where(leaves, gone.outcome.completion, completion),
            unserved if lost is None else unserved | (leaves & lost),
        )
        return index + 1, compensated_add(rest, error, -time), after, seen

    places = jax.eval_shape(station.remaining, system.station, params.speed).known.shape
    seen = jnp.zeros(places, bool), jnp.zeros(places, jnp.float32), jnp.zeros(places, bool)
    # Of a long gap, many pieces are taken, each rounded: their error is kept.
    start = jnp.int32(0), (gap, jnp.zeros_like(gap)), system, seen
    _, _, after, (known, completion, lost) = jax.lax.while_loop(goes_on, piece, differing(start))
    return after, _left(env, params, system.station, known, completion, lost)


def _changed(
    env: Static, process: SpeedProcess, system: System, gone: Departures, speeds: Any
) -> tuple[System, Departures]:
    """Return the system once its speeds have changed, and who has left, those included whom that loses."""
    if process.interrupted in ("repeated", "lost"):
        before, after = (process.takes_tasks(each, env.num_processors) for each in (system.speeds, speeds))
        lose = process.interrupted == "lost"
        station, lost = env.station.interrupt(system.station, before & ~after, lose)
        system = system.replace(station=station)
        gone = gone if lost is None else departures.with_lost(gone, *lost)
    return system.replace(speeds=speeds), gone


def remaining(env: Static, params: EnvParams, station: Any) -> Departures | None:
    """Return what becomes of all that a station holds if nothing arrives, no speed changes and nobody leaves.

    None if assignments tell.
    """
    found = env.station.remaining(station, of_service(params).speed)
    if found is None or (params.speeds is None and not env.loses(params)):
        return found
    nobody = jnp.zeros_like(found.known)
    return _left(env, params, station, found.known, found.outcome.completion, nobody)


def _left(
    env: Static, params: EnvParams, station: Any, known: Array, completion: Array, lost: Array
) -> Departures:
    """Return who of those that a station holds leave `known`, after what time, and who unserved.

    Service is that at full speed, all else is wait.
    """
    there = env.station.remaining(station, params.speed)
    assert there is not None  # as `Env.check` sees to
    service = jnp.where(lost, 0.0, there.outcome.service)
    outcome = there.outcome.replace(
        wait=completion - service,
        service=service,
        completion=completion,
        violation=(completion > there.task.deadline) | lost,
        lost=lost if env.loses(params) else None,
    )
    return there.replace(known=known, outcome=outcome)


def _piece(
    env: Static, params: EnvParams, system: System, gap: Array, key: Key, served: Array | None = None
) -> tuple[System, Departures | None]:
    """Let time pass in which speeds do not change; `served` are those at which work is done."""
    params, up = at_present(params, system.speeds)
    station, before = env.station, system.station
    speed = params.speed if served is None else served
    monitor = observe.advance(
        system.monitor,
        lambda time: station.view(station.advance(before, speed, time)[0], params.speed),
        station.view(before, speed),
        params,
        gap,
        env.wait_visible,
        key,
        speed,
        up,
        env.polled_apart,
    )
    after, gone = station.advance(before, speed, gap)
    return System(after, monitor, system.speeds), gone


def measure(
    env: Static,
    params: EnvParams,
    system: System,
    task: Task,
    seen: Task,
    key: Key,
    dispatcher: Array | None = None,
) -> Observation:
    """Return what a scheduler sees of a task that has arrived; the key is consumed where there is noise.

    Args:
      env: static.
      params: of the environment.
      system: at the arrival.
      task: the true one, for the oracle.
      seen: the task as the scheduler may see it.
      key: consumed where there is noise and figures are always fresh.
      dispatcher: which of several decides, `[...]` int32; None: there is one.
    """
    # In a queue it follows from the wait.
    known = env.station.settled and params.affinity is None
    completion = None if known else response(env, params, system, task)
    params, up = at_present(params, system.speeds)
    found = env.station.view(system.station, params.speed)
    observation = observe.observe(
        system.monitor, found, params, task, seen, env.wait_visible, key, completion, up, dispatcher
    )
    if env.station.settled or not (env.size_visible and observe.is_exact(params, env.wait_visible)):
        return observation
    task = task.replace(size=work_at(task.size, affinity_of(params, task.priority)))
    held = env.station.held(system.station, params.speed, task)
    return observation.replace(completion=completion, held=held)


def response(env: Static, params: EnvParams, system: System, task: Task) -> Array:
    """Return the completion time `[P, ...]` of each choice if nothing else arrives and no speed changes.

    That of a processor which is down is infinite, unless all are.
    """
    params, up = at_present(params, system.speeds)
    factor = affinity_of(params, task.priority)
    task = task.replace(size=work_at(task.size, factor))
    return of_usable(up, factor, env.station.response(system.station, params.speed, task), jnp.inf)


def allowed(env: Static, params: EnvParams, system: System, task: Task, action: Array) -> Array:
    """Return the processor that gets a task for an action `[...]`.

    The action is clipped to those that there are; with admission, P refuses. Where the processor may not take
    the task, or drains, the next one that may and does not gets it, the first after the last.
    """
    last = env.num_processors - 1
    action = stored(jnp.clip(jnp.asarray(action, jnp.int32), 0, last + env.admission))
    factor, speeds, up = affinity_of(params, task.priority), params.speeds, None
    if speeds is not None and speeds.drains:
        up = speeds.takes_tasks(system.speeds, env.num_processors)
    if factor is None and up is None:
        return action
    places = jnp.arange(env.num_processors, dtype=jnp.int32).reshape(-1, *(1,) * action.ndim)
    ahead = ((places - action) % env.num_processors).astype(jnp.float32)
    far = float(env.num_processors)
    nearest = first_smallest(of_usable(up, factor, ahead, far))
    return stored(jnp.where(action > last, action, nearest))


def assign(
    env: Static,
    params: EnvParams,
    system: System,
    task: Task,
    seen: Task,
    number: Array,
    action: Array,
    dispatcher: Array | None = None,
) -> tuple[System, Outcome]:
    """Give the task that has arrived to processor `action` `[...]`, as `allowed` has it.

    Which of several dispatchers `[...]` does so is recorded.
    """
    last, given = env.num_processors - 1, task
    action = allowed(env, params, system, given, action)
    task, seen = (at_its_processor(params, one, action) for one in (given, seen))
    station, wait, service = env.station.assign(system.station, params.speed, task, number, action)
    lost, assigned = None, action
    if env.loses(params):
        lost = jnp.isinf(wait)
        service, assigned = jnp.where(lost, 0.0, service), jnp.where(lost, last + 1, action)
    if params.speeds is None:
        completion = stored(wait + service)
    else:
        completion = at_processor(response(env, params, system, given), jnp.minimum(action, last))
        completion = completion if lost is None else jnp.where(lost, jnp.inf, completion)
        wait = completion - service
    outcome = Outcome(
        action=action,
        wait=wait,
        service=service,
        completion=completion,
        violation=completion > task.deadline if lost is None else (completion > task.deadline) | lost,
        lost=lost,
        first_token=None if task.phases is None else jnp.full_like(wait, jnp.inf),
    )
    monitor = observe.record(system.monitor, assigned, seen.size, dispatcher)
    return System(station, monitor, system.speeds), outcome
