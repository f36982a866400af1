import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

import jaxlb  # noqa: F401
from jaxlb.learn import networks

# Compiling is most of what tests do, and these halve it. What an optimised program might do otherwise is
# tested where XLA_FLAGS is set, if only to nothing, as in CI for some: see .ci/run.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_cpu_parallel_codegen_split_count=1 --xla_disable_hlo_passes=simplify-while-loops"
QUICK += ",while-loop-invariant-code-motion,while-loop-constant-sinking"
if version("jax").startswith("0.10."):  # XLA ends a program that sets a flag it does not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)
# Two devices, as on a user's machine: results must not depend on how lanes are spread. And nothing may be
# promoted by accident.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# What one test has compiled, no other test and no later run compiles again.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
jax.config.update("jax_compilation_cache_max_size", 2**31)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Tracing makes many objects and few circles of them: looking for those took a twentieth of the time.
gc.set_threshold(200_000, 50, 100)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def programs():
    """What has been compiled is dropped when there is much of it: Linux ends a process at 65,530 maps."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def registries():
    """What a test registers is forgotten after it."""
    tables = [
        sys.modules["jaxlb.catalogue"].SCENARIOS,
        sys.modules["jaxlb.scheduling"]._FACTORIES,
        *sys.modules["jaxlb.workload"]._NAMED.values(),
        networks._OWN,
        sys.modules["jaxlb.rewards"].REWARDS,
        sys.modules["gymnasium"].registry if "gymnasium" in sys.modules else {},
    ]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(autouse=True)
def pictures():
    """What a test draws is closed after it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
