"""Outcomes that become known when tasks leave: any number in a step, in any order."""

import jax
import jax.numpy as jnp

from jaxlb.numerics import running, stored
from jaxlb.types import Array, Departures, Outcome, Task


def with_refused(departures: Departures | None, task: Task, number: Array, outcome: Outcome) -> Departures:
    """Return departures with one more place: for the task that was assigned before them, if it was refused.

    Args:
      departures: leaves `[M, ...]`.
      task: `[...]`.
      number: of its assignment.
      outcome: of that.
    """
    assert departures is not None and outcome.lost is not None
    if departures.outcome.lost is None:
        none = departures.outcome.replace(lost=jnp.zeros_like(departures.known))
        departures = departures.replace(outcome=none)
    own = Departures(outcome.lost, number, task.replace(gap=jnp.zeros_like(task.gap)), outcome)
    return jax.tree.map(lambda leaf, one: jnp.concatenate([leaf, one[None]]), departures, own)


def with_lost(departures: Departures, lost: Array, age: Array) -> Departures:
    """Let tasks be among those that have left, unserved; what else follows is for `jaxlb.cycle` to say.

    Args:
      departures: leaves `[M, ...]`.
      lost: bool of the same shape, or `[P, K, ...]`.
      age: `[P, K, ...]` time, which is their completion.
    """
    outcome, lost = departures.outcome, lost.reshape(departures.known.shape)
    age = age.reshape(lost.shape)
    before = outcome.lost if outcome.lost is not None else jnp.zeros_like(lost)
    outcome = outcome.replace(completion=jnp.where(lost, age, outcome.completion), lost=before | lost)
    return departures.replace(known=departures.known | lost, outcome=outcome)


def append(recent: Array, filled: Array, departures: Departures) -> tuple[Array, Array]:
    """Write completion times of tasks that were served behind those that are there.

    Args:
      recent: `[rows, N]`; without rows, nothing is kept.
      filled: `[N]` int32, rows in use.
      departures: leaves `[M, N]`.
    """
    rows = len(recent)
    if not rows:
        return recent, filled
    known, lost = departures.known, departures.outcome.lost
    known = known if lost is None else known & ~lost
    last = stored(running(jnp.add, known.astype(jnp.float32)[None])[0]).astype(jnp.int32) + filled
    row = jnp.where(known, last - 1, rows)
    lane = jnp.broadcast_to(jnp.arange(row.shape[1], dtype=jnp.int32), row.shape)
    return recent.at[row, lane].set(departures.outcome.completion, mode="drop"), last[-1]


Settled = tuple[Array, Outcome]
"""Which outcomes of T tasks are known, bool `[T, ...]`, and what they are."""


def none_yet(departures: Departures | None, shape: tuple[int, ...]) -> Settled | None:
    """Return room for outcomes of tasks `[T, ...]`; None where assignments tell them."""
    if departures is None:
        return None
    outcome = jax.tree.map(lambda leaf: jnp.zeros(shape, leaf.dtype), departures.outcome)
    return jnp.zeros(shape, bool), outcome


def settle(settled: Settled | None, departures: Departures | None) -> Settled | None:
    """Put the outcomes of tasks that have left where those of their assignments belong."""
    if settled is None or departures is None:
        return settled
    row = jnp.where(departures.known, departures.number, len(settled[0]))
    index = (row, *jnp.indices(row.shape, dtype=jnp.int32)[1:])
    new = departures.known, departures.outcome
    return jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), settled, new)
