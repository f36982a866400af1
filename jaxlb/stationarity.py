"""Whether figures of a run are those of the long run: what has not settled has no mean to be near to.

Three signs, each with an error rate: means that differ between the halves of what was counted, or waits that
have grown from its begin to its end, by more than chance would have it in one settled run of ten thousand; a
processor that is busy all the time; and, where lanes are too few to show that, a warm-up that theory calls
too short.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxlb.statistics import mean_interval, student
from jaxlb.types import EnvParams, Static
from jaxlb.workload import arrival_rate

_ERROR_RATE = 1e-4
"""How often a settled run is called unsettled."""
ALL_THE_TIME, _FALLS_BEHIND = 0.999, 0.1
"""A processor busy for this share of the time, and falling behind by that share of it, is overloaded."""
_STEPS = 256


class Evidence(NamedTuple):
    """What a run of N lanes shows of itself.

    Attributes:
      halves: `[2, N]` mean completion in the first and the second half of the tasks that were counted.
      wait_growth: `[P, N]` wait at the end less that at the begin of counting.
      utilisation: `[P, N]`.
      elapsed: `[N]` time that counting took.
      warmup: tasks that were not counted.
      num_tasks: tasks that were.
    """

    halves: np.ndarray
    wait_growth: np.ndarray
    utilisation: np.ndarray
    elapsed: np.ndarray
    warmup: int
    num_tasks: int


def unsettled(run: Evidence, env: Static, params: EnvParams, rule: str = "this rule") -> str | None:
    """Return why a run's figures are not those of the long run, and what to do; None if they are.

    Args:
      run: that was made.
      env: static.
      params: of the environment.
      rule: that moves the system, as the sentence names it.
    """
    load, most = float(np.max(np.asarray(params.load))), env.station.most
    if load >= env.bearable_load(params) and not env.sheds:
        return f"load {load:g} leaves no time to catch up: queues grow for ever"
    missing, enough = _missing(env, params, run), needed_warmup(env, params)
    needed = f", theory asks for {enough:,}" if enough and enough > run.warmup else ""
    advice = f"raise warmup ({run.warmup:,} tasks now{needed})"
    full = ALL_THE_TIME if most == 1.0 else 0.0  # of what does the more the more it holds, nobody knows
    if params.speeds is not None:  # what a processor can do in the long run, give or take what it could here
        full *= 0.97 / ALL_THE_TIME * np.asarray(params.speeds.mean(), np.float64)
    lanes, busy = run.elapsed.size, run.utilisation.mean(-1) >= full
    behind = run.wait_growth.mean(-1) / run.elapsed.mean()
    if lanes > 1:
        # One drift and P growths are tried, each to either side.
        bound = student(lanes - 1, 1.0 - _ERROR_RATE / (2.0 * (len(behind) + 1)))
        drift, *growth = _deviations(np.vstack([run.halves[1] - run.halves[0], run.wait_growth])) / bound
        drift, grows = drift * (run.num_tasks > 1), np.asarray(growth) > 1.0
    else:
        drift, grows = 0.0, busy & (behind > 0.1 * _FALLS_BEHIND)
    overloaded = np.flatnonzero(grows & busy & (behind > _FALLS_BEHIND))
    if len(overloaded):
        named = _processors(overloaded, params)
        return f"{named} busy all the time and falling behind: {rule} overloads it"
    if abs(drift) > 1.0:
        first, second = run.halves.mean(-1)
        return (
            f"completion goes from {first:.3g} in the first half to {second:.3g} in the second: {advice}"
            + ("" if env.sheds else f"; if it goes on, {rule} overloads a processor")
        )
    if grows.any():
        return f"the wait at {_processors(np.flatnonzero(grows), params)} still growing: {advice}" + (
            "" if env.sheds else f"; if it goes on, {rule} overloads it"
        )
    half = run.num_tasks // 2
    mean, interval = mean_interval(np.average(run.halves, 0, weights=[half, run.num_tasks - half]))
    within = 0.01 * mean if interval is None else interval[1] - mean
    if missing * mean > (1.0 - missing) * within:
        never = "" if enough else "; sizes of infinite variance have no mean wait to settle at"
        return f"waits are {100 * missing:.2g} % too short, by theory, as queues began empty: {advice}{never}"
    return None


def _processors(indices: np.ndarray, params: EnvParams) -> str:
    speed, first = np.asarray(params.speed), int(indices[0])
    named = f" (speed {speed[first]:.3g})" if speed.ndim == 1 else ""
    return f"processor {first}{named}" + (f" and {len(indices) - 1} more are" if len(indices) > 1 else " is")


def _deviations(x: np.ndarray) -> np.ndarray:
    """Return means over lanes of `[M, N]` in standard errors; what never varies is 0."""
    error = x.std(-1, ddof=1) / x.shape[-1] ** 0.5
    return np.where(error > 0, x.mean(-1) / np.where(error > 0, error, 1.0), 0.0)


def needed_warmup(env: Static, params: EnvParams) -> int | None:
    """Return the warm-up, in tasks, after which waits lack 0.1 %, by theory, for having started empty.

    None where none are enough, sizes having no variance, or queues no end.
    """
    found = _relaxation(env, params)
    if found is None:
        return None
    unit, deviation = found
    enough = next(t for t in np.geomspace(0.01, 100.0, _STEPS) if deviation(t) < 1e-3)
    return int(enough * unit) + 1


def sensible_warmup(env: Static, params: EnvParams, num_tasks: int) -> int:
    """Return a quarter of the tasks, or the warm-up that theory asks for, up to the number of tasks."""
    return min(max(num_tasks // 4, needed_warmup(env, params) or 0), num_tasks)


def _relaxation(env: Static, params: EnvParams) -> tuple[float, Callable[[float], float]] | None:
    """Return in which unit, in tasks, theory counts time, and what waits lack after so much of it; or None.

    The queue is a single one as fast as all processors together, which no rule outdoes by much. Gaps are
    taken for exponential ones. In heavy traffic it is like a Brownian motion above 0, without end at a load
    that processors cannot bear; with a limit, like one between two walls, and where tasks leave, it forgets
    within a few deadlines.
    """
    # In float64, since squares of sizes in any unit have to fit; of several lanes, the worst counts.
    with jax.enable_x64(True):
        law = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params.size)
        mean, second = np.asarray(law.mean()), np.asarray(law.second_moment())
    load = float(np.max(np.asarray(params.load))) / env.bearable_load(params)
    spread = float(np.max(second / mean**2))
    found: list[tuple[float, Callable[[float], float]]] = []
    if load < 1.0 and math.isfinite(spread):
        found.append(((load / (1.0 - load)) ** 2 * spread, _deviation))
    if env.station.limit is not None:
        found.append((2.0 * (env.station.limit * env.num_processors / math.pi) ** 2 / spread, _decay))
    if env.station.leaving is not None:
        own = np.max(params.class_slack) * mean / np.mean(params.speed)
        patience = np.max(own) + np.max(params.deadline_constant)
        found.append((float(np.max(arrival_rate(params)) * patience), _decay))
    return min(found, key=lambda pair: pair[0], default=None)


def _missing(env: Static, params: EnvParams, run: Evidence) -> float:
    """Return the share of the waits that a run lacks for having started empty."""
    found = _relaxation(env, params)
    if found is None:
        return 0.0 if env.sheds else 1.0
    unit, deviation = found
    times = (run.warmup + run.num_tasks * (np.arange(_STEPS) + 0.5) / _STEPS) / max(unit, 1e-9)
    return sum(map(deviation, times)) / _STEPS


def _decay(t: float) -> float:
    return math.exp(-min(t, 700.0))


def _deviation(t: float) -> float:
    """Return 1 - E[W(t)] / E[W] of reflected Brownian motion that begins at 0, of drift -1 and variance 1.

    Abate and Whitt (1987), "Transient behavior of regulated Brownian motion".
    """
    root = math.sqrt(t)
    density, above = math.exp(-0.5 * t) / math.sqrt(2.0 * math.pi), 0.5 * math.erfc(root / math.sqrt(2.0))
    return 2.0 * (1.0 + t) * above - 2.0 * root * density
