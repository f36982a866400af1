"""Regression of completion times by message passing: rounds of examples from simulated systems, and fits.

The states that a scheduler's own choices lead to are not those of other rules. So in every round but the
first half of the lanes are its own (Ross, Gordon and Bagnell 2011); examples of all rounds are kept.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlb import checks, workload
from jaxlb.env import Env, with_lane_axis
from jaxlb.learn import networks
from jaxlb.learn.schedules import schedule
from jaxlb.learn.trainer import Trainer, TrainResult, train
from jaxlb.numerics import at_processor
from jaxlb.rollout import first_arrival, watch
from jaxlb.schedulers import forecasts, learned, scheduler, schedulers
from jaxlb.schedulers.base import chosen_acts
from jaxlb.schedulers.forecasts import FLUID, Forecaster
from jaxlb.schedulers.learned import Features, Network, Regression
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler

Target = Literal["time", "log-time", "choice"]
HELD_OUT = 5
"""Every fifth lane is held out of the fit."""


def _static(default: Any) -> Any:
    return struct.field(pytree_node=False, default=default)


class GNNConfig(struct.PyTreeNode):
    """Settings of the trainer. Learning rates are leaves and can be vmapped; the rest is static.

    Attributes:
      learning_rate: of Adam, at first; it falls as a cosine does.
      final_learning_rate: at the end.
      network: from `jaxlb.learn.networks`, or your own (init, apply).
      forecaster: of the waits that it is told, from `jaxlb.schedulers.forecasts`.
      target: what is fitted: "time": completion times; "log-time": their logarithms; "choice": the oracle's
        choice, by classification.
      behaviours: schedulers that lead to the states of the first round, and to half of those of the others.
      num_lanes: N environments that examples are from.
      num_tasks: of each round, in each lane.
      warmup: tasks before these that no example is taken from.
      batch_size: decisions, with all their processors, that a gradient is taken over.
      num_iterations: gradient steps.
      num_evaluations: rounds of examples; after each round's steps, lanes that were held out are looked at.
    """

    learning_rate: Any = 3e-3
    final_learning_rate: Any = 1e-5
    network: Network = _static(networks.gnn())
    forecaster: Forecaster = _static(FLUID)
    target: Target = _static("log-time")
    behaviours: tuple[str, ...] = _static(("lwr", "greedy", "rr", "weighted-random"))
    num_lanes: int = _static(160)
    num_tasks: int = _static(100)
    warmup: int = _static(100)
    batch_size: int = _static(512)
    num_iterations: int = _static(8000)
    num_evaluations: int = _static(8)


class Examples(struct.PyTreeNode):
    """Decisions, and what each choice would have led to."""

    features: Features  # [..., N, G] and [..., N, P, L]
    completion: Array  # [..., N, P] mean services


class GNNState(struct.PyTreeNode):
    """All that training remembers between two rounds."""

    iteration: Array  # int32
    examples: Examples  # [R, T, ...], of round r in row r
    variables: Regression
    best: Regression
    best_objective: Array
    optimiser: Any
    diverged: Array  # int32, the iteration at which a loss was not finite; -1: none


class Progress(struct.PyTreeNode):
    """Figures of training; all but the first loss are of lanes that were held out, in this round."""

    iteration: Array
    regression_loss: Array  # of the examples it is fitted to
    held_out_loss: Array
    r_squared: Array  # of completion times; of a classifier: not a number
    agreement: Array  # with the oracle
    regret: Array  # mean services, completion of the choice less that of the oracle's
    objective: Array  # minus the loss of held-out lanes


_OPTIMISER = optax.scale_by_adam()


@functools.cache
def _mixture(own: Scheduler, behaviours: tuple[Scheduler, ...]) -> Scheduler:
    """Every second lane under its own policy once that is trained, the others under one of the rules."""

    def start(params: EnvParams, lanes: Lanes) -> tuple:
        return own.start(params, lanes), tuple(rule.start(params, lanes) for rule in behaviours)

    def act(variables: tuple[Regression, Array], memory: tuple, observation: Observation, key: Key) -> tuple:
        (ours, trained), (tracked, memories) = variables, memory
        own_key, *keys = jax.random.split(key, 1 + len(behaviours))
        lane = jnp.arange(observation.size.size, dtype=jnp.int32).reshape(observation.size.shape)
        learned_action, tracked = own.act(ours, tracked, observation, own_key)
        none, which = ((),) * len(behaviours), (lane // 2) % len(behaviours)
        action, memories = chosen_acts(behaviours, none, memories, observation, keys, which)
        action = jnp.where(trained & (lane % 2 == 1), learned_action, action)
        return action, (tracked, memories)

    return Scheduler("mixture", own.init, start, act)


@functools.cache
def _look(forecaster: Forecaster) -> Any:
    def look(memory: tuple, observation: Observation) -> Examples:
        _, seen, forecast = forecaster.look(memory[0], observation)
        completion = seen.truth.wait + seen.truth.size / seen.speed
        return Examples(learned.completion_features(seen, forecast), jnp.moveaxis(completion, 0, -1))

    return look


def examples(
    env: Env, params: EnvParams, config: GNNConfig, variables: Regression, trained: Array, key: Key
) -> Examples:
    """A round of them, `[T, N, ...]`.

    Args:
      env: static.
      params: of the environment; a leaf may be `[N]`.
      config: of the trainer.
      variables: of the policy so far.
      trained: bool, whether half of the lanes are its own.
      key: consumed.
    """
    c, lanes = config, (config.num_lanes,)
    task_key, replay_key = jax.random.split(key)
    params = with_lane_axis(params, lanes)
    tasks = workload.sample(task_key, params, c.warmup + c.num_tasks, lanes)
    mixture = _mixture(_acting(c), tuple(scheduler(name) for name in c.behaviours))
    _, found = watch(env, params, mixture, (variables, trained), tasks, replay_key, _look(c.forecaster))
    return jax.tree.map(lambda leaf: leaf[c.warmup :], found)


def _acting(config: GNNConfig) -> Scheduler:
    return learned.gnn(config.network, config.forecaster)


def loss(config: GNNConfig, variables: Regression, examples: Examples) -> Array:
    """Mean squared error of standardised targets, or cross entropy of the oracle's choice."""
    out = config.network.apply(variables.network, learned.standardise(variables.moments, examples.features))
    if config.target == "choice":
        best = jnp.argmin(examples.completion, -1)
        return optax.softmax_cross_entropy_with_integer_labels(-out, best).mean()
    target = (_target(config, examples) - variables.mean) / variables.deviation
    return ((out - target) ** 2).mean()


def _target(config: GNNConfig, examples: Examples) -> Array:
    return jnp.log(examples.completion) if config.target == "log-time" else examples.completion


def _standardising(config: GNNConfig, variables: Regression, examples: Examples) -> Regression:
    """The variables with moments of these examples."""

    def along(leaf: Array) -> tuple[int, ...]:
        return tuple(range(leaf.ndim - 1))

    x, target = examples.features, _target(config, examples)
    return variables.replace(
        moments=learned.Moments(
            mean=jax.tree.map(lambda leaf: leaf.mean(along(leaf)), x),
            variance=jax.tree.map(lambda leaf: leaf.var(along(leaf)), x),
        ),
        mean=target.mean(),
        deviation=target.std(),
    )


def start_gnn(env: Env, params: EnvParams, config: GNNConfig, key: Key) -> GNNState:
    """Before the first round: no examples, a new network.

    Args:
      env: static.
      params: of the environment; a leaf may be `[N]` (`[P, N]`, `[C, N]`).
      config: of the trainer.
      key: of the training; give the same one to `continue_gnn`.
    """
    key, _ = jax.random.split(key)
    lanes = (config.num_lanes,)
    laned = with_lane_axis(params, lanes)
    arrival_key, observe_key, network_key = jax.random.split(key, 3)
    observation = env.observe(first_arrival(env, laned, arrival_key, lanes), laned, observe_key)
    _, seen, forecast = config.forecaster.look(config.forecaster.start(laned, lanes), observation)
    x = learned.completion_features(seen, forecast)
    variables = learned.untrained_regression(config.network, network_key, x)
    of_a_round = functools.partial(examples, env, params, config)
    one = jax.eval_shape(of_a_round, variables, jnp.array(False), key)
    num_rounds = config.num_evaluations
    return GNNState(
        iteration=jnp.int32(0),
        examples=jax.tree.map(lambda leaf: jnp.zeros((num_rounds, *leaf.shape), leaf.dtype), one),
        variables=variables,
        best=variables,
        best_objective=jnp.float32(-jnp.inf),
        optimiser=_OPTIMISER.init(variables.network),
        diverged=jnp.int32(-1),
    )


@functools.partial(jax.jit, static_argnames="env")
def continue_gnn(
    env: Env, params: EnvParams, config: GNNConfig, key: Key, state: GNNState
) -> tuple[GNNState, Progress]:
    """A round: examples, gradient steps on those of all rounds so far, a look at lanes that were held out."""
    c, num_steps = config, config.num_iterations // config.num_evaluations
    _, key = jax.random.split(key)
    round_ = state.iteration // num_steps
    example_key, fit_key = jax.random.split(jax.random.fold_in(key, round_))
    new = examples(env, params, c, state.variables, round_ > 0, example_key)
    pool = jax.tree.map(lambda rows, leaf: rows.at[round_].set(leaf), state.examples, new)
    # Once, so that what was fitted keeps its meaning.
    variables = jax.tree.map(
        functools.partial(jnp.where, round_ == 0), _standardising(c, state.variables, new), state.variables
    )
    fitted = jnp.array([lane for lane in range(c.num_lanes) if lane % HELD_OUT])

    def drawn(key: Key) -> Examples:
        round_key, time_key, lane_key = jax.random.split(key, 3)
        count = (c.batch_size,)
        which = jax.random.randint(round_key, count, 0, round_ + 1)
        time = jax.random.randint(time_key, count, 0, c.num_tasks)
        lane = fitted[jax.random.randint(lane_key, count, 0, fitted.size)]
        return jax.tree.map(lambda leaf: leaf[which, time, lane], pool)

    def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
        network, optimiser = carry
        batch = drawn(jax.random.fold_in(fit_key, index))
        value, gradient = jax.value_and_grad(
            lambda network: loss(c, variables.replace(network=network), batch)
        )(network)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
            update, optimiser = _OPTIMISER.update(gradient, optimiser)
        done = (state.iteration + index).astype(jnp.float32) / c.num_iterations
        rate = schedule("cosine", c.learning_rate, c.final_learning_rate, done)
        return (jax.tree.map(lambda leaf, step: leaf - rate * step, network, update), optimiser), value

    (network, optimiser), losses = jax.lax.scan(
        step, (variables.network, state.optimiser), jnp.arange(num_steps, dtype=jnp.int32)
    )
    variables = variables.replace(network=network)
    figures = _judged(c, variables, jax.tree.map(lambda leaf: leaf[:, ::HELD_OUT], new))
    finite = jnp.isfinite(losses).all() & (state.diverged < 0)
    better = finite & (figures["objective"] > state.best_objective)
    iteration = state.iteration + num_steps
    after = state.replace(
        iteration=iteration,
        examples=pool,
        variables=jax.tree.map(functools.partial(jnp.where, finite), variables, state.variables),
        best=jax.tree.map(functools.partial(jnp.where, better), variables, state.best),
        best_objective=jnp.where(better, figures["objective"], state.best_objective),
        optimiser=optimiser,
        diverged=jnp.where(finite | (state.diverged >= 0), state.diverged, iteration),
    )
    return after, Progress(iteration=iteration, regression_loss=losses[-1], **figures)


def _judged(config: GNNConfig, variables: Regression, examples: Examples) -> dict[str, Array]:
    """Figures of `Progress` on examples that nothing was fitted to."""
    x = learned.standardise(variables.moments, examples.features)
    out, truth = config.network.apply(variables.network, x), examples.completion
    best, chosen = truth.min(-1), at_processor(jnp.moveaxis(truth, -1, 0), jnp.argmin(out, -1))
    fit = variables.mean + variables.deviation * out
    predicted = {"time": fit, "log-time": jnp.exp(fit), "choice": jnp.full_like(fit, jnp.nan)}[config.target]
    unexplained = ((truth - predicted) ** 2).mean()
    held_out_loss = loss(config, variables, examples)
    return {
        "held_out_loss": held_out_loss,
        "r_squared": 1.0 - unexplained / truth.var(),
        "agreement": (chosen <= best * (1.0 + 1e-6)).mean(dtype=jnp.float32),
        "regret": (chosen - best).mean(),
        "objective": -held_out_loss,
    }


def train_gnn(env: Env, params: EnvParams, config: GNNConfig | None, key: Key) -> TrainResult:
    """Fit a message-passing network to the completion times that choices would lead to.

    A pure function of its arguments that may be jitted, and vmapped over `key`, over the numbers in `config`
    and over `params`.

    Args:
      env: from `jaxlb.make`.
      params: of the environment. A leaf may also be `[N]` (a vector `[P, N]`), N = `config.num_lanes`, to
        train one network for a range of loads, speeds, ...
      config: None: the defaults.
      key: consumed.

    Returns:
      The scheduler that takes the smallest prediction, its weights, and what happened on the way.

    Raises:
      ValueError: a setting or a parameter out of bounds.
      FloatingPointError: the loss stopped being finite (only where the result is at hand, not under a trace,
        where `TrainResult.diverged` tells).
    """
    return train(GNN, env, params, GNNConfig() if config is None else config, key)


def configure(**settings: Any) -> GNNConfig:
    """A configuration from plain values, as a file or a command line has them.

    Args:
      settings: by the names of the fields of `GNNConfig`; `network` and `forecaster` are names, and options
        of the network are by theirs.

    Raises:
      ValueError: an unknown setting or forecaster, or a network that cannot be.
    """
    fields, options = set(GNNConfig.__dataclass_fields__), set(networks.OPTIONS)
    for name in settings:
        checks.known("setting", name, fields | options)
    told = {name: value for name, value in settings.items() if name in options}
    made: dict[str, Any] = {"network": networks.network(settings.get("network", "gnn"), **told)}
    if "forecaster" in settings:
        made["forecaster"] = forecasts.forecaster(settings["forecaster"])
    if "behaviours" in settings:
        made["behaviours"] = tuple(settings["behaviours"])
    return GNNConfig(**{name: value for name, value in settings.items() if name in fields} | made)


def defaults() -> dict[str, Any]:
    """The default settings, as `configure` takes them."""
    config = GNNConfig()
    plain = {name: getattr(config, name) for name in config.__dataclass_fields__}
    named = {"network": "gnn", "forecaster": config.forecaster.name, "behaviours": list(config.behaviours)}
    return plain | named


def check(env: Env, params: EnvParams, config: GNNConfig) -> None:
    """Raise ValueError if a setting is out of bounds; numbers under a trace pass."""
    c = config
    env.check(params)
    checks.at_least("num_lanes", c.num_lanes, HELD_OUT + 1)
    for name in ("num_tasks", "batch_size", "num_iterations", "num_evaluations"):
        checks.at_least(name, getattr(c, name), 1)
    checks.at_least("warmup", c.warmup, 0)
    checks.multiple("num_iterations", c.num_iterations, "num_evaluations", c.num_evaluations)
    checks.known("target", c.target, get_args(Target))
    if not c.behaviours:
        raise ValueError("behaviours = (): must be at least one scheduler")
    for name in c.behaviours:
        checks.known("scheduler", name, schedulers())
    for name in ("learning_rate", "final_learning_rate"):
        if not checks.traced(getattr(c, name)):
            checks.leaf(name, getattr(c, name), above=0)


def _fits(settings: Mapping[str, Any], num_processors: int, env: Env, params: EnvParams) -> None:
    del params
    networks.check_number(settings["network"], num_processors, env.name, env.num_processors)


GNN = Trainer(
    name="gnn",
    features=(
        ("task", (*learned.TASK_FEATURES, "log system load")),
        ("processor", tuple(learned.PROCESSOR_FEATURES)),
    ),
    objective="objective",
    remedy="a smaller learning_rate",
    reached=(
        ("R2 of completion", "r_squared", 1.0),
        ("oracle's choice %", "agreement", 100.0),
        ("regret, mean services", "regret", 1.0),
    ),
    defaults=defaults,
    configure=configure,
    check=check,
    start=start_gnn,
    advance=continue_gnn,
    acting=_acting,
    fits=_fits,
)
