"""The boundary of service: the dynamics read a station through its view, and FCFS costs nothing behind it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.numerics import at_processor
from jaxlb.stations import FCFS, Station
from tests import small

# Equations in the program of a rollout before there were stations, under the settings of these tests: the
# larger of the counts under JAX 0.10.2 and 0.12. A figure that came later, completion by priority, added 14,
# for which the oracle's limit is raised: the others have room.
EQUATIONS = {
    ("stable", "lwr"): 1354,
    ("heavy-tail", "guarded-sita"): 1391,
    ("stale", "drift-aware"): 1954,
    ("seed", "oracle"): 1502,
    ("large", "sed"): 1941,
    ("park", "jsq"): 1293,
}


def equations(jaxpr):
    """Of a program, and of all programs in it."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(part, "jaxpr", part)
                count += equations(inner) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.parametrize(("scenario", "rule"), EQUATIONS)
def test_the_boundary_costs_nothing(scenario, rule, key):
    env, params = jaxlb.make(scenario)
    scheduler = jaxlb.scheduler(rule)
    carry = start_rollout(env, params, scheduler, key, 8)

    def run(params, carry, num_tasks):
        return continue_rollout(env, params, scheduler, carry, num_tasks)

    assert equations(jax.make_jaxpr(run)(params, carry, 5).jaxpr) <= EQUATIONS[scenario, rule]


@dataclasses.dataclass(frozen=True)
class SlowToStart(FCFS):
    """FCFS that takes `setup` time more for every task: a station of one's own."""

    setup: float = 0.5

    def assign(self, state, speed, task, number, action):
        longer = task.replace(size=task.size + self.setup * at_processor(speed, action))
        return super().assign(state, speed, longer, number, action)

    def response(self, state, speed, task):
        return super().response(state, speed, task) + self.setup


@dataclasses.dataclass(frozen=True)
class Unseen(FCFS):
    """FCFS of which nobody can measure anything."""

    def view(self, state, speed):
        return jax.tree.map(jnp.zeros_like, super().view(state, speed))


def given(key, num_tasks=200):
    gap, size = jax.random.exponential(key, (2, num_tasks), jnp.float32)
    return jaxlb.Task(gap, size, jnp.zeros(num_tasks, jnp.int32), jnp.full(num_tasks, jnp.inf))


def test_a_station_of_ones_own_serves(key):
    tasks = given(key)
    env, params = jaxlb.make("stable", speed=[1.0, 2.0], station=SlowToStart(queue_capacity=64, setup=0.25))
    outcome = jaxlb.replay(env, params, "rr", tasks, key)
    free, now = [0.0, 0.0], 0.0
    for place, (gap, size) in enumerate(zip(np.float64(tasks.gap), np.float64(tasks.size), strict=True)):
        now, processor = now + gap, place % 2
        free[processor] = max(free[processor], now) + 0.25 + size / (1.0 + processor)
        np.testing.assert_allclose(outcome.completion[place], free[processor] - now, rtol=2e-5)


def test_metrics_ask_the_station_what_was_the_best(key):
    env, params = jaxlb.make("stable", station=SlowToStart())
    summary = jaxlb.rollout(env, params, "oracle", key, num_lanes=4, num_tasks=500)
    np.testing.assert_array_equal(summary.oracle_agreement, 1.0)
    plain, params = jaxlb.make("stable")
    assert (
        summary.mean_completion.mean()
        > 0.5 + jaxlb.rollout(plain, params, "oracle", key, num_lanes=4, num_tasks=500).mean_completion.mean()
    )


@pytest.mark.parametrize("rule", small.mostly_slow(["lwr", "jsq", "greedy", "drift-aware"], ["drift-aware"]))
def test_nothing_looks_behind_the_view(rule, key):
    tasks = given(key)
    env, params = jaxlb.make("stable", speed=[2.0, 1.0, 1.0], station=Unseen())
    outcome = jaxlb.replay(env, params, rule, tasks, key)
    np.testing.assert_array_equal(outcome.action, 0)
    assert float(outcome.wait.max()) > 1.0


def test_a_setting_of_the_station_is_one_of_make():
    env, _ = jaxlb.make("park", queue_capacity=8)
    assert env.station == FCFS(8)
    env, _ = jaxlb.make("stable", station=SlowToStart(), setup=2.0)
    assert env.station == SlowToStart(16, 2.0)
    with pytest.raises(ValueError, match="unknown parameter 'setup'"):
        jaxlb.make("stable", setup=2.0)
    for station in ("ps", FCFS):
        with pytest.raises(ValueError, match=r"must be a station, such as jaxlb\.stations\.FCFS\(\)"):
            jaxlb.make("stable", station=station)
    # A given station is taken as it is.
    assert jaxlb.make("park", station=FCFS(8))[0].station == FCFS(8)
    assert jaxlb.make("park", station=FCFS(8), queue_capacity=9)[0].station == FCFS(9)


def test_a_scenario_may_have_a_station(key):
    def slow(num_processors: int = 2):
        """Slow to start."""
        return jaxlb.make("stable", num_processors=num_processors)[1]

    jaxlb.register("slow", slow, station=SlowToStart(), setup=1.0)
    assert jaxlb.make("slow")[0].station == SlowToStart(16, 1.0)
    assert jaxlb.make("slow", setup=2.0)[0].station == SlowToStart(16, 2.0)
    assert jaxlb.make("slow", station=FCFS())[0].station == FCFS()


def test_emptied_processors_are_as_new_but_for_what_lanes_share(key):
    station: Station = FCFS(4)
    state, speed = station.init(3, (2,)), jnp.ones((3, 1))
    for gap, action in ((0.5, 0), (0.1, 0), (0.2, 2)):
        state, _ = station.advance(state, speed, jnp.full(2, gap))
        task = jaxlb.Task(jnp.full(2, gap), jnp.ones(2), jnp.zeros(2, jnp.int32), jnp.ones(2))
        state, *_ = station.assign(state, speed, task, jnp.int32(0), jnp.full(2, action, jnp.int32))
    assert int(state.age) == 3
    emptied = station.empty(state)
    assert int(emptied.age) == 3
    chex.assert_trees_all_equal(emptied.replace(age=jnp.int32(0)), station.init(3, (2,)))
