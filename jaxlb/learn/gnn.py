"""Regression of completion times by message passing: rounds of examples from simulated systems, and fits.

The states that a scheduler's own choices lead to are not those of other rules. So in every round but the
first half of the lanes are its own (Ross, Gordon and Bagnell 2011); examples of all rounds are kept.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxlb import checks, workload
from jaxlb.env import Env
from jaxlb.learn import networks, trainer
from jaxlb.learn.examples import Examples, decided, examples
from jaxlb.learn.settings import choice, count, fixed, named, names, number
from jaxlb.learn.trainer import Systems, Trainer, TrainResult, TrainState, beginning, descend, falling
from jaxlb.loop import first_arrival
from jaxlb.numerics import at_processor, broadcasts
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import features, forecasts, learned, regression, scheduler
from jaxlb.scheduling.features import Features
from jaxlb.scheduling.forecasts import Forecaster
from jaxlb.scheduling.learned import Network, Recurrent
from jaxlb.scheduling.regression import Decision, Regression
from jaxlb.types import Array, EnvParams, Key, Observation, Scheduler

Target = Literal["time", "mean", "log-time", "distribution", "choice"]
HELD_OUT = 5
"""Every fifth lane is held out of the fit."""


class GNNConfig(struct.PyTreeNode):
    """Settings of the trainer. Learning rates are leaves and can be vmapped; the rest is static.

    Attributes:
      learning_rate: of Adam, at first; it falls as a cosine does.
      final_learning_rate: at the end.
      network: from `jaxlb.learn.networks`, or your own.
      forecaster: of the waits that it reads, from `jaxlb.scheduling.forecasts`.
      target: what is fitted: "time": completion times, by squares; "mean": their means, by the likelihood of
        a gamma law with a logarithmic link, which heavy tails do not upset; "log-time": their logarithms, by
        squares; "distribution": mean and spread of their logarithms, by Gaussian likelihood, with a network
        of two outputs; "choice": the oracle's choice, by classification.
      decision: of a distribution: smallest expected "completion", or smallest probability of "violation".
      adaptation: rate at which the trained scheduler's predictions follow the completion times that come in
        while it works, in (0, 1]; None: they do not.
      behaviours: schedulers that lead to the states of the first round, and to half of those of the others.
      num_lanes: N environments that examples are from.
      num_tasks: of each round, in each lane.
      warmup: tasks before these that no example is taken from.
      batch_size: sequences that a gradient is taken over, of decisions with all their processors.
      sequence: decisions in a row; more than 1 for networks that remember; the second half is what is fitted.
      num_iterations: gradient steps.
      num_evaluations: rounds of examples; after each round's steps, lanes that were held out are judged.
    """

    learning_rate: Any = number(1e-2, above=0)
    final_learning_rate: Any = number(1e-6, above=0)
    network: Network | Recurrent | Any = named("gnn", networks.network, networks.OPTIONS, networks.described)
    forecaster: Forecaster = named("fluid", forecasts.forecaster, pytree_node=True)
    target: Target = choice("log-time", get_args(Target))
    decision: Decision = choice("completion", get_args(Decision))
    adaptation: float | None = fixed(None, above=0, high=1)
    behaviours: tuple[str, ...] = names(("lwr", "greedy", "rr", "weighted-random"), scheduler)
    num_lanes: int = count(160, low=HELD_OUT + 1)
    num_tasks: int = count(100)
    warmup: int = count(100, low=0)
    batch_size: int = count(512)
    sequence: int = count(1)
    num_iterations: int = count(12_000)
    num_evaluations: int = count(8)


class GNNState(TrainState):
    """All that training remembers between two rounds."""

    round_key: Key  # each round folds its number into it
    examples: tuple[Examples, ...]  # of each system, [R, T, ...], of round r in row r


class Progress(struct.PyTreeNode):
    """Figures of training; all but the first loss are of lanes that were held out."""

    iteration: Array
    regression_loss: Array  # of the examples it is fitted to
    held_out_loss: Array  # of this round
    r_squared: Array  # of completion times; of a classifier: not a number
    agreement: Array  # with the oracle
    regret: Array  # mean services, completion of the choice less that of the oracle's
    objective: Array  # minus the loss of held-out lanes of the first round, which are always the same


def _acting(
    config: GNNConfig,
    variables: Regression,
    names: Mapping[str, tuple[str, ...]] = regression.NAMES._asdict(),
) -> Scheduler:
    given = features.Names(**names)
    return regression.gnn(config.network, variables, config.decision, config.adaptation, given)


def _variables(config: GNNConfig, num_processors: int) -> Regression:
    """Return the variables before training."""
    x = features.nothing(regression.NAMES, num_processors)
    return regression.untrained(config.network, jax.random.key(0), x, config.forecaster)


def _outputs(config: GNNConfig, variables: Regression, x: Features) -> Array:
    """Return the network's outputs for decisions in a row, `[T, ..., P]` or `[T, ..., P, 2]`."""
    network = learned.remembering(config.network)
    x = features.standardise(variables.moments, x)
    _, *lanes, num_processors, _ = x.processor.shape

    def step(memory: Any, x: Features) -> tuple[Any, Array]:
        out, memory = network.apply(variables.network, memory, x)
        return memory, out

    return jax.lax.scan(step, network.start(tuple(lanes), num_processors), x)[1]


def loss(config: GNNConfig, variables: Regression, examples: Examples) -> Array:
    """Return the loss of the second half of decisions in a row: squared error, or as the target has it."""
    out = _outputs(config, variables, examples.features)
    first = out.shape[0] // 2
    out, completion = out[first:], examples.completion[first:]
    if config.target == "choice":
        best = jnp.argmin(completion, -1)
        return optax.softmax_cross_entropy_with_integer_labels(-out, best).mean()
    known = jnp.isfinite(completion)  # of others nothing is learned: they are down, or full
    completion = jnp.where(known, completion, 1.0)
    target = (_target(config, completion) - variables.mean) / variables.deviation
    if config.target == "distribution":
        mean, log_variance = out[..., 0], out[..., 1]
        found = 0.5 * (log_variance + (target - mean) ** 2 * jnp.exp(-log_variance))
    elif config.target == "mean":
        log_mean = variables.mean + variables.deviation * out
        found = completion * jnp.exp(-log_mean) + log_mean
    else:
        found = (target - out) ** 2
    return found.sum(where=known) / jnp.maximum(known.sum(dtype=jnp.float32), 1.0)


def _target(config: GNNConfig, completion: Array) -> Array:
    return completion if config.target == "time" else jnp.log(completion)


def predicted(config: GNNConfig, variables: Regression, x: Features) -> Array:
    """Predict completion times `[T, ..., P]` of decisions in a row, mean services; NaN for a classifier."""
    mean, spread = regression.estimate(variables, _outputs(config, variables, x), x.processor.shape[-2])
    if config.target == "choice":
        return jnp.full_like(mean, jnp.nan)
    return mean if config.target == "time" else jnp.exp(mean if spread is None else mean + 0.5 * spread**2)


def _standardising(config: GNNConfig, variables: Regression, examples: tuple[Examples, ...]) -> Regression:
    """Return the variables with moments of these examples."""

    def rows(leaf: Array) -> Array:
        return leaf.reshape(-1, leaf.shape[-1])

    each = (one.features for one in examples)
    x = jax.tree.map(lambda *leaves: jnp.concatenate([rows(leaf) for leaf in leaves]), *each)
    target = jnp.concatenate([_target(config, one.completion).reshape(-1) for one in examples])
    return variables.replace(
        moments=features.Moments(
            mean=jax.tree.map(lambda leaf: leaf.mean(0), x),
            variance=jax.tree.map(lambda leaf: leaf.var(0), x),
        ),
        mean=target.mean(where=jnp.isfinite(target)),
        deviation=target.std(where=jnp.isfinite(target)),
    )


@broadcasts
def start_gnn(env: Systems, params: Any, config: GNNConfig, key: Key) -> GNNState:
    """Return the state before the first round: no examples, a new network.

    Args:
      env: static.
      params: of the environment; a leaf may be `[N]` (`[P, N]`, `[C, N]`).
      config: of the trainer.
      key: consumed.
    """
    start_key, round_key = jax.random.split(key)
    lanes, each = (config.num_lanes,), trainer.systems(env, params)
    one, laned = each[0][0], with_lane_axis(each[0][1], lanes)
    arrival_key, observe_key, network_key = jax.random.split(start_key, 3)
    arrived, _ = first_arrival(one, laned, arrival_key, lanes)
    observation = one.observe(arrived, laned, observe_key)
    tracked, forecaster = config.forecaster.start(laned, lanes), config.forecaster
    _, seen, forecast = forecaster.update(forecaster.variables, tracked, observation)
    x = features.extract(seen, forecast, regression.NAMES)
    variables = regression.untrained(config.network, network_key, x, forecaster)
    num_rounds = config.num_evaluations

    def memory(env: Env, params: EnvParams) -> Examples:
        of_a_round = functools.partial(examples, env, params, config, _acting(config, variables))
        found = jax.eval_shape(of_a_round, jnp.array(False), round_key)
        return jax.tree.map(lambda leaf: jnp.zeros((num_rounds, *leaf.shape), leaf.dtype), found)

    return GNNState(
        **beginning(variables, optax.adam(falling(config)).init(variables.network)),
        round_key=round_key,
        examples=tuple(memory(*system) for system in each),
    )


@functools.partial(jax.jit, static_argnames="env")
@broadcasts
def continue_gnn(env: Systems, params: Any, config: GNNConfig, state: GNNState) -> tuple[GNNState, Progress]:
    """Run a round: collect examples, fit to those of all rounds so far, judge on lanes that were held out."""
    c, num_steps = config, config.num_iterations // config.num_evaluations
    round_ = state.iteration // num_steps
    example_key, fit_key = jax.random.split(jax.random.fold_in(state.round_key, round_))
    each = trainer.systems(env, params)
    new = tuple(
        examples(*system, c, _acting(c, state.variables), round_ > 0, key)
        for system, key in zip(each, jax.random.split(example_key, len(each)), strict=True)
    )
    pool = jax.tree.map(lambda rows, leaf: rows.at[round_].set(leaf), state.examples, new)
    # Once, so that what was fitted keeps its meaning.
    variables = jax.tree.map(
        functools.partial(jnp.where, round_ == 0), _standardising(c, state.variables, new), state.variables
    )
    fitted = jnp.array([lane for lane in range(c.num_lanes) if lane % HELD_OUT], jnp.int32)

    def drawn(pool: Examples, key: Key) -> Examples:
        round_key, time_key, lane_key = jax.random.split(key, 3)
        count = (c.batch_size // len(each),)
        which = jax.random.randint(round_key, count, 0, round_ + 1, jnp.int32)
        first = jax.random.randint(time_key, count, 0, c.num_tasks - c.sequence + 1, jnp.int32)
        lane = fitted[jax.random.randint(lane_key, count, 0, fitted.size, jnp.int32)]
        time = first + jnp.arange(c.sequence, dtype=jnp.int32)[:, None]
        return jax.tree.map(lambda leaf: leaf[which, time, lane], pool)

    def loss_of(network: Any, batches: tuple[Examples, ...]) -> Array:
        return trainer.averaged([loss(c, variables.replace(network=network), batch) for batch in batches])

    def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
        network, optimiser = carry
        keys = jax.random.split(jax.random.fold_in(fit_key, index), len(each))
        batches = tuple(drawn(examples, key) for examples, key in zip(pool, keys, strict=True))
        value, gradient = jax.value_and_grad(loss_of)(network, batches)
        return descend(optax.adam(falling(c)), gradient, optimiser, network), value

    (network, optimiser), losses = jax.lax.scan(
        step, (variables.network, state.optimiser), jnp.arange(num_steps, dtype=jnp.int32)
    )
    variables = variables.replace(network=network)
    held_out = jax.tree.map(lambda leaf: leaf[:, ::HELD_OUT], new)
    figures = trainer.averaged([_judged(c, variables, examples) for examples in held_out])
    objective = -loss_of(network, jax.tree.map(lambda leaf: leaf[0, :, ::HELD_OUT], pool))
    finite, iteration = jnp.isfinite(losses).all(), state.iteration + num_steps
    state = trainer.updated(state, finite, iteration, variables=variables, optimiser=optimiser)
    state = trainer.judged(state, state.variables, jnp.where(state.diverged < 0, objective, -jnp.inf))
    progress = Progress(iteration=iteration, regression_loss=losses[-1], objective=objective, **figures)
    return state.replace(iteration=iteration, examples=pool), progress


def _judged(config: GNNConfig, variables: Regression, examples: Examples) -> dict[str, Array]:
    """Return figures of `Progress` on examples that nothing was fitted to."""
    out, truth = _outputs(config, variables, examples.features), examples.completion
    mean, spread = regression.estimate(variables, out, truth.shape[-1])
    known = jnp.isfinite(truth)
    cost = regression.cost("completion", mean, spread, jnp.ones_like(mean[..., 0]))
    cost = jnp.where(known, cost, jnp.inf)
    best, chosen = truth.min(-1), at_processor(jnp.moveaxis(truth, -1, 0), jnp.argmin(cost, -1))
    unexplained = ((truth - predicted(config, variables, examples.features)) ** 2).mean(where=known)
    return {
        "held_out_loss": loss(config, variables, examples),
        "r_squared": 1.0 - unexplained / truth.var(where=known),
        "agreement": (chosen <= best * (1.0 + 1e-6)).mean(dtype=jnp.float32, where=known.any(-1)),
        "regret": (chosen - best).mean(where=known.any(-1)),
    }


class Inspection(struct.PyTreeNode):
    """Predictions in the states that a trained scheduler comes to."""

    predicted: Array  # [T, N, P] mean services
    truth: Array  # [T, N, P] mean services
    chosen: Array  # [T, N] mean services, completion of the scheduler's choice
    load: Array  # [T, N] mean sizes, the system's load average
    influence: Array  # [P, P] change of each prediction with what is known of each processor, last state


@functools.partial(jax.jit, static_argnames="env")
def inspect(env: Env, params: EnvParams, config: GNNConfig, variables: Regression, key: Key) -> Inspection:
    """Measure what the predictions are worth, on as many new tasks as in a round; the key is consumed."""
    c, lanes = config, (config.num_lanes,)
    task_key, replay_key = jax.random.split(key)
    params = with_lane_axis(params, lanes)
    tasks = workload.sample(task_key, params, c.warmup + c.num_tasks, lanes)

    def record(own: Scheduler, memory: tuple, observation: Observation) -> tuple[Examples, Array]:
        seen = decided(own, memory, observation)
        action, _ = own.act(own.variables, memory, observation, key)
        return seen, at_processor(jnp.moveaxis(seen.completion, -1, 0), action)

    _, (found, chosen) = watch(env, params, _acting(c, variables), tasks, replay_key, record)
    prediction = predicted(c, variables, found.features)
    place = regression.NAMES.task.index("log system load")
    load = jnp.expm1(found.features.task[..., place]) / 8.0
    last = jax.tree.map(lambda leaf: leaf[-1:, 0], found.features)

    def outputs(processor: Array) -> Array:
        mean, _ = regression.estimate(
            variables, _outputs(c, variables, last.replace(processor=processor)), env.num_processors
        )
        return mean[0]

    change = jax.jacobian(outputs)(last.processor)[:, 0]
    return Inspection(
        predicted=prediction[c.warmup :],
        truth=found.completion[c.warmup :],
        chosen=chosen[c.warmup :],
        load=load[c.warmup :],
        influence=jnp.sqrt((change**2).sum(-1)),
    )


def train_gnn(env: Systems, params: Any, config: GNNConfig | None, key: Key) -> TrainResult:
    """Fit a message-passing network to the completion times that choices would lead to.

    A pure function of its arguments that may be jitted, and vmapped over `key`, over the numbers in `config`
    and over `params`.

    Args:
      env: from `jaxlb.make`; or a tuple of several, to train one network for several numbers of processors.
      params: of the environment. A leaf may also be `[N]` (a vector `[P, N]`), N = `config.num_lanes`, to
        train for a range of loads, speeds, ... Of several environments: a tuple.
      config: None: the defaults.
      key: consumed.

    Returns:
      The scheduler, with the weights that predicted held-out lanes best, and what happened on the way.

    Raises:
      ValueError: a setting or a parameter out of bounds.
      FloatingPointError: training diverged.
    """
    return trainer.train(GNN, env, params, config, key)


def _check(env: Systems, params: Any, config: GNNConfig) -> None:
    c, each = config, trainer.checked_systems(env, params, config.num_lanes)
    checks.at_least("batch_size", c.batch_size, len(each))
    checks.at_least("num_tasks", c.num_tasks, c.sequence)
    if c.decision == "violation" and c.target != "distribution":
        raise ValueError(f'decision = "violation" with target = {c.target!r}: must be "distribution"')
    if c.adaptation is not None and c.target in ("time", "choice"):
        raise ValueError(f"adaptation with target = {c.target!r}: must be one of logarithms")
    _check_outputs(each[0][0].num_processors, c)


def _check_outputs(num_processors: int, config: GNNConfig) -> None:
    """Raise ValueError if the network has not the outputs that the target needs."""
    x = features.nothing(regression.NAMES, num_processors)
    network = learned.remembering(config.network)

    def of(key: Key, x: Features) -> Array:
        return network.apply(network.init(key, x), network.start((1,), num_processors), x)[0]

    out = jax.eval_shape(of, jax.eval_shape(lambda: jax.random.key(0)), x)
    needed = (1, num_processors, 2) if config.target == "distribution" else (1, num_processors)
    if out.shape != needed:
        raise ValueError(
            f"the network's outputs have shape {out.shape[1:]}: target {config.target!r} needs {needed[1:]}, "
            f"outputs={len(needed) - 1}"
        )


def _fits(settings: Mapping[str, Any], trained: np.ndarray, env: Env, params: EnvParams) -> None:
    networks.check_processors(settings.get("network"), trained, env.name, params.speed)


GNN = Trainer(
    name="gnn",
    aim="Learns each choice's completion time, and takes the smallest: at best, the oracle's choice.",
    features=tuple(regression.NAMES._asdict().items()),
    known=features.KNOWN,
    objective="objective",
    reached=("r_squared", "agreement", "regret"),
    remedy="a smaller learning_rate",
    config=GNNConfig,
    check=_check,
    start=start_gnn,
    advance=continue_gnn,
    variables=_variables,
    acting=_acting,
    fits=_fits,
    inspect=inspect,
)
