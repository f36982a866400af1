"""Experience for prices of backlog: systems that run, what prices turned out to be, and what they bring."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import observe, workload
from jaxlb.env import Env
from jaxlb.functions import partial
from jaxlb.learn.prior import Prior
from jaxlb.loop import decide, first_arrival, rollout
from jaxlb.numerics import broadcasts, processor_index
from jaxlb.params import canonical, with_lane_axis
from jaxlb.rewards import Weighted
from jaxlb.scheduling import belief, scheduler, situation
from jaxlb.scheduling import universal as acting
from jaxlb.scheduling.objective import COSTS, Objective, violation_weight
from jaxlb.scheduling.universal import PriceFeatures, Universal
from jaxlb.types import Array, EnvParams, EnvState, Key, Scheduler

_HORIZON = 5000.0
"""Mean services over which what a delay leads to is forgotten: queues at high loads empty rarely."""
_LARGER = 100.0
"""How much larger a task that shocks the system is at most."""


class Running(struct.PyTreeNode):
    """A system of N lanes on its way."""

    params: EnvParams
    objective: Objective
    env: EnvState
    memory: Any  # of the scheduler
    scale: Array  # [N, 3] mean price of each lane


def drawn(env: Env, params: Any, config: Any, key: Key) -> tuple[EnvParams, Objective, int]:
    """Return systems with objectives and the number of lanes; the key is consumed where a prior draws."""
    if not isinstance(params, Prior):
        return params, config.objective, config.num_lanes
    params_of_lanes, objective = params.draw(env.num_processors, key)
    return canonical(params_of_lanes), objective, params.num_lanes


def begin(env: Env, params: Any, config: Any, key: Key) -> Running:
    """Return a system at its first arrivals; the key is consumed."""
    draw_key, arrival_key = jax.random.split(key)
    own, objective, num_lanes = drawn(env, params, config, draw_key)
    lanes = (num_lanes,)
    own = with_lane_axis(own, lanes)
    classes = jnp.asarray(objective.class_weights, jnp.float32)
    objective = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf, jnp.float32), lanes),
        objective.replace(class_weights=0.0),
    ).replace(class_weights=jnp.broadcast_to(classes.reshape(len(classes), -1), (len(classes), num_lanes)))
    state, _ = first_arrival(env, own, arrival_key, lanes)
    memory = belief.start(env, observe.nominal(own), lanes)
    return Running(own, objective, state, memory, jnp.ones((*lanes, len(COSTS)), jnp.float32))


class Row(struct.PyTreeNode):
    """One decision of every lane."""

    x: PriceFeatures  # after it
    action: Array  # [N] int32
    marginal: Array  # [N, 3] what a little delay costs the task
    kept: Array  # [N] bool, whether the choice was the scheduler's own, of a task as the workload has it
    busy: Array  # [N, P] whether the processor is busy up to the next arrival, discounted


def step(
    env: Env, config: Any, network: Any, explore: Array, running: Running, key: Key
) -> tuple[Running, Row]:
    """Let every lane decide once; the key is consumed."""
    params, objective, before = running.params, running.objective, running.env
    lanes = before.task.gap.shape
    task_key, observe_key, act_key, shock_key = jax.random.split(key, 4)
    task, process = workload.draw(task_key, params, before.workload, lanes)
    # Now and then a much larger task comes and goes anywhere, so that long queues are seen with any workload;
    # and among the first ones, since queues grow long slowly at high loads. Sizes that are hidden are learned
    # from what is served, so there none comes that the workload does not have.
    chance, larger = jax.random.uniform(shock_key, (2, *lanes), jnp.float32)
    first = running.memory.count < env.num_processors
    free = 1.0 - params.load
    shocks = jnp.where(first, jnp.minimum(0.5, 0.5 / (env.num_processors * free)), config.shocks * free)
    shocks = shocks if env.size_visible else 0.0
    factor = jnp.where(chance < shocks, _LARGER**larger, 1.0)
    before = before.replace(task=before.task.replace(size=before.task.size * factor))
    variables = Universal(network, objective), explore, factor
    act = partial(acting.exploring, config.network)
    policy = Scheduler("exploring", variables, belief.start, act)
    after, (memory, kept), observation, outcome, _ = decide(
        env, params, policy, before, (running.memory, factor == 1), task, observe_key, act_key
    )
    chosen = processor_index(params.speed) == outcome.action
    wait = env.station.view(before.system.station, params.speed).wait + jnp.where(
        chosen, outcome.service, 0.0
    )
    s = situation.situation(memory, observation)
    objective = objective.crowded(1.0 - situation.load(memory, s))
    took, size = outcome.completion / s.unit, before.task.size / (memory.size * memory.first_size)
    exponent = objective.exponent
    late = jax.nn.sigmoid(
        (jnp.log(took) - jnp.log(jnp.clip(before.task.deadline / s.unit, 1e-6, 1e6))) / config.kernel
    )
    weight = violation_weight(objective, before.task.priority) / jnp.maximum(memory.weight, 1e-6)
    marginal = [
        exponent * took ** (exponent - 1.0),
        1.0 / (size * belief.mean_inverse_size(memory)),
        weight * late * (1.0 - late) / (config.kernel * took),
    ]
    row = Row(
        x=acting.price_features(memory, s, objective, s.wait[None]),
        action=outcome.action,
        marginal=jnp.stack(marginal, -1),
        kept=kept,
        busy=((wait > task.gap).astype(jnp.float32) * jnp.exp(-task.gap / s.unit / _HORIZON)).T,
    )
    return running.replace(env=after.replace(workload=process), memory=memory), row


def returns(config: Any, rows: Row, prices: Array) -> Array:
    """Return what prices turned out to be, `[T - 1, N, P, 3]`, from the predicted ones `[T, N, P, 3]`.

    They end at the first choice that was not the scheduler's own; one that such a choice follows at once says
    nothing.
    """
    num_processors = prices.shape[-2]
    trace = config.trace ** (1.0 / num_processors)

    def back(surprise: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        busy, action, marginal, then, kept, now = row
        next_one = jnp.arange(num_processors, dtype=jnp.int32) == action[:, None]
        direct = jnp.where(next_one[..., None], marginal[:, None], 0.0)
        found = busy[..., None] * (direct + then + trace * surprise)
        return jnp.where(kept[:, None, None], found - now, 0.0), found

    after = rows.busy[:-1], rows.action[1:], rows.marginal[1:], prices[1:], rows.kept[1:], prices[:-1]
    return jax.lax.scan(back, jnp.zeros_like(prices[-1]), after, reverse=True)[1]


class Reached(struct.PyTreeNode):
    """Means of each lane, `[N]`."""

    cost: Array  # of its objective
    completion: Array
    violation: Array


@functools.partial(jax.jit, static_argnames="env")
@broadcasts
def reached(env: Env, params: Any, config: Any, network: Any, key: Key) -> Reached:
    """Return what prices bring in a system, or greedy where there is no network; the key is consumed."""
    draw_key, key = jax.random.split(key)
    own, objective, num_lanes = drawn(env, params, config, draw_key)
    unit = own.size.mean() / own.speed.mean(0)
    weights = jnp.asarray(objective.class_weights, jnp.float32)
    classes = jnp.arange(np.shape(own.class_probability)[0], dtype=jnp.int32)
    completion, slowdown, violations = objective.crowded(1.0 - own.load).shares(jnp.float32(1.0))
    own = own.replace(
        completion_weight=completion / unit**objective.exponent,
        completion_exponent=jnp.asarray(objective.exponent, jnp.float32),
        imbalance_weight=jnp.float32(0.0),
        sla_weight=violations * weights[jnp.minimum(classes, len(weights) - 1)],
    )
    rule = (
        scheduler("greedy")
        if network is None
        else acting.priced(config.network, Universal(network, objective))
    )
    env, tasks = dataclasses.replace(env, reward=Weighted()), config.evaluation_tasks
    found = rollout(env, own, rule, key, num_lanes, tasks, tasks)
    return Reached(
        cost=slowdown * found.mean_slowdown - found.mean_reward,
        completion=found.mean_completion,
        violation=found.sla_violation_rate,
    )


def relative(reached: Reached, greedy: Reached) -> dict[str, Array]:
    """Return figures of progress: geometric means over lanes, relative to greedy."""
    floor = 1e-3  # where there are next to no violations, their ratio is that of chance
    ratios = jax.tree.map(lambda own, other: jnp.log((own + floor) / (other + floor)).mean(), reached, greedy)
    return {
        "objective": -ratios.cost,
        "relative_completion": jnp.exp(ratios.completion),
        "relative_violation": jnp.exp(ratios.violation),
    }
