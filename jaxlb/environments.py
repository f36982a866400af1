"""Named environments with their parameters."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlb import checks, stations, workload
from jaxlb.env import Env
from jaxlb.params import VECTORS, canonical
from jaxlb.stations import FCFS
from jaxlb.types import EnvParams
from jaxlb.workload import TraceData
from jaxlb.workload.arrivals import Bursty, Poisson, Shift
from jaxlb.workload.sizes import BoundedPareto, Exponential, LogNormal
from jaxlb.workload.speeds import Failing, Throttling

_OF_ENV = {field.name for field in dataclasses.fields(Env)} - {"name", "make_params", "allow_overload"}
# Recorded bursts are longer than a generated scenario's: rules that count tasks need the room.
_TRACE_QUEUE_CAPACITY = 128


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
    )


_SCENARIOS: dict[str, Scenario] = {
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


def scenarios() -> dict[str, str]:
    """List the names of all scenarios, each with a line of description."""
    return {name: scenario.description for name, scenario in _SCENARIOS.items()}


def add(name: str, make_params: Callable[[int], EnvParams], settings: dict[str, Any]) -> None:
    """Register a name with `make` for what `make_params(num_processors)` makes; see `jaxlb.register`."""
    checks.free("scenario", name, _SCENARIOS)
    for setting in settings:
        checks.known("setting", setting, _static(settings) - {"num_processors"})
    first = next(iter(inspect.signature(make_params).parameters.values()), None)
    if first is None or first.name != "num_processors" or not isinstance(first.default, int):
        raise ValueError(
            f"the factory of scenario {name!r} has the first parameter {first}: "
            "must be num_processors, with a whole number as default"
        )
    # Whether overload is meant is an argument of `make`.
    env = _env(
        settings, name=name, make_params=make_params, num_processors=first.default, allow_overload=True
    )
    params = make_params(first.default)
    _changing(env, params).check(params)
    description = checks.first_line(make_params)
    _SCENARIOS[name] = Scenario(description, first.default, make_params, tuple(settings.items()))


def _station(settings: Mapping[str, Any]) -> Any:
    """Return the station that settings name, or FCFS; one that knows departures, where tasks may be lost."""
    station: Any = settings.get("station", FCFS())
    stations.check(station)
    loses = settings.get("admission") or any(settings.get(name) is not None for name in _LOSSES)
    return _with_departures(station) if loses and type(station) is FCFS else station


def _with_departures(station: FCFS) -> stations.Table:
    """Return the same queues as a table, which holds tasks until they leave."""
    own = station.queue_capacity
    return stations.Table() if own == FCFS().queue_capacity else stations.Table(queue_capacity=own)


PARTS = ("arrival", "size", "speeds")
"""The parameters that have parameters of their own."""
_SERVICE = ("discipline", "slots", "capacity", "weights")
"""Settings that make a station."""
_LOSSES = {"limit", "leaving"}
"""Settings of a station that may lose tasks."""


def _served(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the station that a discipline among them makes."""
    found = {name: value for name, value in settings.items() if name not in _SERVICE}
    options = {name: settings[name] for name in _SERVICE[1:] if name in settings}
    if "discipline" not in settings:
        return found | options
    return found | {"station": stations.named(settings["discipline"], **options)}


def _static(settings: Mapping[str, Any]) -> set[str]:
    """List the names of static settings: of `Env`, and of the station."""
    return _OF_ENV | _LOSSES | {field.name for field in dataclasses.fields(_station(settings))}


def _env(settings: Mapping[str, Any], **own: Any) -> Env:
    """Make an environment; settings of its station go there."""
    station: Any = _station(settings)
    changed = {name: value for name, value in settings.items() if name not in _OF_ENV}
    if type(station) is FCFS:  # where they are None
        changed = {name: value for name, value in changed.items() if name not in _LOSSES}
    rest: dict[str, Any] = {name: value for name, value in settings.items() if name in _OF_ENV}
    rest["station"] = dataclasses.replace(station, **changed)
    return Env(**own, **rest)


def _changing(env: Env, params: EnvParams) -> Env:
    """Return an environment whose queues tell departures, where speeds change and assignments cannot."""
    if params.speeds is None or type(env.station) is not FCFS:
        return env
    return dataclasses.replace(env, station=_with_departures(env.station))


def make(
    name: str, *, trace: TraceData | None = None, allow_overload: bool = False, **overrides: Any
) -> tuple[Env, EnvParams]:
    """Make an environment and its parameters.

    Args:
      name: one of `scenarios()`.
      trace: a recorded task stream instead of the scenario's workload, from `jaxlb.read_trace`; sizes are
        rescaled to the mean of the scenario's, gaps to its load, and queues counted up to 128 tasks.
      allow_overload: whether a load that processors cannot bear is meant.
      overrides: values by field name, of `Env` (num_processors, station, size_visible, wait_visible, reward,
        admission), of its station (queue_capacity, limit, leaving), of `EnvParams` (speed, load, ...), of its
        arrival process, its size law or its speed process (tail_index, up_time, ...). `arrival`, `size` and
        `speeds` may be names from `workloads()`. `speed` alone sets the number of processors too; a number of
        processors alone spreads as many speeds like the scenario's.

    Returns:
      The environment, static, and its parameters, arrays. `env.default_params` are the scenario's own,
      before overrides.

    Raises:
      ValueError: an unknown name or field, or a value that is out of bounds.
    """
    checks.known("scenario", name, _SCENARIOS)
    scenario = _SCENARIOS[name]
    settings, speed = dict(scenario.settings), overrides.get("speed", ())
    number = overrides.get("num_processors", np.size(speed) or scenario.num_processors)
    checks.at_least("num_processors", number, 1)
    if callable(settings.get("slots")):
        settings["slots"] = settings["slots"](number)
    if "discipline" in settings and "discipline" not in overrides:  # options of the scenario's own
        settings |= {name: overrides.pop(name) for name in _SERVICE if name in overrides}
    settings, overrides = _served(settings), _served(overrides)
    if "station" in overrides:  # and with it all of its settings
        settings = {key: value for key, value in settings.items() if key in _OF_ENV}
    elif trace is not None and "station" not in settings:
        settings.setdefault("queue_capacity", _TRACE_QUEUE_CAPACITY)
    static = _static(settings | overrides)
    settings |= {key: value for key, value in overrides.items() if key in static}
    numbers = {key: value for key, value in overrides.items() if key not in static}

    for key, value in numbers.items():
        if key in PARTS and isinstance(value, str):
            numbers[key] = workload.named(key, value)
        if isinstance(value, (list, tuple)) and key not in (*VECTORS, "affinity", "factor", "time"):
            raise ValueError(f"{key} = {checks.shown(value)}: must be one number")
    if "speed" in numbers:
        if np.ndim(numbers["speed"]) != 1 or np.size(numbers["speed"]) == 0:
            raise ValueError(
                f"speed = {checks.shown(numbers['speed'])}: must be a list, one speed for each processor"
            )
        settings.setdefault("num_processors", len(numbers["speed"]))
    settings.setdefault("num_processors", scenario.num_processors)
    env = _env(settings, name=name, make_params=scenario.make_params, allow_overload=allow_overload)
    params = scenario.make_params(env.num_processors)
    if trace is not None:
        arrival, size = trace.workload(mean_size=float(params.size.mean()))
        params = params.replace(arrival=arrival, size=size)
    params = _override(params, numbers, static)
    env = _changing(env, params)
    env.check(params)
    return env, canonical(params)


@dataclass(frozen=True)
class Spec:
    """What `make` makes an environment from, as JSON has it.

    Attributes:
      scenario: a name.
      overrides: by name.
      trace: path, format and options for `jaxlb.read_trace`, or None.
      allow_overload: whether a load of 1 or more is meant.
    """

    scenario: str
    overrides: dict[str, Any]
    trace: list[Any] | None = None
    allow_overload: bool = False

    def make(self) -> tuple[Env, EnvParams]:
        """Make the environment and its parameters."""
        trace = None
        if self.trace is not None:
            path, format, options = self.trace
            trace = workload.read_trace(path, format, **options)
        return make(self.scenario, trace=trace, allow_overload=self.allow_overload, **self.overrides)


def _override(params: EnvParams, values: dict[str, Any], static: set[str]) -> EnvParams:
    """Set fields by name: those of the parameters first, then those of their parts."""
    own = {field.name for field in dataclasses.fields(params)}
    params = params.replace(**{key: value for key, value in values.items() if key in own})
    parts = [part for part in PARTS if part != "speeds" or params.speeds is not None]
    for part in parts:
        if not dataclasses.is_dataclass(given := getattr(params, part)):
            raise ValueError(f"{part} = {checks.shown(given)}: must be one of jaxlb.workload's, or like them")
    nested = {field.name: part for part in parts for field in dataclasses.fields(getattr(params, part))}
    for key, value in values.items():
        if key not in own:
            checks.known("parameter", key, own | static | set(nested))
            part = getattr(params, nested[key])
            params = params.replace(**{nested[key]: part.replace(**{key: value})})
    return params
