"""How fast `train_dqn` learns, against a classic PyTorch loop, against rejax, and many seeds at once.

    python benchmarks/training.py [--rounds 5] [--out FILE.json]

Three ratios, each from one alternating run (A, B, A, B, ...) of equal settings, which are printed;
compilation and warm-up are apart. The peers never judge their policies, jaxlb at the end on one task of each
lane. PyTorch and rejax are optional (`benchmarks/README.md` says how they are installed): without them their
rows are skipped. Ratios of medians are what counts: machines differ and drift.
"""

import collections
import copy
import functools
import importlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from rich.table import Table
from timing import alternate

import jaxlb
from jaxlb.devices import side_by_side
from jaxlb.interop import FiveValueEnv
from jaxlb.learn import networks

WIDTHS = (128, 128)
SEEDS = 8
jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
ENV, PARAMS = jaxlb.make("heavy-tail")


@dataclass(frozen=True)
class Program:
    """Something to time, compiled and warm; a run returns how much work it did."""

    name: str
    run: Callable[[], int]
    warmup_seconds: float


class HeavyTail:
    """The scenario in plain Python: first come, first served queues, and jaxlb's features and reward."""

    def __init__(self, seed: int):
        """Start with empty queues at the first arrival."""
        self.random = random.Random(seed)
        self.speeds = np.asarray(PARAMS.speed).tolist()
        self.mean_size = float(PARAMS.size.mean())
        self.mean_speed = sum(self.speeds) / len(self.speeds)
        self.unit = self.mean_size / self.mean_speed
        self.rate = float(PARAMS.load) * sum(self.speeds) / self.mean_size
        self.now = 0.0
        self.free_at = [0.0] * len(self.speeds)
        self.departures = [collections.deque() for _ in self.speeds]
        self.arrive()

    def arrive(self) -> None:
        """Draw the next task."""
        self.now += self.random.expovariate(self.rate)
        self.size = (1.0 - self.random.random() * (1.0 - 1000.0**-1.5)) ** (-1.0 / 1.5)
        self.waits = [max(0.0, free_at - self.now) for free_at in self.free_at]
        for queue in self.departures:
            while queue and queue[0] <= self.now:
                queue.popleft()

    def features(self) -> np.ndarray:
        """Return features of the task and of each processor, as `jaxlb.scheduling.learned` has them."""
        size = self.size / self.mean_size
        # What never varies here is 0: priority, age, weights of the reward, work not measured yet.
        x = [math.log(size), math.log1p(4.0 * size), *(0.0,) * 6]
        for wait, queue, speed in zip(self.waits, self.departures, self.speeds, strict=True):
            wait, speed, length = wait / self.unit, speed / self.mean_speed, len(queue)
            # Wait, load and forecast are the same number where figures are fresh.
            load, completion = math.log1p(8.0 * wait), math.log(wait + size / speed)
            x += [load, load, completion, math.log1p(length), load, 0.0, math.log(speed)]
        return np.array(x, np.float32)

    def step(self, action: int) -> float:
        """Assign the task, let the next one arrive; return the reward."""
        completion = self.waits[action] + self.size / self.speeds[action]
        self.free_at[action] = self.now + completion
        self.departures[action].append(self.free_at[action])
        self.waits[action] = completion
        violation = completion > 4.0 * self.size / self.mean_speed
        self.arrive()
        return -0.5 * math.sqrt(completion / self.unit) - 0.5 * violation


class TorchLoop:
    """DQN with one environment: a task, a gradient step, a task, ..."""

    def __init__(self, torch: Any, batch_size: int, memory_rows: int):
        """Make networks, and a memory filled at random."""
        self.torch, self.batch_size = torch, batch_size
        self.random, self.system = np.random.default_rng(0), HeavyTail(0)
        self.state = self.system.features()
        nn, (first, second), num_features = torch.nn, WIDTHS, len(self.state)
        layers = [nn.Linear(num_features, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()]
        self.online = nn.Sequential(*layers, nn.Linear(second, ENV.num_actions))
        self.target = copy.deepcopy(self.online)
        self.optimiser = torch.optim.Adam(self.online.parameters(), 1e-3, fused=True)
        self.states = np.zeros((memory_rows, len(self.state)), np.float32)
        self.next_states = np.zeros_like(self.states)
        self.actions = np.zeros(memory_rows, np.int64)
        self.rewards = np.zeros(memory_rows, np.float32)
        self.count = 0
        for _ in range(1000):
            self.collect(exploration=1.0)

    def collect(self, exploration: float) -> None:
        """Put one decision into the memory."""
        if self.random.random() < exploration:
            action = int(self.random.integers(4))
        else:
            with self.torch.inference_mode():
                action = int(self.online(self.torch.from_numpy(self.state)).argmax())
        place = self.count % len(self.actions)
        self.states[place], self.actions[place] = self.state, action
        self.rewards[place] = self.system.step(action)
        self.state = self.system.features()
        self.next_states[place] = self.state
        self.count += 1

    def learn(self) -> None:
        """Take one gradient step."""
        tensor = self.torch.from_numpy
        rows = self.random.integers(min(self.count, len(self.actions)), size=self.batch_size)
        with self.torch.no_grad():
            following = self.target(tensor(self.next_states[rows])).amax(1)
            target = tensor(self.rewards[rows]) + 0.99 * following
        chosen = tensor(self.actions[rows])[:, None]
        value = self.online(tensor(self.states[rows])).gather(1, chosen)[:, 0]
        self.optimiser.zero_grad()
        self.torch.nn.functional.mse_loss(value, target).backward()
        self.optimiser.step()
        if self.count % 1000 == 0:
            self.target.load_state_dict(self.online.state_dict())

    def run(self, threads: int, seconds: float) -> int:
        """Run tasks, each with a gradient step, for so long; return how many."""
        self.torch.set_num_threads(threads)
        first, end = self.count, time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.collect(exploration=0.1)
            self.learn()
        return self.count - first


def config(**settings: Any) -> jaxlb.DQNConfig:
    """Configure the peers' network; the policy is judged once, at the end, on one task."""
    network = networks.mlp(WIDTHS)
    return jaxlb.DQNConfig(network=network, num_evaluations=1, evaluation_tasks=1, **settings)


def compiled(name: str, amount: int, function: Callable[[Any], Any], key: Any) -> Program:
    """Compile a function of a key, or of keys, and run it once."""
    began = time.perf_counter()
    executable = jax.jit(function).lower(key).compile()

    def run() -> int:
        jax.block_until_ready(executable(key))
        return amount

    run()
    return Program(name, run, time.perf_counter() - began)


def ours(name: str, settings: jaxlb.DQNConfig) -> Program:
    """Compile one seed of `train_dqn`."""
    tasks = settings.num_iterations * settings.num_lanes
    return compiled(name, tasks, lambda key: jaxlb.train_dqn(ENV, PARAMS, settings, key), jax.random.key(0))


def rate(program: Program) -> Callable[[], float]:
    """Return a run of it: work per second."""

    def run() -> float:
        began = time.perf_counter()
        return program.run() / (time.perf_counter() - began)

    return run


def measure(
    name: str, settings: str, unit: str, goal: str, programs: Sequence[Program], rounds: int
) -> dict[str, Any]:
    """Alternate programs; print and return their rates, and the first's over the best of the others."""
    rates = np.array(list(alternate({one.name: rate(one) for one in programs}, rounds).values()))
    medians, ratios = np.median(rates, axis=1), rates[0] / rates[1:].max(0)
    table = Table("program", unit, "min to max", "compile, warm up", title=name, caption=settings)
    found: dict[str, Any] = {"name": name, "settings": settings, "unit": unit, "goal": goal}
    found |= {"ratio": float(medians[0] / medians[1:].max()), "ratios": ratios.tolist(), "programs": []}
    for program, each, median in zip(programs, rates, medians, strict=True):
        warmup = program.warmup_seconds
        table.add_row(
            program.name, f"{median:,.0f}", f"{min(each):,.0f} to {max(each):,.0f}", f"{warmup:.1f} s"
        )
        found["programs"].append({"name": program.name, "rates": each.tolist(), "warmup_seconds": warmup})
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    table.add_row("ratio", f"{found['ratio']:.2f}", spread, f"goal {goal}")
    rich.print(table)
    return found


def torch_duel(torch: Any, rounds: int) -> dict[str, Any]:
    """Compare with PyTorch: one gradient step a task."""
    batch, rows = 64, 16_384
    settings = config(
        num_lanes=1, batch_size=batch, memory_rows=rows, num_iterations=8000, n_step=1, double=False
    )
    programs = [ours("jaxlb", settings)]
    loop = TorchLoop(torch, batch, rows)
    # Two threads are faster on an idle machine and far slower on a busy one, so both run in every round.
    for threads in (1, 2):
        began = time.perf_counter()
        loop.run(threads, seconds=0.5)
        name = f"PyTorch {torch.__version__}, threads: {threads}"
        run = functools.partial(loop.run, threads, seconds=3.0)
        programs.append(Program(name, run, time.perf_counter() - began))
    return measure(
        "one gradient step a task: jaxlb / PyTorch",
        f"1 environment, batch {batch}, MLP {WIDTHS}, memory {rows}, Adam, 1-step targets",
        "tasks/s",
        ">= 10",
        programs,
        rounds,
    )


def rejax_duel(rejax: Any, memory: int, rounds: int) -> dict[str, Any]:
    """Compare with rejax: many environments, one gradient step for each step of all."""
    lanes, batch, iterations = 256, 512, 500
    settings = config(
        num_lanes=lanes, batch_size=batch, memory_rows=memory // lanes, num_iterations=iterations, n_step=1
    )
    theirs = importlib.import_module("rejax.networks")
    agent = theirs.EpsilonGreedyPolicy(theirs.DiscreteQNetwork)(
        hidden_layer_sizes=WIDTHS, activation=jax.nn.relu, action_dim=ENV.num_actions
    )
    algorithm = rejax.DQN.create(
        env=FiveValueEnv(ENV),
        env_params=PARAMS,
        num_envs=lanes,
        batch_size=batch,
        buffer_size=memory,
        fill_buffer=batch,
        total_timesteps=iterations * lanes,
        eval_freq=iterations * lanes,
        skip_initial_evaluation=True,
        normalize_observations=True,
        polyak=0.95,
    ).replace(agent=agent, eval_callback=lambda algorithm, state, key: ())
    steps = iterations * lanes
    peer = compiled("rejax", steps, lambda key: algorithm.train(rng=key), jax.random.key(0))
    return measure(
        f"vectorised, memory {memory}: jaxlb / rejax",
        f"{lanes} environments, batch {batch}, MLP {WIDTHS}, memory {memory}, one gradient step for each step"
        " of all, double DQN, 1-step targets, target network 5 % of the way each step, features normalised",
        "environment steps/s",
        ">= 1",
        (ours("jaxlb", settings), peer),
        rounds,
    )


def seeds_duel(rounds: int) -> dict[str, Any]:
    """Compare seeds vmapped and spread over the devices with one after the other."""
    settings = config(memory_rows=512, num_iterations=250)
    tasks = settings.num_iterations * settings.num_lanes
    keys = side_by_side(jax.vmap(jax.random.key)(jnp.arange(SEEDS)), SEEDS)
    train = jax.vmap(lambda key: jaxlb.train_dqn(ENV, PARAMS, settings, key))
    together = compiled(
        f"{SEEDS} seeds vmapped, devices: {len(keys.sharding.device_set)}", SEEDS * tasks, train, keys
    )
    return measure(
        f"seeds: wall time of {SEEDS} vmapped / ({SEEDS} x one)",
        f"{settings.num_lanes} environments, batch {settings.batch_size}, MLP {WIDTHS}, n-step"
        f" {settings.n_step}, {settings.num_iterations} gradient steps",
        "tasks/s",
        "< 1",
        (ours("one seed", settings), together),
        rounds,
    )


def optional(name: str) -> Any:
    """Import a module; return None, and print the reason, where that fails."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        rich.print(f"{name} is skipped: {error}")
        return None


def main(rounds: int = 5, out: Path | None = None) -> None:
    """Measure, print tables, and write JSON if asked."""
    torch, rejax = optional("torch"), optional("rejax")
    found = []
    if torch is not None:
        found.append(torch_duel(torch, rounds))
    if rejax is not None:
        # rejax samples without replacement, in time that grows with the memory: its default size, and less.
        found += [rejax_duel(rejax, memory, rounds) for memory in (131_072, 16_384)]
    found.append(seeds_duel(rounds))
    machine = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "jaxlb": jaxlb.__version__,
    }
    rich.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if out is not None:
        out.write_text(json.dumps({"machine": machine, "ratios": found}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
