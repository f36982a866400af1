"""The programs of docs/interop.md run, each where its clients are installed."""

import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "interop.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
CLIENTS = ("gymnasium", "gymnax", "rejax", "stable_baselines3", "dm_env", "jumanji", "torch")


def test_every_client_has_a_program():
    assert all(re.search(rf"^(import|from) {client}\b", "".join(BLOCKS), re.MULTILINE) for client in CLIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_program_runs(number):
    block = BLOCKS[number]
    for client in CLIENTS:
        if re.search(rf"^(import|from) {client}\b", block, re.MULTILINE):
            pytest.importorskip(client)
    # As a user has it, and the clients need it.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), {"__name__": "block"})
