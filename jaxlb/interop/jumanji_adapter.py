"""Environments as Jumanji has them: pure, with `TimeStep`s, and keys in states."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.env import Env
from jaxlb.types import Array, EnvParams, EnvState, Key

_jumanji: Any = importlib.import_module("jumanji")
_specs: Any = importlib.import_module("jumanji.specs")
_types: Any = importlib.import_module("jumanji.types")


class JumanjiState(struct.PyTreeNode):
    """The state of an environment, and the key of what comes."""

    key: Key
    env: EnvState


class JumanjiEnv(_jumanji.Environment):
    """An environment of `jaxlb.make` as a `jumanji.Environment`.

    Episodes end by truncation, so the discount stays 1.
    """

    def __init__(self, env: Env, params: EnvParams):
        """Take an environment with its parameters."""
        env.check(params)
        self._env, self._params = env, params
        super().__init__()

    def reset(self, key: Key) -> tuple[JumanjiState, Any]:
        """Begin an episode; the key is consumed."""
        key, reset_key = jax.random.split(key)
        observation, state = self._env.reset(reset_key, self._params)
        return JumanjiState(key, state), _types.restart(observation, dtype=jnp.float32)

    def step(self, state: JumanjiState, action: Array) -> tuple[JumanjiState, Any]:
        """Assign the waiting task to a processor, and let the next one arrive."""
        key, step_key = jax.random.split(state.key)
        _, after, reward, _, truncated, info = self._env.step(step_key, state.env, action, self._params)
        observation = info["final_observation"]
        found = _types.transition(reward, observation, dtype=jnp.float32)
        kind = jnp.where(truncated, _types.StepType.LAST, _types.StepType.MID)
        return JumanjiState(key, after), found.replace(step_type=kind)

    @functools.cached_property
    def observation_spec(self) -> Any:
        """Return the bounds of flat observations."""
        space = self._env.observation_space(self._params)
        return _specs.BoundedArray(space.shape, jnp.float32, space.low, space.high, "observation")

    @functools.cached_property
    def action_spec(self) -> Any:
        """Return the processors."""
        return _specs.DiscreteArray(self._env.num_actions, dtype=jnp.int32, name="action")

    @functools.cached_property
    def reward_spec(self) -> Any:
        """Return the shape of rewards."""
        return _specs.Array((), jnp.float32, "reward")

    @functools.cached_property
    def discount_spec(self) -> Any:
        """Return the bounds of discounts."""
        return _specs.BoundedArray((), jnp.float32, 0.0, 1.0, "discount")
