"""Pieces of C: numbers, constants, operations on each entry, places of values."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlb.live.program import INFIX, Constants, Step, Stored, Value

TYPES = {"float32": "float", "int32": "int32_t", "uint32": "uint32_t", "bool": "_Bool"}
_EACH: dict[str, Any] = INFIX | {
    "div": "{0} / {1}",
    "floor": "floorf({0})",
    "ceil": "ceilf({0})",
    "sqrt": "sqrtf({0})",
    "rsqrt": "1.0f / sqrtf({0})",
    "exp": "expf({0})",
    "exp2": "exp2f({0})",
    "log": "logf({0})",
    "log2": "log2f({0})",
    "log1p": "log1pf({0})",
    "expm1": "expm1f({0})",
    "tanh": "tanhf({0})",
    "logistic": "1.0f / (1.0f + expf(-{0}))",
    "pow": "powf({0}, {1})",
    "is_finite": "isfinite({0})",
    "nextafter": "nextafterf({0}, {1})",
    "select_n": "{0} ? {2} : {1}",
    "rem": lambda step, a, b: f"fmodf({a}, {b})" if _real(step) else f"{a} % {b}",
    "max": lambda step, a, b: f"jaxlb_max({a}, {b})" if _real(step) else f"({a} > {b} ? {a} : {b})",
    "min": lambda step, a, b: f"jaxlb_min({a}, {b})" if _real(step) else f"({a} < {b} ? {a} : {b})",
    "abs": lambda step, x: f"fabsf({x})" if _real(step) else f"({x} < 0 ? -{x} : {x})",
    "sign": lambda step, x: f"({x} > 0) - ({x} < 0)",
    "not": lambda step, x: f"!{x}" if step.outputs[0].dtype.kind == "b" else f"~{x}",
    "round": lambda step, x: (
        f"rintf({x})" if "EVEN" in str(step.params["rounding_method"]) else f"roundf({x})"
    ),
    "clamp": lambda step, low, x, high: (
        f"jaxlb_min(jaxlb_max({x}, {low}), {high})"
        if _real(step)
        else f"({x} < {low} ? {low} : {x} > {high} ? {high} : {x})"
    ),
    "integer_pow": lambda step, x: _integer_pow(step.params["y"], x),
    "convert_element_type": lambda step, x: (
        f"({x} != 0)" if step.outputs[0].dtype.kind == "b" else f"({TYPES[str(step.outputs[0].dtype)]}){x}"
    ),
    "bitcast_convert_type": lambda step, x: f"jaxlb_as_{step.outputs[0].dtype}({x})",
}
HEAD = """
static inline float jaxlb_max(float a, float b) { return a > b || a != a ? a : b; }
static inline float jaxlb_min(float a, float b) { return a < b || a != a ? a : b; }
static inline float jaxlb_as_float32(uint32_t x) { float y; memcpy(&y, &x, 4); return y; }
static inline uint32_t jaxlb_as_uint32(float x) { uint32_t y; memcpy(&y, &x, 4); return y; }
static inline int jaxlb_part(int32_t first, int size, int whole) {
  return first < 0 ? 0 : first > whole - size ? whole - size : first;
}
/* The block cipher of jax.random, threefry-2x32 of 20 rounds (Salmon et al. 2011). */
static inline void jaxlb_threefry(const uint32_t *key, uint32_t a, uint32_t b, uint32_t *out) {
  static const int turn[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  a += keys[0]; b += keys[1];
  for (uint32_t group = 0; group < 5; group++) {
    for (int i = 0; i < 4; i++) {
      const int by = turn[group % 2][i];
      a += b; b = a ^ ((b << by) | (b >> (32 - by)));
    }
    a += keys[(group + 1) % 3]; b += keys[(group + 2) % 3] + group + 1;
  }
  out[0] = a; out[1] = b;
}
"""


def _real(step: Step) -> bool:
    return step.outputs[0].dtype.kind == "f"


def _integer_pow(power: int, x: str) -> str:
    if abs(power) > 4:
        return f"powf({x}, {float(power)!r}f)"
    text = " * ".join([x] * abs(power))
    return text if power > 0 else f"1.0f / ({text})"


def literal(number: Any) -> str:
    """Return a number as C has it."""
    if isinstance(number, (np.bool_, bool)):
        return "1" if number else "0"
    if isinstance(number, np.floating):
        if not np.isfinite(number):
            return "NAN" if np.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
        text = f"{number:.9g}"
        return (text if re.search(r"[.e]", text) else f"{text}.0") + "f"
    return f"{int(number)}u" if isinstance(number, np.unsignedinteger) else f"{int(number)}"


def declared(constants: Constants) -> list[str]:
    """Return the declarations of constants."""
    return [
        f"static const {TYPES[str(array.dtype)]} {name}[{array.size}] = {{{', '.join(map(literal, array))}}};"
        for name, array in constants.arrays.items()
    ]


class Code(Stored):
    """Expressions of what is stored."""

    def scalar(self, value: Value) -> str:
        """Return an expression of a value of one entry."""
        if value.place < 0:
            return literal(value.constant.reshape(-1)[0])
        name, whole = self.names[value.place]
        return name if whole == 1 else f"{name}[{value.offset}]"

    def entry(self, value: Value, index: str) -> str:
        """Return an expression of one entry of a flat value; of the only one, whatever the index."""
        if value.size == 1:
            return self.scalar(value)
        if value.place < 0:
            return f"{self.constants.name(value.constant)}[{index}]"
        name, _ = self.names[value.place]
        return f"{name}[{value.offset} + {index}]" if value.offset else f"{name}[{index}]"

    def put(self, out: Value, index: str) -> str:
        """Return an expression of the place of an entry of a result."""
        return f"v{out.place}" if out.size == 1 else f"v{out.place}[{index}]"

    def each(self, step: Step, operands: Sequence[str]) -> str:
        """Return an expression of an operation on each entry."""
        rule = _EACH[step.name]
        return str(rule(step, *operands)) if callable(rule) else rule.format(*operands)


def strides(shape: Sequence[int]) -> list[int]:
    """Return by how much the flat index grows along each axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def index_of(shape: Sequence[int], loops: Sequence[int], axes: Sequence[int] | None = None) -> str:
    """Return the flat index of an array whose axes are those of loops i0, i1, ...; axes of one entry stay."""
    axes = range(len(shape)) if axes is None else axes
    pairs = zip(shape, strides(shape), axes, strict=True)
    terms = [f"i{axis} * {stride}" if stride > 1 else f"i{axis}" for size, stride, axis in pairs if size > 1]
    return " + ".join(terms) or "0"


def loops(shape: Sequence[int], text: str) -> str:
    """Return a statement within loops i0, i1, ... over a shape."""
    heads = [f"for (int i{axis} = 0; i{axis} < {size}; i{axis}++)" for axis, size in enumerate(shape)]
    return " ".join([*heads, "{", text, "}"])
