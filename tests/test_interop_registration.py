"""Names that users give to their own scenarios, schedulers and workloads."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct

import jaxlb
from jaxlb import cli, rewards, runs
from jaxlb.functions import partial
from jaxlb.learn import networks
from jaxlb.scheduling import stateless
from jaxlb.stations import FCFS
from jaxlb.workload import arrivals, sizes, speeds
from tests import small


def rush_hour(num_processors=6):
    """Equal processors at the busiest hour.

    More of it.
    """
    return jaxlb.EnvParams(
        speed=(1.0,) * num_processors, arrival=arrivals.Bursty(), size=sizes.Exponential(), load=0.9
    )


def favourite(place: int = 0):
    """Always the same processor."""
    return stateless("favourite", partial(constant, place))


def constant(place, observation, key):
    return jnp.full(observation.size.shape, place, jnp.int32)


def rolling():
    """One processor after the other is updated."""
    return speeds.Failing(up_time=90.0, down_time=10.0, drains=True)


class Triangular(struct.PyTreeNode):
    """Density falling linearly to 0 at `high`."""

    high: float = 3.0

    def check(self):
        jaxlb.checks.leaf("high", self.high, above=0)

    def mean(self):
        return jnp.asarray(self.high) / 3.0

    def second_moment(self):
        return jnp.asarray(self.high) ** 2 / 6.0

    def inverse_survival(self, uniform):
        return self.high * (1.0 - jnp.sqrt(uniform))


def test_a_scenario(key):
    jaxlb.register("rush-hour", rush_hour, queue_capacity=64, size_visible=False)
    assert jaxlb.scenarios()["rush-hour"] == "Equal processors at the busiest hour."
    env, params = jaxlb.make("rush-hour", load=0.5)
    assert (env.name, env.num_processors, env.station, env.size_visible) == ("rush-hour", 6, FCFS(64), False)
    assert float(params.load) == 0.5 and float(env.default_params.load) == np.float32(0.9)
    assert jaxlb.make("rush-hour", num_processors=3, size_visible=True)[1].speed.shape == (3,)
    assert env.step(key, env.reset(key, params)[1], 0, params)[0].shape == (28,)


def test_a_scenario_in_gymnasium():
    jaxlb.register("rush-hour", rush_hour)
    assert gymnasium.make("jaxlb/rush-hour-v0", num_processors=3).action_space.n == 3
    assert gymnasium.make_vec("jaxlb/rush-hour-v0", num_envs=2).reset(seed=0)[0].shape == (2, 28)


def test_a_scheduler(key):
    jaxlb.register("favourite", favourite)
    assert jaxlb.schedulers()["favourite"] == "Always the same processor."
    assert jaxlb.scheduler("favourite", place=2) == jaxlb.scheduler("favourite", place=2)
    env, params = jaxlb.make("stable", load=0.2)
    summary = jaxlb.rollout(env, params, jaxlb.scheduler("favourite", place=2), key, 4, 50)
    assert (np.asarray(summary.utilisation)[[0, 1, 3]] == 0).all()
    with pytest.raises(
        ValueError, match="unknown option of scheduler 'favourite' 'plaec'; did you mean place"
    ):
        jaxlb.scheduler("favourite", plaec=2)


def test_a_workload(key):
    class Tides(arrivals.Diurnal):
        """High twice a day."""

    class Silent(arrivals.Renewal):
        pass

    jaxlb.register("tides", Tides)
    jaxlb.register("silent", Silent)
    assert jaxlb.workloads()["arrival"]["silent"].startswith("(squared_cv=")
    jaxlb.register("triangular", Triangular)
    jaxlb.register("rolling", rolling)
    assert jaxlb.workloads()["speeds"]["rolling"] == "One processor after the other is updated."
    assert jaxlb.make("stable", speeds="rolling")[1].speeds == rolling()
    assert jaxlb.workloads()["arrival"]["tides"].startswith("High twice a day. (")
    assert jaxlb.workloads()["size"]["triangular"] == "Density falling linearly to 0 at `high`. (high=3.0)"
    _, params = jaxlb.make("stable", arrival="tides", size="triangular", amplitude=0.2, high=6.0)
    assert isinstance(params.arrival, Tides) and isinstance(params.size, Triangular)
    np.testing.assert_allclose([params.arrival.amplitude, params.size.mean()], [0.2, 2.0], rtol=1e-6)
    tasks = jaxlb.workload.sample(key, params, 2000)
    np.testing.assert_allclose(tasks.size.mean(), 2.0, rtol=0.1)
    assert float(tasks.size.max()) <= 6.0


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in ("arrival", "size") for name in jaxlb.workloads()[part]]
)
def test_every_named_workload_makes_tasks(part, name, key):
    _, params = jaxlb.make("stable", **{part: name})
    tasks = jaxlb.workload.sample(key, params, 10)
    assert bool((tasks.size > 0).all()) and bool((tasks.gap >= 0).all())


class PerProcessor(nn.Module):
    """The same layer for every processor."""

    @nn.compact
    def __call__(self, features):
        return (nn.Dense(1)(features.processor) + nn.Dense(1)(features.task)[..., None, :])[..., 0]


class Tardiness(rewards.Reward):
    """Time after the deadline."""

    def __call__(self, env, params, before, after, outcome, gap):
        return -jnp.log1p(jnp.maximum(outcome.completion - before.task.deadline, 0.0))


@pytest.mark.slow
def test_a_network_and_a_reward_are_known_by_name_to_every_command(tmp_path, capsys):
    jaxlb.register("linear", PerProcessor)  # a Flax module is a network
    jaxlb.register("tardiness", Tardiness)
    run = tmp_path / "run"
    settings = ["--train", *small.DQN[:-1], "network=linear", "reward=tardiness"]
    assert cli.run(["train", "dqn", *settings, "--out", str(run)]) == 0
    # Nobody has to give what has a name.
    assert jaxlb.load(run).name == "dqn"
    assert runs.find(run).training.settings["reward"] == "tardiness"
    options = ["--schedulers", "lwr", "--lanes", "4", "--tasks", "20"]
    assert cli.run(["evaluate", str(run), *options, "--set", "reward=tardiness"]) == 0
    assert "dqn" in capsys.readouterr().out
    assert cli.run(["compare", "--set", "reward=tardiness", *options]) == 0
    with pytest.raises(ValueError, match="network 'linear': is one of your own, and has no option widths"):
        jaxlb.learn.networks.network("linear", widths=(8,))


PARTS = """
import dataclasses
import jax.numpy as jnp
import jaxlb
from flax import linen as nn
from jaxlb.scheduling.learned import Network

class Linear(nn.Module):
    @nn.compact
    def __call__(self, features):
        return (nn.Dense(1)(features.processor) + nn.Dense(1)(features.task)[..., None, :])[..., 0]

def linear():
    return Network(Linear().init, Linear().apply)

class Tardiness(jaxlb.rewards.Reward):
    def __call__(self, env, params, before, after, outcome, gap):
        return -jnp.log1p(jnp.maximum(outcome.completion - before.task.deadline, 0.0))

jaxlb.register("linear", linear)
jaxlb.register("tardiness", Tardiness)
"""


@pytest.mark.slow
def test_what_a_run_folder_remembers_is_imported(tmp_path, capsys):
    """Its network and its reward are registered by a file; without it, nothing knows them."""
    parts = tmp_path / "own_parts.py"
    parts.write_text(PARTS)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    settings = ["--train", *small.DQN[:-1], "network=linear", "reward=tardiness"]
    assert cli.run(["train", "dqn", "--import", str(parts), *settings, "--out", one]) == 0

    def forget():
        networks._OWN.clear()
        rewards.REWARDS.pop("tardiness")
        sys.modules.pop("own_parts", None)

    compared = ["--schedulers", "lwr", "--lanes", "4", "--tasks", "20"]
    for command in (
        ["evaluate", one, *compared],
        ["compare", *compared[:1], f"lwr,{one}", *compared[2:]],
        ["sweep", "--over", "load=0.3,0.5", *compared[:1], f"lwr,{one}", *compared[2:]],
        ["export", one, "--to", "npz", "--out", str(tmp_path / "live")],
        ["train", "dqn", "--resume", "--out", one],
        ["train", "dqn", *settings, "--from", one, "--out", two],
        ["evaluate", two, *compared],
    ):
        forget()
        assert cli.run(command) == 0, command
    assert "is finished" in capsys.readouterr().err
    # The file may have moved: it is given anew, and the folder's is not asked for.
    (tmp_path / "sub").mkdir()
    moved = parts.rename(tmp_path / "sub" / parts.name)
    forget()
    assert cli.run(["evaluate", one, *compared]) == 2
    assert "which is not there; --import names where it is now" in capsys.readouterr().err
    assert cli.run(["evaluate", one, "--import", str(moved), *compared]) == 0
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    record["options"]["import_"] = "own_parts"
    (tmp_path / "one" / "run.json").write_text(json.dumps(record))
    assert cli.run(["evaluate", one, *compared]) == 2
    assert "import_ = 'own_parts': must be a list of names" in capsys.readouterr().err


def test_a_name_may_be_given_again_to_the_same(key):
    """As a cell of a notebook does that is run twice."""
    for _ in range(2):
        jaxlb.register("rush-hour", rush_hour)
        jaxlb.register("favourite", favourite)
        jaxlb.register("triangular", Triangular)
        jaxlb.register("linear", PerProcessor)
        jaxlb.register("tardiness", Tardiness)
    for other in (lambda: favourite(1), functools.partial(favourite, 1)):
        with pytest.raises(ValueError, match="name = 'favourite': taken by another scheduler"):
            jaxlb.register("favourite", other)


def overloaded(num_processors=2):
    return rush_hour(num_processors).replace(speed=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "factory", "settings", "message"),
    [
        ("stable", rush_hour, {}, "name = 'stable': taken by another scenario"),
        ("lwr", favourite, {}, "name = 'lwr': taken by another scheduler"),
        ("poisson", arrivals.Bursty, {}, "name = 'poisson': taken by another arrival process"),
        ("lognormal", Triangular, {}, "name = 'lognormal': taken by another size law"),
        ("rush hour", rush_hour, {}, "name = 'rush hour': must be letters, digits"),
        ("", favourite, {}, "name = '': must be letters, digits"),
        ("a,b", favourite, {}, "name = 'a,b': must be letters, digits"),
        (3, favourite, {}, "name = 3: must be letters, digits"),
        ("mine", favourite(), {}, "must be callable without arguments"),
        ("mine", "heavy-tail", {}, "must be callable without arguments"),
        ("mine", lambda place: favourite(place), {}, "must be callable without arguments"),
        ("gnn", PerProcessor, {}, "name = 'gnn': taken by another network"),
        ("weighted", Tardiness, {}, "name = 'weighted': taken by another reward"),
        ("mine", lambda: 5, {}, "the factory of 'mine' makes a int: must make EnvParams"),
        ("mine", lambda: rush_hour(), {}, "first parameter None: must be num_processors"),
        ("mine", lambda load=0.5: rush_hour(), {}, "first parameter load=0.5: must be num_processors"),
        ("mine", overloaded, {}, "speed = -1: must be above 0"),
        (
            "mine",
            rush_hour,
            {"queue_capacity": 0},
            "queue_capacity = 0: must be a whole number of at least 1",
        ),
        (
            "mine",
            rush_hour,
            {"queue_capacty": 9},
            "unknown setting 'queue_capacty'; did you mean queue_capacity",
        ),
        ("mine", favourite, {"queue_capacity": 9}, "settings queue_capacity: only a scenario has any"),
        ("mine", lambda: Triangular(-1.0), {}, "high = -1: must be above 0"),
    ],
)
def test_what_cannot_be_registered_is_refused_and_leaves_nothing(name, factory, settings, message):
    before = jaxlb.scenarios(), jaxlb.schedulers(), jaxlb.workloads()
    with pytest.raises(ValueError, match=message):
        jaxlb.register(name, factory, **settings)
    assert (jaxlb.scenarios(), jaxlb.schedulers(), jaxlb.workloads()) == before


@pytest.mark.slow
def test_the_command_line_of_a_program_that_registers(tmp_path):
    program = tmp_path / "mine.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import jaxlb, jaxlb.cli\n"
        "from test_interop_registration import favourite, rush_hour\n"
        "jaxlb.register('rush-hour', rush_hour)\n"
        "jaxlb.register('favourite', favourite)\n"
        "jaxlb.cli.main()\n"
    )
    asked = "compare --scenario rush-hour --schedulers lwr,favourite --lanes 4 --tasks 20"
    done = subprocess.run(
        [sys.executable, program, *asked.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "favourite" in done.stdout and "rush-hour" in done.stdout
