"""How fast it is on this machine: against others on the same work, in alternating runs.

Machines differ and drift, so what counts are quotients of medians of one run. A `Program` does its work once
and returns a rate; compilation is over before.
"""

import dataclasses
import functools
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb.env import Env, flatten
from jaxlb.learn import networks
from jaxlb.rollout import continue_rollout, side_by_side, start_rollout
from jaxlb.scenarios import make, scenarios
from jaxlb.schedulers import learned, scheduler, schedulers
from jaxlb.types import Array, EnvParams, Observation, Scheduler

Program = Callable[[], float]
"""Does its work once and returns steps per second."""


class Skipped(Exception):
    """A peer that is not here; says what to install."""


@dataclass(frozen=True)
class Row:
    """A figure, and the bound that it is held to.

    Attributes:
      name: of the figure.
      bound: what it has to reach; None where it was skipped.
      aim: what it is hoped to reach.
      better: whether more or less is better.
      value: the median; None where it was skipped.
      lowest: of single rounds.
      highest: of single rounds.
      detail: how it was had, or why it was not.
    """

    name: str
    bound: float | None
    aim: float | None
    better: Literal["more", "less"]
    value: float | None
    lowest: float | None = None
    highest: float | None = None
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether the bound is reached."""
        if self.value is None or self.bound is None:
            return False
        return self.value >= self.bound if self.better == "more" else self.value <= self.bound


@dataclass(frozen=True)
class Sweep:
    """How throughput changes with one number.

    Attributes:
      over: what changes: "lanes", "processors" or "tasks".
      values: of it.
      rates: tasks per second at each value, of each scheduler: medians.
      detail: what stays.
    """

    over: str
    values: list[int]
    rates: dict[str, list[float]]
    detail: str


def alternate(programs: list[Program], rounds: int) -> list[list[float]]:
    """Rates of each, run in turns."""
    rates: list[list[float]] = [[] for _ in programs]
    for _ in range(rounds):
        for program, own in zip(programs, rates, strict=True):
            own.append(program())
    return rates


def fastest(make_program: Callable[[int], Program], choices: Iterable[int]) -> tuple[int, Program]:
    """The number of lanes that is the best for a program, and the program."""
    best: tuple[float, int, Program] | None = None
    for lanes in choices:
        program = make_program(lanes)
        rate = max(program(), program())
        if best is None or rate > best[0]:
            best = rate, lanes, program
    assert best is not None
    return best[1], best[2]


def observing_lwr() -> Scheduler:
    """LWR that looks at every number of the observation, as a learned scheduler would."""
    lwr = scheduler("lwr")

    def act(variables: Any, memory: Array, observation: Observation, key: Array) -> tuple[Array, Array]:
        action, _ = lwr.act((), (), observation, key)
        return action, memory + flatten(observation).sum(0)

    return Scheduler("lwr, observing", lwr.init, lambda params, lanes: jnp.zeros(lanes), act)


def system(num_processors: int) -> tuple[Env, EnvParams]:
    """The system of the C programs: speeds 0.5 to 2, Poisson arrivals at load 0.8, exponential sizes."""
    speed = [1.0] if num_processors == 1 else [float(v) for v in np.linspace(0.5, 2.0, num_processors)]
    return make("stable", speed=speed, deadline_constant=3.0)


def rolling(
    env: Env, params: EnvParams, scheduler: Scheduler, variables: Any, lanes: int, steps: int
) -> Program:
    """`rollout`, compiled: tasks per second."""
    key = jax.random.key(0)
    carry = start_rollout(env, params, scheduler, key, lanes)

    def run() -> float:
        began = time.perf_counter()
        jax.block_until_ready(continue_rollout(env, params, scheduler, variables, key, carry, steps))
        return lanes * steps / (time.perf_counter() - began)

    jax.block_until_ready(continue_rollout(env, params, scheduler, variables, key, carry, 1))
    return run


def stepping(env: Any, params: Any, lanes: int, steps: int) -> Program:
    """`vmap(env.step)` in a scan with a key and a random action for each lane, as users write it."""

    @jax.jit
    def advance(state: Any, total: Array, key: Array) -> tuple[Any, Array]:
        def body(carry: tuple[Any, Array], key: Array) -> tuple[tuple[Any, Array], None]:
            state, total = carry
            action_key, step_key = jax.random.split(key)
            action = jax.vmap(env.action_space(params).sample)(jax.random.split(action_key, lanes))
            keys = jax.random.split(step_key, lanes)
            seen, state, reward, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
            return (state, total + seen.sum(-1) + reward), None

        return jax.lax.scan(body, (state, total), jax.random.split(key, steps))[0]

    key = jax.random.key(0)
    _, state = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(key, lanes), params)
    state, total = side_by_side((state, jnp.zeros(lanes)), lanes)

    def run() -> float:
        began = time.perf_counter()
        jax.block_until_ready(advance(state, total, key))
        return lanes * steps / (time.perf_counter() - began)

    run()
    return run


def c_program(
    source: Path, num_processors: int, lanes: int, steps: int, threads: int, folder: str
) -> Program:
    """A C program, built for this machine; its own clock, the median of the three figures it prints."""
    if not source.exists():
        raise Skipped(f"{source} is not here: give its folder with --reference")
    program = Path(folder) / f"{source.stem}-{num_processors}"
    if not program.exists():
        flags = [f"-DP={num_processors}", "-O3", "-march=native", "-ffast-math"]
        try:
            subprocess.run(
                ["gcc", *flags, "-o", str(program), str(source), "-lm", "-lpthread"],
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
    """The same system with SimPy's resources, one environment: tasks per second."""
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
    """Nothing but a perceptron's matrix products, as often as a rollout asks it: decisions per second."""
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

    def run() -> float:
        began = time.perf_counter()
        jax.block_until_ready(advance(x))
        return lanes * steps / (time.perf_counter() - began)

    run()
    return run


def quotient(
    name: str, ours: Program, theirs: Program, rounds: int, bound: float, aim: float, detail: str
) -> Row:
    """Our rate divided by theirs: of medians, and of each round."""
    rates, others = alternate([ours, theirs], rounds)
    each = [rate / other for rate, other in zip(rates, others, strict=True)]
    value = statistics.median(rates) / statistics.median(others)
    return Row(name, bound, aim, "more", value, min(each), max(each), detail)


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
      reference: folder of the C programs.
      rounds: alternating runs of each pair.
      steps: of a rollout.
      lanes: numbers of lanes to choose from.
      threads: of the C programs.
    """

    reference: Path
    rounds: int
    steps: int
    lanes: tuple[int, ...]
    threads: int


def against_c(settings: Settings, num_processors: int, source: str, bound: float, aim: float) -> Row:
    """LWR, all of the observation consumed, beside a C program."""
    s, name = settings, f"LWR, P = {num_processors}: rate / {source}.c"
    env, params = system(num_processors)
    steps = max(1, 4 * s.steps // num_processors)
    with tempfile.TemporaryDirectory() as folder:
        path = s.reference / f"{source}.c"

        def theirs(lanes: int) -> Program:
            return c_program(path, num_processors, lanes, steps, s.threads, folder)

        def ours(lanes: int) -> Program:
            return rolling(env, params, observing_lwr(), (), lanes, steps)

        their_lanes, peer = fastest(theirs, s.lanes)
        our_lanes, own = fastest(ours, s.lanes)
        detail = f"{our_lanes:,} lanes against {their_lanes:,}, {s.threads} threads"
        return quotient(name, own, peer, s.rounds, bound, aim, detail)


def against_cartpole(settings: Settings, api: bool) -> Row:
    """`rollout`, or the environment in a user's own loop, beside gymnax's CartPole with random actions."""
    s = settings
    try:
        gymnax: Any = importlib.import_module("gymnax")
    except ImportError:
        raise Skipped("pip install gymnax, if need be with --no-deps and what it imports") from None
    cartpole: tuple[Any, Any] = gymnax.make("CartPole-v1")
    their_lanes, peer = fastest(lambda lanes: stepping(*cartpole, lanes, s.steps), s.lanes)
    env, params = system(4)
    if api:
        our_lanes, own = fastest(lambda lanes: stepping(env, params, lanes, s.steps), s.lanes)
        name, bounds = "vmap(env.step) in a scan: rate / gymnax CartPole", (1.0, 1.0)
    else:
        rule = observing_lwr()
        our_lanes, own = fastest(lambda lanes: rolling(env, params, rule, (), lanes, s.steps), s.lanes)
        name, bounds = "LWR, P = 4: rate / gymnax CartPole", (4.0, 8.0)
    return quotient(name, own, peer, s.rounds, *bounds, f"{our_lanes:,} lanes against {their_lanes:,}")


def against_simpy(settings: Settings) -> Row:
    """LWR beside SimPy; neither observes more than it needs."""
    s = settings
    peer = simpy_program(4, 20_000)
    rule = scheduler("lwr")
    lanes, own = fastest(lambda lanes: rolling(*system(4), rule, (), lanes, s.steps), s.lanes)
    return quotient("LWR, P = 4: rate / SimPy", own, peer, s.rounds, 500.0, 1000.0, f"{lanes:,} lanes")


def untrained(env: Env, params: EnvParams, widths: tuple[int, ...]) -> tuple[Scheduler, Any]:
    """A DQN with such a perceptron, and its first weights."""
    rule, key = learned.dqn(networks.mlp(widths)), jax.random.key(0)
    seen = jax.vmap(lambda key: env.observe(env.reset(key, params)[1], params, key), out_axes=-1)(
        jax.random.split(key, 2)
    )
    return rule, rule.init(key, seen)


def overhead(settings: Settings) -> Row:
    """Time of a rollout with a DQN that chooses, divided by that of its network's matrix products."""
    s, widths = settings, (128, 128)
    env, params = system(4)
    rule, variables = untrained(env, params, widths)
    kernels = [leaf for leaf in jax.tree.leaves(variables.network) if leaf.ndim == 2]
    inputs = next(leaf.shape[0] for leaf in kernels if leaf.shape[0] not in widths)
    steps = max(1, s.steps // 8)
    lanes, own = fastest(lambda lanes: rolling(env, params, rule, variables, lanes, steps), s.lanes)
    alone = products((inputs, *widths, env.num_actions), lanes, steps)
    name = "rollout with a 128-128 DQN: time / its matrix products alone"
    return dataclasses.replace(
        quotient(name, alone, own, s.rounds, 1.3, 1.15, f"{lanes:,} lanes"), better="less"
    )


def sweep(settings: Settings, over: str) -> Sweep:
    """Throughput of rollouts over numbers of lanes, processors or tasks."""
    s = settings
    values = {
        "lanes": [4**power for power in range(9)],
        "processors": [4**power for power in range(6)],
        "tasks": [4**power for power in range(3, 9)],
    }[over]
    rates: dict[str, list[float]] = {}
    for value in values:
        lanes, processors = (value if over == name else 256 for name in ("lanes", "processors"))
        env, params = system(processors if over == "processors" else 4)
        steps = (
            value if over == "tasks" else max(8, min(4096, 1024 * s.steps // (lanes * env.num_processors)))
        )
        rules = {"random": (scheduler("random"), ()), "LWR, observing": (observing_lwr(), ())}
        if over == "lanes":
            rules["DQN, 64-64"] = untrained(env, params, (64, 64))
        programs = [rolling(env, params, *rule, lanes, steps) for rule in rules.values()]
        for name, found in zip(rules, alternate(programs, min(s.rounds, 3)), strict=True):
            rates.setdefault(name, []).append(statistics.median(found))
        jax.clear_caches()
    detail = {"lanes": "P = 4", "processors": "256 lanes", "tasks": "P = 4, 256 lanes"}[over]
    return Sweep(over, values, rates, detail)


def compiling(settings: Settings) -> Row:
    """The longest compilation of a rollout, of all scenarios and classical schedulers."""

    def seconds(scenario: str, name: str) -> float:
        (env, params), rule, key = make(scenario), scheduler(name), jax.random.key(0)
        carry = start_rollout(env, params, rule, key, 1024)
        jax.clear_caches()
        began = time.perf_counter()
        continue_rollout.lower(env, params, rule, (), key, carry, 1).compile()
        return time.perf_counter() - began

    # "optimal" serves two processors only.
    pairs = [(scenario, name) for scenario in scenarios() for name in set(schedulers()) - {"optimal"}]
    longest = sorted(pairs, key=lambda pair: seconds(*pair))[-3:]
    times = {pair: [seconds(*pair) for _ in range(settings.rounds)] for pair in longest}
    scenario, name = max(longest, key=lambda pair: statistics.median(times[pair]))
    each = times[scenario, name]
    title = "compilation of a rollout, seconds, the longest"
    value = statistics.median(each)
    return Row(title, 3.0, 1.5, "less", value, min(each), max(each), f"{name} on {scenario}")


def importing(settings: Settings) -> Row:
    """Seconds of `import jaxlb` beyond those of `import jax, flax`."""

    def program(statement: str) -> Program:
        def run() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            return time.perf_counter() - began

        run()
        return run

    times = alternate([program("import jax, flax, jaxlb"), program("import jax, flax")], settings.rounds)
    each = [own - other for own, other in zip(*times, strict=True)]
    value = statistics.median(each)
    return Row("import jaxlb beyond jax and flax, seconds", 0.3, 0.1, "less", value, min(each), max(each))


def memory(lanes: int = 1024) -> Row:
    """Bytes of the state of a lane."""
    env, params = system(4)
    carry = start_rollout(env, params, scheduler("lwr"), jax.random.key(0), lanes)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.state))
    return Row("state of a lane, P = 4, bytes", 512.0, 384.0, "less", total / lanes)


SWEEPS = ("lanes", "processors", "tasks")


def measure(
    settings: Settings, only: tuple[str, ...] = (), on_progress: Callable[[str, float], None] | None = None
) -> tuple[list[Row], list[Sweep]]:
    """The rows and sweeps whose names hold one of the words `only`; all, if there is none.

    Raises:
      ValueError: none has such a name.
    """
    s = settings
    rows: dict[str, Callable[[], Row]] = {
        f"dispatch_scalar.c, P = {number}": functools.partial(
            against_c, s, number, "dispatch_scalar", 1.0, 2.0
        )
        for number in (4, 16, 64)
    }
    rows |= {
        "dispatch_soa.c, P = 4": functools.partial(against_c, s, 4, "dispatch_soa", 0.12, 0.35),
        "CartPole": functools.partial(against_cartpole, s, api=False),
        "CartPole, own loop": functools.partial(against_cartpole, s, api=True),
        "SimPy": functools.partial(against_simpy, s),
        "network": functools.partial(overhead, s),
        "compilation": functools.partial(compiling, s),
        "import": functools.partial(importing, s),
        "memory": memory,
    }
    names = [name for name in (*rows, *SWEEPS) if not only or any(word in name for word in only)]
    if not names:
        raise ValueError(f"only = {only!r}: nothing has such a name")
    found, sweeps = [], []
    for done, name in enumerate(names):
        if on_progress is not None:
            on_progress(name, done / len(names))
        if name in SWEEPS:
            sweeps.append(sweep(s, name))
            continue
        try:
            found.append(rows[name]())
        except Skipped as reason:
            found.append(Row(name, None, None, "more", None, detail=f"skipped: {reason}"))
        jax.clear_caches()
    return found, sweeps
