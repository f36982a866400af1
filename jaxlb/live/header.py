"""A scheduler as one C header: a memory, and three functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlb.live import c_code
from jaxlb.live.c_parts import HEAD, TYPES, declared, literal
from jaxlb.live.program import Constants, Program

SENT = 1024
"""Tasks sent since figures were measured that are kept account of; of more, the oldest are forgotten."""
_EACH = {"queue_length": "int32_t", "load": "float", "speed": "float", "up": "_Bool", "present": "int32_t"}
_USAGE = """/* {scheduler} of jaxlb {jaxlb}, for {number} processors. Written by `jaxlb export`; C99 and libm.

   {name}_memory memory;
   {name}_start(&memory, 0);
   {name}_task task = {{.time = now, .size = 2.0f, .deadline = 5.0f, .age = 0.25f, .up = {{1, ...}}}};
   ... its arrays too: of each processor, as last measured `age` ago;
   int processor = {name}_decide(&memory, &task);      -1: a figure cannot be, and nothing is decided
   {name}_departed(&memory, processor, latency, service, failed, queue_length, now);

   Sizes and loads are work, times are in the unit in which the speeds of processors are work per time.
   It reads {needs}. All else may stay 0, but for `size`, which must be above 0. */
"""


def header(
    name: str, about: dict[str, Any], memory: list[np.ndarray], decide: Program, departed: Program | None
) -> str:
    """Return the text of the header; all names in it begin with `name`."""
    number, constants = len(about["speed"]), Constants(f"{name}_")
    first = [constants.name(leaf) for leaf in memory]
    leaves = [f"m->m{index}" for index in range(len(memory))]
    given = {
        "gap": "gap",
        "size": "size",
        "priority": "t->priority",
        "deadline": "t->deadline",
        "age": "t->age",
        "load_average": "average",
        "load_variance": "variance",
        "queue_length": "t->queue_length",
        "load": "load",
        "wait": "wait",
        "speed": "speed",
        "assigned": "assigned",
        "up": "t->up",
        "present": "t->present",
        "key": "key",
        **{one: one for one in ("processor", "latency", "service", "failed", "since")},
    }
    decision = c_code.body(
        decide, leaves + [given[key] for key in about["inputs"]], ["action", *leaves], constants
    )
    fields = [
        f"{TYPES[str(leaf.dtype)]} m{index}{f'[{leaf.size}]' if leaf.size > 1 else ''};"
        for index, leaf in enumerate(memory)
    ]
    begin = [
        f"m->m{index} = {source}[0];"
        if leaf.size == 1
        else f"memcpy(m->m{index}, {source}, sizeof m->m{index});"
        for index, (leaf, source) in enumerate(zip(memory, first, strict=True))
    ]
    told = []
    if departed is not None:
        of_answer = given | {"queue_length": "queue_length"}
        told = c_code.body(
            departed, leaves + [of_answer[key] for key in about["departed_inputs"]], leaves, constants
        )
    usage = _USAGE.format(
        name=name,
        number=number,
        needs=", ".join([*about["needs"], "`up`"]),
        scheduler=about["scheduler"],
        jaxlb=about["jaxlb"],
    )
    speeds = ", ".join(literal(np.float32(speed)) for speed in about["speed"])
    guard = f"{name.upper()}_H"
    account = _account(number) if "assigned" in about["inputs"] else _Account()
    return "\n".join(
        [
            usage,
            f"#ifndef {guard}",
            f"#define {guard}",
            "#include <math.h>",
            "#include <stdint.h>",
            "#include <string.h>",
            "#ifndef JAXLB_HEAD",
            "#define JAXLB_HEAD",
            HEAD.strip(),
            "#endif",
            f"enum {{ {name}_processors = {number} }};",
            f"static const float {name}_speed[{number}] = {{{speeds}}};",
            *declared(constants),
            "typedef struct {",
            *(f"  {field}" for field in fields),
            *account.fields,
            "  double last;",
            "  uint32_t key[2], count;",
            f"}} {name}_memory;",
            "typedef struct {",
            "  double time; float size, deadline, age; int32_t priority;",
            *(f"  {kind} {field}[{number}];" for field, kind in _EACH.items()),
            "  _Bool speed_is_measured; /* whether `speed` counts, and not what was exported */",
            f"}} {name}_task;",
            f"static inline void {name}_start({name}_memory *m, uint64_t seed) {{",
            "  memset(m, 0, sizeof *m); m->key[0] = (uint32_t)(seed >> 32); m->key[1] = (uint32_t)seed;",
            *(f"  {line}" for line in begin),
            "}",
            f"static inline int {name}_decide({name}_memory *m, const {name}_task *t) {{",
            *(f"  {line}" for line in _figures(name, number, about)),
            *account.before,
            "  int32_t action;",
            *(f"  {line}" for line in decision),
            "  m->last = t->time; m->count++;",
            *account.after,
            "  return action;",
            "}",
            f"static inline int {name}_departed({name}_memory *m, int32_t processor, float latency,",
            "    float service, _Bool failed, int32_t queue_length, double time) {",
            f"  if (processor < 0 || processor >= {number} || queue_length < 0) return -1;",
            "  if (!(latency >= 0) || isinf(latency) || !(service >= 0) || isinf(service)) return -1;",
            "  if (!isfinite(time)) return -1;",
            "  const float since = m->count ? (float)(time - m->last) : 0.0f;",
            "  (void)failed; (void)queue_length; (void)since;",
            *(f"  {line}" for line in told),
            "  return 0;",
            "}",
            "#endif",
            "",
        ]
    )


class _Account(NamedTuple):
    """Of the work sent to each processor since figures were measured: fields and statements."""

    fields: Sequence[str] = ()
    before: Sequence[str] = ()
    after: Sequence[str] = ()


def _account(number: int) -> _Account:
    return _Account(
        fields=[
            f"  double sent_at[{SENT}];",
            f"  float sent_work[{SENT}];",
            f"  int32_t sent_to[{SENT}], sent_first, sent_number;",
        ],
        before=[
            f"  float assigned[{number}] = {{0}};",
            "  const double measured = t->time - t->age * (1.0 + 1e-6); /* an age is rounded */",
            "  while (m->sent_number && (t->age == 0 || m->sent_at[m->sent_first] < measured)) {",
            f"    m->sent_first = (m->sent_first + 1) % {SENT}; m->sent_number--;",
            "  }",
            "  for (int i = 0; i < m->sent_number; i++) {",
            f"    const int at = (m->sent_first + i) % {SENT};",
            "    assigned[m->sent_to[at]] += m->sent_work[at];",
            "  }",
        ],
        after=[
            f"  if (m->sent_number == {SENT}) {{",
            f"    m->sent_first = (m->sent_first + 1) % {SENT}; m->sent_number--;",
            "  }",
            f"  const int place = (m->sent_first + m->sent_number++) % {SENT};",
            "  m->sent_at[place] = t->time; m->sent_to[place] = action; m->sent_work[place] = size;",
        ],
    )


def _figures(name: str, number: int, about: dict[str, Any]) -> list[str]:
    """Return what makes the figures of an observation from those of a task."""
    mean = literal(np.float32(about["mean_size"]))
    size, load = ("t->size", "t->load[i]") if about["size_known"] else (mean, "t->load[i]")
    if not about["load_known"]:
        load = f"(float)t->queue_length[i] * {mean}"
    return [
        f"const float size = {size}, gap = m->count ? (float)(t->time - m->last) : 0.0f;",
        "if (!isfinite(t->time) || !(gap >= 0) || !(size > 0) || isinf(size)) return -1;",
        "if (!(t->deadline >= 0) || !(t->age >= 0) || isinf(t->age)) return -1;",
        f"if (t->priority < 0 || t->priority >= {about['classes']}) return -1;",
        f"float load[{number}], wait[{number}], speed[{number}];",
        "float average = 0, variance = 0; int some = 0;",
        f"for (int i = 0; i < {number}; i++) {{",
        f"  load[i] = {load}; speed[i] = t->speed_is_measured ? t->speed[i] : {name}_speed[i];",
        "  if (!(load[i] >= 0) || isinf(load[i]) || !(speed[i] > 0) || isinf(speed[i])) return -1;",
        "  if (t->queue_length[i] < 0 || t->present[i] < 0) return -1;",
        f"  wait[i] = load[i] / speed[i]; average += load[i] / {number}; some |= t->up[i];",
        "}",
        "if (!some) return -1;",
        f"for (int i = 0; i < {number}; i++)",
        f"  variance += (load[i] - average) * (load[i] - average) / {number};",
        "(void)gap; (void)wait; (void)variance;",
        *(["uint32_t key[2]; jaxlb_threefry(m->key, 0, m->count, key);"] if "key" in about["inputs"] else []),
    ]
