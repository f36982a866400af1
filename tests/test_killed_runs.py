"""A training that is killed goes on, and ends as if it had not been."""

import os
import random
import signal
import subprocess
import sys
import time

import chex
import pytest

import jaxlb
from jaxlb import runs

METHOD = "predictor"
"""Whatever is trained, the same code writes the folder, and this starts soonest. For a DQN see test_runs."""
SETTINGS = ("num_iterations=80", "num_lanes=20", "num_tasks=200", "num_examples=2000", "num_evaluations=80")


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    """The training goes on from where the last kill left it, and what that left can be used."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "jaxlb", "train", METHOD, "--scenario", "stale", "--out"]
    rest = ["--train", *SETTINGS]
    # Many processes of one program: compiled once.
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | compiled}
    subprocess.run([*command, whole, *rest], check=True, timeout=600, **quiet)

    def logged():
        metrics = out / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    # After so many of the 80 judgements, or the next, and then anywhere on the way from there.
    draw = random.Random(METHOD)
    for moment in sorted(draw.sample(range(1, 60), 2)):
        process = subprocess.Popen([*command, out, *rest], **quiet)
        until = max(moment, logged() + 1)
        while logged() < until:
            assert process.poll() is None
            time.sleep(0.0005)
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        left = runs.find(out)
        assert left.iteration() < left.training.settings["num_iterations"]
        if left.iteration():
            chex.assert_tree_all_finite(jaxlb.load(out).variables)
        rest = ["--resume"]
    subprocess.run([*command, out, *rest], check=True, timeout=600, **quiet)
    chex.assert_trees_all_equal(jaxlb.load(out).variables, jaxlb.load(whole).variables)
