"""The optimal size-aware rule for two processors, solved when a run starts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlb.protocols import SizeLaw
from jaxlb.scheduling.base import cheapest, with_memory
from jaxlb.scheduling.size_based import quadrature, speeds
from jaxlb.stations import response
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

_SIZES, _GAPS = 96, 64


class Values(NamedTuple):
    """A relative value function on a grid of two waits, and the mean response it promises."""

    table: Array  # [G, G] time: cost to come, tasks not yet seen, relative to an empty system
    first: Array  # time, width of the grid's first interval
    growth: Array  # each interval is wider than the one before by this factor
    mean_response: Array  # time


def _knots(index: Array, first: Array, growth: Array) -> Array:
    return first * jnp.expm1(index.astype(jnp.float32) * jnp.log(growth)) / (growth - 1.0)


def _place(wait: Array, first: Array, growth: Array, count: int) -> tuple[Array, Array]:
    """Place a wait on the grid: its interval `[...]` int32, and how far along it; beyond the end, above 1."""
    scaled = jnp.log1p(wait * (growth - 1.0) / first) / jnp.log(growth)
    index = jnp.clip(scaled.astype(jnp.int32), 0, count - 2)
    left = _knots(index, first, growth)
    return index, (wait - left) / (_knots(index + 1, first, growth) - left)


def interpolate(values: Values, wait: Array) -> Array:
    """Interpolate the table between its knots, bilinearly; linearly on beyond its end.

    Args:
      values: solved.
      wait: `[2, ...]` time.

    Returns:
      `[...]` time.
    """
    index, along = _place(wait, values.first, values.growth, values.table.shape[0])
    (row, column), (down, right) = index, along
    low, high = (
        values.table[row, column + step] * (1.0 - down) + values.table[row + 1, column + step] * down
        for step in (0, 1)
    )
    return low * (1.0 - right) + high * right


def _condensed(law: SizeLaw, count: int) -> tuple[Array, Array]:
    """Condense a law to `count` sizes with their probabilities, mean kept, fine in body and tail."""
    size, probability = quadrature(law)
    survival = jnp.cumsum(probability[::-1])[::-1] - 0.5 * probability
    depth = 0.5 * (1.0 - survival) + 0.5 * jnp.log(survival) / jnp.log(survival[-1])
    bins = jnp.clip((depth * float(count)).astype(jnp.int32), 0, count - 1)
    mass = jax.ops.segment_sum(probability, bins, count)
    work = jax.ops.segment_sum(probability * size, bins, count)
    return work / jnp.maximum(mass, 1e-30), mass


def _growth(first: Array, last: Array, grid: int) -> Array:
    """Find, by bisection, the factor with which intervals from `first` on reach `last` at the grid's end."""
    low, high = jnp.float32(1e-4), jnp.float32(2.0)
    for _ in range(30):
        middle = 0.5 * (low + high)
        short = first * jnp.expm1(middle * (grid - 1)) / jnp.expm1(middle) < last
        low, high = jnp.where(short, middle, low), jnp.where(short, high, middle)
    return jnp.exp(high)


def solve(params: EnvParams, grid: int = 160) -> Values:
    """Iterate relative values for two processors, Poisson arrivals, mean response as the cost per task.

    Before an arrival with waits w, and with X the size to come and s_i the speeds,
    v(w) = E min_i (w_i + X / s_i + h(w + e_i X / s_i)) - mean response, h(w) = E v((w - gap)+); after
    Hyytia and Righter (2024, arXiv 2402.08142). Linear interpolation on a grid that widens geometrically;
    sizes and gaps by quadrature. First to the end on a coarse grid, then from there on the fine one.

    Args:
      params: of the environment: `speed` `[2, ...]` (of the first lane), `load` (capped at 0.99) and `size`.
      grid: number of waits of each processor in the table.
    """
    speed, load = speeds(params), jnp.minimum(params.load, 0.99)
    rate = load * speed.sum() / params.size.mean()
    size, mass = _condensed(params.size, _SIZES)
    # Far beyond the waits that occur: thirty mean residual works, slowed down as queues are, and the largest
    # task twice.
    residual = (size**2 * mass).sum() / (2.0 * params.size.mean())
    last = jnp.maximum(30.0 * residual / (1.0 - load) / speed.sum(), 2.0 * size[-1] / speed.min())
    # Equally likely gaps, each the mean of its kind: that of -log(u) for u in (a, b) is
    # 1 + (a log a - b log b) / (b - a).
    edges = jnp.linspace(0.0, 1.0, _GAPS + 1, dtype=jnp.float32)
    integral = edges * jnp.log(jnp.maximum(edges, 1e-30))
    gap = (1.0 + (integral[:-1] - integral[1:]) * _GAPS) / rate

    def relax(guess: Callable[[Array], Array], grid: int, rounds: int) -> Values:
        narrowest = 3.0 * params.size.mean() / speed.max() / grid
        growth = _growth(narrowest, last, grid)
        knots = _knots(jnp.arange(grid, dtype=jnp.int32), narrowest, growth)

        def moved(values: Array, wait: Array) -> Array:
            """Return values at other waits of the first processor, `[G, G]`."""
            index, along = _place(wait, narrowest, growth, grid)
            return values[index] * (1.0 - along)[:, None] + values[index + 1] * along[:, None]

        def after_gap(values: Array) -> Array:
            def add(total: Array, gap: Array) -> tuple[Array, None]:
                left = jnp.maximum(knots - gap, 0.0)
                return total + moved(moved(values, left).T, left).T, None

            return jax.lax.scan(add, jnp.zeros_like(values), gap)[0] / _GAPS

        def before_arrival(h: Array) -> Array:
            def add(total: Array, task: tuple[Array, Array]) -> tuple[Array, None]:
                size, mass = task
                done = knots + size / speed[0], knots + size / speed[1]
                to_first = done[0][:, None] + moved(h, done[0])
                to_second = done[1][None, :] + moved(h.T, done[1]).T
                return total + mass * jnp.minimum(to_first, to_second), None

            return jax.lax.scan(add, jnp.zeros_like(h), (size, mass))[0]

        def improve(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            values, response, _, round_ = carry
            values = before_arrival(after_gap(values))
            return values - values[0, 0], values[0, 0], jnp.abs(values[0, 0] - response), round_ + 1

        def unfinished(carry: tuple[Array, ...]) -> Array:
            _, response, change, round_ = carry
            return (change > 1e-6 * response) & (round_ < rounds)

        begin = guess(jnp.stack(jnp.meshgrid(knots, knots, indexing="ij")))
        carry = (begin - begin[0, 0], jnp.float32(0.0), jnp.float32(jnp.inf), jnp.int32(0))
        values, response, _, _ = jax.lax.while_loop(unfinished, improve, carry)
        return Values(after_gap(values), narrowest, growth, response)

    # The value of a Bernoulli split in proportion to speed.
    weight = rate * speed / speed.sum() / (2.0 * (1.0 - load))
    coarse = relax(lambda wait: weight[0] * wait[0] ** 2 + weight[1] * wait[1] ** 2, grid // 3, 5000)
    return relax(lambda wait: interpolate(coarse, wait), grid, 200)


def costs(values: Values, wait: Array, size: Array, speed: Array) -> Array:
    """Return what a task costs at either processor, itself and later ones: `[2, ...]` time.

    Args:
      values: solved.
      wait: `[2, ...]` time.
      size: `[...]` work.
      speed: `[2, ...]` work per time.
    """
    completion = response(wait, size, speed)
    return jnp.stack(
        [
            completion[0] + interpolate(values, jnp.stack([completion[0], wait[1]])),
            completion[1] + interpolate(values, jnp.stack([wait[0], completion[1]])),
        ]
    )


def _solved(env: Static, params: EnvParams, lanes: Lanes) -> Values:
    del env, lanes
    if params.speed.shape[0] != 2:
        raise ValueError(f"num_processors = {params.speed.shape[0]}: must be 2 for scheduler 'optimal'")
    return solve(params)


def _optimal(values: Values, observation: Observation, key: Key) -> tuple[Array, Values]:
    del key
    cost = costs(values, observation.wait, observation.size, observation.speed)
    return cheapest(observation, cost, -observation.speed), values


def optimal() -> Scheduler:
    """Minimise the mean response of two processors under Poisson arrivals, by value iteration.

    Takes some seconds when a run starts; ties go to the fastest. Optimal where sizes and waits are visible,
    fresh and exact, and gaps and sizes independent; and for the mean response, not for deadlines.
    """
    return with_memory("optimal", _solved, _optimal)
