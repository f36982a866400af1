"""The scenarios that come with the package: a table of names, and what makes their parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlb.types import EnvParams
from jaxlb.workload.arrivals import Bursty, Poisson, Shift
from jaxlb.workload.sizes import BoundedPareto, Exponential, LogNormal
from jaxlb.workload.speeds import Failing, Throttling


@dataclass(frozen=True)
class Scenario:
    """A named environment: what it is for, how many processors, what is static, what its numbers are.

    Of the settings, `slots` may be a function of the number of processors.
    """

    description: str
    num_processors: int
    make_params: Callable[[int], EnvParams]
    settings: tuple[tuple[str, Any], ...] = ()


def speed_profile(speeds: Sequence[float], num_processors: int) -> tuple[float, ...]:
    """Spread `num_processors` speeds like the given ones: read off their piecewise linear profile."""
    if num_processors == len(speeds):
        return tuple(speeds)
    places = (np.arange(num_processors) + 0.5) / num_processors
    given = (np.arange(len(speeds)) + 0.5) / len(speeds)
    return tuple(float(speed) for speed in np.interp(places, given, speeds))


def _seed(num_processors: int) -> EnvParams:
    # Fitted by benchmarks/calibrate_seed.py to the published agreement and violation rates.
    return EnvParams(
        speed=speed_profile((2.0, 1.09, 0.59, 0.32), num_processors),
        arrival=Poisson(),
        size=LogNormal(1.0, 6.0),
        load=0.84,
        class_probability=(0.2, 0.3, 0.5),
        class_slack=(1.22, 2.15, 3.08),
        deadline_constant=1.03,
        load_time_constant=0.053,
    )


def _stable(num_processors: int) -> EnvParams:
    return EnvParams(speed=(1.0,) * num_processors, arrival=Poisson(), size=Exponential(1.0), load=0.8)


def _heavy_tail(num_processors: int) -> EnvParams:
    return EnvParams(
        speed=speed_profile((0.5, 0.8, 1.2, 2.0), num_processors),
        arrival=Poisson(),
        size=BoundedPareto(1.0, 1000.0, 1.5),
        load=0.7,
    )


def _heavy_tail_extreme(num_processors: int) -> EnvParams:
    return _heavy_tail(num_processors).replace(size=BoundedPareto(1.0, 10000.0, 1.1))


def _slow_servers(num_processors: int) -> EnvParams:
    return _heavy_tail(num_processors).replace(speed=(0.2,) * (num_processors - 1) + (2.0,), load=0.3)


def _two_server(num_processors: int) -> EnvParams:
    return EnvParams(
        speed=speed_profile((1.0, 0.2), num_processors), arrival=Poisson(), size=Exponential(1.0), load=0.7
    )


def _stale(num_processors: int) -> EnvParams:
    return EnvParams(
        speed=speed_profile((0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.5, 1.5), num_processors),
        arrival=Poisson(),
        size=Exponential(1.0),
        load=0.8,
        class_slack=(0.0,),
        deadline_constant=3.0,
        measure_interval=5.0,
    )


def _shift(num_processors: int) -> EnvParams:
    return _stale(num_processors).replace(arrival=Shift(), measure_interval=2.0)


def _park(num_processors: int) -> EnvParams:
    speed = tuple(0.15 + 0.1 * index for index in range(num_processors))
    # 100 (1 + Lomax(1.5)) is a Pareto law from 100 upwards, mean 300; the mean gap is 55 at total speed 6.
    return EnvParams(
        speed=speed,
        arrival=Poisson(),
        size=BoundedPareto(100.0, float("inf"), 1.5),
        load=300.0 / 55.0 / 6.0,
        max_steps_in_episode=1000,
    )


def _large(num_processors: int) -> EnvParams:
    return EnvParams(
        speed=tuple(float(speed) for speed in np.geomspace(0.25, 4.0, num_processors)),
        arrival=Bursty(),
        size=Exponential(1.0),
        load=0.85,
    )


_EIGHT = (0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.5, 1.5)


def _eight(num_processors: int) -> EnvParams:
    return EnvParams(
        speed=speed_profile(_EIGHT, num_processors), arrival=Poisson(), size=LogNormal(1.0, 4.0), load=0.8
    )


def _priorities(num_processors: int) -> EnvParams:
    return _eight(num_processors).replace(
        class_probability=(0.1, 0.3, 0.6), class_slack=(3.0, 6.0, 20.0), sla_weight=(4.0, 2.0, 1.0)
    )


def _failures(num_processors: int) -> EnvParams:
    return _eight(num_processors).replace(size=Exponential(1.0), speeds=Failing(490.0, 10.0))


def _throttling(num_processors: int) -> EnvParams:
    return _eight(num_processors).replace(size=Exponential(1.0), speeds=Throttling(0.3, 100.0, 20.0))


_SLOTS = (4, 8, 16, 2)


def _slots(num_processors: int) -> tuple[int, ...]:
    """Return as many numbers of slots, like those of `multicore`."""
    return tuple(_SLOTS[4 * place // num_processors] for place in range(num_processors))


def _multicore(num_processors: int) -> EnvParams:
    speed, slots = speed_profile((0.6, 0.8, 1.0, 1.6), num_processors), _slots(num_processors)
    cores = float(np.dot(speed, slots)) / sum(speed)
    return EnvParams(speed=speed, arrival=Poisson(), size=LogNormal(1.0, 10.0), load=0.8 * cores)


def _inference(num_processors: int) -> EnvParams:
    return EnvParams(
        speed=speed_profile((0.5, 1.0, 1.0, 1.5), num_processors),
        arrival=Bursty(),
        size=LogNormal(1.0, 2.0),
        load=0.75 * 16 / (1.0 + 0.1 * 15),
        class_slack=(8.0,),
        prefill=0.2,
        first_token_limit=2.0,
        token_limit=2.5,
    )


PLAIN = Scenario("equal processors, exponential sizes, Poisson arrivals", 1, _stable)
"""What a system of one's own begins with."""

SCENARIOS: dict[str, Scenario] = {
    "seed": Scenario("4 unequal processors, 3 priorities, smoothed load", 4, _seed),
    "stable": Scenario("4 equal processors, exponential sizes, Poisson arrivals, load 0.8", 4, _stable),
    "heavy-tail": Scenario("4 unequal processors, Pareto sizes on [1, 1000], load 0.7", 4, _heavy_tail),
    "heavy-tail-extreme": Scenario("the same with Pareto sizes on [1, 10000]", 4, _heavy_tail_extreme),
    "slow-servers": Scenario("one fast and 3 slow processors, Pareto sizes, load 0.3", 4, _slow_servers),
    "two-server": Scenario(
        "speeds 1 and 0.2, sizes and waits hidden, load 0.7",
        2,
        _two_server,
        (("size_visible", False), ("wait_visible", False), ("queue_capacity", 32)),
    ),
    "stale": Scenario("8 unequal processors, measured only every 5 time units, load 0.8", 8, _stale),
    "shift": Scenario("stale, every 2, with abrupt changes of rate and size mix", 8, _shift),
    "park": Scenario(
        "10 processors of rates 0.15 to 1.05, Pareto sizes, holding-cost reward",
        10,
        _park,
        (("reward", "holding-cost"), ("queue_capacity", 64)),
    ),
    "large": Scenario("64 processors, speeds 0.25 to 4, bursty arrivals, load 0.85", 64, _large),
    "time-sharing": Scenario(
        "8 unequal processors that share, log-normal sizes, load 0.8", 8, _eight, (("discipline", "ps"),)
    ),
    "priorities": Scenario(
        "8 unequal processors, 3 classes, the most urgent interrupt, load 0.8",
        8,
        _priorities,
        (("discipline", "priority-preemptive"),),
    ),
    "multicore": Scenario(
        "4 unequal nodes of 2 to 16 cores, log-normal sizes, at 0.8 of what they can do",
        4,
        _multicore,
        (("discipline", "fcfs"), ("slots", _slots), ("queue_capacity", 48)),
    ),
    "inference": Scenario(
        "4 unequal accelerators that batch up to 16 tasks, bursty arrivals, at 0.75 of what they can do",
        4,
        _inference,
        (("discipline", "limited-ps"), ("slots", 16), ("capacity", "batching(0.1)"), ("queue_capacity", 64)),
    ),
    "failures": Scenario("8 unequal processors, each down 2 % of the time, load 0.8", 8, _failures),
    "throttling": Scenario(
        "8 unequal processors, each at 30 % of its speed a sixth of the time, load 0.8", 8, _throttling
    ),
}
