"""From the state of the system to what a scheduler sees: smoothing, staleness, noise, visibility.

`load` is what a monitor reports: the backlog, exponentially smoothed where `load_time_constant` is set.
Where `measure_interval` D is set, all figures are published at the times D, 2D, 3D, ... and are stale in
between; their age and the work assigned since then are part of the observation. Where `measure_noise` s is
set, load and wait of a processor are multiplied by exp(s z - s^2 / 2), z standard normal, drawn once for
each measurement: on average right, never negative. Speeds that change are those of the moment; where
`speed_time_constant` is set, they are smoothed as loads are, of a processor that is down towards 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlb.numerics import at_processor, mean, processor_index, variance
from jaxlb.params import affinity_of
from jaxlb.stations import View
from jaxlb.types import (
    Array,
    EnvParams,
    Key,
    MonitorState,
    Observation,
    Publication,
    Report,
    Task,
    Truth,
)
from jaxlb.workload.speeds import long_run


def start(
    params: EnvParams, found: View, up: Array | None = None, dispatchers: int = 1, apart: bool = False
) -> MonitorState:
    """Return a monitor of an empty system, its figures just published; `up` as in `observe`.

    To each of several dispatchers: `apart` at times that are spread evenly.
    """
    zero = jnp.zeros_like(found.wait)
    report = Report(
        queue_length=zero.astype(jnp.int32), load=zero, wait=zero, **_whether_up(params, found, up)
    )
    published = Publication(report=report, age=zero[0], assigned=zero)
    if dispatchers > 1 and params.measure_interval is not None:
        published = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (dispatchers, *leaf.shape)), published)
        if apart:
            phase = processor_index(published.age).astype(jnp.float32) / dispatchers
            published = published.replace(age=published.age + phase * params.measure_interval)
    return MonitorState(
        smoothed=None if params.load_time_constant is None else zero,
        published=None if params.measure_interval is None else published,
        speed=None if params.speed_time_constant is None else jnp.broadcast_to(params.speed, zero.shape),
    )


def nominal(params: EnvParams) -> EnvParams:
    """Return the parameters with the speeds that schedulers are told beforehand, which do not change."""
    params = long_run(params)
    nominal = params.nominal_speed
    return params if nominal is None else params.replace(speed=nominal, nominal_speed=None)


def is_exact(params: EnvParams, wait_visible: bool) -> bool:
    """Return whether all that is seen of processors is what it is at this moment."""
    blurred = params.measure_interval, params.measure_noise, params.nominal_speed, params.speed_time_constant
    return wait_visible and all(one is None for one in blurred)


def _measured(params: EnvParams, speed: Array | None) -> EnvParams:
    """Return the parameters with the speeds that are observed, where those are measured."""
    return params if speed is None else params.replace(nominal_speed=speed)


def _smooth(load: Array, wait: Array, speed: Array, time_constant: Array, gap: Array) -> Array:
    """Solve time_constant * d(load)/dt = backlog - load exactly after `gap`, the backlog draining."""
    busy = jnp.minimum(wait, gap)
    decay = busy / time_constant
    load = (load - wait * speed) * jnp.exp(-decay) + speed * (wait - busy - time_constant * jnp.expm1(-decay))
    return load * jnp.exp((busy - gap) / time_constant)


def _whether_up(params: EnvParams, found: View, up: Array | None) -> dict[str, Array]:
    """Return what a report tells of speeds that change, and of who takes tasks."""
    has_room = None if found.full is None else ~found.full
    if up is None:
        return {} if has_room is None else {"up": has_room}
    speed = jnp.broadcast_to(nominal(params).speed, found.wait.shape)
    return {"speed": speed, "up": up if has_room is None else up & has_room}


def _measure(
    found: View, smoothed: Array | None, params: EnvParams, wait_visible: bool, key: Key, up: Array | None
) -> Report:
    """Measure the figures of this instant; the key is consumed where there is noise."""
    queue_length = found.queue_length
    speed = nominal(params).speed
    if wait_visible:
        wait = found.wait
        load = wait * params.speed if smoothed is None else smoothed
        if params.nominal_speed is not None:
            wait = wait * params.speed / speed  # work is what can be measured
    else:
        load = queue_length.astype(jnp.float32) * params.size.mean()
        wait = load / speed
    if params.measure_noise is not None:
        keys = jax.random.split(key, wait.shape[0])
        normal = jax.vmap(lambda key: jax.random.normal(key, wait.shape[1:], jnp.float32))(keys)
        factor = jnp.exp(params.measure_noise * normal - 0.5 * params.measure_noise**2)
        load, wait = load * factor, wait * factor
    return Report(queue_length=queue_length, load=load, wait=wait, **_whether_up(params, found, up))


def advance(
    monitor: MonitorState,
    after: Callable[[Array], View],
    found: View,
    params: EnvParams,
    gap: Array,
    wait_visible: bool,
    key: Key,
    served: Array,
    up: Array | None = None,
    apart: bool = False,
) -> MonitorState:
    """Advance the monitor by `gap` `[...]` without arrivals.

    If publication times fall into the gap, the last of them counts: the figures are those of that moment.

    Args:
      monitor: at the last arrival.
      after: time -> what can be measured of the station so long after the last arrival.
      found: what could be measured then.
      params: of the environment.
      gap: time.
      wait_visible: as in `observe`.
      key: consumed where there is noise.
      served: the speeds `[P, ...]` at which work is done, which `found` goes by.
      up: as in `observe`.
      apart: whether figures are published to each of several dispatchers at another time.
    """

    def smoothed_after(time: Array) -> Array | None:
        if monitor.smoothed is None:
            return None
        return _smooth(monitor.smoothed, found.wait, served, params.load_time_constant, time)

    def speed_after(time: Array) -> Array | None:
        if monitor.speed is None:
            return None
        return served + (monitor.speed - served) * jnp.exp(-time / params.speed_time_constant)

    old, speed = monitor.published, speed_after(gap)
    if old is None:
        return monitor.replace(smoothed=smoothed_after(gap), speed=speed)

    def published(old: Publication, key: Key) -> Publication:
        since = old.age + gap
        last = jnp.floor(since / params.measure_interval) * params.measure_interval
        then = jnp.clip(last - old.age, 0.0, gap)
        seen = _measured(params, speed_after(then))
        report = _measure(after(then), smoothed_after(then), seen, wait_visible, key, up)
        new = Publication(report=report, age=since - last, assigned=jnp.zeros_like(old.assigned))
        kept = old.replace(age=since)
        return jax.tree.map(lambda new, kept: jnp.where(last > 0, new, kept), new, kept)

    if old.age.ndim > gap.ndim:  # of each dispatcher
        keys = jax.random.split(key, len(old.age)) if apart else key
        new = jax.vmap(published, (0, 0 if apart else None))(old, keys)
    else:
        new = published(old, key)
    return MonitorState(smoothed=smoothed_after(gap), published=new, speed=speed)


def record(
    monitor: MonitorState, action: Array, size: Array, dispatcher: Array | None = None
) -> MonitorState:
    """Record that work `size` `[...]`, as the scheduler saw it, went to processor `action` `[...]`.

    A dispatcher `[...]` sent it, where there are several.
    """
    published = monitor.published
    if published is None:
        return monitor
    each = published.assigned
    sent = jnp.where(processor_index(each if dispatcher is None else each[0]) == action, size, 0.0)
    if dispatcher is not None:
        own = processor_index(each[:, 0]) == dispatcher
        sent = jnp.where(own[:, None], sent, 0.0)
    return monitor.replace(published=published.replace(assigned=each + sent))


def observe(
    monitor: MonitorState,
    found: View,
    params: EnvParams,
    task: Task,
    seen: Task,
    wait_visible: bool,
    key: Key,
    completion: Array | None = None,
    up: Array | None = None,
    dispatcher: Array | None = None,
) -> Observation:
    """Return what the scheduler observes of the task that just arrived and of the system.

    Args:
      monitor: the monitor, advanced to this arrival.
      found: what can be measured of the station at this arrival.
      params: of the environment.
      task: the true task, for the oracle.
      seen: the task as the scheduler may see it.
      wait_visible: whether load and wait are measured; if not, they are inferred from the queue lengths.
      key: consumed where there is noise and figures are always fresh.
      completion: of each choice, for the oracle; None: as in a queue.
      up: bool `[P, ...]`, which processors work, where speeds change; `params` have those of this moment.
      dispatcher: which of several observes, `[...]` int32; None: there is one.
    """
    seen_at = monitor.published
    if seen_at is not None and dispatcher is not None:
        seen_at = jax.tree.map(lambda leaf: _at(leaf, dispatcher), seen_at)
    if seen_at is None:
        told = _measured(params, monitor.speed)
        report = _measure(found, monitor.smoothed, told, wait_visible, key, up)
        nothing = jnp.zeros_like(found.wait)
        seen_at = Publication(report=report, age=nothing[0], assigned=nothing)
    report, affinity = seen_at.report, affinity_of(params, task.priority)
    up = report.up
    if affinity is not None:
        # What is published is old, but a task's kind is known.
        affinity = jnp.broadcast_to(affinity, found.wait.shape)
        up = affinity > 0 if up is None else up & (affinity > 0)
    return Observation(
        gap=seen.gap,
        size=seen.size,
        priority=seen.priority,
        deadline=seen.deadline,
        load_average=mean(report.load),
        load_variance=variance(report.load),
        queue_length=report.queue_length,
        load=report.load,
        wait=report.wait,
        speed=jnp.broadcast_to(
            nominal(params).speed if report.speed is None else report.speed, found.wait.shape
        ),
        up=up,
        affinity=affinity,
        age=seen_at.age,
        assigned=seen_at.assigned,
        truth=Truth(
            size=task.size,
            wait=found.wait,
            speed=jnp.broadcast_to(params.speed, found.wait.shape),
            completion=completion,
        ),
    )


def _at(values: Array, dispatcher: Array) -> Array:
    """Return what of `values` `[D, ...]`, or `[D, P, ...]`, is that dispatcher's."""
    at = at_processor if values.ndim == dispatcher.ndim + 1 else jax.vmap(at_processor, (1, None))
    return at(values, dispatcher)


def flatten(observation: Observation, stale: bool = False) -> Array:
    """Flatten an observation into one array, features first: `[4 + 4P, ...]` float32.

    Order: task size, priority, load average, load variance, then for all processors queue length, load,
    wait, speed; where figures are `stale`, their age and the work assigned since, `[1 + P, ...]` more; where
    speeds change, processors are full at a limit, or some tasks may not go everywhere, 1 for each that works,
    has room and may take the task, and 0 for others, `[P, ...]` more; with affinity, that for the task,
    `[P, ...]` more.
    """
    o = observation
    rows = [jnp.stack([o.size, o.priority.astype(jnp.float32), o.load_average, o.load_variance])]
    rows += [o.queue_length.astype(jnp.float32), o.load, o.wait, o.speed]
    if stale:
        rows += [o.age[None], o.assigned]
    if o.up is not None:
        rows += [o.up.astype(jnp.float32)]
    if o.affinity is not None:
        rows += [o.affinity]
    return jnp.concatenate(rows)
