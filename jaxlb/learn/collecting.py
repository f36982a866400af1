"""Steps for a replay memory: a policy that explores, in simulated systems whose tasks never end."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlb import cycle, metrics, observe, rewards, workload
from jaxlb.devices import at_hand, over_devices
from jaxlb.env import Env
from jaxlb.learn import replay
from jaxlb.learn.replay import Memory
from jaxlb.loop import decide, first_arrival
from jaxlb.params import with_lane_axis
from jaxlb.scheduling import learned, scheduler
from jaxlb.scheduling.features import Features
from jaxlb.scheduling.learned import Variables
from jaxlb.types import Array, EnvParams, EnvState, Key, Observation, Scheduler


class Step(struct.PyTreeNode):
    """A row of the memory: one decision of every lane, `[N]`."""

    features: Features
    known: Array  # [N, P] reward of each choice, as observed
    action: Array  # int32
    reward: Array  # relative to the task alone
    ended: Array  # bool, the queues were emptied afterwards


class Collected(struct.PyTreeNode):
    """A system of N lanes, and what was remembered of it."""

    env: EnvState  # [N]
    tracked: Any  # the forecaster's memory
    memory: Memory


def start(
    env: Env, params: EnvParams, config: Any, arrival_key: Key, observe_key: Key
) -> tuple[Collected, Features]:
    """Return a system at its first arrivals with an empty memory, and features there; keys are consumed.

    Args:
      env: static.
      params: of the environment; a leaf may be `[N]` (`[P, N]`, `[C, N]`).
      config: of the trainer.
      arrival_key: of the first tasks.
      observe_key: of what is measured then.
    """
    lanes = (config.num_lanes,)
    params = with_lane_axis(params, lanes)
    state, _ = first_arrival(env, params, arrival_key, lanes)
    tracked = config.forecaster.start(observe.nominal(params), lanes)
    observation = env.observe(state, params, observe_key)
    _, _, x, known = learned.read(config.forecaster, config.known_part(), tracked, observation)
    nothing = jnp.zeros(lanes, jnp.float32)
    row = Step(
        features=x,
        known=known,
        action=nothing.astype(jnp.int32),
        reward=nothing,
        ended=nothing > 0,
    )
    collected = Collected(
        env=over_devices(state, config.num_lanes),
        tracked=over_devices(tracked, config.num_lanes),
        memory=replay.start(row, config.memory_rows),
    )
    return collected, x


def goal(env: Env, params: EnvParams, config: Any, weights: rewards.Weights) -> tuple[Env, EnvParams]:
    """Return the environment with its parameters, but what is learned as its reward.

    Its weights are those of the policy, if it has any.
    """
    weighted = config.reward == rewards.Weighted()
    return dataclasses.replace(env, reward=config.reward), weights.put_into(params) if weighted else params


def exploration(config: Any, iteration: Array) -> Array:
    """Return the probability of a random choice at an iteration."""
    explored = iteration.astype(jnp.float32) / config.num_iterations / config.exploration_part
    return jnp.asarray(optax.linear_schedule(config.exploration, config.final_exploration, 1)(explored))


def _explore(
    variables: tuple[Scheduler, Array], memory: Any, observation: Observation, key: Key
) -> tuple[Array, Any]:
    """Act as a policy does, but at random, in proportion to speed, with a probability."""
    greedy, exploration = variables
    chance_key, choice_key, greedy_key = jax.random.split(key, 3)
    action, memory = greedy.act(greedy.variables, memory, observation, greedy_key)
    explored, _ = scheduler("weighted-random").act((), (), observation, choice_key)
    explore = jax.random.uniform(chance_key, action.shape, jnp.float32) < exploration
    return jnp.where(explore, explored, action), memory


def collect(
    env: Env,
    params: EnvParams,
    config: Any,
    variables: Variables,
    explore: Array,
    collected: Collected,
    key: Key,
) -> tuple[Collected, Features, dict[str, Array]]:
    """Let every lane decide once, into the memory.

    Args:
      env: static.
      params: as in `start`.
      config: of the trainer.
      variables: of the policy that acts.
      explore: probability of a random choice.
      collected: so far.
      key: consumed.

    Returns:
      What is collected now, the features of the decisions, and figures of them.
    """
    c, lanes, before = config, (config.num_lanes,), collected.env
    params = with_lane_axis(params, lanes)
    task_key, observe_key, act_key = jax.random.split(key, 3)
    task, process = workload.draw(task_key, params, before.workload, lanes)
    greedy = learned.dqn(c.network, variables)
    policy = Scheduler("exploring", (greedy, explore), greedy.start, _explore)
    after, tracked, observation, outcome, objective = decide(
        *goal(env, params, config, variables.weights),
        policy,
        before,
        collected.tracked,
        task,
        observe_key,
        act_key,
    )
    reward = env.assign(before, outcome.action, task.gap, params)[2]
    after = after.replace(workload=process)
    ended = after.steps >= params.max_steps_in_episode
    empty = after.replace(system=cycle.empty(env, params, after.system), steps=jnp.zeros_like(after.steps))
    after = jax.tree.map(lambda new, old: jnp.where(ended, new, old) if old.ndim else old, empty, after)

    _, seen, x, known = learned.read(c.forecaster, variables.weights, collected.tracked, observation)
    response = cycle.response(env, params, before.system, before.task)
    completion = outcome.completion
    if env.loses(params):  # of those that were not refused
        served = jnp.isfinite(completion)
        part = jnp.maximum(served.mean(dtype=jnp.float32), 1e-6)
        completion = jnp.where(served, completion, 0.0) / part
    figures = {
        "objective": objective,
        "reward": reward,
        "completion": completion,
        "violation": outcome.violation.astype(jnp.float32),
        "agreement": metrics.agreement(response, outcome.completion).astype(jnp.float32),
    }
    row = Step(
        features=x,
        known=known,
        action=outcome.action,
        reward=objective - rewards.alone(variables.weights, seen.truth.size, seen.speed),
        ended=ended,
    )
    row, figures = at_hand((row, figures))
    collected = Collected(
        env=over_devices(after, c.num_lanes),
        tracked=over_devices(tracked, c.num_lanes),
        memory=replay.add(collected.memory, row),
    )
    return collected, row.features, {name: figure.mean() for name, figure in figures.items()}
