"""From outcomes to figures: sums kept for each lane while tasks stream by, in constant memory.

Counts are integers, and sums are compensated, so they stay exact to float32 over any number of tasks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb.numerics import (
    at_processor,
    broadcasts,
    kahan_add,
    least,
    processor_index,
    put_at,
    stored,
    variance,
)
from jaxlb.stations import View
from jaxlb.types import Array, Outcome, Task


class Counts(struct.PyTreeNode):
    """What one task adds to numbers of tasks, and, summed, what a lane has seen: int32, exact."""

    violation: Array  # [N]
    class_count: Array  # [C, N]
    class_violation: Array  # [C, N]
    agreement: Array  # [N] tasks whose completion was the smallest possible


class Sums(struct.PyTreeNode):
    """The same of quantities: float32."""

    completion: Array  # [N] time
    slowdown: Array  # [N] completion / size
    reward: Array  # [N]
    imbalance: Array  # [N] time, standard deviation of the wait over processors after the assignment
    elapsed: Array  # [N] time until the next arrival


class Totals(struct.PyTreeNode):
    """Running sums, and what the system was like when they began."""

    num_tasks: Array  # int32
    counts: Counts
    sums: Sums
    errors: Sums  # what rounding has taken from the sums
    service: Array  # [P, N] time, given to each processor
    service_error: Array  # [P, N]
    wait: Array  # [P, N] at the start
    overflow: Array  # [P, N] at the start


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
    wait_growth: Array  # [P, N] time, wait after the last counted task less that before the first
    queue_overflows: Array  # [P, N] int32, tasks that found a queue's memory full: its length reads too short


def figures(
    found: View, response: Array, task: Task, num_classes: int, outcome: Outcome, reward: Array, gap: Array
) -> tuple[Counts, Sums]:
    """What one task adds to the totals of its lane.

    Args:
      found: the station at the decision.
      response: `[P, N]` completion time that each processor would have brought.
      task: `[N]`.
      num_classes: C.
      outcome: of the assignment.
      reward: `[N]`.
      gap: `[N]` time to the next arrival.
    """
    chosen = processor_index(found.wait) == outcome.action
    wait_after = found.wait + jnp.where(chosen, outcome.service, 0.0)
    of_class = task.priority == jnp.arange(num_classes, dtype=jnp.int32)[:, None]
    counts = Counts(
        violation=outcome.violation,
        class_count=of_class,
        class_violation=of_class & outcome.violation,
        agreement=agreement(response, outcome.completion),
    )
    sums = Sums(
        completion=outcome.completion,
        slowdown=outcome.completion / task.size,
        reward=reward,
        imbalance=jnp.sqrt(variance(wait_after)),
        elapsed=gap,
    )
    return jax.tree.map(lambda x: x.astype(jnp.int32), counts), sums


def agreement(response: Array, completion: Array) -> Array:
    """Whether a choice cost what the oracle's would have, `[N]` bool: rounding apart, ties agree."""
    return completion <= least(response) * (1.0 + 1e-6)


@broadcasts
def start(found: View, num_classes: int) -> Totals:
    """Nothing counted yet, the station being as `found`."""
    lanes = found.wait.shape[1:]
    rows = {"class_count": (num_classes,), "class_violation": (num_classes,)}

    def zeros(kind: Any, dtype: Any) -> Any:
        names = kind.__dataclass_fields__
        return kind(**{name: jnp.zeros((*rows.get(name, ()), *lanes), dtype) for name in names})

    return Totals(
        num_tasks=jnp.int32(0),
        counts=zeros(Counts, jnp.int32),
        sums=zeros(Sums, jnp.float32),
        errors=zeros(Sums, jnp.float32),
        service=jnp.zeros_like(found.wait),
        service_error=jnp.zeros_like(found.wait),
        wait=found.wait,
        overflow=found.overflow,
    )


def add(totals: Totals, counts: Counts, sums: Sums, moved: Outcome) -> Totals:
    """Add the figures of one task of every lane; `moved` is what became of it in the system."""
    pairs = jax.tree.map(kahan_add, totals.sums, totals.errors, sums)
    sums, errors = jax.tree.transpose(jax.tree.structure(sums), jax.tree.structure((0, 0)), pairs)
    service, service_error = kahan_add(
        at_processor(totals.service, moved.action),
        at_processor(totals.service_error, moved.action),
        moved.service,
    )
    return totals.replace(
        num_tasks=totals.num_tasks + 1,
        counts=jax.tree.map(jnp.add, totals.counts, counts),
        sums=sums,
        errors=errors,
        service=put_at(totals.service, stored(service), moved.action),
        service_error=put_at(totals.service_error, stored(service_error), moved.action),
    )


@broadcasts
def summarise(totals: Totals, found: View) -> Summary:
    """Averages for each lane, the station being as `found` after the last task counted."""
    sums, counts = jax.tree.map(jnp.add, totals.sums, totals.errors), totals.counts
    number = jnp.maximum(totals.num_tasks, 1).astype(jnp.float32)
    # No work is lost: what was given to a processor it has done, or has still to do.
    busy = totals.service + (totals.service_error + (totals.wait - found.wait))
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
        utilisation=busy / jnp.maximum(sums.elapsed, 1e-30),
        elapsed=sums.elapsed,
        wait_growth=found.wait - totals.wait,
        queue_overflows=found.overflow - totals.overflow,
    )
