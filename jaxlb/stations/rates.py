"""Tasks that are served at rates which hold until one leaves, or for a time: a turn for each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlb.devices import differing
from jaxlb.stations.jobs import LEAST, Jobs, insert, places
from jaxlb.types import Array

Rates = Callable[[Jobs, Array], tuple[Array, Array]]
"""(jobs, work left) -> shares of the speed `[P, K, ...]`, and for how much of the processor's work `[P, ...]`
they hold if none leaves, which is above 0. P may be 1: processors are asked for one by one, too."""


def _by_turns(rates: Rates, jobs: Jobs, done: Array) -> tuple[Array, Array]:
    """Serve at rates that hold until a task leaves, or for as much work as they say, a turn each.

    Args:
      rates: of the discipline.
      jobs: tasks, in any places.
      done: work that each processor does, `[P, 1, ...]`.

    Returns:
      Work left, and work that the processor has done when each task leaves.
    """

    def turn(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        left, departure, elapsed = carry
        share, holds = rates(jobs, left)
        served = share > 0
        until = jnp.where(served, left / jnp.where(served, share, 1.0), jnp.inf)
        step = jnp.minimum(until.min(1), holds)
        limit = jnp.maximum(done - elapsed, 0.0)
        within = step <= limit
        step = jnp.where(within, step, limit)
        leaves = within[:, None] & (until <= step[:, None]) & served
        rest = jnp.maximum(left - share * step[:, None], LEAST)
        new = jnp.where(leaves, 0.0, jnp.where(left > 0, rest, 0.0))
        elapsed = jnp.where(within, elapsed + step, done)
        departure = jnp.where(leaves, elapsed[:, None], departure)
        return new, departure, elapsed

    def going_on(carry: tuple[Array, ...]) -> Array:
        left, _, elapsed = carry
        return ((elapsed < done) & (left > 0).any(1)).any()

    done = jnp.broadcast_to(done[:, 0], jobs.left[:, 0].shape)
    start = jobs.left, jnp.zeros_like(jobs.left), jnp.zeros_like(done)
    left, departure, _ = jax.lax.while_loop(going_on, turn, differing(start))
    return left, departure


def until(rates: Rates, jobs: Jobs) -> Array:
    """Return until when tasks stay."""
    return _by_turns(rates, jobs, jnp.full_like(jobs.left[:, :1], jnp.inf))[1]


def left(rates: Rates, jobs: Jobs, done: Array) -> Array:
    """Return what tasks have left."""
    return _by_turns(rates, jobs, done)[0]


def response(rates: Rates, after: Callable[[Jobs, Jobs], Array], jobs: Jobs, new: Jobs) -> Array:
    """Return until when a newcomer would stay."""
    before = ~after(jobs, new)
    ends = until(rates, insert(jobs, new, before))
    place = before.sum(1, keepdims=True, dtype=jnp.int32) - 1
    return jnp.where(places(jobs) == place, ends, 0.0).sum(1)
