"""Training a predictor of backlog: examples from simulated systems, then a regression over all of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlb import drift, workload
from jaxlb.drift import Detector
from jaxlb.env import Env
from jaxlb.learn import trainer
from jaxlb.learn.settings import count, named
from jaxlb.learn.trainer import Systems, Trainer, TrainResult, TrainState, beginning, descend
from jaxlb.numerics import broadcasts, deviation, first_smallest
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import predictors, tracking
from jaxlb.scheduling.predictive import predicting
from jaxlb.scheduling.predictors import Fit, Predictor
from jaxlb.scheduling.tracking import FEATURES, Tracking
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

_OPTIMISER = optax.lbfgs()
HELD_OUT = 5
"""Every fifth lane is held out of the regression."""


class PredictorConfig(struct.PyTreeNode):
    """Settings of the trainer; all static.

    Attributes:
      predictor: from `jaxlb.scheduling.predictors`, or your own.
      num_lanes: N environments that the examples are from.
      num_tasks: in each lane.
      warmup: tasks before these that no example is taken from.
      num_examples: drawn of all processors of a system at all those tasks, to fit to.
      num_iterations: steps of L-BFGS.
      num_evaluations: how often the examples that were held out are judged, evenly spread.
      detector: of drift, for the scheduler, from `jaxlb.drift`.
      hold: decisions for which its alarms last.
    """

    predictor: Predictor = named("linear", predictors.predictor)
    num_lanes: int = count(250, low=HELD_OUT + 1)
    num_tasks: int = count(400)
    warmup: int = count(100, low=0)
    num_examples: int = count(50_000)
    num_iterations: int = count(200)
    num_evaluations: int = count(10)
    detector: Detector = named("threshold", drift.detector)
    hold: int = count(1)


class Progress(struct.PyTreeNode):
    """Figures of training."""

    iteration: Array
    regression_loss: Array  # of the examples it is fitted to
    held_out_error: Array  # root of the mean squared error on others, work in mean sizes
    objective: Array  # minus that


class Examples(struct.PyTreeNode):
    """Features of processors and the backlogs that go with them, work in mean sizes."""

    x: Array  # [L, M]
    backlog: Array  # [M]


class PredictorState(TrainState):
    """All that training remembers between two iterations."""

    seen: Examples  # to fit to
    unseen: Examples  # held out


def _act(variables: Any, memory: Tracking, observation: Observation, key: Key) -> tuple:
    del variables, key
    tracked, seen = tracking.update(memory, observation)
    # Half of the lanes herd, as LWR does, and half do not, as a scheduler with good predictions would.
    herding = jnp.arange(seen.size.size, dtype=jnp.int32).reshape(seen.size.shape) % 2 == 0
    action = first_smallest(jnp.where(herding, seen.load, tracked.reckoned) / seen.speed)
    return action, tracked


def _start(env: Static, params: EnvParams, lanes: Lanes) -> Tracking:
    del env
    return tracking.start(params, lanes)


_COLLECTING = Scheduler("collecting", (), _start, _act)


def _example(collecting: Scheduler, memory: Tracking, observation: Observation) -> tuple[Array, Array]:
    del collecting
    tracked, seen = tracking.update(memory, observation)
    return tracking.features(tuple(FEATURES), tracked, seen), seen.truth.wait * seen.truth.speed


@functools.partial(jax.jit, static_argnames="env")
def examples(env: Env, params: EnvParams, config: PredictorConfig, key: Key) -> tuple[Examples, Examples]:
    """Draw examples to fit to, and as many that are held out, of other lanes; the key is consumed.

    Half of the lanes are under LWR, half under LWR on the backlogs that were kept account of.
    """
    c, lanes = config, (config.num_lanes,)
    task_key, replay_key, *draw_keys = jax.random.split(key, 4)
    params = with_lane_axis(params, lanes)
    tasks = workload.sample(task_key, params, c.warmup + c.num_tasks, lanes)
    _, (x, backlog) = watch(env, params, _COLLECTING, tasks, replay_key, _example)
    x, backlog = x[c.warmup :], backlog[c.warmup :]
    names = tuple(FEATURES)
    x = x[:, jnp.array([names.index(name) for name in c.predictor.features], jnp.int32)]
    held_out = (jnp.arange(c.num_lanes) % HELD_OUT == 0).astype(jnp.float32)

    def drawn(key: Key, among: Array) -> Examples:
        time_key, place_key, lane_key = jax.random.split(key, 3)
        count = (c.num_examples,)
        time = jax.random.randint(time_key, count, 0, c.num_tasks, jnp.int32)
        place = jax.random.randint(place_key, count, 0, env.num_processors, jnp.int32)
        lane = jax.random.choice(lane_key, c.num_lanes, count, p=among / among.sum())
        return Examples(x=x[time, :, place, lane].T, backlog=backlog[time, place, lane])

    return drawn(draw_keys[0], 1.0 - held_out), drawn(draw_keys[1], held_out)


def loss(predictor: Predictor, fit: Fit, examples: Examples) -> Array:
    """Return half the mean squared error of standardised backlogs, or minus their Gaussian log likelihood."""
    x = predictors.standardised(fit, examples.x)
    target = (examples.backlog - fit.mean) / fit.deviation
    found = predictor.apply(fit.network, x)
    squares = (target - found[0]) ** 2
    if found.shape[0] == 1:
        return 0.5 * squares.mean()
    return 0.5 * (found[1] + squares * jnp.exp(-found[1])).mean()


def _untrained(predictor: Predictor, key: Key, examples: Examples) -> Fit:
    """Return a predictor of the mean of examples; the key is consumed."""
    feature_mean = examples.x.mean(1)
    return Fit(
        network=predictor.init(key, examples.x),
        feature_mean=feature_mean,
        # What never varied counts for nothing. What did has no bounds, unlike in `features.standardise`: a
        # backlog is an account, linear in the work, and as true of ten times as much.
        feature_deviation=deviation(feature_mean, examples.x.var(1)),
        mean=examples.backlog.mean(),
        deviation=examples.backlog.std(),
        error=jnp.float32(jnp.inf),
        spread=jnp.float32(1.0),
    )


@broadcasts
def start_predictor(env: Systems, params: Any, config: PredictorConfig, key: Key) -> PredictorState:
    """Return the state before the first iteration: examples, and a predictor of their mean."""
    example_key, network_key = jax.random.split(key)
    each = trainer.systems(env, params)
    keys = trainer.keys(example_key, len(each))
    found = [examples(*one, config, key) for one, key in zip(each, keys, strict=True)]
    seen, unseen = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, -1), *found)
    fit = _untrained(config.predictor, network_key, seen)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers with floats
        optimiser = _OPTIMISER.init(fit.network)
    return PredictorState(**beginning(fit, optimiser), seen=seen, unseen=unseen)


@broadcasts
def continue_predictor(
    env: Systems, params: Any, config: PredictorConfig, state: PredictorState
) -> tuple[PredictorState, Progress]:
    """Run the steps up to the next judgement on the examples that were held out, and judge."""
    del env, params
    predictor, fit, num_steps = (
        config.predictor,
        state.variables,
        config.num_iterations // config.num_evaluations,
    )

    def loss_of(network: Any) -> Array:
        return loss(predictor, fit.replace(network=network), state.seen)

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        network, optimiser = carry
        value, gradient = optax.value_and_grad_from_state(loss_of)(network, state=optimiser)
        extra = {"value": value, "grad": gradient, "value_fn": loss_of}
        return descend(_OPTIMISER, gradient, optimiser, network, **extra), jnp.asarray(value)

    with jax.numpy_dtype_promotion("standard"):
        (network, optimiser), losses = jax.lax.scan(
            step, (fit.network, state.optimiser), None, length=num_steps
        )
    fit = fit.replace(network=network)
    backlog, stated = predictors.predict(predictor, fit.replace(error=1.0, spread=1.0), state.unseen.x)
    off = jnp.abs(state.unseen.backlog - backlog)
    fit = fit.replace(
        error=jnp.sqrt((off**2).mean()),
        # 90 % of a normal law lie within 1.645 standard deviations.
        spread=jnp.quantile(off / stated, 0.9) / 1.6448536,
    )
    finite = jnp.isfinite(losses).all() & jnp.isfinite(fit.error)
    iteration = state.iteration + num_steps
    state = trainer.updated(state, finite, iteration, variables=fit, optimiser=optimiser)
    state = trainer.judged(state, state.variables, -state.variables.error)
    return state.replace(iteration=iteration), Progress(iteration, losses[-1], fit.error, -fit.error)


def train_predictor(env: Systems, params: Any, config: PredictorConfig | None, key: Key) -> TrainResult:
    """Fit a predictor of backlogs to simulated systems.

    A pure function of its arguments that may be jitted, and vmapped over `key` and `params`.

    Args:
      env: from `jaxlb.make`; or a tuple of several, with as many examples of each.
      params: of the environment. A leaf may also be `[N]` (a vector `[P, N]`), N = `config.num_lanes`, to
        train one predictor for a range of measurement intervals, loads, ... Of several environments: a tuple.
      config: None: the defaults.
      key: consumed.

    Returns:
      `drift-aware` with that predictor and its `Fit`, and what happened on the way.

    Raises:
      ValueError: a setting or a parameter out of bounds.
    """
    return trainer.train(PREDICTOR, env, params, config, key)


def _variables(config: PredictorConfig, num_processors: int) -> Fit:
    """Return the variables before training."""
    del num_processors
    x = jnp.zeros((len(config.predictor.features), 1), jnp.float32)
    return _untrained(config.predictor, jax.random.key(0), Examples(x, x[0]))


def _check(env: Systems, params: Any, config: PredictorConfig) -> None:
    trainer.checked_systems(env, params, config.num_lanes)


PREDICTOR = Trainer(
    name="predictor",
    aim="Learns backlogs from old figures; LWR then chooses by what it predicts.",
    features=(("processor", tuple(FEATURES)),),
    known=(("processor", tuple(FEATURES)),),
    objective="objective",
    reached=("held_out_error",),
    remedy="fewer num_iterations, more num_examples or another predictor",
    config=PredictorConfig,
    check=_check,
    start=start_predictor,
    advance=continue_predictor,
    variables=_variables,
    acting=lambda c, fit, names: predicting("drift-aware", c.predictor, fit, c.detector, c.hold),
    fits=lambda settings, trained, env, params: None,
)
