"""Tasks per second of `rollout` against hand-written C on the same machine, in one alternating run.

    python benchmarks/throughput.py [--reference ../shared/reference] [--rounds 7] [--devices 2]

Both do the same work: P processors of speeds 0.5 to 2, Poisson arrivals at load 0.8, exponential sizes, the
whole observation computed and consumed at every decision, exact queue lengths, a reward. The C programs
(`dispatch_scalar.c`, `dispatch_soa.c`) choose the smallest completion time, jaxlb by LWR; jaxlb also keeps
all figures of a `Summary`. Ratios of medians are what counts: machines differ and drift.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxlb
from jaxlb.rollout import continue_rollout, start_rollout

STEPS = 1024


@dataclass(frozen=True)
class Measurement:
    """Million tasks per second of one program."""

    program: str
    processors: int
    lanes: int
    median: float
    fastest: float
    slowest: float
    compile_seconds: float | None = None


def observing_lwr() -> jaxlb.Scheduler:
    """LWR that looks at every number of the observation, as a learned scheduler would."""
    lwr = jaxlb.scheduler("lwr")

    def act(variables, memory, observation, key):
        action, _ = lwr.act((), (), observation, key)
        return action, memory + jaxlb.flatten(observation).sum(0)

    return jaxlb.Scheduler("lwr, observing", lwr.init, lambda params, lanes: jnp.zeros(lanes), act)


class Ours:
    """`rollout`, compiled beforehand."""

    def __init__(self, processors: int, lanes: int):
        """Compile."""
        speed = [1.0] if processors == 1 else list(np.linspace(0.5, 2.0, processors))
        self.env, self.params = jaxlb.make("stable", speed=speed, deadline_constant=3.0)
        self.scheduler, self.key, self.lanes = observing_lwr(), jax.random.key(0), lanes
        self.carry = start_rollout(self.env, self.params, self.scheduler, self.key, lanes)
        began = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - began

    def run(self, steps: int) -> float:
        """Million tasks per second."""
        began = time.perf_counter()
        carry = continue_rollout(self.env, self.params, self.scheduler, (), self.key, self.carry, steps)
        jax.block_until_ready(carry)
        return self.lanes * steps / (time.perf_counter() - began) / 1e6


def compiled(source: Path, processors: int, folder: str) -> list[str]:
    """The C program, built for this processor."""
    program = Path(folder) / f"{source.stem}-{processors}"
    flags = [f"-DP={processors}", "-O3", "-march=native", "-ffast-math"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(source), "-lm", "-lpthread"], check=True)
    return [str(program)]


def run_c(command: list[str], lanes: int, threads: int) -> float:
    """Million tasks per second: the median of the three figures that the program prints."""
    printed = subprocess.run(
        [*command, str(lanes), str(STEPS), str(threads)], capture_output=True, text=True, check=True
    )
    return statistics.median(float(rate) for rate in re.findall(r"([\d.]+) Msteps/s", printed.stdout))


def main(
    reference: Path = Path("../shared/reference"),
    processors: int = 4,
    lanes: int = 4096,
    rounds: int = 7,
    devices: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure, print a table, and write JSON if asked."""
    threads = os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", devices or threads)
    ours = Ours(processors, lanes)
    rates: dict[str, list[float]] = {"jaxlb rollout": []}
    with tempfile.TemporaryDirectory() as folder:
        peers = {
            source.stem: compiled(source, processors, folder)
            for source in sorted(reference.glob("dispatch_*.c"))
        }
        if not peers:
            print(f"no C programs in {reference}: only jaxlb is measured")
        for _ in range(rounds):
            rates["jaxlb rollout"].append(ours.run(STEPS))
            for name, command in peers.items():
                rates.setdefault(name, []).append(run_c(command, lanes, threads))
    table = [
        Measurement(
            name,
            processors,
            lanes,
            statistics.median(values),
            max(values),
            min(values),
            ours.compile_seconds if name == "jaxlb rollout" else None,
        )
        for name, values in rates.items()
    ]
    machine = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlb": jaxlb.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for row in table:
        ratio = table[0].median / row.median
        print(
            f"{row.program:16s} P={row.processors} N={row.lanes}  {row.median:7.2f} M tasks/s"
            f"  ({row.slowest:.2f} to {row.fastest:.2f})   jaxlb / this: {ratio:.2f}"
        )
    print(f"compile: {ours.compile_seconds:.2f} s")
    if json_file is not None:
        json_file.write_text(
            json.dumps({"machine": machine, "rows": [asdict(row) for row in table]}, indent=2)
        )


if __name__ == "__main__":
    tyro.cli(main)
