"""From outcomes to figures: sums kept for each lane while tasks stream by, in constant memory.

All sums are compensated, so they stay exact to float32 over any number of tasks.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import compensated_add, processor_index
from jaxlb.types import Array, Outcome, Truth


class Figures(struct.PyTreeNode):
    """What one task adds, and, summed, what a lane has seen."""

    completion: Array  # [N] time
    slowdown: Array  # [N] completion / size
    violation: Array  # [N] tasks
    class_count: Array  # [C, N] tasks
    class_violation: Array  # [C, N] tasks
    agreement: Array  # [N] tasks whose completion was the smallest possible
    reward: Array  # [N]
    imbalance: Array  # [N] time, standard deviation of the wait over processors after the assignment
    overflow: Array  # [P, N] tasks that found the queue's memory full
    busy: Array  # [P, N] time that each processor worked until the next arrival
    elapsed: Array  # [N] time until the next arrival


class Totals(struct.PyTreeNode):
    """Running sums."""

    num_tasks: Array  # int32
    sums: Figures
    errors: Figures  # what rounding has taken from the sums


class Summary(struct.PyTreeNode):
    """Figures of each lane, averaged over its tasks."""

    num_tasks: Array  # int32, tasks counted in each lane
    mean_completion: Array  # [N] time
    mean_slowdown: Array  # [N] completion time / size
    sla_violation_rate: Array  # [N]
    class_count: Array  # [C, N] tasks of each priority
    class_violations: Array  # [C, N] SLA violations of each priority
    oracle_agreement: Array  # [N] share of tasks whose completion was the smallest possible
    mean_reward: Array  # [N]
    load_imbalance: Array  # [N] time, standard deviation of the wait over processors, after assignments
    utilisation: Array  # [P, N] share of time that each processor was busy
    elapsed: Array  # [N] time from the first counted arrival to the one after the last
    queue_overflows: Array  # [P, N] tasks that found the queue's memory full: its length then reads too short


def figures(
    truth: Truth,
    priority: Array,
    num_classes: int,
    outcome: Outcome,
    reward: Array,
    next_wait: Array,
    gap: Array,
    overflow: Array,
) -> Figures:
    """What one task adds to the sums of its lane.

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
    of_class = (priority == classes).astype(jnp.float32)
    violation = outcome.violation.astype(jnp.float32)
    return Figures(
        completion=outcome.completion,
        slowdown=outcome.completion / truth.size,
        violation=violation,
        class_count=of_class,
        class_violation=of_class * violation,
        agreement=agreement(truth, outcome.completion),
        reward=reward,
        imbalance=jnp.std(wait_after, axis=0),
        overflow=overflow.astype(jnp.float32),
        busy=wait_after - next_wait,
        elapsed=gap,
    )


def agreement(truth: Truth, completion: Array) -> Array:
    """Whether a choice cost what the oracle's would have, `[N]` 0 or 1: rounding apart, ties agree."""
    best = (truth.wait + truth.size / truth.speed).min(0)
    return (completion <= best * (1.0 + 1e-6)).astype(jnp.float32)


def start(num_processors: int, num_classes: int, num_lanes: int) -> Totals:
    """Nothing counted yet."""
    rows = {"class_count": num_classes, "class_violation": num_classes}
    rows |= {"busy": num_processors, "overflow": num_processors}

    def zeros() -> Figures:
        shapes = {name: (rows[name],) if name in rows else () for name in Figures.__dataclass_fields__}
        return Figures(**{name: jnp.zeros((*rows, num_lanes), jnp.float32) for name, rows in shapes.items()})

    return Totals(jnp.int32(0), zeros(), zeros())


def add(totals: Totals, step: Figures, counted: Array) -> Totals:
    """Add the figures of one task of every lane, if `counted` (a bool for all lanes) says so."""

    def add_one(total: Array, error: Array, x: Array) -> tuple[Array, Array]:
        return compensated_add(total, error, jnp.where(counted, x, 0.0))

    pairs = jax.tree.map(add_one, totals.sums, totals.errors, step)
    sums, errors = jax.tree.transpose(jax.tree.structure(step), jax.tree.structure((0, 0)), pairs)
    return Totals(totals.num_tasks + counted.astype(jnp.int32), sums, errors)


def summarise(totals: Totals) -> Summary:
    """Averages for each lane."""
    sums = jax.tree.map(jnp.add, totals.sums, totals.errors)
    count = jnp.maximum(totals.num_tasks, 1).astype(jnp.float32)
    return Summary(
        num_tasks=totals.num_tasks,
        mean_completion=sums.completion / count,
        mean_slowdown=sums.slowdown / count,
        sla_violation_rate=sums.violation / count,
        class_count=sums.class_count,
        class_violations=sums.class_violation,
        oracle_agreement=sums.agreement / count,
        mean_reward=sums.reward / count,
        load_imbalance=sums.imbalance / count,
        utilisation=sums.busy / jnp.maximum(sums.elapsed, 1e-30),
        elapsed=sums.elapsed,
        queue_overflows=sums.overflow,
    )
