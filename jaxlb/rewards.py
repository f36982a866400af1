"""Rewards: what a decision is worth."""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, Protocol, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlb import checks
from jaxlb.numerics import at_processor, mean, variance_grown
from jaxlb.params import at_its_processor
from jaxlb.stations import growth, response
from jaxlb.types import Array, Departures, EnvParams, EnvState, Held, Lanes, Outcome, Static

WEIGHTS = ("completion_weight", "imbalance_weight", "sla_weight")


@dataclass_transform(frozen_default=True)
class Reward(abc.ABC):
    """What a decision is worth: a frozen dataclass without arrays, static on the environment.

    What derives from it is made one.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        """Make a frozen dataclass of it."""
        super().__init_subclass__(**settings)
        dataclasses.dataclass(frozen=True)(cls)

    counts_tasks: ClassVar[bool] = False
    """Whether it depends on how many tasks are in the system; then all of them are counted."""

    @abc.abstractmethod
    def __call__(
        self, env: Static, params: EnvParams, before: EnvState, after: EnvState, outcome: Outcome, gap: Array
    ) -> Array:
        """Return the reward `[...]` of an assignment.

        Args:
          env: static.
          params: of the environment.
          before: at the decision, with the task.
          after: the same once the task is assigned; no time has passed.
          outcome: of the task.
          gap: `[...]` time until the next decision.
        """
        ...


class Weighted(Reward):
    """Minus completion time to a power, imbalance and violation, each with its weight in the parameters.

    Where a task delays others that are there already, theirs count too: the sum over all decisions is what
    all tasks cost.

    The imbalance is the variance over processors of the backlog after the assignment.
    """

    counts_tasks = False

    def __call__(
        self, env: Static, params: EnvParams, before: EnvState, after: EnvState, outcome: Outcome, gap: Array
    ) -> Array:
        """Return the reward `[...]`, see `Reward`."""
        del gap
        task, backlog = before.task, env.station.view(before.system.station, params.speed).wait * params.speed
        assigned = outcome.action
        if outcome.lost is not None:  # by admission, to no processor
            assigned = jnp.minimum(assigned, env.num_processors - 1)
        size = at_its_processor(params, task, assigned).size
        imbalance = variance_grown(backlog, at_processor(backlog, assigned), size)
        if outcome.lost is not None:
            imbalance = jnp.where(outcome.lost, 0.0, imbalance)
        if env.station.settled:
            return weighted(params, task.priority, outcome.completion, outcome.violation, imbalance)
        # What the task costs, and those that are there already.
        without, with_task = (
            _of_all(params, env.station.remaining(state.system.station, params.speed))
            for state in (before, after)
        )
        return with_task - without - params.imbalance_weight * imbalance

    def surprise(
        self, env: Static, params: EnvParams, before: EnvState, after: EnvState, departures: Departures
    ) -> Array:
        """Return what changes of speeds, and losses, brought between two decisions, `[...]`.

        That is how much more or less than expected.

        Args:
          env: static.
          params: with the speeds that rewards reckon with.
          before: after an assignment.
          after: at the next one.
          departures: between the two.
        """
        expected, left = (
            _of_all(params, env.station.remaining(state.system.station, params.speed))
            for state in (before, after)
        )
        return _of_all(params, departures) + left - expected


class HoldingCost(Reward):
    """Minus the integral of the number of tasks in the system from this decision to the next."""

    counts_tasks = True

    def __call__(
        self, env: Static, params: EnvParams, before: EnvState, after: EnvState, outcome: Outcome, gap: Array
    ) -> Array:
        """Return the reward `[...]`, see `Reward`."""
        del before, outcome
        return -env.station.holding_cost(after.system.station, params.speed, gap)


REWARDS: dict[str, Reward] = {"weighted": Weighted(), "holding-cost": HoldingCost()}
"""By name, for `make`."""


def add(name: str, made: Reward) -> None:
    """Register a name with `reward` for one of your own; see `jaxlb.register`."""
    checks.free("reward", name, REWARDS, made)
    REWARDS[name] = reward(made)


def reward(given: Any) -> Reward:
    """Return a reward as it is, or the one of that name.

    Raises:
      ValueError: neither a name nor a reward.
    """
    if isinstance(given, str):
        checks.known("reward", given, REWARDS)
        return REWARDS[given]
    if not isinstance(given, Reward):
        raise ValueError(
            f"reward = {checks.shown(given)}: must be {' or '.join(map(repr, REWARDS))}, or derive "
            "from jaxlb.rewards.Reward"
        )
    return given


def described(given: Reward) -> dict[str, str] | None:
    """Return the name of a reward, as settings have it; None for one that no name makes."""
    return next(({"reward": name} for name, one in REWARDS.items() if one == given), None)


class HasWeights(Protocol):
    """Where the weights are found by name: `EnvParams` or `Weights`."""

    completion_weight: Any
    completion_exponent: Any
    imbalance_weight: Any
    sla_weight: Any


class Weights(struct.PyTreeNode):
    """Weights of the reward as an objective of their own, free of units: times in mean services.

    Numbers, or `[N]`, one for each lane; `sla_weight` a number, or `[C]` or `[C, N]` by priority class.
    The square root of completion times is what heavy tails need: it weighs many short tasks against a long
    one.

    Attributes:
      completion_weight: of the completion time to the power of `completion_exponent`.
      completion_exponent: of completion times.
      imbalance_weight: of the variance over processors of the backlog, in mean sizes squared.
      sla_weight: of a violated deadline.
    """

    completion_weight: Any = 0.5
    completion_exponent: Any = 0.5
    imbalance_weight: Any = 0.0
    sla_weight: Any = 0.5

    def put_into(self, params: EnvParams) -> EnvParams:
        """Return parameters whose reward, in the environment's own units, is this objective."""
        size = params.size.mean()
        unit = size / params.speed.mean(0)
        return params.replace(
            completion_weight=self.completion_weight / unit**self.completion_exponent,
            completion_exponent=self.completion_exponent,
            imbalance_weight=self.imbalance_weight / size**2,
            sla_weight=self.sla_weight,
        )


def check(weights: HasWeights, num_classes: int, lanes: Lanes | None = None) -> None:
    """Raise ValueError if a weight is out of bounds or has the wrong shape; values under a trace pass.

    Args:
      weights: of its parts.
      num_classes: C.
      lanes: the lanes that there are; None: not known yet.
    """
    for name in (*WEIGHTS, "completion_exponent"):
        if not hasattr(weights, name):
            raise ValueError(f"weights = {checks.shown(weights)}: must be jaxlb.Weights")
    shape = np.shape(weights.sla_weight)
    if shape and shape[0] != num_classes:
        raise ValueError(
            f"sla_weight has shape {shape}: must be one number, or ({num_classes},), "
            "one for each priority class"
        )
    for name in WEIGHTS:
        checks.leaf(name, getattr(weights, name), low=0)
    if weights.completion_exponent is not None:
        checks.leaf("completion_exponent", weights.completion_exponent, above=0)
    others = ("completion_weight", "imbalance_weight", "completion_exponent")
    axes = {name: np.shape(getattr(weights, name)) for name in others}
    checks.lane_axes(axes | {"sla_weight": shape[1:]}, lanes)


def weighted(
    weights: HasWeights, priority: Array, completion: Array, violation: Array, imbalance: Array
) -> Array:
    """Return the reward of an assignment.

    Args:
      weights: of its parts.
      priority: of the task.
      completion: time.
      violation: bool.
      imbalance: work squared, variance over processors of the backlog after the assignment.
    """
    exponent = weights.completion_exponent
    cost = completion if exponent is None else completion**exponent
    sla_weight = jnp.asarray(weights.sla_weight)
    if sla_weight.ndim == 1:
        sla_weight = sla_weight.reshape(-1, *(1,) * priority.ndim)
    if sla_weight.ndim:
        sla_weight = at_processor(sla_weight, priority)
    penalty = sla_weight * violation.astype(jnp.float32)
    return -weights.completion_weight * cost - weights.imbalance_weight * imbalance - penalty


def _of_all(params: EnvParams, departures: Departures) -> Array:
    """Return the sum of rewards `[...]` of tasks that leave, without imbalance.

    One that was not served costs its violation and `loss_weight`.
    """
    task, outcome = departures.task, departures.outcome
    of_task = functools.partial(weighted, params, imbalance=jnp.zeros_like(task.size[0]))
    completion, lost = outcome.completion, outcome.lost
    if lost is not None:
        completion = jnp.where(lost, 0.0, completion)
    each = jax.vmap(of_task)(task.priority, completion, outcome.violation)
    if lost is not None:
        each -= jnp.where(lost, params.loss_weight, 0.0)
    return jnp.where(departures.known, each, 0.0).sum(0)


def of_each_choice(
    weights: HasWeights,
    wait: Array,
    size: Array,
    priority: Array,
    deadline: Array,
    speed: Array,
    completion: Array | None = None,
    held: Held | None = None,
) -> Array:
    """Return each processor's reward for the task, `[P, ...]`, if these waits and this size are true.

    Args:
      weights: of its parts.
      wait: `[P, ...]`.
      size: `[...]`, or `[P, ...]` if it is another at each.
      priority: of the task.
      deadline: of the task.
      speed: `[P, ...]`.
      completion: `[P, ...]`; None: as first come, first served.
      held: the tasks that are there, what becomes of which counts too; None: that is no other.
    """
    completion = response(wait, size, speed) if completion is None else completion
    backlog = wait * speed
    # Variance of P numbers of which one grows by `size`: from the sums, for all choices at once.
    square = mean(backlog**2) + size * (2.0 * backlog + size) / wait.shape[0]
    imbalance = jnp.maximum(square - (mean(backlog) + size / wait.shape[0]) ** 2, 0.0)
    own = weighted(weights, priority, completion, completion > deadline, imbalance)
    return own if held is None else own + _of_others(weights, held)


def _of_others(weights: HasWeights, held: Held) -> Array:
    """Return what rewards of the tasks that are there grow by at each choice, `[P, ...]`."""

    def reward(priority: Array, deadline: Array, completion: Array) -> Array:
        nothing = jnp.zeros_like(completion)
        return weighted(weights, priority, completion, completion > deadline, nothing)

    each = jax.vmap(jax.vmap(reward))
    return growth(held, functools.partial(each, held.priority, held.deadline))


def alone(weights: HasWeights, size: Array, speed: Array) -> Array:
    """Return the reward of a task `[...]` alone on a processor of mean speed, in time, without imbalance."""
    nothing = jnp.zeros_like(size)
    return weighted(weights, nothing.astype(jnp.int32), size / speed.mean(0), nothing > 0, nothing)
