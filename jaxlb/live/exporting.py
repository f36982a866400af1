"""Schedulers out of the simulator: programs for live systems, from the functions that were simulated."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxlb import observe, runs
from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.live import header, python_code, runtime
from jaxlb.live.program import Constants, Program, traced
from jaxlb.params import canonical
from jaxlb.scheduling import resolved
from jaxlb.scheduling.base import acted, first_memory
from jaxlb.trained import is_run
from jaxlb.types import Answer, Array, EnvParams, Key, Observation, Scheduler, Task, Truth
from jaxlb.version import __version__

_GIVEN = {
    "size": ("size",),
    "deadline": ("deadline",),
    "queue_length": ("queue_length",),
    "load": ("load", "wait", "load_average", "load_variance"),
    "present": ("present",),
}
"""What a user gives, and the fields of an observation that follow from it."""


class Exported(NamedTuple):
    """A scheduler as programs of one decision, and of one departure.

    Attributes:
      about: what it is, as JSON has it.
      memory: leaves of its memory before the first task.
      decide: (memory, observation) -> (action, memory).
      departed: (memory, answer) -> memory; None: it learns nothing of departures.
      function: `decide` in JAX, of leaves of the memory and of what `about` calls inputs.
      arguments: shapes of these.
    """

    about: dict[str, Any]
    memory: list[np.ndarray]
    decide: Program
    departed: Program | None
    function: Callable[..., tuple[Array, ...]]
    arguments: tuple[jax.ShapeDtypeStruct, ...]


def exported(scheduler: str | Path | Scheduler, env: Env, params: EnvParams) -> Exported:
    """Trace a scheduler, its name or a run's, as it decides in a live system.

    Raises:
      ValueError: it reads the truth, or does what cannot be exported, or was trained for other systems.
    """
    if env.admission:
        raise ValueError("env: must not refuse tasks: admission must be False")
    if params.affinity is not None:
        raise ValueError("params: affinity must be None, since a live system says by `up` who takes a task")
    if env.num_processors < 2:
        raise ValueError("processors: must be two at least, or there is nothing to decide")
    if is_run(scheduler):
        run = runs.find(Path(str(scheduler)))
        run.training.check(env, params)
        rule = runs.load(str(scheduler))
    else:
        rule = resolved(scheduler)
    params = observe.nominal(canonical(params))
    memory = first_memory(rule.name, rule.start, env, params, ())
    leaves = jax.tree.leaves(memory)
    seen = _observation(env, params, rule)
    given = {name: value for name, value in _fields(seen).items() if value is not None and name != "truth"}
    decide, inputs = _decision(rule, memory, given, seen)
    departed, answer = (None, []) if rule.departed is None else _departure(rule, memory)
    needs = {name for name, fields in _GIVEN.items() if set(fields) & set(inputs)}
    if not env.wait_visible and "load" in needs:
        needs = needs - {"load"} | {"queue_length"}
    if not env.size_visible:
        needs -= {"size"}
    about = {
        "jaxlb": __version__,
        "scheduler": rule.name,
        "speed": np.asarray(params.speed, np.float64).tolist(),
        "classes": len(params.class_probability),
        "mean_size": float(params.size.mean()),
        "size_known": env.size_visible,
        "load_known": env.wait_visible,
        "needs": sorted(needs),
        "inputs": inputs,
        "departed_inputs": answer,
        "state": len(leaves),
    }
    shapes = [*leaves, *(_WORDS if name == "key" else given[name] for name in inputs)]
    return Exported(
        about,
        [_plain(leaf) for leaf in leaves],
        decide,
        departed,
        functools.partial(_decided, rule, seen, jax.tree.structure(memory), tuple(inputs)),
        tuple(jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in shapes),
    )


def _decision(
    rule: Scheduler, memory: Any, given: dict[str, Any], seen: Observation
) -> tuple[Program, list[str]]:
    """Return the program of one decision, and the fields that it takes after the memory."""

    def decide(memory: Any, given: dict[str, Any], truth: Truth, key: Key) -> tuple[Array, Any]:
        return acted(rule, memory, seen.replace(**given, truth=truth), key)

    program = _traced(rule, decide, memory, given, seen.truth, jax.random.key(0))
    # In the order of `jax.tree`: that of names, for a dict.
    groups = (
        ("", memory),
        *((name, given[name]) for name in sorted(given)),
        ("truth", seen.truth),
        ("key", 0),
    )
    names = [name for name, tree in groups for _ in jax.tree.leaves(tree)]
    reads = [not name or read for name, read in zip(names, program.reads(), strict=True)]
    if any(read and name == "truth" for name, read in zip(names, reads, strict=True)):
        raise ValueError(f"scheduler {rule.name!r}: reads the truth, which no live system knows")
    return _only(program, reads), [name for name, read in zip(names, reads, strict=True) if name and read]


def _departure(rule: Scheduler, memory: Any) -> tuple[Program, list[str]]:
    """Return the program of one departure, and the fields of the answer that it takes after the memory."""
    learned = rule.departed
    assert learned is not None
    zero, whole = jnp.float32(0.0), jnp.int32(0)
    answer = Answer(whole, zero, zero, jnp.zeros((), bool), whole, zero)
    program = _traced(rule, lambda m, a: learned(rule.variables, m, a), memory, answer)
    names = [""] * len(jax.tree.leaves(memory)) + list(_fields(answer))
    reads = [not name or read for name, read in zip(names, program.reads(), strict=True)]
    return _only(program, reads), [name for name, read in zip(names, reads, strict=True) if name and read]


def _only(program: Program, reads: Sequence[bool]) -> Program:
    kept = (value for value, read in zip(program.inputs, reads, strict=True) if read)
    return program._replace(inputs=tuple(kept))


def _traced(rule: Scheduler, function: Any, *inputs: Any) -> Program:
    try:
        return traced(function, *inputs)
    except NotImplementedError as error:
        raise cannot(rule.name, error) from None


def _observation(env: Env, params: EnvParams, rule: Scheduler) -> Observation:
    """Return an observation of one lane, as live systems have it."""
    one = jnp.float32(1.0)
    task = Task(gap=one, size=one, priority=jnp.int32(0), deadline=one)
    state = env.start(params, task, jax.random.key(0))
    seen = env.observe(state, params, jax.random.key(0))
    present = seen.queue_length if rule.departed is not None else None
    # Live, any processor may be down, whatever the environment's do.
    up = jnp.ones(env.num_processors, bool) if seen.up is None else seen.up
    return seen.replace(
        completion=None, held=None, dispatcher=None, answers=None, since=None, present=present, up=up
    )


_WORDS = np.zeros(2, np.uint32)


def _fields(tree: Any) -> dict[str, Any]:
    return {name: getattr(tree, name) for name in tree.__dataclass_fields__}


def _plain(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).reshape(-1)


def as_python(found: Exported) -> tuple[str, dict[str, np.ndarray]]:
    """Return the text of the programs, which needs NumPy only, and the arrays that go with it."""
    constants = Constants()
    memory = [f"m{index}" for index in range(found.about["state"])]
    try:
        source = python_code.function("decide", found.decide, memory + found.about["inputs"], constants)
        if found.departed is not None:
            names = memory + found.about["departed_inputs"]
            source += "\n\n" + python_code.function("departed", found.departed, names, constants)
    except NotImplementedError as error:
        raise cannot(found.about["scheduler"], error) from None
    return source, constants.arrays | dict(zip(memory, found.memory, strict=True))


def _decided(
    rule: Scheduler, seen: Observation, memory: Any, names: Sequence[str], *leaves: Array
) -> tuple[Array, ...]:
    first = memory.num_leaves
    given = dict(zip(names, leaves[first:], strict=True))
    words = given.pop("key", None)
    key = jax.random.key(0) if words is None else jax.random.wrap_key_data(words)
    before = jax.tree.unflatten(memory, leaves[:first])
    action, after = rule.act(rule.variables, before, seen.replace(**given), key)
    return action, *jax.tree.leaves(after)


def as_stablehlo(found: Exported) -> str:
    """Return a decision as StableHLO: (leaves of the memory, inputs) -> (action, leaves of the memory).

    Raises:
      ValueError: the scheduler has to be told of departures, which this is not.
    """
    if found.departed is not None:
        name = found.about["scheduler"]
        raise ValueError(f"scheduler {name!r}: hears of departures, which no StableHLO is written for")
    return jax.export.export(jax.jit(found.function))(*found.arguments).mlir_module()


def as_header(found: Exported, name: str) -> str:
    """Return the text of a C header, whose names begin with `name`."""
    try:
        return header.header(name, found.about, found.memory, found.decide, found.departed)
    except NotImplementedError as error:
        raise cannot(found.about["scheduler"], error) from None


def cannot(name: str, error: NotImplementedError) -> ValueError:
    """Return the error of a scheduler that does what no exported program can."""
    return ValueError(f"scheduler {name!r}: cannot be exported, since it does {error}")


def decider(
    scheduler: str | Path | Scheduler,
    processors: Sequence[float] | None = None,
    *,
    env: Env | None = None,
    params: EnvParams | None = None,
    dispatchers: int = 1,
    size_known: bool = True,
    load_known: bool = True,
    mean_size: float = 1.0,
    seed: int = 0,
) -> runtime.Decider:
    """Make what decides in a live system as a scheduler does in the simulator.

    It runs on NumPy alone, one decision at a time: `decide(size=..., load=..., ...)` returns a processor, and
    `departed(processor, latency=...)` tells it that a task has left. See `jaxlb.live.runtime.Decider`.

    Args:
      scheduler: one, its name, or a run folder.
      processors: their speeds, work per time; of a run, None: those that it was trained for.
      env: from `jaxlb.make`, in place of processors and the four below, for rules that know their workload. A
        run has what it was trained on in place of the four.
      params: of that.
      dispatchers: how many there are, this one included.
      size_known: whether `decide` is given sizes.
      load_known: whether it is given loads; if not, they follow from queue lengths.
      mean_size: of tasks, which matters where sizes or loads are not known.
      seed: for schedulers that draw.

    Raises:
      ValueError: a scheduler that reads the truth, or does what cannot be exported, or is for other systems.
    """
    if (env is None) != (params is None):
        raise ValueError("env and params go together: give both or none")
    if env is None or params is None:
        if processors is not None and (np.ndim(processors) != 1 or not np.size(processors)):
            raise ValueError(f"processors = {processors!r}: must be a list, a speed for each")
        speed = {} if processors is None else {"speed": np.asarray(processors, float).tolist()}
        if is_run(scheduler):  # what it was trained on, but for the speeds
            spec = runs.find(Path(str(scheduler))).training.spec()
            env, params = replace(spec, overrides=spec.overrides | speed).make()
        elif processors is not None:
            env, params = make(
                **speed,
                load=0.7,
                mean_size=mean_size,
                dispatchers=dispatchers,
                size_visible=size_known,
                wait_visible=load_known,
            )
        else:
            raise ValueError("processors: must be given, a speed for each, where env and params are not")
    elif processors is not None:
        raise ValueError("processors: must not be given beside env, which has them")
    found = exported(scheduler, env, params)
    source, arrays = as_python(found)
    return runtime.Decider(found.about, source, arrays, seed)
