"""Run folders: what was trained, on what, with which settings, and its checkpoints.

    run.json        what was trained, and what the weights fit
    metrics.jsonl   a line for each evaluation and seed
    checkpoints/    Orbax: the best and the last weights and, until training is over, its whole state

Loading executes nothing that a folder holds: arrays are arrays, the rest is JSON.
"""

import dataclasses
import json
import operator
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb.env import Env
from jaxlb.environments import make
from jaxlb.learn import TRAINERS, Trainer
from jaxlb.learn.settings import configure
from jaxlb.learn.trainer import prepared
from jaxlb.types import EnvParams, Scheduler
from jaxlb.version import __version__
from jaxlb.workload import read_trace

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

RECORD, METRICS, CHECKPOINTS, LOGS = "run.json", "metrics.jsonl", "checkpoints", "logs"


@dataclass(frozen=True)
class Record:
    """What `run.json` holds.

    Attributes:
      method: of training, a name of `jaxlb.learn.TRAINERS`.
      scenario: for `jaxlb.make`.
      overrides: for `jaxlb.make`, by name.
      trace: path, format and options for `jaxlb.read_trace`, or None.
      allow_overload: for `jaxlb.make`.
      num_processors: of that environment.
      settings: of the trainer, all of them.
      seeds: trained side by side; weights have them as leading axis.
      version: of jaxlb.
      features: that its network is told, by group.
    """

    method: str
    scenario: str
    overrides: dict[str, Any]
    trace: list[Any] | None
    allow_overload: bool
    num_processors: int
    settings: dict[str, Any]
    seeds: list[int]
    features: Mapping[str, list[str]]
    version: str = __version__

    def environment(self) -> tuple[Env, EnvParams]:
        """What it was trained on."""
        trace = None
        if self.trace is not None:
            path, format, options = self.trace
            trace = read_trace(path, format, **options)
        return make(self.scenario, trace=trace, allow_overload=self.allow_overload, **self.overrides)

    def trainer(self) -> Trainer:
        """The method."""
        return TRAINERS[self.method]

    def check(self, env: Env, params: EnvParams) -> None:
        """Raise ValueError unless the weights fit an environment; warn where they may do badly there."""
        self.trainer().fits(self.settings, self.without_trace().environment()[1], env, params)

    def without_trace(self) -> "Record":
        """The same, but with the scenario's own tasks, for what depends on no tasks."""
        return dataclasses.replace(self, trace=None)

    def prepared(self) -> tuple[Env, EnvParams, Any]:
        """The environment, its parameters and the settings, as the trainer's programs take them."""
        env, params = self.environment()
        return env, *prepared(params, configure(self.trainer().config, **self.settings))


@dataclass(frozen=True)
class Run:
    """A run folder."""

    directory: Path
    record: Record

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Append figures to `metrics.jsonl`."""
        with (self.directory / METRICS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)

    def logged(self) -> list[dict[str, Any]]:
        """All figures logged so far."""
        lines = (self.directory / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def forget_after(self, iteration: int) -> None:
        """Drop figures that were logged after the last checkpoint, and a line that was cut off."""
        lines = (self.directory / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= iteration]
        write(self.directory / METRICS, "".join(whole))

    def iteration(self) -> int:
        """That of the last checkpoint; 0 if there is none yet."""
        with self._checkpoints() as checkpoints:
            return checkpoints.latest_step() or 0

    def save(self, iteration: int, **parts: Any) -> None:
        """A checkpoint of these pytrees in place of the one before; whole, or not there at all."""
        import orbax.checkpoint as ocp

        saved = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        with self._checkpoints() as checkpoints:
            checkpoints.save(iteration, args=ocp.args.Composite(**saved))

    def restore(self, **parts: Any) -> dict[str, Any]:
        """Parts of the last checkpoint, given what they look like (`jax.eval_shape`).

        Raises:
          ValueError: there is no such checkpoint, or one that cannot be read.
        """
        import orbax.checkpoint as ocp

        asked = {name: ocp.args.StandardRestore(tree) for name, tree in parts.items()}
        with self._checkpoints() as checkpoints:
            iteration = checkpoints.latest_step()
            if iteration is None:
                raise ValueError(
                    f"{self.directory}: nothing was saved yet; --resume starts the training again"
                )
            try:
                found = checkpoints.restore(iteration, args=ocp.args.Composite(**asked))
            except (ValueError, TypeError, LookupError, OSError) as error:
                raise ValueError(f"{self.directory}: its checkpoint cannot be read: {error}") from error
        return {name: found[name] for name in parts}

    def _checkpoints(self) -> "CheckpointManager":
        # Half a second of imports that a simulation does not need.
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.directory / CHECKPOINTS).absolute(), options=options)


def make_room(directory: Path, overwrite: bool) -> None:
    """Look that a folder has no run in it, or remove the one that it has.

    Raises:
      ValueError: the folder holds a run and is not to be overwritten.
    """
    if not (directory / RECORD).exists():
        return
    if not overwrite:
        raise ValueError(
            f"{directory} holds a run: --resume continues it, --overwrite replaces it, "
            "--out DIR goes elsewhere"
        )
    for name in (RECORD, METRICS):
        (directory / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, LOGS):
        shutil.rmtree(directory / name, ignore_errors=True)


def create(directory: Path, record: Record) -> Run:
    """A new run, in a folder that has none."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / METRICS).touch()
    # Last: a folder with a record is a run.
    write(directory / RECORD, json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    return Run(directory, record)


def write(path: Path, text: str) -> None:
    """A file's new content; killed on the way, the old content stays."""
    new = path.with_name(f".{path.name}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def find(directory: Path) -> Run:
    """The run in a folder.

    Raises:
      ValueError: there is none, or one whose weights this version of jaxlb cannot use.
    """
    try:
        found = Record(**json.loads((directory / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{directory}: no run here ({RECORD} is missing); jaxlb train makes one") from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{directory / RECORD}: cannot be read: {error}") from None
    if found.version != __version__:
        raise ValueError(
            f"{directory}: made by jaxlb {found.version}, this is {__version__}: "
            "train it again, or install that version"
        )
    ours = features(found.trainer())
    if found.features != ours:
        raise ValueError(
            f"{directory}: trained with the features {found.features}, this jaxlb has {ours}: train it again"
        )
    return Run(directory, found)


def features(trainer: Trainer) -> dict[str, list[str]]:
    """What a method's networks are told, as a record has it."""
    return {group: list(names) for group, names in trainer.features}


def start(trainer: Trainer, env: Env, params: EnvParams, config: Any, seeds: Sequence[int]) -> Any:
    """The states before training with each seed, leaves `[K, ...]`."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(lambda key: trainer.start(env, params, config, key))(keys)


def load_all(run: Run) -> dict[int, Scheduler]:
    """What a run trained, by seed: the scheduler with its best weights."""
    record, trainer = run.record, run.record.trainer()
    env, params, config = record.without_trace().prepared()
    looks = jax.eval_shape(lambda: start(trainer, env, params, config, record.seeds)).best
    # Plain arrays: what Orbax puts on one device could not meet lanes spread over all.
    best = jax.tree.map(np.asarray, run.restore(best=looks)["best"])
    return {
        seed: trainer.acting(config, jax.tree.map(operator.itemgetter(index), best))
        for index, seed in enumerate(record.seeds)
    }


def load(directory: str | Path, seed: int | None = None) -> Scheduler:
    """The scheduler that a run trained, with its best weights.

    Args:
      directory: that `jaxlb train` wrote.
      seed: of those that were trained side by side; None: the first.

    Raises:
      ValueError: no run, one that this version cannot use, or a seed that was not trained.
    """
    run = find(Path(directory))
    seeds = run.record.seeds
    if seed is not None and seed not in seeds:
        raise ValueError(f"seed = {seed}: {directory} has {', '.join(map(str, seeds))}")
    return load_all(run)[seeds[0] if seed is None else seed]
