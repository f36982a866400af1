"""Run folders of all commands: what they tell, and that a command is done again from what it wrote."""

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import cli, records
from tests import small

COMPARE = ("compare", "--scenario", "stable", "--schedulers", "rr,lwr", "--lanes", "4", "--tasks", "20")


def options(directory):
    return json.loads((directory / "run.json").read_text())["options"]


def jaxlb_run(*arguments):
    assert cli.run([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a comparison, a training, and what came of it elsewhere."""
    root = tmp_path_factory.mktemp("root")
    jaxlb_run(
        *COMPARE, "--set", "num_processors=3", "--load", "0.5", "--seed", "7", "--out", root / "compared"
    )
    jaxlb_run("train", "dqn", "--seed", "2", "--train", *small.DQN, "--out", root / "deep" / "dqn")
    jaxlb_run("evaluate", root / "deep" / "dqn", "--schedulers", "lwr", "--lanes", "4", "--tasks", "20",
              "--out", root / "evaluated")  # fmt: skip
    return root


def test_a_folder_tells_what_it_is_about(root):
    about = json.loads((root / "compared" / "run.json").read_text())
    assert (about["command"], about["scenario"], about["seed"]) == ("compare", "stable", 7)
    assert about["versions"] == {
        "jaxlb": jaxlb.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
    assert about["started"] <= about["finished"]
    rows = json.loads((root / "compared" / "compare.json").read_text())["schedulers"]
    best = min(rows, key=lambda row: row["mean_completion"])
    assert about["result"] == f"{best['name']}: completion {best['mean_completion']:.4g}"


def test_the_commit_is_that_of_the_working_directory(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.commit() is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    assert records.commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "file").write_text("two")
    assert records.commit() == git("rev-parse", "--short=12", "HEAD") + "-dirty"


@pytest.mark.slow
def test_a_configuration_gives_the_same_again_and_options_count_more(root, tmp_path):
    config = root / "compared" / "run.json"
    jaxlb_run("compare", "--config", config, "--out", tmp_path / "again")
    same = (tmp_path / "again" / "compare.json").read_text()
    assert same == (root / "compared" / "compare.json").read_text()
    assert options(tmp_path / "again") == options(root / "compared")
    jaxlb_run(
        "compare", "--lanes", "3", "--config", config, "--set", "speed=[1,2,3]", "--out", tmp_path / "other"
    )
    asked = options(tmp_path / "other")
    assert (asked["lanes"], asked["tasks"], asked["load"]) == (3, 20, 0.5)
    assert asked["set"] == ["num_processors=3", "speed=[1,2,3]"]
    table = json.loads((tmp_path / "other" / "compare.json").read_text())
    assert (table["num_lanes"], table["seed"]) == (3, 7)


@pytest.mark.slow
def test_a_training_and_an_evaluation_are_done_again_from_their_configurations(root, tmp_path):
    jaxlb_run("train", "--config", root / "deep" / "dqn" / "run.json", "--out", tmp_path / "dqn")
    for first, second in zip(
        *(jax.tree.leaves(jaxlb.load(out).variables) for out in (root / "deep" / "dqn", tmp_path / "dqn")),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
    jaxlb_run("evaluate", "--config", root / "evaluated" / "run.json", "--out", tmp_path / "evaluated")
    assert (tmp_path / "evaluated" / "compare.json").read_text() == (
        root / "evaluated" / "compare.json"
    ).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"command": "compare", "options": {"lanes": "four"}}', "four"),
        ('{"command": "compare", "options": {"lanse": 4}}', "unknown option 'lanse'; did you mean lanes"),
        ('{"command": "train", "options": {"method": "dqn"}}', "of jaxlb train, not of jaxlb compare"),
        ('["compare"]', "must name a command and its options"),
        ('{"command": "compare"}', "must name a command and its options"),
        ('{"command": "compare"', "cannot be read"),
        ("command: compare", "cannot be read"),
    ],
)
def test_a_bad_configuration_is_refused_in_one_line(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_text(text)
    assert cli.run(["compare", "--config", "run.json"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxlb: error: --config run.json: ") and message in said and said.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["run.json"]


def test_a_configuration_that_is_not_there_is_missed(capsys):
    assert cli.run(["compare", "--config", "none.json"]) == 2
    assert "--config none.json: cannot be read" in capsys.readouterr().err
    assert cli.run(["compare", "--config"]) == 2
    assert "--config" in capsys.readouterr().err


def test_a_folder_is_of_one_command(root, capsys):
    before = (root / "deep" / "dqn" / "run.json").read_text()
    assert cli.run([*COMPARE, "--out", str(root / "deep" / "dqn")]) == 2
    assert "holds a run of jaxlb train: choose another folder" in capsys.readouterr().err
    assert (root / "deep" / "dqn" / "run.json").read_text() == before


def test_runs_lists_them_with_the_newest_first(root, capsys):
    jaxlb_run("runs", root, "--json")
    listed = json.loads(capsys.readouterr().out)["runs"]
    began = [about["started"] for about in listed]
    assert began == sorted(began, reverse=True) and began[0] > began[-1]
    places = {about["directory"] for about in listed}
    assert places == {str(root / name) for name in ("compared", "deep/dqn", "evaluated")}
    assert {about["scenario"] for about in listed} == {"stable", "heavy-tail"}
    jaxlb_run("runs", root)
    shown = capsys.readouterr().out
    for about in listed:
        # A long result is wrapped in its cell.
        assert all(word in shown for word in about["result"].split())
        assert about["versions"]["jaxlb"] in shown
    assert "deep/dqn" in shown


def test_runs_tells_what_is_not_finished_and_what_cannot_be_read(root, tmp_path, capsys):
    shutil.copytree(root / "compared", tmp_path / "stopped")
    about = json.loads((tmp_path / "stopped" / "run.json").read_text()) | {"finished": None, "result": None}
    (tmp_path / "stopped" / "run.json").write_text(json.dumps(about))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "run.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"strange/run.json: not one that jaxlb wrote"):
        jaxlb_run("runs", tmp_path)
    assert "not finished" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    jaxlb_run("runs", tmp_path / "empty")
    assert "no runs in" in capsys.readouterr().out
    assert cli.run(["runs", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_loading_resolves_no_pickle(root):
    """Python tells an audit hook of every global that an unpickler resolves; there is to be none."""
    program = """
        import sys, pickle
        seen = []
        sys.addaudithook(lambda event, args: seen.append(args) if event == "pickle.find_class" else None)
        pickle.loads(pickle.dumps(sys.exit))
        assert seen == [("sys", "exit")], "the hook does not work"
        seen.clear()
        import jaxlb
        from jaxlb import cli
        jaxlb.load(sys.argv[1])
        assert cli.run(["evaluate", sys.argv[1], "--schedulers", "lwr", "--lanes", "4", "--tasks", "20"]) == 0
        assert cli.run(["compare", "--config", sys.argv[2]]) == 0
        assert not seen, seen
    """
    arguments = [str(root / "deep" / "dqn"), str(root / "compared" / "run.json")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class _Trap:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_weights_that_are_pickles_are_refused_and_run_nothing(root, tmp_path, monkeypatch):
    trap = pickle.dumps(_Trap())
    monkeypatch.chdir(tmp_path)
    pickle.loads(trap)
    assert Path("ran").exists()  # the trap works
    Path("ran").unlink()
    shutil.copytree(root / "deep" / "dqn", "bad")
    whole = Path("bad/weights/seed-2").read_bytes()
    for spoilt in (trap, whole[:-100], whole.split(b"\n")[0] + b"\n" + trap, b""):
        Path("bad/weights/seed-2").write_bytes(spoilt)
        with pytest.raises(ValueError, match="bad/weights/seed-2: cannot be read"):
            jaxlb.load("bad")
    assert not Path("ran").exists()


def test_settings_that_are_pickles_are_refused_and_run_nothing(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "deep" / "dqn", "bad")
    Path("bad", records.RECORD).write_bytes(pickle.dumps(_Trap()))
    for arguments in (["evaluate", "bad"], ["train", "--config", "bad/run.json", "--out", "new"]):
        assert cli.run(arguments) == 2
        assert "cannot be read" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="cannot be read"):
        assert cli.run(["runs", "."]) == 0
    assert not Path("ran").exists()
