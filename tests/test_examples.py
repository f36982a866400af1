"""Programs in the docs: loops of one's own learn, and real servers do as simulated ones."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("name", "updates"), [("ppo", 100), ("pqn", 300)])
def test_a_third_of_the_updates_misses_a_third_of_the_deadlines(name, updates):
    module = example(name)
    with jax.numpy_dtype_promotion("standard"):  # as users have it, and optax's schedules need it
        table = module.main(updates)
    # A tenth is reached with all updates; this seed and that of the tasks are fixed.
    assert table.row(name).sla_violation_rate < 0.3 * table.row("lwr").sla_violation_rate


@pytest.mark.slow
def test_real_servers_take_as_long_as_the_simulator_says(monkeypatch):
    """Turns are the same, request by request; polls come a millisecond late, and choices by them differ."""
    monkeypatch.syspath_prepend(str(EXAMPLES))  # where servers, which are new processes, find their program
    monkeypatch.setitem(sys.modules, "live", module := example("live"))
    found = module.main(200, ("rr", "lwr"))
    live, simulated = found["rr"]
    np.testing.assert_allclose(live[0], simulated[0].mean(), rtol=0.1)
    live, simulated = found["lwr"]
    np.testing.assert_allclose(live[0], simulated[0].mean(), rtol=0.2)
