"""`jaxlb verify` judges rightly, and would notice if the simulator were wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlb import verification
from jaxlb.env import Env
from jaxlb.numerics import at_processor
from jaxlb.stations import FCFS
from jaxlb.verification import Finding, judge


def verdict(samples, exact, thoroughness=1.0, **options):
    return judge("group", "name", Finding(np.asarray(samples), exact, **options), thoroughness)


def test_a_case_fails_beyond_four_standard_errors_and_its_tolerance():
    noise = np.array([-1.0, 1.0]).repeat(50) * 0.01  # standard error 0.001005
    assert verdict(1.0 + noise, 1.0).passed
    assert verdict(1.0045 + noise, 1.0).passed  # 4.5 standard errors, but within 0.5 %
    assert not verdict(1.0055 + noise, 1.0).passed
    assert verdict(1.015 + noise, 1.0, tolerance=0.02).passed
    case = verdict(1.002 + noise, 1.0)
    assert case.measured == pytest.approx(1.002)
    assert case.standard_error == pytest.approx(0.01 * np.sqrt(100 / 99) / 10)
    assert case.deviation() == pytest.approx(0.002 / case.standard_error)


def test_a_case_fails_if_it_says_too_little_or_nothing():
    noise = np.array([-1.0, 1.0]).repeat(50) * 0.03  # half width 0.6 %
    assert not verdict(1.0 + noise, 1.0).passed
    assert verdict(1.0 + noise, 1.0, precision=0.02).passed
    assert verdict(1.0 + noise, 1.0, thoroughness=0.25).passed  # half as precise will do
    broken = verdict([1.0, 1.0, np.nan, np.inf], 1.0)
    assert (broken.passed, broken.name) == (False, "name (2 of 4 lanes not finite)")
    assert not verdict([np.nan], 1.0).passed


def test_what_is_not_random_is_compared_as_it_is():
    assert verdict(0.0, 0.0, tolerance=0.0).passed
    assert not verdict(1e-9, 0.0, tolerance=0.0).passed
    assert verdict(1e-7, 0.0, tolerance=1e-6).passed
    assert verdict(3e-3, 0.0, tolerance=0.0, standard_error=1e-3).passed
    assert not verdict(5e-3, 0.0, tolerance=0.0, standard_error=1e-3).passed


def served_lifo(self, state, speed, task, number, action):
    """The newest task goes before all that wait; only the one in service is finished first."""
    remaining = (state.departure - state.clock) + (state.free_error - state.clock_error)[:, None]
    # Of the tasks still there, the one in service is the first to depart.
    in_service = remaining.min(1, where=remaining > 0, initial=jnp.inf)
    in_service = jnp.where(state.wait > 0, in_service, 0.0)
    after, _, service = RIGHT.assign(self, state, speed, task, number, action)
    return after, at_processor(in_service, jnp.asarray(action)), service


def speed_ignored(self, state, speed, task, number, action):
    return RIGHT.assign(self, state, jnp.ones_like(speed), task, number, action)


def off_by_one_service(self, state, speed, task, number, action):
    after, wait, service = RIGHT.assign(self, state, speed, task, number, action)
    return after, wait + service, service


def gap_applied_after(self, state, action, next_task, params, key):
    """A task is assigned as if its own gap had not passed yet; that passes afterwards."""
    late, outcome, reward = RIGHT.transition(
        self, state, action, next_task.replace(gap=state.task.gap), params, key
    )
    return late.replace(task=next_task), outcome, reward


class RIGHT:
    assign = FCFS.assign
    transition = staticmethod(Env.transition)


def failures(name, key):
    """Names of the cases that fail in a short run of an experiment."""
    jax.clear_caches()  # compiled programs would not notice a fault
    (experiment,) = (one for one in verification.experiments() if one.name == name)
    findings = experiment.run(key, 0.02)
    cases = [judge(experiment.group, name, finding, 0.02) for name, finding in findings.items()]
    jax.clear_caches()
    return [case.name for case in cases if not case.passed]


def _function(experiment):
    return getattr(experiment.run, "func", experiment.run)


QUICK = {_function(one) for one in verification.experiments() if one.quick}
REST = {_function(one): one for one in verification.experiments() if _function(one) not in QUICK}
"""One experiment of each kind that the quick run has not."""


@pytest.mark.slow
@pytest.mark.parametrize("experiment", REST.values(), ids=lambda one: f"{one.group}-{one.name}")
def test_experiments_that_are_not_quick_run_too(experiment, key):
    for name, finding in experiment.run(key, 1e-3).items():
        assert np.isfinite(finding.samples).any(), name
        assert np.isfinite(finding.exact), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "fault", "experiment"),
    [
        (FCFS, "assign", served_lifo, "speeds 1 and 0.2"),
        (FCFS, "assign", speed_ignored, "speeds 1 and 0.2"),
        (FCFS, "assign", off_by_one_service, "speeds 1 and 0.2"),
        (Env, "transition", gap_applied_after, "Kiefer-Wolfowitz"),
    ],
    ids=["served LIFO", "speed ignored", "wait off by one service", "gap applied after"],
)
def test_a_fault_is_caught(owner, name, fault, experiment, key, monkeypatch):
    monkeypatch.setattr(owner, name, fault)
    failed = failures(experiment, key)
    print(f"{len(failed)} cases failed: {failed}")
    assert failed


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["Kiefer-Wolfowitz", "speeds 1 and 0.2"])
def test_without_a_fault_nothing_fails(experiment, key):
    """What the test above judges by."""
    assert failures(experiment, key) == []
