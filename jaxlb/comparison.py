"""Schedulers side by side: the same tasks for all, intervals from independent lanes, paired differences."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlb import checks, metrics
from jaxlb.env import Env
from jaxlb.metrics import Summary
from jaxlb.rollout import Carry, at_hand, continue_rollout, start_rollout
from jaxlb.threads import threads
from jaxlb.types import EnvParams, Key, Scheduler

Interval = tuple[float, float] | None
"""A 95 % confidence interval; None where one lane gives none."""

Entry = Scheduler | tuple[Scheduler, Any]
"""A scheduler, with its variables where it has any."""

_CHUNKS = 8
_MAX_RECENT = 4_000_000  # completion times on the device at a time: 16 MB

# Completion times are counted in bins of equal width within each octave, straight from the float's bits.
_BINS_PER_OCTAVE, _LOWEST_OCTAVE, _OCTAVES = 128, -20, 50
NUM_BINS = _BINS_PER_OCTAVE * _OCTAVES
MAX_GROUPS = 128
"""Lanes are pooled into at most so many groups in a histogram of completion times."""
_SHIFT = 23 - 7  # of the 23 bits of the fraction, seven tell the bin
_FIRST_BIN = (127 + _LOWEST_OCTAVE) * _BINS_PER_OCTAVE


@dataclass(frozen=True)
class Row:
    """What one scheduler did. `..._ci` is the 95 % interval; differences are paired, against the baseline."""

    name: str
    mean_completion: float
    mean_completion_ci: Interval
    p50_completion: float
    p50_completion_ci: Interval
    p95_completion: float
    p95_completion_ci: Interval
    p99_completion: float
    p99_completion_ci: Interval
    mean_slowdown: float
    mean_slowdown_ci: Interval
    sla_violation_rate: float
    sla_violation_rate_ci: Interval
    sla_violation_rate_by_priority: list[float]
    sla_violation_rate_by_priority_ci: list[Interval]
    oracle_agreement: float
    oracle_agreement_ci: Interval
    mean_reward: float
    mean_reward_ci: Interval
    load_imbalance: float
    load_imbalance_ci: Interval
    utilisation: float
    utilisation_ci: Interval
    queue_overflows: int
    completion_difference: float
    completion_difference_ci: Interval
    sla_violation_difference: float
    sla_violation_difference_ci: Interval
    reward_difference: float
    reward_difference_ci: Interval


@dataclass(frozen=True)
class Comparison:
    """A table of schedulers, judged on the same tasks."""

    scenario: str
    num_lanes: int
    num_tasks: int
    warmup: int
    baseline: str
    behaviour: str | None
    schedulers: list[Row]
    histograms: dict[str, np.ndarray] = dataclasses.field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """What `to_json` writes: everything but the histograms."""
        names = [
            field.name for field in dataclasses.fields(self) if field.name not in ("schedulers", "histograms")
        ]
        table = {name: getattr(self, name) for name in names}
        return table | {"schedulers": [dataclasses.asdict(row) for row in self.schedulers]}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    def row(self, name: str) -> Row:
        """The row of one scheduler."""
        checks.known("row", name, [row.name for row in self.schedulers])
        return next(row for row in self.schedulers if row.name == name)


def compare(
    env: Env,
    params: EnvParams,
    schedulers: Mapping[str, Entry],
    key: Key,
    *,
    num_lanes: int,
    num_tasks: int,
    warmup: int = 0,
    baseline: str | None = None,
    behaviour: Entry | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Judge schedulers on the same tasks.

    Means come with Student intervals over lanes, which are independent; quantiles of completion time with
    Woodruff's (1952) intervals over groups of lanes; differences to the baseline are paired lane by lane.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      schedulers: by the name that the table gives them; each a scheduler or a pair (scheduler, variables).
      key: consumed; decides the tasks.
      num_lanes: environments side by side; one gives no intervals.
      num_tasks: tasks counted in each.
      warmup: tasks run before that, not counted.
      baseline: name of the scheduler that differences are taken to; None: "lwr", or else the first.
      behaviour: snapshot evaluation: this scheduler's choices move every system on, and all others are asked
        in the states it visits and scored on what their own choice would have brought.
      on_progress: called with the name of the scheduler at work and the share of all work that is done.

    Raises:
      ValueError: no schedulers, an unknown baseline, fewer than one lane or task, or a bad parameter.
    """
    checks.at_least("num_lanes", num_lanes, 1)
    checks.at_least("num_tasks", num_tasks, 1)
    checks.at_least("warmup", warmup, 0)
    if not schedulers:
        raise ValueError("schedulers = {}: must name at least one")
    if baseline is None:
        baseline = "lwr" if "lwr" in schedulers else next(iter(schedulers))
    checks.known("baseline", baseline, schedulers)
    env.check(params)
    mover, mover_variables = pair(behaviour) if behaviour is not None else (None, ())

    total = warmup + num_tasks
    chunk = max(1, min(-(-total // _CHUNKS), _MAX_RECENT // num_lanes))
    carries = {
        name: start_rollout(env, params, pair(entry)[0], key, num_lanes, mover, num_recent=chunk)
        for name, entry in schedulers.items()
    }

    def compiled(name: str) -> Callable[[Carry, int], Carry]:
        scheduler, variables = pair(schedulers[name])
        static = {"env": env, "scheduler": scheduler, "behaviour": mover}
        numbers = {
            "params": params,
            "variables": variables,
            "key": key,
            "behaviour_variables": mover_variables,
        }
        counts = {"num_tasks": 0, "warmup": warmup}
        program = continue_rollout.lower(**static, **numbers, **counts, carry=carries[name]).compile()
        return lambda carry, tasks: program(**numbers, **counts | {"num_tasks": tasks}, carry=carry)

    # Compiling takes one core for longer than running takes all of them: compile side by side, run in turn.
    summaries: dict[str, Summary] = {}
    histograms: dict[str, np.ndarray] = {}
    with threads() as pool:
        for name, run in zip(schedulers, pool.map(compiled, schedulers), strict=True):
            carry = carries.pop(name)
            histogram = np.zeros((min(num_lanes, MAX_GROUPS), NUM_BINS), np.int64)
            for first in range(0, total, chunk):
                carry = run(carry, min(chunk, total - first))
                rows = np.asarray(at_hand(carry.recent))[max(warmup - first, 0) : total - first]
                histogram += count_completions(rows, len(histogram))
                if on_progress is not None:
                    on_progress(name, (len(summaries) + min(first + chunk, total) / total) / len(schedulers))
            summaries[name], histograms[name] = (
                at_hand(metrics.summarise(carry.totals, carry.state.system)),
                histogram,
            )

    table = [_row(name, summaries[name], histograms[name], summaries[baseline]) for name in schedulers]
    return Comparison(
        scenario=env.name,
        num_lanes=num_lanes,
        num_tasks=num_tasks,
        warmup=warmup,
        baseline=baseline,
        behaviour=None if mover is None else mover.name,
        schedulers=table,
        histograms=histograms,
    )


def pair(entry: Entry) -> tuple[Scheduler, Any]:
    """A scheduler and its variables."""
    return (entry, ()) if isinstance(entry, Scheduler) else entry


def _row(name: str, summary: Summary, histogram: np.ndarray, baseline: Summary) -> Row:
    """The table row of one scheduler."""
    figures: dict[str, Any] = {}

    def put(field: str, lanes: Any) -> None:
        figures[field], figures[f"{field}_ci"] = mean_interval(np.asarray(lanes, np.float64))

    for field in (
        "mean_completion",
        "mean_slowdown",
        "sla_violation_rate",
        "oracle_agreement",
        "mean_reward",
    ):
        put(field, getattr(summary, field))
    put("load_imbalance", summary.load_imbalance)
    put("utilisation", np.asarray(summary.utilisation).mean(0))
    for field, source in (
        ("completion_difference", "mean_completion"),
        ("sla_violation_difference", "sla_violation_rate"),
        ("reward_difference", "mean_reward"),
    ):
        ours, theirs = (np.asarray(getattr(side, source), np.float64) for side in (summary, baseline))
        put(field, ours - theirs)
    for percent in (50, 95, 99):
        value, interval = quantile_interval(histogram, percent / 100)
        figures[f"p{percent}_completion"], figures[f"p{percent}_completion_ci"] = value, interval
    by_class = [
        ratio_interval(np.asarray(hits, np.float64), np.asarray(count, np.float64))
        for hits, count in zip(summary.class_violations, summary.class_count, strict=True)
    ]
    return Row(
        name=name,
        sla_violation_rate_by_priority=[rate for rate, _ in by_class],
        sla_violation_rate_by_priority_ci=[interval for _, interval in by_class],
        queue_overflows=int(np.asarray(summary.queue_overflows, np.float64).sum()),
        **figures,
    )


def mean_interval(lanes: np.ndarray) -> tuple[float, Interval]:
    """Mean over independent lanes `[N]` and its 95 % Student interval."""
    mean, count = float(lanes.mean()), len(lanes)
    if count < 2:
        return mean, None
    # A tenth of a second of imports that a simulation does not need.
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, 0.975) * lanes.std(ddof=1) / np.sqrt(count))
    return mean, (mean - half, mean + half)


def ratio_interval(hits: np.ndarray, count: np.ndarray) -> tuple[float, Interval]:
    """Sum of hits over sum of counts, over lanes `[N]`, with the interval of its linearisation."""
    total = count.sum()
    if total == 0:
        return 0.0, None
    rate = float(hits.sum() / total)
    _, interval = mean_interval(hits - rate * count)
    if interval is None:
        return rate, None
    half = interval[1] / count.mean()
    return rate, (rate - half, rate + half)


def bin_edges() -> np.ndarray:
    """Edges of the histogram's bins, `[bins + 1]` float64; times beyond the ends are counted in the end bins.

    They reach from 2^-20 to 2^30 time units, 128 bins to an octave.
    """
    bits = (np.arange(NUM_BINS + 1, dtype=np.int32) + _FIRST_BIN) << _SHIFT
    return bits.view(np.float32).astype(np.float64)


def count_completions(completion: np.ndarray, groups: int) -> np.ndarray:
    """Completion times `[T, N]` float32 counted in bins, `[groups, bins]`, neighbouring lanes pooled."""
    bins = np.clip((completion.view(np.int32) >> _SHIFT) - _FIRST_BIN, 0, NUM_BINS - 1)
    group = np.arange(completion.shape[1]) * groups // completion.shape[1]
    counts = np.bincount((group * NUM_BINS + bins).ravel(), minlength=groups * NUM_BINS)
    return counts.reshape(groups, NUM_BINS)


def quantile_interval(histogram: np.ndarray, probability: float) -> tuple[float, Interval]:
    """A quantile of pooled completion times, with Woodruff's interval over groups of lanes.

    Args:
      histogram: `[G, bins]` counts.
      probability: of the quantile.

    Returns:
      The quantile, linear within its bin (less than 1 % wide), and its interval.
    """
    edges = bin_edges()
    counts = histogram.sum(0)
    pooled = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])

    def quantile(p: float) -> float:
        # The last edge at which the distribution is still at or below p, then linear in its bin.
        low = min(int(np.searchsorted(pooled, p, side="right")) - 1, len(counts) - 1)
        mass = pooled[low + 1] - pooled[low]
        part = (p - pooled[low]) / mass if mass > 0 else 0.0
        return float(edges[low] + part * (edges[low + 1] - edges[low]))

    value = quantile(probability)
    below = np.stack([np.interp(value, edges, np.append(0, np.cumsum(group))) for group in histogram])
    _, interval = ratio_interval(below, histogram.sum(1).astype(np.float64))
    if interval is None:
        return value, None
    half = 0.5 * (interval[1] - interval[0])
    return value, (quantile(max(probability - half, 0.0)), quantile(min(probability + half, 1.0)))
