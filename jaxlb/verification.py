"""The simulator against exact results: what `jaxlb verify` runs.

A case compares a measured mean with a value that `theory` computes or the literature gives. Lanes are
independent, so their spread gives the standard error. A case fails if it is off by more than 4 standard
errors and by more than its tolerance (0.5 % unless said otherwise), and also if its 95 % interval is wider
than its precision (0.5 % to either side, 2 % where the variance makes that dear).

Lanes start empty. What they do before is forgotten at the rate of the relaxation time, which for a queue of
load r and squared coefficients of variation a of the gaps and s of the sizes is about 2 (a + s) / (1 - r)^2
mean services (Abate and Whitt 1987), here of the slowest processor; five of these are not counted, so that
at most e^-5 = 0.7 % of the initial deviation is left when counting begins, spread over a longer run.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxlb import theory, workload
from jaxlb.env import Env, with_lane_axis
from jaxlb.environments import make, scenarios
from jaxlb.loop import continue_rollout, replay, rollout, start_rollout
from jaxlb.metrics import Summary
from jaxlb.scheduling import scheduler
from jaxlb.scheduling.base import no_memory
from jaxlb.scheduling.size_based import load_cutoffs
from jaxlb.threads import threads
from jaxlb.types import Array, ArrivalProcess, EnvParams, Key, Observation, Scheduler, SizeLaw, Task
from jaxlb.workload import arrivals, sizes

DEAR = 0.02
"""Precision of a case whose variance makes the usual one dear."""


GROUPS = (
    "One processor",
    "Central queue",
    "Blind splitting",
    "Queue lengths",
    "Stale information",
    "Task sizes",
    "Optimal",
    "Balance",
    "Gaps drawn",
    "Sizes drawn",
    "Precision",
)
"""Groups of cases, in the order in which they are shown."""


class Case(NamedTuple):
    """A measured value beside the exact one."""

    group: str
    name: str
    measured: float
    standard_error: float
    exact: float
    passed: bool

    def deviation(self) -> float:
        """Standard errors between measured and exact; 0 where there is no error to compare with."""
        return (self.measured - self.exact) / self.standard_error if self.standard_error else 0.0

    def figures(self) -> tuple[str, str, str, str]:
        """Measured, half width of the 95 % interval, exact, deviation, for tables."""
        half = f"{1.96 * self.standard_error:.2g}" if self.standard_error else ""
        deviation = f"{self.deviation():+.2f}" if self.standard_error else ""
        return f"{self.measured:.6g}", half, f"{self.exact:.6g}", deviation


class Experiment(NamedTuple):
    """One or several simulations and what is read from them.

    Attributes:
      group: of its cases.
      name: what the progress bar says.
      run: (key, thoroughness) -> its cases' names and findings; thoroughness 1 is the full run, less makes
        it shorter in proportion.
      quick: whether the quick run has it too.
    """

    group: str
    name: str
    run: Callable[[Key, float], Mapping[str, "Finding"]]
    quick: bool = True


class Finding(NamedTuple):
    """What an experiment found for one case.

    Attributes:
      samples: independent measurements, `[N]`; a single one has no standard error of its own.
      exact: what they should be on average.
      tolerance: by how much the mean may be off at any rate, as a share of `exact`, or as it is if that is 0.
      precision: half width of the 95 % interval that the full run must reach, as a share of `exact`.
      standard_error: of a single measurement.
    """

    samples: Any
    exact: float
    tolerance: float = 0.005
    precision: float = 0.005
    standard_error: float = 0.0


def judge(group: str, name: str, finding: Finding, thoroughness: float = 1.0) -> Case:
    """Mean, standard error and verdict of a finding."""
    lanes = np.atleast_1d(np.asarray(finding.samples, np.float64))
    samples, exact = lanes[np.isfinite(lanes)], finding.exact
    if len(samples) < len(lanes):
        name = f"{name} ({len(lanes) - len(samples)} of {len(lanes)} lanes not finite)"
    mean = float(samples.mean()) if len(samples) else 0.0
    error = float(samples.std(ddof=1)) / len(samples) ** 0.5 if len(samples) > 1 else finding.standard_error
    scale = abs(exact) or 1.0
    error = error if error > 1e-6 * scale else 0.0  # lanes that differ by roundings only are no sample
    near = abs(mean - exact) <= max(4.0 * error, finding.tolerance * scale)
    # A shorter run is as much less precise; what should be 0 has no relative precision.
    precise = exact == 0 or 1.96 * error <= finding.precision * scale / thoroughness**0.5
    return Case(group, name, mean, error, exact, bool(len(samples) == len(lanes) and near and precise))


# Simulation.


def relaxation_tasks(params: EnvParams, gap_cv: float = 1.0) -> int:
    """Five relaxation times in tasks, see above."""
    mean, second = float(params.size.mean()), float(params.size.second_moment())
    size_cv = second / mean**2 - 1.0
    load, speed = float(params.load), np.asarray(params.speed)
    services = 5 * 2.0 * (gap_cv + size_cv) / (1.0 - load) ** 2
    return int(services * load * speed.sum() / speed.min()) + 100


def simulate(
    env: Env,
    params: EnvParams,
    rule: Scheduler,
    key: Key,
    millions: float,
    warmup: int | None = None,
    lanes: int = 1024,
) -> Summary:
    """Run so many million tasks after a warm-up; programs differ by the number of lanes, not of tasks."""
    warmup = relaxation_tasks(params) if warmup is None else warmup
    return rollout(env, params, rule, key, lanes, max(int(millions * 1e6 / lanes), 1), warmup)


def each(key: Key, cases: Sequence[Any]) -> Iterator[tuple[Key, Any]]:
    """Cases with keys of their own; the key is consumed."""
    return zip(jax.random.split(key, len(cases)), cases, strict=True)


def response(summary: Summary) -> np.ndarray:
    """Mean response of each lane, time."""
    return np.asarray(summary.mean_completion, np.float64)


def violation(summary: Summary) -> np.ndarray:
    """Share of violations of each lane."""
    return np.asarray(summary.sla_violation_rate, np.float64)


def equal_processors(num_processors: int, load: float, **overrides: Any) -> tuple[Env, EnvParams]:
    """Equal processors of speed 1, Poisson arrivals, sizes exponential of mean 1 unless overridden.

    Rules that look at waits need no queue lengths; a short memory of them saves time.
    """
    overrides = {"queue_capacity": 1} | overrides
    return make("stable", num_processors=num_processors, load=load, **overrides)


# One processor, or processors behind one queue.


def mm1(key: Key, thoroughness: float) -> dict[str, Finding]:
    """M/M/1: response and its tail."""
    findings = {}
    cases = (0.5, 20), (0.8, 40), (0.9, 90)
    for run_key, (load, millions) in each(key, cases):
        env, params = equal_processors(1, load, class_slack=(0.0,), deadline_constant=5.0)
        run = simulate(env, params, scheduler("lwl"), run_key, millions * thoroughness)
        findings[f"M/M/1, load {load}: mean response"] = Finding(response(run), 1.0 / (1.0 - load))
        exact = theory.mm1_response_tail(load, 5.0)
        findings[f"M/M/1, load {load}: P(response > 5)"] = Finding(violation(run), exact)
    return findings


class Law(NamedTuple):
    """A size law and what is known of it.

    Attributes:
      law: itself.
      mean: work.
      second_moment: work squared.
      millions: of tasks that make the mean wait precise.
      precision: of that mean wait.
      drawn: millions of sizes that make their own moments precise.
      cdf: distribution function, if it is continuous.
    """

    law: SizeLaw
    mean: float
    second_moment: float
    millions: float
    precision: float = 0.005
    drawn: float = 10
    cdf: Callable[[np.ndarray], np.ndarray] | None = None

    def squared_cv(self) -> float:
        """Squared coefficient of variation."""
        return self.second_moment / self.mean**2 - 1.0


def _hyperexponential_cdf(squared_cv: float) -> Callable[[np.ndarray], np.ndarray]:
    p = 0.5 * (1.0 + np.sqrt((squared_cv - 1.0) / (squared_cv + 1.0)))
    return lambda x: -p * np.expm1(-2.0 * p * x) - (1.0 - p) * np.expm1(-2.0 * (1.0 - p) * x)


RECORDED = (0.2, 0.3, 0.3, 0.5, 0.5, 0.7, 1.0, 1.1, 2.4, 3.0)
PARETO = (1.5, 0.339589, 1000.0)  # tail index, smallest, largest: mean 1


def laws() -> dict[str, Law]:
    """Every size law, with mean 1 or near it."""
    tail_index, low, high = PARETO
    pareto = stats.truncpareto(tail_index, high / low, scale=low)
    recorded = np.array(RECORDED)
    lognormal = stats.lognorm(np.log(4.0) ** 0.5, scale=0.5)
    return {
        "deterministic": Law(sizes.Deterministic(1.0), 1.0, 1.0, 20),
        "uniform": Law(sizes.Uniform(0.0, 2.0), 1.0, 4 / 3, 30, cdf=stats.uniform(0.0, 2.0).cdf),
        "exponential": Law(sizes.Exponential(1.0), 1.0, 2.0, 40, cdf=stats.expon.cdf),
        "hyperexponential, C2 = 10": Law(
            sizes.Hyperexponential(1.0, 10.0), 1.0, 11.0, 200, DEAR, cdf=_hyperexponential_cdf(10.0)
        ),
        "lognormal, C2 = 3": Law(sizes.LogNormal(1.0, 3.0), 1.0, 4.0, 150, cdf=lognormal.cdf),
        "bounded Pareto": Law(
            sizes.BoundedPareto(low, high, tail_index),
            float(pareto.mean()),
            float(pareto.moment(2)),
            250,
            DEAR,
            drawn=150,
            cdf=pareto.cdf,
        ),
        "bimodal": Law(sizes.Bimodal(0.5, 10.5, 0.05), 1.0, 0.95 * 0.25 + 0.05 * 110.25, 100, DEAR),
        "empirical": Law(
            sizes.Empirical(jnp.asarray(np.sort(recorded)[::-1], jnp.float32)),
            float(recorded.mean()),
            float((recorded**2).mean()),
            40,
        ),
    }


def mg1(name: str, law: Law, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Pollaczek and Khinchine's formula for one law, load 0.8."""
    env, params = equal_processors(1, 0.8, size=law.law)
    run = simulate(env, params, scheduler("lwl"), key, law.millions * thoroughness)
    exact = theory.mg1_wait(0.8, law.mean, law.second_moment)
    return {
        f"M/G/1, {name} sizes: mean wait": Finding(response(run) - law.mean, exact, precision=law.precision)
    }


def mmk(num_processors: int, key: Key, thoroughness: float) -> dict[str, Finding]:
    """LWL on equal processors is M/M/k."""
    findings = {}
    cases = (0.5, 30, 0.5), (0.8, 40, 1.0), (0.9, 70, 1.0)
    for run_key, (load, millions, time) in each(key, cases):
        # Deadline = size + time: a violation is a wait longer than that time.
        env, params = equal_processors(num_processors, load, class_slack=(1.0,), deadline_constant=time)
        run = simulate(env, params, scheduler("lwl"), run_key, millions * thoroughness)
        label = f"LWL on {num_processors}, load {load}"
        findings[f"{label}: mean response, M/M/k"] = Finding(
            response(run), theory.mmk_response(num_processors, load)
        )
        findings[f"{label}: P(wait > {time}), M/M/k"] = Finding(
            violation(run), theory.mmk_wait_tail(num_processors, load, time)
        )
    return findings


def pathwise(key: Key, thoroughness: float) -> dict[str, Finding]:
    """LWL on equal processors and a central queue: the same waits, task by task."""
    del thoroughness
    findings, num_tasks = {}, 20_000
    for num_processors, arrival, law in (
        (2, arrivals.Poisson(), sizes.Exponential(1.0)),
        (4, arrivals.Renewal(0.25), sizes.BoundedPareto(0.1, 100.0, 1.5)),
        (8, arrivals.Bursty(), sizes.Hyperexponential(1.0, 10.0)),
    ):
        env, params = equal_processors(num_processors, 0.9, arrival=arrival, size=law)
        tasks = workload.sample(key, params, num_tasks)
        # On a grid of 2^-10 all sums of float32 are exact.
        gap, size = (jnp.ceil(leaf * 1024.0) / 1024.0 for leaf in (tasks.gap, tasks.size))
        tasks = tasks.replace(gap=gap, size=size)
        waits = replay(env, params, scheduler("lwl"), tasks, key).wait
        exact = theory.kiefer_wolfowitz(np.asarray(gap), np.asarray(size), num_processors)
        name = f"{type(arrival).__name__} / {type(law).__name__} / {num_processors}"
        findings[f"{name}: largest difference of {num_tasks:,} waits to Kiefer-Wolfowitz"] = Finding(
            np.abs(np.asarray(waits, np.float64) - exact).max(), 0.0, tolerance=0.0
        )
    return findings


# Blind splitting.


def round_robin(num_processors: int, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Round Robin on equal processors is E_P/M/1."""
    findings = {}
    for run_key, (load, millions) in each(key, ((0.5, 10), (0.8, 30), (0.9, 70))):
        env, params = equal_processors(num_processors, load)
        run = simulate(env, params, scheduler("rr"), run_key, millions * thoroughness)
        findings[f"RR on {num_processors}, load {load}: mean response, E_P/M/1"] = Finding(
            response(run), theory.round_robin_response(num_processors, load)
        )
    return findings


def random_splitting(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Random splitting makes independent M/M/1 queues, of unequal load if speeds differ."""
    first_key, second_key = jax.random.split(key)
    env, params = equal_processors(4, 0.8)
    run = simulate(env, params, scheduler("random"), first_key, 50 * thoroughness)
    findings = {"random on 4, load 0.8: mean response, M/M/1": Finding(response(run), 5.0)}
    env, params = make("stable", speed=[0.5, 1.0, 2.5], load=0.8, queue_capacity=1)
    run = simulate(env, params, scheduler("weighted-random"), second_key, 50 * thoroughness)
    # Each processor is an M/M/1 queue of load 0.8 and gets tasks in proportion to its speed.
    exact = 3.0 / 4.0 / (1.0 - 0.8)
    findings["weighted random on speeds 0.5, 1, 2.5, load 0.8: mean response"] = Finding(response(run), exact)
    return findings


def sita(key: Key, thoroughness: float) -> dict[str, Finding]:
    """SITA-E against random splitting, bounded Pareto sizes on four processors."""
    tail_index, low, high = PARETO
    law = sizes.BoundedPareto(low, high, tail_index)
    first_key, second_key = jax.random.split(key)
    env, params = equal_processors(4, 0.8, size=law)
    cutoffs, wait = theory.sita_e(0.8, 4, tail_index, low, high)
    findings = {
        f"SITA-E: cutoff {index + 1} of 3": Finding(cutoff, exact)
        for index, (cutoff, exact) in enumerate(
            zip(load_cutoffs(law, jnp.array([0.25, 0.5, 0.75])), cutoffs, strict=True)
        )
    }
    run = simulate(env, params, scheduler("sita-e"), first_key, 300 * thoroughness)
    findings["SITA-E: mean wait"] = Finding(response(run) - 1.0, wait, precision=DEAR)
    run = simulate(env, params, scheduler("random"), second_key, 300 * thoroughness)
    second = theory.bounded_pareto_moment(2, tail_index, low, high)
    findings["random splitting of the same: mean wait"] = Finding(
        response(run) - 1.0, theory.mg1_wait(0.8, 1.0, second), precision=DEAR
    )
    return findings


# Rules that look at queue lengths.


def jsq(key: Key, thoroughness: float) -> dict[str, Finding]:
    """JSQ on two equal processors, ties split evenly, against its Markov chain."""
    findings = {}
    for run_key, (load, millions) in each(key, ((0.5, 10), (0.7, 15), (0.8, 30), (0.9, 80))):
        chain = theory.Lengths(load, (1.0, 1.0), capacity=100)
        env, params = equal_processors(2, load, queue_capacity=64)
        run = simulate(env, params, scheduler("jsq", ties="random"), run_key, millions * thoroughness)
        findings[f"JSQ on 2, load {load}: mean response"] = Finding(
            response(run), chain.response(chain.smallest(chain.length))
        )
    return findings


def power_of_two(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Power-of-two on few processors: its Markov chain, and published figures for 10 and 100."""
    findings = {}
    chain = theory.Lengths(0.7, (1.0,) * 3, capacity=15)
    cases = (
        (3, 0.7, chain.response(chain.power_of_d(2)), 15, 1024, "Markov chain"),
        (10, 0.9, 2.8003 / 0.9, 15, 512, "Gast and Van Houdt 2017"),
        (100, 0.9, 2.3931 / 0.9, 8, 64, "Gast and Van Houdt 2017"),
    )
    for run_key, (num_processors, load, exact, millions, lanes, source) in each(key, cases):
        env, params = equal_processors(num_processors, load, queue_capacity=32)
        run = simulate(
            env,
            params,
            scheduler("power-of-d", d=2),
            run_key,
            millions * thoroughness,
            warmup=300 * num_processors,
            lanes=lanes,
        )
        findings[f"power of 2 on {num_processors}, load {load}: mean response, {source}"] = Finding(
            response(run), exact
        )
    return findings


def mean_field(d: int, load: float, millions: float, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Power-of-d on 1000 processors, which differs from the limit by about 0.2 % at load 0.9."""
    env, params = equal_processors(1000, load, queue_capacity=8)
    run = simulate(
        env, params, scheduler("power-of-d", d=d), key, millions * thoroughness, warmup=50_000, lanes=8
    )
    return {
        f"power of {d} on 1000, load {load}: mean response, mean field": Finding(
            response(run), theory.mean_field_power_of_d(load, d), precision=DEAR
        )
    }


def by_table(choice: np.ndarray, num_states: int) -> Scheduler:
    """The rule that `choice` `[2, S]` makes of two queue lengths below `num_states`."""
    table = jnp.asarray(choice[1].reshape(num_states, num_states), jnp.int32)
    return Scheduler("table", table, no_memory, _look_up)


def _look_up(table: Array, memory: tuple, observation: Observation, key: Key) -> tuple[Array, tuple]:
    del key
    first, second = jnp.minimum(observation.queue_length, table.shape[0] - 1)
    return table[first, second], memory


def unequal_processors(slow: float, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Two processors, sizes unknown, load 0.7: rules that see queue lengths, and the best of them."""
    chain = theory.Lengths(0.7, (1.0, slow), capacity=70)
    env, params = make("two-server", speed=[1.0, slow], load=0.7, queue_capacity=64)
    number, speed = chain.length, chain.speed[:, None]
    best, choice = chain.optimum()
    rules = {
        "JSQ": (scheduler("jsq", ties="random"), chain.response(chain.smallest(number))),
        "smallest n / speed": (
            scheduler("least-connections"),
            chain.response(chain.first_smallest(number / speed)),
        ),
        "SED": (scheduler("sed"), chain.response(chain.first_smallest((number + 1) / speed))),
        "optimum of value iteration": (by_table(choice, 71), best),
    }
    return {
        f"speeds 1 and {slow}, {name}: mean response": Finding(
            response(simulate(env, params, rule, run_key, 20 * thoroughness)), exact
        )
        for run_key, (name, (rule, exact)) in each(key, tuple(rules.items()))
    }


def size_aware(key: Key, thoroughness: float) -> dict[str, Finding]:
    """The optimal rule that sees sizes and waits: its simulated response is what it promises."""
    findings = {}
    for run_key, (speed, load) in each(key, (((1.0, 1.0), 0.8), ((1.0, 1.0), 0.5), ((1.0, 0.2), 0.7))):
        env, params = make("stable", speed=list(speed), load=load, queue_capacity=1)
        rule = scheduler("optimal")
        promised = float(jax.jit(rule.start, static_argnames="lanes")(params, ()).mean_response)
        run = simulate(env, params, rule, run_key, 15 * thoroughness)
        name = f"optimal, speeds {speed[0]:g} and {speed[1]:g}, load {load}"
        findings[f"{name}: mean response, value iteration"] = Finding(response(run), promised)
    return findings


def stale(
    d: int | None,
    interval: float,
    num_processors: int,
    capacity: int,
    millions: float,
    key: Key,
    thoroughness: float,
) -> dict[str, Finding]:
    """All queue lengths published at once, many processors, load 0.9, against the fluid limit."""
    env, params = equal_processors(num_processors, 0.9, queue_capacity=capacity, measure_interval=interval)
    rule = scheduler("jsq", ties="random") if d is None else scheduler("power-of-d", d=d)
    exact = theory.stale_power_of_d(0.9, np.inf if d is None else d, interval)
    warmup, lanes = 60 * num_processors, 8192 // num_processors
    run = simulate(env, params, rule, key, millions * thoroughness, warmup, lanes)
    name = "JSQ" if d is None else f"power of {d}"
    return {
        f"{name}, lengths published every {interval:g}: mean response, fluid limit": Finding(
            response(run), exact, tolerance=0.02, precision=DEAR
        )
    }


# Laws that hold in every scenario.


def balance(name: str, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Little's law and utilisation in one scenario.

    The number in the system is integrated from the queues' memory, the responses are summed as tasks are
    assigned: two accounts that share nothing.
    """
    # Lower loads where one huge task would make queues longer than a memory can count, and no infinite
    # variance, which has no standard error.
    overrides: dict[str, Any] = {
        "heavy-tail-extreme": {"load": 0.3, "queue_capacity": 1024},
        "shift": {"queue_capacity": 1024},
        "park": {"load": 0.5, "high": 1e5},
    }.get(name, {})
    env, params = make(name, **{"reward": "holding-cost", "queue_capacity": 256} | overrides)
    millions = max(5.0 / env.num_processors, 1.2)
    lanes = min(64, 1024 // env.num_processors)
    warmup = min(relaxation_tasks(params), 10_000)
    run = simulate(env, params, scheduler("sed"), key, millions * thoroughness, warmup, lanes)
    label = f"{name}, load {float(params.load):.3g}" + ", sizes to 1e5" * (name == "park")
    held = -np.asarray(run.mean_reward, np.float64)  # integral of the number in the system, for each task
    speed = np.asarray(params.speed, np.float64)[:, None]
    used = (speed * np.asarray(run.utilisation, np.float64)).sum(0) / speed.sum()
    overflowed = float(np.asarray(run.queue_overflows).sum())
    return {
        f"{label}: L / (arrival rate x response)": Finding(
            np.where(overflowed, np.nan, held / response(run)), 1.0, precision=DEAR
        ),
        f"{label}: utilisation": Finding(used, float(params.load), precision=DEAR),
    }


# What goes in.


def lane_figures(
    key: Key, params: EnvParams, figures: Callable[[Task], Any], millions: float, num_lanes: int = 4096
) -> Any:
    """Figures `[N]` of each lane's tasks, averaged over as many batches of 1000 as it takes."""

    @jax.jit
    def run(key: Key, params: EnvParams) -> Any:
        lanes = (num_lanes,)
        return figures(workload.sample(key, with_lane_axis(params, lanes), 1000, lanes))

    keys = jax.random.split(key, max(int(millions * 1e3 / num_lanes), 1))
    batches = [run(batch_key, params) for batch_key in keys]
    return jax.tree.map(lambda *leaves: np.mean(np.asarray(leaves, np.float64), axis=0), *batches)


def processes() -> dict[str, tuple[Any, float, float]]:
    """Arrival processes with the squared coefficient of variation and lag-1 autocorrelation of their gaps."""
    recorded = np.array(RECORDED) / np.mean(RECORDED)
    deviation = recorded - 1.0
    squared_cv = float((deviation**2).mean())
    autocorrelation = float((deviation * np.roll(deviation, 1)).mean()) / squared_cv
    trace = arrivals.Trace(
        jnp.asarray(recorded, jnp.float32), jnp.ones(len(recorded), jnp.float32), None, None
    )
    return {
        "Poisson": (arrivals.Poisson(), 1.0, 0.0),
        "renewal, Erlang-4": (arrivals.Renewal(0.25), 0.25, 0.0),
        "renewal, C2 = 0.4": (arrivals.Renewal(0.4), 0.4, 0.0),
        "renewal, C2 = 4": (arrivals.Renewal(4.0), 4.0, 0.0),
        "MMPP(2)": (arrivals.Bursty(10.0, 0.1, 20.0), *theory.mmpp_gaps(10.0, 0.1, 20.0)),
        "diurnal": (arrivals.Diurnal(0.8, 50.0), *theory.diurnal_gaps(0.8, 50.0)),
        "drift": (arrivals.Drift(0.5, 5.0), *theory.drift_gaps(0.5, 5.0)),
        "shift": (arrivals.Shift(regime_tasks=20.0, rate_spread=2.0), *theory.shift_gaps(20.0, 2.0)),
        "batches of 4": (arrivals.Batch(4.0), 2 * 4.0 - 1.0, 0.0),
        "trace": (trace, squared_cv, autocorrelation),
    }


def gaps(
    name: str,
    process: ArrivalProcess,
    squared_cv: float,
    autocorrelation: float,
    key: Key,
    thoroughness: float,
) -> dict[str, Finding]:
    """Mean, squared coefficient of variation and lag-1 autocorrelation of the gaps of one process."""
    _, params = equal_processors(1, 0.5, arrival=process)

    def figures(task: Task) -> tuple:
        off = 0.5 * task.gap - 1.0  # in mean gaps: the rate is 0.5
        return off.mean(0), (off**2).mean(0), (off[1:] * off[:-1]).mean(0)

    mean, square, product = lane_figures(key, params, figures, 10 * thoroughness)
    # What should be 0 may be off by 4 standard errors, and nothing else.
    uncorrelated = 0.0 if autocorrelation == 0 else 0.005
    return {
        f"{name}: gaps' mean": Finding(1.0 + mean, 1.0),
        f"{name}: gaps' C2": Finding(square, squared_cv, precision=DEAR),
        f"{name}: gaps' lag-1 autocorrelation": Finding(
            product / squared_cv, autocorrelation, tolerance=uncorrelated, precision=DEAR
        ),
    }


def task_sizes(name: str, law: Law, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Mean, squared coefficient of variation and law of one size law."""
    _, params = equal_processors(1, 0.5, size=law.law)

    def figures(task: Task) -> tuple:
        return task.size.mean(0), (task.size**2).mean(0)

    mean_key, law_key = jax.random.split(key)
    mean, square = lane_figures(mean_key, params, figures, law.drawn * thoroughness)
    findings = {
        f"{name}: sizes' mean": Finding(mean, law.mean),
        f"{name}: sizes' C2": Finding(square / law.mean**2 - 1.0, law.squared_cv(), precision=DEAR),
    }
    if law.cdf is not None:
        drawn = np.asarray(
            jax.jit(workload.sample, static_argnums=(2, 3))(law_key, params, 250, (4000,)).size
        )
        # sqrt(n) D exceeds 2.276 as rarely as a normal variable exceeds 4 standard deviations.
        distance = stats.kstest(drawn.ravel().astype(float), law.cdf).statistic
        findings[f"{name}: Kolmogorov-Smirnov distance of {drawn.size:,} sizes"] = Finding(
            distance, 0.0, tolerance=0.0, standard_error=2.276 / 4.0 / drawn.size**0.5
        )
    return findings


# Precision.


def endurance(key: Key, thoroughness: float) -> dict[str, Finding]:
    """10^9 tasks in one continued run: nothing drifts, nothing sticks, and float64 still agrees."""
    lanes, parts, exact = 4096, 10, theory.mmk_response(4, 0.8)
    run_key, task_key = jax.random.split(key)
    env, params = make("stable", queue_capacity=8)
    rule = scheduler("lwl")
    warmup, part = 2000, int(1e9 * thoroughness / lanes / parts) + 1
    carry = start_rollout(env, params, rule, run_key, lanes)
    carry = continue_rollout(env, params, rule, carry, warmup, warmup)

    def summed() -> list[np.ndarray]:
        sums, errors = carry.totals.sums, carry.totals.errors
        pairs = (sums.completion, errors.completion), (sums.elapsed, errors.elapsed)
        return [np.asarray(total, np.float64) + np.asarray(error, np.float64) for total, error in pairs]

    totals = [summed()]
    for _ in range(parts):
        carry = continue_rollout(env, params, rule, carry, part, warmup)
        totals.append(summed())
    means, gaps = np.diff(np.array(totals), axis=0).transpose(1, 0, 2) / part
    healthy = np.isfinite(means[-1]) & (means[-1] > 1.0 / 2) & (np.abs(gaps[-1] * 3.2 - 1.0) < 0.5)

    # From here on in float64, given the same choices.
    few = 64
    tasks = workload.sample(task_key, with_lane_axis(params, (few,)), 10_000, (few,))
    found = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)[..., :few] if leaf.ndim else leaf),
        carry.state.system.station,
    )
    outcome = replay(env, params, rule, tasks, task_key, station=found)
    free, clock = np.float64(found.free) + np.float64(found.free_error), np.float64(found.clock)
    wait = np.maximum(free - (clock + np.float64(found.clock_error)), 0.0)
    worst = 0.0
    for gap, size, action, completion in zip(
        *(np.asarray(leaf) for leaf in (tasks.gap, tasks.size, outcome.action, outcome.completion)),
        strict=True,
    ):
        wait = np.maximum(wait - np.float64(gap), 0.0)
        wait[action, np.arange(few)] += np.float64(size)
        expected = wait[action, np.arange(few)]
        worst = max(worst, float((np.abs(completion - expected) / expected).max()))
    count = f"{lanes * part * parts:.1e}"
    return {
        f"mean response of the last tenth of {count} tasks, M/M/4": Finding(means[-1], exact),
        f"first tenth - last tenth of {count} tasks, mean response": Finding(
            means[0] - means[-1], 0.0, tolerance=0.0
        ),
        f"lanes not finite or stuck after {count} tasks": Finding((~healthy).sum(), 0.0, tolerance=0.0),
        f"after {count} tasks, 640,000 completions against float64, largest relative difference": Finding(
            worst, 0.0, tolerance=1e-6
        ),
    }


def experiments() -> list[Experiment]:
    """All of them, the longest first, so that two cores end together."""
    part = functools.partial
    one, blind, lengths = "One processor", "Blind splitting", "Queue lengths"
    size_laws = laws()
    return [
        Experiment("Precision", "10^9 tasks", endurance, quick=False),
        *(
            Experiment("Stale information", name, part(stale, *setting), quick=False)
            for name, setting in {
                "JSQ, every 1": (None, 1.0, 500, 16, 1.1),
                "JSQ, every 0.2": (None, 0.2, 500, 8, 0.6),
                "power of 2, every 5": (2, 5.0, 256, 24, 0.6),
                "power of 3, every 5": (3, 5.0, 256, 24, 0.6),
                "power of 2, every 1": (2, 1.0, 256, 16, 0.6),
                "power of 2, every 0.2": (2, 0.2, 256, 12, 0.6),
            }.items()
        ),
        *(
            Experiment(lengths, f"mean field {d}, {load}", part(mean_field, d, load, millions), quick=False)
            for d, load, millions in ((2, 0.5, 0.4), (2, 0.9, 0.8))
        ),
        Experiment(lengths, "power of 2", power_of_two, quick=False),
        Experiment("Task sizes", "SITA-E", sita, quick=False),
        *(Experiment("Central queue", f"M/M/{k}", part(mmk, k), quick=k == 4) for k in (2, 4)),
        Experiment(one, "M/M/1", mm1),
        *(
            Experiment(one, f"M/G/1 {name}", part(mg1, name, law), quick=name in ("deterministic", "bimodal"))
            for name, law in size_laws.items()
        ),
        Experiment("Central queue", "Kiefer-Wolfowitz", pathwise),
        *(Experiment(blind, f"E_{k}/M/1", part(round_robin, k), quick=k == 4) for k in (2, 4)),
        Experiment(blind, "random", random_splitting),
        Experiment(lengths, "JSQ", jsq),
        *(
            Experiment(lengths, f"speeds 1 and {slow}", part(unequal_processors, slow), quick=slow == 0.2)
            for slow in (0.2, 0.5)
        ),
        Experiment("Optimal", "optimal", size_aware, quick=False),
        *(Experiment("Balance", name, part(balance, name), quick=name == "seed") for name in scenarios()),
        *(
            Experiment("Gaps drawn", name, part(gaps, name, *process), quick=name in ("Poisson", "MMPP(2)"))
            for name, process in processes().items()
        ),
        *(
            Experiment("Sizes drawn", name, part(task_sizes, name, law), quick=name == "exponential")
            for name, law in size_laws.items()
        ),
    ]


QUICK = 0.1
"""Thoroughness of the quick run."""


def verify(
    key: Key, *, quick: bool = False, on_progress: Callable[[str, float], None] | None = None
) -> list[Case]:
    """Run all experiments and judge what they find.

    Args:
      key: consumed.
      quick: a tenth of the tasks, and only the experiments that then say something.
      on_progress: called with the name of an experiment that has ended and the share of all that have.

    Returns:
      The cases, groups together.
    """
    chosen = [experiment for experiment in experiments() if experiment.quick or not quick]
    thoroughness = QUICK if quick else 1.0
    ended: list[str] = []

    def run(experiment: Experiment, key: Key) -> list[Case]:
        findings = experiment.run(key, thoroughness)
        if on_progress is not None:
            ended.append(experiment.name)
            on_progress(experiment.name, len(ended) / len(chosen))
        return [judge(experiment.group, name, finding, thoroughness) for name, finding in findings.items()]

    # Compiling takes one core, and so does theory: two experiments at a time keep all busy.
    with threads() as pool:
        keys = jax.random.split(key, len(chosen))
        found = [case for cases in pool.map(run, chosen, keys) for case in cases]
    return sorted(found, key=lambda case: GROUPS.index(case.group))
