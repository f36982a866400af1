"""What a learned network becomes when it acts: observation -> features -> a value for each processor.

A value is the reward that is known beforehand plus what the network predicts of all that comes later: the
reward of each choice follows from the observation (exactly, where sizes and waits are visible), so only its
consequences need learning.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import rewards
from jaxlb.functions import partial
from jaxlb.rewards import Weights
from jaxlb.scheduling import features
from jaxlb.scheduling.base import size_at_each, usable
from jaxlb.scheduling.features import Features, Moments, Names
from jaxlb.scheduling.forecasts import FLUID, Forecaster
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


class Network(NamedTuple):
    """A network, as pure functions; a Flax module has them too, and serves as one.

    Attributes:
      init: (key, features) -> parameters.
      apply: (parameters, features) -> values `[..., P]`.
    """

    init: Callable[[Key, Features], Any]
    apply: Callable[[Any, Features], Array]


class Recurrent(NamedTuple):
    """A network that remembers, as pure functions.

    Attributes:
      init: (key, features) -> parameters.
      start: (lanes, number of processors) -> memory, before the first task.
      apply: (parameters, memory, features) -> (values `[..., P]`, memory).
    """

    init: Callable[[Key, Features], Any]
    start: Callable[[Lanes, int], Any]
    apply: Callable[[Any, Any, Features], tuple[Array, Any]]


def _no_memory(lanes: Lanes, num_processors: int) -> tuple:
    del lanes, num_processors
    return ()


def _init(network: Network, key: Key, x: Features) -> Any:
    return network.init(key, x)


def _apply(network: Network, parameters: Any, memory: tuple, x: Features) -> tuple[Array, tuple]:
    return network.apply(parameters, x), memory


def remembering(network: Network | Recurrent) -> Recurrent:
    """Turn any network into one that remembers, if only nothing."""
    if isinstance(network, Recurrent):
        return network
    # Functions of the network, so that those of equal networks are equal, and share programs.
    return Recurrent(partial(_init, network), _no_memory, partial(_apply, network))


NAMES = Names(
    task=("log size", "priority", "log deadline", "log age"),
    processor=tuple(features.PROCESSOR_FEATURES),
)
"""The features that a DQN has now; what it reads of the reward comes after those of the task."""


class Variables(struct.PyTreeNode):
    """What a learned scheduler needs besides its code."""

    network: Any  # parameters
    moments: Moments
    weights: Weights  # of the reward that it maximises
    forecaster: Forecaster  # of the waits that it reads


def objective(weights: Weights) -> list[Array]:
    """Return what a network reads of the reward, so that one can serve several objectives."""
    sla_weight = jnp.asarray(weights.sla_weight)
    entries = [weights.completion_weight, weights.completion_exponent, weights.imbalance_weight]
    entries += list(sla_weight) if sla_weight.ndim else [sla_weight]
    return [jnp.log(jnp.asarray(weight) + 0.01) for weight in entries]


def known_rewards(observation: Observation, forecast: Array, weights: Weights) -> Array:
    """Return each choice's reward `[..., P]`, taking forecast and size, in mean services, for the truth.

    That of a processor which is down or full, or may not take the task, is infinitely bad; where all are, it
    does not matter who refuses the task.
    """
    o = observation
    each = rewards.of_each_choice(
        weights, forecast, size_at_each(o), o.priority, o.deadline, o.speed, o.completion, o.held
    )
    each = usable(o, each, -jnp.inf)
    if o.completion is not None:
        each = jnp.where(jnp.isfinite(each).any(0), each, 0.0)
    return jnp.moveaxis(each, 0, -1)


def read(
    forecaster: Forecaster, weights: Weights, memory: Any, observation: Observation, names: Names = NAMES
) -> tuple[Any, Observation, Features, Array]:
    """Read an observation as a network does.

    Args:
      forecaster: of the waits.
      weights: of the reward.
      memory: of the forecaster.
      observation: at a decision.
      names: of the features.

    Returns:
      The forecaster's memory, what it saw (in mean services), features, and the reward that is known of each
      choice `[..., P]`.
    """
    memory, seen, forecast = forecaster.update(forecaster.variables, memory, observation)
    x = features.extract(seen, forecast, names, objective(weights))
    return memory, seen, x, known_rewards(seen, forecast, weights)


def values(network: Network, variables: Variables, x: Features, known: Array) -> Array:
    """Return the value of each choice `[..., P]`."""
    found = network.apply(variables.network, features.standardise(variables.moments, x))
    if jnp.shape(found) != known.shape:
        raise ValueError(
            f"network: apply returns shape {jnp.shape(found)} for features of processors "
            f"{x.processor.shape}: must be {known.shape}, a number for each processor"
        )
    return known + found


def untrained(
    network: Network, key: Key, x: Features, weights: Weights, forecaster: Forecaster = FLUID
) -> Variables:
    """Return new variables of a network for such features and weights; the key is consumed."""
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weights)
    return Variables(network.init(key, x), features.no_moments(x), weights, forecaster)


def _start(of_forecaster: Callable, env: Static, params: EnvParams, lanes: Lanes) -> Any:
    del env
    return of_forecaster(params, lanes)


def _act(
    network: Network, names: Names, variables: Variables, memory: Any, observation: Observation, key: Key
) -> tuple[Array, Any]:
    del key
    memory, _, x, known = read(variables.forecaster, variables.weights, memory, observation, names)
    value = values(network, variables, x, known)
    return jnp.argmax(value, -1).astype(jnp.int32), memory


def dqn(network: Network, variables: Variables, names: Names = NAMES) -> Scheduler:
    """Maximise the value by a network trained with `jaxlb.train_dqn`; its memory is the forecaster's."""
    start = partial(_start, variables.forecaster.start)
    return Scheduler("dqn", variables, start, partial(_act, network, names))
