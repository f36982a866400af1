"""Run folders: what was trained, on what, with which settings, and its checkpoints.

    run.json        what was asked for, and what the weights fit
    metrics.jsonl   a line for each evaluation and seed
    checkpoints/    Orbax: the best and the last weights and, until training is over, its whole state

Loading executes nothing that a folder holds: arrays are arrays, the rest is JSON.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlb.env import Env
from jaxlb.learn import dqn
from jaxlb.rollout import DEVICES, some_devices
from jaxlb.scenarios import make
from jaxlb.schedulers import learned
from jaxlb.schedulers.learned import PROCESSOR_FEATURES, TASK_FEATURES, Variables
from jaxlb.types import EnvParams, Key, Scheduler
from jaxlb.version import __version__
from jaxlb.workload import read_trace

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

RECORD, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
FEATURES = {"task": list(TASK_FEATURES), "processor": list(PROCESSOR_FEATURES)}


@dataclass(frozen=True)
class Record:
    """What `run.json` holds.

    Attributes:
      method: of training, "dqn".
      scenario: for `jaxlb.make`.
      overrides: for `jaxlb.make`, by name.
      trace: path and format, or None.
      allow_overload: for `jaxlb.make`.
      num_processors: of that environment.
      settings: of the trainer, all of them.
      seeds: trained side by side; weights have them as leading axis.
      version: of jaxlb.
      features: that the network is told.
    """

    method: str
    scenario: str
    overrides: dict[str, Any]
    trace: list[str] | None
    allow_overload: bool
    num_processors: int
    settings: dict[str, Any]
    seeds: list[int]
    version: str = __version__
    features: Mapping[str, list[str]] = dataclasses.field(default_factory=lambda: FEATURES)

    def environment(self) -> tuple[Env, EnvParams]:
        """What it was trained on."""
        trace = read_trace(*self.trace) if self.trace else None
        return make(self.scenario, trace=trace, allow_overload=self.allow_overload, **self.overrides)

    def check(self, env: Env, params: EnvParams) -> None:
        """Raise ValueError unless the weights fit an environment."""
        if env.num_processors != self.num_processors and self.settings["network"] != "per-processor":
            raise ValueError(
                f"trained for {self.num_processors} processors, {env.name} has {env.num_processors}: "
                'only a "per-processor" network serves any number'
            )
        classes, weight = params.class_probability.shape[0], self.settings["sla_weight"]
        if isinstance(weight, list) and len(weight) != classes:
            raise ValueError(
                f"trained with an sla_weight for each of {len(weight)} priorities, {env.name} has {classes}"
            )


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
        (self.directory / METRICS).write_text("".join(whole), encoding="utf-8")

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
          ValueError: there is no such checkpoint.
        """
        import orbax.checkpoint as ocp

        asked = {name: ocp.args.StandardRestore(tree) for name, tree in parts.items()}
        with self._checkpoints() as checkpoints:
            iteration = checkpoints.latest_step()
            if iteration is None:
                raise ValueError(
                    f"{self.directory}: nothing was saved yet; --resume starts the training again"
                )
            found = checkpoints.restore(iteration, args=ocp.args.Composite(**asked))
        return {name: found[name] for name in parts}

    def _checkpoints(self) -> "CheckpointManager":
        # Half a second of imports that a simulation does not need.
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.directory / CHECKPOINTS).absolute(), options=options)


def create(directory: Path, record: Record, overwrite: bool) -> Run:
    """A new run folder.

    Raises:
      ValueError: the folder holds a run and is not to be overwritten.
    """
    if (directory / RECORD).exists():
        if not overwrite:
            raise ValueError(
                f"{directory} holds a run: --resume continues it, --overwrite replaces it, "
                "--out DIR goes elsewhere"
            )
        for name in (RECORD, METRICS):
            (directory / name).unlink(missing_ok=True)
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / METRICS).touch()
    # Last and at once: a folder with a record is a run.
    new = directory / f".{RECORD}"
    new.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
    new.replace(directory / RECORD)
    return Run(directory, record)


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
    if found.features != FEATURES:
        raise ValueError(
            f"{directory}: trained with the features {found.features}, this jaxlb has {FEATURES}: "
            "train it again"
        )
    return Run(directory, found)


def start(env: Env, params: EnvParams, config: dqn.DQNConfig, seeds: Sequence[int]) -> dqn.DQNState:
    """The states before training with each seed, leaves `[K, ...]`."""
    return jax.vmap(lambda key: dqn.start_dqn(env, params, config, key))(keys(seeds))


def keys(seeds: Sequence[int]) -> Key:
    """A key for each seed, `[K]`."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def side_by_side(tree: Any, seeds: Sequence[int]) -> Any:
    """Leaves `[K, ...]` spread over as many local devices as divide the number of seeds."""
    return jax.device_put(tree, NamedSharding(some_devices(len(seeds)), PartitionSpec(DEVICES)))


def load(directory: str | Path, seed: int | None = None) -> tuple[Scheduler, Variables]:
    """What a run trained: the scheduler and its best weights.

    Args:
      directory: that `jaxlb train` wrote.
      seed: of those that were trained side by side; None: the first.

    Raises:
      ValueError: no run, one that this version cannot use, or a seed that was not trained.
    """
    run = find(Path(directory))
    record = run.record
    if seed is not None and seed not in record.seeds:
        raise ValueError(f"seed = {seed}: {directory} has {', '.join(map(str, record.seeds))}")
    config = dqn.configure(**record.settings)
    # Weights look the same whether tasks are recorded or not.
    env, params = dataclasses.replace(record, trace=None).environment()
    looks = jax.eval_shape(lambda: start(env, params, config, record.seeds)).best
    best = run.restore(best=looks)["best"]
    index = 0 if seed is None else record.seeds.index(seed)
    # Plain arrays: what Orbax puts on one device could not meet lanes spread over all.
    return learned.dqn(config.network), jax.tree.map(lambda leaf: np.asarray(leaf)[index], best)
