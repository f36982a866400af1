"""Schedulers side by side: the same tasks for all, intervals from independent lanes, paired differences."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlb import checks, lengths, metrics, stationarity, stations, tally
from jaxlb.devices import at_hand
from jaxlb.env import Env
from jaxlb.loop import Carry, continue_rollout, start_rollout
from jaxlb.params import canonical
from jaxlb.random import typed
from jaxlb.scheduling import as_scheduler
from jaxlb.statistics import MAX_GROUPS, Histogram, Interval, count_completions
from jaxlb.threads import threads
from jaxlb.types import EnvParams, Key, Scheduler

_CHUNKS = 8
_MAX_RECENT = 4_000_000  # completion times on the device at a time: 16 MB


@dataclass(frozen=True)
class Row:
    """What one scheduler did. Each of `jaxlb.metrics.FIGURES` is an attribute; `..._ci` is its 95 % interval.

    Figures that are not `stationary` are those of this run and of no other, longer or shorter: they have no
    intervals, and differences to them have none.
    """

    name: str
    stationary: bool
    hint: str | None  # why it is not, and what to change
    queue_overflows: int  # tasks that found a queue too long to be counted, if the scheduler uses lengths
    figures: dict[str, Any]  # with intervals; a list holds a value for each priority

    def __getattr__(self, name: str) -> Any:
        """Return a figure, or its interval."""
        return metrics.attribute(self, "figures", name)

    def __dir__(self) -> list[str]:
        """List figures too, so that they complete in a notebook."""
        return [*super().__dir__(), *self.figures]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, flat: what `Comparison.to_json` writes."""
        own = {name: value for name, value in vars(self).items() if name != "figures"}
        return own | self.figures

    def cells(self) -> dict[str, Any]:
        """Return the same in columns: an interval takes two, a list as many as it has entries."""
        found: dict[str, Any] = {}

        def put(name: str, value: Any) -> None:
            of_interval = name.endswith("_ci")
            if of_interval and not isinstance(value, list):
                found[f"{name}_low"], found[f"{name}_high"] = value or (None, None)
            elif isinstance(value, list):
                for index, entry in enumerate(value):
                    put(f"{name.removesuffix('_ci')}_{index}{'_ci' * of_interval}", entry)
            else:
                found[name] = value

        for name, value in self.as_dict().items():
            put(name, value)
        return found

    @property
    def mark(self) -> str:
        """Return the remark that belongs to its figures wherever they are shown; empty if there is none."""
        short = "told lengths that are too short" if self.queue_overflows else ""
        return ", ".join(filter(None, ["" if self.stationary else "not stationary", short]))

    @property
    def title(self) -> str:
        """Its name, with the mark."""
        return f"{self.name} ({self.mark})" if self.mark else self.name


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
    histograms: dict[str, Histogram] = dataclasses.field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return what `to_json` writes: everything but the histograms."""
        names = [
            field.name for field in dataclasses.fields(self) if field.name not in ("schedulers", "histograms")
        ]
        table = {name: getattr(self, name) for name in names}
        return table | {"schedulers": [row.as_dict() for row in self.schedulers]}

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    def to_csv(self) -> str:
        """Write CSV: a line for each scheduler, after a header."""
        lines, text = [row.cells() for row in self.schedulers], io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def to_dataframe(self) -> Any:
        """Return the columns of `to_csv` as a pandas.DataFrame, indexed by the names of the schedulers."""
        import pandas as pd

        return pd.DataFrame([row.cells() for row in self.schedulers]).set_index("name")

    def plot(self, figure: str = "mean_completion") -> Any:
        """Draw a figure of every scheduler with its 95 % interval, the least on top, as a matplotlib Figure.

        Args:
          figure: a name of `jaxlb.metrics.FIGURES`, of one value a row.

        Raises:
          ValueError: an unknown one.
        """
        # It draws with a library that a simulation does not need.
        from jaxlb import charts

        drawn = [name for name in metrics.FIGURES if not isinstance(self.schedulers[0].figures[name], list)]
        checks.known("figure", figure, drawn)
        about = metrics.FIGURES[figure]
        rows = sorted(self.schedulers, key=lambda row: -getattr(row, figure))
        return charts.bars(
            [row.title for row in rows],
            [about.scale * getattr(row, figure) for row in rows],
            [(interval := getattr(row, f"{figure}_ci")) and about.scale * np.array(interval) for row in rows],
            ["0.7" if row.mark else "C1" if row.name == self.baseline else "C0" for row in rows],
            label=f"{about.meaning}{', %' * (about.scale != 1)}",
            title=f"{self.scenario} (orange: baseline; grey: marked; bars at the ends: 95 % interval)",
        )

    def best(self, figure: str, names: Iterable[str] | None = None) -> Row:
        """Return the row with the least of a figure.

        The row is one of those named, or of all; of settled ones if there are any.
        """
        rows = [row for row in self.schedulers if names is None or row.name in names]
        return min(rows, key=lambda row: (bool(row.mark), getattr(row, figure)))

    def row(self, name: str) -> Row:
        """Return the row of one scheduler."""
        checks.known("row", name, [row.name for row in self.schedulers])
        return next(row for row in self.schedulers if row.name == name)


def compare(
    env: Env,
    params: EnvParams,
    schedulers: Mapping[str, str | Scheduler],
    key: Key,
    *,
    num_lanes: int,
    num_tasks: int,
    warmup: int = 0,
    baseline: str | None = None,
    behaviour: str | Scheduler | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Judge schedulers on the same tasks.

    Means come with Student intervals over lanes, which are independent; quantiles of completion time with
    Woodruff's (1952) intervals over groups of lanes; differences to the baseline are paired lane by lane.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      schedulers: by the name that the table gives them; each a scheduler, or the name of one.
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
    if not isinstance(schedulers, Mapping) or not schedulers:
        raise ValueError(
            f"schedulers = {checks.shown(schedulers)}: must name at least one, as {{'lwr': 'lwr'}} does"
        )
    if baseline is None:
        baseline = "lwr" if "lwr" in schedulers else next(iter(schedulers))
    checks.known("baseline", baseline, schedulers)
    env.check(params, (num_lanes,))
    params, key = canonical(params), typed(key)
    mover = None if behaviour is None else as_scheduler(behaviour)
    if mover is not None:
        stations.needs_settled("what a choice would have brought", env.station)
    work = _Work(params, key, num_lanes, num_tasks, warmup, mover)

    # Compiling takes one core for longer than running takes all of them: compile side by side, run in turn.
    rules = {name: as_scheduler(given) for name, given in schedulers.items()}
    carries = {name: work.begin(env, rule) for name, rule in rules.items()}
    found: dict[str, _Judged] = {}
    with threads() as pool:
        programs = pool.map(lambda name: work.compile(env, rules[name], carries[name]), rules)
        for place, (name, program) in enumerate(zip(rules, programs, strict=True)):

            def progress(share: float, name: str = name, place: int = place) -> None:
                if on_progress is not None:
                    on_progress(name, (place + share) / len(rules))

            found[name] = work.judge(name, env, rules[name], carries.pop(name), program, progress)

    table = [_row(name, one, found[baseline]) for name, one in found.items()]
    return Comparison(
        scenario=env.name,
        num_lanes=num_lanes,
        num_tasks=num_tasks,
        warmup=warmup,
        baseline=baseline,
        behaviour=None if mover is None else mover.name,
        schedulers=table,
        histograms={name: one.run.histogram for name, one in found.items()},
    )


class _Judged(NamedTuple):
    """What a run brought."""

    run: metrics.LaneFigures
    hint: str | None  # what keeps it from being stationary
    overflow: np.ndarray  # [P, N] tasks that found a queue too long to be counted
    overflows: int = 0  # tasks for which the scheduler read lengths that are too short


class _Work(NamedTuple):
    """What is the same for all schedulers."""

    params: EnvParams
    key: Key
    num_lanes: int
    num_tasks: int
    warmup: int
    mover: Scheduler | None

    @property
    def total(self) -> int:
        """Tasks of each lane, those of the warm-up too."""
        return self.warmup + self.num_tasks

    @property
    def chunk(self) -> int:
        """Tasks of each lane between two batches of completion times."""
        return max(1, min(-(-self.total // _CHUNKS), _MAX_RECENT // self.num_lanes))

    def begin(self, env: Env, scheduler: Scheduler) -> Carry:
        """Return every lane before its first task."""
        key = jax.random.clone(self.key)  # for each scheduler the same tasks
        return start_rollout(env, self.params, scheduler, key, self.num_lanes, self.mover, self.chunk)

    def compile(self, env: Env, scheduler: Scheduler, carry: Carry) -> Callable[[Carry, int], Carry]:
        """Compile a program that lets so many more tasks arrive in each lane."""
        rules = {"scheduler": scheduler, "behaviour": self.mover}
        same = {"params": self.params, "warmup": self.warmup} | rules
        program = continue_rollout.lower(env=env, **same, carry=carry, num_tasks=0).compile()
        return lambda carry, num_tasks: program(**same, carry=carry, num_tasks=num_tasks)

    def judge(
        self,
        name: str,
        env: Env,
        scheduler: Scheduler,
        carry: Carry,
        program: Callable[[Carry, int], Carry],
        progress: Callable[[float], None],
    ) -> _Judged:
        """Run a scheduler; once more, with more room, while the queue lengths that it reads are too short."""

        def run(at: Env) -> _Judged:
            if at is env:
                return self._run(name, env, program, carry, progress)
            longer = self.begin(at, scheduler)
            return self._run(name, at, self.compile(at, scheduler, longer), longer, lambda share: None)

        acting = [(scheduler, carry.memory)]
        if self.mover is not None:
            acting.append((self.mover, carry.behaviour_memory))
        found, overflows = lengths.exact(
            name,
            env,
            run,
            lambda one: one.overflow,
            lambda: lengths.matter(env, self.params, carry.state, acting),
            lengths.room(env, self.num_lanes, self.total),
            stacklevel=4,
        )
        return found._replace(overflows=overflows)

    def _run(
        self,
        name: str,
        env: Env,
        program: Callable[[Carry, int], Carry],
        carry: Carry,
        progress: Callable[[float], None],
    ) -> _Judged:
        histogram, first, middle = None, 0, self.warmup + self.num_tasks // 2
        sums, counts = np.zeros((2, 2, self.num_lanes))
        for end in (self.warmup, middle, self.total):
            while first < end:
                number = min(self.chunk, end - first)
                carry = program(carry, number)
                if first >= self.warmup:
                    rows, known = _completions(carry, first, number)
                    if known is None or known.any():
                        counted = count_completions(rows, min(self.num_lanes, MAX_GROUPS), known)
                        histogram = counted if histogram is None else histogram + counted
                    half, where = int(first >= middle), True if known is None else known
                    sums[half] += rows.sum(0, dtype=np.float64, where=where)
                    counts[half] += number if known is None else known.sum(0)
                if carry.filled is not None:
                    # A difference instead of zeros keeps it where its lanes are.
                    carry = carry.replace(filled=carry.filled - carry.filled)
                first += number
                progress(first / self.total)
        found = env.view(carry.state, self.params)
        summary = at_hand(tally.summarise(carry.totals, found))
        idle = int((np.asarray(summary.class_served).sum(0) == 0).sum())
        if idle or histogram is None:
            raise ValueError(
                f"{name}: no task was served in {idle} of {self.num_lanes} lanes, so there is nothing to "
                "average: raise num_tasks, or take a scheduler that refuses less"
            )
        shown = stationarity.Evidence(
            halves=sums / np.maximum(counts, 1),
            wait_growth=np.asarray(summary.wait_growth, np.float64),
            utilisation=np.asarray(summary.utilisation, np.float64),
            elapsed=np.asarray(summary.elapsed, np.float64),
            warmup=self.warmup,
            num_tasks=self.num_tasks,
        )
        rule = "this rule" if self.mover is None else self.mover.name
        hint = stationarity.unsettled(shown, env, self.params, rule)
        return _Judged(metrics.LaneFigures(summary, histogram), hint, np.asarray(at_hand(found.overflow)))


def _completions(carry: Carry, first: int, number: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return completion times `[rows, N]` of `number` tasks from index `first` on, and which are there.

    None: all; where departures tell, the times are of those that have left since.
    """
    recent = np.asarray(at_hand(carry.recent))
    if carry.filled is None:
        return recent[(first + np.arange(number)) % len(recent)], None
    return recent, np.arange(len(recent))[:, None] < np.asarray(at_hand(carry.filled))


def _row(name: str, found: _Judged, baseline: _Judged) -> Row:
    """Return the table row of one scheduler."""
    figures: dict[str, Any] = {}
    for figure, estimate in metrics.estimates(found.run, baseline.run).items():
        valid = found.hint is None and not (metrics.FIGURES[figure].paired and baseline.hint)

        def shown(interval: Interval, valid: bool = valid) -> Interval:
            return interval if valid else None

        if isinstance(estimate, list):
            figures[figure] = [value for value, _ in estimate]
            figures[f"{figure}_ci"] = [shown(interval) for _, interval in estimate]
        else:
            figures[figure], figures[f"{figure}_ci"] = estimate[0], shown(estimate[1])
    return Row(
        name=name,
        stationary=found.hint is None,
        hint=found.hint,
        queue_overflows=found.overflows,
        figures=figures,
    )
