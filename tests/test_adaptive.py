"""The meta-scheduler: its twins do what the candidates do, and it ends up with the best of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.params import with_lane_axis
from jaxlb.replaying import watch
from jaxlb.scheduling import adaptive

HORIZON = 1e9  # costs are not forgotten


@pytest.mark.parametrize(
    ("scenario", "overrides"),
    [
        pytest.param("stale", {}, marks=pytest.mark.slow),
        # What is hidden from the rules is hidden from them in their twins too.
        ("two-server", {"size_visible": True, "wait_visible": False, "queue_capacity": 8}),
        pytest.param("heavy-tail", {}, marks=pytest.mark.slow),
        pytest.param("seed", {}, marks=pytest.mark.slow),
    ],
)
def test_a_twin_costs_what_its_rule_costs_alone(key, scenario, overrides):
    """Costs of each twin, against a replay of the same tasks under that rule."""
    env, params = jaxlb.make(scenario, **overrides)
    names = ("lwr", "predictive", "greedy", "rr")
    rules = tuple(jaxlb.scheduler(name) for name in names)
    hedge = adaptive.hedge(rules, horizon=HORIZON)
    tasks = workload.sample(key, with_lane_axis(params, (5,)), 200, (5,))
    _, costs = watch(env, params, hedge, tasks, key, lambda rule, memory, observation: memory)
    costs = np.asarray(costs.twins.cost)[-1]  # before the last task
    unit = float(params.size.mean() / params.speed.mean())
    for name, rule, cost in zip(names, rules, costs, strict=True):
        alone = jaxlb.replay(env, params, rule, tasks, key).completion[:-1] / unit
        np.testing.assert_allclose(cost, np.log1p(alone).sum(0), rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["slow-servers", "stale", "heavy-tail"])
def test_it_ends_up_with_the_best_candidate(key, scenario):
    env, params = jaxlb.make(scenario)
    names = ("lwr", "predictive", "greedy")
    entries = {name: jaxlb.scheduler(name) for name in (*names, "hedge")}
    table = jaxlb.compare(env, params, entries, key, num_lanes=128, num_tasks=1500, warmup=1000)
    costs = {name: table.row(name).mean_completion for name in names}
    assert table.row("hedge").mean_completion < 1.05 * min(costs.values())
    assert table.row("hedge").mean_completion < 0.98 * max(costs.values())


def test_a_candidate_keeps_its_variables(key):
    """A learned one, that always takes the processor its variables name."""
    named = jaxlb.Scheduler(
        name="named",
        variables=jnp.int32(0),
        start=lambda env, params, lanes: jnp.zeros(lanes, jnp.int32),
        act=lambda variables, memory, observation, key: (
            jnp.full(observation.size.shape, variables),
            memory + 1,
        ),
    )
    env, params = jaxlb.make("slow-servers")
    hedge = adaptive.hedge((named, named.replace(variables=jnp.int32(3))), rate=100.0)
    tasks = workload.sample(key, params, 100)
    outcome = jaxlb.replay(env, params, hedge, tasks, key)
    # Processor 3 is ten times as fast as processor 0.
    assert (np.asarray(outcome.action)[5:] == 3).all()


def test_weights_forget(key):
    """After a change, the rule that is best now is found again."""
    env, params = jaxlb.make("stale")
    hedge = adaptive.hedge(horizon=50.0)
    memory = hedge.start(env, with_lane_axis(params, (3,)), (3,))
    tasks = workload.sample(key, with_lane_axis(params, (3,)), 2, (3,))
    state = env.start(with_lane_axis(params, (3,)), jax.tree.map(lambda leaf: leaf[0], tasks), key)
    seen = env.observe(state, with_lane_axis(params, (3,)), key)
    action, after = jax.jit(hedge.act)(hedge.variables, memory, seen, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(memory, after)
    costly = memory.replace(twins=memory.twins.replace(cost=memory.twins.cost + 100.0))
    _, later = jax.jit(hedge.act)(hedge.variables, costly, seen, key)
    np.testing.assert_allclose(later.twins.cost - after.twins.cost, 100.0 * (1 - 1 / 50), rtol=1e-4)
    assert action.shape == (3,)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="candidates: 'lwr': must be schedulers"):
        adaptive.hedge(("lwr",))
    with pytest.raises(ValueError, match="at least one"):
        adaptive.hedge(())
    with pytest.raises(ValueError, match="rate = 0: must be above 0"):
        jaxlb.scheduler("hedge", rate=0.0)
    with pytest.raises(ValueError, match=r"horizon = 0\.5: must be at least 1"):
        jaxlb.scheduler("hedge", horizon=0.5)
