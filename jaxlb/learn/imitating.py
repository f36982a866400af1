"""A network that begins by acting as a rule does: fitted to its choices, before any of them is judged.

What the rule chose is to be worth more than every other choice, by a margin (Hester et al. 2018): so values
keep the scale of rewards, of which learning goes on from there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlb import workload
from jaxlb.env import Env
from jaxlb.functions import partial
from jaxlb.learn import trainer
from jaxlb.learn.trainer import Systems
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import features, learned
from jaxlb.scheduling.base import first_memories, starts
from jaxlb.scheduling.features import Features
from jaxlb.scheduling.learned import Variables
from jaxlb.types import Array, EnvParams, Key, Observation, Scheduler

TASKS, STEPS, MARGIN = 500, 1000, 0.5
"""Tasks of every lane that are watched, gradient steps, and the margin in mean services."""


class Choice(struct.PyTreeNode):
    """Decisions of a rule, `[..., N]`."""

    features: Features
    known: Array  # [..., N, P] reward of each choice, as observed
    action: Array  # int32


def _act(variables: tuple, memory: tuple, observation: Observation, key: Key) -> tuple[Array, tuple]:
    """Act as the rule, and let the forecaster see it."""
    ours, rule = variables
    tracked, theirs = memory
    tracked, _, _ = ours.forecaster.update(ours.forecaster.variables, tracked, observation)
    action, theirs = rule.act(rule.variables, theirs, observation, key)
    return action, (tracked, theirs)


def _record(watched: Scheduler, memory: tuple, observation: Observation) -> tuple[Features, Array]:
    """Return what the network would read of a decision, and the rewards that are known of it."""
    ours, _ = watched.variables
    _, _, x, known = learned.read(ours.forecaster, ours.weights, memory[0], observation)
    return x, known


def _choices(env: Env, params: EnvParams, config: Any, ours: Variables, rule: Scheduler, key: Key) -> Choice:
    """Watch a rule in one system, `[T, N]`; the key is consumed."""
    task_key, replay_key = jax.random.split(key)
    lanes = (config.num_lanes,)
    params = with_lane_axis(params, lanes)
    tasks = workload.sample(task_key, params, TASKS, lanes)
    reading = learned.dqn(config.network, ours)
    start = partial(first_memories, starts((reading, rule)))
    watched = Scheduler("watched", (ours, rule), start, _act)
    outcome, (x, known) = watch(env, params, watched, tasks, replay_key, _record)
    return Choice(x, known, outcome.action)


def begun(env: Systems, params: Any, config: Any, state: Any, rule: Scheduler) -> Any:
    """Return the state before the first iteration, with a network that, as far as it can, chooses as a rule.

    Args:
      env: static; one, or several.
      params: of them.
      config: of the trainer.
      state: with a new network.
      rule: any scheduler that need not be told who has left.
    """
    # No iteration has that number.
    key, ours = jax.random.fold_in(state.iterate_key, config.num_iterations), state.variables
    watch_key, fit_key = jax.random.split(key)
    each = trainer.systems(env, params)
    keys = trainer.keys(watch_key, len(each))
    found = [_choices(*one, config, ours, rule, own) for one, own in zip(each, keys, strict=True)]
    moments = features.followed(ours.moments, [one.features for one in found], jnp.float32(1.0))
    flat = [jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), one) for one in found]
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def loss_of(network: Any, batches: list[Choice]) -> Array:
        found = []
        for one in batches:
            value = learned.values(
                config.network, ours.replace(network=network, moments=moments), one.features, one.known
            )
            place = jnp.arange(value.shape[-1], dtype=jnp.int32)
            own = jnp.take_along_axis(value, one.action[:, None], -1)[:, 0]
            best = (value + jnp.where(place == one.action[:, None], 0.0, MARGIN)).max(-1)
            # Where it has no choice, or may not be imitated, nothing is learned.
            found.append(jnp.where(jnp.isfinite(own) & jnp.isfinite(best), best - own, 0.0).mean())
        return jnp.stack(found).mean()

    def step(carry: tuple, key: Key) -> tuple[tuple, None]:
        network, state = carry
        batches = []
        for one, own in zip(flat, trainer.keys(key, len(flat)), strict=True):
            which = jax.random.randint(
                own, (config.batch_size // len(flat),), 0, len(one.action), dtype=jnp.int32
            )
            batches.append(jax.tree.map(lambda leaf, which=which: leaf[which], one))
        gradient = jax.grad(loss_of)(network, batches)
        network, state = trainer.descend(optimiser, gradient, state, network)
        return (network, state), None

    begin = ours.network, optimiser.init(ours.network)
    (network, _), _ = jax.lax.scan(step, begin, jax.random.split(fit_key, STEPS))
    variables = ours.replace(network=network, moments=moments)
    return state.replace(variables=variables, best=variables, target=network, counted=jnp.float32(TASKS))
