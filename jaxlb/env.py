"""The environment: reset and step in the shape of gymnax 1.x, and the transition that rollouts share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import bounds, checks, cycle, departures, dispatching, rewards, spaces, stations, workload
from jaxlb.numerics import at_processor, broadcasts, select
from jaxlb.observe import flatten
from jaxlb.params import canonical, with_lane_axis
from jaxlb.random import split, typed
from jaxlb.rewards import Reward, Weighted
from jaxlb.stations import FCFS, Station, View
from jaxlb.types import (
    Array,
    Departures,
    EnvParams,
    EnvState,
    Key,
    Lanes,
    Observation,
    Outcome,
    Task,
)
from jaxlb.workload.speeds import of_service


@dataclass(frozen=True)
class _Settings:
    """The fields of `Env`, which it describes."""

    name: str
    make_params: Callable[[int], EnvParams]
    num_processors: int
    station: Station = field(default_factory=FCFS)
    size_visible: bool = True
    wait_visible: bool = True
    reward: Reward = field(default_factory=Weighted)
    admission: bool = False
    dispatchers: int = 1
    in_turn: bool = False
    polled_apart: bool = False
    answers: bool = False
    allow_overload: bool = False

    def __post_init__(self) -> None:
        """Check the static settings."""
        checks.at_least("num_processors", self.num_processors, 1)
        stations.check(self.station)
        object.__setattr__(self, "reward", rewards.reward(self.reward))
        checks.at_least("dispatchers", self.dispatchers, 1)
        switches = ("size_visible", "wait_visible", "admission", "in_turn", "polled_apart", "answers")
        for name in (*switches, "allow_overload"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be True or False")


class Env(_Settings):
    """P processors under a stream of tasks. Static: hashable, no arrays, no state.

    Attributes:
      name: of the scenario.
      make_params: number of processors -> the scenario's parameters.
      num_processors: P.
      station: how processors serve, and how long their queues are counted, from `jaxlb.stations`.
      size_visible: whether the scheduler sees a task's size; if not, it sees the law's mean.
      wait_visible: whether it sees load and wait; if not, they are inferred from queue lengths.
      reward: from `jaxlb.rewards`, its name there, or one of your own.
      admission: whether a scheduler may refuse a task, which is action P.
      dispatchers: D; each has a scheduler of its own and sees of what was sent its own part only.
      in_turn: whether tasks come to dispatchers in turn; if not, each to any, all alike.
      polled_apart: whether figures that are published are so to each dispatcher at another time.
      answers: whether schedulers are told who has left; where one asks for it, they are.
      allow_overload: whether a load that no processors could bear is meant: queues grow for ever.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change settings.

        But a wrapper of gymnax may put a batched `reset` and `step` into its copy.
        """
        if name not in ("reset", "step"):
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        self.__dict__[name] = value

    # The shape that gymnax gives an environment.

    @property
    def default_params(self) -> EnvParams:
        """The scenario's own parameters, before any override."""
        return canonical(self.make_params(self.num_processors))

    @property
    def num_actions(self) -> int:
        """One action for each processor, and one more with admission."""
        return self.num_processors + self.admission

    @property
    def sheds(self) -> bool:
        """Whether tasks may be refused, or leave, so that queues end however high the load."""
        station = self.station
        return self.admission or station.limit is not None or station.leaving is not None

    def loses(self, params: EnvParams) -> bool:
        """Return whether a task may be refused, or leave unserved, or be lost in a failure."""
        return self.sheds or (params.speeds is not None and params.speeds.interrupted == "lost")

    def action_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        """Return the space of actions: the processors, and with admission to refuse.

        A step clips an action outside to the nearest one.
        """
        del params
        return spaces.discrete(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> spaces.Box:
        """Return the space of flat observations, see `flatten`.

        Priorities and queue lengths have bounds, times and work none.
        """
        params = self.default_params if params is None else params
        none, length = spaces.LARGEST, float(self.station.queue_capacity)
        # A box of one point is none: the only class of priorities, 0, lies in [0, 1].
        high = [none, float(np.shape(params.class_probability)[0]), none, none]
        high += [length] * self.num_processors + [none] * (3 * self.num_processors)
        if params.measure_interval is not None:
            high += [none] * (1 + self.num_processors)
        if params.speeds is not None or self.station.limit is not None or params.affinity is not None:
            high += [1.0] * self.num_processors
        if params.affinity is not None:
            high += [none] * self.num_processors
        return spaces.box(np.zeros(len(high), np.float32), np.asarray(high, np.float32))

    @broadcasts
    def reset(self, key: Key, params: EnvParams | None = None) -> tuple[Array, EnvState]:
        """Return an empty system at its first arrival.

        Args:
          key: consumed.
          params: parameters; None takes the defaults.

        Returns:
          The flat observation `[F]` and the state.
        """
        params = self.default_params if params is None else canonical(params)
        bounds.check_lanes(params, ())
        *keys, observe_key = split(typed(key), 4)
        state = self._begin(keys, params)
        return self._flat(state, params, observe_key), state

    def _begin(self, keys: Sequence[Key], params: EnvParams, station: Any = None) -> EnvState:
        """Draw the first arrival of an episode; the three keys are consumed."""
        workload_key, task_key, noise_key = keys
        process = workload.start(workload_key, params)
        task, process = workload.draw(task_key, params, process)
        return self.start(params, task, noise_key, station).replace(workload=process)

    @broadcasts
    def step(
        self, key: Key, state: EnvState, action: Array, params: EnvParams | None = None
    ) -> tuple[Array, EnvState, Array, Array, Array, dict[str, Any]]:
        """Assign the waiting task, let the next one arrive; reset where the episode ends.

        Args:
          key: consumed.
          state: from reset or step.
          action: the processor, a whole number, or P to refuse, with admission; outside it is clipped.
          params: parameters; None takes the defaults.

        Returns:
          observation, state, reward, terminated (never), truncated (after `max_steps_in_episode` tasks),
          info: `final_observation`, the one before the reset, and the assigned task's `outcome`.
        """
        params = self.default_params if params is None else canonical(params)
        if not jnp.issubdtype(kind := jnp.asarray(action).dtype, jnp.integer):
            raise ValueError(f"action: is {kind}, must be a whole number")
        key = typed(key)
        task_key, noise_key, observe_key, _ = split(key, 4)
        task, process = workload.draw(task_key, params, state.workload)
        stepped, outcome, reward = self.transition(state, action, task, params, noise_key)
        stepped = stepped.replace(workload=process)
        truncated = stepped.steps >= params.max_steps_in_episode

        state = _restarted(self, truncated, key, params, stepped)
        observation = self._flat(state, params, observe_key)
        final = self._flat(stepped, params, observe_key)
        terminated = jnp.zeros((), bool)
        info = {"final_observation": final, "outcome": outcome}
        return observation, state, reward, terminated, truncated, info

    def _flat(self, state: EnvState, params: EnvParams, key: Key) -> Array:
        return flatten(self.observe(state, params, key), stale=params.measure_interval is not None)

    # The pieces that rollouts are made of: any lanes, no randomness but the monitor's noise.

    @broadcasts
    def start(self, params: EnvParams, first_task: Task, key: Key, station: Any = None) -> EnvState:
        """Return the arrival of `first_task` `[...]` at empty processors, or at a given `station`.

        A `station` is given as it is before the gap of the task.

        The monitor starts with figures of empty processors; the key serves its noise, and speeds that change.
        """
        lanes, speeds = first_task.gap.shape, None
        if params.speeds is not None:
            key, speeds_key = split(key, 2)
            speeds = params.speeds.start(speeds_key, self.num_processors, lanes)
        key, dispatching_key = split(key, 2) if self.dispatchers > 1 or self.answers else (key, key)
        state = EnvState(
            system=cycle.start(self, params, lanes, station, speeds),
            task=first_task,
            workload=(),
            steps=jnp.zeros(lanes, jnp.int32),
            dispatching=dispatching.start(self, lanes, dispatching_key),
        )
        nobody = (first_task, state.steps, _not_lost(lanes)) if self.loses(params) else None
        return self._arrive(state, first_task, params, key, nobody)[0]

    def view(self, state: EnvState, params: EnvParams) -> View:
        """Return what a monitor may measure of the processors, as if they worked at full speed."""
        return self.station.view(state.system.station, with_lane_axis(params, state.task.gap.shape).speed)

    def remaining(self, state: EnvState, params: EnvParams) -> Departures | None:
        """Return what becomes of all tasks there if nothing arrives; None if that is known already.

        Of speeds that change, as if they were those of the long run; and as if none left unserved.
        """
        return cycle.remaining(self, with_lane_axis(params, state.task.gap.shape), state.system.station)

    def departing(self, state: EnvState, params: EnvParams) -> Departures | None:
        """Return the shapes of what leaves in a step; None where assignments tell what becomes of tasks."""
        return jax.eval_shape(self.remaining, state, params)

    @broadcasts
    def observe(self, state: EnvState, params: EnvParams, key: Key) -> Observation:
        """Return what a scheduler observes; the key is consumed if there is noise and figures are fresh."""
        seen, own = self.seen(state.task, params), self.dispatcher(state)
        observation = cycle.measure(self, params, state.system, state.task, seen, key, own)
        if state.dispatching is None:
            return observation
        observation = observation.replace(answers=state.dispatching.answers)
        if own is None:
            return observation
        since = state.dispatching.since
        return observation.replace(gap=at_processor(since, own), dispatcher=own, since=since)

    def dispatcher(self, state: EnvState) -> Array | None:
        """Return which dispatcher decides, `[...]` int32; None: there is one."""
        if state.dispatching is None or self.dispatchers == 1:
            return None
        return dispatching.dispatcher(self, state.dispatching, state.steps)

    @broadcasts
    def transition(
        self, state: EnvState, action: Array, next_task: Task, params: EnvParams, key: Key
    ) -> tuple[EnvState, Outcome, Array]:
        """Assign the waiting task and let time pass until the next one arrives: the step function.

        Args:
          state: at a decision.
          action: `[...]` int32.
          next_task: leaves `[...]`.
          params: `speed` `[P]` for one lane, `[P, 1]` or `[P, N]` for N lanes.
          key: consumed where there is noise.

        Returns:
          The state at the next decision, the assigned task's outcome with who has left until then, the reward
          `[...]`.
        """
        assigned, outcome, reward = self.assign(state, action, next_task.gap, params)
        lost = (state.task, state.steps, outcome) if self.loses(params) else None
        after, departed = self._arrive(assigned, next_task, params, key, lost)
        if params.speeds is not None or self.loses(params):
            reward = reward + cast(Any, self.reward).surprise(
                self, of_service(params), assigned, after, departed
            )
        return after, outcome.replace(departures=departed), reward

    @broadcasts
    def assign(
        self, state: EnvState, action: Array, gap: Array, params: EnvParams
    ) -> tuple[EnvState, Outcome, Array]:
        """Assign the waiting task, and no more: no time passes.

        Args:
          state: at a decision.
          action: `[...]` int32.
          gap: `[...]` time until the next arrival, which some rewards are for.
          params: as in `transition`.
        """
        seen = self.seen(state.task, params)
        system, outcome = cycle.assign(
            self, params, state.system, state.task, seen, state.steps, action, self.dispatcher(state)
        )
        decided = dispatching.decided(self, state.dispatching, state.steps)
        after = state.replace(system=system, steps=state.steps + 1, dispatching=decided)
        reward = self.reward(self, of_service(params), state, after, outcome, gap)
        if jnp.shape(reward) != jnp.shape(outcome.completion):
            kind, shape = type(self.reward).__name__, jnp.shape(outcome.completion)
            raise ValueError(f"reward {kind}: returns shape {jnp.shape(reward)}, must be {shape}, one a lane")
        return after, outcome, reward

    def _arrive(
        self,
        state: EnvState,
        task: Task,
        params: EnvParams,
        key: Key,
        assigned: tuple[Task, Array, Outcome] | None = None,
    ) -> tuple[EnvState, Departures | None]:
        """Let the task's gap pass; who has left includes the task `assigned` before, if it was refused."""
        system, departed = cycle.advance(self, params, state.system, task.gap, key)
        if assigned is not None:
            departed = departures.with_refused(departed, *assigned)
        after = state.replace(system=system, task=task)
        if state.dispatching is None:
            return after, departed
        own = dispatching.passed(state.dispatching, task.gap)
        if self.answers:
            left_behind = self.view(after, params).queue_length
            own = own.replace(answers=dispatching.answers(self, state, task.gap, departed, left_behind))
        return after.replace(dispatching=own), departed

    def seen(self, task: Task, params: EnvParams) -> Task:
        """Return the task as a scheduler may see it: where sizes are hidden, neither they nor deadlines."""
        if self.size_visible:
            return task
        size = jnp.broadcast_to(params.size.mean(), task.size.shape)
        return task.replace(size=size, deadline=workload.deadline(params, size, task.priority))

    def check(self, params: EnvParams, lanes: Lanes | None = None) -> None:
        """Raise ValueError if a parameter is out of bounds, or two do not agree; values under a trace pass.

        Args:
          params: of this environment.
          lanes: shape of the lane axes that they will meet; None: not known yet.
        """
        bounds.check(self, params, lanes)

    def bearable_load(self, params: EnvParams) -> float:
        """Return the load below which some rule keeps queues from growing, in the worst of several lanes."""
        return bounds.bearable_load(self, params)


def _not_lost(lanes: Lanes) -> Outcome:
    """Return the outcome of a task that is not refused."""
    zero, no = jnp.zeros(lanes, jnp.float32), jnp.zeros(lanes, bool)
    nowhere = jnp.zeros(lanes, jnp.int32)
    return Outcome(action=nowhere, wait=zero, service=zero, completion=zero, violation=no, lost=no)


def _fresh(env: Env, key: Key, params: EnvParams, old: EnvState) -> EnvState:
    """Return the state to begin with again."""
    *keys, _ = split(split(key, 4)[-1], 4)
    return env._begin(keys, params, env.station.empty(old.system.station))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _restarted(env: Env, ended: Array, key: Key, params: EnvParams, stepped: EnvState) -> EnvState:
    """Restart a state where its episode has ended."""

    def restart(_: Array, carry: tuple[EnvState, Key]) -> tuple[EnvState, Key]:
        old, key = carry
        fresh = _fresh(env, key, params, old)
        return jax.tree.map(functools.partial(jnp.where, ended), fresh, old), split(key, 4)[-1]

    # A loop of one turn or none: a step in which no lane ends does not pay for a reset. The key changes
    # in it, so that XLA does not draw the fresh state beforehand.
    # Under `shard_map` all of the state is different on each device, after a reset as before.
    before = jax.tree.map(lambda leaf: jnp.where(ended, leaf, leaf), stepped)
    return jax.lax.fori_loop(0, ended.astype(jnp.int32), restart, (before, key))[0]


@_restarted.defjvp
def _restarted_jvp(env: Env, primals: tuple, tangents: tuple) -> tuple[EnvState, EnvState]:
    """Restart by selection, since loops have no reverse mode."""
    ended, key, *rest = primals
    begun = jax.jvp(functools.partial(_fresh, env, key), tuple(rest), tuple(tangents[2:]))
    return jax.tree.map(lambda new, old: select(ended, new, old), begun, (rest[1], tangents[3]))
