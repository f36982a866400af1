"""A scheduler for any system: each task goes where it costs least, counting what it costs those after it.

A task costs others what its service delays. A small delay of one processor's backlog delays each task that
is assigned to it until it is empty, and no other. The *price* of backlog is what that costs: the expected
sum, over these tasks, of what a small delay costs each, per time of delay. It is the derivative of the
expected cost by the wait, found by infinitesimal perturbation (Ho and Cao 1991). A task of service time s
that finds wait w costs others the integral of the price from w to w + s. Under an optimal policy these are
all of its consequences: choices that it would change have no first-order effect (the envelope theorem).

A network predicts prices from what `belief` has learned; `jaxlb.learn.universal` trains it.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxlb import checks, weights
from jaxlb.functions import partial
from jaxlb.numerics import broadcasts, first_smallest, processor_index, total
from jaxlb.rewards import Weights
from jaxlb.scheduling import belief, situation
from jaxlb.scheduling.base import cheapest, sampled
from jaxlb.scheduling.belief import Belief
from jaxlb.scheduling.guard import allowed
from jaxlb.scheduling.objective import COSTS, Objective, as_objective, violation_weight
from jaxlb.scheduling.situation import Situation
from jaxlb.stations import growth
from jaxlb.types import Array, Held, Key, Observation, Scheduler

NODES = (0.5 - 0.5 / math.sqrt(3.0), 0.5 + 0.5 / math.sqrt(3.0))
"""Where between w and w + s prices are asked: the two points of Gauss and Legendre, of equal weight."""
MOST_PROCESSORS = 64
"""In training; of more, the network is told that they are so many."""
DELAYING = (0.5, 0.5, 0.02)
"""What part of prices counts where a task delays those that were there before it, as under sharing: prices
are learned where it delays later ones only. By what was best of 0 to 1 on a few systems."""
_ALIKE = 1e-3
"""Part of a speed by which another is hardly slower."""
LEARNING = 8.0
"""Prices count by 1 - 1/e after so many tasks for each processor and for 16 more."""
CONTEXT = (
    *("load", "lasting load", "spread of sizes", "spread of gaps", "recent rate"),
    *("deadlines", "spread of deadlines"),
    *("small tasks", "experience", "age", "sizes visible", "waits visible", "error of backlogs"),
    "spread of log sizes",
    *(f"work up to 2^{octave}" for octave in situation.SHARES),
    *(f"tasks beyond 2^{octave}" for octave in situation.RARE),
    *("processors", "spread of speeds", *COSTS, "exponent"),
)
"""Names of what the network is told of workload, system and objective."""
PROCESSOR = (
    *("wait", "wait less the least of others", "wait less the mean of others"),
    *("completion less the least of others", "speed", "capacity in slower ones", "share of the capacity"),
)
"""Names of what it is told of the processor whose price is asked."""
OTHERS = ("wait", "completion", "speed", "capacity in slower ones", "share of the capacity")
"""Names of what it is told of each other one: nothing that hangs on the wait of the one that is asked for."""
FEATURES = (("context", CONTEXT), ("processor", PROCESSOR), ("others", OTHERS))


class PriceFeatures(struct.PyTreeNode):
    """What the network is given; lanes lead."""

    context: Array  # [..., G] of the workload, the system and the objective
    others: Array  # [..., P, K] of each processor, for the prices of others
    asked: Array  # [Q, ..., P, L] of each processor, at the waits whose price is asked
    wait: Array  # [Q, ..., P] those waits, in mean services


def _least_of_others(x: Array) -> Array:
    """Return, for each processor, the least over all others, `[P, ...]`."""
    if len(x) == 1:
        return jnp.full_like(x, 1e3)
    first = processor_index(x) == first_smallest(x)
    least, second = x.min(0), jnp.where(first, jnp.inf, x).min(0)
    return jnp.where(first, second, least)


def _of_processors(s: Situation, wait: Array, names: Sequence[str]) -> Array:
    """Return features `[L, ..., P, ...]` of each processor at a `wait`, others having the waits they have."""
    speed, others = s.speed, max(len(s.speed) - 1, 1)
    log_wait, shape = jnp.log1p(8.0 * wait), wait.shape
    # Equal speeds, once learned, differ by rounding: what hangs on their order must not jump.
    order = (speed[:, None] - speed[None]) / (_ALIKE * (speed[:, None] + speed[None]))
    slower = (jnp.clip(0.5 + order, 0.0, 1.0) * speed[None]).sum(1)
    whole = total(speed)
    least = jnp.log(_least_of_others(s.wait + 1.0 / speed))
    rows = {
        "wait": log_wait - 2.0,
        "wait less the least of others": log_wait - jnp.log1p(8.0 * _least_of_others(s.wait)),
        "wait less the mean of others": log_wait - jnp.log1p(8.0 * (total(s.wait) - s.wait) / others),
        "completion": jnp.log(wait + 1.0 / speed),
        "completion less the least of others": jnp.log(wait + 1.0 / speed) - least,
        "speed": jnp.log(speed),
        "capacity in slower ones": 2.0 * slower / whole - 1.0,
        "share of the capacity": 2.0 * speed / whole,
    }
    return jnp.stack([jnp.broadcast_to(rows[name], shape) for name in names])


def price_features(b: Belief, s: Situation, objective: Objective, waits: Array) -> PriceFeatures:
    """Return what the network is given to price backlog.

    Args:
      b: what has been learned.
      s: the decision, with the waits that all have.
      objective: of the scheduler.
      waits: `[Q, P, ...]` at which prices are asked.
    """
    lanes, speed = s.unit.shape, s.speed
    rows = situation.workload(b, s) | {
        "processors": jnp.full(lanes, math.log(min(len(speed), MOST_PROCESSORS)) - 1.8, jnp.float32),
        "spread of speeds": 2.0 * jnp.log1p(speed.var(0)) - 0.5,
        # Where violations alone count, a little of completion times changes much.
        **{
            cost: jnp.log(share + 0.003) / 3.0 + 1.0
            for cost, share in zip(COSTS, objective.shares(b.weight), strict=True)
        },
        "exponent": jnp.log(jnp.asarray(objective.exponent, jnp.float32)),
    }
    return PriceFeatures(
        context=jnp.stack([jnp.broadcast_to(rows[name], lanes) for name in CONTEXT], -1),
        others=jnp.moveaxis(_of_processors(s, s.wait, OTHERS), (0, 1), (-1, -2)),
        asked=jnp.moveaxis(_of_processors(s, waits, PROCESSOR), (0, 2), (-1, -2)),
        wait=jnp.moveaxis(waits, 1, -1),
    )


class _Prices(nn.Module):
    """Prices of backlog, `[Q, ..., P, 3]`: by a processor's own features and the mean of the others'."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: PriceFeatures) -> Array:
        narrow, wide = self.widths
        c = nn.relu(nn.Dense(wide)(nn.relu(nn.Dense(wide)(x.context))))[..., None, :]
        h = nn.relu(nn.Dense(narrow)(x.others) + nn.Dense(narrow, use_bias=False)(c))
        h = nn.relu(nn.Dense(narrow)(h))
        others = (h.sum(-2, keepdims=True) - h) / max(h.shape[-2] - 1, 1)
        shared = nn.Dense(wide)(others) + nn.Dense(wide, use_bias=False)(c)
        h = nn.relu(nn.Dense(wide, use_bias=False)(x.asked) + shared)
        # The workload does not only shift what a wait means, it scales it.
        h = h * (1.0 + nn.Dense(wide, kernel_init=nn.initializers.zeros)(c))
        h = nn.relu(nn.Dense(wide)(h) + nn.Dense(wide, use_bias=False)(c))
        # Low at first, so that choices are nearly greedy.
        last = nn.Dense(
            len(COSTS), kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(-1.0)
        )
        # Where nothing waits, a little delay of nothing delays nobody.
        return jnp.exp(jnp.clip(last(h), -8.0, 9.0)) * (x.wait / (x.wait + 0.5))[..., None]


def no_features(num_processors: int) -> PriceFeatures:
    """Return features of one lane that are all zero, for networks to begin with."""
    context = jnp.zeros((1, len(CONTEXT)), jnp.float32)
    others, asked = (jnp.zeros((1, num_processors, len(names)), jnp.float32) for names in (OTHERS, PROCESSOR))
    return PriceFeatures(context, others, asked[None], asked[None, ..., 0])


class PriceNetwork(NamedTuple):
    """A network, as pure functions.

    Attributes:
      init: (key, features) -> parameters.
      apply: (parameters, features) -> prices `[Q, ..., P, 3]`.
    """

    init: Callable[[Key, PriceFeatures], Any]
    apply: Callable[[Any, PriceFeatures], Array]


def prices(widths: Sequence[int] = (48, 64)) -> PriceNetwork:
    """Make the network, with a narrow layer for what others have and a wide one for prices.

    Raises:
      ValueError: not two widths of at least one unit.
    """
    if len(widths) != 2 or min(widths) < 1:
        raise ValueError(f"widths = {tuple(widths)}: must be two, of at least one unit each")
    module = _Prices(tuple(widths))
    return PriceNetwork(partial(nn.Module.init, module), partial(nn.Module.apply, module))


def network(name: str, widths: Sequence[int] = (48, 64)) -> PriceNetwork:
    """Make the network by its name, "prices".

    Raises:
      ValueError: another name, or bad widths.
    """
    checks.known("network", name, ("prices",))
    return prices(widths)


def described(network: PriceNetwork) -> dict[str, Any] | None:
    """Describe a network by the name and options that `network` takes, as JSON; None if it is one's own."""
    module = next(iter(getattr(network.init, "args", ())), None)
    return {"network": "prices", "widths": list(module.widths)} if isinstance(module, _Prices) else None


def untrained(network: PriceNetwork, key: Key) -> Any:
    """Return parameters to begin with, which are for any number of processors; the key is consumed."""
    return network.init(key, no_features(2))


class Universal(struct.PyTreeNode):
    """Variables of the scheduler."""

    network: Any
    objective: Objective


def own_costs(b: Belief, s: Situation, objective: Objective, weight: Array) -> Array:
    """Return what each choice `[P, ...]` costs the task itself, in the objective's shares."""
    completion, slowdown, violations = objective.shares(b.weight)
    took, inverse = s.completion if s.own is None else s.own, belief.mean_inverse_size(b)
    cost = completion * took ** jnp.asarray(objective.exponent, jnp.float32)
    if b.size_visible:
        cost = cost + slowdown * took / (s.size * inverse)
    else:  # that of the mean is not the mean
        cost = cost + slowdown * (s.wait + 1.0 / (s.speed * inverse))
    late = (took > s.deadline).astype(jnp.float32) if b.size_visible else situation.share_of_late(b, s)
    cost = cost + violations * _weighted(b, weight, late)
    work = s.wait * s.speed
    grown = (2.0 * work + s.size) * s.size / len(work) - 2.0 * work.mean(0) * s.size / len(work)
    cost = cost + objective.imbalance_share(b.weight) * grown
    return cost if s.held is None else cost + _costs_of_others(b, s.held, objective)


def _weighted(b: Belief, weight: Array, late: Array) -> Array:
    return weight / jnp.maximum(b.weight, 1e-6) * late


def _costs_of_others(b: Belief, held: Held, objective: Objective) -> Array:
    """Return what each choice `[P, ...]` costs the tasks that are there, in the objective's shares."""
    completion, slowdown, violations = objective.shares(b.weight)
    weight, inverse = violation_weight(objective, held.priority), belief.mean_inverse_size(b)

    def cost(took: Array) -> Array:
        whole = completion * took ** jnp.asarray(objective.exponent, jnp.float32)
        whole = whole + slowdown * took / (held.size * inverse)
        return whole + violations * _weighted(b, weight, (took > held.deadline).astype(jnp.float32))

    return growth(held, cost)


def _nodes(b: Belief, s: Situation) -> Array:
    """Return how much of the task `[Q, ...]`, in mean sizes, is done where prices are asked."""
    if b.size_visible:
        return jnp.asarray(NODES, jnp.float32).reshape(-1, *(1,) * s.size.ndim) * s.size
    # The size is not known: quartiles of the work, half of each done.
    return 0.5 * jnp.stack([belief.size_by_work(b, share) for share in (0.25, 0.75)])


def costs(network: PriceNetwork, variables: Universal, b: Belief, s: Situation, weight: Array) -> Array:
    """Return what each choice `[P, ...]` costs the task and those that come after it."""
    service = s.size / s.speed  # in what the processor gives all its tasks together
    objective = variables.objective
    x = price_features(b, s, objective, s.wait + _nodes(b, s)[:, None] / s.speed)
    found = network.apply(variables.network, x).mean(0)  # over nodes
    each = jnp.moveaxis(found, (-1, -2), (0, 1))
    shares = objective.shares(b.weight)
    if b.delays:
        shares = [part * share for part, share in zip(DELAYING, shares, strict=True)]
    price = jnp.stack([share * one for share, one in zip(shares, each, strict=True)]).sum(0)
    # As long as the workload is hardly known, choices are nearly greedy.
    known = -jnp.expm1(-b.count.astype(jnp.float32) / (LEARNING * (len(s.speed) + 16)))
    return own_costs(b, s, objective, weight) + known * service * price


@broadcasts
def _chosen(
    network: PriceNetwork, variables: Universal, memory: Belief, observation: Observation
) -> tuple[Array, Belief]:
    """Return the action, and the belief before it is known."""
    o = observation
    weight = violation_weight(variables.objective, o.priority)
    b = belief.update(memory, o, weight)
    s = situation.situation(b, o)
    objective = variables.objective.crowded(1.0 - situation.load(b, s))
    cost = costs(network, variables.replace(objective=objective), b, s, weight)
    cost = jnp.where(jnp.isfinite(cost), cost, s.completion)
    cost = jnp.where(allowed(s.completion, belief.spread_of_sizes(b)), cost, jnp.inf)
    return cheapest(o, cost, -s.speed), b


def _act(
    network: PriceNetwork, variables: Universal, memory: Belief, observation: Observation, key: Key
) -> tuple[Array, Belief]:
    del key
    action, b = _chosen(network, variables, memory, observation)
    return action, belief.decided(belief.sized(b, observation.size), observation, action)


def exploring(
    network: PriceNetwork,
    variables: tuple[Universal, Array, Array],
    memory: tuple[Belief, Array],
    observation: Observation,
    key: Key,
) -> tuple[Array, tuple[Belief, Array]]:
    """Act, but at random now and then, in proportion to speed; the key is consumed.

    Args:
      network: of prices.
      variables: the scheduler's, the probability of a random choice, and a factor `[...]` by which the task
        is larger than the workload has it; if that is not 1, the choice is random too.
      memory: the belief, and whether the last choice `[...]` was the scheduler's own.
      observation: as the environment gives it.
      key: consumed.
    """
    own, probability, factor = variables
    chance_key, choice_key = jax.random.split(key)
    action, b = _chosen(network, own, memory[0], observation)
    drawn = sampled(observation.speed, choice_key, action.shape)
    explore = (jax.random.uniform(chance_key, action.shape, jnp.float32) < probability) | (factor != 1)
    action = jnp.where(explore, drawn, action)
    b = belief.decided(belief.sized(b, observation.size / factor), observation, action)
    return action, (b, ~explore)


def priced(network: PriceNetwork, variables: Universal) -> Scheduler:
    """Make the scheduler of a network and an objective."""
    return Scheduler("universal", variables, belief.start, partial(_act, network))


WEIGHTS = Path(__file__).with_name("universal.weights")


def check_features(whose: str, names: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless a network's features, by group, are those that networks are given today."""
    if {group: tuple(each) for group, each in names.items()} != dict(FEATURES):
        raise ValueError(f"{whose}: its network was given other features than this jaxlb has; train it again")


@functools.cache
def shipped(path: Path = WEIGHTS) -> tuple[PriceNetwork, Any]:
    """Read the network that comes with the package, or one written likewise; half the digits are stored."""
    about = weights.about(path)
    check_features(str(path), about["features"])
    network = prices(about["widths"])
    like = jax.eval_shape(lambda: untrained(network, jax.random.key(0)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float16), like)
    with jax.ensure_compile_time_eval():  # kept, so it must not belong to a trace that asks first
        return network, jax.tree.map(jnp.float32, weights.read(path, like))


def universal(objective: str | Weights | Objective = "completion") -> Scheduler:
    """Minimise what a task costs itself and others, by prices of backlog; trained for any system.

    It learns the workload while it runs, from what it observes: load, sizes, gaps, deadlines, speeds.
    Its user trains nothing.

    Args:
      objective: "completion", "slowdown", "violations", "imbalance", or weights of these: `jaxlb.Weights`, or
        an `Objective`.

    Raises:
      ValueError: an unknown objective.
    """
    objective = as_objective(objective)
    network, parameters = shipped()
    return priced(network, Universal(parameters, jax.tree.map(jnp.float32, objective)))
