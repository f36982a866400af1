"""What keeps the quick tests quick: parameters left to the slow ones, settings of trainings compiled once."""

import pytest

import jaxlb
from jaxlb import checks

DQN = (
    "num_iterations=30", "num_evaluations=3", "num_lanes=8", "memory_rows=16", "batch_size=16",
    "evaluation_tasks=20", "widths=[8]",
)  # fmt: skip


def plain():
    """Return the settings of `DQN` by name."""
    return checks.settings("DQN", DQN)


def mostly_slow(values, quick):
    """Return values as parameters of a test: those in `quick` stand for a mechanism each, others are slow.

    A tuple has a value for each of several arguments.
    """

    def slow(value):
        return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)

    return [value if value in quick else slow(value) for value in values]


SCENARIOS = mostly_slow(jaxlb.scenarios(), ("heavy-tail", "large", "stale"))
"""As parameters: those that differ in more than numbers are quick."""


def compared(key, schedulers=("rr", "lwr", "greedy", "oracle"), scenario="seed", **options):
    """Compare schedulers on a few tasks."""
    env, params = jaxlb.make(scenario)
    chosen = {name: jaxlb.scheduler(name) for name in schedulers}
    counts = {"num_lanes": 40, "num_tasks": 150, "warmup": 200} | options
    return jaxlb.compare(env, params, chosen, key, **counts)
