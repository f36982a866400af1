"""All randomness of the tasks: arrival process, size law, priority classes, deadlines, traces.

A task takes two random words: 23 bits for the gap, 26 for the size, 15 for the priority class (so class
probabilities are resolved to 1/32768). What a process needs beyond that, it draws itself.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks
from jaxlb.numerics import broadcasts
from jaxlb.params import canonical
from jaxlb.phases import phases
from jaxlb.protocols import ArrivalProcess, SizeLaw, SpeedProcess
from jaxlb.random import random_words, typed, uniform
from jaxlb.types import Array, EnvParams, Key, Lanes, Task
from jaxlb.workload import arrivals, cold_starts, sizes, speeds
from jaxlb.workload.recorded_speeds import read_speeds
from jaxlb.workload.traces import TraceData, read_trace

__all__ = [
    "PARTS",
    "TraceData",
    "add",
    "arrival_rate",
    "arrivals",
    "check",
    "deadline",
    "draw",
    "named",
    "part_of",
    "parts_of",
    "read_speeds",
    "read_trace",
    "sample",
    "sizes",
    "speeds",
    "start",
    "workloads",
]

_NAMED: dict[str, dict[str, Callable[[], Any]]] = {
    "arrival": {
        "poisson": arrivals.Poisson,
        "renewal": arrivals.Renewal,
        "bursty": arrivals.Bursty,
        "diurnal": arrivals.Diurnal,
        "drift": arrivals.Drift,
        "shift": arrivals.Shift,
        "batch": arrivals.Batch,
    },
    "size": {
        "exponential": sizes.Exponential,
        "deterministic": sizes.Deterministic,
        "uniform": sizes.Uniform,
        "lognormal": sizes.LogNormal,
        "bounded-pareto": sizes.BoundedPareto,
        "hyperexponential": sizes.Hyperexponential,
        "bimodal": sizes.Bimodal,
    },
    "speeds": {
        "failing": speeds.Failing,
        "cold-starts": cold_starts.ColdStarts,
        "throttling": speeds.Throttling,
        "ring": speeds.Ring,
    },
}
"""Arrival processes, size laws and speed processes that have names, with default parameters."""


class _Part(NamedTuple):
    """A part of a workload: what messages call it, and the contract that it fulfils."""

    kind: str
    contract: type


PARTS = {
    "arrival": _Part("arrival process", ArrivalProcess),
    "size": _Part("size law", SizeLaw),
    "speeds": _Part("speed process", SpeedProcess),
}
"""The parameters that have parameters of their own."""


def workloads() -> dict[str, dict[str, str]]:
    """List names that `make` takes as `arrival`, `size` and `speeds`: what each is, and its parameters."""
    return {
        part: {name: _described(factory) for name, factory in named.items()} for part, named in _NAMED.items()
    }


def _described(factory: Callable[..., Any]) -> str:
    """Return the first line of a docstring, and the parameters with their defaults."""
    given = [
        f"{name}={value.default}" if isinstance(value.default, (int, float, str)) else name
        for name, value in inspect.signature(factory).parameters.items()
    ]
    return (checks.first_line(factory) + (f" ({', '.join(given)})" if given else "")).strip()


def named(part: str, name: str) -> Any:
    """Make the arrival process (part "arrival"), size law ("size") or speed process ("speeds") of that name.

    Raises:
      ValueError: an unknown name.
    """
    checks.known(PARTS[part].kind, name, _NAMED[part])
    return _NAMED[part][name]()


def add(part: str, name: str, made: Any, factory: Callable[[], Any]) -> None:
    """Register a name with `make` for what a factory makes, which `made` is; see `jaxlb.register`.

    Raises:
      ValueError: a name that is taken or cannot be one, or a bad parameter.
    """
    checks.free(PARTS[part].kind, name, _NAMED[part], factory)
    if part != "speeds":  # checked with their processors
        _check_part(part, made)
    _NAMED[part][name] = factory


def part_of(made: Any) -> str | None:
    """Return the part of a workload whose contract a value fulfils; None if it is none."""
    return next((part for part in PARTS if not _why_not(part, made)), None)


def _why_not(part: str, value: Any) -> str:
    """Return why a value is no such part of a workload; empty if it is one."""
    contract = PARTS[part].contract
    if isinstance(value, type):
        return f"is a class; try {value.__name__}()"
    # Whether each name that the contract asks for is a function.
    asked = {name: callable(own) for name, own in vars(contract).items() if name[0] != "_"}
    asked |= dict.fromkeys(contract.__annotations__, False)
    missing = [
        f"{name}()" if function else name
        for name, function in sorted(asked.items())
        if not (callable(getattr(value, name, None)) if function else hasattr(value, name))
    ]
    if missing:
        return f"has no {', '.join(missing)}"
    if not dataclasses.is_dataclass(value) or any(leaf is value for leaf in jax.tree.leaves(value)):
        return "is no dataclass that is a pytree, as a flax.struct.PyTreeNode is"
    return ""


def parts_of(params: EnvParams) -> list[str]:
    """List the parts that a workload has; raise ValueError if one does not fulfil its contract."""
    parts = [part for part in PARTS if part != "speeds" or params.speeds is not None]
    for part in parts:
        value = getattr(params, part)
        if why := _why_not(part, value):
            raise ValueError(f"{part} = {checks.shown(value)}: is no {PARTS[part].kind}: it {why}")
    return parts


def check(params: EnvParams, lanes: Lanes | None = None) -> None:
    """Raise ValueError if the workload is out of bounds, or does not fit the rest; values under a trace pass.

    Args:
      params: arrival process, size law and classes.
      lanes: shape of the lane axes that they will meet; None: not known yet.
    """
    parts_of(params)
    if params.speeds is not None:
        _check_speeds(params)
    parts = (params.arrival, params.size)
    if checks.traced(parts):
        return
    for part in ("arrival", "size"):
        _check_part(part, getattr(params, part))
    if isinstance(params.arrival, arrivals.Trace):
        _fits(params.arrival, params)
    elif lanes is not None and any(np.ndim(leaf) for leaf in jax.tree.leaves(parts)):
        # Which axes of a part are lanes and which are its own, only it knows: try whether it draws.
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(parts)]
        try:
            jax.eval_shape(lambda key: _sizes_and_gaps(key, params, lanes), jax.random.key(0))
        except (TypeError, ValueError):
            raise ValueError(
                f"arrival and size have leaves of shapes {shapes}: must be numbers, or fit lanes {lanes}"
            ) from None


def _check_part(part: str, value: Any) -> None:
    """Raise ValueError on a bad parameter, or if a size law draws what is no size."""
    value.check()
    if part == "size" and not type(value).__module__.startswith("jaxlb."):
        _try_law(value)


def _try_law(law: SizeLaw) -> None:
    """Raise ValueError if a law draws what is no size, where its parameters are numbers."""
    if any(np.ndim(leaf) for leaf in jax.tree.leaves(law)):
        return
    with jax.ensure_compile_time_eval():  # the parameters are numbers, though all around may be traced
        uniform = jnp.asarray([0.001, 0.25, 0.5, 0.75, 0.999], jnp.float32)
        drawn = np.asarray(law.inverse_survival(uniform))
    if drawn.shape != uniform.shape or not np.all((drawn >= 0) & np.isfinite(drawn)):
        raise ValueError(
            f"size = {checks.shown(law)}: its inverse_survival of {np.asarray(uniform)} is {drawn}, must be "
            "as many sizes, finite and not negative"
        )


def _check_speeds(params: EnvParams) -> None:
    """Raise ValueError if speeds that change are out of bounds, or change all the time between two tasks."""
    process = params.speeds
    process.check(np.shape(params.speed)[0])
    stay, gap = process.mean_stay(), 1.0 / arrival_rate(canonical(params))
    if not checks.traced((stay, gap)) and stay < 0.01 * gap.max():
        raise ValueError(
            f"speeds change every {float(stay):g} on average: must be at least a hundredth of a mean "
            f"gap, {0.01 * float(gap.max()):g}, or there are too many changes between tasks"
        )


def _sizes_and_gaps(key: Key, params: EnvParams, lanes: Lanes) -> tuple[Array, Array]:
    """Draw once what arrival process and size law alone decide; only its shape is meant."""
    process, uniform = params.arrival, jnp.full(lanes, 0.5)
    extra = jnp.full((process.extra_words, *lanes), 0.5)
    gap, state = process.gap(process.start(key, lanes), jnp.float32(1.0), uniform, extra)
    size = process.size(state, params.size.inverse_survival(uniform), extra)
    return jnp.broadcast_to(gap, lanes), jnp.broadcast_to(size, lanes)


def _fits(trace: arrivals.Trace, params: EnvParams) -> None:
    """Raise ValueError if tasks of a trace are not what the other parameters say."""
    classes = np.shape(params.class_probability)[0]
    if trace.task_priority is not None and np.max(trace.task_priority) >= classes:
        raise ValueError(
            f"task_priority = {np.max(trace.task_priority)}: must be at most {classes - 1}, as the number of "
            f"priority classes is {classes}; class_probability and class_slack, an entry for each, set it"
        )
    recorded = np.mean(np.asarray(trace.task_size, np.float64))
    mean = np.asarray(params.size.mean(), np.float64)
    if not np.allclose(mean, recorded, rtol=1e-3):
        raise ValueError(
            f"size: a law of mean {np.ravel(mean)[0]:g} with a trace of mean size {recorded:g}: must be the "
            "same, as tasks of a trace have the recorded sizes and the load is told by the law"
        )


def arrival_rate(params: EnvParams) -> Array:
    """Return the tasks per time: load x total speed, in the long run, / mean size."""
    return params.load * speeds.long_run(params).speed.sum(0) / params.size.mean()


def deadline(params: EnvParams, size: Array, priority: Array) -> Array:
    """Return the time allowed to a task, `[...]`: class slack x size / mean speed + constant."""
    slack = params.class_slack[0]
    for index in range(1, params.class_slack.shape[0]):
        slack = jnp.where(priority == index, params.class_slack[index], slack)
    return slack * size / params.speed.mean(0) + params.deadline_constant


def start(key: Key, params: EnvParams, lanes: Lanes = ()) -> Any:
    """Draw the arrival process in its long-run state before the first task; the key is consumed."""
    return params.arrival.start(key, lanes)


def draw(key: Key, params: EnvParams, state: Any, lanes: Lanes = ()) -> tuple[Task, Any]:
    """Draw the next task of every lane.

    Args:
      key: consumed.
      params: with `speed` `[P, ...]`, classes `[C, ...]`.
      state: of the arrival process.
      lanes: shape of the lane axes.

    Returns:
      The task, leaves `[...]`, and the state of the arrival process after it.
    """
    process = params.arrival
    extra_pairs = (process.extra_words + 1) // 2
    key, *extra_keys = jax.random.split(key, 1 + extra_pairs) if extra_pairs else [key]
    first, second = random_words(key, lanes)
    gap_uniform, size_uniform = uniform(first >> 9, 23), uniform(second >> 6, 26)
    class_uniform = uniform((first << 6) | (second & jnp.uint32(63)), 15)
    words = [word for extra_key in extra_keys for word in random_words(extra_key, lanes)]
    extra = (
        jnp.stack([uniform(word >> 9, 23) for word in words])
        if words
        else jnp.zeros((0, *lanes), jnp.float32)
    )

    gap, state = process.gap(state, arrival_rate(params), gap_uniform, extra)
    size = process.size(state, params.size.inverse_survival(size_uniform), extra)
    priority = jnp.zeros(lanes, jnp.int32)
    reached = jnp.zeros_like(params.class_probability[0])
    for index in range(params.class_probability.shape[0] - 1):
        reached = reached + params.class_probability[index]
        priority = priority + (class_uniform >= reached).astype(jnp.int32)
    priority = process.priority(state, priority)
    allowed = process.deadline(state, deadline(params, size, priority))
    recorded = process.prefill(state) if isinstance(process, arrivals.Trace) else None
    task = Task(gap, size, priority, allowed, phases(params, size, recorded))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, lanes), task), state


@broadcasts
def sample(key: Key, params: EnvParams, num_tasks: int, lanes: Lanes = ()) -> Task:
    """Draw the first `num_tasks` tasks of every lane, as `replay` takes them.

    Args:
      key: consumed.
      params: with `speed` `[P, ...]`, classes `[C, ...]`.
      num_tasks: T.
      lanes: shape of the lane axes.

    Returns:
      Leaves `[T, ...]`.
    """
    start_key, task_key = jax.random.split(typed(key))

    def body(state: Any, key: Key) -> tuple[Any, Task]:
        task, state = draw(key, params, state, lanes)
        return state, task

    return jax.lax.scan(body, start(start_key, params, lanes), jax.random.split(task_key, num_tasks))[1]
