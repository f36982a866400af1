"""Examples of completion times: decisions in simulated systems, and what each choice would have led to."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import workload
from jaxlb.env import Env
from jaxlb.functions import partial
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import features, regression, scheduler
from jaxlb.scheduling.base import chosen_acts, first_memories, starts
from jaxlb.scheduling.features import Features
from jaxlb.types import Array, EnvParams, Key, Observation, Scheduler


class Examples(struct.PyTreeNode):
    """Decisions, and what each choice would have led to."""

    features: Features  # [..., N, G] and [..., N, P, L]
    completion: Array  # [..., N, P] mean services


def _act_mixed(
    variables: tuple[Scheduler, Array, tuple[Scheduler, ...]],
    memory: tuple,
    observation: Observation,
    key: Key,
) -> tuple[Array, tuple]:
    """Act in every second lane as its own policy, once that is trained, in the others as one of the rules."""
    (own, trained, behaviours), (tracked, *memories) = variables, memory
    own_key, *keys = jax.random.split(key, 1 + len(behaviours))
    lane = jnp.arange(observation.size.size, dtype=jnp.int32).reshape(observation.size.shape)
    learned_action, tracked = own.act(own.variables, tracked, observation, own_key)
    which = (lane // 2) % len(behaviours)
    action, memories = chosen_acts(behaviours, memories, observation, keys, which)
    action = jnp.where(trained & (lane % 2 == 1), learned_action, action)
    return action, (tracked, *memories)


def decided(own: Scheduler, memory: tuple, observation: Observation) -> Examples:
    """Return what a scheduler observes of a decision, and what each choice would lead to."""
    forecaster, (tracked, *_) = own.variables.forecaster, memory
    _, seen, forecast = forecaster.update(forecaster.variables, tracked, observation)
    return Examples(features.extract(seen, forecast, regression.NAMES), regression.completions(seen.truth))


def _record(mixture: Scheduler, memory: tuple, observation: Observation) -> Examples:
    return decided(mixture.variables[0], memory[0], observation)


def examples(env: Env, params: EnvParams, config: Any, own: Scheduler, trained: Array, key: Key) -> Examples:
    """Collect a round of examples in one system, `[T, N, ...]`.

    Args:
      env: static.
      params: of the environment; a leaf may be `[N]`.
      config: of the trainer.
      own: the policy so far.
      trained: bool, whether half of the lanes are its own.
      key: consumed.
    """
    c, lanes = config, (config.num_lanes,)
    task_key, replay_key = jax.random.split(key)
    params = with_lane_axis(params, lanes)
    tasks = workload.sample(task_key, params, c.warmup + c.num_tasks, lanes)
    behaviours = tuple(scheduler(name) for name in c.behaviours)
    start = partial(first_memories, starts((own, *behaviours)))
    mixture = Scheduler("mixture", (own, trained, behaviours), start, _act_mixed)
    _, found = watch(env, params, mixture, tasks, replay_key, _record)
    return jax.tree.map(lambda leaf: leaf[c.warmup :], found)
