"""`jaxlb demo` trains, compares and writes its page."""

import json

import pytest

from jaxlb.cli import demo
from jaxlb.report import html


@pytest.mark.slow
def test_the_demo_trains_compares_and_tells(tmp_path, monkeypatch, capsys):
    short = {"num_evaluations": 2, "num_lanes": 20}
    small = {
        "dqn": short | {"num_iterations": 20, "memory_rows": 16, "batch_size": 16},
        "predictor": short | {"num_tasks": 40, "num_iterations": 10},
        "gnn": short | {"num_tasks": 20, "num_iterations": 16},
    }  # fmt: skip
    monkeypatch.setattr(demo, "QUICK", small)
    monkeypatch.setattr(demo, "FEWER", "lwr,oracle")
    demo.Demo(quick=True, seed=3, out=tmp_path / "my demo").run()
    out = capsys.readouterr()
    told = json.loads((tmp_path / "my demo" / "demo.json").read_text())
    trained = {"heavy-tail": "dqn", "stale": "predictor", "seed": "gnn"}
    assert [(one["scenario"], one["name"]) for one in told["trainings"]] == list(trained.items())
    for training, settings in zip(told["trainings"], small.values(), strict=True):
        assert training["iterations"][-1] == settings["num_iterations"]
        assert f"$ {training['command']}\n" in out.err
    for one in told["scenarios"]:
        assert [row["name"] for row in one["schedulers"]] == ["lwr", "oracle", trained[one["name"]]]
        assert f"{one['name']}, load" in out.out
    page = (tmp_path / "my demo" / "report.html").read_text()
    assert html.page(told) == page
