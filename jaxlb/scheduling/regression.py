"""The smallest predicted completion: what a network that regresses completion times becomes when it acts."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.functions import partial
from jaxlb.numerics import at_processor, processor_index
from jaxlb.scheduling import features, learned
from jaxlb.scheduling.base import usable
from jaxlb.scheduling.features import Features, Moments, Names
from jaxlb.scheduling.forecasts import FLUID, Forecaster
from jaxlb.scheduling.learned import Network, Recurrent
from jaxlb.stations import true_response
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static, Truth

Decision = Literal["completion", "violation"]

NAMES = Names(task=(*learned.NAMES.task, "log system load"), processor=learned.NAMES.processor)
"""The features that a network has that regresses completions now: the system's load too."""

PENDING = 64
"""Tasks that have not departed yet and whose completion is waited for; of more, the newest."""


class Regression(struct.PyTreeNode):
    """What a network that regresses completion times needs besides its code."""

    network: Any  # parameters
    moments: Moments
    mean: Array  # of the target
    deviation: Array
    forecaster: Forecaster  # of the waits that it reads


def untrained(
    network: Network | Recurrent, key: Key, x: Features, forecaster: Forecaster = FLUID
) -> Regression:
    """Return new variables of a network for such features; the key is consumed."""
    return Regression(
        network=network.init(key, x),
        moments=features.no_moments(x),
        mean=jnp.float32(0.0),
        deviation=jnp.float32(1.0),
        forecaster=forecaster,
    )


def completions(truth: Truth) -> Array:
    """Return what each choice truly takes, `[..., P]`."""
    return jnp.moveaxis(true_response(truth), 0, -1)


def estimate(variables: Regression, out: Array, num_processors: int) -> tuple[Array, Array | None]:
    """Return the target's mean and, of a distribution, its standard deviation, `[..., P]` each."""
    mean, deviation = variables.mean, variables.deviation
    if out.shape[-1] == num_processors:
        return mean + deviation * out, None
    return mean + deviation * out[..., 0], deviation * jnp.exp(0.5 * out[..., 1])


class Feedback(struct.PyTreeNode):
    """What the completion times that came in have taught: by how much logarithms of them are off."""

    offset: Array  # [P, ...] logarithm of completion / predicted, of late
    due: Array  # [K, ...] mean services until a pending task departs; infinite: nothing is pending here
    processor: Array  # [K, ...] int32, where it is
    error: Array  # [K, ...] its logarithm of completion / predicted, not to be used before it departs
    slot: Array  # int32, the place of the next


def no_feedback(num_processors: int, lanes: Lanes) -> Feedback:
    """Return feedback before anything came in."""
    nothing = jnp.zeros((PENDING, *lanes), jnp.float32)
    return Feedback(
        offset=jnp.zeros((num_processors, *lanes), jnp.float32),
        due=jnp.full_like(nothing, jnp.inf),
        processor=nothing.astype(jnp.int32),
        error=nothing,
        slot=jnp.int32(0),
    )


def update_offsets(feedback: Feedback, gap: Array, rate: float) -> Feedback:
    """Move processors' offsets by the tasks that departed in the last `gap` `[...]` mean services.

    A step of gradient descent on the squared error for each of them.
    """
    due = feedback.due - gap
    departed = due <= 0
    here = feedback.processor[:, None] == processor_index(feedback.offset)
    count = (departed[:, None] & here).sum(0, dtype=jnp.int32).astype(jnp.float32)
    total = jnp.where(departed[:, None] & here, feedback.error[:, None], 0.0).sum(0)
    part = 1.0 - (1.0 - rate) ** count
    offset = feedback.offset + part * (total / jnp.maximum(count, 1.0) - feedback.offset)
    return feedback.replace(offset=offset, due=jnp.where(departed, jnp.inf, due))


def add_pending(feedback: Feedback, action: Array, completion: Array, predicted: Array) -> Feedback:
    """Add a task that was sent to processor `action` to those that are pending, until it departs.

    Args:
      feedback: so far.
      action: `[...]` int32.
      completion: `[...]` mean services that it will take.
      predicted: `[...]` the logarithm that was predicted, offset apart.
    """
    newest = jnp.arange(PENDING, dtype=jnp.int32) == feedback.slot
    newest = newest.reshape(-1, *(1,) * action.ndim)
    error = jnp.log(completion) - predicted
    return feedback.replace(
        due=jnp.where(newest, completion, feedback.due),
        processor=jnp.where(newest, action, feedback.processor),
        error=jnp.where(newest, error, feedback.error),
        slot=(feedback.slot + 1) % PENDING,
    )


def cost(decision: Decision, mean: Array, spread: Array | None, deadline: Array) -> Array:
    """Return what is to be smallest, of predictions `[..., P]` (logarithms, where there is a spread)."""
    if spread is None:
        return mean
    if decision == "completion":
        return mean + 0.5 * spread**2  # logarithm of the mean of a log-normal law
    return (mean - jnp.log(jnp.minimum(deadline, 1e6))[..., None]) / spread


def _lanes_last(memory: Any, count: int) -> Any:
    """Put the `count` leading lane axes of a network's arrays last, as memories of schedulers have them."""
    front, back = tuple(range(count)), tuple(range(-count, 0))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, front, back), memory)


def _lanes_first(memory: Any, count: int) -> Any:
    front, back = tuple(range(count)), tuple(range(-count, 0))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, back, front), memory)


def _start(
    of_network: Callable,
    of_forecaster: Callable,
    adaptation: float | None,
    env: Static,
    params: EnvParams,
    lanes: Lanes,
) -> tuple:
    del env
    num_processors = params.speed.shape[0]
    feedback = () if adaptation is None else no_feedback(num_processors, lanes)
    return of_forecaster(params, lanes), _lanes_last(of_network(lanes, num_processors), len(lanes)), feedback


def _act(
    network: Recurrent,
    decision: Decision,
    adaptation: float | None,
    names: Names,
    variables: Regression,
    memory: tuple,
    observation: Observation,
    key: Key,
) -> tuple[Array, tuple]:
    del key
    tracked, remembered, feedback = memory
    tracked, seen, forecast = variables.forecaster.update(
        variables.forecaster.variables, tracked, observation
    )
    x = features.standardise(variables.moments, features.extract(seen, forecast, names))
    num_lane_axes = seen.size.ndim
    remembered = _lanes_first(remembered, num_lane_axes)
    out, remembered = network.apply(variables.network, remembered, x)
    remembered = _lanes_last(remembered, num_lane_axes)
    mean, spread = estimate(variables, out, x.processor.shape[-2])
    corrected = mean
    if adaptation is not None:
        feedback = update_offsets(feedback, seen.gap, adaptation)
        corrected = mean + jnp.moveaxis(feedback.offset, 0, -1)
    costs = jnp.moveaxis(cost(decision, corrected, spread, seen.deadline), -1, 0)
    action = jnp.argmin(usable(seen, costs, jnp.inf), 0).astype(jnp.int32)
    if adaptation is not None:
        # How long it will take is settled by now; it is not used before the task has departed.
        completion = at_processor(jnp.moveaxis(completions(seen.truth), -1, 0), action)
        predicted = at_processor(jnp.moveaxis(mean, -1, 0), action)
        feedback = add_pending(feedback, action, completion, predicted)
    return action, (tracked, remembered, feedback)


def gnn(
    network: Network | Recurrent,
    variables: Regression,
    decision: Decision = "completion",
    adaptation: float | None = None,
    names: Names = NAMES,
) -> Scheduler:
    """Minimise the predicted completion, by a network trained with `jaxlb.train_gnn`.

    Its memory is the forecaster's, the network's and `Feedback`.

    Args:
      network: that was trained.
      variables: of it.
      decision: of one that predicts distributions: by "completion", the expected one, or by "violation", the
        probability of it.
      adaptation: rate at which every processor's predictions follow the completion times that come in; None:
        they do not. Only for predictions of logarithms.
      names: of the features that it was trained with.
    """
    recurrent = learned.remembering(network)
    start = partial(_start, recurrent.start, variables.forecaster.start, adaptation)
    return Scheduler("gnn", variables, start, partial(_act, recurrent, decision, adaptation, names))
