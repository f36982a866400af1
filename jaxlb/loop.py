"""The loop: tasks in, decisions out. Lanes last, so that the compiler vectorises over lanes.

One step is `decide`; within it, tasks are assigned and time passes in `jaxlb.cycle`.
`rollout` draws tasks as it goes and keeps sums only, so its memory does not grow with the number of tasks.
`jaxlb.replaying` runs given tasks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import checks, cycle, departures, lengths, metrics, observe, tally, workload
from jaxlb.devices import at_hand, over_devices, spread
from jaxlb.env import Env
from jaxlb.environments import answering
from jaxlb.metrics import Summary
from jaxlb.numerics import broadcasts
from jaxlb.params import at_its_processor, canonical, with_lane_axis
from jaxlb.random import fold_in, typed
from jaxlb.scheduling import resolved
from jaxlb.scheduling.base import acted, first_memory
from jaxlb.scheduling.dispatchers import seated
from jaxlb.scheduling.policies import check_numbers
from jaxlb.tally import Totals
from jaxlb.types import (
    Array,
    EnvParams,
    EnvState,
    Key,
    Lanes,
    Observation,
    Outcome,
    Scheduler,
    Task,
)


class Streams(struct.PyTreeNode):
    """Keys of a rollout. An index is folded into them for every task, so that each is drawn from once."""

    workload: Key  # of its start
    task: Key
    observe: Key
    act: Key
    behaviour: Key


def streams(key: Key) -> Streams:
    """Make the streams of a key, which is consumed."""
    return Streams(*jax.random.split(key, 5))


class Carry(struct.PyTreeNode):
    """All that a rollout remembers between two tasks; a rollout continued from here is the same rollout."""

    streams: Streams
    index: Array  # int32, tasks decided so far
    state: EnvState
    memory: Any  # of the scheduler
    behaviour_memory: Any  # of the behaviour scheduler, () without one
    totals: Totals
    recent: Array  # [B, N] completion times of the last B tasks, the one with index i in row i % B
    filled: Array | None  # [N] int32, rows of `recent` in use where departures tell, which come in any number

    def last_completions(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return completion times `[rows, N]` of the last tasks, and which of them are there; None: all.

        Args:
          number: how many tasks, at most as many as are kept and have run; where departures tell, the times
            are of all that have left since `with_room`.
        """
        recent = np.asarray(at_hand(self.recent))
        if self.filled is None:
            return recent[(int(self.index) + np.arange(-number, 0)) % len(recent)], None
        return recent, np.arange(len(recent))[:, None] < np.asarray(at_hand(self.filled))

    def with_room(self) -> "Carry":
        """Return the same with room for the times of those that will leave, where departures tell them."""
        # A difference instead of zeros keeps it where its lanes are.
        return self if self.filled is None else self.replace(filled=self.filled - self.filled)


def decide(
    env: Env,
    params: EnvParams,
    scheduler: Scheduler,
    state: EnvState,
    memory: Any,
    next_task: Task,
    observe_key: Key,
    act_key: Key,
) -> tuple[EnvState, Any, Observation, Outcome, Array]:
    """Observe, act, assign, and go to the next arrival; the keys are consumed."""
    noise_key, arrive_key = jax.random.split(observe_key)
    observation = env.observe(state, params, noise_key)
    action, memory = acted(scheduler, memory, observation, act_key)
    state, outcome, reward = env.transition(state, action, next_task, params, arrive_key)
    return state, memory, observation, outcome, reward


def start_rollout(
    env: Env,
    params: EnvParams,
    scheduler: Scheduler,
    key: Key,
    num_lanes: int,
    behaviour: Scheduler | None = None,
    num_recent: int = 0,
) -> Carry:
    """Start an empty system in every lane, at its first arrival; lanes spread evenly over the devices.

    Where the number of lanes cannot be divided by that of the devices, fewer devices are used. Between
    `jax.distributed.initialize()` and here nothing else is needed to spread them over processes.

    Args:
      env: static.
      params: of the environment, without lane axes, but `speed` may be `[P, N]`.
      scheduler: that is judged.
      key: consumed.
      num_lanes: N.
      behaviour: the scheduler whose choices are carried out, where it is not the one that is judged.
      num_recent: how many completion times of each lane are kept, or how many arrivals' time.
    """
    lanes = (num_lanes,)
    state, keys = first_arrival(env, params, key, lanes)
    leaving = env.departing(state, params)
    # Any number of tasks may leave in a step; of those that arrive, as many as have room.
    rows = num_recent + (leaving.known.shape[0] if leaving is not None and num_recent else 0)
    carry = Carry(
        streams=keys,
        index=jnp.int32(0),
        state=state,
        memory=_first_memory(env, scheduler, params, lanes),
        behaviour_memory=() if behaviour is None else _first_memory(env, behaviour, params, lanes),
        totals=_first_totals(env, params, state, tuple(metrics.FIGURES)),
        recent=jnp.zeros((rows, num_lanes), jnp.float32),
        filled=None if leaving is None else jnp.zeros(lanes, jnp.int32),
    )
    if checks.traced(carry):
        return over_devices(carry, num_lanes)
    if env.station.in_turns or params.speeds is not None:
        # Turns end when all lanes are done: devices would wait for each other, and those of two programs that
        # run at once for ever.
        return carry
    return spread(carry, num_lanes)


@functools.partial(jax.jit, static_argnames=("env", "lanes"))
@broadcasts
def first_arrival(env: Env, params: EnvParams, key: Key, lanes: Lanes) -> tuple[EnvState, Streams]:
    """Return every lane empty at its first arrival, and the streams of what follows; the key is consumed.

    The same for all schedulers, so compiled once for all.
    """
    params, keys = with_lane_axis(params, lanes), streams(key)
    process = workload.start(keys.workload, params, lanes)
    task, process = workload.draw(fold_in(keys.task, 0), params, process, lanes)
    return env.start(params, task, fold_in(keys.observe, 0)).replace(workload=process), keys


@functools.partial(jax.jit, static_argnames=("env", "lanes"))
@broadcasts
def _first_memory(env: Env, scheduler: Scheduler, params: EnvParams, lanes: Lanes) -> Any:
    nominal, own = observe.nominal(with_lane_axis(params, lanes)), seated(env, scheduler)
    return first_memory(own.name, own.start, env, nominal, lanes)


@functools.partial(jax.jit, static_argnames="env")
@broadcasts
def continue_rollout(
    env: Env,
    params: EnvParams,
    scheduler: Scheduler,
    carry: Carry,
    num_tasks: Array | int,
    warmup: Array | int = 0,
    behaviour: Scheduler | None = None,
) -> Carry:
    """Run `num_tasks` more tasks in every lane; those before index `warmup` are not counted.

    The number of tasks is no part of the compiled program. Where there is a `behaviour` scheduler, its
    choices move the system on, and `scheduler` acts on the same observations and is scored on what its own
    choice would have brought.
    """
    lanes, keys = carry.state.task.gap.shape, carry.streams
    params = with_lane_axis(params, lanes)
    num_classes = params.class_probability.shape[0]
    scheduler = seated(env, scheduler)
    behaviour = None if behaviour is None else seated(env, behaviour)

    def body(_index: Array, carry: Carry) -> Carry:
        before, after = carry.state, carry.index + 1
        task = before.task
        memory, behaviour_memory = carry.memory, carry.behaviour_memory
        next_task, process = workload.draw(fold_in(keys.task, after), params, before.workload, lanes)
        observe_key, act_key = fold_in(keys.observe, after), fold_in(keys.act, carry.index)
        if behaviour is None:
            state, memory, _, outcome, reward = decide(
                env, params, scheduler, before, memory, next_task, observe_key, act_key
            )
            moved = outcome
        else:
            key = fold_in(keys.behaviour, carry.index)
            state, behaviour_memory, seen, moved, _ = decide(
                env, params, behaviour, before, behaviour_memory, next_task, observe_key, key
            )
            action, memory = acted(scheduler, memory, seen, act_key)
            _, outcome, reward = env.assign(before, action, next_task.gap, params)
        response = cycle.response(env, params, before.system, task)
        task = at_its_processor(params, task, outcome.action)
        decided = metrics.Decided(env.view(before, params), response, task, outcome, reward)
        counts, sums = tally.of_task(decided, num_classes, next_task.gap)
        undone = env.view(state, params).undone
        recent, filled = _recorded(carry, outcome)
        carry = carry.replace(
            index=after,
            state=state.replace(workload=process),
            memory=memory,
            behaviour_memory=behaviour_memory,
            totals=tally.add(carry.totals, counts, sums, moved, undone),
            recent=recent,
            filled=filled,
        )
        return over_devices(carry, lanes[0])

    end = carry.index + num_tasks
    bounds = jnp.stack([jnp.clip(warmup, carry.index, end), end])

    def part(which: Array, carry: Carry) -> Carry:
        """Run the tasks of the warm-up, or those after it, which are counted from its end on."""
        none = _totals(env, params, carry.state)
        totals = jax.tree.map(functools.partial(jnp.where, carry.index <= warmup), none, carry.totals)
        return jax.lax.fori_loop(carry.index, bounds[which], body, carry.replace(totals=totals))

    return jax.lax.fori_loop(0, 2, part, carry)


def _totals(env: Env, params: EnvParams, state: EnvState) -> Totals:
    """Return totals with nothing counted yet."""
    num_classes = params.class_probability.shape[0]
    return tally.start(env.view(state, params), num_classes, env.departing(state, params))


@functools.partial(jax.jit, static_argnames=("env", "figures"))
def _first_totals(env: Env, params: EnvParams, state: EnvState, figures: tuple[str, ...]) -> Totals:
    """Return the same as a program, which is another one once there are more figures."""
    del figures
    return _totals(env, params, state)


def _recorded(carry: Carry, outcome: Outcome) -> tuple[Array, Array | None]:
    """Return completion times with those of one more step."""
    recent, rows = carry.recent, len(carry.recent)
    if outcome.departures is not None and carry.filled is not None:
        return departures.append(recent, carry.filled, outcome.departures)
    return recent.at[carry.index % rows].set(outcome.completion) if rows else recent, None


def rollout(
    env: Env,
    params: EnvParams,
    scheduler: str | Scheduler,
    key: Key,
    num_lanes: int,
    num_tasks: int,
    warmup: int = 0,
) -> Summary:
    """Run a scheduler, in `num_lanes` environments, on tasks drawn from the workload.

    Compiles once per environment, scheduler and number of lanes. Lane n sees the same tasks whatever the
    scheduler and however many lanes there are. May be vmapped over `params`, `scheduler` and `key`.

    Where the scheduler, or the reward, uses queue lengths, and queues were longer than the environment's
    `queue_capacity`, all is run again with room for them. Under a trace that cannot be seen: there
    `Summary.queue_overflows` shows it.

    Args:
      env: from `jaxlb.make`.
      params: of the environment; `speed` `[P]`, or `[P, num_lanes]` for other speeds in each lane.
      scheduler: from `jaxlb.scheduler`, its name, one that was trained, or your own.
      key: consumed.
      num_lanes: environments side by side.
      num_tasks: tasks counted in each lane.
      warmup: tasks run before that, not counted.

    Returns:
      Figures of each lane.

    Raises:
      ValueError: a number of lanes or tasks below 1, or a bad parameter.
    """
    checks.at_least("num_lanes", num_lanes, 1)
    checks.at_least("num_tasks", num_tasks, 1)
    checks.at_least("warmup", warmup, 0)
    scheduler = resolved(scheduler)
    env = answering(env, [scheduler])
    env.check(params, (num_lanes,))
    params, key = canonical(params), typed(key)

    def run(env: Env) -> tuple[Summary, Carry]:
        # Cloned, since a run with more room is of the same tasks.
        carry = start_rollout(env, params, scheduler, jax.random.clone(key), num_lanes)
        carry = continue_rollout(env, params, scheduler, carry, warmup + num_tasks, warmup)
        return at_hand(tally.summarise(carry.totals, env.view(carry.state, params))), carry

    summary, carry = run(env)
    if checks.traced(summary):
        return summary
    check_numbers(carry.memory)
    (summary, _), _ = lengths.exact(
        scheduler.name,
        env,
        lambda at: (summary, carry) if at is env else run(at),
        lambda found: at_hand(env.view(found[1].state, params).overflow),
        lambda: lengths.matter(env, params, carry.state, [(scheduler, carry.memory)]),
        lengths.room(env, num_lanes, warmup + num_tasks),
    )
    return summary
