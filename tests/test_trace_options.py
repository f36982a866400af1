"""Traces on the command line: options, and that run folders keep them."""

import chex
import numpy as np
import pytest

import jaxlb
from jaxlb import checks, cli, runs
from jaxlb.cli.compare import Evaluate

OPTIONS = (
    "time_column=when",
    'size_column={"end":1,"when":-1}',
    "priority_column=class",
    "start=2024-05-10T01:00:00Z",
)
CLASSES = ("class_probability=[0.5,0.5]", "class_slack=[2,4]")
TINY = (
    "num_iterations=4", "num_evaluations=2", "num_lanes=8", "memory_rows=16", "batch_size=16",
    "evaluation_tasks=20", "widths=[8]",
)  # fmt: skip


@pytest.fixture
def trace(tmp_path):
    """The first task an hour before the others, with a size that would be seen."""
    rows = ["when,end,class", "2024-05-10T00:00:00Z,2024-05-10T00:50:00Z,7"]
    rows += [
        f"2024-05-10T01:00:{second:02}Z,2024-05-10T01:01:{(7 * second) % 60:02}Z,{second % 2}"
        for second in range(60)
    ]
    path = tmp_path / "mine.log"
    path.write_text("\n".join(rows))
    return path


@pytest.mark.slow
def test_a_run_keeps_the_options_of_its_trace(trace, tmp_path, capsys, monkeypatch):
    named = ["--trace", str(trace), "--trace-format", "csv", "--set", *CLASSES]
    given = [*named, "--trace-options", *OPTIONS]
    out = tmp_path / "run"
    assert cli.run(["train", "dqn", "--train", *TINY, "--out", str(out), *given]) == 0, (
        capsys.readouterr().err
    )
    training = runs.find(out).training
    assert training.spec().trace == [str(trace), "csv", checks.settings("", OPTIONS)]
    _, params = training.spec().make()
    assert params.arrival.task_size.shape == (60,)
    direct = jaxlb.read_trace(trace, "csv", **checks.settings("", OPTIONS))
    np.testing.assert_array_equal(params.arrival.task_priority, direct.priority)

    # Its record, with nothing else, is the same command.
    again = cli._parse(["train", "dqn", "--config", str(out / "run.json"), "--out", str(tmp_path / "b")])
    assert again.command.spec() == training.spec()
    # Options that are given once more must be the same.
    assert cli.run(["train", "dqn", "--out", str(out), "--resume", *given]) == 0
    other = [*given[:-1], "start=2024-05-10T01:00:30Z"]
    assert cli.run(["train", "dqn", "--out", str(out), "--resume", *other]) == 2
    assert "but the run was started with" in capsys.readouterr().err

    judged = []
    monkeypatch.setattr(Evaluate, "judge_and_report", lambda self, setup: judged.append(setup))
    assert cli.run(["evaluate", str(out)]) == 0
    assert cli.run(["evaluate", str(out), "--trace-options", "stop=2024-05-10T01:00:30Z"]) == 0
    chex.assert_trees_all_equal(judged[0].params, params)
    assert judged[1].params.arrival.task_size.shape == (30,)
    # Without the options there is no column "time", and with the first task no class for its priority.
    assert cli.run(["compare", *named]) == 2
    assert "no column 'time'; the header has 'when, end, class'" in capsys.readouterr().err
    assert cli.run(["compare", *named, "--trace-options", *OPTIONS[:-1]]) == 2
    assert "task_priority = 7: must be at most 1" in capsys.readouterr().err
