"""Training of a scheduler for any system: prices of backlog, by temporal differences of perturbed waits.

A small delay of one processor's backlog delays each task that is assigned to it until it is empty. So its
price after one decision follows from its price after the next. It is zero if the processor is empty by
then; else it is what the delay costs the next task, if that goes there, plus the price after that. Each
decision teaches the prices of all processors, and the size of a task, which prices do not depend on, adds
no noise. Returns are those of TD(lambda) (Sutton 1988). The network is fitted to their mean, by the
deviance of a negative binomial law, relative to what is typical of each lane, so that all systems and both
short and long queues count.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxlb import checks, stations
from jaxlb.devices import differing
from jaxlb.env import Env
from jaxlb.functions import partial
from jaxlb.learn import pricing, trainer
from jaxlb.learn.prior import Prior
from jaxlb.learn.settings import choice, count, group, named, number
from jaxlb.learn.trainer import Trainer, TrainResult, TrainState, beginning, descend, falling
from jaxlb.numerics import broadcasts
from jaxlb.scheduling import universal as acting
from jaxlb.scheduling.objective import Objective
from jaxlb.scheduling.universal import PriceFeatures, PriceNetwork, Universal
from jaxlb.types import Array, EnvParams, Key, Scheduler

_SCALE_RATE, _TARGET_RATE = 0.1, 0.1
_DISPERSION = 3.0
"""Prices, in those typical of a lane, whose noise grows as the price does, and no longer as its root."""


class UniversalConfig(struct.PyTreeNode):
    """Settings of the trainer. Numbers in the first part are leaves; the rest is static.

    Attributes:
      objective: of systems that are given; of those that a prior draws, each lane has its own.
      learning_rate: of Adam, at first; it falls as a cosine does.
      final_learning_rate: at the end.
      exploration: probability of a random choice, at first; it falls linearly, to `final_exploration` in half
        of the training.
      final_exploration: from there on.
      trace: lambda, how far returns go before the network's own prices take over, in [0, 1]; over as many
        tasks as there are processors.
      kernel: width of the rise of a violation's cost around its deadline, of the logarithm of time.
      shocks: probability that a task is up to 100 times as large and goes anywhere, times the share of the
        capacity that is free; it is larger for the first tasks, and 0 where sizes are hidden.
      network: of prices, from `jaxlb.scheduling.universal.prices`, or your own (init, apply).
      start: "new", or "universal": with the network that comes with the package.
      num_lanes: N, of systems that are given; a prior has its own.
      num_tasks: decisions of each lane for which returns are computed at a time.
      num_batches: gradient steps after these.
      batch_tasks: decisions of each lane in a step; those between look much like them.
      restart: iterations after which lanes begin anew, with new systems where a prior draws them.
      num_iterations: in each, all systems run on, and each gradient step learns from all.
      num_evaluations: how often the scheduler is judged, evenly spread.
      evaluation_tasks: in each lane, after as many that are not counted; the same each time.
    """

    objective: Objective = group(Objective())
    learning_rate: Any = number(2e-3, above=0)
    final_learning_rate: Any = number(1e-5, above=0)
    exploration: Any = number(0.1, low=0, high=1)
    final_exploration: Any = number(0.02, low=0, high=1)
    trace: Any = number(0.8, low=0, high=1)
    kernel: Any = number(0.2, above=0)
    shocks: Any = number(0.025, low=0, high=1)
    network: PriceNetwork = named("prices", acting.network, ("widths",), acting.described)
    start: str = choice("new", ("new", "universal"))
    num_lanes: int = count(256)
    num_tasks: int = count(64)
    num_batches: int = count(6)
    batch_tasks: int = count(6)
    restart: int = count(80)
    num_iterations: int = count(400)
    num_evaluations: int = count(10)
    evaluation_tasks: int = count(500)


class UniversalState(TrainState):
    """All that training remembers between two iterations; training continued from here is the same."""

    iterate_key: Key  # each iteration folds its number into it
    evaluate_key: Key  # the same systems and tasks for every judgement
    systems: tuple[pricing.Running, ...]
    greedy: tuple[pricing.Reached, ...]  # what greedy reaches where the scheduler is judged
    target: Any  # slowly following network, which acts and whose prices returns end in


class Progress(struct.PyTreeNode):
    """Figures of training, averages over the iterations since the last row; and of the scheduler then."""

    iteration: Array
    objective: Array  # minus the mean logarithm of what the scheduler costs relative to greedy
    loss: Array
    price: Array  # mean of what prices turned out to be, of completion times
    exploration: Array
    learning_rate: Array
    relative_completion: Array  # geometric means over lanes, divided by greedy's
    relative_violation: Array


def _optimiser(config: UniversalConfig) -> optax.GradientTransformation:
    of_iteration, steps = falling(config), config.num_batches
    rate = optax.adam(lambda step: of_iteration(jnp.asarray(step, jnp.float32) / steps))
    return optax.chain(optax.clip_by_global_norm(1.0), rate)


def start_universal(env: Any, params: Any, config: UniversalConfig, key: Key) -> UniversalState:
    """Return the state before the first iteration, with empty queues; the key is consumed.

    Each system is a program of its own, unless this is compiled as a whole.
    """
    begin_key, network_key, iterate_key, evaluate_key = jax.random.split(key, 4)
    each = trainer.systems(env, params)
    keys = trainer.keys(begin_key, len(each))
    network = (
        acting.shipped()[1] if config.start == "universal" else acting.untrained(config.network, network_key)
    )
    variables = Universal(network, config.objective)
    return UniversalState(
        **beginning(variables, _optimiser(config).init(network)),
        iterate_key=iterate_key,
        evaluate_key=evaluate_key,
        systems=tuple(_begin(*one, config, key) for one, key in zip(each, keys, strict=True)),
        greedy=tuple(
            pricing.reached(*one, config, None, key)
            for one, key in zip(each, trainer.keys(jax.random.clone(evaluate_key), len(each)), strict=True)
        ),
        target=network,
    )


_begin = jax.jit(broadcasts(pricing.begin), static_argnames="env")


class Examples(struct.PyTreeNode):
    """Decisions of a system, `[batches, decisions of each lane, N, ...]`, and what prices turned out."""

    x: PriceFeatures
    found: Array  # [..., P, 3]
    kept: Array  # [...] float32, whether `found` says something


@functools.partial(jax.jit, static_argnames="env")
@broadcasts
def _gather(
    env: Env,
    params: Any,
    config: UniversalConfig,
    target: Any,
    running: pricing.Running,
    begin: Array,
    explore: Array,
    key: Key,
) -> tuple[pricing.Running, Examples]:
    """Let a system run on, and return what is to be learned from it; the key is consumed."""
    begin_key, decide_key, batch_key = jax.random.split(key, 3)
    # A loop of one turn or none.
    running = jax.lax.fori_loop(
        0, begin.astype(jnp.int32), lambda _, running: pricing.begin(env, params, config, begin_key), running
    )
    step = functools.partial(pricing.step, env, config, target, explore)
    running, rows = jax.lax.scan(step, running, jax.random.split(decide_key, config.num_tasks + 1))
    apply = config.network.apply
    prices = jax.lax.map(lambda x: apply(target, x)[0], rows.x)
    found = pricing.returns(config, rows, prices)
    # Long queues are rare, and their prices large.
    typical = jnp.expm1(jnp.log1p(found).mean((0, 2)))
    running = running.replace(scale=running.scale + _SCALE_RATE * (typical - running.scale))
    order = jax.random.permutation(batch_key, config.num_tasks)[: config.num_batches * config.batch_tasks]
    order = order.reshape(config.num_batches, config.batch_tasks)
    x, found, kept = jax.tree.map(
        lambda leaf: leaf[order], (rows.x, found, rows.kept[1:].astype(jnp.float32))
    )
    return running, Examples(x, found, kept)


@jax.jit
@broadcasts
def _learn(
    config: UniversalConfig, learner: tuple, each: Sequence[Examples], scales: Sequence[Array]
) -> tuple[tuple, Array]:
    """Return network, target and the optimiser's state after gradient steps, and the mean loss.

    Every step learns from all systems: in turn, each would undo what the others taught. Of each, `scales` has
    a typical price of every lane.
    """
    network, target, optimiser = learner
    units = [jnp.maximum(scale, 0.01)[:, None] for scale in scales]
    rule, apply = _optimiser(config), config.network.apply

    def loss_of(network: Any, examples: Examples, unit: Array) -> Array:
        price = jax.vmap(functools.partial(apply, network))(examples.x)[:, 0]
        found, number = examples.found, _DISPERSION * unit
        deviance = (found + number) * jnp.log(price + number) - found * jnp.log(price + 1e-6)
        return (examples.kept[..., None, None] * deviance / unit).mean()

    def mean_loss(network: Any, batches: Sequence[Examples]) -> Array:
        return trainer.averaged(
            [loss_of(network, batch, unit) for batch, unit in zip(batches, units, strict=True)]
        )

    def learn(carry: tuple, batches: Sequence[Examples]) -> tuple[tuple, Array]:
        network, optimiser = carry
        loss, gradient = jax.value_and_grad(mean_loss)(network, batches)
        return descend(rule, gradient, optimiser, network), loss

    (network, optimiser), losses = jax.lax.scan(learn, (network, optimiser), each)
    return (network, optax.incremental_update(network, target, _TARGET_RATE), optimiser), losses.mean()


def _continue(
    repeated: Callable, env: Any, params: Any, config: UniversalConfig, state: UniversalState
) -> tuple[UniversalState, Progress]:
    """Run the iterations up to the next judgement, and judge.

    Args:
      repeated: as `jax.lax.fori_loop`.
      env: static.
      params: as in `train_universal`.
      config: the same.
      state: from `start_universal` or here.
    """
    each = trainer.systems(env, params)
    num_iterations = config.num_iterations // config.num_evaluations
    state, sums = repeated(
        0,
        num_iterations,
        lambda _, carry: differing(_iterate_all(each, config, *carry)),
        differing(
            (state, dict.fromkeys(("loss", "price", "exploration", "learning_rate"), jnp.float32(0.0)))
        ),
    )
    variables = state.variables.replace(network=state.target)
    keys = trainer.keys(jax.random.clone(state.evaluate_key), len(each))
    found = trainer.averaged(
        [
            pricing.relative(pricing.reached(*one, config, state.target, key), greedy)
            for one, key, greedy in zip(each, keys, state.greedy, strict=True)
        ]
    )
    state = trainer.judged(state, variables, found["objective"])
    sums = {name: value / num_iterations for name, value in sums.items()}
    return state, Progress(iteration=state.iteration, **sums, **found)


def _iterate_all(
    each: Sequence[tuple[Env, Any]],
    config: UniversalConfig,
    state: UniversalState,
    sums: dict[str, Array],
) -> tuple[UniversalState, dict[str, Array]]:
    """Let all systems run on in turn, then learn from all."""
    done = state.iteration.astype(jnp.float32) / config.num_iterations
    explore = config.exploration + jnp.clip(2.0 * done, 0.0, 1.0) * (
        config.final_exploration - config.exploration
    )
    key = jax.random.fold_in(state.iterate_key, state.iteration)
    systems, examples = [], []
    for place, (one, running, own) in enumerate(
        zip(each, state.systems, trainer.keys(key, len(each)), strict=True)
    ):
        # Not all at once.
        begin = (state.iteration + place * config.restart // len(each)) % config.restart == config.restart - 1
        running, found = _gather(*one, config, state.target, running, begin, explore, own)
        systems.append(running)
        examples.append(found)
    learner = state.variables.network, state.target, state.optimiser
    scales = [running.scale for running in systems]
    (network, target, optimiser), loss = _learn(config, learner, examples, scales)
    figures = {
        "loss": loss,
        "price": trainer.averaged([found.found[..., 0].mean() for found in examples]),
    }
    state = trainer.updated(
        state.replace(systems=tuple(systems)),
        jnp.isfinite(figures["loss"]),
        state.iteration,
        variables=state.variables.replace(network=network),
        target=target,
        optimiser=optimiser,
    )
    figures = figures | {"exploration": explore, "learning_rate": falling(config)(state.iteration)}
    state = state.replace(iteration=state.iteration + 1)
    return state, {name: sums[name] + figures[name] for name in sums}


continue_universal = jax.jit(broadcasts(partial(_continue, jax.lax.fori_loop)), static_argnames=("env",))
"""(env, params, config, state) -> the state at the next judgement and the `Progress` made, as one program."""


def _each_in_turn(first: int, last: int, body: Callable, carry: Any) -> Any:
    for turn in range(first, last):
        carry = body(turn, carry)
    return carry


continue_by_parts = partial(_continue, _each_in_turn)
"""The same with a program for each system: one for all of many systems compiles for longer than it trains."""


def train_universal(env: Any, params: Any, config: UniversalConfig | None, key: Key) -> TrainResult:
    """Train a scheduler by prices of backlog, for systems drawn at random or for given ones.

    Args:
      env: from `jaxlb.make`, or a tuple of several.
      params: of the environment, or a `Prior` that draws them; of several a tuple.
      config: None: the defaults.
      key: consumed.

    Returns:
      The scheduler, and what happened on the way.

    Raises:
      ValueError: a setting or a parameter out of bounds.
      FloatingPointError: the loss stopped being finite (only where the result is at hand, not under a trace).
    """
    return trainer.train(UNIVERSAL, env, params, config, key)


def _check(env: Any, params: Any, config: UniversalConfig) -> None:
    for one, own in trainer.systems(env, params):
        if isinstance(own, Prior):
            own.check()
        else:
            stations.needs_settled("training of universal", one.station)
            one.check(own, (config.num_lanes,))
            if own.affinity is not None:
                raise ValueError("affinity: must be None, since training of universal knows none")
    if not isinstance(config.objective, Objective):
        raise ValueError(f"objective = {checks.shown(config.objective)}: must be an Objective")
    config.objective.check()
    if not isinstance(config.network, PriceNetwork):
        raise ValueError(f"network = {checks.shown(config.network)}: must be a PriceNetwork")
    if config.start == "universal" and config.network != acting.shipped()[0]:
        raise ValueError("network: must be the one of the package, if start = 'universal'")
    used = config.num_batches * config.batch_tasks
    if config.num_tasks < used:
        raise ValueError(
            f"num_tasks = {config.num_tasks}: must be at least num_batches x batch_tasks, {used}"
        )


def _variables(config: UniversalConfig, num_processors: int) -> Universal:
    """Return the variables before training."""
    del num_processors
    network = acting.untrained(config.network, jax.random.key(0))
    return Universal(network, config.objective)


def _fits(settings: Mapping[str, Any], trained: np.ndarray, env: Env, params: EnvParams) -> None:
    del settings, trained, env, params


def _acting(config: UniversalConfig, variables: Universal, names: Mapping[str, Any]) -> Scheduler:
    """Return the scheduler, whose network must have been given today's features."""
    acting.check_features(UNIVERSAL.name, names)
    return acting.priced(config.network, variables)


TUNING = {
    "start": "universal",
    "learning_rate": 5e-4,
    "exploration": 0.02,
    "restart": 20,
    "num_iterations": 60,
    "num_evaluations": 3,
}
"""Settings that tune the network that comes with the package to a scenario."""

UNIVERSAL = Trainer(
    name="universal",
    aim="Learns what a delay of each processor costs the tasks that come: one network for any system.",
    features=acting.FEATURES,
    known=acting.FEATURES,
    objective="objective",
    reached=("relative_completion", "relative_violation"),
    remedy="a smaller learning_rate",
    config=UniversalConfig,
    check=_check,
    start=start_universal,
    advance=continue_universal,
    by_parts=continue_by_parts,
    warm=trainer.warmed,
    variables=_variables,
    acting=_acting,
    fits=_fits,
)
