"""Scenarios as Gymnasium has environments: one with `reset` and `step`, and thousands in one vector."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from jaxlb import checks, stations
from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.interop.drawing import Picture
from jaxlb.types import Array, EnvParams, EnvState, Key, Outcome


def _reset(env: Env, params: EnvParams, key: Key) -> tuple[Key, EnvState, Array]:
    key, reset_key = jax.random.split(key)
    observation, state = env.reset(reset_key, params)
    return key, state, observation


def _step(env: Env, params: EnvParams, key: Key, state: EnvState, action: Array) -> tuple:
    key, step_key = jax.random.split(key)
    observation, state, *rest = env.step(step_key, state, action, params)
    return key, state, (observation, *rest)


def _over_lanes(function: Any, mapped: int) -> Any:
    """Map the function of one environment over all, in one program; the first two arguments are common."""

    def lanes(env: Env, params: EnvParams, *args: Any) -> Any:
        return jax.vmap(functools.partial(function, env), (None, *(0,) * mapped))(params, *args)

    return jax.jit(lanes, static_argnums=0)


# Compiled once for all environments that are equal.
_reset_one, _step_one = jax.jit(_reset, static_argnums=0), jax.jit(_step, static_argnums=0)
_reset_lanes, _step_lanes = _over_lanes(_reset, 1), _over_lanes(_step, 3)
_keys = jax.jit(jax.vmap(jax.random.key))


class ResetNeeded(gymnasium.error.ResetNeeded, ValueError):
    """Gymnasium's error, and a ValueError like all that jaxlb refuses."""


def _begun(state: EnvState | None) -> None:
    if state is None:
        raise ResetNeeded("step before reset: reset begins an episode")


def _spaces(env: Env, params: EnvParams) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    seen = env.observation_space(params)
    return gymnasium.spaces.Box(seen.low, seen.high, dtype=np.float32), gymnasium.spaces.Discrete(
        env.num_actions
    )


def _by_name(outcome: Outcome) -> dict[str, np.ndarray]:
    # Who else has left is not an array for each environment.
    names = [field.name for field in dataclasses.fields(outcome) if field.name != "departures"]
    values = {name: getattr(outcome, name) for name in names}
    return {name: np.array(value) for name, value in values.items() if value is not None}


class LoadBalancingEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One environment, as `gymnasium.make("jaxlb/heavy-tail-v0")` makes it.

    What became of the task that was assigned, its `wait`, `completion`, `violation` and so on, is in `info`.
    An episode is truncated after `max_steps_in_episode` tasks, never terminated.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, scenario: str, *, render_mode: str | None = None, **overrides: Any) -> None:
        """Make a scenario.

        Args:
          scenario: one of `jaxlb.scenarios()`.
          render_mode: "human" opens a window, "rgb_array" lets `render` return pixels.
          overrides: what `jaxlb.make` takes, such as `load=0.9`.

        Raises:
          ValueError: whatever `jaxlb.make` refuses, or an unknown render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode = {render_mode!r}: must be None, 'human' or 'rgb_array'")
        self.func_env, self.params = make(scenario, **overrides)
        if render_mode is not None:
            stations.needs_settled("rendering", self.func_env.station)
        self.observation_space, self.action_space = _spaces(self.func_env, self.params)
        self.render_mode = render_mode
        self._key: Key | None = None
        self._state: EnvState | None = None
        self._next_episode: np.ndarray | None = None
        self._picture: Picture | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; with a seed, it and all that follow are reproducible."""
        del options
        if seed is not None:
            checks.seed("seed", seed)
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            word = int(self.np_random.integers(2**32)) if seed is None else seed
            self._key, self._next_episode = jax.random.key(np.uint32(word)), None
        observation = self._next_episode
        if observation is None:
            self._key, self._state, first = _reset_one(self.func_env, self.params, self._key)
            observation = np.array(first)
        # The step that ended the last episode has begun this one, as it does in a vector.
        self._next_episode = None
        self._render_if_human()
        return observation, {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Assign the waiting task to a processor, and let the next one arrive.

        Raises:
          ValueError: an action that is no processor, or no reset before.
        """
        _begun(self._state)
        chosen = checks.actions("action", action, (), self.func_env.num_actions)
        self._key, self._state, (first, reward, terminated, truncated, info) = _step_one(
            self.func_env, self.params, self._key, self._state, chosen
        )
        ended = bool(truncated)
        self._next_episode = np.array(first) if ended else None
        self._render_if_human()
        outcome = {name: value.item() for name, value in _by_name(info["outcome"]).items()}
        return np.array(info["final_observation"]), float(reward), bool(terminated), ended, outcome

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Draw the queues now: pixels `[height, width, 3]`, or a window, or nothing, by render mode."""
        if self.render_mode is None or self._state is None:
            return None
        if self._picture is None:
            self._picture = Picture(window=self.render_mode == "human")
        self._picture.draw(self._state.system.station, self._state.task, np.asarray(self.params.speed))
        if self.render_mode == "rgb_array":
            return self._picture.pixels()
        self._picture.show(1 / self.metadata["render_fps"])
        return None

    def close(self) -> None:
        """Close the window."""
        if self._picture is not None:
            self._picture.close()
        self._picture = None

    def _render_if_human(self) -> None:
        if self.render_mode == "human":
            self.render()


class LoadBalancingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Lanes side by side in one jitted call, as `gymnasium.make_vec("jaxlb/heavy-tail-v0")` makes them.

    A lane that ends begins anew in the same step: then the last observation and outcome are in `info`, as
    `final_obs` and `final_info`. With seed s, lane n is what `LoadBalancingEnv` with seed s + n is.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, num_envs: int, scenario: str, *, render_mode: str | None = None, **overrides: Any
    ) -> None:
        """Make lanes of a scenario.

        Args:
          num_envs: lanes, N.
          scenario: one of `jaxlb.scenarios()`.
          render_mode: "rgb_array" lets `render` return pixels.
          overrides: what `jaxlb.make` takes, such as `load=0.9`; the same for all lanes.

        Raises:
          ValueError: whatever `jaxlb.make` refuses, or an unknown render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode = {render_mode!r}: must be None or 'rgb_array'")
        checks.at_least("num_envs", num_envs, 1)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._picture = Picture(window=False) if render_mode else None
        self.func_env, self.params = make(scenario, **overrides)
        self.single_observation_space, self.single_action_space = _spaces(self.func_env, self.params)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._key: Key | None = None
        self._state: EnvState | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every lane.

        Args:
          seed: of the first lane, whose neighbours take the numbers after it; or one for each lane, None for
            one that goes on as it would.
          options: ignored.

        Raises:
          ValueError: another number of seeds than of lanes, or one that is no whole number from 0 below 2^32.
        """
        del options
        lanes = self.num_envs
        if isinstance(seed, (Sequence, np.ndarray)):
            seeds = list(seed)
            if len(seeds) != lanes:
                raise ValueError(f"seed has {len(seeds)} entries: must have {lanes}, one for each lane")
            for one in seeds:
                if one is not None:
                    checks.seed("seed", one)
        elif seed is None:
            seeds = [None] * lanes
        else:
            checks.seed("seed of the first lane", seed, lanes)
            seeds = [int(seed) + lane for lane in range(lanes)]
        super().reset(seed=None if seeds[0] is None else int(seeds[0]))
        key = self._key
        if key is None:
            key = _keys(self.np_random.integers(2**32, size=lanes, dtype=np.uint32))
        given = np.array([one is not None for one in seeds])
        words = np.array([0 if one is None else one for one in seeds], np.uint32)
        if given.any():
            key = jnp.where(given, _keys(words), key)
        self._key, self._state, observation = _reset_lanes(self.func_env, self.params, key)
        return np.array(observation), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Assign the waiting task of every lane, `actions` `[N]`, and let the next ones arrive.

        Raises:
          ValueError: another shape, an action that is no processor, or no reset before.
        """
        _begun(self._state)
        chosen = checks.actions("actions", actions, (self.num_envs,), self.func_env.num_actions)
        self._key, self._state, seen = _step_lanes(self.func_env, self.params, self._key, self._state, chosen)
        *figures, info = seen
        observation, reward, terminated, truncated = map(np.array, figures)
        ended, outcome = terminated | truncated, _by_name(info["outcome"])
        infos = _masked(outcome, ~ended)
        if ended.any():
            last = np.array(info["final_observation"])
            final = np.full(self.num_envs, None, object)
            for lane in np.flatnonzero(ended):
                final[lane] = last[lane]
            infos |= {"final_obs": final, "_final_obs": ended}
            infos |= {"final_info": _masked(outcome, ended), "_final_info": ended}
        return observation, reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Draw the queues of every lane now, to one scale: pixels `[height, width, 3]` each; or nothing."""
        if self._picture is None or self._state is None:
            return None
        speed, pictures = np.asarray(self.params.speed), []
        seen = jax.device_get((self._state.system.station, self._state.task))
        for lane in range(self.num_envs):
            system, task = jax.tree.map(lambda leaf, lane=lane: leaf[lane], seen)
            self._picture.draw(system, task, speed)
            pictures.append(self._picture.pixels())
        return tuple(pictures)


def _masked(values: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return information of some lanes as Gymnasium has it.

    Elsewhere it is 0, and a mask says whose it is; without lanes there are no entries.
    """
    if not mask.any():
        return {}
    infos = {}
    for name, value in values.items():
        infos |= {name: value if mask.all() else np.where(mask, value, value.dtype.type(0)), f"_{name}": mask}
    return infos
