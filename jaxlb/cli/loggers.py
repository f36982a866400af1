"""Loggers that figures of a training go to besides `metrics.jsonl`; each needs a package of its own."""

import contextlib
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlb import checks, runs


class Training(NamedTuple):
    """One training, as a logger gets it.

    Attributes:
      directory: for what the logger writes.
      group: the name of the run.
      title: its name within the run.
      place: the folder of it within others of the run.
      id: the same if the run is stopped and goes on.
      settings: of the trainer.
      done: iterations that were logged before.
    """

    directory: Path
    group: str
    title: str
    place: str
    id: str
    settings: Mapping[str, Any]
    done: int


Log = Callable[[int, Mapping[str, float]], None]
"""(iteration, figures by name) -> None."""


class Logger(NamedTuple):
    """A logger.

    Attributes:
      package: that it needs.
      open: training -> context of a `Log`.
    """

    package: str
    open: Callable[[Training], contextlib.AbstractContextManager[Log]]


@contextlib.contextmanager
def _tensorboard(training: Training) -> Iterator[Log]:
    from tensorboardX import SummaryWriter

    directory = training.directory / training.place
    # Its files are named by the second: one that goes on within it would write over the one before.
    suffix = f".{time.time_ns()}"
    with SummaryWriter(str(directory), purge_step=training.done + 1, filename_suffix=suffix) as writer:

        def log(iteration: int, figures: Mapping[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, iteration)
            writer.flush()

        yield log


@contextlib.contextmanager
def _wandb(training: Training) -> Iterator[Log]:
    wandb: Any = importlib.import_module("wandb")

    training.directory.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxlb"),
            group=training.group,
            name=f"{training.group}, {training.title}",
            id=training.id,
            resume="allow",
            dir=training.directory,
            config=dict(training.settings),
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
    except wandb.Error as error:
        raise ValueError(f"--log wandb: {error}") from None
    # Of its own steps, none may be logged twice, as the first after a stop may be.
    run.define_metric("*", step_metric="iteration")
    code = 1
    try:
        yield lambda iteration, figures: run.log({"iteration": iteration, **figures})
        code = 0
    finally:
        run.finish(exit_code=code)


@contextlib.contextmanager
def _mlflow(training: Training) -> Iterator[Log]:
    mlflow: Any = importlib.import_module("mlflow")
    entities: Any = importlib.import_module("mlflow.entities")

    training.directory.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{(training.directory / 'mlflow.db').absolute()}"
    client = mlflow.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", store))
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxlb")
    found = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if found is None else found.experiment_id
    begun = client.search_runs([experiment], filter_string=f"tags.jaxlb_id = '{training.id}'")
    if begun:
        run = begun[0].info.run_id
        client.update_run(run, status="RUNNING")
    else:
        title = f"{training.group}, {training.title}"
        run = client.create_run(experiment, run_name=title, tags={"jaxlb_id": training.id}).info.run_id
        settings = [entities.Param(name, json.dumps(value)) for name, value in training.settings.items()]
        client.log_batch(run, params=settings)

    def log(iteration: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(
            run, metrics=[entities.Metric(*figure, now, iteration) for figure in figures.items()]
        )

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)


LOGGERS = {
    "tensorboard": Logger("tensorboardX", _tensorboard),
    "wandb": Logger("wandb", _wandb),
    "mlflow": Logger("mlflow", _mlflow),
}


def check(names: Sequence[str]) -> None:
    """Raise ValueError unless all are known and installed."""
    for name in names:
        checks.known("logger", name, LOGGERS)
        package = LOGGERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"--log {name} needs {package}: pip install 'jaxlb[{name}]'")


@contextlib.contextmanager
def opened(
    names: Sequence[str], run: runs.Run, identity: str, done: int
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Open the loggers for all trainings of a run; yield a function that takes rows of `metrics.jsonl`."""
    training, directory = run.training, run.directory
    with contextlib.ExitStack() as stack:
        logs: dict[tuple[str, int], list[Log]] = {
            (member.setting, member.seed): [
                stack.enter_context(
                    LOGGERS[name].open(
                        Training(
                            directory=directory / runs.LOGS / name,
                            group=directory.resolve().name,
                            title=member.title,
                            place=member.place,
                            id=f"{identity}-{member.place.replace('/', '-').removeprefix('seed-')}",
                            settings=training.of(member).settings,
                            done=done,
                        )
                    )
                )
                for name in names
            ]
            for member in training.members()
        }

        def log(rows: Sequence[Mapping[str, Any]]) -> None:
            for row in rows:
                values = {
                    name: value
                    for name, value in row.items()
                    if value is not None and name not in ("setting", "seed", "iteration")
                }
                for one in logs[runs.member_of(row)]:
                    one(row["iteration"], values)

        yield log
