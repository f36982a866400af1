"""What one device does, by processors and lanes: writes docs/results/device.md.

    python benchmarks/device.py [--processors 4 16 64] [--lanes 1024 65536 1048576] [--out docs/results]

Runs on a GPU or on all cores of a CPU, writes its figures to `device-NAME.json`, and makes the page of all
such files that are there. Medians of several runs, after compilation.
"""

import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from claims import machine
from programs import observing_lwr, system
from timing import alternate, timed

import jaxlb
from jaxlb.cli import XLA_FLAGS
from jaxlb.devices import side_by_side
from jaxlb.learn.dqn import DQNConfig
from jaxlb.learn.gnn import GNNConfig
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.stations import FCFS

HEAD = """# One device

Written by `python benchmarks/device.py` on each device, from the `device-*.json` beside it. LWR that takes in
the whole observation, speeds 0.5 to 2, load 0.8: medians of runs after compilation, with the lowest and the
highest. "Of its bandwidth": the bytes that each task has to move at least, divided by those that copies of a
large array read and write in the same time. A task reads the state of its lane and writes it back, but of the
rings of departure times one entry only. The cell is empty where the state of all lanes is less than eight
times the last cache of the device, or that cache is not known.
"""
COLUMNS = (
    "P",
    "lanes",
    "tasks/s, millions",
    "a step, µs",
    "bytes of a lane",
    "of its bandwidth",
    "compilation, s",
)


def seconds(run: Callable[[], Any], runs: int) -> list[float]:
    """Time so many runs, after one that is not counted."""
    return alternate({"": timed(run)}, runs)[""]


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def copy_bandwidth(runs: int, size: int = 2**28) -> float:
    """Return the bytes a second that copies of `size` floats move, spread over devices as lanes are."""
    copy = jax.jit(lambda x: x + 1.0)
    x = side_by_side(jnp.zeros(size, jnp.float32), size)
    return 8 * size / statistics.median(seconds(lambda: copy(x), runs))


def rolling(processors: int, lanes: int, runs: int, work: float, dump: Path | None) -> dict[str, Any]:
    """Return the tasks per second of a rollout, and the bytes of a lane's state."""
    (env, params), rule, key = system(processors), observing_lwr(), jax.random.key(0)
    carry = start_rollout(env, params, rule, key, lanes)
    began = time.perf_counter()
    compiled = continue_rollout.lower(env, params, rule, carry, 1).compile()
    compilation = time.perf_counter() - began
    if dump is not None:
        dump.parent.mkdir(parents=True, exist_ok=True)
        dump.write_text(compiled.as_text() or "", encoding="utf-8")

    def run(steps: int) -> Callable[[], Any]:
        return lambda: compiled(params, rule, carry, steps)

    few = statistics.median(seconds(run(16), 3))
    steps = max(16, int(16 * work / few))
    taken = seconds(run(steps), runs)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(carry) if leaf.ndim)
    return {
        "processors": processors,
        "lanes": lanes,
        "steps": steps,
        "rate": spread([lanes * steps / each for each in taken]),
        "bytes_of_lane": state / lanes,
        "compilation": compilation,
    }


def training(runs: int) -> dict[str, dict[str, float]]:
    """Time a thousand gradient steps on `heavy-tail`; the DQN's with the tasks between them.

    The difference of two trainings with as many evaluations: compilation, judging and, of the GNN, collecting
    examples are taken off.
    """
    env, params = jaxlb.make("heavy-tail")
    found = {}
    for name, train, config in (
        ("DQN", jaxlb.train_dqn, DQNConfig(num_evaluations=4)),
        ("GNN", jaxlb.train_gnn, GNNConfig(num_evaluations=4)),
    ):
        # The same number of evaluations in both: their difference is a thousand iterations.
        def run(iterations: int, train: Any = train, config: Any = config) -> float:
            began = time.perf_counter()
            jax.block_until_ready(
                train(env, params, config.replace(num_iterations=iterations), jax.random.key(0))
            )
            return time.perf_counter() - began

        times: dict[int, list[float]] = {500: [], 1500: []}
        for _ in range(runs + 1):
            for iterations, taken in times.items():
                taken.append(run(iterations))
        found[name] = spread([b - a for a, b in zip(times[500][1:], times[1500][1:], strict=True)])
    return found


def comparing(runs: int) -> dict[str, float]:
    """Time `compare` of four rules, 1024 lanes x 5,000 tasks on `heavy-tail`, compiled before."""
    env, params = jaxlb.make("heavy-tail")
    names = ("lwr", "greedy", "jsq", "guarded-sita")

    def run() -> Any:
        table = jaxlb.compare(
            env,
            params,
            {name: jaxlb.scheduler(name) for name in names},
            jax.random.key(0),
            num_lanes=1024,
            num_tasks=4000,
            warmup=1000,
        )
        return [row.mean_completion for row in table.schedulers]

    return spread(seconds(run, runs))


def page(out: Path) -> None:
    """Write the page of all devices that were measured."""
    lines = [HEAD]
    for path in sorted(out.glob("device-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        lines += [
            f"## {found['device']}",
            "",
            f"JAX {found['jax']}, {found['date']}."
            f" Copies of 1 GiB read and write {found['copy'] / 1e9:,.0f} GB/s.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
        ]
        for row in found["rollout"]:
            rate, each = row["rate"], row["bytes_of_lane"]
            moved = 2 * each - 4 * FCFS().queue_capacity * row["processors"]
            share = f"{100 * rate['median'] * moved / found['copy']:.0f} %"
            lines.append(
                f"| {row['processors']} | {row['lanes']:,} | {rate['median'] / 1e6:,.1f}"
                f" ({rate['lowest'] / 1e6:,.1f} to {rate['highest'] / 1e6:,.1f})"
                f" | {1e6 * row['lanes'] / rate['median']:,.1f} | {each:.0f}"
                f" | {share if found['cache'] and each * row['lanes'] > 8 * found['cache'] else ''}"
                f" | {row['compilation']:.1f} |"
            )
        lines.append("")
        for name, each in found.get("training", {}).items():
            lines.append(
                f"- Training a {name} on `heavy-tail`, a thousand gradient steps without judging"
                f"{' and without collecting examples' if name == 'GNN' else ''}:"
                f" {each['lowest']:.3f} to {each['highest']:.3f} s in {found['trainings']} runs."
            )
        if "compare" in found:
            each = found["compare"]
            lines.append(
                "- `compare` of four rules, 1024 lanes x 5,000 tasks, compiled before:"
                f" {each['median']:.2f} s"
                f" ({each['lowest']:.2f} to {each['highest']:.2f})."
            )
        lines.append("")
    (out / "device.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main(
    processors: tuple[int, ...] = (4, 16, 64),
    lanes: tuple[int, ...] = (1024, 65536, 1048576),
    runs: int = 5,
    work: float = 0.5,
    cache: int | None = None,
    rest: bool = True,
    out: Path = Path("docs/results"),
    dump: Path | None = None,
) -> None:
    """Measure, write the figures, make the page again.

    Args:
      processors: P of each system.
      lanes: numbers of lanes.
      runs: of which the median is taken.
      work: seconds that a run is to take.
      cache: bytes of the device's last cache, 50 MiB of an H100's; None: not known.
      rest: also time the trainers and `compare`.
      out: folder of the page and the figures.
      dump: folder for the compiled programs.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "device": machine(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "cache": cache,
        "copy": copy_bandwidth(runs),
        "rollout": [],
    }
    name = re.sub(r"\W+", "-", found["device"]).strip("-").lower()

    def keep() -> None:
        text = json.dumps(found, indent=1) + "\n"
        (out / f"device-{name}.json").write_text(text, encoding="utf-8")
        page(out)

    for number in processors:
        for count in lanes:
            at = None if dump is None else dump / f"rollout-{number}-{count}.txt"
            row = rolling(number, count, runs, work, at)
            found["rollout"].append(row)
            rate = row["rate"]["median"]
            print(
                f"P = {number}, {count:,} lanes: {rate / 1e6:,.1f} M tasks/s,",
                f"{1e6 * count / rate:,.1f} us a step, {row['bytes_of_lane']:.0f} bytes a lane,",
                f"compiled in {row['compilation']:.1f} s",
                flush=True,
            )
            keep()
            jax.clear_caches()
    if rest:
        found["compare"] = comparing(runs)
        print("compare", found["compare"], flush=True)
        found["trainings"] = max(1, runs // 2)
        found["training"] = training(found["trainings"])
        print("training", found["training"], flush=True)
        keep()


if __name__ == "__main__":
    # As the command line sets them.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    tyro.cli(main)
