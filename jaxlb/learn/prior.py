"""Systems drawn at random, a different one in each lane: what a scheduler for any system is trained on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlb import checks
from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.scheduling.objective import Objective
from jaxlb.types import Array, EnvParams, Key
from jaxlb.workload import arrivals, sizes
from jaxlb.workload.mixed import ArrivalsByLane, SizesByLane

_SIZE_SHARES = (0.18, 0.07, 0.2, 0.33, 0.08, 0.09, 0.05)
_ARRIVAL_SHARES = (0.55, 0.1, 0.12, 0.08, 0.08, 0.07)
_CLASSES = 3


class Prior(struct.PyTreeNode):
    """Of systems of P processors. Times and sizes are in mean services and mean sizes.

    Attributes:
      num_lanes: N, drawn at once.
      least_load: of the system.
      most_load: of the system.
      speed_ratio: between the fastest and the slowest kind of processor, at most.
      tail_index: of Pareto sizes, at least.
      longest_interval: between two measurements, where they are not fresh.
      stale: whether figures may be old, and noisy.
      wrong_speeds: share of the lanes in which nominal speeds are wrong.
    """

    num_lanes: int = struct.field(pytree_node=False, default=128)
    least_load: Any = 0.2
    most_load: Any = 0.98
    speed_ratio: Any = 30.0
    tail_index: Any = 1.05
    longest_interval: Any = 25.0
    wrong_speeds: Any = 0.1
    stale: bool = struct.field(pytree_node=False, default=False)

    def check(self) -> None:
        """Raise ValueError if a bound is out of bounds."""
        checks.at_least("num_lanes", self.num_lanes, 1)
        checks.leaf("least_load", self.least_load, above=0, below=1)
        checks.leaf("most_load", self.most_load, above=0, below=1)
        if not checks.traced((self.least_load, self.most_load)) and self.least_load > self.most_load:
            raise ValueError(f"least_load = {self.least_load}: must be at most most_load, {self.most_load}")
        checks.leaf("speed_ratio", self.speed_ratio, low=2)
        checks.leaf("tail_index", self.tail_index, above=1, high=3)
        checks.leaf("longest_interval", self.longest_interval, low=0.3)
        checks.leaf("wrong_speeds", self.wrong_speeds, low=0, high=1)

    def draw(self, num_processors: int, key: Key) -> tuple[EnvParams, Objective]:
        """Draw a system and an objective for each lane; the key is consumed."""
        draw = _Draw(key, self.num_lanes)
        speed = _speeds(draw, num_processors, self.speed_ratio)
        error = jnp.exp(0.5 * jnp.clip(draw.normal(num_processors), -2.0, 2.0))
        true = jnp.where(draw.uniform() < self.wrong_speeds, speed * error, speed)
        classes = _classes(draw)
        more: dict[str, Array] = {}
        if self.stale:
            fresh = draw.uniform() < 0.15
            more["measure_interval"] = jnp.where(fresh, 1e-3, draw.geometric(0.3, self.longest_interval))
            more["measure_noise"] = jnp.where(draw.uniform() < 0.5, 0.0, draw.uniform(0.0, 0.8))
        params = EnvParams(
            speed=true,
            nominal_speed=speed,
            arrival=_arrivals(draw),
            size=_sizes(draw, self.tail_index),
            # Evenly in the square root of what is left: queues are long where little is.
            load=self.least_load + (self.most_load - self.least_load) * draw.uniform() ** 0.6,
            **classes,
            **more,
        )
        return params, _objective(draw)


class _Draw:
    """Draws for every lane, each with a key of its own."""

    def __init__(self, key: Key, num_lanes: int):
        self._key, self._lanes = key, num_lanes

    def key(self) -> Key:
        self._key, key = jax.random.split(self._key)
        return key

    def uniform(self, low: Any = 0.0, high: Any = 1.0, rows: int | None = None) -> Array:
        shape = (self._lanes,) if rows is None else (rows, self._lanes)
        return low + (high - low) * jax.random.uniform(self.key(), shape, jnp.float32)

    def geometric(self, low: Any, high: Any, rows: int | None = None) -> Array:
        return jnp.exp(self.uniform(jnp.log(low), jnp.log(high), rows))

    def normal(self, rows: int) -> Array:
        return jax.random.normal(self.key(), (rows, self._lanes), jnp.float32)

    def kind(self, shares: tuple[float, ...]) -> Array:
        below = jnp.cumsum(jnp.asarray(shares, jnp.float32))[:-1, None]
        return (self.uniform() * sum(shares) >= below).sum(0, dtype=jnp.int32)

    def simplex(self, rows: int) -> Array:
        exponential = -jnp.log(self.uniform(1e-6, 1.0, rows))
        return exponential / exponential.sum(0)


def _speeds(draw: _Draw, num_processors: int, ratio: Any) -> Array:
    """Draw equal speeds, two kinds, or lognormal ones, of mean 1."""
    kind, spread = draw.uniform(), draw.uniform(0.0, jnp.log(ratio) / 2.6)
    lognormal = jnp.exp(spread * jnp.clip(draw.normal(num_processors), -2.0, 2.0))
    fast = draw.uniform(rows=num_processors) < draw.uniform(0.05, 0.7)
    two = jnp.where(fast, draw.geometric(2.0, ratio), 1.0)
    speed = jnp.where(kind < 0.15, 1.0, jnp.where(kind < 0.35, two, lognormal))
    return speed / speed.mean(0)


def _sizes(draw: _Draw, tail_index: Any) -> SizesByLane:
    laws = (
        sizes.Exponential(1.0),
        sizes.Deterministic(1.0),
        sizes.LogNormal(1.0, draw.geometric(0.3, 60.0)),
        sizes.BoundedPareto(1.0, draw.geometric(30.0, 2e4), draw.uniform(tail_index, 3.0)),
        sizes.Hyperexponential(1.0, draw.geometric(1.5, 30.0)),
        sizes.Bimodal(1.0, draw.geometric(3.0, 300.0), draw.geometric(0.002, 0.3)),
        sizes.Uniform(0.2, 1.8),
    )
    return SizesByLane(laws, draw.kind(_SIZE_SHARES))


def _arrivals(draw: _Draw) -> ArrivalsByLane:
    processes = (
        arrivals.Poisson(),
        arrivals.Renewal(draw.geometric(0.25, 50.0), 4),
        arrivals.Bursty(draw.geometric(2.0, 30.0), draw.geometric(0.02, 0.5), draw.geometric(20.0, 3000.0)),
        arrivals.Batch(draw.uniform(1.0, 6.0)),
        arrivals.Drift(draw.uniform(0.0, 0.8), draw.geometric(50.0, 2000.0)),
        arrivals.Shift(
            draw.geometric(100.0, 1000.0),
            draw.uniform(1.1, 1.6),
            draw.uniform(0.0, 0.2),
            draw.uniform(2.0, 6.0),
        ),
    )
    return ArrivalsByLane(processes, draw.kind(_ARRIVAL_SHARES))


def _classes(draw: _Draw) -> dict[str, Array]:
    """Draw priority classes and deadlines: slack in proportion to size, constants, or both."""
    slack = draw.geometric(0.8, 8.0) * draw.geometric(0.6, 1.6, _CLASSES)
    slack = jnp.where(draw.uniform() < 0.2, 0.0, slack)
    constant = jnp.where((draw.uniform() < 0.45) & (slack[0] > 0), 0.0, draw.geometric(0.3, 12.0))
    return {
        "class_probability": draw.simplex(_CLASSES),
        "class_slack": slack,
        "deadline_constant": constant,
    }


def _objective(draw: _Draw) -> Objective:
    kind, mix = draw.uniform(), draw.simplex(3)
    of_kind = ((0.0, 0.4), (0.4, 0.5), (0.5, 0.87))
    completion, slowdown, violations = (
        jnp.where(kind < 0.87, ((kind >= low) & (kind < high)).astype(jnp.float32), share)
        for (low, high), share in zip(of_kind, mix, strict=True)
    )
    # Violations alone would leave tasks that are late anyway to wait for ever.
    completion = jnp.where(violations == 1, draw.geometric(0.001, 0.3), completion)
    weights = jnp.where(draw.uniform() < 0.6, 1.0, jnp.exp(0.8 * draw.normal(_CLASSES)))
    return Objective(
        completion=completion,
        exponent=jnp.where(draw.uniform() < 0.75, 1.0, draw.uniform(0.3, 1.0)),
        slowdown=slowdown,
        violations=violations,
        class_weights=weights,
    )


def system(num_processors: int, **static: Any) -> Env:
    """Return an environment whose parameters a prior draws; `static` as in `jaxlb.make`."""
    return make("stable", num_processors=num_processors, **static)[0]


def systems() -> tuple[tuple[Env, ...], tuple[Prior, ...]]:
    """Return systems of 2 to 64 processors that see all, or not; about as many processors in all of each."""
    # Queues whose length is not counted would look as if tasks departed.
    blind = {"size_visible": False, "queue_capacity": 64}
    each: list[tuple[int, bool, dict[str, Any]]] = [
        (2, False, {}),
        (4, False, {}),
        (4, False, blind),
        (8, False, {}),
        (8, True, {}),
        (16, False, {}),
        (5, False, blind | {"wait_visible": False}),
        (64, False, {}),
        (3, True, {}),
        (32, False, {}),
        (2, False, blind | {"wait_visible": False}),
        (2, True, {}),
        (12, False, blind | {"wait_visible": False}),
    ]
    envs = tuple(system(number, **static) for number, _, static in each)
    lanes = (2 * math.ceil(1024 / number / (2 if number > 2 else 4)) for number, _, _ in each)
    priors = tuple(
        Prior(num_lanes=min(count, 256), stale=stale)
        for count, (_, stale, _) in zip(lanes, each, strict=True)
    )
    return envs, priors
