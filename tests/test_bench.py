"""What is measured, and how it is judged; no test looks at how fast anything is."""

import json
from pathlib import Path

import pytest

import jaxlb
from jaxlb import bench
from jaxlb.bench import Row, Settings, programs
from jaxlb.cli.bench import Bench


def test_programs_take_turns():
    order = []

    def program(name, rate):
        def run():
            order.append(name)
            return rate

        return run

    assert bench.alternate([program("a", 1.0), program("b", 2.0)], 3) == [[1.0] * 3, [2.0] * 3]
    assert order == ["a", "b"] * 3


def test_the_fastest_number_of_lanes_is_taken():
    rates = {1: 5.0, 2: 9.0, 4: 7.0}
    lanes, program = bench.fastest(lambda lanes: lambda: rates[lanes], rates)
    assert (lanes, program()) == (2, 9.0)


def test_a_quotient_is_that_of_medians_with_the_range_of_the_rounds():
    ours, theirs = iter([10.0, 30.0, 20.0]), iter([5.0, 5.0, 20.0])
    row = bench.quotient("q", lambda: next(ours), lambda: next(theirs), 3, 1.0, 2.0, "")
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


def test_our_programs_and_theirs_do_the_same_number_of_steps():
    env, params = bench.system(4)
    assert float(params.speed.sum()) == 5.0
    rule = bench.observing_lwr()
    assert bench.rolling(env, params, rule, (), 4, 2)() > 0
    assert programs.stepping(env, params, 4, 2)() > 0
    assert bench.products((20, 8, 4), 4, 2)() > 0
    assert bench.simpy_program(4, 100)() > 0


def test_lwr_that_observes_chooses_as_lwr(key):
    env, params = bench.system(4)
    plain, observing = (
        jaxlb.rollout(env, params, rule, (), key, num_lanes=8, num_tasks=200)
        for rule in (jaxlb.scheduler("lwr"), bench.observing_lwr())
    )
    assert (plain.oracle_agreement == observing.oracle_agreement).all()


def test_a_peer_that_is_not_here_is_skipped_with_a_reason(tmp_path, capsys):
    settings = Settings(tmp_path, rounds=1, tasks=1, lanes=(2,), threads=1)
    (row,), _ = bench.measure(settings, ("soa",))
    assert row.value is None
    assert "dispatch_soa.c is not here" in row.detail
    with pytest.raises(ValueError, match="nothing like it"):
        bench.measure(settings, ("nothing like it",))
    Bench(reference=tmp_path, only=("soa", "memory"), json=True, out=tmp_path / "out").run()
    assert (tmp_path / "out" / "bench.json").exists()
    printed = json.loads(capsys.readouterr().out)
    skipped, memory = printed["rows"]
    assert skipped["value"] is None
    assert memory["value"] <= 384
    assert printed["machine"]["jaxlb"] == jaxlb.__version__


def test_a_sweep_has_a_rate_for_every_value(monkeypatch):
    seen = []

    def rolling(env, params, rule, variables, lanes, steps):
        seen.append((env.num_processors, lanes, steps))
        return lambda: float(lanes * env.num_processors)

    monkeypatch.setattr(bench, "rolling", rolling)
    settings = Settings(Path(), rounds=1, tasks=2**20, lanes=(2,), threads=1)
    lanes = bench.sweep(settings, "lanes")
    assert (lanes.values[0], lanes.values[-1]) == (1, 65_536)
    assert lanes.rates == {
        name: [4.0 * value for value in lanes.values] for name in ("random", "LWR, observing", "DQN, 64-64")
    }
    processors = bench.sweep(settings, "processors")
    assert processors.values == [1, 4, 16, 64, 256, 1024]
    assert processors.rates["random"] == [256.0 * value for value in processors.values]
    bench.sweep(settings, "tasks")
    assert seen[-1] == (4, 256, 65_536)
