"""Loops of one's own in the docs learn, and what they have learned is a scheduler."""

import importlib.util
from pathlib import Path

import jax
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "updates"), [("ppo", 100), ("pqn", 300)])
def test_a_third_of_the_updates_misses_a_third_of_the_deadlines(name, updates):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with jax.numpy_dtype_promotion("standard"):  # as users have it, and optax's schedules need it
        table = module.main(updates)
    # A tenth is reached with all updates; this seed and that of the tasks are fixed.
    assert table.row(name).sla_violation_rate < 0.3 * table.row("lwr").sla_violation_rate
