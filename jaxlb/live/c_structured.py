"""Operations of C that are more than one on each entry."""

import math
from collections.abc import Callable

from jaxlb.live.c_parts import Code, index_of, loops, strides
from jaxlb.live.program import Step, Value, row_put, rows_taken


def _broadcast(code: Code, step: Step) -> list[str]:
    (x, *_), out = step.inputs, step.outputs[0]
    source = code.entry(x, index_of(x.shape, out.shape, step.params["broadcast_dimensions"]))
    return [loops(out.shape, f"{code.put(out, index_of(out.shape, out.shape))} = {source};")]


def _transpose(code: Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    order = step.params["permutation"]
    source = code.entry(x, index_of(x.shape, out.shape, [order.index(axis) for axis in range(len(order))]))
    return [loops(out.shape, f"{code.put(out, index_of(out.shape, out.shape))} = {source};")]


def _slice(code: Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    steps, starts = step.params["strides"] or (1,) * len(x.shape), step.params["start_indices"]
    terms = [
        f"({start} + i{axis} * {by}) * {stride}"
        for axis, (start, by, stride) in enumerate(zip(starts, steps, strides(x.shape), strict=True))
    ]
    text = f"{code.put(out, index_of(out.shape, out.shape))} = {code.entry(x, ' + '.join(terms))};"
    return [loops(out.shape, text)]


def _dynamic_slice(code: Code, step: Step) -> list[str]:
    (x, *starts), out = step.inputs, step.outputs[0]
    terms = [
        f"(jaxlb_part({code.scalar(start)}, {size}, {whole}) + i{axis}) * {stride}"
        for axis, (start, size, whole, stride) in enumerate(
            zip(starts, out.shape, x.shape, strides(x.shape), strict=True)
        )
    ]
    text = f"{code.put(out, index_of(out.shape, out.shape))} = {code.entry(x, ' + '.join(terms))};"
    return [loops(out.shape, text)]


def _dynamic_update_slice(code: Code, step: Step) -> list[str]:
    (x, new, *starts), out = step.inputs, step.outputs[0]
    terms = [
        f"(jaxlb_part({code.scalar(start)}, {size}, {whole}) + i{axis}) * {stride}"
        for axis, (start, size, whole, stride) in enumerate(
            zip(starts, new.shape, x.shape, strides(x.shape), strict=True)
        )
    ]
    source = code.entry(new, index_of(new.shape, new.shape))
    return [
        f"for (int i = 0; i < {x.size}; i++) {code.put(out, 'i')} = {code.entry(x, 'i')};",
        loops(new.shape, f"{code.put(out, ' + '.join(terms))} = {source};"),
    ]


def _concatenate(code: Code, step: Step) -> list[str]:
    out, axis, before, lines = step.outputs[0], step.params["dimension"], 0, []
    stride = strides(out.shape)[axis]
    for x in step.inputs:
        target = f"{index_of(out.shape, x.shape)} + {before * stride}"
        lines.append(
            loops(x.shape, f"{code.put(out, target)} = {code.entry(x, index_of(x.shape, x.shape))};")
        )
        before += x.shape[axis]
    return lines


def _stack(code: Code, step: Step) -> list[str]:
    out, axis, lines = step.outputs[0], step.params["axis"], []
    stride = strides(out.shape)[axis]
    for place, x in enumerate(step.inputs):
        others = [i for i in range(len(out.shape)) if i != axis]
        terms = [f"i{loop} * {strides(out.shape)[i]}" for loop, i in enumerate(others)]
        target = " + ".join([*terms, str(place * stride)])
        lines.append(
            loops(x.shape, f"{code.put(out, target)} = {code.entry(x, index_of(x.shape, x.shape))};")
        )
    return lines


_REDUCE = {
    "reduce_sum": ("0", "{0} += {1};"),
    "reduce_prod": ("1", "{0} *= {1};"),
    "reduce_or": ("0", "{0} |= {1};"),
    "reduce_and": ("1", "{0} &= {1};"),
    "reduce_max": ("-INFINITY", "{0} = jaxlb_max({0}, {1});"),
    "reduce_min": ("INFINITY", "{0} = jaxlb_min({0}, {1});"),
}


def _reduce(code: Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    first, text = _REDUCE[step.name]
    if step.name in ("reduce_max", "reduce_min") and out.dtype.kind != "f":
        sign, first = (">", "INT32_MIN") if step.name == "reduce_max" else ("<", "INT32_MAX")
        text = "if ({1} " + sign + " {0}) {0} = {1};"
    kept = [axis for axis in range(len(x.shape)) if axis not in step.params["axes"]]
    target = code.put(out, index_of(out.shape, x.shape, kept))
    begin = f"for (int i = 0; i < {out.size}; i++) {code.put(out, 'i')} = {first};"
    return [begin, loops(x.shape, text.format(target, code.entry(x, index_of(x.shape, x.shape))))]


def _arg(code: Code, step: Step) -> list[str]:
    (x,), out = step.inputs, step.outputs[0]
    if len([size for size in x.shape if size > 1]) > 1:
        raise NotImplementedError(f"{step.name} of several axes")
    sign, target = ">" if step.name == "argmax" else "<", code.put(out, "0")
    now, best = code.entry(x, "i"), code.entry(x, target)
    better = f"{now} {sign} {best} || ({now} != {now} && {best} == {best})"
    return [f"{target} = 0;", f"for (int i = 1; i < {x.size}; i++) if ({better}) {target} = i;"]


def _cumsum(code: Code, step: Step) -> list[str]:
    (x,), out, axis = step.inputs, step.outputs[0], step.params["axis"]
    shape, size = x.shape, x.shape[axis]
    here = index_of(shape, shape)
    stride = strides(shape)[axis]
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


def _sort(code: Code, step: Step) -> list[str]:
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


def _dot(code: Code, step: Step) -> list[str]:
    (left, right), out = step.inputs, step.outputs[0]
    ((of_left, of_right), batch) = step.params["dimension_numbers"]
    if batch[0] or batch[1] or len(of_left) != 1:
        raise NotImplementedError("products of several axes")
    rows = [axis for axis in range(len(left.shape)) if axis != of_left[0]]
    columns = [axis for axis in range(len(right.shape)) if axis != of_right[0]]
    depth = left.shape[of_left[0]]
    a, b = strides(left.shape), strides(right.shape)
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
    own = index_of([*sizes[1]], out.shape, range(len(rows), len(out.shape)))
    product = f"{code.entry(left, ' + '.join(of_a))} * {code.entry(right, ' + '.join(of_b))}"
    target = code.put(out, index_of(out.shape, out.shape))
    return [
        f"{' '.join(outer)} {{ float sum[{width}] = {{0}};",
        f"for (int k = 0; k < {depth}; k++) {inner} sum[{own}] += {product};",
        f"{inner} {target} = sum[{own}]; }}",
    ]


def _gather(code: Code, step: Step) -> list[str]:
    rows_taken(step)
    (x, index), out = step.inputs, step.outputs[0]
    width = x.size // x.shape[0]
    row = f"jaxlb_part({code.entry(index, 'i')}, 1, {x.shape[0]})"
    text = f"{code.put(out, f'i * {width} + j')} = {code.entry(x, f'{row} * {width} + j')};"
    return [f"for (int i = 0; i < {index.size}; i++) for (int j = 0; j < {width}; j++) {text}"]


def _scatter(code: Code, step: Step) -> list[str]:
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


def _key(code: Code, value: Value, place: int) -> tuple[str, str]:
    """Return the declaration of a key of two words, and its name."""
    words = f"{{{code.entry(value, '0')}, {code.entry(value, '1')}}}"
    return f"const uint32_t k{place}[2] = {words};", f"k{place}"


def _random_bits(code: Code, step: Step) -> list[str]:
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


def _random_split(code: Code, step: Step) -> list[str]:
    if len(step.inputs[0].shape) != 1:
        raise NotImplementedError("split of several keys")
    out = step.outputs[0]
    declared, name = _key(code, step.inputs[0], out.place)
    call = f"jaxlb_threefry({name}, 0, (uint32_t)i, &v{out.place}[2 * i]);"
    return [declared, f"for (int i = 0; i < {out.size // 2}; i++) {call}"]


def _random_fold_in(code: Code, step: Step) -> list[str]:
    out = step.outputs[0]
    declared, name = _key(code, step.inputs[0], out.place)
    return [declared, f"jaxlb_threefry({name}, 0, {code.scalar(step.inputs[1])}, v{out.place});"]


STRUCTURED: dict[str, Callable[[Code, Step], list[str]]] = {
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
"""How each is written: (code, instruction) -> statements."""
