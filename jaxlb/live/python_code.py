"""Programs as Python that needs NumPy and nothing else."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxlb.live.program import (
    ELEMENTWISE,
    INFIX,
    Constants,
    Program,
    Step,
    Stored,
    Value,
    is_mixed,
    row_put,
    rows_taken,
)

_EACH: dict[str, Any] = INFIX | {
    "rem": "np.fmod({0}, {1})",
    "max": "np.maximum({0}, {1})",
    "min": "np.minimum({0}, {1})",
    "abs": "np.abs({0})",
    "sign": "np.sign({0})",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "sqrt": "np.sqrt({0})",
    "rsqrt": "np.float32(1) / np.sqrt({0})",
    "exp": "np.exp({0})",
    "exp2": "np.exp2({0})",
    "log": "np.log({0})",
    "log2": "np.log2({0})",
    "log1p": "np.log1p({0})",
    "expm1": "np.expm1({0})",
    "tanh": "np.tanh({0})",
    "logistic": "np.float32(1) / (np.float32(1) + np.exp(-{0}))",
    "pow": "np.power({0}, {1})",
    "not": "~{0}",
    "is_finite": "np.isfinite({0})",
    "clamp": "np.minimum(np.maximum({1}, {0}), {2})",
    "nextafter": "np.nextafter({0}, {1})",
}
_FEW = 64
"""Entries that are added one after the other, as compiled programs do; ties may hang on it."""
_REDUCE = {
    "reduce_sum": "np.add",
    "reduce_prod": "np.multiply",
    "reduce_max": "np.maximum",
    "reduce_min": "np.minimum",
    "reduce_or": "np.logical_or",
    "reduce_and": "np.logical_and",
}


def function(name: str, program: Program, inputs: Sequence[str], constants: Constants) -> str:
    """Return the text of a function of that name.

    What has one entry is a scalar of NumPy, all else a flat array; constants are names of the module.

    Args:
      name: of the function.
      program: what it does.
      inputs: names of its arguments.
      constants: filled.
    """
    code = _Code(constants, program, inputs)
    lines = [line for step in program.steps for line in code.lines(step)]
    outputs = ", ".join(code.flat(value) for value in program.outputs)
    return "\n    ".join([f"def {name}({', '.join(inputs)}):", *lines, f"return {outputs},"]) + "\n"


class _Code(Stored):
    def flat(self, value: Value) -> str:
        """Return an expression of the value: a scalar, or a flat array."""
        if value.place < 0:
            name = self.constants.name(value.constant)
            return f"{name}[0]" if value.size == 1 else name
        name, whole = self.names[value.place]
        if whole == value.size:
            return name
        first = value.offset
        return f"{name}[{first}]" if value.size == 1 else f"{name}[{first}:{first + value.size}]"

    def shaped(self, value: Value) -> str:
        """Return an expression of the value as an array of its shape."""
        text = self.flat(value)
        if value.size == 1:
            text = f"np.array({text})"
        return text if len(value.shape) == 1 and value.size > 1 else f"{text}.reshape({value.shape})"

    def lines(self, step: Step) -> list[str]:
        """Return what assigns the outputs."""
        texts = _texts(self, step)
        self.store(step)
        return [
            f"v{value.place} = {text}" for value, text in zip(step.outputs, texts, strict=True) if value.size
        ]


def _texts(code: _Code, step: Step) -> list[str]:
    name, inputs, out = step.name, step.inputs, step.outputs[0]
    if name in _SPECIAL:
        return [_SPECIAL[name](code, step)]
    if name in ELEMENTWISE:
        mixed = is_mixed(step)
        operands = [code.shaped(value) if mixed and value.size > 1 else code.flat(value) for value in inputs]
        text = _EACH[name](step, *operands) if callable(_EACH[name]) else _EACH[name].format(*operands)
        return [_ended(f"({text})", out) if mixed else text]
    if name in _REDUCE:
        axes = tuple(step.params["axes"])
        if name == "reduce_sum" and len(inputs[0].shape) == 1 and 1 < inputs[0].size <= _FEW:
            return [f"np.add.accumulate({code.flat(inputs[0])})[-1]"]
        if len(inputs[0].shape) == 1:
            return [f"{_REDUCE[name]}.reduce({code.flat(inputs[0])}, dtype=np.{out.dtype})"]
        return [
            _ended(f"{_REDUCE[name]}.reduce({code.shaped(inputs[0])}, {axes}, dtype=np.{out.dtype})", out)
        ]
    if name == "sort":
        axis = step.params["dimension"]
        if step.params["num_keys"] != 1:
            raise NotImplementedError("sort by several keys")
        order = f"np.argsort({code.shaped(inputs[0])}, {axis}, kind='stable')"
        return [
            _ended(f"np.take_along_axis({code.shaped(value)}, {order}, {axis})", value) for value in inputs
        ]
    raise NotImplementedError(name)


def _ended(text: str, out: Value) -> str:
    """Return an expression of an array as values are stored: flat, or a scalar."""
    return f"{text}.reshape(-1)[0]" if out.size == 1 else f"{text}.reshape(-1)"


def _integer_pow(step: Step, x: str) -> str:
    power = abs(step.params["y"])
    text = " * ".join([x] * power) if power <= 4 else f"np.power({x}, np.{step.outputs[0].dtype}({power}))"
    return text if step.params["y"] > 0 else f"np.float32(1) / ({text})"


def _div(step: Step, a: str, b: str) -> str:
    if step.outputs[0].dtype.kind == "f":
        return f"{a} / {b}"
    return f"np.trunc(np.float64({a}) / np.float64({b})).astype(np.{step.outputs[0].dtype})"


def _round(step: Step, x: str) -> str:
    if "EVEN" in str(step.params["rounding_method"]):
        return f"np.rint({x})"
    return f"np.copysign(np.floor(np.abs({x}) + np.float32(0.5)), {x})"


def _select(step: Step, which: str, other: str, one: str) -> str:
    if step.outputs[0].size == 1:
        return f"{one} if {which} else {other}"
    return f"np.where({which}, {one}, {other})"


def _convert(step: Step, x: str) -> str:
    return f"{x}.astype(np.{step.outputs[0].dtype})"


def _bitcast(step: Step, x: str) -> str:
    return f"{x}.view(np.{step.outputs[0].dtype})"


def _broadcast(code: _Code, step: Step) -> str:
    (x, *_), out = step.inputs, step.outputs[0]
    if x.size == 1:
        return f"np.full({out.size}, {code.flat(x)})"
    shape = [1] * len(out.shape)
    for axis, size in zip(step.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return _ended(f"np.broadcast_to({code.flat(x)}.reshape({tuple(shape)}), {out.shape})", out)


def _transpose(code: _Code, step: Step) -> str:
    text = f"{code.shaped(step.inputs[0])}.transpose({tuple(step.params['permutation'])})"
    return _ended(text, step.outputs[0])


def _slice(code: _Code, step: Step) -> str:
    starts, limits = step.params["start_indices"], step.params["limit_indices"]
    strides = step.params["strides"] or (1,) * len(starts)
    parts = ", ".join(f"{a}:{b}:{c}" for a, b, c in zip(starts, limits, strides, strict=True))
    return _ended(f"{code.shaped(step.inputs[0])}[{parts}]", step.outputs[0])


def _concatenate(code: _Code, step: Step) -> str:
    axis = step.params["dimension"]
    parts = ", ".join(map(code.shaped, step.inputs))
    return _ended(f"np.concatenate(({parts},), {axis})", step.outputs[0])


def _stack(code: _Code, step: Step) -> str:
    out, axis = step.outputs[0], step.params["axis"]
    if all(value.size == 1 for value in step.inputs):
        return f"np.array(({', '.join(map(code.flat, step.inputs))},), np.{out.dtype})"
    return _ended(f"np.stack(({', '.join(map(code.shaped, step.inputs))},), {axis})", out)


def _cumsum(code: _Code, step: Step) -> str:
    (x,), axis, out = step.inputs, step.params["axis"], step.outputs[0]
    text = code.shaped(x)
    if step.params["reverse"]:
        text = f"np.flip(np.cumsum(np.flip({text}, {axis}), {axis}, np.{out.dtype}), {axis})"
    else:
        text = f"np.cumsum({text}, {axis}, np.{out.dtype})"
    return _ended(text, out)


def _arg(code: _Code, step: Step) -> str:
    (axis,), out = step.params["axes"], step.outputs[0]
    return _ended(f"np.array(np.{step.name}({code.shaped(step.inputs[0])}, {axis}), np.{out.dtype})", out)


def _dot(code: _Code, step: Step) -> str:
    (left, right), out = step.inputs, step.outputs[0]
    ((of_left, of_right), batch) = step.params["dimension_numbers"]
    if batch[0] or batch[1] or len(of_left) != 1:
        raise NotImplementedError("products of several axes")
    depth = left.shape[of_left[0]]
    a, b = code.shaped(left), code.shaped(right)
    if of_left[0] != len(left.shape) - 1:
        a = f"np.moveaxis({a}, {of_left[0]}, -1)"
    if of_right[0] != 0:
        b = f"np.moveaxis({b}, {of_right[0]}, 0)"
    if len(left.shape) > 1:
        # Row by row: of all rows at once, those that are equal would not get equal results, and ties be lost.
        a = f"{a}.reshape(-1, 1, {depth})"
    if len(right.shape) > 1:
        b = f"{b}.reshape({depth}, -1)"
    text = f"({a} @ {b})"
    return text if len(left.shape) == len(right.shape) == 1 else _ended(text, out)


def _gather(code: _Code, step: Step) -> str:
    rows_taken(step)
    (x, index), out = step.inputs, step.outputs[0]
    rows = f"{code.flat(x)}.reshape({x.shape[0]}, -1)"
    return _ended(f"{rows}[np.clip({code.flat(index)}, 0, {x.shape[0] - 1})]", out)


def _scatter(code: _Code, step: Step) -> str:
    row_put(step)
    x, index, new = step.inputs
    added = step.name == "scatter-add"
    width = x.size // x.shape[0]
    return f"put({code.flat(x)}, {code.flat(index)}, {code.flat(new)}, {width}, {added})"


def _dynamic_slice(code: _Code, step: Step) -> str:
    x, *starts = step.inputs
    sizes = step.params["slice_sizes"]
    parts = ", ".join(
        f"part({code.flat(start)}, {size}, {whole})"
        for start, size, whole in zip(starts, sizes, x.shape, strict=True)
    )
    return _ended(f"{code.shaped(x)}[{parts}]", step.outputs[0])


def _dynamic_update_slice(code: _Code, step: Step) -> str:
    x, new, *starts = step.inputs
    parts = ", ".join(
        f"part({code.flat(start)}, {size}, {whole})"
        for start, size, whole in zip(starts, new.shape, x.shape, strict=True)
    )
    return _ended(f"updated({code.shaped(x)}, ({parts},), {code.shaped(new)})", step.outputs[0])


def _random_bits(code: _Code, step: Step) -> str:
    shape = step.params["shape"]
    if step.params["bit_width"] != 32:
        raise NotImplementedError("random words of other than 32 bits")
    keys = math.prod(step.inputs[0].shape[:-1])
    text = f"bits({code.flat(step.inputs[0])}, {keys}, {math.prod(shape)})"
    return f"{text}[0]" if step.outputs[0].size == 1 else text


def _random_split(code: _Code, step: Step) -> str:
    if len(step.inputs[0].shape) != 1:
        raise NotImplementedError("split of several keys")
    return f"split({code.flat(step.inputs[0])}, {math.prod(step.params['shape'])})"


def _random_fold_in(code: _Code, step: Step) -> str:
    return f"fold_in({code.flat(step.inputs[0])}, {code.flat(step.inputs[1])})"


_EACH |= {
    "integer_pow": _integer_pow,
    "div": _div,
    "round": _round,
    "select_n": _select,
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
}
_SPECIAL: dict[str, Callable[[_Code, Step], str]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "concatenate": _concatenate,
    "stack": _stack,
    "cumsum": _cumsum,
    "argmax": _arg,
    "argmin": _arg,
    "dot_general": _dot,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "random_bits": _random_bits,
    "random_split": _random_split,
    "random_fold_in": _random_fold_in,
}
