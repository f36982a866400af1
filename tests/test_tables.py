"""What a comparison says: rows, text, LaTeX, JSON."""

import io
import json

import numpy as np
import pandas as pd
import pytest

import jaxlb
from jaxlb import metrics, stationarity
from jaxlb.cli.compare import print_table
from tests import small


def test_json_has_the_promised_fields_and_no_nan(key):
    table = small.compared(key, num_lanes=1, warmup=0)
    loaded = json.loads(table.to_json())
    assert loaded["scenario"] == "seed" and loaded["num_lanes"] == 1 and loaded["num_tasks"] == 150
    wanted = (
        "name mean_completion mean_completion_ci p50_completion p95_completion p99_completion mean_slowdown "
        "sla_violation_rate sla_violation_rate_ci oracle_agreement mean_reward load_imbalance queue_overflows"
    )
    for row in loaded["schedulers"]:
        assert set(wanted.split()) <= set(row)
        assert row["mean_completion_ci"] is None


def test_a_table_as_text_and_as_a_data_frame(key):
    env, params = jaxlb.make("heavy-tail")
    table = jaxlb.compare(
        env, params, {"lwr": "lwr", "rr": "rr"}, key, num_lanes=8, num_tasks=400, warmup=400
    )
    frame = table.to_dataframe()
    assert list(frame.index) == ["lwr", "rr"]
    read = pd.read_csv(io.StringIO(table.to_csv()), index_col="name")
    assert list(read.columns) == list(frame.columns)
    for row in table.schedulers:
        assert frame.loc[row.name, "mean_completion"] == read.loc[row.name, "mean_completion"]
        assert frame.loc[row.name, "mean_completion"] == row.mean_completion
        assert (
            frame.loc[row.name, "sla_violation_rate_by_priority_0"] == row.sla_violation_rate_by_priority[0]
        )
        if row.stationary:
            low, high = row.mean_completion_ci
            assert tuple(frame.loc[row.name, ["mean_completion_ci_low", "mean_completion_ci_high"]]) == (
                low,
                high,
            )
        else:
            assert frame.loc[row.name, ["mean_completion_ci_low", "mean_completion_ci_high"]].isna().all()
    with pytest.raises(ValueError, match="unknown figure 'mean_completon'; did you mean mean_completion"):
        table.plot("mean_completon")
    with pytest.raises(AttributeError, match="Row has no 'mean_wait'; figures are mean_completion"):
        table.row("lwr").mean_wait  # noqa: B018


def test_a_figure_is_added_in_one_place(key, monkeypatch, capsys):
    added = metrics.Figure("time before service starts", "time", lambda of: of.outcome.wait, heading="wait")
    monkeypatch.setitem(metrics.FIGURES, "mean_wait", added)
    env, params = jaxlb.make("heavy-tail")
    table = jaxlb.compare(env, params, {"lwr": "lwr"}, key, num_lanes=4, num_tasks=50, warmup=0)
    waits = np.asarray(jaxlb.rollout(env, params, "lwr", key, 4, 50).mean_wait, np.float64)
    assert table.row("lwr").mean_wait == waits.mean()
    assert json.loads(table.to_json())["schedulers"][0]["mean_wait"] == waits.mean()
    assert "mean_wait_ci_high" in table.to_csv()
    print_table(table, {"trace": None, "load": 0.7})
    assert "wait" in capsys.readouterr().out


def test_a_table_prints_as_one(key):
    table = small.compared(key, schedulers=("rr", "lwr"), warmup=0)
    title, head, *rows = str(table).splitlines()
    assert title == "seed: 40 lanes x 150 tasks after 0 of warm-up"
    assert head.split()[:3] == ["scheduler", "completion", "p50"] and "by priority %" in head
    assert rows[0].startswith("rr (not stationary)") and rows[1].startswith("lwr")
    assert f"{100 * table.row('lwr').sla_violation_rate_by_priority[0]:.3g} / " in rows[1]
    assert rows[2] == f"rr is not stationary: {table.row('rr').hint}."
    one = jaxlb.compare(*jaxlb.make("stable"), ["lwr"], key, num_lanes=4, num_tasks=20)
    assert one.warmup == stationarity.sensible_warmup(*jaxlb.make("stable"), 20)
    assert "priority" not in str(one)


def test_schedulers_are_named(key):
    env, params = jaxlb.make("stable")
    for bad in ({}, [], "lwr", 5):
        with pytest.raises(ValueError, match=r"schedulers = .*: must name at least one, as"):
            jaxlb.compare(env, params, bad, key, num_lanes=2, num_tasks=2)
    for bad in (["lwr", "lwr"], [jaxlb.scheduler("lwr"), "lwr"]):
        with pytest.raises(ValueError, match="must differ, or be in a dict"):
            jaxlb.compare(env, params, bad, key, num_lanes=2, num_tasks=2)


def test_a_latex_table_has_the_figures_of_the_table(key):
    env, params = jaxlb.make("stable")
    table = jaxlb.compare(env, params, ["lwr", "greedy"], key, num_lanes=64, num_tasks=400, warmup=400)
    lines = table.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}"
    assert lines[-1] == r"\end{tabular}"
    assert lines[2] == r"scheduler & completion & SLA violations \% \\"
    row = table.row("greedy")
    name, completion, _ = lines[5].removesuffix(r" \\").split(" & ")
    assert name == "greedy"
    assert row.stationary
    value, half = completion.split(r" \textpm{}")
    assert float(value) == pytest.approx(row.mean_completion, abs=5e-4)
    low, high = row.mean_completion_ci
    assert float(half) == pytest.approx(0.5 * (high - low), abs=5e-4)
    with pytest.raises(ValueError, match="figure"):
        table.to_latex(["speed"])
