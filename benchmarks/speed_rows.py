"""Figures of speed that are held to bounds: beside others on the same work, and costs of our own."""

import contextlib
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from programs import (
    Skipped,
    apart,
    c_program,
    fastest,
    observing_lwr,
    products,
    rolling,
    simpy_program,
    system,
)
from timing import Program, alternate

from jaxlb.env import Env
from jaxlb.environments import make, scenarios
from jaxlb.learn import networks
from jaxlb.learn.dqn import DQNConfig, start_dqn
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.scheduling import learned, scheduler, schedulers
from jaxlb.types import EnvParams, Scheduler


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
        """Return whether the bound is reached."""
        if self.value is None or self.bound is None:
            return False
        return self.value >= self.bound if self.better == "more" else self.value <= self.bound


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
      reference: folder of the C programs.
      rounds: alternating runs of each pair.
      tasks: of all lanes together, in a run of four processors.
      lanes: numbers of lanes to choose from.
      threads: of the C programs.
    """

    reference: Path
    rounds: int
    tasks: int
    lanes: tuple[int, ...]
    threads: int

    def steps(self, lanes: int, work: float = 1.0) -> int:
        """Return each lane's tasks in a run; one takes `work` times as long as by a classical rule, P = 4."""
        return max(1, int(self.tasks / (work * lanes)))


def quotient(
    name: str, ours: Program, theirs: Program, rounds: int, bound: float, aim: float, detail: str
) -> Row:
    """Divide our rate by theirs: of medians, and of each round."""
    rates, others = alternate({"ours": ours, "theirs": theirs}, rounds).values()
    each = [rate / other for rate, other in zip(rates, others, strict=True)]
    value = statistics.median(rates) / statistics.median(others)
    return Row(name, bound, aim, "more", value, min(each), max(each), detail)


def against_c(
    settings: Settings,
    num_processors: int,
    source: str,
    bound: float,
    aim: float,
    *flags: str,
    work: float | None = None,
    **service: Any,
) -> Row:
    """Measure LWR, all of the observation consumed, beside a C program built with `flags`."""
    s, under = settings, f", {service['discipline']}" if service else ""
    name = f"LWR, P = {num_processors}{under}: rate / {source}.c"
    (env, params), rule = system(num_processors, **service), observing_lwr()
    work = num_processors / 4 if work is None else work
    with tempfile.TemporaryDirectory() as folder:
        path = s.reference / f"{source}.c"

        def theirs(lanes: int) -> Program:
            steps = s.steps(lanes, work)
            return c_program(path, num_processors, lanes, steps, s.threads, folder, *flags)

        def ours(lanes: int) -> Program:
            return rolling(env, params, rule, lanes, s.steps(lanes, work))

        their_lanes, peer = fastest(theirs, s.lanes)
        our_lanes, own = fastest(ours, s.lanes)
        detail = f"{our_lanes:,} lanes against {their_lanes:,}, {s.threads} threads"
        return quotient(name, own, peer, s.rounds, bound, aim, detail)


def against_cartpole(settings: Settings, api: bool) -> Row:
    """Measure `rollout`, or a user's own loop, beside gymnax's CartPole with random actions.

    What is a user's own loop runs in processes of its own, with XLA's flags of here and without, and the
    better of both counts.
    """
    s = settings
    if importlib.util.find_spec("gymnax") is None:
        raise Skipped("pip install gymnax, if need be with --no-deps and what it imports")
    all_flags = sorted({"", os.environ.get("XLA_FLAGS", "")})
    with contextlib.ExitStack() as stack:

        def best(what: str) -> tuple[tuple[str, int], Program]:
            programs = {flags: stack.enter_context(apart(what, s.tasks // 4, flags)) for flags in all_flags}
            choices = [(flags, lanes) for flags in programs for lanes in s.lanes]
            return fastest(lambda choice: programs[choice[0]](choice[1]), choices)

        (their_flags, their_lanes), peer = best("CartPole")
        if api:
            (_, our_lanes), own = best("ours")
            name, bounds = "vmap(env.step) in a scan: rate / gymnax CartPole", (1.0, 1.0)
        else:
            (env, params), rule = system(4), observing_lwr()
            our_lanes, own = fastest(lambda lanes: rolling(env, params, rule, lanes, s.steps(lanes)), s.lanes)
            name, bounds = "LWR, P = 4: rate / gymnax CartPole", (4.0, 8.0)
        flagged = "with" if their_flags else "without"
        detail = f"{our_lanes:,} lanes against {their_lanes:,} {flagged} XLA_FLAGS"
        return quotient(name, own, peer, s.rounds, *bounds, detail)


def against_simpy(settings: Settings) -> Row:
    """Measure LWR beside SimPy; neither observes more than it needs."""
    s = settings
    peer, (env, params), rule = simpy_program(4, 20_000), system(4), scheduler("lwr")
    lanes, own = fastest(lambda lanes: rolling(env, params, rule, lanes, s.steps(lanes)), s.lanes)
    return quotient("LWR, P = 4: rate / SimPy", own, peer, s.rounds, 500.0, 1000.0, f"{lanes:,} lanes")


def untrained(env: Env, params: EnvParams, widths: tuple[int, ...]) -> Scheduler:
    """Make a DQN with such a perceptron, and its first weights."""
    network = networks.mlp(widths)
    config = DQNConfig(network=network, num_lanes=2, memory_rows=4)
    return learned.dqn(network, start_dqn(env, params, config, jax.random.key(0)).variables)


def overhead(settings: Settings) -> Row:
    """Divide a rollout's time, where a DQN chooses, by that of its network's matrix products."""
    s, widths = settings, (128, 128)
    env, params = system(4)
    rule = untrained(env, params, widths)
    kernels = [leaf for leaf in jax.tree.leaves(rule.variables.network) if leaf.ndim == 2]
    inputs = next(leaf.shape[0] for leaf in kernels if leaf.shape[0] not in widths)
    lanes, own = fastest(lambda lanes: rolling(env, params, rule, lanes, s.steps(lanes, 32)), s.lanes)
    alone = products((inputs, *widths, env.num_actions), lanes, s.steps(lanes, 32))
    name = "rollout with a 128-128 DQN: time / its matrix products alone"
    return dataclasses.replace(
        quotient(name, alone, own, s.rounds, 1.3, 1.15, f"{lanes:,} lanes"), better="less"
    )


def compiling(settings: Settings) -> Row:
    """Time the longest compilation of a rollout: what takes the longest by itself, together.

    The bound is for one rule; what `hedge` takes, several with a system for each, is given beside.
    """

    def seconds(scenario: str, name: str) -> float:
        (env, params), rule, key = make(scenario), scheduler(name), jax.random.key(0)
        carry = start_rollout(env, params, rule, key, 1024)
        jax.clear_caches()
        began = time.perf_counter()
        continue_rollout.lower(env, params, rule, carry, 1).compile()
        return time.perf_counter() - began

    # "optimal" serves two processors only.
    rules = sorted(set(schedulers()) - {"hedge", "optimal"}, key=lambda name: seconds("stable", name))[-3:]
    places = sorted(scenarios(), key=lambda scenario: seconds(scenario, "lwr"))[-3:]
    times = {
        (scenario, name): [seconds(scenario, name) for _ in range(settings.rounds)]
        for scenario in places
        for name in (*rules, "hedge")
    }

    def longest(names: list[str]) -> tuple[float, list[float], str]:
        medians = {pair: statistics.median(found) for pair, found in times.items() if pair[1] in names}
        scenario, name = pair = max(medians, key=lambda pair: medians[pair])
        return medians[pair], times[pair], f"{name} on {scenario}"

    (value, each, what), (mixed, _, where) = longest(rules), longest(["hedge"])
    title = "compilation of a rollout, seconds, the longest"
    detail = f"{what}; {where}: {mixed:.2g}"
    return Row(title, 3.0, 1.5, "less", value, min(each), max(each), detail)


def importing(settings: Settings) -> Row:
    """Time `import jaxlb` beyond `import jax, flax`."""

    def program(statement: str) -> Program:
        def run() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            return time.perf_counter() - began

        run()
        return run

    both = {"jaxlb": program("import jax, flax, jaxlb"), "others": program("import jax, flax")}
    each = [own - other for own, other in zip(*alternate(both, settings.rounds).values(), strict=True)]
    value = statistics.median(each)
    return Row("import jaxlb beyond jax and flax, seconds", 0.3, 0.1, "less", value, min(each), max(each))


def memory(lanes: int = 1024) -> Row:
    """Count the bytes of the state of a lane."""
    env, params = system(4)
    carry = start_rollout(env, params, scheduler("lwr"), jax.random.key(0), lanes)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.state))
    return Row("state of a lane, P = 4, bytes", 512.0, 384.0, "less", total / lanes)
