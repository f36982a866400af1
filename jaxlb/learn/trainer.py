"""What all trainers are: a start and a step from one judgement to the next, both pure."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlb import checks
from jaxlb.devices import differing
from jaxlb.env import Env, canonical
from jaxlb.numerics import broadcasts
from jaxlb.random import typed
from jaxlb.types import Array, EnvParams, Key, Scalar, Scheduler


class Trainer(NamedTuple):
    """A method of training, as pure functions.

    Attributes:
      name: what the command line calls it.
      features: what its networks are told, by group.
      objective: the figure of progress that is the largest for the best weights.
      remedy: what to try where training diverged.
      reached: what a table tells of the best weights: heading, figure of progress, factor.
      defaults: () -> settings by name, as plain values.
      configure: (**settings) -> config.
      check: (env, params, config) -> None, or ValueError if a setting is out of bounds.
      start: (env, params, config, key) -> state, before the first iteration; the key is consumed.
      advance: (env, params, config, state) -> (state, progress), the iterations up to the next judgement,
        and that. A state has its keys, and fields `iteration`, `variables`, `best` (variables) and
        `diverged` (iteration, or -1).
      acting: (config, variables) -> the scheduler that has learned them.
      fits: (settings, parameters it was trained for, env, params) -> None, or ValueError if what was trained
        with these settings cannot serve that environment; what it may serve badly is warned of.
      inspect: (env, params, config, variables, key) -> what a picture of its predictions needs, if any.
    """

    name: str
    features: tuple[tuple[str, tuple[str, ...]], ...]
    objective: str
    remedy: str
    reached: tuple[tuple[str, str, float], ...]
    defaults: Callable[[], dict[str, Any]]
    configure: Callable[..., Any]
    check: Callable[[Any, Any, Any], None]
    start: Callable[[Any, Any, Any, Key], Any]
    advance: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    acting: Callable[[Any, Any], Scheduler]
    fits: Callable[[Mapping[str, Any], EnvParams, Env, EnvParams], None]
    inspect: Callable[[Env, EnvParams, Any, Any, Key], Any] | None = None


class TrainResult(struct.PyTreeNode):
    """A trained scheduler.

    Attributes:
      scheduler: with the variables that were judged best.
      last: the scheduler with those at the end.
      history: the trainer's progress, with leaves `[num_evaluations]`.
      diverged: the iteration at which the loss stopped being finite, -1 if it never did. Weights are those
        before that.
    """

    scheduler: Scheduler
    last: Scheduler
    history: Any
    diverged: Array


def train(trainer: Trainer, env: Env | tuple[Env, ...], params: Any, config: Any, key: Key) -> TrainResult:
    """From start to end; a pure function that may be jitted and vmapped. The key is consumed.

    Raises:
      ValueError: a setting or a parameter out of bounds.
      FloatingPointError: the loss stopped being finite (only where the result is at hand, not under a trace,
        where `TrainResult.diverged` tells).
    """
    trainer.check(env, params, config)
    result = _train(trainer, env, *prepared(params, config), typed(key))
    if not checks.traced(result.diverged) and int(result.diverged) >= 0:
        raise FloatingPointError(
            f"training diverged: the loss was not finite at iteration {int(result.diverged)}; "
            f"try {trainer.remedy}"
        )
    return result


def prepared(params: Any, config: Any) -> tuple[Any, Any]:
    """Parameters, of one environment or of several, and settings, as programs take them: see `canonical`."""
    params = jax.tree.map(canonical, params, is_leaf=lambda leaf: isinstance(leaf, EnvParams))
    return params, jax.tree.map(_single, config)


def falling(first: Scalar, last: Scalar, progress: Array) -> Array:
    """Return a learning rate that falls as a cosine does, at a `progress` from 0 to 1."""
    return jnp.asarray(optax.cosine_decay_schedule(first, 1, last / jnp.asarray(first))(progress))


def _single(x: Any) -> Array:
    """A setting in the precision of all else, whether JAX is told to take more or not."""
    return jnp.asarray(x, jnp.int32 if jnp.issubdtype(jnp.result_type(x), jnp.integer) else jnp.float32)


@functools.partial(jax.jit, static_argnames=("trainer", "env"))
@broadcasts
def _train(trainer: Trainer, env: Env | tuple[Env, ...], params: Any, config: Any, key: Key) -> TrainResult:
    def advance(state: Any, _: None) -> tuple[Any, Any]:
        return differing(trainer.advance(env, params, config, state))

    first = differing(trainer.start(env, params, config, key))
    state, history = jax.lax.scan(advance, first, length=config.num_evaluations)
    return TrainResult(
        scheduler=trainer.acting(config, state.best),
        last=trainer.acting(config, state.variables),
        history=history,
        diverged=state.diverged,
    )
