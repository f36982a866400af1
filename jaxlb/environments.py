"""Named environments with their parameters."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlb import checks, stations, workload
from jaxlb.catalogue import PLAIN, SCENARIOS, Scenario
from jaxlb.env import Env
from jaxlb.params import VECTORS, canonical
from jaxlb.stations import FCFS
from jaxlb.types import EnvParams, Scheduler
from jaxlb.workload import TraceData

_OF_ENV = {field.name for field in dataclasses.fields(Env)} - {"name", "make_params", "allow_overload"}
# Recorded bursts are longer than a generated scenario's: rules that count tasks need the room.
_TRACE_QUEUE_CAPACITY = 128


def scenarios() -> dict[str, str]:
    """List the names of all scenarios, each with a line of description."""
    return {name: scenario.description for name, scenario in SCENARIOS.items()}


def add(name: str, make_params: Callable[[int], EnvParams], settings: dict[str, Any]) -> None:
    """Register a name with `make` for what `make_params(num_processors)` makes; see `jaxlb.register`."""
    checks.free("scenario", name, {own: one.make_params for own, one in SCENARIOS.items()}, make_params)
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
    SCENARIOS[name] = Scenario(description, first.default, make_params, tuple(settings.items()))


def _station(settings: Mapping[str, Any]) -> Any:
    """Return the station that settings name, or FCFS; one that knows departures, where those matter."""
    station: Any = settings.get("station", FCFS())
    stations.check(station)
    loses = settings.get("admission") or any(settings.get(name) is not None for name in _LOSSES)
    told = loses or settings.get("answers")
    return _with_departures(station) if told and type(station) is FCFS else station


def _with_departures(station: FCFS) -> stations.Table:
    """Return the same queues as a table, which holds tasks until they leave."""
    own = station.queue_capacity
    return stations.Table() if own == FCFS().queue_capacity else stations.Table(queue_capacity=own)


def answering(env: Env, schedulers: Iterable[Scheduler]) -> Env:
    """Return an environment that tells of departures, if one of the schedulers asks for that."""
    if env.answers or all(one.departed is None for one in schedulers):
        return env
    station = _with_departures(env.station) if type(env.station) is FCFS else env.station
    return dataclasses.replace(env, station=station, answers=True)


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
    """Return an environment whose queues tell departures, where assignments cannot, and know phases."""
    station, phased = env.station, params.prefill is not None
    if type(station) is FCFS and (phased or params.speeds is not None):
        station = _with_departures(station)
    if isinstance(station, stations.Table) and phased != station.phased:
        station = dataclasses.replace(station, phased=phased)
    return env if station is env.station else dataclasses.replace(env, station=station)


def make(
    name: str | None = None,
    *,
    title: str | None = None,
    trace: TraceData | None = None,
    allow_overload: bool = False,
    **overrides: Any,
) -> tuple[Env, EnvParams]:
    """Make an environment and its parameters, from a scenario or from nothing.

    Args:
      name: one of `scenarios()`; None: a system that `speed`, or `num_processors` of speed 1, and `load`
        describe, with Poisson arrivals and exponential sizes where nothing else is said.
      title: what tables and pictures call it; None: the scenario's name, or "custom".
      trace: a recorded task stream instead of the scenario's workload, from `jaxlb.read_trace`; sizes are
        rescaled to the mean of the scenario's, gaps to its load, and queues counted up to 128 tasks.
      allow_overload: whether a load that processors cannot bear is meant.
      overrides: values by field name, of `Env` (num_processors, station, size_visible, wait_visible, reward,
        admission, dispatchers, in_turn, polled_apart, answers), of its station (queue_capacity, limit,
        leaving), of `EnvParams` (speed, load, ...), of its arrival process, its size law or its speed process
        (tail_index, up_time, ...). `arrival`, `size` and `speeds` may be names from `workloads()`. `speed`
        alone sets the number of processors too; a number of processors alone spreads as many speeds like the
        scenario's.

    Returns:
      The environment, static, and its parameters, arrays. `env.default_params` are the scenario's own,
      before overrides.

    Raises:
      ValueError: an unknown name or field, or a value that is out of bounds.
    """
    if name is None:
        for needed in ({"speed", "num_processors"}, {"load"}):
            if not needed & set(overrides):
                raise ValueError(
                    f"{' or '.join(sorted(needed, reverse=True))}: must be given where no scenario is, as "
                    "make(speed=[1.0, 2.0], load=0.7) does"
                )
        scenario = PLAIN
    else:
        checks.known("scenario", name, SCENARIOS)
        scenario = SCENARIOS[name]
    title = title if title is not None else name or "custom"
    if not isinstance(title, str) or not title.strip():
        raise ValueError(f"title = {checks.shown(title)}: must be a text")
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
        if isinstance(value, (list, tuple)) and key not in (*VECTORS, "affinity", "factor", "time"):
            raise ValueError(f"{key} = {checks.shown(value)}: must be one number")
    if "speed" in numbers:
        if np.ndim(numbers["speed"]) != 1 or np.size(numbers["speed"]) == 0:
            raise ValueError(
                f"speed = {checks.shown(numbers['speed'])}: must be a list, one speed for each processor"
            )
        settings.setdefault("num_processors", len(numbers["speed"]))
    settings.setdefault("num_processors", scenario.num_processors)
    env = _env(settings, name=title, make_params=scenario.make_params, allow_overload=allow_overload)
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
      scenario: a name; None: none, and `overrides` describe all.
      overrides: by name.
      trace: path, format and options for `jaxlb.read_trace`, or None.
      allow_overload: whether a load of 1 or more is meant.
    """

    scenario: str | None
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


def changed(
    env: Env, params: EnvParams, values: Mapping[str, Any], recompile: bool = False
) -> tuple[Env, EnvParams]:
    """Return an environment and its parameters with other values, by the names that `make` takes.

    Args:
      env: static.
      params: of it.
      values: by name, of `EnvParams` and its parts; with `recompile`, those of `Env` and its station too.
      recompile: whether what is static may change.

    Raises:
      ValueError: an unknown name, or a static one.
    """
    settings = {name: getattr(env, name) for name in _OF_ENV}
    static = _static(settings)
    for name in values:
        if name in {"num_processors", "station", *_SERVICE}:
            raise ValueError(f"{name} makes another environment; make one for each value, and compare there")
        if name in static and not recompile:
            raise ValueError(
                f"{name} is static: all is compiled again for each value; recompile=True permits it"
            )
    given = {name: value for name, value in values.items() if name in static}
    if given:
        own = {name: getattr(env, name) for name in ("name", "make_params", "allow_overload")}
        env = _env(settings | given, **own)
    params = _override(params, {name: value for name, value in values.items() if name not in static}, set())
    return _changing(env, params), canonical(params)


def _override(params: EnvParams, values: dict[str, Any], static: set[str]) -> EnvParams:
    """Set fields by name, parts being names too: those of the parameters first, then those of their parts."""
    values = {
        key: workload.named(key, value) if key in workload.PARTS and isinstance(value, str) else value
        for key, value in values.items()
    }
    own = {field.name for field in dataclasses.fields(params)}
    params = params.replace(**{key: value for key, value in values.items() if key in own})
    parts = workload.parts_of(params)
    nested = {field.name: part for part in parts for field in dataclasses.fields(getattr(params, part))}
    for key, value in values.items():
        if key not in own:
            checks.known("parameter", key, own | static | set(nested))
            part = getattr(params, nested[key])
            params = params.replace(**{nested[key]: dataclasses.replace(part, **{key: value})})
    return params
