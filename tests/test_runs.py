"""Run folders: what `jaxlb train` leaves, how it goes on, and what is refused."""

import json
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import cli, runs, weights
from jaxlb.cli.compare import Evaluate
from jaxlb.cli.train import Train
from jaxlb.learn import networks
from jaxlb.scheduling import learned
from tests import small


def train(out, *settings, **options):
    Train(method="dqn", train=(*small.DQN, *settings), out=out, **options).run()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, seed=3, seeds=2, load=0.6, set=("tail_index=1.3",))
    return out


def test_a_run_tells_what_it_is_and_what_happened(trained):
    assert {path.name for path in trained.iterdir()} == {
        "run.json", "metrics.jsonl", "weights", "learning_curves.png",
    }  # fmt: skip
    record = json.loads((trained / "run.json").read_text())["training"]
    assert (record["environment"]["scenario"], record["seeds"]) == ("heavy-tail", [3, 4])
    assert record["environment"]["overrides"] == {"tail_index": 1.3, "load": 0.6}
    assert (record["settings"]["num_lanes"], record["settings"]["learning_rate"]) == (8, 3e-3)
    lines = runs.find(trained).logged()
    assert [(line["iteration"], line["seed"]) for line in lines] == [
        (iteration, seed) for iteration in (10, 20, 30) for seed in (3, 4)
    ]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines[0]["greedy_completion"] != lines[1]["greedy_completion"]


def test_what_is_loaded_does_what_was_logged(trained):
    env, params = runs.find(trained).training.spec().make()
    evaluation_key = jax.random.split(jax.random.split(jax.random.key(4))[1])[1]
    summary = jaxlb.rollout(env, params, jaxlb.load(trained, seed=4), evaluation_key, 8, 20, 10)
    logged = [line for line in runs.find(trained).logged() if line["seed"] == 4]
    best = max(logged, key=lambda line: line["greedy_objective"])
    assert float(summary.mean_completion.mean()) == pytest.approx(best["greedy_completion"], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(trained, tmp_path, monkeypatch):
    out = tmp_path / "stopped"
    save, times = runs.Run.save, []

    def stopped(run, state, over):
        times.append(run)
        if len(times) == 2:  # logged already, and then lost
            raise KeyboardInterrupt
        save(run, state, over)

    monkeypatch.setattr(runs.Run, "save", stopped)
    again = f"stopped at iteration 10; jaxlb train dqn --out {out} --resume goes on from there"
    with pytest.raises(KeyboardInterrupt, match=re.escape(again)):
        train(out, seed=3, seeds=2, load=0.6, set=("tail_index=1.3",))
    assert len(runs.find(out).logged()) == 4
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 30, "cut o')
    monkeypatch.undo()

    Train(method="dqn", out=out, resume=True).run()
    for seed in (3, 4):
        chex.assert_trees_all_equal(jaxlb.load(out, seed).variables, jaxlb.load(trained, seed).variables)

    def figures(directory):
        lines = runs.find(directory).logged()
        return [
            {name: value for name, value in line.items() if name != "iterations_per_second"} for line in lines
        ]

    assert figures(out) == figures(trained)
    Train(method="dqn", out=out, resume=True).run()  # over: nothing more happens
    assert figures(out) == figures(trained)


@pytest.mark.slow
def test_evaluate_adds_what_was_trained_to_the_table(trained, tmp_path, capsys):
    Evaluate(directory=trained, lanes=4, tasks=20, json=True).run()
    table = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in table["schedulers"]]
    assert names == ["rr", "lwr", "greedy", "oracle", "whole, seed 3", "whole, seed 4"]
    assert table["load"] == pytest.approx(0.6)
    cli.Compare(
        scenario="slow-servers", schedulers=f"lwr,{trained}", lanes=4, tasks=20, json=True,
        out=tmp_path / "out",
    ).run()  # fmt: skip
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["schedulers"]][1] == "whole, seed 3"
    assert (tmp_path / "out" / "backlogs.png").exists()


@pytest.mark.slow
def test_a_gnn_is_trained_drawn_and_loaded(tmp_path, capsys):
    settings = (
        "num_lanes=10",
        "num_tasks=20",
        "num_iterations=40",
        "num_evaluations=2",
        "target=distribution",
        "outputs=2",
    )
    out = tmp_path / "gnn"
    Train(method="gnn", scenario="stale", train=(*settings, "forecaster=predicted"), out=out).run()
    assert "R2 of completion" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "run.json", "metrics.jsonl", "weights", "learning_curves.png",
        "predictions.png", "influence.png",
    }  # fmt: skip
    Evaluate(directory=out, schedulers="lwr", lanes=4, tasks=20, json=True, set=("num_processors=12",)).run()
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["schedulers"]]
    assert names == ["lwr", "gnn"]


@pytest.mark.slow
def test_a_predictor_is_trained_kept_and_loaded_like_a_dqn(tmp_path, capsys):
    settings = ("num_lanes=10", "num_tasks=50", "num_examples=500", "num_iterations=20", "detector=cusum")
    out = tmp_path / "predictor"
    Train(method="predictor", scenario="stale", train=settings, seed=5, out=out).run()
    assert "error on examples held out" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "run.json", "metrics.jsonl", "weights", "learning_curves.png",
    }  # fmt: skip
    lines = runs.find(out).logged()
    assert len(lines) == 10 and all(np.isfinite(list(line.values())).all() for line in lines)
    scheduler = jaxlb.load(out)
    errors = [line["held_out_error"] for line in lines]
    assert scheduler.name == "drift-aware" and float(scheduler.variables.error) == pytest.approx(min(errors))
    Evaluate(directory=out, schedulers="lwr", lanes=4, tasks=20, json=True, scenario="stable").run()
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["schedulers"]]
    assert names == ["lwr", "predictor"]
    Train(method="predictor", out=out, resume=True).run()  # over: nothing more happens
    assert runs.find(out).logged() == lines
    with pytest.raises(ValueError, match="method = 'dqn', but the run was started with 'predictor'"):
        Train(method="dqn", out=out, resume=True).run()
    with pytest.raises(ValueError, match="unknown setting 'learning_rate'"):
        Train(method="predictor", train=("learning_rate=1",), out=tmp_path / "no").run()


def settings_of(source):
    return runs.find(source).training.settings


def changed(source, out, **fields):
    """A copy of a run whose record says something else."""
    record = json.loads((source / "run.json").read_text())
    record["training"] |= fields
    out.mkdir()
    (out / "run.json").write_text(json.dumps(record))
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "stale"}, "trained for 4 processors, stale has 8: networks that serve any are "),
        ({"directory": Path("none")}, "none: no training here"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained, tmp_path, options, message):
    perceptron = changed(trained, tmp_path / "mlp", settings=settings_of(trained) | {"network": "mlp"})
    with pytest.raises(ValueError, match=message):
        Evaluate(**{"directory": perceptron} | options).run()


def test_a_perceptron_that_meets_other_speeds_says_so(trained, tmp_path):
    """And no other network does: it has no places."""
    perceptron = changed(trained, tmp_path / "mlp", settings=settings_of(trained) | {"network": "mlp"})
    record, other = runs.find(perceptron).training, runs.find(trained).training
    env, params = record.spec().make()
    speeds = np.asarray(params.speed)
    record.check(env, params)
    record.check(env, params.replace(speed=3.0 * speeds))  # another unit
    for met in (speeds[::-1], np.full(4, 1.5), np.stack([speeds, speeds[::-1]], 1)):
        first = met.reshape(4, -1)[:, 0]
        lists = [", ".join(f"{speed:g}" for speed in listed) for listed in (speeds, first)]
        with pytest.warns(
            UserWarning, match=re.escape(f"of speeds {lists[0]}, in this order, and heavy-tail")
        ):
            record.check(env, params.replace(speed=met))
        other.check(env, params.replace(speed=met))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "magic"}, "cannot be read"),
        (
            {"features": {"task": ["log mood"], "processor": []}},
            "is given log mood, which this jaxlb does not",
        ),
        ({"surprise": 1}, "cannot be read"),
    ],
)
def test_runs_of_another_jaxlb_are_refused(trained, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.load(changed(trained, tmp_path / "other", **fields))


def test_weights_for_each_priority_fit_as_many_priorities_only(trained, tmp_path):
    settings = settings_of(trained) | {"sla_weight": [1.0, 2.0]}
    record = runs.find(changed(trained, tmp_path / "classes", settings=settings)).training
    with pytest.raises(ValueError, match=r"each of 2 priorities, heavy-tail has 1"):
        record.check(*jaxlb.make("heavy-tail"))
    with pytest.raises(ValueError, match=r"seed = 9: .* has 3, 4"):
        jaxlb.load(trained, seed=9)


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({}, (), "holds a run: --resume continues it, --overwrite replaces it"),
        ({"resume": True}, ("num_lanes=16",), "num_lanes = 16, but the run was started with 8"),
        ({"resume": True, "scenario": "stable"}, (), "scenario = 'stable', but the run was started with"),
        ({"resume": True, "seed": 5}, (), "seeds = "),
        ({"resume": True, "overwrite": True}, (), "give one of them"),
        ({"seeds": 0}, (), "seeds = 0: must be a whole number of at least 1"),
        ({}, ("lr=1",), "unknown setting 'lr'"),
        ({}, ("learning_rate=0",), "learning_rate = 0: must be above 0"),
        ({}, ("learning_rate=null",), "learning_rate = None: must be a number"),
        ({}, ("network=gcn",), "unknown network 'gcn'"),
        ({}, ("widths=64",), "widths = 64: must be a list"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(trained, options, settings, message):
    before = (trained / "run.json").read_text()
    with pytest.raises(ValueError, match=message):
        Train(method="dqn", train=settings, out=trained, **options).run()
    assert (trained / "run.json").read_text() == before


@pytest.mark.slow
def test_a_run_that_diverges_says_where_and_keeps_finite_weights(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"seed 0 the loss was not finite at iteration \d+; .* keeps"
    ):
        train(tmp_path / "wild", "learning_rate=1e30", overwrite=True)
    chex.assert_tree_all_finite(jaxlb.load(tmp_path / "wild").variables)
    assert runs.find(tmp_path / "wild").logged()[-1]["loss"] is None


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_resumed_saved_and_loaded(tmp_path, monkeypatch):
    """As a built-in one is; only its functions cannot be written, so whoever loads it gives them."""
    env, params = jaxlb.make("stable")
    made = networks.per_processor(widths=(8,))
    own = made._replace(apply=lambda parameters, x: 0.5 * made.apply(parameters, x))
    settings = dict(setting.split("=") for setting in small.DQN if "[" not in setting)
    config = jaxlb.DQNConfig(network=own, **{name: int(value) for name, value in settings.items()})
    seen = []

    def stop(rows):
        seen.extend(row["iteration"] for row in rows)
        if seen[-1] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(tmp_path / "own", env, params, config, seeds=(5,), on_rows=stop)
    with pytest.raises(ValueError, match="holds a run"):
        runs.train(tmp_path / "own", env, params, config, seeds=(5,))
    with pytest.raises(ValueError, match=r"resume: num_lanes = 4, but the run was started with 8"):
        runs.train(tmp_path / "own", env, params, config.replace(num_lanes=4), seeds=(5,), resume=True)
    run = runs.train(tmp_path / "own", env, params, config, seeds=(5,), resume=True)
    whole = runs.train(tmp_path / "whole", env, params, config, seeds=(5,))
    assert seen == [10, 20] and [row["iteration"] for row in run.logged()] == [10, 20, 30]
    with pytest.raises(ValueError, match="its network is one of your own"):
        jaxlb.load(tmp_path / "own")
    loaded = jaxlb.load(tmp_path / "own", network=own)
    chex.assert_trees_all_equal(loaded, whole.load(network=own)[5])

    jaxlb.save(tmp_path / "weights", loaded, env, params, config)
    chex.assert_trees_all_equal(jaxlb.load(tmp_path / "weights", network=own), loaded)


def test_weights_describe_themselves_and_keep_their_features(trained, key, tmp_path, monkeypatch):
    """They need neither their scenario nor a jaxlb whose networks are given the same."""
    path = trained / "weights" / "seed-3"
    about = weights.about(path)
    assert (about["format"], about["iteration"], about["training"]["seeds"]) == (1, 30, [3])
    assert ["network/params/Dense_0/kernel", "<f4", [7, 8]] in about["arrays"]
    expected = jaxlb.load(trained, seed=3)
    scenario = about["training"]["environment"] | {"scenario": "one that is gone"}
    training = about["training"] | {"environment": scenario}
    weights.write(tmp_path / "moved", {"training": training}, expected.variables)
    later = learned.NAMES._replace(task=("log system load", *learned.NAMES.task))
    monkeypatch.setattr(learned, "NAMES", later)
    found = jaxlb.load(tmp_path / "moved")
    env, params = jaxlb.make("heavy-tail")
    for one, other in zip(
        *(jax.tree.leaves(jaxlb.rollout(env, params, s, key, 4, 50)) for s in (found, expected)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    weights.write(tmp_path / "newer", {"training": training, "format": 2}, expected.variables)
    with pytest.raises(ValueError, match=r"newer: of format 2, this jaxlb reads format 1"):
        jaxlb.load(tmp_path / "newer")


def test_a_run_killed_within_its_first_checkpoint_goes_on(trained, tmp_path, monkeypatch):
    """Between the state and the weights: from that state, or from nothing."""
    out, write = tmp_path / "cut", runs.trained.write

    def cut(*given, **about):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.trained, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        train(out, seed=3, seeds=2, load=0.6, set=("tail_index=1.3",))
    with pytest.raises(ValueError, match="nothing was saved yet"):
        jaxlb.load(out)
    monkeypatch.setattr(runs.trained, "write", write)
    assert runs.find(out).iteration() == 10
    Train(method="dqn", out=out, resume=True).run()
    for seed in (3, 4):
        chex.assert_trees_all_equal(jaxlb.load(out, seed).variables, jaxlb.load(trained, seed).variables)
    (out / "run.json").unlink()
    with pytest.raises(ValueError, match="holds a run: --overwrite replaces what is left"):
        train(out)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [((), "at least one"), ((-1,), "seed = -1"), ((3, 3), "must differ"), ((0.5,), "seed = 0.5")],
)
def test_bad_seeds_are_refused_before_anything_is_written(seeds, message, tmp_path):
    env, params = jaxlb.make("heavy-tail")
    with pytest.raises(ValueError, match=message):
        runs.train(tmp_path / "no", env, params, jaxlb.DQNConfig(), seeds=seeds)
    with pytest.raises(ValueError, match="config = None: must be one of DQNConfig"):
        runs.train(tmp_path / "no", env, params, None)
    assert not (tmp_path / "no").exists()


def test_weights_of_any_dtype_come_back(tmp_path):
    tree = {"a": jnp.arange(3, dtype=jnp.bfloat16), "b": jnp.ones((2, 0)), "c": jax.random.key(3)}
    weights.write(tmp_path / "file", {}, tree)
    found = weights.read(tmp_path / "file", tree)
    for name, leaf in tree.items():
        assert found[name].dtype == leaf.dtype and (found[name] == leaf).all()


def test_features_have_a_name_each(trained):
    scheduler = jaxlb.load(trained)
    variables = scheduler.variables
    record = runs.find(trained).training
    assert variables.moments.mean.processor.shape == (len(record.features["processor"]),)
    # The network is told the four weights of the reward besides.
    assert variables.moments.mean.task.shape == (len(record.features["task"]) + 4,)
    # One scheduler, so what it does compiles once for all seeds.
    assert jax.tree.structure(scheduler) == jax.tree.structure(jaxlb.load(trained, seed=4))
