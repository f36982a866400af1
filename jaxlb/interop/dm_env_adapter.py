"""Environments as dm_env has them: `TimeStep`s and specs."""

import importlib
from typing import Any

import jax
import numpy as np

from jaxlb import checks
from jaxlb.env import Env
from jaxlb.types import EnvParams

dm_env: Any = importlib.import_module("dm_env")
_specs: Any = importlib.import_module("dm_env.specs")


class DmEnv(dm_env.Environment):
    """An environment of `jaxlb.make` as a `dm_env.Environment`, compiled.

    Episodes end by truncation, so the discount stays 1.
    """

    def __init__(self, env: Env, params: EnvParams, seed: int = 0):
        """Take an environment with its parameters.

        Args:
          env: from `jaxlb.make`.
          params: of the environment.
          seed: of all that is random.
        """
        checks.seed("seed", seed)
        env.check(params)
        self._env, self._params, self._key, self._state = env, params, jax.random.key(seed), None
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)

    def _next_key(self) -> Any:
        self._key, key = jax.random.split(self._key)
        return key

    def reset(self) -> Any:
        """Begin an episode."""
        observation, self._state = self._reset(self._next_key(), self._params)
        return dm_env.restart(np.array(observation))

    def step(self, action: Any) -> Any:
        """Assign the waiting task to a processor; after the end of an episode, begin the next one.

        Raises:
          ValueError: an action that is no processor.
        """
        chosen = checks.actions("action", action, (), self._env.num_actions)
        if self._state is None:
            return self.reset()
        found = self._step(self._next_key(), self._state, chosen, self._params)
        _, self._state, reward, _, truncated, info = found
        observation, reward = np.array(info["final_observation"]), float(reward)
        if not truncated:
            return dm_env.transition(reward, observation)
        self._state = None
        return dm_env.truncation(reward, observation)

    def observation_spec(self) -> Any:
        """Return the bounds of flat observations."""
        space = self._env.observation_space(self._params)
        return _specs.BoundedArray(space.shape, np.float32, space.low, space.high, "observation")

    def action_spec(self) -> Any:
        """Return the processors."""
        return _specs.DiscreteArray(self._env.num_actions, np.int32, "action")
