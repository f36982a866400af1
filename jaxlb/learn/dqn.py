"""Deep Q-learning (Mnih et al. 2015) of a scheduler, as one pure program: collect, remember, learn, judge.

What the trainer does beyond the textbook, and why:

- The value of a choice is its reward, which the observation gives, plus what the network predicts of all that
  follows (`jaxlb.scheduling.learned`): the network learns consequences only.
- Rewards are taken relative to that of the same task alone on a processor of mean speed, and to their running
  average (Naik et al. 2024). Neither changes which policy is best; the first removes the noise that heavy
  tailed sizes bring, the second the offset of 1 / (1 - discount) rewards that all values share. With
  discount 1 this is differential, average-reward Q-learning.
- Exploration picks processors in proportion to their speed, under which every queue is as stable as the
  system: uniform choices would overload the slow ones.
- The stream of tasks never ends. An episode ends by emptying the queues; no value is learned across that.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxlb import checks, rewards
from jaxlb.devices import differing
from jaxlb.env import Env
from jaxlb.learn import collecting, imitating, networks, replay, trainer
from jaxlb.learn.collecting import Collected, Step
from jaxlb.learn.replay import Memory
from jaxlb.learn.settings import count, group, named, number, switch
from jaxlb.learn.trainer import Systems, Trainer, TrainResult, TrainState, beginning, descend, falling
from jaxlb.loop import rollout
from jaxlb.numerics import broadcasts
from jaxlb.rewards import Reward, Weights
from jaxlb.scheduling import features, forecasts, learned
from jaxlb.scheduling.forecasts import Forecaster
from jaxlb.scheduling.learned import Network, Recurrent
from jaxlb.types import Array, EnvParams, Key, Scheduler

MOMENTS_RATE = 1e-3
"""The running mean and variance of features forget at this rate, once they have seen 1000 steps."""


class DQNConfig(struct.PyTreeNode):
    """Settings of the trainer. Numbers in the first part are leaves and can be vmapped; the rest is static.

    Attributes:
      weights: of the reward that is learned, in mean services; their leaves may be `[N]`, one for each lane,
        and the network reads them: so one network learns a range of objectives.
      learning_rate: of Adam, at first; it falls as a cosine does.
      final_learning_rate: at the end.
      discount: of the reward one task later, in (0, 1]; 1 learns for the average reward.
      exploration: probability of a random choice, at first; it falls linearly.
      final_exploration: at the end of the part of the training that explores.
      exploration_part: that part, in (0, 1].
      target_rate: how much of the way the target network goes at every gradient step, in (0, 1].
      average_rate: how fast the average reward follows the errors of the values.
      max_gradient_norm: longer gradients are cut to this; None: never.
      network: from `jaxlb.learn.networks`, or your own (init, apply).
      forecaster: of the waits that it reads and that rewards are expected by, from
        `jaxlb.scheduling.forecasts`.
      num_lanes: N environments that collect, one task of each for every gradient step.
      memory_rows: steps of all lanes that are remembered.
      batch_size: steps that a gradient is taken over.
      num_iterations: gradient steps.
      num_evaluations: how often the greedy policy is judged, evenly spread.
      evaluation_tasks: in each lane, after half as many that are not counted; the same each time.
      n_step: rewards before the value of what follows is used.
      double: whether the online network chooses and the target network judges (van Hasselt et al. 2016).
      reward: that is learned, by the weights; or "holding-cost", or one of your own like
        `jaxlb.rewards.Reward`, in place of the weights, which the network learns whole, as nothing of it is
        known beforehand. It is best of the order of one.
    """

    weights: Weights = group(Weights())
    learning_rate: Any = number(3e-3, above=0)
    final_learning_rate: Any = number(1e-5, above=0)
    discount: Any = number(0.99, above=0, high=1)
    exploration: Any = number(0.5, low=0, high=1)
    final_exploration: Any = number(0.02, low=0, high=1)
    exploration_part: Any = number(0.5, above=0, high=1)
    target_rate: Any = number(0.05, above=0, high=1)
    average_rate: Any = number(0.01, low=0, high=1)
    max_gradient_norm: Any = number(None, above=0)
    network: Network | Any = named("per-processor", networks.network, networks.OPTIONS, networks.described)
    forecaster: Forecaster = named("fluid", forecasts.forecaster, pytree_node=True)
    num_lanes: int = count(256)
    memory_rows: int = count(2048)
    batch_size: int = count(512)
    num_iterations: int = count(15_000)
    num_evaluations: int = count(10)
    evaluation_tasks: int = count(500)
    n_step: int = count(3)
    double: bool = switch(True)
    reward: Reward = named("weighted", rewards.reward, describe=rewards.described, acts=False)

    def known_part(self) -> Weights:
        """Return the weights of what is known of each choice beforehand: nothing of a reward of one's own."""
        if self.reward == rewards.Weighted():
            return self.weights
        none = {name: 0.0 * jnp.asarray(getattr(self.weights, name)) for name in rewards.WEIGHTS}
        return self.weights.replace(**none)


class DQNState(TrainState):
    """All that training remembers between two iterations; training continued from here is the same."""

    iterate_key: Key  # each iteration folds its number into it
    evaluate_key: Key  # the same tasks for every judgement
    systems: tuple[Collected, ...]
    target: Any  # parameters of the target network
    average: Array  # reward, running average
    counted: Array  # steps that the moments of the features are of


class Progress(struct.PyTreeNode):
    """Figures of training, averages over the iterations since the last row; and of the greedy policy then."""

    iteration: Array
    objective: Array  # reward learned, in its own units
    reward: Array  # of the environment
    completion: Array  # time
    violation: Array
    agreement: Array  # with the oracle
    loss: Array
    td_error: Array  # mean absolute
    value: Array
    gradient_norm: Array
    exploration: Array
    learning_rate: Array
    greedy_objective: Array
    greedy_completion: Array
    greedy_slowdown: Array
    greedy_violation: Array
    greedy_agreement: Array


def _optimiser(config: DQNConfig) -> optax.GradientTransformation:
    most = config.max_gradient_norm
    clip = optax.identity() if most is None else optax.clip_by_global_norm(most)
    return optax.chain(clip, optax.adam(falling(config)))


@functools.partial(jax.jit, static_argnames="env")
@broadcasts
def start_dqn(env: Systems, params: Any, config: DQNConfig, key: Key) -> DQNState:
    """Return the state before the first iteration: empty queues, an empty memory, new networks.

    Args:
      env: static; one, or several.
      params: of the environment, without lane axes, but any leaf may be `[N]` (`[P, N]`, `[C, N]`); of
        several a tuple.
      config: of the trainer.
      key: consumed.
    """
    start_key, key = jax.random.split(key)
    iterate_key, evaluate_key = jax.random.split(key)
    arrival_key, observe_key, network_key = jax.random.split(start_key, 3)
    each = trainer.systems(env, params)
    keys = zip(trainer.keys(arrival_key, len(each)), trainer.keys(observe_key, len(each)), strict=True)
    begun = [collecting.start(*one, config, *pair) for one, pair in zip(each, keys, strict=True)]
    x = begun[0][1]
    variables = learned.untrained(config.network, network_key, x, config.known_part(), config.forecaster)
    return DQNState(
        **beginning(variables, _optimiser(config).init(variables.network)),
        iterate_key=iterate_key,
        evaluate_key=evaluate_key,
        systems=tuple(collected for collected, _ in begun),
        target=variables.network,
        average=jnp.float32(0.0),
        counted=jnp.float32(0.0),
    )


@functools.partial(jax.jit, static_argnames="env")
@broadcasts
def continue_dqn(env: Systems, params: Any, config: DQNConfig, state: DQNState) -> tuple:
    """Run the iterations up to the next judgement of the greedy policy, and judge it.

    Args:
      env: static.
      params: as in `start_dqn`.
      config: the same.
      state: from `start_dqn` or here.

    Returns:
      The state after `num_iterations / num_evaluations` iterations, and the `Progress` made.
    """
    iterate = functools.partial(_iterate, env, params, config)
    num_iterations = config.num_iterations // config.num_evaluations
    _, figures = jax.eval_shape(iterate, state)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), figures)

    def body(_: Array, carry: tuple) -> tuple:
        state, sums = carry
        state, figures = iterate(state)
        return differing((state, jax.tree.map(jnp.add, sums, figures)))

    state, sums = jax.lax.fori_loop(0, num_iterations, body, differing((state, sums)))

    variables = state.variables.replace(network=state.target)
    greedy = learned.dqn(config.network, variables)
    each = trainer.systems(env, params)
    keys = trainer.keys(jax.random.clone(state.evaluate_key), len(each))
    found = [_judged(greedy, config, *one, key) for one, key in zip(each, keys, strict=True)]
    found = trainer.averaged(found)
    state = trainer.judged(state, variables, found["greedy_objective"])
    sums = jax.tree.map(lambda total: total / num_iterations, sums)
    return state, Progress(iteration=state.iteration, **sums, **found)


def _judged(greedy: Scheduler, config: DQNConfig, env: Env, params: EnvParams, key: Key) -> dict[str, Array]:
    """Return the greedy policy's figures of `Progress` in a system; the key is consumed."""
    goal, tasks = collecting.goal(env, params, config, config.weights), config.evaluation_tasks
    found = rollout(*goal, greedy, key, config.num_lanes, tasks, tasks // 2)
    return {
        "greedy_objective": found.mean_reward.mean(),
        "greedy_completion": found.mean_completion.mean(),
        "greedy_slowdown": found.mean_slowdown.mean(),
        "greedy_violation": found.sla_violation_rate.mean(),
        "greedy_agreement": found.oracle_agreement.mean(),
    }


def _iterate(env: Systems, params: Any, config: DQNConfig, state: DQNState) -> tuple:
    """Run one task of every lane and one gradient step."""
    collect_key, replay_key = jax.random.split(jax.random.fold_in(state.iterate_key, state.iteration))
    explore = collecting.exploration(config, state.iteration)
    each, variables = trainer.systems(env, params), state.variables
    keys = trainer.keys(collect_key, len(each))
    systems, seen, figures = zip(
        *(
            collecting.collect(*one, config, variables, explore, collected, key)
            for one, collected, key in zip(each, state.systems, keys, strict=True)
        ),
        strict=True,
    )
    figures = trainer.averaged(figures)
    rate = jnp.maximum(1.0 / (1.0 + state.counted), MOMENTS_RATE)
    moments = features.followed(variables.moments, seen, rate)
    variables = variables.replace(moments=moments)
    state = state.replace(systems=systems, variables=variables, counted=state.counted + 1.0)
    state, learning = _learn(config, replay_key, state)
    return state.replace(iteration=state.iteration + 1), figures | {"exploration": explore} | learning


def _learn(config: DQNConfig, key: Key, state: DQNState) -> tuple:
    """Take one gradient step on remembered steps, as many of each system."""
    c, variables, count = config, state.variables, len(state.systems)

    def value(network: Any, step: Step) -> Array:
        return learned.values(c.network, variables.replace(network=network), step.features, step.known)

    def chosen(value: Array, action: Array) -> Array:
        return jnp.take_along_axis(value, action[:, None], -1)[:, 0]

    def batch(memory: Memory, key: Key) -> tuple[Step, Array, Array]:
        """Draw steps; return them, their targets, and which of them count."""
        rows = memory.rows
        num_rows = rows.action.shape[0]
        row, lane = replay.draw(memory, key, c.batch_size // count, c.n_step)
        window = (row[:, None] + jnp.arange(c.n_step, dtype=jnp.int32)) % num_rows, lane[:, None]
        now = jax.tree.map(lambda leaf: leaf[row, lane], rows)
        then = jax.tree.map(lambda leaf: leaf[(row + c.n_step) % num_rows, lane], rows)
        # What came after queues were emptied is not a consequence.
        usable = ~rows.ended[window].any(1) & (memory.count > c.n_step)
        # Nothing is learned of a processor without a place left: that is known to be infinitely bad.
        usable &= jnp.isfinite(chosen(now.known, now.action))
        judged = value(state.target, then)
        next_action = jnp.argmax(value(variables.network, then) if c.double else judged, -1)
        discounts = c.discount ** jnp.arange(c.n_step, dtype=jnp.float32)
        earned = ((rows.reward[window] - state.average) * discounts).sum(1)
        target = earned + c.discount**c.n_step * chosen(judged, next_action)
        return now, target, usable

    memories = [collected.memory for collected in state.systems]
    batches = [batch(*one) for one in zip(memories, trainer.keys(key, count), strict=True)]

    def loss_of(network: Any) -> tuple[Array, dict[str, Array]]:
        found = []
        for now, target, usable in batches:
            estimate = chosen(value(network, now), now.action)
            error = jnp.where(usable, target - estimate, 0.0)
            found.append(
                {
                    "loss": (0.5 * error**2).mean(),
                    "error": error.mean(),
                    "td_error": jnp.abs(error).mean(),
                    "value": jnp.where(usable, estimate, 0.0).mean(),
                }
            )
        found = trainer.averaged(found)
        return found["loss"], found

    (loss, found), gradient = jax.value_and_grad(loss_of, has_aux=True)(variables.network)
    norm = optax.tree.norm(gradient)
    network, optimiser = descend(_optimiser(c), gradient, state.optimiser, variables.network)
    error = found.pop("error")
    figures = found | {"gradient_norm": norm, "learning_rate": falling(c)(state.iteration)}
    state = trainer.updated(
        state,
        jnp.isfinite(loss) & jnp.isfinite(norm),
        state.iteration,
        variables=variables.replace(network=network),
        target=optax.incremental_update(network, state.target, c.target_rate),
        optimiser=optimiser,
        average=state.average + c.average_rate * error / c.n_step,
    )
    return state, figures


def train_dqn(env: Systems, params: Any, config: DQNConfig | None, key: Key) -> TrainResult:
    """Train a scheduler by deep Q-learning.

    A pure function of its arguments that may be jitted, and vmapped over `key`, over the numbers in `config`
    and over `params`: `jax.vmap(lambda key: train_dqn(env, params, None, key))(jax.random.split(key, 8))`
    trains eight seeds at once.

    Args:
      env: from `jaxlb.make`; or a tuple of several, to train one network for several numbers of processors.
      params: of the environment. A leaf may also be `[N]` (a vector `[P, N]`), N = `config.num_lanes`, to
        train one network for a range of loads, speeds, ... Of several environments: a tuple.
      config: None: the defaults.
      key: consumed.

    Returns:
      The scheduler, and what happened on the way.

    Raises:
      ValueError: a setting or a parameter out of bounds.
      FloatingPointError: the loss stopped being finite (only where the result is at hand, not under a trace,
        where `TrainResult.diverged` shows it).
    """
    return trainer.train(DQN, env, params, config, key)


def _check(env: Systems, params: Any, config: DQNConfig) -> None:
    c, each = config, trainer.checked_systems(env, params, config.num_lanes)
    if isinstance(c.network, Recurrent):
        raise ValueError("network: one that remembers, as recurrent-gnn, is for train_gnn only")
    checks.at_least("memory_rows", c.memory_rows, c.n_step + 1)
    checks.at_least("batch_size", c.batch_size, len(each))
    if c.memory_rows * c.num_lanes < c.batch_size // len(each):
        raise ValueError(
            f"memory_rows = {c.memory_rows} of {c.num_lanes} lanes: must hold at least a batch, "
            f"{c.batch_size // len(each)} steps"
        )
    at_hand = not checks.traced((c.discount, c.average_rate))
    if at_hand and np.any((np.asarray(c.discount) == 1) & (np.asarray(c.average_rate) == 0)):
        raise ValueError(
            "discount = 1, average_rate = 0: without a discount values are relative to the average reward"
        )
    for one, own in each:
        rewards.check(c.weights, np.shape(own.class_probability)[0], (c.num_lanes,))
        if c.reward != rewards.Weighted():
            dataclasses.replace(one, reward=rewards.reward(c.reward)).check(own)
    own, default = jax.tree.leaves(c.weights), jax.tree.leaves(Weights())
    if c.reward != rewards.Weighted() and not all(map(np.array_equal, own, default)):
        raise ValueError("reward: is one in place of the weights; give it or them")
    if c.weights.completion_exponent is None:
        raise ValueError("completion_exponent = None: must be a number here, which the network is told")


def _variables(config: DQNConfig, num_processors: int) -> learned.Variables:
    """Return the variables before training."""
    x = features.nothing(learned.NAMES, num_processors, len(learned.objective(config.known_part())))
    return learned.untrained(config.network, jax.random.key(0), x, config.known_part(), config.forecaster)


def _fits(settings: Mapping[str, Any], trained: np.ndarray, env: Env, params: EnvParams) -> None:
    networks.check_processors(settings.get("network"), trained, env.name, params.speed)
    classes, weight = params.class_probability.shape[0], settings["sla_weight"]
    if isinstance(weight, list) and len(weight) != classes:
        raise ValueError(
            f"trained with an sla_weight for each of {len(weight)} priorities, {env.name} has {classes}"
        )


DQN = Trainer(
    name="dqn",
    aim="Learns by trial what its choices bring later: completion times and missed deadlines, weighed.",
    features=tuple(learned.NAMES._asdict().items()),
    known=features.KNOWN,
    objective="greedy_objective",
    reached=("greedy_completion", "greedy_slowdown", "greedy_violation", "greedy_agreement"),
    remedy="a smaller learning_rate or max_gradient_norm",
    config=DQNConfig,
    check=_check,
    start=start_dqn,
    advance=continue_dqn,
    warm=lambda state, variables: trainer.warmed(state, variables).replace(counted=1.0 / MOMENTS_RATE),
    imitate=imitating.begun,
    variables=_variables,
    acting=lambda config, variables, names: learned.dqn(config.network, variables, features.Names(**names)),
    fits=_fits,
)
