"""What is exported decides as the scheduler does in the simulator: NumPy, C, and what is refused."""

import functools
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.live import exporting
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


@pytest.mark.parametrize("name", ["lwr", "universal", "card(flexible=true)", "drift-aware", "least-request"])
def test_numpy_decides_as_jax_does(name):
    assert same_in_numpy(name, 600).all()


@pytest.mark.slow
def test_old_figures_and_hidden_ones_are_treated_as_in_the_simulator():
    for settings in ({"measure_interval": 2.0}, {"size_visible": False}, {"wait_visible": False}):
        assert same_in_numpy("universal", 400, **settings).all(), settings
    assert same_in_numpy("drift-aware", 400, measure_interval=2.0).all()


def enough(name):
    """How many decisions of each rule are recorded: C is compared on all, NumPy on the first."""
    return 100_000 if name == "universal" else 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(jaxlb.schedulers()) - set(NOT_LIVE)))
def test_every_rule_decides_in_numpy_as_in_jax(name):
    same = same_in_numpy(name, enough(name), 20_000 if name == "universal" else 3000)
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
