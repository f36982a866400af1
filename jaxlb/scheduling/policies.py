"""Policies from training loops of one's own, as schedulers."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.observe import flatten
from jaxlb.scheduling.base import usable
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


def _start(stale: bool, name: str, env: Static, params: EnvParams, lanes: Lanes) -> tuple:
    del lanes
    if stale != (params.measure_interval is not None):
        raise ValueError(
            f"scheduler {name!r}: stale = {stale}: must be {not stale} where measure_interval is "
            f"{params.measure_interval}, since flat observations differ"
        )
    if env.admission:
        raise ValueError(f"scheduler {name!r}: has no value for refusing a task; admission must be False")
    return ()


def _act(
    apply: Callable[[Any, Array], Array],
    stale: bool,
    name: str,
    variables: Any,
    memory: tuple,
    observation: Observation,
    key: Key,
) -> tuple[Array, tuple]:
    del key
    x = jnp.moveaxis(flatten(observation, stale), 0, -1)
    value = apply(variables, x)
    expected = (*x.shape[:-1], len(observation.speed))
    if jnp.shape(value) != expected:
        raise ValueError(
            f"scheduler {name!r}: apply returns shape {jnp.shape(value)} for observations {x.shape}: must be "
            f"{expected}, a value for each processor"
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
    """
    if not callable(apply):
        raise ValueError(f"apply = {checks.shown(apply)}: must be a function")
    return Scheduler(name, variables, partial(_start, stale, name), partial(_act, apply, stale, name))
