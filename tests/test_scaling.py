"""The same program on one device, on eight, and on two processes: the same numbers, to the bit."""

import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, sys
import jax
devices, processes, process, port = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", devices)
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)
import numpy as np
import jaxlb

env, params = jaxlb.make("heavy-tail", measure_interval=2.0, measure_noise=0.2)
key, size = jax.random.key(0), {"num_lanes": 48, "num_tasks": 200, "warmup": 50}
summary = jaxlb.rollout(env, params, jaxlb.scheduler("power-of-d"), (), key, **size)
table = jaxlb.compare(
    env, params, {name: jaxlb.scheduler(name) for name in ("lwr", "greedy", "drift-aware")}, key, **size
)
assert jax.device_count() == devices * processes
digest = hashlib.sha256(table.to_json().encode())
for leaf in jax.tree.leaves(summary):
    digest.update(np.asarray(leaf).tobytes())
print("digest", digest.hexdigest())
"""


def digests(devices: int, processes: int = 1) -> set[str]:
    """What the program prints, in every process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, (devices, processes, process, port))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for process in range(processes)
    ]
    said = [program.communicate(timeout=300) for program in running]
    assert all(program.returncode == 0 for program in running), said
    return {out.split("digest ")[1].strip() for out, _ in said}


@pytest.mark.slow
def test_devices_and_processes_do_not_change_a_bit():
    one = digests(devices=1)
    assert len(one) == 1
    assert digests(devices=8) == one
    assert digests(devices=2, processes=2) == one
