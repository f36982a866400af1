"""What the universal scheduler is to make small, by name or by weights."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.scheduling.objective import Objective


@pytest.mark.slow
def test_objectives_are_named_or_weighed(key):
    env, params = jaxlb.make("heavy-tail")
    weights = jaxlb.Weights(0.0, 1.0, 0.0, (2.0, 1.0))
    rules = {
        "completion": "universal",
        "violations": jaxlb.scheduler("universal(objective=violations)"),
        "weighed": jaxlb.scheduler("universal", objective=jaxlb.Weights(0.02, 1.0, 0.0, 2.0)),
        "the same": jaxlb.scheduler("universal", objective=Objective(0.01, violations=1.0)),
        "imbalance": jaxlb.scheduler("universal", objective="imbalance"),
    }
    table = jaxlb.compare(env, params, rules, key, num_lanes=64, num_tasks=500, warmup=500)
    violations = {name: table.row(name).sla_violation_rate for name in rules}
    assert violations["violations"] < 0.7 * violations["completion"]
    assert violations["weighed"] == violations["the same"]
    assert max(violations, key=lambda name: violations[name]) == "imbalance"
    by_class = jaxlb.scheduler("universal", objective=weights).variables.objective
    np.testing.assert_allclose(by_class.class_weights, [1.0, 0.5])
    with pytest.raises(ValueError, match="unknown objective 'speed'"):
        jaxlb.scheduler("universal", objective="speed")
    with pytest.raises(ValueError, match=r"objective = 3: must be 'completion', .* or jaxlb.Weights"):
        jaxlb.scheduler("universal", objective=3)


def test_where_little_capacity_is_free_completion_counts_more():
    rule = jaxlb.scheduler("universal", objective="violations").variables.objective
    for free in (0.7, 0.03):
        assert float(rule.crowded(jnp.float32(free)).completion) == pytest.approx(0.0003 / free)
    np.testing.assert_allclose(rule.crowded(jnp.float32(0.0003)).shares(jnp.float32(1.0)), [0.5, 0.0, 0.5])
