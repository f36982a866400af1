"""What an experiment finds, how it is judged, and the runs that all of them make."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.loop import rollout
from jaxlb.metrics import Summary
from jaxlb.tally import Totals
from jaxlb.types import EnvParams, Key, Scheduler

DEAR = 0.02
"""Precision of a case whose variance makes the usual one dear."""


class Case(NamedTuple):
    """A measured value beside the exact one."""

    group: str
    name: str
    measured: float
    standard_error: float
    exact: float
    passed: bool

    def deviation(self) -> float:
        """Return standard errors between measured and exact; 0 where there is no error to compare with."""
        return (self.measured - self.exact) / self.standard_error if self.standard_error else 0.0

    def figures(self) -> tuple[str, str, str, str]:
        """Write what was measured, half its 95 % interval, the exact value and the deviation, for tables."""
        half = f"{1.96 * self.standard_error:.2g}" if self.standard_error else ""
        deviation = f"{self.deviation():+.2f}" if self.standard_error else ""
        return f"{self.measured:.6g}", half, f"{self.exact:.6g}", deviation


class Experiment(NamedTuple):
    """One or several simulations and what is read from them.

    Attributes:
      group: of its cases.
      name: what the progress bar shows.
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


class Exact(NamedTuple):
    """A system of processors of any discipline, and what is known of it.

    Attributes:
      name: of the system.
      size: name of the law of sizes.
      load: in speeds of the processors.
      exact: values by the names of `jaxlb.verification.disciplines.FIGURES`.
      millions: of tasks.
      precision: of the full run.
      warmup: tasks of each lane before; None: by the relaxation time.
      queue_capacity: places, more than are ever taken.
      rule: that assigns.
      num_processors: P, all of speed 1.
      settings: of the discipline.
    """

    name: str
    size: str
    load: float
    exact: Mapping[str, float]
    millions: float = 4.0
    precision: float = 0.005
    warmup: int | None = None
    queue_capacity: int = 128
    rule: str = "lwl"
    num_processors: int = 1
    settings: Mapping[str, Any] = {}


def judge(group: str, name: str, finding: Finding, thoroughness: float = 1.0) -> Case:
    """Return the mean, standard error and verdict of a finding."""
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


def relaxation_tasks(params: EnvParams, gap_cv: float = 1.0) -> int:
    """Return five relaxation times in tasks, see above."""
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
    """Pair cases with keys of their own; the key is consumed."""
    return zip(jax.random.split(key, len(cases)), cases, strict=True)


def summed(totals: Totals, name: str) -> np.ndarray:
    """Return a running sum of each lane, with what rounding has taken from it."""
    return np.asarray(totals.sums[name], np.float64) + np.asarray(totals.errors[name], np.float64)


def response(summary: Summary) -> np.ndarray:
    """Return the mean response of each lane, time."""
    return np.asarray(summary.mean_completion, np.float64)


def violation(summary: Summary) -> np.ndarray:
    """Return the share of violations of each lane."""
    return np.asarray(summary.sla_violation_rate, np.float64)


def equal_processors(num_processors: int, load: float, **overrides: Any) -> tuple[Env, EnvParams]:
    """Make equal processors of speed 1, Poisson arrivals, exponential sizes of mean 1 unless overridden.

    Rules on waits need no queue lengths; a short memory of them saves time.
    """
    overrides = {"queue_capacity": 1} | overrides
    return make("stable", num_processors=num_processors, load=load, **overrides)
