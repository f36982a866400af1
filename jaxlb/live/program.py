"""A pure function of fixed shapes as a list of instructions, to be written down in another language.

Functions within are opened, what is constant is computed, what is the same is computed once, and what nothing
needs is left out. Of keys, only their words are known: `uint32` with one more axis, of two.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_OPENED = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "checkpoint",
)
_SAME = (
    "copy",
    "copy_p",
    "stop_gradient",
    "optimization_barrier",
    "random_wrap",
    "random_unwrap",
    "random_clone",
)
ELEMENTWISE = frozenset(
    (
        *("add", "sub", "mul", "div", "rem", "max", "min", "neg", "abs", "sign", "floor", "ceil", "round"),
        *(
            "sqrt",
            "rsqrt",
            "exp",
            "exp2",
            "log",
            "log2",
            "log1p",
            "expm1",
            "tanh",
            "logistic",
            "pow",
            "integer_pow",
        ),
        *("square", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "is_finite", "select_n"),
        *("clamp", "convert_element_type", "bitcast_convert_type", "nextafter"),
        *("shift_right_logical", "shift_left"),
    )
)
"""Operations on each entry by itself; axes of one entry are the same for all of another operand's."""
STRUCTURED = frozenset(
    (
        *("broadcast_in_dim", "transpose", "slice", "concatenate", "stack", "cumsum", "sort"),
        *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_or", "reduce_and"),
        *("argmax", "argmin", "dot_general", "gather", "scatter", "scatter-add"),
        *("dynamic_slice", "dynamic_update_slice", "random_bits", "random_split", "random_fold_in"),
    )
)
"""The others."""
INFIX: dict[str, Any] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "square": "{0} * {0}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "shift_right_logical": "{0} >> {1}",
    "shift_left": "{0} << {1}",
}
"""What some instructions are in C and in Python alike, by their inputs."""


class Value(NamedTuple):
    """An array: a constant, or what an instruction or an input is stored as."""

    shape: tuple[int, ...]
    dtype: np.dtype
    place: int  # of the storage; -1: a constant
    offset: int = 0  # entries before it there
    constant: Any = None

    @property
    def size(self) -> int:
        """How many entries there are."""
        return math.prod(self.shape)


class Constants:
    """Arrays of programs by name, flat; the same array has one name."""

    def __init__(self, prefix: str = ""):
        """Begin with none; names begin with the prefix."""
        self.arrays: dict[str, np.ndarray] = {}
        self._prefix, self._names = prefix, dict[tuple[str, bytes], str]()

    def name(self, array: np.ndarray) -> str:
        """Return the name of an array."""
        flat = np.ascontiguousarray(array).reshape(-1)
        same = str(flat.dtype), flat.tobytes()
        if same not in self._names:
            self._names[same] = f"{self._prefix}c{len(self._names)}"
            self.arrays[self._names[same]] = flat
        return self._names[same]


class Step(NamedTuple):
    """An instruction."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: dict[str, Any]


def is_mixed(step: Step) -> bool:
    """Return whether entries of an operand of several entries are each used for several of the result."""
    return any(value.size not in (1, step.outputs[0].size) for value in step.inputs)


def rows_taken(step: Step) -> None:
    """Raise NotImplementedError unless a gather takes whole rows, one for each index."""
    numbers, (x, index) = step.params["dimension_numbers"], step.inputs
    whole = tuple(step.params["slice_sizes"]) == (1, *x.shape[1:])
    first = (
        numbers.start_index_map == (0,) and numbers.collapsed_slice_dims == (0,) and index.shape[-1:] == (1,)
    )
    behind = numbers.offset_dims == tuple(range(len(index.shape) - 1, len(index.shape) - 2 + len(x.shape)))
    if not (whole and first and behind) or numbers.operand_batching_dims:
        raise NotImplementedError("gather of anything but rows")


def row_put(step: Step) -> None:
    """Raise NotImplementedError unless a scatter sets one whole row."""
    numbers, (x, index, new) = step.params["dimension_numbers"], step.inputs
    first = numbers.inserted_window_dims == (0,) and numbers.scatter_dims_to_operand_dims == (0,)
    if not first or index.size != 1 or new.size * x.shape[0] != x.size or numbers.operand_batching_dims:
        raise NotImplementedError("scatter of anything but a row")


class Program(NamedTuple):
    """Inputs, instructions in order, outputs."""

    inputs: tuple[Value, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]

    def reads(self) -> list[bool]:
        """Return which inputs matter."""
        used = {value.place for step in self.steps for value in step.inputs}
        used |= {value.place for value in self.outputs}
        return [value.place in used for value in self.inputs]


class Stored:
    """What values are called in the text of a program, and of how many entries the thing of that name is."""

    def __init__(self, constants: Constants, program: Program, inputs: Sequence[str]):
        """Begin with the inputs, and what they are called; constants are filled."""
        self.constants = constants
        self.names: dict[int, tuple[str, int]] = {}
        for value, text in zip(program.inputs, inputs, strict=True):
            self.names[value.place] = text, value.size

    def store(self, step: Step) -> None:
        """Name the outputs of an instruction."""
        for value in step.outputs:
            self.names[value.place] = f"v{value.place}", value.size


def traced(function: Callable, *inputs: Any) -> Program:
    """Return the program of `function(*inputs)`; leaves of inputs and outputs in the order of `jax.tree`.

    Args:
      function: pure.
      inputs: pytrees of arrays, or of their shapes and types.

    Raises:
      NotImplementedError: it does what no program here can.
    """
    jaxpr = jax.make_jaxpr(function)(*inputs)
    writer = _Writer()
    given = [writer.new(_shape(v.aval), _dtype(v.aval)) for v in jaxpr.jaxpr.invars]
    outputs = tuple(writer.open(jaxpr, given))
    return Program(tuple(given), _needed(writer.steps, outputs), outputs)


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _shape(aval: Any) -> tuple[int, ...]:
    return (*aval.shape, 2) if _is_key(aval) else tuple(aval.shape)


def _dtype(aval: Any) -> np.dtype:
    return np.dtype(np.uint32) if _is_key(aval) else np.dtype(aval.dtype)


def _constant(array: Any) -> Value:
    if isinstance(array, jax.Array) and _is_key(array):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    return Value(array.shape, array.dtype, -1, constant=array)


class _Writer:
    """Instructions so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._places = 0
        self._known: dict[Any, tuple[Value, ...]] = {}

    def new(self, shape: tuple[int, ...], dtype: np.dtype) -> Value:
        """Return a value that is stored in a place of its own."""
        self._places += 1
        return Value(shape, dtype, self._places - 1)

    def open(self, jaxpr: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
        """Write down what a function does with these inputs; return its outputs."""
        values: dict[Any, Value] = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        values |= zip(jaxpr.jaxpr.constvars, map(_constant, jaxpr.consts), strict=True)

        def value(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return _constant(np.asarray(atom.val, _dtype(atom.aval)))
            return values[atom]

        for equation in jaxpr.jaxpr.eqns:
            given = [value(atom) for atom in equation.invars]
            values |= zip(equation.outvars, self._of(equation, given), strict=True)
        return [value(atom) for atom in jaxpr.jaxpr.outvars]

    def _of(self, equation: Any, given: Sequence[Value]) -> Sequence[Value]:
        name, params = equation.primitive.name, equation.params
        if name in _OPENED:
            inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
            return self.open(ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner, given)
        out = [(_shape(v.aval), _dtype(v.aval)) for v in equation.outvars]
        if name == "unstack" and given[0].place >= 0:  # along the first axis, each is in one piece
            if params["axis"] != 0:
                raise NotImplementedError(name)
            whole, each = given[0], given[0].size // len(out)
            return [
                whole._replace(shape=shape, offset=whole.offset + number * each)
                for number, (shape, _) in enumerate(out)
            ]
        if name in _SAME:
            return [value._replace(shape=shape) for value, (shape, _) in zip(given, out, strict=True)]
        keys = any(_is_key(v.aval) for v in (*equation.invars, *equation.outvars))
        if all(value.place < 0 for value in given) and not keys:
            found = equation.primitive.bind(*(value.constant for value in given), **params)
            return list(map(_constant, found if equation.primitive.multiple_results else [found]))
        alias = _alias(name, params, given, out[0])
        if alias is not None:
            return [alias]
        if name not in ELEMENTWISE | STRUCTURED:
            raise NotImplementedError(name)
        same = name, tuple(map(_identity, given)), str(params), tuple(out)
        if same not in self._known:
            outputs = tuple(self.new(*one) for one in out)
            self._known[same] = outputs
            self.steps.append(Step(name, tuple(given), outputs, dict(params)))
        return self._known[same]


def _identity(value: Value) -> Any:
    if value.place >= 0:
        return value
    return value.shape, str(value.dtype), value.constant.tobytes()


def _alias(name: str, params: Any, given: Sequence[Value], out: tuple) -> Value | None:
    """Return a value that is stored already, in another shape or as a part; None if it is none."""
    first, (shape, dtype) = (given[0] if given else None), out
    if first is None or first.place < 0:
        return None
    if name in ("squeeze", "expand_dims", "reshape"):
        return first._replace(shape=shape)
    if name == "convert_element_type" and dtype == first.dtype:
        return first._replace(shape=shape)
    if name == "broadcast_in_dim" and math.prod(shape) == first.size:
        return first._replace(shape=shape)
    if name == "transpose" and sum(size > 1 for size in first.shape) <= 1:
        return first._replace(shape=shape)
    if name == "slice" and set(params["strides"] or (1,)) == {1}:
        starts = params["start_indices"]
        # A part of the first axis, or of the first that has more than one entry, is in one piece.
        cut = [axis for axis in range(len(shape)) if shape[axis] != first.shape[axis]]
        if not cut or (all(first.shape[axis] == 1 for axis in range(cut[0])) and len(cut) == 1):
            before = 0 if not cut else starts[cut[0]] * math.prod(first.shape[cut[0] + 1 :])
            return first._replace(shape=shape, offset=first.offset + before)
    return None


def _needed(steps: Sequence[Step], outputs: Sequence[Value]) -> tuple[Step, ...]:
    """Return the instructions that outputs hang on."""
    used, kept = {value.place for value in outputs}, []
    for step in reversed(steps):
        if any(value.place in used for value in step.outputs):
            kept.append(step)
            used |= {value.place for value in step.inputs}
    return tuple(reversed(kept))
