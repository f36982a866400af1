"""The same program on one device, on eight, and on two processes: the same numbers, to the bit."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

START = """
import hashlib, sys
import jax
devices, processes, process, port = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", devices)
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)
import numpy as np
import jaxlb
assert jax.device_count() == devices * processes
env, params = jaxlb.make("heavy-tail", measure_interval=2.0, measure_noise=0.2)
key, digest = jax.random.key(0), hashlib.sha256()
"""

ROLLOUT = """
size = {"num_lanes": 48, "num_tasks": 200, "warmup": 50}
summary = jaxlb.rollout(env, params, jaxlb.scheduler("power-of-d"), key, **size)
table = jaxlb.compare(
    env, params, {name: jaxlb.scheduler(name) for name in ("lwr", "greedy", "drift-aware")}, key, **size
)
digest.update(table.to_json().encode())
for leaf in jax.tree.leaves(summary):
    digest.update(np.asarray(leaf).tobytes())
print("said", digest.hexdigest())
"""

TRAINING = """
# Few iterations, before training makes large differences of small ones.
lanes, short = 48, {"num_iterations": 4, "num_evaluations": 2}
trainings = {
    jaxlb.train_dqn: jaxlb.DQNConfig(
        num_lanes=lanes, memory_rows=64, batch_size=64, evaluation_tasks=20, **short
    ),
    jaxlb.train_gnn: jaxlb.GNNConfig(num_lanes=lanes, num_tasks=30, warmup=10, batch_size=32, **short),
    jaxlb.train_predictor: jaxlb.PredictorConfig(
        num_lanes=lanes, num_tasks=40, warmup=10, num_examples=500, **short
    ),
}
objectives = []
with jax.set_mesh(jaxlb.device_mesh(lanes)):
    for train, config in trainings.items():
        result = train(env, params, config, key)
        for leaf in jax.tree.leaves((result.last, result.history)):
            digest.update(np.asarray(leaf).tobytes())
        loss = result.history.loss if train is jaxlb.train_dqn else result.history.regression_loss
        objectives.append(float(loss[-1]))
print("said", digest.hexdigest(), *objectives)
"""


def digests(program: str, devices: int, processes: int = 1) -> set[str]:
    """What the program says at its end, in every process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", START + program, *map(str, (devices, processes, process, port))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for process in range(processes)
    ]
    ended = [program.communicate(timeout=300) for program in running]
    assert all(program.returncode == 0 for program in running), ended
    return {out.split("said ")[1].strip() for out, _ in ended}


@pytest.mark.slow
def test_devices_and_processes_do_not_change_a_bit():
    one = digests(ROLLOUT, devices=1)
    assert len(one) == 1
    assert digests(ROLLOUT, devices=8) == one
    assert digests(ROLLOUT, devices=2, processes=2) == one


@pytest.mark.slow
def test_a_training_spread_over_devices_is_the_same_in_any_number_of_processes():
    # And that of one device but for rounding: there collecting and learning are one program, which the
    # compiler fuses differently.
    (eight,) = digests(TRAINING, devices=8)
    assert digests(TRAINING, devices=4, processes=2) == {eight}
    (one,) = digests(TRAINING, devices=1)
    losses = ([float(loss) for loss in each.split()[1:]] for each in (one, eight))
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_the_command_line_runs_in_several_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = {"--scenario": "stable", "--schedulers": "rr,lwr", "--lanes": "16", "--tasks": "50"}
    options |= {"--out": str(tmp_path)}
    command = [sys.executable, "-m", "jaxlb", "compare", "--json"]
    command += [word for option in options.items() for word in option]
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "compare.json").unlink()
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(process),
            },
        )
        for process in range(2)
    ]
    printed = [program.communicate(timeout=300)[0] for program in running]
    assert printed == [alone.stdout, ""]
    assert [program.returncode for program in running] == [0, 0]
    assert (tmp_path / "compare.json").read_text() == alone.stdout
