"""Deciders and exports: what they need, what they refuse, and what they remember."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.cli import run
from jaxlb.live import exporting, runtime
from jaxlb.params import canonical
from jaxlb.types import Task

SPEED = (1.0, 2.0, 0.5, 1.1, 3.0, 0.9, 1.2, 1.5)


def test_words_are_those_of_jax():
    key = jax.random.key(5)
    words = np.asarray(jax.random.key_data(key))
    assert np.array_equal(runtime.bits(words, 1, 7), jax.random.bits(key, (7,)))
    assert np.array_equal(
        runtime.split(words, 3).reshape(3, 2), jax.random.key_data(jax.random.split(key, 3))
    )
    assert np.array_equal(runtime.fold_in(words, 9), jax.random.key_data(jax.random.fold_in(key, 9)))


def test_what_is_exported_needs_numpy_only(tmp_path):
    assert (
        run(
            [
                "export",
                "universal",
                "--processors",
                "1,2,4",
                "--out",
                str(tmp_path),
                "--to",
                "npz,c,stablehlo",
            ]
        )
        == 0
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"universal.npz", "jaxlb_live.py", "universal.h", "universal.mlir", "universal.json"}
    program = """
import sys
from jaxlb_live import load
decider = load("universal.npz")
print(decider.decide(size=2.0, deadline=5.0, load=[0.0, 3.5, 1.0], time=0.0))
assert "jax" not in sys.modules and "jaxlb" not in sys.modules
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    own = jaxlb.decider("universal", [1.0, 2.0, 4.0])
    assert int(ran.stdout) == own.decide(size=2.0, deadline=5.0, load=[0.0, 3.5, 1.0], time=0.0)
    assert "module @" in (tmp_path / "universal.mlir").read_text()


def test_stablehlo_is_of_the_same_decision():
    env, params = jaxlb.make(speed=SPEED, load=0.7)
    found = exporting.exported("universal", env, params)
    leaves = [
        jnp.asarray(leaf).reshape(of.shape) for leaf, of in zip(found.memory, found.arguments, strict=False)
    ]
    given = {"gap": 0.0, "size": 1.5, "deadline": 3.0, "load": np.arange(8.0), "speed": np.asarray(SPEED)}
    given |= {"up": np.ones(8, bool)}
    given |= {"wait": given["load"] / given["speed"], "age": 0.0, "assigned": np.zeros(8), "priority": 0}
    inputs = [
        jnp.asarray(given[name], of.dtype)
        for name, of in zip(found.about["inputs"], found.arguments[len(leaves) :], strict=True)
    ]
    action, *after = found.function(*leaves, *inputs)
    own = jaxlb.decider("universal", env=env, params=params)
    assert own.decide(size=1.5, deadline=3.0, load=np.arange(8.0), time=0.0) == int(action)
    for ours, theirs in zip(own._state, after, strict=True):
        np.testing.assert_allclose(np.reshape(ours, -1), np.reshape(theirs, -1), rtol=1e-5, atol=1e-6)


def test_a_decider_forgets_and_draws_by_its_seed():
    first, other = (jaxlb.decider("random", [1.0] * 5, seed=seed) for seed in (1, 2))
    drawn = [first.decide(time=float(now)) for now in range(40)]
    assert drawn != [other.decide(time=float(now)) for now in range(40)] and len(set(drawn)) == 5
    first.reset()
    assert drawn == [first.decide(time=float(now)) for now in range(40)]


def test_figures_that_are_missing_or_cannot_be_are_refused():
    decider = jaxlb.decider("universal", [1.0, 2.0])
    assert decider.needs == ("deadline", "load", "size")
    good: dict[str, Any] = {"size": 1.0, "deadline": 2.0, "load": [0.0, 1.0], "time": 5.0}
    decider.decide(**good)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"load": None}, "load: must be given, since 'universal' reads it"),
        ({"size": float("nan")}, "size = nan: must be above 0"),
        ({"size": 1e39}, r"size = 1e\+39: must be above 0 and finite"),
        ({"size": "two"}, "size = 'two': must be a number"),
        ({"load": {}}, "load = {}: must be a number for each"),
        ({"time": float("inf")}, "time = inf: must be finite"),
        ({"size": 0.0}, "size = 0.0: must be above 0"),
        ({"load": [1.0]}, r"load has shape \(1,\): must be \(2,\)"),
        ({"load": [1.0, -2.0]}, r"load = \[1.0, -2.0\]: must be at least 0 and finite"),
        ({"time": 4.0}, "time = 4.0: must not go back"),
        ({"age": -1.0}, "age = -1.0"),
        ({"priority": 3}, "priority = 3"),
        ({"up": [False, False]}, "up: must be true of one"),
        ({"up": [True]}, "up has shape"),
        ({"queue_length": [0.0, float("inf")]}, "queue_length"),
    ]
    for change, words in bad:
        with pytest.raises(ValueError, match=words):
            decider.decide(**(good | change))
    # What was refused has changed nothing.
    fresh = jaxlb.decider("universal", [1.0, 2.0])
    fresh.decide(**good)
    np.testing.assert_equal(decider._state, fresh._state)
    counting = jaxlb.decider("least-request", [1.0, 2.0])
    for rule in (counting, decider):
        for processor, latency, words in ((2, 1.0, "processor = 2"), (0, -1.0, "latency")):
            with pytest.raises(ValueError, match=words):
                rule.departed(processor, latency=latency)
        with pytest.raises(ValueError, match="time = nan: must be finite"):
            rule.departed(0, latency=1.0, time=float("nan"))


def test_schedulers_that_cannot_go_live_are_refused(tmp_path, capsys):
    for name, words in (("oracle", "reads the truth"), ("hedge", "cannot be exported, since it does")):
        with pytest.raises(ValueError, match=words):
            jaxlb.decider(name, [1.0, 2.0])
    for processors, words in (
        (None, "must be given"),
        ([1.0], "must be two at least"),
        (4, "must be a list"),
    ):
        with pytest.raises(ValueError, match=f"processors.*: {words}"):
            jaxlb.decider("lwr", processors)
    env, params = jaxlb.make("stable", affinity=[[1.0, 1.0, 0.0, 1.0]], load=0.5)
    with pytest.raises(ValueError, match="affinity must be None"):
        jaxlb.decider("lwr", env=env, params=params)
    with pytest.raises(ValueError, match="must not be given beside env"):
        env, params = jaxlb.make("stable")
        jaxlb.decider("lwr", [1.0], env=env, params=params)
    for options, words in (
        (["lwr"], "--processors or --scenario"),
        (["lwr", "--processors", "1,x"], "must be numbers"),
        (["lwr", "--processors", "1,2", "--to", "onnx"], "unknown --to 'onnx'"),
        (["c3", "--processors", "1,2", "--to", "stablehlo"], "hears of departures"),
        (["lrw", "--processors", "1,2"], "did you mean"),
    ):
        assert run(["export", *options, "--out", str(tmp_path / "none")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_run_goes_live_for_the_processors_it_was_trained_for(tmp_path, capsys):
    folder = str(tmp_path / "dqn")
    train = ["--train", "num_iterations=60", "num_evaluations=2", "network=mlp"]
    assert run(["train", "dqn", "--scenario", "heavy-tail", "--out", folder, *train]) == 0
    env, params = jaxlb.make("heavy-tail")
    params, rule = canonical(params), jaxlb.load(folder)
    one = jnp.float32(1.0)
    task = Task(gap=one, size=one, priority=jnp.int32(0), deadline=one)
    state = env.start(params, task, jax.random.key(0))
    seen = env.observe(state, params, jax.random.key(0))
    memory = rule.start(env, params, ())
    action, _ = rule.act(rule.variables, memory, seen, jax.random.key(0))
    given: dict[str, Any] = {
        name: np.asarray(getattr(seen, name)) for name in ("size", "deadline", "load", "queue_length")
    }
    assert jaxlb.decider(folder).decide(**given) == action
    # The same speeds, given: the rest is still what was trained on.
    again = jaxlb.decider(folder, np.asarray(params.speed).tolist())
    assert again.about == jaxlb.decider(folder).about
    assert run(["export", folder, "--to", "c,npz", "--out", str(tmp_path / "live")]) == 0
    assert {path.name for path in (tmp_path / "live").iterdir()} == {"dqn.h", "dqn.npz", "jaxlb_live.py"}
    capsys.readouterr()
    assert run(["export", folder, "--processors", "1,1,1,1,1", "--out", str(tmp_path / "five")]) == 2
    assert "4" in capsys.readouterr().err and not (tmp_path / "five").exists()
