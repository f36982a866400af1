"""`jaxlb demo` tunes, compares and writes its page."""

import json

import pytest

from jaxlb.cli import demo
from jaxlb.learn.universal import TUNING
from jaxlb.report import html


@pytest.mark.slow
def test_the_demo_tunes_compares_and_tells(tmp_path, monkeypatch, capsys):
    for name, value in {"num_iterations": 4, "num_evaluations": 2, "num_lanes": 16, "num_tasks": 48}.items():
        monkeypatch.setitem(TUNING, name, value)
    monkeypatch.setattr(demo, "BEST", {"heavy-tail": "sed", "stale": "drift-aware"})
    monkeypatch.setattr(demo, "LANES", 16)
    monkeypatch.setattr(demo, "TASKS", 200)
    demo.Demo(seed=3, out=tmp_path / "my demo").run()
    out = capsys.readouterr()
    told = json.loads((tmp_path / "my demo" / "demo.json").read_text())
    (training,) = told["trainings"]
    assert (training["scenario"], training["name"], training["iterations"]) == ("heavy-tail", "tuned", [2, 4])
    for part in (training, *told["scenarios"]):
        assert f"$ {part['command'].split(' --out')[0]}" in out.err
    names = {one["name"]: [row["name"] for row in one["schedulers"]] for one in told["scenarios"]}
    assert names == {
        "heavy-tail": ["lwr", "greedy", "sed", *demo.UNIVERSAL, "tuned"],
        "stale": ["lwr", "greedy", "drift-aware", *demo.UNIVERSAL],
    }
    for name in names:
        assert f"{name}, load" in out.out
    page = (tmp_path / "my demo" / "report.html").read_text()
    assert html.page(told) == page
