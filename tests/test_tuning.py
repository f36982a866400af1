"""The best settings of rules: what one by one would have been found, judged on other tasks."""

import json

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import cli, tuning
from jaxlb.judging import Judges


@pytest.mark.slow
def test_settings_side_by_side_do_what_each_does_alone(key):
    env, params = jaxlb.make("heavy-tail")
    run = {"num_lanes": 16, "num_tasks": 400, "warmup": 50}
    found = tuning.best(env, params, key, **run)
    for one in found.values():
        assert one.name in tuning.GUARDED_SITA
        alone = jaxlb.rollout(env, params, jaxlb.scheduler(one.name), key, *run.values())
        assert one.scheduler == jaxlb.scheduler(one.name)
        assert one.mean_completion == pytest.approx(float(alone.mean_completion.mean()), rel=1e-5)
        assert one.sla_violation_rate == pytest.approx(float(alone.sla_violation_rate.mean()), rel=1e-5)
    # The default is among them, and has not the fewest violations.
    default = jaxlb.rollout(env, params, jaxlb.scheduler("guarded-sita"), key, *run.values())
    assert found["completion"].mean_completion <= float(default.mean_completion.mean())
    assert found["violations"].sla_violation_rate < float(default.sla_violation_rate.mean())


@pytest.mark.slow
@pytest.mark.parametrize("names", [tuning.GUARDED_SITA, tuning.CARD_IN_BANDS[:5], tuning.DICE[:5]])
def test_no_setting_is_better_than_the_best(names, key):
    env, params = jaxlb.make("heavy-tail")
    run = 16, 400, 50
    found = tuning.best(env, params, key, names, *run)
    each = [jaxlb.rollout(env, params, jaxlb.scheduler(name), key, *run) for name in names]
    times, rates = (
        [float(np.mean(getattr(one, figure))) for one in each]
        for figure in ("mean_completion", "sla_violation_rate")
    )
    assert found["completion"].name == names[int(np.argmin(times))]
    assert found["violations"].name == names[int(np.argmin(rates))]


@pytest.mark.slow
def test_a_setting_that_overloads_a_processor_is_not_the_best(key):
    """Large tasks wait at the slowest for ever, so that few others are late."""
    env, params = jaxlb.make("heavy-tail", load=0.9)
    names = tuple(f"dice(limit={limit}, growth={2 * limit}, last=slowest)" for limit in (1, 2))
    run = 32, 1000, 2000
    starving, other = (jaxlb.rollout(env, params, jaxlb.scheduler(name), key, *run) for name in names)
    assert starving.sla_violation_rate.mean() < other.sla_violation_rate.mean()
    assert starving.utilisation.mean(-1).max() > 0.999 > other.utilisation.mean(-1).max()
    assert tuning.best(env, params, key, names, *run)["violations"].name == names[1]


def test_bad_numbers_are_refused():
    env, params = jaxlb.make("heavy-tail")
    with pytest.raises(ValueError, match="num_lanes = 0: must be a whole number of at least 1"):
        tuning.best(env, params, jax.random.key(0), num_lanes=0)


def test_settings_of_a_rule_share_a_program(key):
    env, params = jaxlb.make("heavy-tail")
    judges = Judges(tuning.GUARDED_SITA[:4], 4, 10)
    judges.compare(env, params, key)
    assert len(judges._programs) == 1


def test_settings_that_remember_more_have_a_program_of_their_own(key):
    env, params = jaxlb.make("heavy-tail")
    names, run = ["card(bands=1)", "card(bands=4)"], (4, 20, 5)
    table = jaxlb.compare(env, params, names, jax.random.clone(key), num_lanes=4, num_tasks=20, warmup=5)
    for name in names:
        alone = jaxlb.rollout(env, params, jaxlb.scheduler(name), key, *run)
        assert table.row(name).mean_completion == pytest.approx(float(alone.mean_completion.mean()), rel=1e-5)


@pytest.mark.slow
def test_what_is_better_the_more_there_is_of_it_is_not_made_small(key):
    env, params = jaxlb.make("heavy-tail")
    found = jaxlb.tune(
        env, params, {"power-of-d": {"d": [1, 3]}}, key, figure="mean_reward", num_lanes=16, num_tasks=200
    )
    one, three = (row.mean_reward for row in found.settings.schedulers)
    assert three > one
    assert found.best == {"power-of-d": "power-of-d(d=3)"}


@pytest.mark.slow
def test_the_best_of_each_rule_is_judged_on_other_tasks(key):
    env, params = jaxlb.make("heavy-tail")
    run: dict = {"num_lanes": 16, "num_tasks": 200, "warmup": 50}
    grids = {"power-of-d": {"d": [1, 2, 3]}, "jiq": {"fastest": [False, True]}}
    shares = []
    found = jaxlb.tune(
        env, params, grids, jax.random.clone(key), figure="mean_slowdown",
        on_progress=lambda name, share: shares.append(share), **run,
    )  # fmt: skip
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    choose, judge = jax.random.split(key)
    names = [*(f"power-of-d(d={d})" for d in (1, 2, 3)), "jiq(fastest=false)", "jiq(fastest=true)"]
    alone = {
        name: float(
            jaxlb.rollout(env, params, jaxlb.scheduler(name), choose, *run.values()).mean_slowdown.mean()
        )
        for name in names
    }
    assert [row.name for row in found.settings.schedulers] == names
    for row in found.settings.schedulers:
        assert row.mean_slowdown == pytest.approx(alone[row.name], rel=1e-5)
    marked = {row.name for row in found.settings.schedulers if row.mark}
    for rule in grids:
        own = [name for name in names if name.startswith(rule)]
        assert found.best[rule] == min(own, key=lambda name: (name in marked, alone[name]))
    assert found.best["power-of-d"] == "power-of-d(d=3)"
    assert found.at_the_edge == ["power-of-d: d=3 is the largest that was tried"]
    table = jaxlb.compare(
        env, params,
        {"lwr": "lwr", "power-of-d": "power-of-d", "power-of-d, tuned": jaxlb.scheduler("power-of-d(d=3)"),
         "jiq": "jiq", "jiq, tuned": jaxlb.scheduler(found.best["jiq"])},
        judge, **run,
    )  # fmt: skip
    assert found.held_out.as_dict() == table.as_dict()


@pytest.mark.parametrize("rule", tuning.GRIDS)
def test_all_that_is_tried_is_a_rule(rule):
    names = tuning.settings_of(rule, tuning.GRIDS[rule])
    made = [jaxlb.scheduler(name) for name in names]
    assert len({str((one.variables, one.start, one.act)) for one in made}) == len(set(names)) > 1


def test_options_are_written_as_they_are_read():
    grid = {"band": [0.1], "bands": [4], "flexible": [True, False]}
    names = ("card(band=0.1, bands=4, flexible=true)", "card(band=0.1, bands=4, flexible=false)")
    assert tuning.settings_of("card", grid) == names
    assert jaxlb.scheduler(names[0]) == jaxlb.scheduler("card", band=0.1, bands=4, flexible=True)


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        ("lwr", {}, "lwr: has no options to tune; these have: card, "),
        ("lsq", {}, r"lsq: say which of its options \(ask\) to try; without, these are tuned: card, "),
        ("lwl-2", {}, "unknown scheduler 'lwl-2'"),
        ({"card": {"band": 0.1}}, {}, "card: band = 0.1: must be a list of values"),
        ({"card": {"band": []}}, {}, r"card: band = \[\]: must be a list of values"),
        ({"card": {"bant": [0.1]}}, {}, "unknown option of scheduler 'card' 'bant'; did you mean band"),
        ({}, {}, "rules: must be at least one"),
        ({"card": [1, 2]}, {}, r"card: \[1, 2\]: must name options with their values"),
        ("card", {"baseline": "nope"}, "unknown scheduler 'nope'"),
        ("card", {"figure": "speed"}, "unknown figure 'speed'"),
        ("card", {"num_lanes": 0}, "num_lanes = 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(rules, options, message, key):
    env, params = jaxlb.make("heavy-tail")
    with pytest.raises(ValueError, match=message):
        jaxlb.tune(env, params, rules, key, **({"num_lanes": 4, "num_tasks": 10} | options))


@pytest.mark.slow
def test_the_command_names_the_best(tmp_path, capsys):
    arguments = [
        "tune",
        "power-of-d",
        "--lanes",
        "8",
        "--tasks",
        "50",
        "--load",
        "0.6",
        "--out",
        str(tmp_path),
    ]
    assert cli.run([*arguments, "--over", "d=1,3"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "power-of-d, tuned: power-of-d(d=3)" in told
    assert "next: jaxlb compare --load 0.6 --schedulers 'lwr,power-of-d(d=3)'" in told
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.json", "tune.json", "tune.csv", "held_out.csv", "held_out.png",
    }  # fmt: skip
    assert cli.run([*arguments, "--over", "d=1,3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "tune.json").read_text())
    assert cli.run(["tune", "card,dice", "--over", "band=0.1,0.2"]) == 2
    assert "--over: for one rule at a time" in capsys.readouterr().err
