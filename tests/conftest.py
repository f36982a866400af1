import sys
from pathlib import Path

import jax
import pytest

import jaxlb  # noqa: F401

# Two devices, as on a user's machine: results must not depend on how lanes are spread. And nothing may be
# promoted by accident.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# What one test has compiled, no other test and no later run compiles again.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
jax.config.update("jax_compilation_cache_max_size", 2**31)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """What a file's tests have compiled is dropped after it: Linux allows a process so many memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def registries():
    """What a test registers is forgotten after it."""
    tables = [
        sys.modules["jaxlb.environments"]._SCENARIOS,
        sys.modules["jaxlb.scheduling"]._FACTORIES,
        *sys.modules["jaxlb.workload"]._NAMED.values(),
        sys.modules["gymnasium"].registry if "gymnasium" in sys.modules else {},
    ]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
