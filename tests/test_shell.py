"""Habits of a command: help, version, verbosity, colours, exit codes, Ctrl-C, completion."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import jaxlb
from jaxlb import cli
from tests import small

JAXLB = [sys.executable, "-m", "jaxlb"]
SMALL = ("--schedulers", "rr,lwr", "--lanes", "4", "--tasks", "20")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[1-7]|9[0-7])[0-9;]*m")


def on_a_terminal(*arguments, **environment):
    """Exit code and all that a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"} | environment
    process = subprocess.Popen(
        [*JAXLB, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 65536):
            written += data
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    return process.wait(), written.decode()


def test_help_fits_a_screen_with_a_line_for_each_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        cli.run(["--help"])
    lines = capsys.readouterr().out.rstrip().splitlines()
    # On a terminal of 80 columns the line of usage takes two; with a line for each command there are 13 more.
    assert sum(-(-max(len(line), 1) // 80) for line in lines) <= 13 + len(cli.COMMANDS)
    for name in cli.COMMANDS:
        (line,) = (line for line in lines if f"• {name} " in line)
        assert line.rstrip("│ ").endswith(".")  # its whole sentence


def test_every_command_has_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.run([name, "--help"])
        assert f"usage: jaxlb {name}" in capsys.readouterr().out


def test_version(capsys):
    for arguments in (["--version"], ["compare", "--version"], ["-V"]):
        assert cli.run(arguments) == 0
        assert capsys.readouterr().out == f"jaxlb {jaxlb.__version__}\n"


def test_a_bare_command_says_what_to_do(capsys):
    assert cli.run([]) == 2
    assert "compare, sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_quiet_leaves_results_and_errors(tmp_path, capsys):
    assert cli.run(["compare", *SMALL, "--out", str(tmp_path / "one")]) == 0
    loud = capsys.readouterr()
    assert f"to {tmp_path / 'one'}" in loud.err
    assert cli.run(["-q", "compare", *SMALL, "--out", str(tmp_path / "two")]) == 0
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == (loud.out, "")
    assert cli.run(["compare", "--load", "2", "-q"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_verbose_adds_tracebacks_and_what_is_compiled(capsys):
    assert cli.run(["compare", "--load", "2", "-v"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("allow_overload (--allow-overload) permits it\n")
    done = subprocess.run([*JAXLB, "compare", *SMALL, "-v"], capture_output=True, text=True, check=True)
    assert "Compiling" in done.stderr and "Compiling" not in done.stdout


@pytest.mark.slow
def test_a_terminal_is_coloured_unless_it_is_not_wanted():
    for arguments, code in ((["--help"], 0), (["verify", "--lanse"], 2)):
        got, shown = on_a_terminal(*arguments, NO_COLOR="")
        assert got == code
        assert bool(COLOUR.search(shown)) == (code == 0)  # an error is a plain line
        _, shown = on_a_terminal(*arguments, NO_COLOR="1")
        assert not COLOUR.search(shown)
        done = subprocess.run([*JAXLB, *arguments], capture_output=True, text=True, check=False)
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_terminal_is_told_what_takes_so_long():
    code, shown = on_a_terminal("compare", *SMALL)
    assert code == 0 and "compiling" in shown
    # The spinner turns meanwhile.
    assert len(set(re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", shown))) > 1
    _, shown = on_a_terminal("compare", *SMALL, "-q")
    assert "compiling" not in shown


# A shell's background jobs, and so what they start, ignore the keys, unless they are told not to.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("jaxlb", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "--lanes", "4096", "--tasks", "100000"),
        pytest.param(("verify",), marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_leaves_a_run_that_can_be_begun_again(arguments, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *arguments, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    config = out / "run.json"
    again = f"jaxlb {arguments[0]} --config {config} --out {out}"
    goes_on, anew = f"stopped; {again} goes on", f"stopped before there were results; {again} begins again"
    assert said == f"jaxlb: {goes_on if arguments[0] == 'verify' else anew}\n"
    listed = subprocess.run([*JAXLB, "runs", tmp_path], capture_output=True, text=True, check=True)
    assert "not finished" in listed.stdout


def test_ctrl_c_is_not_lost_within_a_callback():
    """As where JAX's callback of the garbage collector runs, which can raise nothing."""
    lost = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import os, sys, time
import jaxlb.cli
def run(self):
    class Lost:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    Lost()
    for _ in range(500):
        time.sleep(0.01)
jaxlb.cli.Scenarios.run = run
sys.argv = ["jaxlb", "scenarios"]
jaxlb.cli.main()
"""
    found = subprocess.run(
        [sys.executable, "-c", lost], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stderr) == (130, "jaxlb: stopped\n")


def test_ctrl_c_where_nothing_is_written(monkeypatch, capsys):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Scenarios, "run", stop)
    assert cli.run(["scenarios"]) == 130
    assert capsys.readouterr().err == "jaxlb: stopped\n"


@pytest.mark.slow
def test_a_training_that_diverges_exits_with_1(tmp_path, capsys):
    settings = (*small.DQN, "learning_rate=1e30")
    assert cli.run(["train", "dqn", "--train", *settings, "--out", str(tmp_path / "wild")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("jaxlb: error: training diverged")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_complete(shell, tmp_path):
    script = tmp_path / "script"
    with pytest.raises(SystemExit, match="0"):
        cli.run(["--tyro-write-completion", shell, str(script)])
    assert all(name in script.read_text() for name in cli.COMMANDS)
    if shell != "bash":
        return
    # What bash does on the Tab key.
    ask = f"""
        source {script}
        function=$(complete -p jaxlb | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        COMP_WORDS=($1); COMP_CWORD=$2; $function; echo "${{COMPREPLY[@]}}"
    """

    def completed(words, place):
        bash = [str(shutil.which("bash")), "-c", ask, "bash", words, str(place)]
        return subprocess.run(bash, capture_output=True, text=True, check=True).stdout.split()

    assert set(completed("jaxlb sche", 1)) == {"schedulers"}
    assert "--trace-format" in completed("jaxlb compare --tra", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "form"), [("head -1", ""), ("true", " --json")], ids=["head", "true, JSON"]
)
def test_results_are_written_though_nobody_reads_them(reader, form, tmp_path):
    command = " ".join([*JAXLB, "compare", *SMALL, "--out", str(tmp_path)]) + form
    done = subprocess.run(
        ["bash", "-c", f"{command} | {reader}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"compare.json", "compare.csv", "violations.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_signs_that_a_terminal_cannot_show_are_replaced():
    asked = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*JAXLB, "compare", *SMALL], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "? is half the 95 % interval" in done.stdout


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_command(tmp_path):
    def programs(**asked):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | asked
        subprocess.run([*JAXLB, "compare", *SMALL], env=environment, capture_output=True, check=True)
        return {path.name for path in tmp_path.rglob("*-cache")}

    assert programs(JAX_ENABLE_COMPILATION_CACHE="false") == set()
    kept = programs()
    assert kept and all(path.is_relative_to(tmp_path / "jaxlb") for path in tmp_path.rglob("*-cache"))
    # Under the wrong circumstances a small one takes long enough to be kept the second time.
    loops = {name for name in kept if "continue_rollout" in name}
    assert loops and {name for name in programs() if "continue_rollout" in name} == loops
    elsewhere = tmp_path / "mine"
    programs(JAX_COMPILATION_CACHE_DIR=str(elsewhere))
    assert any(elsewhere.iterdir())
