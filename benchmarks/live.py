"""What a decision costs in a live system: writes docs/results/live.md.

python benchmarks/live.py [--rounds 5]
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from claims import machine
from timing import alternate

import jaxlb
from jaxlb.live import exporting

RULES = ("lwr", "card", "drift-aware", "c3", "peak-ewma", "prequal", "universal")
SPEED = [1.0, 2.0, 0.5, 1.1, 3.0, 0.9, 1.2, 1.5]
FLAGS = {"C, -O2": ["-O2"], "C, -O3 -march=native": ["-O3", "-march=native"]}
_MAIN = r"""
#include "rule.h"
#include <stdio.h>
#include <time.h>
int main(void) {
  static rule_memory memory;
  rule_start(&memory, 0);
  rule_task task = {.size = 1, .deadline = 3};
  struct timespec a, b;
  int sum = 0;
  const int number = 20000;
  for (int i = 0; i < rule_processors; i++) task.up[i] = 1;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int k = 0; k < number; k++) {
    task.time = 0.1 * k; task.size = 0.1f + (float)((k * 31) % 17) * 0.2f;
    for (int i = 0; i < rule_processors; i++) {
      task.load[i] = (float)((k * 7 + i * 13) % 11) * 0.3f;
      task.queue_length[i] = task.present[i] = (k * 7 + i * 13) % 5;
    }
    const int chosen = rule_decide(&memory, &task);
    rule_departed(&memory, chosen, 1.5f, 1.0f, 0, 0, task.time);
    sum += chosen;
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  fprintf(stderr, "%d\n", sum);
  printf("%.9f\n", ((double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec)) / number);
  return 0;
}
"""


def _c(text: str, flags: list[str], folder: Path) -> Callable[[], float]:
    """Return a program that gives the seconds of a decision in C."""
    folder.mkdir()
    (folder / "rule.h").write_text(text)
    (folder / "main.c").write_text(_MAIN)
    command = ["gcc", "-std=c99", "-D_POSIX_C_SOURCE=199309L", *flags, "-o", "main", "main.c", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    return lambda: float(subprocess.run(["./main"], cwd=folder, check=True, capture_output=True).stdout)


def _numpy(name: str, env: Any, params: Any) -> Callable[[], float]:
    decider, now = jaxlb.decider(name, env=env, params=params), 0.0
    loads = np.random.default_rng(0).exponential(1.0, (200, len(SPEED))).astype(np.float32)
    lengths = (loads * 2.0).astype(np.int32)

    def run() -> float:
        nonlocal now
        began = time.perf_counter()
        for load, length in zip(loads, lengths, strict=True):
            now += 0.1
            chosen = decider.decide(
                size=1.0, deadline=3.0, load=load, queue_length=length, present=length, time=now
            )
            decider.departed(chosen, latency=1.5, time=now)
        return (time.perf_counter() - began) / len(loads)

    return run


def _jax(found: exporting.Exported) -> Callable[[], float]:
    """Return a program that gives the seconds of a call of the compiled function, from NumPy and back."""
    call = jax.jit(found.function)
    arguments = [jnp.ones(of.shape, of.dtype) for of in found.arguments]
    memory = len(found.memory)
    jax.block_until_ready(call(*arguments))

    def run() -> float:
        leaves, began = arguments[:memory], time.perf_counter()
        for _ in range(200):
            action, *leaves = call(*leaves, *(np.asarray(given) for given in arguments[memory:]))
            int(action)
        return (time.perf_counter() - began) / 200

    return run


def main(rounds: int = 5, out: Path = Path("docs/results/live.md")) -> None:
    """Measure in turns, and write the page."""
    env, params = jaxlb.make(speed=SPEED, load=0.7, answers=True)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(RULES):
            found = exporting.exported(name, env, params)
            text = exporting.as_header(found, "rule")
            programs = {"NumPy": _numpy(name, env, params), "call of JAX": _jax(found)}
            for place, (title, flags) in enumerate(FLAGS.items()):
                programs[title] = _c(text, flags, Path(folder) / f"{number}-{place}")
            for program in programs.values():
                program()
            median = {title: np.median(each) for title, each in alternate(programs, rounds).items()}
            whole = median["call of JAX"]
            cells = [f"{1e6 * median[title]:.3g} ({whole / median[title]:.2g})" for title in programs]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(text) // 1000} |")
            print(lines[-1], flush=True)
    universal = exporting.exported("universal", env, params).decide
    steps, dots = len(universal.steps), (step for step in universal.steps if step.name == "dot_general")
    products = sum(step.outputs[0].size * step.inputs[0].shape[-1] for step in dots)
    head = ["NumPy", "call of JAX", *FLAGS]
    page = f"""# A decision in a live system

Written by `python benchmarks/live.py`. Microseconds of a decision for {len(SPEED)} processors, with the
departure that follows; in brackets, how many of them fit into one call of the compiled JAX function. Medians
of {rounds} rounds in turns. {machine()}, JAX {jax.__version__}, NumPy {np.__version__}.

| rule | {" | ".join(head)} | header, kB |
|---{"|---" * (len(head) + 1)}|
{chr(10).join(lines)}

Asked for were 3 microseconds in C and 60 in NumPy, for the universal scheduler too. It is some
{products:,} products and {steps:,} instructions, most of them on a few numbers: each is a call in NumPy.
"""
    out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
