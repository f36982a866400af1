"""The programs that are timed: ours, and others that do the same work.

A `Program` does its work once and returns a rate; compilation is over before.
"""

import contextlib
import functools
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from timing import Program, timed

from jaxlb.devices import DEVICES, device_mesh, side_by_side
from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.numerics import total
from jaxlb.scheduling import scheduler
from jaxlb.scheduling.base import with_memory
from jaxlb.types import Array, EnvParams, Key, Observation, Scheduler

Choice = TypeVar("Choice")


class Skipped(Exception):
    """A peer that is not here; says what to install."""


def fastest(make_program: Callable[[Choice], Program], choices: Iterable[Choice]) -> tuple[Choice, Program]:
    """Return the best setting for a program, such as the number of lanes, and the program."""
    best: tuple[float, Choice, Program] | None = None
    for choice in choices:
        program = make_program(choice)
        rate = max(program(), program())
        if best is None or rate > best[0]:
            best = rate, choice, program
    assert best is not None
    return best[1], best[2]


def observing_lwr() -> Scheduler:
    """Make LWR that uses every number of the observation, as a learned scheduler would."""
    return with_memory("lwr, observing", _no_sum, _sum_up)


def _no_sum(env: Any, params: EnvParams, lanes: tuple[int, ...]) -> Array:
    return jnp.zeros(lanes)


def _sum_up(memory: Array, observation: Observation, key: Array) -> tuple[Array, Array]:
    o = observation
    action, _ = scheduler("lwr").act((), (), o, key)
    told = o.size + o.priority.astype(jnp.float32) + o.load_average + o.load_variance
    of_each = (o.queue_length.astype(jnp.float32), o.load, o.wait, o.speed)
    return action, memory + sum((total(x) for x in of_each), told)


def system(num_processors: int, **service: Any) -> tuple[Env, EnvParams]:
    """Make the C programs' system: speeds 0.5 to 2, Poisson arrivals at load 0.8, exponential sizes."""
    speed = [1.0] if num_processors == 1 else [float(v) for v in np.linspace(0.5, 2.0, num_processors)]
    return make("stable", speed=speed, deadline_constant=3.0, **service)


def rolling(env: Env, params: EnvParams, scheduler: Scheduler, lanes: int, steps: int) -> Program:
    """Compile `rollout`: tasks per second."""
    key = jax.random.key(0)
    carry = start_rollout(env, params, scheduler, key, lanes)
    run = functools.partial(continue_rollout, env, params, scheduler, carry, steps)
    return timed(run, lanes * steps)


def stepping(env: Any, params: Any, lanes: int, steps: int) -> Program:
    """Scan `vmap(env.step)` with a key and a random action for each lane, as users write it.

    The observation is carried to the next step, as for a policy that would act on it. Every device runs the
    scan on its share of the lanes, so that none waits for another.
    """
    mesh = device_mesh(lanes)
    share, of_each, whole = lanes // mesh.size, PartitionSpec(DEVICES), PartitionSpec()

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(of_each, whole), out_specs=of_each)
    def advance(start: tuple[Any, Array, Array], key: Key) -> tuple[Any, Array, Array]:
        def body(carry: tuple[Any, Array, Array], key: Key) -> tuple[tuple[Any, Array, Array], None]:
            state, _, total = carry
            action_key, step_key = jax.random.split(key)
            action = jax.vmap(env.action_space(params).sample)(jax.random.split(action_key, share))
            keys = jax.random.split(step_key, share)
            seen, state, reward, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
            return (state, seen, total + reward), None

        keys = jax.random.split(jax.random.fold_in(key, jax.lax.axis_index(DEVICES)), steps)
        return jax.lax.scan(body, start, keys)[0]

    key = jax.random.key(0)
    seen, state = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(key, lanes), params)
    start = side_by_side((state, seen, jnp.zeros(lanes)), lanes)

    return timed(lambda: advance(start, key), lanes * steps)


@contextlib.contextmanager
def apart(what: str, steps: int, flags: str) -> Iterator[Callable[[int], Program]]:
    """Run `stepping` in a process of its own, in which XLA has `flags`; yield lanes -> program.

    Args:
      what: "CartPole", gymnax's, or "ours".
      steps: of all lanes together in a run.
      flags: XLA_FLAGS; empty for those that XLA has by itself, as in a program of a user's.
    """
    command = [sys.executable, __file__, what, str(steps)]
    environment = os.environ | {"XLA_FLAGS": flags}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None and answers is not None

        def run(lanes: int) -> float:
            print(lanes, file=asked, flush=True)
            return float(answers.readline())

        def make_program(lanes: int) -> Program:
            run(lanes)
            return functools.partial(run, lanes)

        yield make_program
        asked.close()


def serve(what: str, steps: int) -> None:
    """Serve `apart`: print a rate for every number of lanes that is read."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    gymnax: Any = importlib.import_module("gymnax") if what == "CartPole" else None
    env, params = gymnax.make("CartPole-v1") if gymnax else system(4)
    made = functools.cache(lambda lanes: stepping(env, params, lanes, max(1, steps // lanes)))
    for line in sys.stdin:
        print(made(int(line))(), flush=True)


def c_program(
    source: Path, num_processors: int, lanes: int, steps: int, threads: int, folder: str, *flags: str
) -> Program:
    """Build a C program for this machine; time it by its own clock, the median of the three it prints."""
    if not source.exists():
        raise Skipped(f"{source} is not here: give its folder with --reference")
    program = Path(folder) / f"{source.stem}-{num_processors}"
    if not program.exists():
        all_flags = [f"-DP={num_processors}", *flags, "-O3", "-march=native", "-ffast-math"]
        try:
            subprocess.run(
                ["gcc", *all_flags, "-o", str(program), str(source), "-lm", "-lpthread"],
                check=True,
                capture_output=True,
            )
        except FileNotFoundError:
            raise Skipped("gcc is not installed") from None

    def run() -> float:
        command = [str(program), str(lanes), str(steps), str(threads)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return statistics.median(1e6 * float(line.split()[-2]) for line in printed)

    return run


def simpy_program(num_processors: int, num_tasks: int) -> Program:
    """Simulate the same system with SimPy's resources, one environment: tasks per second."""
    try:
        simpy: Any = importlib.import_module("simpy")
    except ImportError:
        raise Skipped("pip install simpy") from None
    _, params = system(num_processors)
    speeds = [float(v) for v in params.speed]

    def run() -> float:
        rng = np.random.default_rng(0)
        environment = simpy.Environment()
        processors = [simpy.Resource(environment) for _ in speeds]
        free = [0.0] * len(speeds)

        def serve(processor: int, service: float) -> Any:
            with processors[processor].request() as turn:
                yield turn
                yield environment.timeout(service)

        def arrive() -> Any:
            for _ in range(num_tasks):
                yield environment.timeout(rng.exponential(1.0 / (0.8 * sum(speeds))))
                now, size = environment.now, rng.exponential()
                waits = [max(at - now, 0.0) for at in free]
                action = waits.index(min(waits))
                free[action] = now + waits[action] + size / speeds[action]
                environment.process(serve(action, size / speeds[action]))

        began = time.perf_counter()
        environment.process(arrive())
        environment.run()
        return num_tasks / (time.perf_counter() - began)

    return run


def products(widths: tuple[int, ...], lanes: int, steps: int) -> Program:
    """Compile a perceptron's matrix products alone, as often as a rollout needs them: decisions a second."""
    keys = jax.random.split(jax.random.key(0), len(widths))
    shapes = zip(keys, widths[:-1], widths[1:], strict=False)
    weights = [0.1 * jax.random.normal(key, (rows, columns)) for key, rows, columns in shapes]
    x = side_by_side(jax.random.normal(keys[-1], (lanes, widths[0])), lanes)

    @jax.jit
    def advance(x: Array) -> Array:
        def body(_: Array, x: Array) -> Array:
            out = x
            for weight in weights[:-1]:
                out = jax.nn.relu(out @ weight)
            # So that no step can be left out.
            return 0.9 * x + (out @ weights[-1]).mean(-1, keepdims=True)

        return jax.lax.fori_loop(0, steps, body, x)

    return timed(lambda: advance(x), lanes * steps)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
