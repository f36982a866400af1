"""Foreground-background: the tasks that have been served least share a processor."""

import jax
import jax.numpy as jnp

from jaxlb import numerics
from jaxlb.devices import differing
from jaxlb.stations.jobs import Jobs, present, total
from jaxlb.types import Array


def _number(served: Array) -> Array:
    """Return how many tasks of each processor are served, `[P, 1, ...]`; at least 1, to divide by."""
    return jnp.maximum(served.sum(1, keepdims=True, dtype=jnp.int32).astype(jnp.float32), 1.0)


def shares(jobs: Jobs, left: Array) -> tuple[Array, Array]:
    """Serve those that have had least, together, until they have had as much as the next."""
    held = left > 0
    had = jnp.where(held, jobs.size - left, jnp.inf)
    least = had.min(1, keepdims=True)
    # What has been served together is equal but for rounding, which is that of the largest; nearer ones would
    # never meet.
    largest = jnp.where(held, jobs.size, 0.0).max(1, keepdims=True)
    served = held & (had <= least + 1e-6 * largest)
    number = _number(served)
    others = jnp.where(held & ~served, had, jnp.inf).min(1)
    level = jnp.where(served, had, -jnp.inf).max(1)
    holds = jnp.where(jnp.isfinite(others), (others - level) * number[:, 0], jnp.inf)
    return jnp.where(served, 1.0 / number, 0.0), holds


def _given(jobs: Jobs, size: Array) -> Array:
    """Return what tasks still get until those that had least have had `size`."""
    return jnp.where(
        present(jobs), jnp.maximum(jnp.minimum(jobs.size, size) - (jobs.size - jobs.left), 0.0), 0.0
    )


def until(jobs: Jobs) -> Array:
    """Return until when tasks stay of which those are served that had least."""

    def one(work: Array, other: Jobs) -> tuple[Array, None]:
        return work + _given(other, jobs.size), None

    others = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0)[:, :, None], jobs)
    found, _ = jax.lax.scan(
        one, differing(jnp.zeros_like(jobs.left)), others, unroll=min(len(others.left), numerics.BLOCK)
    )
    return found


def response(jobs: Jobs, new: Jobs) -> Array:
    """Return the work `[P, ...]` that the processor does until a newcomer leaves."""
    return total(_given(jobs, new.size)) + new.left[:, 0]
