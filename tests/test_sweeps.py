"""Sweeps: each point is the comparison there, with programs compiled once; a stopped one goes on."""

import csv
import json

import jax
import jax.numpy as jnp
import pytest

import jaxlb
from jaxlb import cli, judging, stationarity
from jaxlb.cli.common import grid_of

SIZE = {"num_lanes": 8, "num_tasks": 40}
RULES = ["lwr", "greedy"]
OVER = {"load": [0.4, 0.8], "tail_index": [1.2, 2.0]}


@pytest.fixture
def system():
    return jaxlb.make("heavy-tail")


def no_memory(env, params, lanes):
    return ()


def patient(patience, memory, observation, key):
    """The fastest that has less than so much to do."""
    late = observation.wait > patience
    return jnp.argmin(jnp.where(late, observation.wait + 1e3, -observation.speed), 0).astype(
        jnp.int32
    ), memory


def swept(system, key, **options):
    return jaxlb.sweep(*system, RULES, key, **{"over": OVER} | SIZE | options)


def test_each_point_is_the_comparison_there_and_nothing_compiles_twice(system, key, monkeypatch):
    compiled, own = [], judging._Work._compile
    monkeypatch.setattr(judging._Work, "_compile", lambda *given: compiled.append(1) or own(*given))
    found = swept(system, key)
    assert len(compiled) == len(RULES)
    assert [point.values for point in found.points] == [
        {"load": load, "tail_index": tail} for load in OVER["load"] for tail in OVER["tail_index"]
    ]
    for point in found.points:
        env, params = jaxlb.make("heavy-tail", **point.values)
        warmup = stationarity.sensible_warmup(env, params, 40)
        assert point.table.warmup == warmup
        alone = jaxlb.compare(env, params, RULES, jax.random.clone(key), warmup=warmup, **SIZE)
        assert point.table.as_dict() == alone.as_dict()
    assert found.at(load=0.8, tail_index=2.0) is found.points[3].table
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    assert len(rows) == 8
    assert [rows[5][name] for name in ("load", "tail_index", "name")] == ["0.8", "1.2", "greedy"]
    assert json.loads(found.to_json())["points"][3]["values"] == {"load": 0.8, "tail_index": 2.0}
    again = jaxlb.Sweep.of_dict(json.loads(found.to_json()))
    assert again.as_dict() == found.as_dict()
    head, *body = again.to_latex("sla_violation_rate").splitlines()[2:-2]
    assert head == r"load & tail\_index & lwr & greedy \\" and len(body) == 1 + 4
    rate = 100 * found.points[3].table.row("greedy").sla_violation_rate
    assert body[4].startswith("0.8 & 2 & ") and f"{rate:.2f}"[:4] in body[4]


def test_schedulers_that_differ_in_numbers_share_a_program(system, key, monkeypatch):
    compiled, own = [], judging._Work._compile
    monkeypatch.setattr(judging._Work, "_compile", lambda *given: compiled.append(1) or own(*given))
    rules = {
        name: jaxlb.Scheduler("patient", jnp.float32(patience), no_memory, patient)
        for name, patience in (("little", 0.5), ("much", 20.0))
    } | {"lwr": "lwr"}
    together = jaxlb.compare(*system, rules, key, **SIZE)
    assert len(compiled) == 2
    for name in ("little", "much"):
        alone = jaxlb.compare(*system, {name: rules[name]}, jax.random.clone(key), **SIZE)
        assert alone.row(name).mean_completion == together.row(name).mean_completion
    assert together.row("little").mean_completion != together.row("much").mean_completion


def test_a_sweep_that_was_stopped_goes_on(system, key, tmp_path):
    path = tmp_path / "points"
    whole = swept(system, key)

    def stop(name, share):
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(system, jax.random.clone(key), keep=path, on_progress=stop)
    assert len(path.read_text().splitlines()) == 1 + 2
    path.write_text(path.read_text() + '{"values": {"lo')  # it was being written
    shares = []
    again = swept(
        system, jax.random.clone(key), keep=path, on_progress=lambda name, share: shares.append(share)
    )
    assert min(shares) >= 0.5
    assert again.to_csv() == whole.to_csv()
    assert again.to_json() == whole.to_json()
    for other in ({"num_lanes": 4}, {"over": {"load": [0.4]}}):
        with pytest.raises(ValueError, match="holds results of other settings"):
            swept(system, jax.random.clone(key), keep=path, **other)
    with pytest.raises(ValueError, match="holds results of other settings"):
        swept(system, jax.random.key(1), keep=path)
    others = (
        (jaxlb.make("heavy-tail", discipline="srpt"), RULES, {}),
        (system, ["lwr", "sed"], {}),
        (system, RULES, {"baseline": "greedy"}),
        ((system[0], system[1].replace(class_slack=jnp.float32([3.0]))), RULES, {}),
    )
    for where, rules, options in others:
        with pytest.raises(ValueError, match="holds results of other settings"):
            jaxlb.sweep(*where, rules, jax.random.clone(key), over=OVER, keep=path, **SIZE, **options)


@pytest.mark.slow
def test_settings_are_swept_over_when_that_is_meant(key):
    env, params = jaxlb.make("heavy-tail", discipline="ps")
    over = {"size_visible": [True, False], "limit": [None, 1]}
    found = jaxlb.sweep(env, params, ["greedy"], key, over=over, recompile=True, **SIZE)
    own = jaxlb.sweep(*jaxlb.make("heavy-tail"), ["greedy"], key, recompile=True, **SIZE,
                      over={"limit": [None, 1], "size": ["exponential"]})  # fmt: skip
    assert own.at(limit=None).row("greedy").lost_rate == 0 < own.at(limit=1).row("greedy").lost_rate
    seen, hidden = (found.at(size_visible=each, limit=None).row("greedy") for each in (True, False))
    assert seen.mean_completion != hidden.mean_completion
    assert seen.lost_rate == 0 < found.at(size_visible=True, limit=1).row("greedy").lost_rate


def test_a_picture_has_a_panel_for_each_value_of_other_parameters(system, key):
    found = swept(system, key)
    figure = found.plot("sla_violation_rate")
    assert [axes.get_title() for axes in figure.axes] == ["tail_index = 1.2", "tail_index = 2.0"]
    assert {line.get_label() for line in figure.axes[0].lines} >= set(RULES)
    with pytest.raises(ValueError, match="figure"):
        found.plot("sla_violation_rate_by_priority")
    assert found.at(load=0.8 + 1e-12, tail_index=2).scenario == "heavy-tail"
    with pytest.raises(ValueError, match="has no axis"):
        jaxlb.sweep(*system, RULES, key, over={"measure_interval": [None]}, recompile=True, **SIZE).plot()
    with pytest.raises(ValueError, match=r"load = 0\.5: must be one of"):
        found.at(load=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": {}}, "over = {}: must name values"),
        ({"over": {"load": 0.5}}, "load = 0.5: must be a list"),
        ({"over": {"load": []}}, "must be a list"),
        ({"over": {"load": "0.5"}}, "must be a list"),
        ({"over": {"lod": [0.5]}}, "unknown parameter 'lod'"),
        ({"over": {"load": [0.5, 1.5]}}, "load = 1.5: must be below 1"),
        ({"over": {"speed": [[1.0, 2.0]]}}, r"speed has shape \(2,\)"),
        ({"over": {"size_visible": [True, False]}}, "size_visible is static"),
        ({"over": {"num_processors": [2, 4]}}, "num_processors makes another environment"),
        ({"over": {"load": [0.5, float("nan")]}}, "load = nan: must be finite"),
        ({"over": {"speed": [(1.0, 2.0), (1.0, 2.0, 3.0)]}}, "speed has shape"),
        ({"warmup": -1}, "warmup = -1"),
        ({"num_lanes": 0}, "num_lanes = 0"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_runs(options, message, system, key, tmp_path):
    with pytest.raises(ValueError, match=message):
        swept(system, key, keep=tmp_path / "points", **options)
    assert not (tmp_path / "points").exists()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("load=0.3:0.5:3", [0.3, 0.4, 0.5]),
        ("load=log:1:100:3", [1, 10, 100]),
        ("load=log:1.0:100:3", [1.0, 10.0, 100.0]),
        ("queue_capacity=16:64:4", [16, 32, 48, 64]),
        ("load=0.3,.5", [0.3, 0.5]),
        ("speed=[1,2],[2,1]", [[1, 2], [2, 1]]),
        ("limit=null,3", [None, 3]),
    ],
)
def test_values_are_read(text, values):
    assert grid_of("--over", [text]) == {text.partition("=")[0]: values}


def test_the_command_writes_tables_and_pictures(tmp_path, capsys):
    words = [
        "sweep",
        "--over",
        "load=0.4:0.6:2",
        "--schedulers",
        "lwr,greedy",
        "--lanes",
        "4",
        "--tasks",
        "20",
    ]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    assert "greedy" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"sweep.csv", "sweep.json", "points.jsonl", "run.json", "mean_completion.png"}
    # Again, nothing is run: the points are there.
    assert cli.run([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == json.loads((tmp_path / "out" / "sweep.json").read_text())
    # What is refused leaves the folder as it is.
    record = (tmp_path / "out" / "run.json").read_text()
    assert cli.run(["sweep", "--over", "load=0.5", "--out", str(tmp_path / "out")]) == 2
    assert "holds results of other settings" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.json").read_text() == record
    static = ["--over", "size_visible=true,false", "--recompile", *words[3:], "--out", str(tmp_path / "no")]
    assert cli.run(["sweep", *static]) == 0
    assert "no pictures: over: 'size_visible' has no axis" in capsys.readouterr().err
    for bad, message in (
        (["--over", "load=0.5", "load=0.6"], "load: given twice"),
        (["--over", "load=nan:1:3"], "at least 2 finite values"),
        (["--over", "load=0:1:1"], "at least 2 finite values"),
        (["--over", "load=log:0:1:3"], "above 0 in equal ratios"),
        (["--over", "load=0.3:x:3"], "must look like load=0.3:0.9:7"),
        (["--over", "load=0.5", "--figure", "speed"], "unknown figure"),
    ):
        assert cli.run(["sweep", *bad]) == 2
        assert message in capsys.readouterr().err


def test_a_run_is_cited_with_its_command(tmp_path, capsys):
    words = ["sweep", "--over", "load=0.4:0.6:2", "--schedulers", "lwr", "--lanes", "4", "--tasks", "20"]
    assert cli.run([*words, "--out", str(tmp_path / "out"), "--format", "svg,pdf"]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"mean_completion.svg", "mean_completion.pdf"} <= files
    assert not [name for name in files if name.endswith(".png")]
    capsys.readouterr()
    assert cli.run(["cite", str(tmp_path / "out")]) == 0
    entry = capsys.readouterr().out
    assert entry.startswith("@software{jaxlb-")
    assert f"version = {{{jaxlb.__version__}}}" in entry
    for part in ("jaxlb sweep", "--over load=0.4:0.6:2", "--schedulers lwr", "--lanes 4", "--tasks 20"):
        assert part in entry
    assert entry.count("{") == entry.count("}")
    assert cli.run(["cite"]) == 0
    assert "note" not in capsys.readouterr().out
    for words, message in (
        (["cite", str(tmp_path)], "no run folder"),
        (["compare", "--format", "gif"], "unknown --format 'gif'"),
        (["sweep", "--over", "load=0.5", "--format", ","], "unknown --format ''"),
    ):
        assert cli.run(words) == 2
        assert message in capsys.readouterr().err


MINE = """
import jax.numpy as jnp
import jaxlb

def first(observation, key):
    return jnp.zeros(observation.size.shape, jnp.int32)

def always_first():
    \"\"\"Always the first.\"\"\"
    return jaxlb.scheduling.stateless("always-first", first)

jaxlb.register("always-first", always_first)
"""


def test_parts_of_ones_own_are_imported_and_remembered(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    words = ["--import", str(tmp_path / "mine.py")]
    assert cli.run(["schedulers", *words]) == 0
    assert "Always the first." in capsys.readouterr().out
    for name in ("nowhere", str(tmp_path / "no.py")):
        assert cli.run(["schedulers", "--import", name]) == 2
        assert f"--import {name}: " in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("1 / 0")
    assert cli.run(["schedulers", "--import", str(tmp_path / "broken.py")]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_what_a_file_of_options_says_is_what_was_typed():
    settings = {"over": ["load=0.5", "tail_index=2"], "import_": ["mine"], "lanes": 4}
    command = cli._command(cli.COMMANDS["sweep"], settings)
    assert (command.over, command.import_, command.lanes) == (("load=0.5", "tail_index=2"), ("mine",), 4)
    command = cli._command(cli.COMMANDS["train"], {"method": "universal", "from_": "universal"})
    assert (command.method, command.from_) == ("universal", "universal")
