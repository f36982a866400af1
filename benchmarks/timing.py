"""The one loop that times: programs in turns, so that a machine that drifts does so for all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Program = Callable[[], float]
"""Does its work once and returns a figure: seconds, or work per second."""


def alternate(programs: Mapping[str, Program], rounds: int) -> dict[str, list[float]]:
    """Return the figures of each program, run in turns."""
    figures: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            figures[name].append(program())
    return figures


def timed(run: Callable[[], Any], amount: float | None = None) -> Program:
    """Return a program that gives its seconds, or the `amount` of work per second; compiled and run once."""

    def program() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds = time.perf_counter() - began
        return seconds if amount is None else amount / seconds

    program()
    return program
