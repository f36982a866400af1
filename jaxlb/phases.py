"""Two phases of a task, as inference servers have them: work until the first token, then token by token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class Phases(struct.PyTreeNode):
    """What is to be done until a task's first token, and what is allowed to it.

    Attributes:
      prefill: `[...]` work until the first token; the rest of the size is decoding.
      first_token_limit: `[...]` time allowed from arrival to the first token.
      token_limit: `[...]` time allowed per work of the rest.
    """

    prefill: jax.Array
    first_token_limit: jax.Array
    token_limit: jax.Array


def phases(params: Any, size: jax.Array, recorded: jax.Array | None = None) -> Phases | None:
    """Return the phases of tasks of sizes `[...]`, whose prefill may be recorded; None: they have one."""
    if params.prefill is None:
        return None
    limits = (
        jnp.float32(jnp.inf) if limit is None else limit
        for limit in (params.first_token_limit, params.token_limit)
    )
    prefill = params.prefill * size if recorded is None else recorded
    first, each = (jnp.broadcast_to(limit, jnp.shape(size)) for limit in limits)
    return Phases(prefill, first, each)


def time_per_token(task: Any, outcome: Any) -> jax.Array:
    """Return the time after the first token per work of the rest, `[...]`; 0 where there is none."""
    rest = task.size - task.phases.prefill
    return (outcome.completion - outcome.first_token) / jnp.where(rest > 0, rest, jnp.inf)


def within_limits(task: Any, outcome: Any) -> jax.Array:
    """Return whether both times are within their limits, bool `[...]`."""
    in_time = outcome.first_token <= task.phases.first_token_limit
    return in_time & (time_per_token(task, outcome) <= task.phases.token_limit)
