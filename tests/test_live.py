"""What is exported decides as the scheduler does in the simulator: NumPy, C, and what is refused."""

import functools
import shutil
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
from jaxlb.loop import streams
from jaxlb.params import canonical
from jaxlb.replaying import watch
from jaxlb.types import Task

SPEED = (1.0, 2.0, 0.5, 1.1, 3.0, 0.9, 1.2, 1.5)
NOT_LIVE = ("optimal", "oracle", "hedge", "deadline-admission")
"""Of two processors, of the truth, with a system inside, and what refuses."""


@functools.cache
def recorded(name, number, **settings):
    """What a scheduler decides in the simulator, and what it sees and hears."""
    rule = jaxlb.scheduler(name)
    rng = np.random.default_rng(0)
    gap = rng.exponential(0.12, number)
    tasks = Task(
        gap=jnp.asarray(gap, jnp.float32).at[0].set(0.0),
        size=jnp.asarray(0.6 * rng.pareto(1.6, number) + 0.1, jnp.float32),
        priority=jnp.zeros(number, jnp.int32),
        deadline=jnp.asarray(rng.exponential(4.0, number), jnp.float32),
    )
    env, params = jaxlb.make(speed=SPEED, load=0.7, answers=rule.departed is not None, **settings)
    outcome, seen = watch(env, canonical(params), rule, tasks, jax.random.key(0), _what_is_seen)
    return env, params, *jax.tree.map(np.asarray, (tasks, outcome.action, seen))


def _what_is_seen(scheduler, memory, observation):
    o = observation
    return o.queue_length, o.load, o.age, o.deadline, o.answers


def events(tasks, seen):
    """Yield, in their order, departures and decisions, as a live system has them."""
    length, load, age, deadline, answers = seen
    now = np.cumsum(tasks.gap, dtype=np.float64)
    for index in range(len(now)):
        if answers is not None:
            gone = np.flatnonzero(answers.known[index])
            gone = gone[np.argsort(-answers.ago[index][gone], kind="stable")]
            processors = answers.processor[index][gone]
            for place, one in enumerate(gone):
                processor = int(processors[place])
                behind = answers.left_behind[index][processor] + (processors[place + 1 :] == processor).sum()
                yield (
                    "departed",
                    {
                        "processor": processor,
                        "latency": float(answers.latency[index][one]),
                        "service": float(answers.service[index][one]),
                        "queue_length": int(behind),
                        "time": now[index] - float(answers.ago[index][one]),
                    },
                )
        yield (
            "decide",
            {
                "size": float(tasks.size[index]),
                "deadline": float(deadline[index]),
                "queue_length": length[index],
                "load": load[index],
                "present": length[index],
                "age": float(age[index]),
                "time": now[index],
            },
        )


def key_of_acts(key):
    """The words of the key from which a rollout draws for its scheduler."""
    return np.asarray(jax.random.key_data(streams(key).act))


def same_in_numpy(name, number, first=None, **settings):
    """Which decisions are the same, of all or of the first ones."""
    env, params, tasks, actions, seen = recorded(name, number, **settings)
    high, low = (int(word) for word in key_of_acts(jax.random.key(0)))
    decider = jaxlb.decider(name, env=env, params=params, seed=(high << 32) + low)
    found = []
    for kind, figures in events(tasks, seen):
        if len(found) == first:
            break
        if kind == "decide":
            found.append(decider.decide(**figures))
        else:
            decider.departed(figures.pop("processor"), **figures)
    return np.asarray(found) == actions[:first]


@pytest.mark.parametrize(
    "name", ["lwr", "universal", "card(flexible=true)", "drift-aware", "peak-ewma", "prequal"]
)
def test_numpy_decides_as_jax_does(name):
    assert same_in_numpy(name, 600).all()


def test_old_figures_and_hidden_ones_are_treated_as_in_the_simulator():
    for settings in ({"measure_interval": 2.0}, {"size_visible": False}, {"wait_visible": False}):
        assert same_in_numpy("universal", 400, **settings).all(), settings
    assert same_in_numpy("drift-aware", 400, measure_interval=2.0).all()


def enough(name):
    """How many decisions of each rule are compared."""
    return 100_000 if name == "universal" else 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(jaxlb.schedulers()) - set(NOT_LIVE)))
def test_every_rule_decides_in_numpy_as_in_jax(name):
    same = same_in_numpy(name, enough(name), None if name == "universal" else 3000)
    # Two turns are swapped where credits are equal but for rounding.
    assert (~same).sum() <= (2 if name == "client-wrr" else 0)


MAIN = r"""
#include "%(name)s.h"
#include <stdio.h>
int main(void) {
  static %(name)s_memory memory;
  %(name)s_start(&memory, %(seed)dull);
  double row[11 + 4 * %(name)s_processors];
  while (fread(row, sizeof row, 1, stdin)) {
    if (row[0] == 0) {
      %(name)s_departed(&memory, (int)row[1], (float)row[2], (float)row[3], 0, (int)row[4], row[5]);
      continue;
    }
    %(name)s_task task = {0};
    task.time = row[5]; task.size = (float)row[6]; task.deadline = (float)row[7]; task.age = (float)row[8];
    task.priority = (int)row[9];
    for (int i = 0; i < %(name)s_processors; i++) {
      task.queue_length[i] = task.present[i] = (int)row[11 + i];
      task.load[i] = (float)row[11 + %(name)s_processors + i];
      task.up[i] = row[11 + 2 * %(name)s_processors + i] != 0;
    }
    printf("%%d\n", %(name)s_decide(&memory, &task));
  }
  return 0;
}
"""


def rows_of(events_, processors):
    """The same as numbers, for a C program to read."""
    rows = np.zeros((len(events_), 11 + 4 * processors))
    for row, (kind, f) in zip(rows, events_, strict=True):
        if kind == "departed":
            row[1:6] = f["processor"], f["latency"], f["service"], f["queue_length"], f["time"]
        else:
            row[0] = 1
            row[5:10] = f["time"], f["size"], f["deadline"], f["age"], f.get("priority", 0)
            row[11 : 11 + processors] = f["queue_length"]
            row[11 + processors : 11 + 2 * processors] = f["load"]
            row[11 + 2 * processors : 11 + 3 * processors] = f.get("up", 1.0)
    return rows


def compiled(folder, name, header, seed=0, flags=("-O2",)):
    (folder / f"{name}.h").write_text(header)
    (folder / "main.c").write_text(MAIN % {"name": name, "seed": seed})
    warn = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    program = folder / "main"
    command = ["gcc", *warn, *flags, "-o", str(program), str(folder / "main.c"), "-lm"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return program


def same_in_c(name, number, folder, **settings):
    env, params, tasks, actions, seen = recorded(name, number, **settings)
    high, low = (int(word) for word in key_of_acts(jax.random.key(0)))
    found = exporting.exported(name, env, params)
    program = compiled(folder, "rule", exporting.as_header(found, "rule"), (high << 32) + low)
    rows = rows_of(list(events(tasks, seen)), len(SPEED))
    ran = subprocess.run([str(program)], input=rows.tobytes(), capture_output=True, check=True)
    return np.array(ran.stdout.split(), int) == actions


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@needs_gcc
@pytest.mark.parametrize("name", ["universal", "prequal", "lwr"])
def test_c_decides_as_jax_does(name, tmp_path):
    assert same_in_c(name, 1000, tmp_path).all()


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(jaxlb.schedulers()) - set(NOT_LIVE)))
def test_every_rule_decides_in_c_as_in_jax(name, tmp_path):
    assert same_in_c(name, enough(name), tmp_path).all()


@pytest.mark.slow
@needs_gcc
def test_c_treats_old_and_hidden_figures_as_the_simulator_does(tmp_path):
    for settings in ({"measure_interval": 2.0}, {"size_visible": False}, {"wait_visible": False}):
        assert same_in_c("universal", 400, tmp_path, **settings).all(), settings


@needs_gcc
def test_c_decides_nothing_on_figures_that_cannot_be(tmp_path):
    env, params = jaxlb.make(speed=[1.0, 2.0], load=0.5)
    header = exporting.as_header(exporting.exported("greedy", env, params), "rule")
    program = compiled(tmp_path, "rule", header)
    good = {"time": 1.0, "size": 1.0, "deadline": 2.0, "age": 0.0, "queue_length": [0, 0], "load": [3.0, 0.0]}
    nan = float("nan")
    changes = [{}, {"size": nan}, {"deadline": -1.0}, {"load": [nan, 1.0]}, {"load": [-1.0, 0.0]}]
    changes += [{"time": 0.5}, {"time": nan}, {"size": float("inf")}, {"up": [0.0, 0.0]}, {"priority": 1}]
    changes += [{"up": [1.0, 0.0]}]
    rows = rows_of([("decide", good | change) for change in changes], 2)
    ran = subprocess.run([str(program)], input=rows.tobytes(), capture_output=True, check=True)
    # The last one is down for the processor that has nothing to do.
    assert ran.stdout.split() == [b"1", *[b"-1"] * 9, b"0"]


DOWN: dict[str, Any] = {
    "size": 1.0,
    "deadline": 5.0,
    "load": [3.0, 0.0, 3.0, 0.0],
    "queue_length": [3, 0, 3, 0],
}
DOWN |= {"present": [3, 0, 3, 0], "up": [True, False, True, False]}


@pytest.mark.parametrize("name", ["lwr", "universal", "rr", "prequal", "c3", "corrected"])
def test_no_processor_that_is_down_is_chosen(name):
    decider = jaxlb.decider(name, [1.0, 2.0, 1.0, 4.0])
    for now in range(30):
        chosen = decider.decide(**DOWN, time=float(now))
        assert chosen in (0, 2)
        decider.departed(chosen, latency=0.5, time=now + 0.5)


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(jaxlb.schedulers()) - set(NOT_LIVE)))
def test_no_rule_in_numpy_or_c_chooses_a_processor_that_is_down(name, tmp_path):
    env, params = jaxlb.make(speed=[1.0, 2.0, 1.0, 4.0], load=0.7)
    decider = jaxlb.decider(name, env=env, params=params)
    assert {decider.decide(**DOWN, time=float(now)) for now in range(30)} <= {0, 2}
    header = exporting.as_header(exporting.exported(name, env, params), "rule")
    rows = rows_of([("decide", DOWN | {"time": float(now), "age": 0.0}) for now in range(30)], 4)
    program = compiled(tmp_path, "rule", header)
    ran = subprocess.run([str(program)], input=rows.tobytes(), capture_output=True, check=True)
    assert set(ran.stdout.split()) <= {b"0", b"2"} and len(ran.stdout.split()) == 30


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
