"""From outcomes to figures: sums kept for each lane while tasks stream by, in constant memory.

Counts are integers, and sums are compensated, so they stay exact to float32 over any number of tasks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import computed, kahan_add, processor_index, variance
from jaxlb.types import Array, Outcome, Truth


class Counts(struct.PyTreeNode):
    """What one task adds to numbers of tasks, and, summed, what a lane has seen: int32, exact."""

    violation: Array  # [N]
    class_count: Array  # [C, N]
    class_violation: Array  # [C, N]
    agreement: Array  # [N] tasks whose completion was the smallest possible
    overflow: Array  # [P, N] tasks that found the queue's memory full


class Sums(struct.PyTreeNode):
    """The same of quantities: float32."""

    completion: Array  # [N] time
    slowdown: Array  # [N] completion / size
    reward: Array  # [N]
    imbalance: Array  # [N] time, standard deviation of the wait over processors after the assignment
    busy: Array  # [P, N] time that each processor worked until the next arrival
    elapsed: Array  # [N] time until the next arrival


class Totals(struct.PyTreeNode):
    """Running sums."""

    num_tasks: Array  # int32
    counts: Counts
    sums: Sums
    errors: Sums  # what rounding has taken from the sums


class Summary(struct.PyTreeNode):
    """Figures of each lane, averaged over its tasks."""

    num_tasks: Array  # int32, tasks counted in each lane
    mean_completion: Array  # [N] time
    mean_slowdown: Array  # [N] completion time / size
    sla_violation_rate: Array  # [N]
    class_count: Array  # [C, N] int32, tasks of each priority
    class_violations: Array  # [C, N] int32, SLA violations of each priority
    oracle_agreement: Array  # [N] share of tasks whose completion was the smallest possible
    mean_reward: Array  # [N]
    load_imbalance: Array  # [N] time, standard deviation of the wait over processors, after assignments
    utilisation: Array  # [P, N] share of time that each processor was busy
    elapsed: Array  # [N] time from the first counted arrival to the one after the last
    queue_overflows: Array  # [P, N] int32, tasks that found a queue's memory full: its length reads too short


def figures(
    truth: Truth,
    priority: Array,
    num_classes: int,
    outcome: Outcome,
    reward: Array,
    next_wait: Array,
    gap: Array,
    overflow: Array,
) -> tuple[Counts, Sums]:
    """What one task adds to the totals of its lane.

    Args:
      truth: task and system at the decision.
      priority: `[N]` int32.
      num_classes: C.
      outcome: of the assignment.
      reward: `[N]`.
      next_wait: `[P, N]` at the next arrival.
      gap: `[N]` time to the next arrival.
      overflow: `[P, N]` int32, whether the queue's memory was full.
    """
    chosen = processor_index(truth.wait) == outcome.action
    wait_after = truth.wait + jnp.where(chosen, outcome.service, 0.0)
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None]
    of_class = priority == classes
    counts = Counts(
        violation=outcome.violation,
        class_count=of_class,
        class_violation=of_class & outcome.violation,
        agreement=agreement(truth, outcome.completion),
        overflow=overflow,
    )
    sums = Sums(
        completion=outcome.completion,
        slowdown=outcome.completion / truth.size,
        reward=reward,
        imbalance=jnp.sqrt(variance(wait_after)),
        busy=wait_after - next_wait,
        elapsed=gap,
    )
    return jax.tree.map(lambda x: x.astype(jnp.int32), counts), sums


def agreement(truth: Truth, completion: Array) -> Array:
    """Whether a choice cost what the oracle's would have, `[N]` bool: rounding apart, ties agree."""
    best = computed(truth.wait + truth.size / truth.speed).min(0)
    return completion <= best * (1.0 + 1e-6)


def start(num_processors: int, num_classes: int, num_lanes: int) -> Totals:
    """Nothing counted yet."""
    rows = {"class_count": (num_classes,), "class_violation": (num_classes,)}
    rows |= {"busy": (num_processors,), "overflow": (num_processors,)}

    def zeros(kind: Any, dtype: Any) -> Any:
        names = kind.__dataclass_fields__
        return kind(**{name: jnp.zeros((*rows.get(name, ()), num_lanes), dtype) for name in names})

    sums, errors = zeros(Sums, jnp.float32), zeros(Sums, jnp.float32)
    return Totals(jnp.int32(0), zeros(Counts, jnp.int32), sums, errors)


def add(totals: Totals, counts: Counts, sums: Sums, counted: Array) -> Totals:
    """Add the figures of one task of every lane, if `counted` (a bool for all lanes) says so."""

    def add_one(total: Array, error: Array, x: Array) -> tuple[Array, Array]:
        return kahan_add(total, error, jnp.where(counted, x, 0.0))

    pairs = jax.tree.map(add_one, totals.sums, totals.errors, sums)
    sums, errors = jax.tree.transpose(jax.tree.structure(sums), jax.tree.structure((0, 0)), pairs)
    return Totals(
        num_tasks=totals.num_tasks + counted.astype(jnp.int32),
        counts=jax.tree.map(lambda total, x: total + jnp.where(counted, x, 0), totals.counts, counts),
        sums=sums,
        errors=errors,
    )


def summarise(totals: Totals) -> Summary:
    """Averages for each lane."""
    sums, counts = jax.tree.map(jnp.add, totals.sums, totals.errors), totals.counts
    number = jnp.maximum(totals.num_tasks, 1).astype(jnp.float32)
    return Summary(
        num_tasks=totals.num_tasks,
        mean_completion=sums.completion / number,
        mean_slowdown=sums.slowdown / number,
        sla_violation_rate=counts.violation.astype(jnp.float32) / number,
        class_count=counts.class_count,
        class_violations=counts.class_violation,
        oracle_agreement=counts.agreement.astype(jnp.float32) / number,
        mean_reward=sums.reward / number,
        load_imbalance=sums.imbalance / number,
        utilisation=sums.busy / jnp.maximum(sums.elapsed, 1e-30),
        elapsed=sums.elapsed,
        queue_overflows=counts.overflow,
    )
