"""Programs as one C header, which needs the standard library and nothing else."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlb.live.program import ELEMENTWISE, Program, Step, Value, is_mixed, row_put, rows_taken

TYPES = {"float32": "float", "int32": "int32_t", "uint32": "uint32_t", "bool": "_Bool"}
_EACH: dict[str, Any] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "floor": "floorf({0})",
    "ceil": "ceilf({0})",
    "sqrt": "sqrtf({0})",
    "rsqrt": "1.0f / sqrtf({0})",
    "exp": "expf({0})",
    "exp2": "exp2f({0})",
    "log": "logf({0})",
    "log1p": "log1pf({0})",
    "expm1": "expm1f({0})",
    "tanh": "tanhf({0})",
    "logistic": "1.0f / (1.0f + expf(-{0}))",
    "pow": "powf({0}, {1})",
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
    "is_finite": "isfinite({0})",
    "nextafter": "nextafterf({0}, {1})",
    "shift_right_logical": "{0} >> {1}",
    "shift_left": "{0} << {1}",
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


class Constants:
    """Arrays of a header by name."""

    def __init__(self, prefix: str):
        """Begin with none."""
        self._prefix, self._names = prefix, dict[tuple[str, bytes], str]()
        self.lines: list[str] = []

    def name(self, array: np.ndarray) -> str:
        """Return the name of an array, flat."""
        flat = np.ascontiguousarray(array).reshape(-1)
        same = str(flat.dtype), flat.tobytes()
        if same not in self._names:
            name = self._names[same] = f"{self._prefix}_c{len(self._names)}"
            numbers = ", ".join(map(literal, flat))
            self.lines.append(f"static const {TYPES[str(flat.dtype)]} {name}[{flat.size}] = {{{numbers}}};")
        return self._names[same]


def body(program: Program, inputs: Sequence[str], outputs: Sequence[str], constants: Constants) -> list[str]:
    """Return the statements of a program.

    Args:
      program: what it does.
      inputs: expressions of its inputs: of a number, or of an array.
      outputs: where its outputs go, likewise.
      constants: filled.
    """
    code = _Code(constants)
    for value, expression in zip(program.inputs, inputs, strict=True):
        code.names[value.place] = expression, value.size
    lines = [line for step in program.steps for line in code.lines(step)]
    # What goes out may be read from what came in: copied first.
    copies, moves = [], []
    for index, (value, target) in enumerate(zip(program.outputs, outputs, strict=True)):
        if value.size == 1:
            copies.append(f"const {TYPES[str(value.dtype)]} o{index} = {code.scalar(value)};")
            moves.append(f"{target} = o{index};")
        else:
            kind, name = TYPES[str(value.dtype)], f"o{index}"
            copies.append(f"{kind} {name}[{value.size}];")
            copies.append(f"for (int i = 0; i < {value.size}; i++) {name}[i] = {code.entry(value, 'i')};")
            moves.append(f"memcpy({target}, {name}, sizeof {name});")
    return lines + copies + moves


class _Code:
    def __init__(self, constants: Constants):
        self.constants = constants
        self.names: dict[int, tuple[str, int]] = {}

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

    def lines(self, step: Step) -> list[str]:
        """Return the statements of an instruction."""
        lines = []
        for value in step.outputs:
            self.names[value.place] = f"v{value.place}", value.size
        out = step.outputs[0]
        kind, name = TYPES[str(out.dtype)], f"v{out.place}"
        if step.name in ELEMENTWISE and out.size == 1:
            return [f"const {kind} {name} = {self._each(step, list(map(self.scalar, step.inputs)))};"]
        for value in step.outputs:
            size = f"[{value.size}]" if value.size > 1 else ""
            lines.append(f"{TYPES[str(value.dtype)]} v{value.place}{size};")
        if step.name in ELEMENTWISE and not is_mixed(step):
            text = self._each(step, [self.entry(value, "i") for value in step.inputs])
            return [*lines, f"for (int i = 0; i < {out.size}; i++) {name}[i] = {text};"]
        if step.name in ELEMENTWISE:
            operands = [self.entry(value, _place(value.shape, out.shape)) for value in step.inputs]
            text = f"{self.put(out, _place(out.shape, out.shape))} = {self._each(step, operands)};"
            return [*lines, _loops(out.shape, text)]
        return lines + _STRUCTURED[step.name](self, step)

    def put(self, out: Value, index: str) -> str:
        """Return an expression of the place of an entry of a result."""
        return f"v{out.place}" if out.size == 1 else f"v{out.place}[{index}]"

    def _each(self, step: Step, operands: Sequence[str]) -> str:
        rule = _EACH[step.name]
        return str(rule(step, *operands)) if callable(rule) else rule.format(*operands)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _place(shape: Sequence[int], loops: Sequence[int], axes: Sequence[int] | None = None) -> str:
    """Return the flat index of an array whose axes are those of loops i0, i1, ...; axes of one entry stay."""
    axes = range(len(shape)) if axes is None else axes
    pairs = zip(shape, _strides(shape), axes, strict=True)
    terms = [f"i{axis} * {stride}" if stride > 1 else f"i{axis}" for size, stride, axis in pairs if size > 1]
    return " + ".join(terms) or "0"


def _loops(shape: Sequence[int], text: str) -> str:
    heads = [f"for (int i{axis} = 0; i{axis} < {size}; i{axis}++)" for axis, size in enumerate(shape)]
    return " ".join([*heads, "{", text, "}"])


def _broadcast(code: _Code, step: Step) -> list[str]:
    (x, *_), out = step.inputs, step.outputs[0]
    source = code.entry(x, _place(x.shape, out.shape, step.params["broadcast_dimensions"]))
    return [_loops(out.shape, f"{code.put(out, _place(out.shape, out.shape))} = {source};")]


def _transpose(code: _Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    order = step.params["permutation"]
    source = code.entry(x, _place(x.shape, out.shape, [order.index(axis) for axis in range(len(order))]))
    return [_loops(out.shape, f"{code.put(out, _place(out.shape, out.shape))} = {source};")]


def _slice(code: _Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    strides, starts = step.params["strides"] or (1,) * len(x.shape), step.params["start_indices"]
    terms = [
        f"({start} + i{axis} * {by}) * {stride}"
        for axis, (start, by, stride) in enumerate(zip(starts, strides, _strides(x.shape), strict=True))
    ]
    text = f"{code.put(out, _place(out.shape, out.shape))} = {code.entry(x, ' + '.join(terms))};"
    return [_loops(out.shape, text)]


def _dynamic_slice(code: _Code, step: Step) -> list[str]:
    (x, *starts), out = step.inputs, step.outputs[0]
    terms = [
        f"(jaxlb_part({code.scalar(start)}, {size}, {whole}) + i{axis}) * {stride}"
        for axis, (start, size, whole, stride) in enumerate(
            zip(starts, out.shape, x.shape, _strides(x.shape), strict=True)
        )
    ]
    text = f"{code.put(out, _place(out.shape, out.shape))} = {code.entry(x, ' + '.join(terms))};"
    return [_loops(out.shape, text)]


def _dynamic_update_slice(code: _Code, step: Step) -> list[str]:
    (x, new, *starts), out = step.inputs, step.outputs[0]
    terms = [
        f"(jaxlb_part({code.scalar(start)}, {size}, {whole}) + i{axis}) * {stride}"
        for axis, (start, size, whole, stride) in enumerate(
            zip(starts, new.shape, x.shape, _strides(x.shape), strict=True)
        )
    ]
    source = code.entry(new, _place(new.shape, new.shape))
    return [
        f"for (int i = 0; i < {x.size}; i++) {code.put(out, 'i')} = {code.entry(x, 'i')};",
        _loops(new.shape, f"{code.put(out, ' + '.join(terms))} = {source};"),
    ]


def _concatenate(code: _Code, step: Step) -> list[str]:
    out, axis, before, lines = step.outputs[0], step.params["dimension"], 0, []
    stride = _strides(out.shape)[axis]
    for x in step.inputs:
        target = f"{_place(out.shape, x.shape)} + {before * stride}"
        lines.append(_loops(x.shape, f"{code.put(out, target)} = {code.entry(x, _place(x.shape, x.shape))};"))
        before += x.shape[axis]
    return lines


def _stack(code: _Code, step: Step) -> list[str]:
    out, axis, lines = step.outputs[0], step.params["axis"], []
    stride = _strides(out.shape)[axis]
    for place, x in enumerate(step.inputs):
        others = [i for i in range(len(out.shape)) if i != axis]
        terms = [f"i{loop} * {_strides(out.shape)[i]}" for loop, i in enumerate(others)]
        target = " + ".join([*terms, str(place * stride)])
        lines.append(_loops(x.shape, f"{code.put(out, target)} = {code.entry(x, _place(x.shape, x.shape))};"))
    return lines


_REDUCE = {
    "reduce_sum": ("0", "{0} += {1};"),
    "reduce_prod": ("1", "{0} *= {1};"),
    "reduce_or": ("0", "{0} |= {1};"),
    "reduce_and": ("1", "{0} &= {1};"),
    "reduce_max": ("-INFINITY", "{0} = jaxlb_max({0}, {1});"),
    "reduce_min": ("INFINITY", "{0} = jaxlb_min({0}, {1});"),
}


def _reduce(code: _Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    first, text = _REDUCE[step.name]
    if step.name in ("reduce_max", "reduce_min") and out.dtype.kind != "f":
        sign, first = (">", "INT32_MIN") if step.name == "reduce_max" else ("<", "INT32_MAX")
        text = "if ({1} " + sign + " {0}) {0} = {1};"
    kept = [axis for axis in range(len(x.shape)) if axis not in step.params["axes"]]
    target = code.put(out, _place(out.shape, x.shape, kept))
    begin = f"for (int i = 0; i < {out.size}; i++) {code.put(out, 'i')} = {first};"
    return [begin, _loops(x.shape, text.format(target, code.entry(x, _place(x.shape, x.shape))))]


def _arg(code: _Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    if len([size for size in x.shape if size > 1]) > 1:
        raise NotImplementedError(f"{step.name} of several axes")
    sign, target = ">" if step.name == "argmax" else "<", code.put(out, "0")
    now, best = code.entry(x, "i"), code.entry(x, target)
    better = f"{now} {sign} {best} || ({now} != {now} && {best} == {best})"
    return [f"{target} = 0;", f"for (int i = 1; i < {x.size}; i++) if ({better}) {target} = i;"]


def _cumsum(code: _Code, step: Step) -> list[str]:
    (x,), out, axis = step.inputs, step.outputs[0], step.params["axis"]
    shape, size = x.shape, x.shape[axis]
    here = _place(shape, shape)
    stride = _strides(shape)[axis]
    before, last = (f"{here} + {stride}", size - 1) if step.params["reverse"] else (f"{here} - {stride}", 0)
    text = (
        f"{code.put(out, here)} = {code.entry(x, here)} + (i{axis} == {last} ? 0 : {code.put(out, before)});"
    )
    heads = [
        f"for (int i{i} = {n - 1}; i{i} >= 0; i{i}--)"
        if i == axis and step.params["reverse"]
        else f"for (int i{i} = 0; i{i} < {n}; i{i}++)"
        for i, n in enumerate(shape)
    ]
    return [" ".join([*heads, text])]


def _sort(code: _Code, step: Step) -> list[str]:
    (x, *_), number = step.inputs, step.inputs[0].size
    if len(x.shape) != 1 or step.params["num_keys"] != 1:
        raise NotImplementedError("sort of several axes, or by several keys")
    order, key = f"s{step.outputs[0].place}", code.entry(x, f"s{step.outputs[0].place}[j - 1]")
    own = code.entry(x, "i")
    after = f"{key} > {own} || ({key} != {key} && {own} == {own})"  # what is no number comes last
    lines = [
        f"int {order}[{number}];",
        f"for (int i = 0; i < {number}; i++) {{ int j = i;",
        f"for (; j > 0 && ({after}); j--) {order}[j] = {order}[j - 1];",
        f"{order}[j] = i; }}",
    ]
    for value, out in zip(step.inputs, step.outputs, strict=True):
        source = code.entry(value, f"{order}[i]")
        lines.append(f"for (int i = 0; i < {number}; i++) {code.put(out, 'i')} = {source};")
    return [*lines, *(f"(void){code.put(out, '0')};" for out in step.outputs)]


def _dot(code: _Code, step: Step) -> list[str]:
    (left, right), out = step.inputs, step.outputs[0]
    ((of_left, of_right), batch) = step.params["dimension_numbers"]
    if batch[0] or batch[1] or len(of_left) != 1:
        raise NotImplementedError("products of several axes")
    rows = [axis for axis in range(len(left.shape)) if axis != of_left[0]]
    columns = [axis for axis in range(len(right.shape)) if axis != of_right[0]]
    depth = left.shape[of_left[0]]
    a, b = _strides(left.shape), _strides(right.shape)
    of_a = [f"i{place} * {a[axis]}" for place, axis in enumerate(rows)] + [f"k * {a[of_left[0]]}"]
    of_b = [f"i{len(rows) + place} * {b[axis]}" for place, axis in enumerate(columns)]
    of_b += [f"k * {b[of_right[0]]}"]
    # The columns innermost: entries of a result are summed side by side, in registers.
    sizes = [left.shape[axis] for axis in rows], [right.shape[axis] for axis in columns]
    outer = [f"for (int i{axis} = 0; i{axis} < {size}; i{axis}++)" for axis, size in enumerate(sizes[0])]
    inner = " ".join(
        f"for (int i{axis} = 0; i{axis} < {size}; i{axis}++)" for axis, size in enumerate(sizes[1], len(rows))
    )
    width = math.prod(sizes[1])
    own = _place([*sizes[1]], out.shape, range(len(rows), len(out.shape)))
    product = f"{code.entry(left, ' + '.join(of_a))} * {code.entry(right, ' + '.join(of_b))}"
    target = code.put(out, _place(out.shape, out.shape))
    return [
        f"{' '.join(outer)} {{ float sum[{width}] = {{0}};",
        f"for (int k = 0; k < {depth}; k++) {inner} sum[{own}] += {product};",
        f"{inner} {target} = sum[{own}]; }}",
    ]


def _gather(code: _Code, step: Step) -> list[str]:
    rows_taken(step)
    (x, index), out = step.inputs, step.outputs[0]
    width = x.size // x.shape[0]
    row = f"jaxlb_part({code.entry(index, 'i')}, 1, {x.shape[0]})"
    text = f"{code.put(out, f'i * {width} + j')} = {code.entry(x, f'{row} * {width} + j')};"
    return [f"for (int i = 0; i < {index.size}; i++) for (int j = 0; j < {width}; j++) {text}"]


def _scatter(code: _Code, step: Step) -> list[str]:
    row_put(step)
    (x, index, new), out = step.inputs, step.outputs[0]
    width, row = x.size // x.shape[0], code.scalar(index)
    sign = "+=" if step.name == "scatter-add" else "="
    there = f"{row} >= 0 && {row} < {x.shape[0]}"
    text = f"{code.put(out, f'{row} * {width} + i')} {sign} {code.entry(new, 'i')};"
    return [
        f"for (int i = 0; i < {x.size}; i++) {code.put(out, 'i')} = {code.entry(x, 'i')};",
        f"if ({there}) for (int i = 0; i < {width}; i++) {text}",
    ]


def _key(code: _Code, value: Value, place: int) -> tuple[str, str]:
    """Return the declaration of a key of two words, and its name."""
    words = f"{{{code.entry(value, '0')}, {code.entry(value, '1')}}}"
    return f"const uint32_t k{place}[2] = {words};", f"k{place}"


def _random_bits(code: _Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    if step.params["bit_width"] != 32:
        raise NotImplementedError("random words of other than 32 bits")
    each, keys = math.prod(step.params["shape"]), x.size // 2
    words = f"{{{code.entry(x, '2 * i')}, {code.entry(x, '2 * i + 1')}}}"
    return [
        f"for (int i = 0; i < {keys}; i++) {{ const uint32_t own[2] = {words}; uint32_t pair[2];",
        f"for (int j = 0; j < {each}; j++) {{ jaxlb_threefry(own, 0, (uint32_t)j, pair);",
        f"{code.put(out, f'i * {each} + j')} = pair[0] ^ pair[1]; }} }}",
    ]


def _random_split(code: _Code, step: Step) -> list[str]:
    if len(step.inputs[0].shape) != 1:
        raise NotImplementedError("split of several keys")
    out = step.outputs[0]
    declared, name = _key(code, step.inputs[0], out.place)
    call = f"jaxlb_threefry({name}, 0, (uint32_t)i, &v{out.place}[2 * i]);"
    return [declared, f"for (int i = 0; i < {out.size // 2}; i++) {call}"]


def _random_fold_in(code: _Code, step: Step) -> list[str]:
    out = step.outputs[0]
    declared, name = _key(code, step.inputs[0], out.place)
    return [declared, f"jaxlb_threefry({name}, 0, {code.scalar(step.inputs[1])}, v{out.place});"]


_STRUCTURED: dict[str, Callable[[_Code, Step], list[str]]] = {
    **dict.fromkeys(_REDUCE, _reduce),
    "argmax": _arg,
    "argmin": _arg,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumsum": _cumsum,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "random_bits": _random_bits,
    "random_fold_in": _random_fold_in,
    "random_split": _random_split,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "slice": _slice,
    "sort": _sort,
    "stack": _stack,
    "transpose": _transpose,
}
