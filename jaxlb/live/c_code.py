"""Programs as C, which needs the standard library and nothing else."""

from collections.abc import Sequence

from jaxlb.live.c_parts import TYPES, Code, index_of, loops
from jaxlb.live.c_structured import STRUCTURED
from jaxlb.live.program import ELEMENTWISE, Constants, Program, Step, is_mixed


def body(program: Program, inputs: Sequence[str], outputs: Sequence[str], constants: Constants) -> list[str]:
    """Return the statements of a program.

    Args:
      program: what it does.
      inputs: expressions of its inputs: of a number, or of an array.
      outputs: where its outputs go, likewise.
      constants: filled.
    """
    code = Code(constants, program, inputs)
    lines = [line for step in program.steps for line in _lines(code, step)]
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


def _lines(code: Code, step: Step) -> list[str]:
    """Return the statements of an instruction."""
    lines = []
    code.store(step)
    out = step.outputs[0]
    kind, name = TYPES[str(out.dtype)], f"v{out.place}"
    if step.name in ELEMENTWISE and out.size == 1:
        return [f"const {kind} {name} = {code.each(step, list(map(code.scalar, step.inputs)))};"]
    for value in step.outputs:
        size = f"[{value.size}]" if value.size > 1 else ""
        lines.append(f"{TYPES[str(value.dtype)]} v{value.place}{size};")
    if step.name in ELEMENTWISE and not is_mixed(step):
        text = code.each(step, [code.entry(value, "i") for value in step.inputs])
        return [*lines, f"for (int i = 0; i < {out.size}; i++) {name}[i] = {text};"]
    if step.name in ELEMENTWISE:
        operands = [code.entry(value, index_of(value.shape, out.shape)) for value in step.inputs]
        text = f"{code.put(out, index_of(out.shape, out.shape))} = {code.each(step, operands)};"
        return [*lines, loops(out.shape, text)]
    return lines + STRUCTURED[step.name](code, step)
