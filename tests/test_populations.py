"""Populations: settings of a trainer side by side in one program; and trainings that are stopped early."""

import functools
import json
import re

import chex
import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import cli, runs
from jaxlb.learn.dqn import DQN
from jaxlb.learn.settings import configure
from jaxlb.learn.trainer import begun, prepared
from jaxlb.replaying import watch
from tests import small

RATES = {"learning_rate": [1e-3, 1e-2], "discount": [0.9, 0.99]}


def config(**numbers):
    return configure(jaxlb.DQNConfig, **(small.plain() | numbers))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A population that nothing disturbed."""
    out = tmp_path_factory.mktemp("populations") / "whole"
    return runs.train(out, *jaxlb.make("heavy-tail"), config(), seeds=[3, 4], population=RATES)


def figures(run):
    lines = run.logged()
    return [
        {name: value for name, value in line.items() if name != "iterations_per_second"} for line in lines
    ]


def test_each_combination_is_trained_with_every_seed(whole):
    settings = [
        f"learning_rate={rate},discount={discount}" for rate in (0.001, 0.01) for discount in (0.9, 0.99)
    ]
    lines = whole.logged()
    assert [(line["iteration"], line["setting"], line["seed"]) for line in lines] == [
        (iteration, setting, seed) for iteration in (10, 20, 30) for setting in settings for seed in (3, 4)
    ]
    # Each is the training that it would be alone, but for how sums are rounded.
    env, params = jaxlb.make("heavy-tail")
    alone = jaxlb.train_dqn(env, params, config(learning_rate=0.01, discount=0.99), jax.random.key(4))
    own = [line for line in lines if (line["setting"], line["seed"]) == (settings[-1], 4)]
    reached = [line["greedy_objective"] for line in own]
    np.testing.assert_allclose(reached, np.asarray(alone.history.greedy_objective), rtol=0.02)
    errors = [line["td_error"] for line in own]
    np.testing.assert_allclose(errors, np.asarray(alone.history.td_error), rtol=0.02)


def test_the_best_setting_is_the_best_on_average_over_seeds(whole):
    tops: dict = {}
    for line in whole.logged():
        name = line["setting"], line["seed"]
        tops[name] = max(tops.get(name, -np.inf), line["greedy_objective"])
    means = {
        setting: np.mean([top for (own, _), top in tops.items() if own == setting]) for setting, _ in tops
    }
    best = max(means, key=lambda setting: means[setting])
    assert whole.best_setting() == best
    assert len({round(float(mean), 6) for mean in means.values()}) > 1
    assert runs.best(whole)["setting"] == best
    other = next(setting for setting in means if setting != best)
    loaded = jaxlb.load(whole.directory, seed=4)
    chex.assert_trees_all_equal(loaded.variables, whole.load(best)[4].variables)
    assert not chex_equal(loaded.variables, jaxlb.load(whole.directory, 4, other).variables)
    # A file of weights knows its own settings.
    path = whole.directory / "weights" / other / "seed-4"
    chex.assert_trees_all_equal(jaxlb.load(path).variables, whole.load(other)[4].variables)
    with pytest.raises(ValueError, match="unknown setting 'learning_rate=7'"):
        whole.load("learning_rate=7")


def chex_equal(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_a_population_that_was_stopped_early_goes_on_as_if_it_had_not_been(whole, tmp_path):
    system = jaxlb.make("heavy-tail")
    out, seen = tmp_path / "stopped", []

    def stop(rows):
        seen.append(rows)
        return len(seen) == 2

    run = runs.train(out, *system, config(), seeds=[3, 4], population=RATES, on_rows=stop)
    assert (run.iteration(), len(run.logged())) == (20, 16)
    assert [len(rows) for rows in seen] == [8, 8]
    with pytest.raises(ValueError, match=r"resume: population = \{\}, but the run was started with"):
        runs.train(out, *system, config(), seeds=[3, 4], resume=True)
    run = runs.train(out, *system, config(), seeds=[3, 4], population=RATES, resume=True)
    assert figures(run) == figures(whole)
    for setting in {line["setting"] for line in run.logged()}:
        for seed in (3, 4):
            ours, theirs = (jaxlb.load(one.directory, seed, setting).variables for one in (run, whole))
            chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.slow
def test_what_brings_nothing_new_is_stopped(tmp_path, capsys):
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = ["train", "dqn", "--train", *small.DQN, "num_evaluations=15"]
    assert cli.run([*arguments, "--out", str(whole)]) == 0
    reached = [line["greedy_objective"] for line in runs.find(whole).logged()]
    # The first judgement with two behind it that are no better than the best before them.
    last = next(
        place for place in range(3, 15) if max(reached[place - 2 : place]) <= max(reached[: place - 2])
    )
    capsys.readouterr()
    assert cli.run([*arguments, "--out", str(out), "--patience", "2"]) == 0
    told = f"stopped early at iteration {2 * last}; --resume with more --patience goes on from there"
    assert told in capsys.readouterr().err
    assert runs.find(out).iteration() == 2 * last
    assert cli.run(["train", "dqn", "--out", str(out), "--resume"]) == 0  # as it was started
    assert runs.find(out).iteration() == 2 * last
    assert cli.run(["train", "dqn", "--out", str(out), "--resume", "--patience", "99"]) == 0
    assert figures(runs.find(out)) == figures(runs.find(whole))


@pytest.mark.slow
def test_the_command_line_tells_the_best_setting(tmp_path, capsys):
    out = tmp_path / "swept"
    sweep = ["--sweep", "learning_rate=1e-3,1e-2", "--seeds", "2"]
    assert cli.run(["train", "dqn", *sweep, "--train", *small.DQN, "--out", str(out)]) == 0
    run, told = runs.find(out), capsys.readouterr().out
    assert f"the best, by objective: {run.best_setting()}" in " ".join(told.split())
    rows = [line for line in told.splitlines() if re.match(r"\W*0\.0?01 ", line)]
    assert len(rows) == 2
    assert json.loads((out / "run.json").read_text())["result"].startswith(
        f"{run.best_setting()}: completion "
    )
    assert (out / "learning_curves.png").stat().st_size > 10_000
    assert (
        cli.run(["evaluate", str(out), "--schedulers", "lwr", "--lanes", "4", "--tasks", "20", "--json"]) == 0
    )
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["schedulers"]] == ["lwr", "swept, seed 0", "swept, seed 1"]


@pytest.mark.parametrize(
    ("population", "message"),
    [
        ({"learning_rat": [1]}, "unknown setting 'learning_rat'; did you mean"),
        ({"learning_rate": [[1e-3, 1e-2], 1e-3]}, r"learning_rate = \[0.001, 0.01\]: must be a number"),
        ({"batch_size": [8, 16]}, "batch_size: cannot differ between trainings of one program"),
        ({"sla_weight": [1, 2]}, "sla_weight: cannot differ between .* or changes what they are judged by"),
        ({"learning_rate": [1e-3, -1.0]}, "learning_rate = -1: must be above 0"),
        ({"learning_rate": [1e-3, "fast"]}, "learning_rate = 'fast': must be a number"),
        ({"learning_rate": []}, r"population: learning_rate = \[\]: must be a list of values"),
        ({"learning_rate": 1e-3}, "population: learning_rate = 0.001: must be a list of values"),
        ({"learning_rate": [1e-3, 1e-3]}, r"population: learning_rate = \[0.001, 0.001\]: must differ"),
    ],
)
def test_what_is_no_population_is_refused(population, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.train(tmp_path / "run", *jaxlb.make("heavy-tail"), config(), population=population)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_begins_with_what_another_has_learned(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.run(["train", "dqn", "--train", *small.DQN, "--out", str(first)]) == 0
    still = ["learning_rate=1e-30", "final_learning_rate=1e-30", "num_iterations=3"]
    arguments = ["train", "dqn", "--train", *small.DQN, *still, "--seed", "5", "--out", str(second)]
    assert cli.run([*arguments, "--from", str(first)]) == 0
    ours, theirs = jaxlb.load(second).variables, jaxlb.load(first).variables
    # Nothing was learned besides, but the target network averages, and so rounds.
    chex.assert_trees_all_close(ours.network, theirs.network, rtol=1e-5, atol=1e-6)
    # Its features are as they were, but for the thousandth that each step moves them.
    chex.assert_trees_all_close(ours.moments.mean, theirs.moments.mean, rtol=0.05, atol=0.02)
    env, params = jaxlb.make("heavy-tail")
    fresh = runs.train(tmp_path / "third", env, params, config(num_iterations=3), seeds=[5])
    assert not chex_equal(jaxlb.load(fresh.directory).variables.network, theirs.network)
    with pytest.raises(ValueError, match=r"initial: .*has shape .*: must be .* here"):
        other = config().replace(network=jaxlb.learn.networks.per_processor((16,)))
        runs.train(tmp_path / "fourth", env, params, other, initial=jaxlb.load(first))
    capsys.readouterr()
    for method, start, message in (
        ("dqn", "c3", "scheduler 'c3': cannot be within 'a training', which does not tell it who has left"),
        ("dqn", "guarded-sit", "unknown scheduler 'guarded-sit'; did you mean guarded-sita"),
        ("gnn", "lwr", "initial: a training of gnn begins anew"),
        ("universal", "lwr", "initial: is a 'lwr', must be what universal trained"),
        ("dqn", "dqn", "--from dqn: names a method"),
        ("gnn", str(first), "initial: a training of gnn begins anew"),
        ("universal", str(first), "initial: is a 'dqn', must be what universal trained"),
        ("dqn", str(tmp_path / "nothing"), "no training here"),
    ):
        out = tmp_path / f"refused-{method}"
        assert cli.run(["train", method, "--from", start, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["lwr", "sita-e", "universal"])
def test_a_training_begins_as_a_rule_acts(rule, key):
    """In states that the rule visits, nine choices of ten are its own; of a new network, far fewer."""
    env, params = jaxlb.make("heavy-tail")
    given = jaxlb.DQNConfig(num_lanes=32, memory_rows=8, batch_size=256)
    ready, scheduler = prepared(params, given), jaxlb.scheduler(rule)
    tasks = jaxlb.workload.sample(key, params, 300, (16,))

    def agreement(initial):
        state = jax.jit(functools.partial(begun, DQN, env, *ready, initial=initial))(jax.random.key(1))
        ours = DQN.acting(given, state.best, dict(DQN.features))

        def asked(one, memory, seen):
            fresh = ours.start(env, params, seen.size.shape)
            return ours.act(ours.variables, fresh, seen, jax.random.key(0))[0]

        outcome, chosen = watch(env, params, scheduler, tasks, jax.random.key(2), asked)
        return float((outcome.action == chosen).mean())

    assert agreement(scheduler) > 0.9 > 0.1 + agreement(None)


@pytest.mark.slow
def test_a_file_of_weights_and_several_systems_begin_too(tmp_path, capsys):
    first = tmp_path / "first"
    assert cli.run(["train", "dqn", "--train", *small.DQN, "--out", str(first)]) == 0
    arguments = ["train", "dqn", "--train", *small.DQN, "--out", str(tmp_path / "second")]
    assert cli.run([*arguments, "--from", str(first / "weights" / "seed-0")]) == 0
    env, params = zip(*(jaxlb.make("heavy-tail", num_processors=number) for number in (2, 3)), strict=True)
    ready = prepared(params, given := config(num_iterations=3, num_evaluations=3))
    state = begun(DQN, env, *ready, jax.random.key(0), jaxlb.scheduler("lwr"))
    assert not chex_equal(state.best.network, begun(DQN, env, *ready, jax.random.key(0)).best.network)
    wrong = jaxlb.scheduler("lwr").replace(name="dqn")
    with pytest.raises(ValueError, match="initial: has no network"):
        runs.train(tmp_path / "third", env[0], params[0], given, initial=wrong)
    run = runs.train(tmp_path / "fourth", env[0], params[0], given, initial="universal")
    assert run.iteration() == 3


@pytest.mark.slow
def test_what_is_refused_leaves_the_run_that_was_there(tmp_path, capsys):
    first, wide = tmp_path / "first", tmp_path / "wide"
    assert cli.run(["train", "dqn", "--train", *small.DQN, "--out", str(first)]) == 0
    assert cli.run(["train", "dqn", "--train", *small.DQN, "widths=[16]", "--out", str(wide)]) == 0
    before = jaxlb.load(first).variables
    capsys.readouterr()
    again = ["train", "dqn", "--train", *small.DQN, "--out", str(first), "--overwrite", "--from", str(wide)]
    assert cli.run(again) == 2
    assert "initial: " in capsys.readouterr().err
    chex.assert_trees_all_equal(jaxlb.load(first).variables, before)


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_begins_with_the_same(tmp_path, monkeypatch, capsys):
    first, out, whole = (tmp_path / name for name in ("first", "out", "whole"))
    train = ["train", "dqn", "--train", *small.DQN]
    assert cli.run([*train, "--out", str(first)]) == 0
    started = [*train, "--seed", "5", "--from", str(first), "--patience", "9"]
    assert cli.run([*started, "--out", str(whole)]) == 0

    def stopped(run, state, over):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "save", stopped)
    capsys.readouterr()
    assert cli.run([*started, "--out", str(out)]) == 130
    assert f"jaxlb train dqn --out {out} --resume goes on from there" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.run(["train", "dqn", "--out", str(out), "--resume"]) == 0
    chex.assert_trees_all_equal(jaxlb.load(out).variables, jaxlb.load(whole).variables)
    assert cli.run(["train", "dqn", "--out", str(out), "--resume", "--from", str(whole)]) == 2
    assert "but the run was started with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_training_compiles_nothing(tmp_path, caplog):
    def compiled(seed, rate, load):
        caplog.clear()
        env, params = jaxlb.make("heavy-tail", load=load)
        with jax.log_compiles():
            runs.train(
                tmp_path / str(seed), env, params, config(learning_rate=rate, discount=0.97), seeds=[seed]
            )
        return [line for line in caplog.messages if re.match(r"Compiling jit\((begin|advance)_each\)", line)]

    jax.clear_caches()
    assert len(compiled(1, 1e-3, 0.7)) == 2
    assert compiled(2, 1e-2, 0.5) == []
