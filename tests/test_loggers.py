"""Loggers, with their real clients if these are here: told what `metrics.jsonl` is told, also over a stop."""

import contextlib
import json
import os

import pytest

from jaxlb import cli, runs
from jaxlb.cli import loggers
from tests import small

TRAIN = ("train", "dqn", "--seed", "3", "--seeds", "2", "--train", *small.DQN)
NOT_FIGURES = {"seed", "iteration", "iterations_per_second"}


def train(out, logger):
    """A training that is stopped after its second judgement was logged, before it was saved; then on."""
    save, saved = runs.Run.save, []

    def stopped(run, *arguments, **parts):
        saved.append(run)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(run, *arguments, **parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "save", stopped)
        assert cli.run([*TRAIN, "--out", str(out), "--log", logger]) == 130
    assert cli.run(["train", "dqn", "--out", str(out), "--resume", "--log", logger]) == 0
    expected = {}
    for row in runs.find(out).logged():
        for name in row.keys() - NOT_FIGURES:
            expected.setdefault((row["seed"], name), []).append((row["iteration"], row[name]))
    assert len(expected) == 2 * len(runs.find(out).logged()[0].keys() - NOT_FIGURES)
    return expected


def once(points):
    """Points of (iteration, value), of which one may be there twice, for it was logged twice."""
    assert len(points) <= 4
    return sorted(set(points))


@pytest.mark.slow
def test_any_logger_is_told_all_of_a_training_and_whether_it_ended(tmp_path, monkeypatch):
    found, told = {}, []

    @contextlib.contextmanager
    def opened(training):
        def log(iteration, figures):
            for name, value in figures.items():
                found.setdefault((int(training.title.rpartition(" ")[2]), name), []).append(
                    (iteration, value)
                )

        ended = "stopped"
        try:
            yield log
            ended = "finished"
        finally:
            told.append(
                (
                    int(training.title.rpartition(" ")[2]),
                    training.id,
                    training.done,
                    training.settings["num_lanes"],
                    ended,
                )
            )

    monkeypatch.setitem(loggers.LOGGERS, "wandb", loggers.Logger("json", opened))
    expected = train(tmp_path / "run", "wandb")
    assert {seed for seed, _ in found} == {3, 4}
    for name, points in expected.items():
        assert once(found[name]) == points
    # Opened twice, with the same identity: a stop makes no second training.
    assert [(seed, done, lanes, ended) for seed, _, done, lanes, ended in sorted(told)] == [
        (seed, done, 8, ended) for seed in (3, 4) for done, ended in ((0, "stopped"), (10, "finished"))
    ]
    assert len({identity for _, identity, *_ in told}) == 2


@pytest.mark.filterwarnings("ignore:.*event_loader|distutils|np.bool8:DeprecationWarning")
@pytest.mark.slow
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    expected = train(tmp_path / "run", "tensorboard")
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for seed in (3, 4):
        for path in (tmp_path / "run" / "logs" / "tensorboard" / f"seed-{seed}").glob("events.*"):
            for record in records(path.read_bytes()):
                event = Event.FromString(record)
                for value in event.summary.value:
                    found.setdefault((seed, value.tag), []).append((event.step, value.simple_value))
    for name, points in expected.items():
        assert once(found[name]) == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


def records(data):
    """Those of a TFRecord file: length, check, content, check."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def blocks(data, size=2**15):
    """Records of a LevelDB log after W&B's seven bytes: check, length, part, content; in blocks."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if size - place % size < 7:
            place += size - place % size
            continue
        length, part = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    expected = train(tmp_path / "run", "wandb")
    from wandb.proto import wandb_internal_pb2

    found, identities = {}, {}
    for path in sorted((tmp_path / "run" / "logs" / "wandb").rglob("*.wandb")):
        seed = None
        for data in blocks(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                seed = int(record.run.display_name.rpartition(" ")[2])
                identities.setdefault(seed, set()).add(record.run.run_id)
                assert record.run.run_group == "run"
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                       for item in record.history.item}  # fmt: skip
                for name, value in row.items():
                    found.setdefault((seed, name), []).append((row["iteration"], value))
    assert [len(identity) for identity in identities.values()] == [1, 1]  # the stop made no second run
    for name, points in expected.items():
        assert once(found[name]) == points


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    expected = train(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'logs' / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "jaxlb"]
    trainings = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert trainings.keys() == {"run, seed 3", "run, seed 4"}
    for seed in (3, 4):
        training = trainings[f"run, seed {seed}"]
        assert training.info.status == "FINISHED"
        assert training.data.params["num_lanes"] == "8"
    for (seed, name), points in expected.items():
        history = client.get_metric_history(trainings[f"run, seed {seed}"].info.run_id, name)
        assert once([(metric.step, metric.value) for metric in history]) == points


def test_a_logger_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.train.loggers.importlib.util, "find_spec", lambda name: None)
    assert cli.run([*TRAIN, "--out", str(tmp_path / "out"), "--log", "wandb"]) == 2
    assert "--log wandb needs wandb: pip install 'jaxlb[wandb]'" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out")
    monkeypatch.undo()
    assert cli.run([*TRAIN, "--out", str(tmp_path / "out"), "--log", "paper"]) == 2
    assert "paper" in capsys.readouterr().err
