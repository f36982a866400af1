"""The code in README and docs runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    (path.name, number, block)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "interop.md"  # needs clients: tests/test_interop_docs.py
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL), start=1)
    # Devices and processes are settled before the first computation.
    if "jax_num_cpu_devices" not in block and "jax.distributed" not in block
]


@pytest.mark.parametrize(
    ("name", "number", "block"), BLOCKS, ids=[f"{name}-{number}" for name, number, _ in BLOCKS]
)
def test_code_block_runs(name, number, block):
    exec(compile(block, f"{name}, block {number}", "exec"), {"__name__": "block"})
