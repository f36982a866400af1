"""Run folders of trainings: what was trained, on what, with which settings; its weights; how it goes on.

run.json           the record (`jaxlb.records`); its entry `training` says what was trained, and how
metrics.jsonl      a line for each judgement and training
weights/seed-0     the best weights of that seed, which describe themselves (`jaxlb.weights`); of a population
                   in a folder for each setting
state              the whole state of training, until it is over
"""

import contextlib
import dataclasses
import functools
import json
import math
import operator
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks, files, records, trained, weights
from jaxlb.devices import device_mesh, side_by_side
from jaxlb.learn.settings import own_fields, with_numbers
from jaxlb.learn.trainer import Systems, check_initial, prepared, programs
from jaxlb.params import single
from jaxlb.scheduling import resolved
from jaxlb.trained import Member, Training, describe, training_of
from jaxlb.types import Scheduler

METRICS, WEIGHTS, STATE, LOGS = "metrics.jsonl", "weights", "state", "logs"

Rows = list[dict[str, Any]]
"""Lines of `metrics.jsonl`."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    directory: Path
    training: Training

    def log(self, rows: Rows) -> None:
        """Append figures to `metrics.jsonl`."""
        with (self.directory / METRICS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)

    def logged(self) -> Rows:
        """Read all figures logged so far."""
        return [json.loads(line) for line in self._lines()]

    def forget_after(self, iteration: int) -> None:
        """Drop figures that were logged after the last checkpoint, and a line that was cut off."""
        lines = self._lines()
        whole = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= iteration]
        files.write(self.directory / METRICS, "".join(whole))

    def _lines(self) -> list[str]:
        try:
            return (self.directory / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []

    def weights(self, member: Member) -> Path:
        """Return the file of a training's best weights."""
        return self.directory / WEIGHTS / member.place

    def iteration(self) -> int:
        """Return the iteration from which training goes on; 0 if it has not come to a checkpoint."""
        for path in (self.directory / STATE, self.weights(self.training.members()[-1])):
            if path.exists():
                return weights.about(path)["iteration"]
        return 0

    def finished(self) -> bool:
        """Return whether training has come to its end, and well: then only weights are left."""
        whole = self.iteration() == self.training.settings["num_iterations"]
        return whole and not (self.directory / STATE).exists()

    def save(self, state: Any, over: bool) -> None:
        """Write a checkpoint: the best weights and, until training ends well, the whole state."""
        iteration, over = int(state.iteration[0]), over and not (np.asarray(state.diverged) >= 0).any()
        # Before the weights: killed on the way, training goes on from here and writes them again.
        if not over:
            weights.write(self.directory / STATE, {"iteration": iteration}, state)
        for index, member in enumerate(self.training.members()):
            best = jax.tree.map(operator.itemgetter(index), state.best)
            path = self.weights(member)
            path.parent.mkdir(parents=True, exist_ok=True)
            trained.write(path, self.training.of(member), best, iteration=iteration)
        if over:
            for path in (self.directory / STATE, files.unfinished(self.directory / STATE)):
                path.unlink(missing_ok=True)

    def load(self, setting: str | None = None, **own: Any) -> dict[int, Scheduler]:
        """Load what was trained, by seed: the scheduler with its best weights.

        Args:
          setting: of a population; None: the best.
          own: what no name makes, such as `network`, if it was trained with one of your own.

        Raises:
          ValueError: nothing was saved yet, or it cannot be used, or no such setting was trained.
        """
        members = self.training.members()
        if not self.weights(members[-1]).exists():
            raise ValueError(f"{self.directory}: nothing was saved yet; --resume starts the training again")
        setting = self.best_setting() if setting is None else setting
        checks.known("setting", setting, {member.setting for member in members})
        chosen = (member for member in members if member.setting == setting)
        return {member.seed: trained.read(self.weights(member), **own) for member in chosen}

    def best_setting(self) -> str:
        """Return the setting of the population whose best weights are the best on average over seeds."""
        if not self.training.population:
            return ""
        reached: dict[str, list[float]] = {}
        for (setting, _), row in bests(self).items():
            reached.setdefault(setting, []).append(objective_of(self, row))
        return max(reached, key=lambda setting: sum(reached[setting]))


def find(directory: Path) -> Run:
    """Find the training in a folder.

    Raises:
      ValueError: there is none, or one that this version of jaxlb cannot use.
    """
    record = records.read(directory)
    if record is None or "training" not in record:
        raise ValueError(f"{directory}: no training here; jaxlb train makes one")
    return Run(directory, training_of(directory / records.RECORD, record["training"]))


def make_room(directory: Path, overwrite: bool) -> None:
    """Check that a folder has no training in it, or remove the one that it has.

    Raises:
      ValueError: the folder holds one and is not to be overwritten.
    """
    recorded = "training" in (records.read(directory) or {})
    parts = (METRICS, STATE, WEIGHTS)
    if not recorded and not any((directory / name).exists() for name in parts):
        return
    if not overwrite:
        ways = (
            "--resume continues it, --overwrite replaces it"
            if recorded
            else "--overwrite replaces what is left"
        )
        raise ValueError(f"{directory} holds a run: {ways}, --out DIR goes elsewhere")
    for name in (WEIGHTS, LOGS):
        shutil.rmtree(directory / name, ignore_errors=True)
    # The record last: killed on the way, this is still the folder of a run.
    for path in (METRICS, STATE, files.unfinished(Path(STATE)), *((records.RECORD,) if recorded else ())):
        (directory / path).unlink(missing_ok=True)


def must_agree(wanted: dict[str, Any], started: Training) -> None:
    """Raise ValueError if the settings are not those that a run was started with."""
    flat = dataclasses.asdict(started)
    environment = flat.pop("environment") or {}
    flat |= environment | environment.get("overrides", {}) | flat.pop("settings")
    for name, value in wanted.items():
        if value != flat.get(name):
            raise ValueError(f"resume: {name} = {value!r}, but the run was started with {flat.get(name)!r}")


def go_on(
    run: Run,
    env: Systems,
    params: Any,
    config: Any,
    *,
    on_rows: Callable[[Rows], Any] = lambda rows: None,
    on_progress: Callable[[str, float], None] | None = None,
    spread_lanes: bool = False,
    patience: int | None = None,
    initial: Scheduler | None = None,
) -> None:
    """Train from the last checkpoint, or from nothing, to the end, or until it is stopped early.

    What was stopped early keeps its state, and can go on.

    Args:
      run: that is trained.
      env: as it was begun.
      params: of it.
      config: the settings.
      on_rows: called with what was logged after each judgement; returns true to stop there.
      on_progress: called with a line and the share that is done.
      spread_lanes: whether the lanes of each training are spread over all devices, not the trainings.
      patience: stop once so many judgements in a row have brought none of the trainings a new best.
      initial: a scheduler that a new training begins with: the networks of one that this method trained, or,
        of a DQN, any that it acts as at first.

    Raises:
      ValueError: the method, or the networks, of `initial` are others.
      FloatingPointError: a loss was not finite; the weights before that are kept.
    """
    trainer, members = run.training.trainer(), run.training.members()
    total, done = config.num_iterations, run.iteration()
    run.forget_after(done)
    if run.finished():
        return
    if done and patience is not None and _stalled(run, patience):
        return
    (params, config), axis = prepared(params, config), None
    if run.training.population:
        each, axis = [single(with_numbers(config, member.values)) for member in members], 0
        config = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    seeds = jnp.asarray([member.seed for member in members], jnp.uint32)
    given = (trainer, env, axis, params, config)

    mesh = jax.set_mesh(device_mesh(config.num_lanes)) if spread_lanes else contextlib.nullcontext()
    with mesh:
        begin, advance = (functools.partial(program, *given) for program in programs(trainer, env))
        state = (
            weights.read(run.directory / STATE, jax.eval_shape(begin, seeds, initial))
            if done
            else begin(seeds, initial)
        )
        if not spread_lanes:
            state = side_by_side(state, len(members))
        _check_finite(run, state.diverged)  # of a run that goes on
        if isinstance(advance.func, jax.stages.Wrapped):  # compiled before time is taken
            advance = functools.partial(advance.func.lower(*given, state).compile(), params, config)
        while done < total:
            began = time.perf_counter()
            state, figures = jax.block_until_ready(advance(state))
            seconds = time.perf_counter() - began
            iterations, done = int(state.iteration[0]) - done, int(state.iteration[0])
            rows = _rows(members, figures, iterations / seconds)
            # Logged first: what was logged after the last checkpoint is made again.
            run.log(rows)
            stop = on_rows(rows) or (patience is not None and _stalled(run, patience))
            run.save(state, over=done >= total)
            if on_progress is not None:
                on_progress(f"iteration {done:,}", done / total)
            _check_finite(run, state.diverged)
            if stop:
                return


def _stalled(run: Run, patience: int) -> bool:
    """Return whether so many judgements in a row have brought none of the trainings a new best."""
    last = max(row["iteration"] for row in bests(run).values())
    return len({row["iteration"] for row in run.logged() if row["iteration"] > last}) >= patience


def _check_finite(run: Run, diverged: Any) -> None:
    """Raise FloatingPointError if a training has diverged: where it did, and what to try."""
    diverged = np.asarray(diverged)
    if (diverged >= 0).any():
        which = int(np.argmax(diverged >= 0))
        raise FloatingPointError(
            f"training diverged: with {run.training.members()[which].title} the loss was not finite at "
            f"iteration {diverged[which]:,}; {run.directory} keeps the weights before that. "
            f"Try {run.training.trainer().remedy}"
        )


def _rows(members: Sequence[Member], figures: Any, iterations_per_second: float) -> Rows:
    """Return a line for each training; what is not finite is null."""
    columns = {name: np.asarray(getattr(figures, name)).tolist() for name in figures.__dataclass_fields__}
    lines = []
    for index, member in enumerate(members):
        about = ({"setting": member.setting} if member.setting else {}) | {"seed": member.seed}
        values = {name: column[index] for name, column in columns.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        lines.append({**about, **finite, "iterations_per_second": iterations_per_second})
    return lines


def train(
    directory: str | Path,
    env: Systems,
    params: Any,
    config: Any,
    *,
    seeds: Sequence[int] = (0,),
    population: Mapping[str, Sequence[Any]] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    patience: int | None = None,
    initial: Scheduler | None = None,
    on_rows: Callable[[Rows], Any] = lambda rows: None,
) -> Run:
    """Train into a run folder as `jaxlb train` does, in any environment, with any network.

    Args:
      directory: the run folder.
      env: from `jaxlb.make`, or one's own.
      params: of the environment.
      config: of the method that is wanted, such as `jaxlb.DQNConfig`.
      seeds: trained side by side.
      population: values of settings that are numbers, by name; each combination is trained with every seed.
      resume: whether the training in the folder goes on, which was begun with the same arguments: settings,
        seeds and speeds are compared, other parameters and functions of your own are not.
      overwrite: whether it is replaced.
      patience: stop once so many judgements in a row have brought none of the trainings a new best.
      initial: a scheduler that a new training begins with: the networks of one that this method trained, or,
        of a DQN, any that it acts as at first.
      on_rows: called with the figures of each judgement, a dictionary for each training; true stops it.

    Returns:
      The run: `run.load()` has the schedulers by seed, of a population those of `run.best_setting()`;
      `run.logged()` has all figures.

    Raises:
      ValueError: the folder holds a run, another was begun, or a setting is out of bounds.
      FloatingPointError: a loss was not finite; the weights before that are kept.
    """
    directory = Path(directory)
    training = describe(env, params, config, seeds, population=population)
    if not training.seeds:
        raise ValueError("seeds = (): must be at least one")
    if patience is not None:
        checks.at_least("patience", patience, 1)
    initial = None if initial is None else resolved(initial)
    if resume:
        started = find(directory).training
        if own_fields(type(config), training.settings) != own_fields(type(config), started.settings):
            raise ValueError("resume: the run was started with another network, forecaster or the like")
        wanted = dataclasses.asdict(training)
        same = "method", "seeds", "population", "speed"
        must_agree(wanted.pop("settings") | {name: wanted[name] for name in same}, started)
        training = started
    else:
        check_initial(training.trainer(), env, params, config, initial)
        make_room(directory, overwrite)
    about = {"options": None, "scenario": getattr(env, "name", None), "seed": training.seeds[0]}
    record = records.begin(directory, "train", resumed=resume, **about, training=dataclasses.asdict(training))
    run = Run(directory, training)
    go_on(run, env, params, config, on_rows=on_rows, patience=patience, initial=initial)
    objective = training.trainer().objective
    record.finish(f"{objective} {figure(best(run)[objective])}")
    return run


def member_of(row: Mapping[str, Any]) -> tuple[str, int]:
    """Return of which training a line is: its setting, and its seed."""
    return row.get("setting", ""), row["seed"]


def bests(run: Run) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the line of the weights that are kept, of each training by `member_of`."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in run.logged():
        top = found.setdefault(member_of(row), row)
        if objective_of(run, row) > objective_of(run, top):
            found[member_of(row)] = row
    if not found:
        raise ValueError(f"{run.directory / METRICS}: has no figures")
    return found


def best(run: Run) -> dict[str, Any]:
    """Return the best line of all trainings, of a population those of the best setting."""
    setting = run.best_setting()
    lines = (row for (own, _), row in bests(run).items() if own == setting)
    return max(lines, key=functools.partial(objective_of, run))


def objective_of(run: Run, row: Mapping[str, Any]) -> float:
    """Return the figure of a line that is the largest for the best weights."""
    value = row[run.training.trainer().objective]
    return -math.inf if value is None else value


def figure(value: float | None, scale: float = 1.0) -> str:
    """Write a figure of a line, which is None where it was not finite."""
    return "nan" if value is None else f"{scale * value:.4g}"


def load(path: str | Path, seed: int | None = None, setting: str | None = None, **own: Any) -> Scheduler:
    """Load the scheduler that was trained, with its best weights.

    Args:
      path: a folder that `jaxlb train` wrote, or a file of weights.
      seed: of those that were trained side by side; None: the first.
      setting: of a population, as `metrics.jsonl` names them; None: the best.
      own: what no name makes, such as `network`, if it was trained with one of your own.

    Raises:
      ValueError: nothing is there, or what this version cannot use, or an unknown seed or setting.
    """
    path = Path(path)
    if path.is_file():
        return trained.read(path, **own)
    run = find(path)
    if seed is not None and seed not in run.training.seeds:
        raise ValueError(f"seed = {seed}: {path} has {', '.join(map(str, run.training.seeds))}")
    return run.load(setting, **own)[run.training.seeds[0] if seed is None else seed]
