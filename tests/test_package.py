"""The wheel: what is in it, and that it works outside a checkout, for people and for their type checker."""

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import jaxlb

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def do(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    built = tmp_path_factory.mktemp("dist")
    do(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--quiet", "--wheel-dir", built)
    (path,) = built.glob("jaxlb-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel in it, that borrows all else from this one."""
    place = tmp_path_factory.mktemp("env")
    do(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    (library,) = place.glob("lib/python*/site-packages")
    # Only the folders, not what their own .pth files name: the checkout may be among that.
    (library / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    do(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel)
    return place


def test_a_wheel_has_all_files_of_the_package_and_no_others(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("jaxlb/")}
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "jaxlb").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == kept
    assert "jaxlb/py.typed" in packed


def test_a_wheel_works_outside_a_checkout(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"cwd": tmp_path, "env": environment, "timeout": 300}
    where = do(installed / "bin" / "python", "-c", "import jaxlb; print(jaxlb.__file__)", **options).stdout
    assert Path(where.strip()).is_relative_to(installed)
    command = installed / "bin" / "jaxlb"
    assert do(command, "--version", **options).stdout == f"jaxlb {jaxlb.__version__}\n"
    assert "heavy-tail" in do(command, "scenarios", **options).stdout
    arguments = ("--schedulers", "lwr,drift-aware", "--lanes", "4", "--tasks", "20", "--out", "runs/one")
    do(command, "compare", "--scenario", "stale", *arguments, **options)
    listed = json.loads(do(command, "runs", "--json", **options).stdout)["runs"]
    assert [(run["directory"], run["command"], run["commit"]) for run in listed] == [
        ("runs/one", "compare", None)
    ]


USER = """
import jax
import jaxlb
from typing_extensions import assert_type

env, params = jaxlb.make("heavy-tail", load=0.8)
assert_type(env, jaxlb.Env)
assert_type(params, jaxlb.EnvParams)
key = jax.random.key(0)
summary = jaxlb.rollout(env, params, jaxlb.scheduler("lwr"), key, num_lanes=4, num_tasks=10)
assert_type(summary, jaxlb.Summary)
table = jaxlb.compare(env, params, {"lwr": jaxlb.scheduler("lwr")}, key, num_lanes=4, num_tasks=10)
assert_type(table.row("lwr").stationary, bool)
config = jaxlb.DQNConfig(num_iterations=10)
result = jaxlb.train_dqn(env, params, config, key)
assert_type(result.scheduler, jaxlb.Scheduler)
"""


def test_a_users_program_type_checks_against_the_wheel(installed, tmp_path):
    def errors(program):
        (tmp_path / "program.py").write_text(program)
        checker = (sys.executable, "-m", "pyright", "--pythonpath", installed / "bin" / "python")
        done = subprocess.run(
            [*map(str, checker), "--outputjson", "program.py"],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        return [found["message"] for found in json.loads(done.stdout)["generalDiagnostics"]]

    (tmp_path / "pyrightconfig.json").write_text(
        '{"typeCheckingMode": "strict", "reportUnknownMemberType": false}'
    )
    assert errors(USER) == []
    (wrong,) = errors("import jaxlb\n\njaxlb.scheduler(1)\n")
    assert '"Literal[1]" is not assignable to "str"' in wrong
