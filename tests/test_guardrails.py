"""Guardrails, beside their rule in plain Python."""

import numpy as np
import pytest

import jaxlb


def test_each_processor_gets_its_share_of_every_size(key):
    """Equal processors: each choice is the inner rule's, or that of those which got little of the rank."""
    env, params = jaxlb.make("heavy-tail", speed=[1.0] * 3, load=0.8, discipline="srpt")
    tasks = jaxlb.workload.sample(key, params, 400)
    tight = jaxlb.scheduler("guardrails(rule=jsq, tightness=1)")
    outcome = jaxlb.replay(env, params, tight, tasks, key)
    plain = jaxlb.replay(env, params, "jsq", tasks, key)
    ratio, mean = 1.0 + 1.0 / (1.0 + np.log(1.0 / 0.2)), float(params.size.mean())
    given: dict[int, np.ndarray] = {}
    for size, action in zip(np.asarray(tasks.size, float), np.asarray(outcome.action), strict=True):
        rank = int(np.clip(np.floor(np.log(size / mean) / np.log(ratio)), -32, 31))
        work = given.setdefault(rank, np.zeros(3))
        work[action] += size
        assert work.max() - work.min() <= mean * ratio ** (rank + 1) * (1.0 + 1e-4)
    assert (np.asarray(outcome.action) != np.asarray(plain.action)).any()
    loose = jaxlb.replay(env, params, jaxlb.scheduler("guardrails(rule=jsq, tightness=1e9)"), tasks, key)
    np.testing.assert_array_equal(loose.action, plain.action)


@pytest.mark.slow
def test_they_help_a_rule_that_minds_the_task_at_hand_only(key):
    """Under SRPT, greedy sends small tasks where they delay many: by 7 % at load 0.8."""
    env, params = jaxlb.make("stable", discipline="srpt")
    table = jaxlb.compare(
        env, params, {"greedy": "greedy", "guarded": "guardrails(rule=greedy)"}, key,
        num_lanes=32, num_tasks=1000, warmup=1000,
    )  # fmt: skip
    assert table.row("guarded").completion_difference_ci[1] < 0.0


def test_bad_tightness_is_refused():
    with pytest.raises(ValueError, match=r"tightness = 0.5: must be at least 1"):
        jaxlb.scheduler("guardrails", tightness=0.5)
    with pytest.raises(ValueError, match="scheduler 'nobody'"):
        jaxlb.scheduler("guardrails", rule="nobody")
