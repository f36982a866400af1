"""The best settings of rules, found by simulation: what a learned scheduler has to beat."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlb import checks, metrics, stationarity
from jaxlb.comparison import Comparison
from jaxlb.env import Env
from jaxlb.judging import Judges
from jaxlb.random import typed
from jaxlb.scheduling import options_of, scheduler
from jaxlb.types import EnvParams, Key, Scheduler

Grid = Mapping[str, Sequence[Any]]
"""Values of a rule's options, all combinations of which are tried."""

GRIDS: dict[str, Grid] = {
    "guarded-sita": {
        "big": (1, 2),
        "big_to": ("slowest", "fastest"),
        "share": (0.4, 0.6, 0.8, 1.0, 1.2),
    },
    "card": {
        "band": (0.1, 0.3, 0.6),
        "threshold": (1, 2, 5),
        "bands": (1, 4),
        "flexible": (False, True),
    },
    "dice": {"limit": (1, 2, 4, 8, 16), "growth": (1, 2, 4), "last": ("slowest", "fastest")},
    "power-of-d": {"d": (1, 2, 3, 4)},
    "lwr-rr": {"threshold": (0.01, 0.03, 0.1, 0.3, 1.0)},
    "jsq": {"ties": ("lowest", "fastest", "random")},
    "least-connections": {"ties": ("lowest", "fastest", "random")},
    "jiq": {"fastest": (False, True)},
    "sita-e": {"small_to": ("slowest", "fastest")},
    "guardrails": {"rule": ("greedy", "myopic"), "tightness": (1.0, 1.5, 2.0, 4.0)},
    "deadline-admission": {"rule": ("greedy", "lwr"), "factor": (0.5, 0.75, 1.0, 1.5, 2.0)},
    "drift-aware": {"detector": ("threshold", "cusum", "page-hinkley"), "hold": (1, 4, 16)},
}
"""What is tried of a rule if nothing else is said."""


def settings_of(rule: str, grid: Grid) -> tuple[str, ...]:
    """Name a rule in all settings of a grid, the last option changing first."""
    names = []
    for values in itertools.product(*grid.values()):
        shown = (json.dumps(value) if isinstance(value, bool) else f"{value}" for value in values)
        options = ", ".join(f"{name}={value}" for name, value in zip(grid, shown, strict=True))
        names.append(f"{rule}({options})" if options else rule)
    return tuple(names)


GUARDED_SITA = settings_of("guarded-sita", GRIDS["guarded-sita"])
"""Guarded SITA in 20 settings."""
CARD, CARD_IN_BANDS = (settings_of("card", {**GRIDS["card"], "bands": (bands,)}) for bands in (1, 4))
"""CARD in 18 settings, with one band of medium tasks and with four."""
DICE = settings_of("dice", GRIDS["dice"])
"""Dice in 30 settings."""


class Tuned(NamedTuple):
    """A rule in one of its settings.

    Attributes:
      name: of the rule with its settings, for `jaxlb.scheduler`.
      scheduler: that it makes.
      mean_completion: time, in the simulation.
      sla_violation_rate: of tasks, the same.
    """

    name: str
    scheduler: Scheduler
    mean_completion: float
    sla_violation_rate: float


def best(
    env: Env,
    params: EnvParams,
    key: Key,
    names: Sequence[str] = GUARDED_SITA,
    num_lanes: int = 256,
    num_tasks: int = 2000,
    warmup: int = 500,
) -> dict[str, Tuned]:
    """Find the best settings of a rule on a system, by mean "completion" and by "violations".

    All settings get the same tasks. One that keeps a processor busy all the time, as one may that starves
    large tasks, is best only if all do.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      key: consumed. It is best not that of a comparison to come, whose tasks would have chosen the settings.
      names: of rules, each with its settings, such as `GUARDED_SITA`, `CARD`, `CARD_IN_BANDS` or `DICE`.
      num_lanes: environments for each setting.
      num_tasks: tasks counted in each lane.
      warmup: tasks run before that, not counted.

    Raises:
      ValueError: as `jaxlb.compare`.
    """
    judges = Judges(names, num_lanes, num_tasks)
    table = judges.compare(env, params, key, warmup)
    fit = _keeping_up(env, table)

    def tuned(figure: str) -> Tuned:
        row = min((row for row in table.schedulers if row.name in fit), key=lambda row: getattr(row, figure))
        return Tuned(row.name, judges.rules[row.name], row.mean_completion, row.sla_violation_rate)

    return {"completion": tuned("mean_completion"), "violations": tuned("sla_violation_rate")}


def _keeping_up(env: Env, table: Comparison) -> set[str]:
    """Return the names of those that keep no processor busy all the time, or of all if all do."""
    names = {row.name for row in table.schedulers}
    if env.station.most != 1.0:  # of what does the more the more it holds, nobody knows
        return names
    fit = (row.name for row in table.schedulers if row.busiest < stationarity.ALL_THE_TIME)
    return set(fit) or names


@dataclass(frozen=True)
class Tuning:
    """The best settings of rules.

    Attributes:
      figure: by which they are the best, a name of `jaxlb.metrics.FIGURES`.
      best: the name of each rule in its best setting, for `jaxlb.scheduler`, by the rule.
      at_the_edge: options of the best whose value is the least or the largest of three or more numbers that
        were tried: a better one may lie beyond.
      settings: all settings, on the tasks that chose.
      held_out: each rule as it is without options and, as "RULE, tuned", in its best setting, on other tasks.
    """

    figure: str
    best: dict[str, str]
    at_the_edge: list[str]
    settings: Comparison
    held_out: Comparison

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON has of it."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return found | {name: found[name].as_dict() for name in ("settings", "held_out")}


def tune(
    env: Env,
    params: EnvParams,
    rules: str | Sequence[str] | Mapping[str, Grid],
    key: Key,
    *,
    figure: str = "mean_completion",
    num_lanes: int = 256,
    num_tasks: int = 2000,
    warmup: int | None = None,
    baseline: str = "lwr",
    on_progress: Callable[[str, float], None] | None = None,
) -> Tuning:
    """Find the best setting of each rule, and judge it on tasks that did not choose it.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      rules: with the values of the options that are tried, as in {"guarded-sita": {"share": [0.8, 1.0]}}; or
        names of rules, of which `GRIDS` is tried.
      key: consumed; decides the tasks that choose, and the others.
      figure: a name of `jaxlb.metrics.FIGURES`, of one value a row.
      num_lanes: environments side by side.
      num_tasks: tasks counted in each.
      warmup: tasks run before that, not counted; None: as many as theory asks for, at least a quarter of the
        tasks, at most as many.
      baseline: a rule that joins the judgement, and that differences are taken to.
      on_progress: called with the scheduler at work and the share of all work that is done.

    Returns:
      A `Tuning`: the best setting of each rule, all settings as a table, and those held out as another.

    Raises:
      ValueError: as `jaxlb.compare`; a rule without options to try.
    """
    metrics.check_one_value(figure)
    grids = _grids(rules)
    of_rule = {rule: settings_of(rule, grid) for rule, grid in grids.items()}
    for name in itertools.chain([baseline], *of_rule.values()):
        scheduler(name)
    keys = jax.random.split(typed(key))
    count = sum(map(len, of_rule.values()))
    judged = 2 * len(of_rule) + 1

    def part(before: int, of: int) -> Callable[[str, float], None]:
        def progress(name: str, share: float) -> None:
            if on_progress is not None:
                on_progress(name, (before + share * of) / (count + judged))

        return progress

    every = [name for names in of_rule.values() for name in names]
    table = Judges(every, num_lanes, num_tasks).compare(env, params, keys[0], warmup, part(0, count))
    fit = _keeping_up(env, table)
    best = {
        rule: table.best(figure, [name for name in names if name in fit] or names).name
        for rule, names in of_rule.items()
    }
    shown = {baseline: baseline}
    for rule, name in best.items():
        shown |= {rule: rule, f"{rule}, tuned": name}
    held_out = Judges(shown, num_lanes, num_tasks, baseline).compare(
        env, params, keys[1], warmup, part(count, judged)
    )
    edges = [text for rule, grid in grids.items() for text in _edges(rule, grid, best[rule])]
    return Tuning(figure, best, edges, table, held_out)


def _grids(rules: Any) -> dict[str, Grid]:
    """Return what is tried of each rule."""
    if isinstance(rules, str):
        rules = [rules]
    if not isinstance(rules, Mapping):
        for rule in rules:
            scheduler(rule)
            if rule not in GRIDS:
                own, known = ", ".join(options_of(rule)), ", ".join(sorted(GRIDS))
                if not own:
                    raise ValueError(f"{rule}: has no options to tune; these have: {known}")
                raise ValueError(
                    f"{rule}: say which of its options ({own}) to try; without, these are tuned: {known}"
                )
        rules = {rule: GRIDS[rule] for rule in rules}
    if not rules:
        raise ValueError("rules: must be at least one")
    for rule, grid in rules.items():
        if not isinstance(grid, Mapping):
            raise ValueError(f"{rule}: {checks.shown(grid)}: must name options with their values")
        for name, values in grid.items():
            if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)) or not len(values):
                raise ValueError(f"{rule}: {name} = {checks.shown(values)}: must be a list of values")
    return {rule: {name: list(values) for name, values in grid.items()} for rule, grid in rules.items()}


def _edges(rule: str, grid: Grid, best: str) -> list[str]:
    """Return which numbers of the best setting are the first or the last tried."""
    chosen = dict(zip(settings_of(rule, grid), itertools.product(*grid.values()), strict=True))[best]
    found = []
    for (name, values), value in zip(grid.items(), chosen, strict=True):
        numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
        if len(numbers) > 2 and value in (min(numbers), max(numbers)):
            which = "least" if value == min(numbers) else "largest"
            found.append(f"{rule}: {name}={value} is the {which} that was tried")
    return found
