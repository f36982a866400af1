"""Parameters as programs take them: arrays of one precision, with the lanes' axes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb.numerics import at_processor
from jaxlb.types import Array, EnvParams, Lanes, Task

VECTORS = ("speed", "nominal_speed", "class_probability", "class_slack", "sla_weight")
"""The parameters that have an axis of their own; `sla_weight` may have one, `nominal_speed` may be None."""


def single(tree: Any) -> Any:
    """Cast leaves to single precision, whatever the default of JAX: float32, and int32 arrays that count."""

    def array(x: Any) -> Array:
        counts = jnp.issubdtype(jnp.result_type(x), jnp.integer) and np.ndim(x)
        return jnp.asarray(x, jnp.int32 if counts else jnp.float32)

    return jax.tree.map(array, tree)


def canonical(params: EnvParams) -> EnvParams:
    """Turn plain numbers and tuples into arrays: float32, but int32 for what counts.

    So a number is the same to a compiled program, however it was given.
    """
    arrays = (*VECTORS, "affinity")
    vectors = {name: getattr(params, name) for name in arrays}
    values = {name: None if x is None else jnp.asarray(x, jnp.float32) for name, x in vectors.items()}
    numbers = [name for name in params.__dataclass_fields__ if name not in (*arrays, "max_steps_in_episode")]
    values |= {name: single(getattr(params, name)) for name in numbers}
    steps = jnp.asarray(params.max_steps_in_episode, jnp.int32)
    return params.replace(**values, max_steps_in_episode=steps)


def affinity_of(params: EnvParams, priority: Array) -> Array | None:
    """Return the factor `[P, ...]` of each processor's speed for tasks of these classes `[...]`; None: 1."""
    if params.affinity is None:
        return None
    return jax.vmap(at_processor, (1, None))(params.affinity, priority)


def work_at(size: Array, factor: Array | None) -> Array:
    """Return the work that a task is at processors with these factors; its size where it may not go."""
    return size if factor is None else size / jnp.where(factor > 0, factor, 1.0)


def at_its_processor(params: EnvParams, task: Task, action: Array) -> Task:
    """Return a task with the work that it is where it went."""
    factor = affinity_of(params, task.priority)
    if factor is None:
        return task
    factor = at_processor(factor, jnp.minimum(action, len(factor) - 1))
    return task.replace(size=work_at(task.size, factor))


def with_lane_axis(params: EnvParams, lanes: Lanes) -> EnvParams:
    """Give vectors of the parameters the trailing axes that broadcast against `[P, *lanes]`.

    A vector may have them already, such as `speed` `[P, N]`, a set of speeds for each lane.
    """
    extra = (1,) * len(lanes)
    vectors = {name: getattr(params, name) for name in VECTORS}
    vectors = {
        name: x.reshape(-1, *extra) if x is not None and x.ndim == 1 else x for name, x in vectors.items()
    }
    affinity = params.affinity
    if affinity is not None and affinity.ndim == 2:
        affinity = affinity.reshape(*affinity.shape, *extra)
    return params.replace(**vectors, affinity=affinity)
