"""The command as a user runs it: a process of its own."""

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlb
from jaxlb import checks, cli, files, verification
from jaxlb.cli import common
from jaxlb.verification import Experiment, Finding


def jaxlb_command(*arguments, cwd=None):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "COLUMNS": "120"
    }
    return subprocess.run(
        [sys.executable, "-m", "jaxlb", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
    )


SMALL = ("--schedulers", "rr,lwr", "--lanes", "16", "--tasks", "50")


def test_compare_writes_json_and_nothing_else_to_standard_output():
    done = jaxlb_command("compare", "--scenario", "stable", *SMALL, "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert (table["scenario"], table["num_lanes"], table["num_tasks"], table["seed"]) == ("stable", 16, 50, 3)
    assert [row["name"] for row in table["schedulers"]] == ["rr", "lwr"]


@pytest.mark.slow
def test_compare_writes_the_same_again():
    first, again = (
        jaxlb_command("compare", "--scenario", "stable", *SMALL, "--seed", "3", "--json") for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_compare_on_a_trace_with_output_folder(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("time,size\n" + "".join(f"{i * 0.5},{1 + i % 7}\n" for i in range(200)) + "9999,0\n")
    out = tmp_path / "a" / "b"
    done = jaxlb_command(
        "compare", "--scenario", "heavy-tail", *SMALL, "--trace", trace, "--trace-format", "csv",
        "--load", "0.5", "--baseline", "rr", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "jaxlb: warning:" in done.stderr and "dropped 1 tasks" in done.stderr
    assert "heavy-tail on trace.csv, load 0.5" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "run.json", "compare.json", "compare.csv", "completion_tails.png", "violations.png",
        "backlogs.png", "choices.png",
    }  # fmt: skip
    table = json.loads((out / "compare.json").read_text())
    assert (table["trace"], table["load"], table["baseline"]) == ("trace.csv", 0.5, "rr")
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, table["schedulers"], strict=True):
        assert float(row["mean_completion"]) == expected["mean_completion"]
        low, _ = expected["mean_completion_ci"] or ("", "")
        assert row["mean_completion_ci_low"] == str(low)


@pytest.mark.slow
def test_snapshot_and_other_parameters():
    done = jaxlb_command(
        "compare", "--scenario", "heavy-tail", "--schedulers", "oracle,rr", "--lanes", "8", "--tasks", "20",
        "--snapshot", "--behaviour", "rr", "--set", "tail_index=1.2", "speed=[1,2,3]", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert table["behaviour"] == "rr" and table["baseline"] == "oracle"
    assert table["schedulers"][0]["oracle_agreement"] == 1.0


@pytest.mark.parametrize("command", ["scenarios", "schedulers"])
def test_lists(command, capsys):
    assert cli.run([command]) == 0
    shown = capsys.readouterr().out
    for name in getattr(jaxlb, command)():
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "hevy-tail"], "unknown scenario 'hevy-tail'; did you mean heavy-tail"),
        (["--schedulers", "lwr,gredy"], "unknown scheduler 'gredy'; did you mean greedy"),
        (["--schedulers", ","], "schedulers = {}: must name at least one"),
        (["--load", "0"], "load = 0: must be above 0"),
        (["--load", "nan"], "load = nan"),
        (["--load", "1.2"], "load = 1.2: must be below 1"),
        (["--lanes", "0"], "lanes = 0: must be a whole number of at least 1"),
        (["--tasks", "0"], "tasks = 0: must be a whole number of at least 1"),
        (["--seed", "-1"], "seed = -1: must be a whole number of at least 0"),
        (["--baseline", "fpi", "--schedulers", "lwr"], "unknown baseline 'fpi'"),
        (["--set", "tail_index"], "must look like NAME=VALUE"),
        (["--set", "tail_idx=2"], "unknown parameter 'tail_idx'; did you mean tail_index"),
        (["--trace", "x.csv"], "--trace and --trace-format go together"),
        (["--trace", "none.csv", "--trace-format", "csv"], "none.csv: cannot be read: No such file"),
        (["--trace", "none.csv", "--trace-format", "xml"], "unknown trace format 'xml'"),
        (["--trace-options", "start=3"], "--trace-options: of which trace?"),
        (
            ["--trace", "x.csv", "--trace-format", "csv", "--trace-options", "start"],
            "must look like NAME=VALUE",
        ),
        (
            ["--trace", "x.csv", "--trace-format", "csv", "--trace-options", "size_colum=x"],
            "unknown option of trace format 'csv' 'size_colum'; did you mean size_column",
        ),
        (["--set", 'load="0.5"'], "load = '0.5': must be a number"),
        (["--set", "load=null"], "load = None: must be a number"),
        (
            ["--seed", "4294967296"],
            "seed = 4294967296: must be a whole number of at least 0, at most 4294967295",
        ),
        (["--out", ""], "--out '': must be a path"),
        (["--out="], "--out '': must be a path"),
        (
            ["--set", "load=0.5", "--set", "tail_index=1.2"],
            "--set: given twice; all its NAME=VALUE go behind one",
        ),
        (["--out", "/proc/nothing"], "--out /proc/nothing: cannot be written"),
        (["--lanse", "4"], "--lanse"),
        (["--lanes", "four"], "four"),
    ],
)
def test_bad_input_exits_with_2_and_one_clear_line(arguments, message, capsys):
    assert cli.run(["compare", *arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    lines = [line for line in written.err.splitlines() if line.strip()]
    assert len(lines) == 1, written.err
    assert lines[0].startswith("jaxlb: error: ") and message in lines[0]


@pytest.mark.parametrize(("exact", "passed"), [(1.0, True), (2.0, False)])
def test_verify_writes_what_it_found_and_tells_by_its_exit_code(exact, passed, monkeypatch, capsys, tmp_path):
    finding = Finding([0.99, 1.01] * 50, exact)

    def experiments():
        return [
            Experiment("One processor", "tiny", lambda key, thoroughness: {"a case": finding}),
            Experiment(
                "Precision", "long", lambda key, thoroughness: {"long": Finding(0.0, 0.0)}, quick=False
            ),
        ]

    monkeypatch.setattr(verification, "experiments", experiments)
    command = cli.Verify(json=True, out=tmp_path, quick=True)
    if passed:
        command.run()
    else:
        with pytest.raises(SystemExit, match="1"):
            command.run()
    expected = [verification.judge("One processor", "a case", finding, verification.QUICK)._asdict()]
    names = ["group", "name", "measured", "standard_error", "exact", "passed"]
    assert (list(expected[0]), expected[0]["passed"]) == (names, passed)
    assert json.loads(capsys.readouterr().out) == {"cases": expected}
    assert json.loads((tmp_path / "verification.json").read_text()) == {"cases": expected}
    page = (tmp_path / "verification.md").read_text()
    assert f"jaxlb verify --quick --out {tmp_path}" in page
    assert ("All 1 cases passed" if passed else "**1 of 1 cases failed**") in page
    assert (tmp_path / "verification.png").stat().st_size > 5000


def test_a_stopped_verification_goes_on(monkeypatch, capsys, tmp_path):
    ran, stops = [], [True]

    def run(name, key, thoroughness):
        if name == "second" and stops:
            stops.clear()
            raise KeyboardInterrupt
        ran.append(name)
        return {name: Finding([0.99, 1.01] * 50, 1.0)}

    def experiments():
        return [Experiment("Precision", name, functools.partial(run, name)) for name in ("first", "second")]

    monkeypatch.setattr(verification, "experiments", experiments)
    assert cli.run(["verify", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.strip().endswith(f"--out {tmp_path} goes on")
    for other in (["--seed", "1"], ["--quick"]):  # which would have other results
        assert cli.run(["verify", *other, "--out", str(tmp_path)]) == 2
        assert "cases.jsonl: holds results of other settings" in capsys.readouterr().err
    assert cli.run(["verify", "--out", str(tmp_path)]) == 0
    assert ran == ["first", "second"]
    assert "All 2 cases passed, in several stretches on" in (tmp_path / "verification.md").read_text()
    assert cli.run(["verify", "--out", str(tmp_path)]) == 0  # a finished one is run again as a whole
    assert sorted(ran) == ["first", "first", "second", "second"]


def test_commas_within_brackets_do_not_separate_schedulers():
    env, params = jaxlb.make("heavy-tail")
    listed = "lwr, guarded-sita(big=2, share=0.8),,power-of-d(d=3)"
    named = {
        "lwr": jaxlb.scheduler("lwr"),
        "guarded-sita(big=2, share=0.8)": jaxlb.scheduler("guarded-sita", big=2, share=0.8),
        "power-of-d(d=3)": jaxlb.scheduler("power-of-d", d=3),
    }
    assert cli.Compare(schedulers=listed).chosen(env, params) == named


@pytest.mark.slow
def test_what_has_not_settled_is_marked_in_all_that_is_written(tmp_path):
    done = jaxlb_command(
        "compare", "--scenario", "seed", "--schedulers", "rr,lwr", "--lanes", "32", "--tasks", "400",
        "--warmup", "400", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rr (not stationary)" in done.stdout and "busy all the time and falling behind" in done.stdout
    with (tmp_path / "compare.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["rr"]["stationary"], rows["lwr"]["stationary"]) == ("False", "True")
    assert rows["rr"]["mean_completion_ci_low"] == "" != rows["lwr"]["mean_completion_ci_low"]
    table = json.loads((tmp_path / "compare.json").read_text())
    assert [row["stationary"] for row in table["schedulers"]] == [False, True]
    assert json.loads((tmp_path / "run.json").read_text())["result"].startswith("lwr: ")


def test_numbers_may_lack_a_digit_before_or_after_the_point():
    given = [".85", "2.", "-.5e3", "+1.", "03", "1", "1.5", "."]
    found = checks.settings("--set", [f"x{place}={text}" for place, text in enumerate(given)])
    assert list(found.values()) == [0.85, 2.0, -500.0, 1.0, "03", 1, 1.5, "."]


@pytest.mark.parametrize("command", [["scenarios"], ["--version"]])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_is_told_in_one_line(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jaxlb", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2 and done.stderr == "jaxlb: error: [Errno 28] No space left on device\n"


@pytest.mark.slow
def test_warmup_is_what_theory_asks_for_up_to_the_number_of_tasks():
    def warmup(*options):
        done = jaxlb_command("compare", "--schedulers", "lwr", "--lanes", "2", "--json", *options)
        return json.loads(done.stdout)["warmup"]

    assert warmup("--scenario", "stable", "--tasks", "4000") == 1000  # a quarter is enough
    assert 220 < warmup("--scenario", "stable", "--tasks", "400") < 260  # M/M/1 at load 0.8 as fast
    assert warmup("--scenario", "stable", "--tasks", "50", "--load", "0.95") == 50
    assert warmup("--scenario", "stable", "--tasks", "50", "--warmup", "7") == 7


def test_progress_is_told_where_there_is_no_terminal(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO", "jaxlb"), common.progress() as advance:
        for second in range(0, 150, 10):
            now[0] = float(second)
            advance("lwr", second / 150)
    assert caplog.messages == ["40% done, at lwr", "80% done, at lwr"]


def test_kept_results_begin_anew_where_nothing_was_kept_yet(tmp_path):
    path, about = tmp_path / "kept", {"of": "this"}
    for torn in ("", '{"of"', '{"of": "this"}'):
        path.write_text(torn)
        kept = files.Kept(path, about)
        assert kept.found == []
        kept.add({"one": 1})
        assert files.Kept(path, about).found == [{"one": 1}]
    with path.open("a") as file:
        file.write('{"two')  # cut off
    assert files.Kept(path, about).found == [{"one": 1}]
    files.Kept(path, about).add({"two": 2})
    assert files.Kept(path, about).found == [{"one": 1}, {"two": 2}]
    with pytest.raises(ValueError, match="holds results of other settings"):
        files.Kept(path, {"of": "that"})
