"""Policies from training loops of one's own, as schedulers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import checks
from jaxlb.devices import at_hand
from jaxlb.functions import partial
from jaxlb.observe import flatten
from jaxlb.scheduling.base import usable
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


class Watched(struct.PyTreeNode):
    """What is remembered of values that are not numbers.

    Attributes:
      name: of the scheduler.
      decisions: `[...]` int32, so far.
      first: `[...]` int32, the first that had one; -1: none.
    """

    name: str = struct.field(pytree_node=False)
    decisions: Array
    first: Array


def check_numbers(memory: Any) -> None:
    """Raise FloatingPointError if values of a policy, whose memory this is or has in it, were not numbers."""
    for one in jax.tree.leaves(memory, is_leaf=lambda node: isinstance(node, Watched)):
        if isinstance(one, Watched):
            first = np.asarray(at_hand(one.first)).ravel()
            if (first >= 0).any():
                lane = int(np.argmin(np.where(first >= 0, first, np.iinfo(np.int32).max)))
                raise FloatingPointError(
                    f"scheduler {one.name!r}: a value was not a number at task {first[lane]:,} of lane "
                    f"{lane:,}, the first of {int((first >= 0).sum()):,} such lanes"
                )


def _start(stale: bool, name: str, env: Static, params: EnvParams, lanes: Lanes) -> Watched:
    if stale != (params.measure_interval is not None):
        raise ValueError(
            f"scheduler {name!r}: stale = {stale}: must be {not stale} where measure_interval is "
            f"{params.measure_interval}, since flat observations differ"
        )
    if env.admission:
        raise ValueError(f"scheduler {name!r}: has no value for refusing a task; admission must be False")
    return Watched(name, jnp.zeros(lanes, jnp.int32), jnp.full(lanes, -1, jnp.int32))


def _act(
    apply: Callable[[Any, Array], Array],
    stale: bool,
    name: str,
    variables: Any,
    memory: Watched,
    observation: Observation,
    key: Key,
) -> tuple[Array, Watched]:
    del key
    x = jnp.moveaxis(flatten(observation, stale), 0, -1)
    value = apply(variables, x)
    if not hasattr(value, "shape"):
        raise ValueError(f"scheduler {name!r}: apply returns a {type(value).__name__}: must be one array")
    expected = (*x.shape[:-1], len(observation.speed))
    if jnp.shape(value) != expected:
        raise ValueError(
            f"scheduler {name!r}: apply returns shape {jnp.shape(value)} for observations {x.shape}: must be "
            f"{expected}, a value for each processor"
        )
    wrong = jnp.isnan(value).any(-1) & (memory.first < 0)
    memory = memory.replace(
        decisions=memory.decisions + 1, first=jnp.where(wrong, memory.decisions, memory.first)
    )
    value = usable(observation, jnp.moveaxis(value, -1, 0), -jnp.inf)
    return jnp.argmax(value, 0).astype(jnp.int32), memory


def as_scheduler(
    apply: Callable[[Any, Array], Array], variables: Any, *, name: str = "policy", stale: bool = False
) -> Scheduler:
    """Make a scheduler of a network that was trained on flat observations.

    It takes the processor of the largest value, of those that are up, have room and may take the task.

    Args:
      apply: (variables, flat observations `[..., F]`, as of `env.step`) -> values or logits `[..., P]`.
      variables: of it, a pytree of arrays.
      name: in tables.
      stale: whether figures are measured at intervals, and flat observations have their age.

    Raises:
      ValueError: `apply` is no function; or later, where it runs: values of the wrong shape, or `stale` is
        not as the environment has it.
      FloatingPointError: after a rollout, a replay or a comparison in which a value was not a number.
    """
    if not callable(apply):
        raise ValueError(f"apply = {checks.shown(apply)}: must be a function")
    return Scheduler(name, variables, partial(_start, stale, name), partial(_act, apply, stale, name))
