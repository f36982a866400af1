"""Schedulers side by side: the same tasks for all, intervals from independent lanes, paired differences."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlb import checks, lengths, metrics, stationarity, stations, tally
from jaxlb.comparison import Comparison, Row
from jaxlb.devices import at_hand
from jaxlb.env import Env
from jaxlb.environments import answering
from jaxlb.loop import Carry, continue_rollout, start_rollout
from jaxlb.params import canonical
from jaxlb.random import typed
from jaxlb.scheduling import resolved
from jaxlb.scheduling.base import no_memory
from jaxlb.scheduling.policies import check_numbers
from jaxlb.statistics import MAX_GROUPS, Interval, count_completions
from jaxlb.threads import threads
from jaxlb.types import EnvParams, Key, Scheduler

_CHUNKS = 8
_MAX_RECENT = 4_000_000  # completion times on the device at a time: 16 MB


def compare(
    env: Env,
    params: EnvParams,
    schedulers: Mapping[str, str | Scheduler] | Sequence[str | Scheduler],
    key: Key,
    *,
    num_lanes: int,
    num_tasks: int,
    warmup: int | None = None,
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
      schedulers: by the name that the table gives them, or in a list; each a scheduler, or the name of one.
      key: consumed; decides the tasks.
      num_lanes: environments side by side; one gives no intervals.
      num_tasks: tasks counted in each.
      warmup: tasks run before that, not counted; None: as many as theory asks for, at least a quarter of the
        tasks, at most as many.
      baseline: name of the scheduler that differences are taken to; None: "lwr", or else the first.
      behaviour: snapshot evaluation: this scheduler's choices move every system on, and all others are asked
        in the states it visits and scored on what their own choice would have brought.
      on_progress: called with the name of the scheduler at work and the share of all work that is done.

    Returns:
      A `jaxlb.comparison.Comparison`, with a row for each scheduler.

    Raises:
      ValueError: no schedulers, an unknown baseline, fewer than one lane or task, or a bad parameter.
    """
    judges = Judges(schedulers, num_lanes, num_tasks, baseline, behaviour)
    return judges.compare(env, params, key, warmup, on_progress)


class Judges:
    """Compares the same schedulers in any number of systems; where only numbers differ, it compiles once."""

    def __init__(
        self,
        schedulers: Mapping[str, str | Scheduler] | Sequence[str | Scheduler],
        num_lanes: int,
        num_tasks: int,
        baseline: str | None = None,
        behaviour: str | Scheduler | None = None,
    ):
        """Take what is the same in all systems; arguments are those of `compare`."""
        checks.at_least("num_lanes", num_lanes, 1)
        checks.at_least("num_tasks", num_tasks, 1)
        named = _named(schedulers)
        if baseline is None:
            baseline = "lwr" if "lwr" in named else next(iter(named))
        checks.known("baseline", baseline, named)
        self._rules = {name: resolved(given) for name, given in named.items()}
        self._num_lanes, self._num_tasks, self._baseline = num_lanes, num_tasks, baseline
        self._mover = None if behaviour is None else resolved(behaviour)
        self._programs: dict[Any, Future] = {}

    @property
    def rules(self) -> Mapping[str, Scheduler]:
        """The schedulers by name."""
        return self._rules

    @property
    def baseline(self) -> str:
        """The name of the scheduler that differences are taken to."""
        return self._baseline

    def compare(
        self,
        env: Env,
        params: EnvParams,
        key: Key,
        warmup: int | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Comparison:
        """Compare in a system; the key is consumed."""
        if warmup is not None:
            checks.at_least("warmup", warmup, 0)
        # If one is told of departures, all are judged by those.
        env = answering(env, [*self._rules.values(), *([] if self._mover is None else [self._mover])])
        env.check(params, (self._num_lanes,))
        if self._mover is not None:
            stations.needs_settled("what a choice would have brought", env.station)
        if warmup is None:
            warmup = stationarity.sensible_warmup(env, params, self._num_tasks)
        work = _Work(
            canonical(params),
            typed(key),
            self._num_lanes,
            self._num_tasks,
            warmup,
            self._mover,
            self._programs,
        )
        rules, found = self._rules, dict[str, _Judged]()
        carries = {name: work.begin(env, rule) for name, rule in rules.items()}

        # Compiling takes one core for longer than running takes all of them: compile side by side, run in
        # turn.
        with threads() as pool:
            programs = [work.program(env, rule, carries[name], pool.submit) for name, rule in rules.items()]
            for place, (name, program) in enumerate(zip(rules, programs, strict=True)):

                def progress(share: float, name: str = name, place: int = place) -> None:
                    if on_progress is not None:
                        on_progress(name, (place + share) / len(rules))

                carry = carries.pop(name)
                found[name] = work.judge(name, env, rules[name], carry, program.result(), progress)

        table = [_row(name, one, found[self._baseline]) for name, one in found.items()]
        return Comparison(
            scenario=env.name,
            num_lanes=self._num_lanes,
            num_tasks=self._num_tasks,
            warmup=warmup,
            baseline=self._baseline,
            behaviour=None if self._mover is None else self._mover.name,
            schedulers=table,
            histograms={name: one.run.histogram for name, one in found.items()},
        )


def _named(given: Any) -> Mapping[str, str | Scheduler]:
    """Return schedulers by name."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        names = [one if isinstance(one, str) else getattr(one, "name", None) for one in given]
        if len(set(names)) < len(names):
            raise ValueError(f"schedulers = {checks.shown(names)}: must differ, or be in a dict with names")
        given = dict(zip(names, given, strict=True))
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f"schedulers = {checks.shown(given)}: must name at least one, as ['lwr', 'greedy'] does"
        )
    return given


def _at_once(function: Callable, *given: Any) -> Future:
    """Call a function now, as a pool would at some time."""
    future = Future()
    future.set_result(function(*given))
    return future


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
    programs: dict[Any, Future]

    @property
    def total(self) -> int:
        """Tasks of each lane, those of the warm-up too."""
        return self.warmup + self.num_tasks

    @property
    def chunk(self) -> int:
        """Tasks of each lane between two batches of completion times, none of which is of the warm-up."""
        return max(1, min(-(-self.num_tasks // _CHUNKS), _MAX_RECENT // self.num_lanes))

    def begin(self, env: Env, scheduler: Scheduler) -> Carry:
        """Return every lane before its first task."""
        key = jax.random.clone(self.key)  # for each scheduler the same tasks
        return start_rollout(env, self.params, scheduler, key, self.num_lanes, self.mover, self.chunk)

    def program(
        self, env: Env, scheduler: Scheduler, carry: Carry, submit: Callable[..., Future] = _at_once
    ) -> Future:
        """Return the program that lets more tasks arrive in each lane, one for all that differ in numbers.

        Numbers are variables, and what is computed when a run starts.
        """
        scheduler = _begun(scheduler)
        given = self.params, scheduler, self.mover, carry.memory
        kind = env, jax.tree.structure(given), tuple(map(jax.typeof, jax.tree.leaves(given)))
        if kind not in self.programs:
            self.programs[kind] = submit(self._compile, env, scheduler, carry)
        return self.programs[kind]

    def _compile(self, env: Env, scheduler: Scheduler, carry: Carry) -> Callable[..., Carry]:
        same = {"params": self.params, "scheduler": scheduler, "behaviour": self.mover}
        return continue_rollout.lower(env=env, **same, warmup=0, carry=carry, num_tasks=0).compile()

    def judge(
        self,
        name: str,
        env: Env,
        scheduler: Scheduler,
        carry: Carry,
        program: Callable[..., Carry],
        progress: Callable[[float], None],
    ) -> _Judged:
        """Run a scheduler; once more, with more room, while the queue lengths that it reads are too short."""

        def run(at: Env) -> _Judged:
            if at is env:
                return self._run(name, env, scheduler, program, carry, progress)
            longer = self.begin(at, scheduler)
            more = self.program(at, scheduler, longer).result()
            return self._run(name, at, scheduler, more, longer, lambda share: None)

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
        scheduler: Scheduler,
        program: Callable[..., Carry],
        carry: Carry,
        progress: Callable[[float], None],
    ) -> _Judged:
        histogram, first, middle = None, 0, self.warmup + self.num_tasks // 2
        sums, counts = np.zeros((2, 2, self.num_lanes))
        same = {
            "params": self.params,
            "scheduler": _begun(scheduler),
            "behaviour": self.mover,
            "warmup": self.warmup,
        }
        for end in (self.warmup, middle, self.total):
            while first < end:
                chunk = max(self.chunk, -(-self.warmup // _CHUNKS)) if first < self.warmup else self.chunk
                number = min(chunk, end - first)
                carry = program(**same, carry=carry, num_tasks=number)
                if first >= self.warmup:
                    rows, known = carry.last_completions(number)
                    if known is None or known.any():
                        counted = count_completions(rows, min(self.num_lanes, MAX_GROUPS), known)
                        histogram = counted if histogram is None else histogram + counted
                    half, where = int(first >= middle), True if known is None else known
                    sums[half] += rows.sum(0, dtype=np.float64, where=where)
                    counts[half] += number if known is None else known.sum(0)
                carry = carry.with_room()
                first += number
                progress(first / self.total)
        check_numbers((carry.memory, carry.behaviour_memory))
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


def _begun(scheduler: Scheduler) -> Scheduler:
    """Return a scheduler of which no run will start any more, so that programs do not differ by how."""
    return scheduler.replace(start=no_memory)


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
