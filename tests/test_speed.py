"""What is measured, and how it is judged; no test looks at how fast anything is."""

import json
from pathlib import Path

import device
import numpy as np
import programs
import pytest
import speed
import speed_rows
import speed_sweeps
import timing
from speed_rows import Row, Settings
from speed_sweeps import Sweep

import jaxlb


def test_programs_take_turns():
    order = []

    def program(name, rate):
        def run():
            order.append(name)
            return rate

        return run

    both = {"a": program("a", 1.0), "b": program("b", 2.0)}
    assert timing.alternate(both, 3) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert order == ["a", "b"] * 3


def test_the_fastest_number_of_lanes_is_taken():
    rates = {1: 5.0, 2: 9.0, 4: 7.0}
    lanes, program = programs.fastest(lambda lanes: lambda: rates[lanes], rates)
    assert (lanes, program()) == (2, 9.0)


def test_a_quotient_is_that_of_medians_with_the_range_of_the_rounds():
    ours, theirs = iter([10.0, 30.0, 20.0]), iter([5.0, 5.0, 20.0])
    row = speed_rows.quotient("q", lambda: next(ours), lambda: next(theirs), 3, 1.0, 2.0, "")
    assert (row.value, row.lowest, row.highest) == (4.0, 1.0, 6.0)


@pytest.mark.parametrize(
    ("better", "value", "holds"),
    [
        ("more", 1.0, True),
        ("more", 0.9, False),
        ("less", 1.0, True),
        ("less", 1.1, False),
        ("more", None, False),
    ],
)
def test_a_row_holds_if_it_reaches_its_bound(better, value, holds):
    assert Row("row", 1.0, 2.0, better, value).holds == holds


@pytest.mark.slow
def test_our_programs_and_theirs_do_the_same_number_of_steps():
    env, params = programs.system(4)
    assert float(params.speed.sum()) == 5.0
    rule = programs.observing_lwr()
    assert programs.rolling(env, params, rule, 4, 2)() > 0
    assert programs.stepping(env, params, 4, 2)() > 0
    assert programs.products((20, 8, 4), 4, 2)() > 0
    assert programs.simpy_program(4, 100)() > 0


def test_lwr_that_observes_chooses_as_lwr(key):
    env, params = programs.system(4)
    plain, observing = (
        jaxlb.rollout(env, params, rule, key, num_lanes=8, num_tasks=200)
        for rule in (jaxlb.scheduler("lwr"), programs.observing_lwr())
    )
    assert (plain.oracle_agreement == observing.oracle_agreement).all()


@pytest.mark.slow
def test_a_peer_that_is_not_here_is_skipped_with_a_reason(tmp_path, capsys):
    settings = Settings(tmp_path, rounds=1, tasks=1, lanes=(2,), threads=1)
    (row,), _ = speed.measure(settings, ("soa",))
    assert row.value is None
    assert "dispatch_soa.c is not here" in row.detail
    with pytest.raises(ValueError, match="nothing like it"):
        speed.measure(settings, ("nothing like it",))
    speed.main(reference=tmp_path, only=("soa", "memory"), json=True, out=tmp_path / "out")
    assert (tmp_path / "out" / "speed.json").exists()
    printed = json.loads(capsys.readouterr().out)
    skipped, memory = printed["rows"]
    assert skipped["value"] is None
    assert memory["value"] <= 384
    assert printed["machine"]["jaxlb"] == jaxlb.__version__


@pytest.mark.slow
def test_a_sweep_has_a_rate_for_every_value(monkeypatch):
    seen = []

    def rolling(env, params, rule, lanes, steps):
        seen.append((env.num_processors, lanes, steps))
        return lambda: float(lanes * env.num_processors)

    monkeypatch.setattr(speed_sweeps, "rolling", rolling)
    settings = Settings(Path(), rounds=1, tasks=2**20, lanes=(2,), threads=1)
    lanes = speed_sweeps.sweep(settings, "lanes")
    assert (lanes.values[0], lanes.values[-1]) == (1, 65_536)
    assert lanes.rates == {
        name: [4.0 * value for value in lanes.values] for name in ("random", "LWR, observing", "DQN, 64-64")
    }
    processors = speed_sweeps.sweep(settings, "processors")
    assert processors.values == [1, 4, 16, 64, 256, 1024]
    assert processors.rates["random"] == [256.0 * value for value in processors.values]
    speed_sweeps.sweep(settings, "tasks")
    assert seen[-1] == (4, 256, 65_536)


def test_throughput_is_drawn_over_what_changes_and_as_cost_of_each_processor():
    rates = {"random": [4e6, 2e6], "LWR": [2e6, 1e6]}
    lanes, processors = (
        Sweep("lanes", [1, 4], rates, "P = 4"),
        Sweep("processors", [2, 8], rates, "256 lanes"),
    )
    panels = speed_sweeps.throughput([lanes, processors]).axes
    assert [panel.get_xlabel() for panel in panels] == ["lanes", "processors", "processors"]
    for panel, expected in zip(panels, ([2, 1], [2, 1], [250, 125]), strict=True):
        line = {line.get_label(): line for line in panel.get_lines()}["LWR"]
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)


def test_the_page_of_devices_is_made_of_what_was_measured(tmp_path):
    results = Path(__file__).parents[1] / "docs" / "results"
    for path in results.glob("device-*.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    device.page(tmp_path)
    assert (tmp_path / "device.md").read_text() == (results / "device.md").read_text()


@pytest.mark.slow
def test_a_program_apart_answers_with_a_rate():
    with programs.apart("ours", 64, "") as make_program:
        assert make_program(4)() > 0
