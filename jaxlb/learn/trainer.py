"""What all trainers are: a start and a step from one judgement to the next, both pure."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxlb import checks
from jaxlb.devices import differing
from jaxlb.env import Env
from jaxlb.learn import networks, settings
from jaxlb.numerics import broadcasts
from jaxlb.params import canonical, single
from jaxlb.random import typed
from jaxlb.scheduling.base import no_departures
from jaxlb.types import Array, EnvParams, Key, Scheduler

Systems = Env | tuple[Env, ...]
"""One environment, or several that differ in their number of processors."""


Groups = tuple[tuple[str, tuple[str, ...]], ...]
"""Names of features, by group."""


class Trainer(NamedTuple):
    """A method of training, as pure functions.

    Attributes:
      name: what the command line calls it.
      aim: what it learns, in a sentence.
      features: names of those that its network is given, by group.
      known: names of those that it could be given.
      objective: the figure of progress that is the largest for the best weights.
      reached: the figures of progress that show what was reached, the most important first.
      remedy: what to try where training diverged.
      config: of its settings, whose fields are those of `jaxlb.learn.settings`.
      check: (env, params, config) -> None, or ValueError if settings do not agree with each other or with the
        environment.
      start: (env, params, config, key) -> state, before the first iteration; the key is consumed.
      advance: (env, params, config, state) -> (state, progress), the iterations up to the next judgement,
        and that. A state is a `TrainState`, with keys of its own.
      warm: (state before the first iteration, variables) -> the same, but going on from those, which the
        method trained before; None: such a training begins anew.
      imitate: (env, params, config, state before the first iteration, scheduler) -> the same, but acting as
        any scheduler does; None: it cannot.
      by_parts: as `advance`, but calling programs of its own, where one program for several systems would
        take too long to compile.
      variables: (config, number of processors) -> variables before training, of which only structure and
        shapes count.
      acting: (config, variables, features) -> the scheduler that has learned them, its network being given
        features of these names, by group.
      fits: (settings, speeds it was trained for, env, params) -> None, or ValueError if what was trained with
        these settings cannot serve that environment; what it may serve badly is warned of.
      inspect: (env, params, config, variables, key) -> what a picture of its predictions needs, if any.
    """

    name: str
    aim: str
    features: Groups
    known: Groups
    objective: str
    reached: tuple[str, ...]
    remedy: str
    config: type
    check: Callable[[Any, Any, Any], None]
    start: Callable[[Any, Any, Any, Key], Any]
    advance: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    variables: Callable[[Any, int], Any]
    acting: Callable[[Any, Any, Mapping[str, tuple[str, ...]]], Scheduler]
    fits: Callable[[Mapping[str, Any], np.ndarray, Env, EnvParams], None]
    inspect: Callable[[Env, EnvParams, Any, Any, Key], Any] | None = None
    by_parts: Callable[[Any, Any, Any, Any], tuple[Any, Any]] | None = None
    warm: Callable[[Any, Any], Any] | None = None
    imitate: Callable[[Any, Any, Any, Any, Scheduler], Any] | None = None


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


def train(trainer: Trainer, env: Systems, params: Any, config: Any, key: Key) -> TrainResult:
    """Train from start to end: a pure function that may be jitted and vmapped. The key is consumed.

    Raises:
      ValueError: a setting or a parameter out of bounds.
      FloatingPointError: the loss stopped being finite (only where the result is at hand, not under a trace,
        where `TrainResult.diverged` shows it).
    """
    config = trainer.config() if config is None else config
    check(trainer, env, params, config)
    result = _train(trainer, env, *prepared(params, config), typed(key))
    if not checks.traced(result.diverged) and int(result.diverged) >= 0:
        raise FloatingPointError(
            f"training diverged: the loss was not finite at iteration {int(result.diverged)}; "
            f"try {trainer.remedy}"
        )
    return result


def check(trainer: Trainer, env: Systems, params: Any, config: Any) -> None:
    """Raise ValueError if a setting is out of bounds, or does not agree with others or the environment."""
    settings.check(config)
    if getattr(config, "network", None) is not None:
        networks.check(config.network)
    checks.multiple("num_iterations", config.num_iterations, "num_evaluations", config.num_evaluations)
    for one, _ in systems(env, params):
        if one.admission:
            raise ValueError(f"admission: must be False, since training of {trainer.name} refuses no task")
        if one.dispatchers > 1:
            raise ValueError(f"dispatchers: must be 1, since training of {trainer.name} knows one")
    trainer.check(env, params, config)


def systems(env: Systems, params: Any) -> tuple[tuple[Env, EnvParams], ...]:
    """Return the environments with their parameters.

    Raises:
      ValueError: not as many of each, or none.
    """
    if isinstance(env, Env):
        return ((env, params),)
    if not env or len(env) != len(params):
        raise ValueError(
            f"{len(env)} environments with {len(params)} parameters: must be as many, at least 1"
        )
    return tuple(zip(env, params, strict=True))


def checked_systems(env: Systems, params: Any, num_lanes: int) -> tuple[tuple[Env, EnvParams], ...]:
    """Return the environments with their parameters, once those are checked.

    Raises:
      ValueError: not as many of each, or a parameter out of bounds.
    """
    each = systems(env, params)
    for one, own in each:
        one.check(own, (num_lanes,))
    return each


def keys(key: Key, count: int) -> tuple[Key, ...]:
    """Return a key for each system, or the key itself for one system; it is consumed."""
    return (key,) if count == 1 else tuple(jax.random.split(key, count))


def averaged(figures: Sequence[Any]) -> Any:
    """Average figures of several systems, leaf by leaf, and over what each leaf still has."""
    return jax.tree.map(lambda *values: jnp.stack(values).mean(), *figures)


def prepared(params: Any, config: Any) -> tuple[Any, Any]:
    """Prepare parameters, of one environment or of several, and settings for programs: see `canonical`."""
    params = jax.tree.map(
        lambda part: canonical(part) if isinstance(part, EnvParams) else single(part),
        params,
        is_leaf=lambda part: isinstance(part, EnvParams),
    )
    return params, single(config)


class TrainState(struct.PyTreeNode):
    """What every method remembers between two judgements; each has more."""

    iteration: Array  # int32
    variables: Any
    best: Any  # variables, of all that were judged
    best_objective: Array
    optimiser: Any
    diverged: Array  # int32, the iteration at which a loss was not finite; -1: none


State = TypeVar("State", bound=TrainState)


def beginning(variables: Any, optimiser: Any) -> dict[str, Any]:
    """Return the fields of a `TrainState` before the first iteration."""
    return {
        "iteration": jnp.int32(0),
        "variables": variables,
        "best": variables,
        "best_objective": jnp.float32(-jnp.inf),
        "optimiser": optimiser,
        "diverged": jnp.int32(-1),
    }


def warmed(state: Any, variables: Any) -> Any:
    """Return the state before the first iteration, but with a scheduler's networks and their inputs' moments.

    Raises:
      ValueError: they are of another shape.
    """
    kept = [name for name in ("network", "moments") if hasattr(variables, name)]
    if not kept:
        raise ValueError(
            "initial: has no network that was trained; a rule needs another name than the method"
        )
    own = state.variables.replace(**{name: getattr(variables, name) for name in kept})
    theirs, ours = (
        [
            (jax.tree_util.keystr(path), np.shape(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(one)
        ]
        for one in (own, state.variables)
    )
    for their, our in zip(theirs, ours, strict=False):
        if their != our:
            raise ValueError(f"initial: {their[0]} has shape {their[1]}: must be {our[0]} of {our[1]} here")
    if len(theirs) != len(ours):
        raise ValueError("initial: must have the network that the settings make")
    own = jax.tree.map(jnp.asarray, own)
    return state.replace(variables=own, best=own, target=own.network)


def check_initial(
    trainer: Trainer, env: Systems, params: Any, config: Any, initial: Scheduler | None
) -> None:
    """Raise ValueError if a training cannot begin with a scheduler's networks."""
    if initial is not None:
        begin = functools.partial(begun, trainer, env, *prepared(params, config), initial=initial)
        jax.eval_shape(begin, jax.random.key(0))


def begun(
    trainer: Trainer, env: Systems, params: Any, config: Any, key: Key, initial: Scheduler | None = None
) -> Any:
    """Return the state before the first iteration; the key is consumed.

    It begins with the networks of what the method trained before, or acting as another scheduler.
    """
    state = trainer.start(env, params, config, key)
    if initial is None:
        return state
    if trainer.warm is None:
        raise ValueError(f"initial: a training of {trainer.name} begins anew")
    if initial.name == trainer.name:
        return trainer.warm(state, initial.variables)
    if trainer.imitate is None:
        raise ValueError(f"initial: is a {initial.name!r}, must be what {trainer.name} trained")
    no_departures("a training", initial)
    return trainer.imitate(env, params, config, state, initial)


def begin_each(
    trainer: Trainer,
    env: Systems,
    axis: int | None,
    params: Any,
    config: Any,
    seeds: Array,
    initial: Scheduler | None = None,
) -> Any:
    """Return the states before the first iteration of trainings side by side, one for each seed `[n]`.

    Settings differ between them along `axis`; None: they do not.
    """
    one = functools.partial(begun, trainer, env, params, initial=initial)
    return jax.vmap(one, in_axes=(axis, 0))(config, jax.vmap(jax.random.key)(seeds))


def advance_each(
    trainer: Trainer, env: Systems, axis: int | None, params: Any, config: Any, state: Any
) -> tuple[Any, Any]:
    """Return the states of trainings side by side at the next judgement, and its figures."""
    own = functools.partial(_parts(trainer, env) or trainer.advance, env, params)
    return jax.vmap(own, in_axes=(axis, 0))(config, state)


_at_once = functools.partial(jax.jit, static_argnames=("trainer", "env", "axis"))
# The state that goes in is not needed again, and what it remembers is the largest thing there is.
_programs = _at_once(begin_each), _at_once(advance_each, donate_argnames="state")


def programs(trainer: Trainer, env: Systems) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `begin_each` and `advance_each`, jitted unless the method calls programs of its own."""
    return (begin_each, advance_each) if _parts(trainer, env) else _programs


def _parts(trainer: Trainer, env: Systems) -> Callable[..., Any] | None:
    """Return what advances several systems by programs of its own, where the method has that."""
    return None if isinstance(env, Env) else trainer.by_parts


def updated(state: State, finite: Array, iteration: Array, **new: Any) -> State:
    """Return the state with what was learned.

    Once a loss was not finite, at `iteration`, what was learned before stays.
    """
    finite = finite & (state.diverged < 0)
    old = {name: getattr(state, name) for name in new}
    return state.replace(
        diverged=jnp.where(finite | (state.diverged >= 0), state.diverged, iteration),
        **jax.tree.map(functools.partial(jnp.where, finite), new, old),
    )


def judged(state: State, variables: Any, objective: Array) -> State:
    """Return the state with these variables as the best, if their objective is the largest so far."""
    better = objective > state.best_objective
    return state.replace(
        best=jax.tree.map(functools.partial(jnp.where, better), variables, state.best),
        best_objective=jnp.where(better, objective, state.best_objective),
    )


def falling(config: Any) -> Callable[[Any], Array]:
    """Return the learning rate at each iteration, which falls as a cosine does."""
    first: Any = jnp.asarray(config.learning_rate)
    schedule = optax.cosine_decay_schedule(first, config.num_iterations, config.final_learning_rate / first)
    return lambda iteration: jnp.asarray(schedule(jnp.asarray(iteration, jnp.float32)))


def descend(optimiser: Any, gradient: Any, state: Any, parameters: Any, **extra: Any) -> tuple[Any, Any]:
    """Return parameters and the optimiser's state after a step."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers with floats
        update, state = optimiser.update(gradient, state, parameters, **extra)
        return optax.apply_updates(parameters, update), state


@functools.partial(jax.jit, static_argnames=("trainer", "env"))
@broadcasts
def _train(trainer: Trainer, env: Systems, params: Any, config: Any, key: Key) -> TrainResult:
    def advance(state: Any, _: None) -> tuple[Any, Any]:
        return differing(trainer.advance(env, params, config, state))

    first = differing(trainer.start(env, params, config, key))
    state, history = jax.lax.scan(advance, first, length=config.num_evaluations)
    return TrainResult(
        scheduler=trainer.acting(config, state.best, dict(trainer.features)),
        last=trainer.acting(config, state.variables, dict(trainer.features)),
        history=history,
        diverged=state.diverged,
    )
