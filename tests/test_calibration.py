"""Servers fitted to measurements: those of a known server, and what cannot be told."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import calibration
from jaxlb.cli import run
from jaxlb.types import Task

SPEED, OVERHEAD, WEIGHT, SLOTS = 40.0, 0.15, 0.02, 4


def measured(number, noise=0.05):
    """Return what a server of these parameters does, with a little noise."""
    rng = np.random.default_rng(0)
    input, output = (rng.lognormal(mean, 0.9, number).round() + 1.0 for mean in (6.0, 4.0))
    size = output + WEIGHT * input
    whole = SPEED * SLOTS / (1.0 + OVERHEAD * (SLOTS - 1.0))
    gap = rng.exponential(size.mean() / (0.8 * whole), number)
    env, params = jaxlb.make(
        speed=[SPEED], load=1.0, discipline="limited-ps", slots=SLOTS, capacity=f"batching({OVERHEAD})",
        queue_capacity=128,
    )  # fmt: skip
    tasks = Task(jnp.float32(gap), jnp.float32(size), jnp.zeros(number, jnp.int32), jnp.full(number, jnp.inf))
    outcome = jaxlb.replay(env, params, "rr", tasks, jax.random.key(0))
    latency = np.asarray(outcome.completion, float) * np.exp(noise * rng.normal(size=number))
    return dict(zip(calibration.COLUMNS, (np.cumsum(gap), input, output, latency), strict=True))


@pytest.mark.slow
def test_the_parameters_of_a_known_server_are_found():
    found = calibration.calibrate(*measured(500).values(), slots=(2, 4, 8))
    assert found.slots == SLOTS and not found.remarks
    np.testing.assert_allclose(found.speed, SPEED, rtol=0.03)
    np.testing.assert_allclose(found.overhead, OVERHEAD, rtol=0.1)
    np.testing.assert_allclose(found.prefill_weight, WEIGHT, rtol=0.15)
    assert found.error < 0.05  # of the noise, 0.04
    env, _ = jaxlb.make(speed=[found.speed] * 3, load=1.5, **found.settings())
    assert env.station.discipline.slots == SLOTS
    assert found.plot().axes


@pytest.mark.slow
def test_the_command_writes_and_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "SLOTS", (4,))
    path = tmp_path / "measured.csv"
    data = measured(120)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([calibration.COLUMNS, *zip(*data.values(), strict=True)])
    assert run(["calibrate", str(path), "--out", str(tmp_path / "fit"), "--format", "svg"]) == 0
    shown = capsys.readouterr().out
    assert "output tokens per time of a request that is alone" in shown
    assert (
        "next: jaxlb compare --scenario inference --load 2" in shown
        and "--set slots=4 'capacity=batching(" in shown
    )
    kept = json.loads((tmp_path / "fit" / "calibration.json").read_text())
    assert abs(kept["speed"] / SPEED - 1.0) < 0.1 and (tmp_path / "fit" / "calibration.svg").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": 1e-3}, "overhead: cannot be told, since no two requests were ever served at once"),
        ({"input": 5.0}, "prefill_weight: cannot be told, since input tokens never vary"),
        ({"input": "output"}, "prefill_weight: cannot be told"),
        ({"output": 0.0}, "output = 0: must be above 0"),
        ({"latency": np.nan}, "latency = nan: must be a number"),
        ({"time": "reversed"}, "time: must be in order of arrival"),
        ({"number": 20}, "20 requests: must be at least 50"),
    ],
)
def test_what_measurements_cannot_tell_is_named(changes, message):
    rng = np.random.default_rng(0)
    number = changes.pop("number", 100)
    data = {name: rng.exponential(1.0, number) + 0.1 for name in calibration.COLUMNS}
    data["time"] = np.cumsum(data["time"])
    for name, value in changes.items():
        if value == "output":
            data[name] = 3.0 * data["output"]
        else:
            data[name] = data[name][::-1] if value == "reversed" else np.full(number, value)
    with pytest.raises(ValueError, match=message):
        calibration.calibrate(*data.values())


def test_a_file_without_a_column_is_refused(tmp_path):
    path = tmp_path / "measured.csv"
    path.write_text("time,input,latency\n1,2,3\n")
    with pytest.raises(ValueError, match="has no column output: must have time, input, output, latency"):
        calibration.read_measurements(path)
    path.write_text("time,input,output,latency\n1,2,three,4\n")
    with pytest.raises(ValueError, match=r"measured.csv: could not convert string to float: 'three'"):
        calibration.read_measurements(path)
