"""Five values a step, as gymnax had before version 1: for rejax, purejaxrl and their like."""

from dataclasses import dataclass
from typing import Any

from jaxlb.types import Array, Key


@dataclass(frozen=True)
class FiveValueEnv:
    """An environment whose step returns one `done` for terminated and truncated. Pure, as what it wraps.

    Equal, hashed and copied by value, as trainers want that jit over it.

    Attributes:
      env: from `jaxlb.make`, or any other of six values, such as gymnax's `LogWrapper` around it.
    """

    env: Any

    @property
    def name(self) -> str:
        """Of the environment."""
        return self.env.name

    @property
    def default_params(self) -> Any:
        """The environment's own; what `jaxlb.make` returned beside it may have been changed."""
        return self.env.default_params

    @property
    def num_actions(self) -> int:
        """One action for each processor."""
        return self.env.num_actions

    def action_space(self, params: Any = None) -> Any:
        """Return the environment's space of actions: gymnax's own class where gymnax is imported."""
        return self.env.action_space(params)

    def observation_space(self, params: Any = None) -> Any:
        """Return the environment's space of observations: gymnax's own class where gymnax is imported."""
        return self.env.observation_space(params)

    def reset(self, key: Key, params: Any = None) -> tuple[Array, Any]:
        """Return the first observation and state of an episode; the key is consumed."""
        return self.env.reset(key, params)

    def step(
        self, key: Key, state: Any, action: Array, params: Any = None
    ) -> tuple[Array, Any, Array, Array, dict[str, Any]]:
        """Take one step, with a reset where the episode ends.

        Args:
          key: consumed.
          state: from reset or step.
          action: the processor.
          params: parameters; None takes the defaults.

        Returns:
          observation, state, reward, done, info; `info` has `terminated` and `truncated` for those who tell
          them apart.
        """
        observation, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        info = {**info, "terminated": terminated, "truncated": truncated}
        return observation, state, reward, terminated | truncated, info
