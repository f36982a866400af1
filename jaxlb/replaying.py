"""Given tasks in, what became of each out: the same step as in `jaxlb.loop`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks, departures, lengths, observe, stations
from jaxlb.devices import at_hand, over_devices
from jaxlb.env import Env
from jaxlb.environments import answering
from jaxlb.loop import Streams, decide, streams
from jaxlb.numerics import broadcasts
from jaxlb.params import canonical, single, with_lane_axis
from jaxlb.phases import phases
from jaxlb.random import fold_in, typed
from jaxlb.scheduling import resolved
from jaxlb.scheduling.base import first_memory
from jaxlb.scheduling.dispatchers import seated
from jaxlb.scheduling.policies import check_numbers
from jaxlb.types import Array, EnvParams, EnvState, Key, Observation, Outcome, Scheduler, Task


def replay(
    env: Env,
    params: EnvParams,
    scheduler: str | Scheduler,
    tasks: Task,
    key: Key,
    station: Any = None,
) -> Outcome:
    """Run a scheduler on given tasks; long queues are counted as `rollout` does it.

    Args:
      env: from `jaxlb.make`.
      params: of the environment; its workload is not used.
      scheduler: from `jaxlb.scheduler`, its name, one that was trained, or your own.
      tasks: leaves `[T]`, or `[T, N]` for N lanes.
      key: consumed by schedulers that draw and by the monitor's noise.
      station: as the gap of the first task finds it, a state of `env.station`; None: empty.

    Returns:
      What became of each task, leaves shaped like the tasks'.

    Raises:
      ValueError: leaves of different or wrong shapes, no tasks, a gap, size, priority or deadline that cannot
        be, or a bad parameter.
    """
    scheduler = resolved(scheduler)
    env, shape = answering(env, [scheduler]), np.shape(tasks.gap)
    if (
        len(shape) not in (1, 2)
        or 0 in shape
        or any(np.shape(leaf) != shape for leaf in jax.tree.leaves(tasks))
    ):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tasks)]
        raise ValueError(f"tasks have shapes {shapes}: must all be [T], or all [T, N], of at least one task")
    if station is not None:  # the tasks that it holds would have the numbers of those that come
        stations.needs_settled("a replay from given processors", env.station)
    # Its workload is not used, so its load may be any.
    dataclasses.replace(env, allow_overload=True).check(params, shape[1:])
    classes = np.shape(params.class_probability)[0]
    checks.leaf("gap", tasks.gap, low=0)
    checks.leaf("size", tasks.size, above=0)
    checks.leaf("priority", tasks.priority, whole=True, low=0, high=classes - 1)
    checks.leaf("deadline", tasks.deadline, low=0, infinite=True)
    floats = {name: jnp.asarray(getattr(tasks, name), jnp.float32) for name in ("gap", "size", "deadline")}
    params, key = canonical(params), typed(key)
    own = phases(params, floats["size"]) if tasks.phases is None else single(tasks.phases)
    tasks = Task(priority=jnp.asarray(tasks.priority, jnp.int32), phases=own, **floats)
    lanes, keys = tasks.gap.shape[1] if tasks.gap.ndim > 1 else 1, streams(key)

    def run(env: Env) -> tuple[tuple[EnvState, Any], tuple[Outcome, Any]]:
        return _watched(env, params, scheduler, tasks, keys, _nothing, station)

    found = run(env)
    if checks.traced(found):
        return found[1][0]
    (state, memory), _ = found
    check_numbers(memory)
    # A given station has the room that it has.
    most = lengths.room(env, lanes, len(tasks.gap)) if station is None else env.station.queue_capacity
    before = 0 if station is None else env.station.view(station, params.speed).overflow
    found, _ = lengths.exact(
        scheduler.name,
        env,
        lambda at: found if at is env else run(at),
        lambda found: env.view(found[0][0], params).overflow - before,
        lambda: lengths.matter(env, params, state, [(scheduler, memory)]),
        most,
    )
    return found[1][0]


def _nothing(scheduler: Scheduler, memory: Any, observation: Observation) -> tuple:
    del scheduler, memory, observation
    return ()


def watch(
    env: Env,
    params: EnvParams,
    scheduler: Scheduler,
    tasks: Task,
    key: Key,
    record: Callable[[Scheduler, Any, Observation], Any],
    station: Any = None,
) -> tuple[Outcome, Any]:
    """Replay tasks that are known to be good, and return what `record` makes of every decision.

    `record` is (scheduler, its memory before the decision, observation) -> pytree; the pytrees are stacked.
    """
    return _watched(env, params, scheduler, tasks, streams(key), record, station)[1]


@functools.partial(jax.jit, static_argnames=("env", "record"))
@broadcasts
def _watched(
    env: Env,
    params: EnvParams,
    scheduler: Scheduler,
    tasks: Task,
    keys: Streams,
    record: Callable[[Scheduler, Any, Observation], Any],
    station: Any,
) -> tuple[tuple[EnvState, Any], tuple[Outcome, Any]]:
    """Return the state and the scheduler's memory after the last task, and what was recorded."""
    lanes = tasks.gap.shape[1:]
    params = with_lane_axis(params, lanes)
    spread_over = functools.partial(over_devices, num_lanes=tasks.gap.shape[-1] if lanes else 0)
    first = jax.tree.map(lambda leaf: leaf[0], tasks)
    # After the last task comes the first again, which nothing records.
    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), tasks)
    state = env.start(params, first, fold_in(keys.observe, 0), station)
    scheduler = seated(env, scheduler)
    memory = first_memory(scheduler.name, scheduler.start, env, observe.nominal(params), lanes)
    settled = departures.none_yet(env.departing(state, params), tasks.gap.shape)

    def body(carry: tuple, x: tuple[Array, Task]) -> tuple[tuple, tuple[Outcome, Any]]:
        state, memory, settled = carry
        index, task = x
        observe_key, key = fold_in(keys.observe, index + 1), fold_in(keys.act, index)
        state, after, seen, outcome, _ = decide(env, params, scheduler, state, memory, task, observe_key, key)
        settled = departures.settle(settled, outcome.departures)
        watched = outcome.replace(departures=None), record(scheduler, memory, seen)
        return spread_over((state, after, settled)), watched

    indices = jnp.arange(tasks.gap.shape[0], dtype=jnp.int32)
    start = spread_over((state, memory, settled))
    (state, memory, settled), (outcome, watched) = jax.lax.scan(
        body, start, (indices, spread_over(following))
    )
    settled = departures.settle(settled, env.remaining(state, params))
    if settled is not None:
        known, found = settled
        outcome = jax.tree.map(functools.partial(jnp.where, known), found, outcome)
    return (state, memory), at_hand((outcome, watched))
