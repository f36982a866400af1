"""The loop: chunked equals whole, one lane equals that lane among many, sums are right."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import metrics, tally, workload
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.params import with_lane_axis
from jaxlb.stations import FCFS
from tests import small


def tasks_of_rollout(params, key, num_lanes, num_tasks):
    """The tasks that a rollout with this key draws, leaves `[T, N]`."""
    workload_key, task_key = jax.random.split(key, 5)[:2]
    lanes = (num_lanes,)
    params = with_lane_axis(params, lanes)
    state, tasks = workload.start(workload_key, params, lanes), []
    draw = jax.jit(workload.draw, static_argnames="lanes")
    for index in range(num_tasks):
        task, state = draw(jax.random.fold_in(task_key, index), params, state, lanes=lanes)
        tasks.append(task)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


@pytest.mark.parametrize("scenario", ["seed", "shift"])
def test_chunked_equals_whole(scenario, key):
    env, params = jaxlb.make(scenario)
    scheduler = jaxlb.scheduler("lwr-rr")
    start = start_rollout(env, params, scheduler, key, 8, num_recent=5)
    whole = continue_rollout(env, params, scheduler, start, 60, 10)
    parts = start
    for count in (1, 9, 30, 20):
        parts = continue_rollout(env, params, scheduler, parts, count, 10)
    chex.assert_trees_all_equal(whole, parts)
    assert int(whole.totals.num_tasks) == 50


RULES = ["power-of-d", "drift-aware", "greedy", "card"]


@pytest.mark.parametrize("name", small.mostly_slow(RULES, ["drift-aware"]))
def test_a_lane_does_not_depend_on_its_neighbours(name, key):
    env, params = jaxlb.make("heavy-tail", measure_noise=0.2)
    scheduler = jaxlb.scheduler(name)
    # 6 lanes lie on two devices, 3 on one.
    many = jaxlb.rollout(env, params, scheduler, key, num_lanes=6, num_tasks=200)
    few = jaxlb.rollout(env, params, scheduler, key, num_lanes=3, num_tasks=200)
    first = jax.tree.map(lambda leaf: leaf[..., :3] if leaf.ndim else leaf, many)
    chex.assert_trees_all_close(first, few, rtol=2e-5)


def test_a_rollout_is_a_replay_of_its_tasks(key):
    env, params = jaxlb.make("seed")
    scheduler = jaxlb.scheduler("lwr")
    num_lanes, num_tasks, warmup = 4, 300, 100
    tasks = tasks_of_rollout(params, key, num_lanes, warmup + num_tasks)
    outcome = jax.tree.map(lambda x: np.asarray(x)[warmup:], jaxlb.replay(env, params, scheduler, tasks, key))
    summary = jaxlb.rollout(env, params, scheduler, key, num_lanes, num_tasks, warmup)
    counted = jax.tree.map(lambda x: np.asarray(x)[warmup:], tasks)
    assert int(summary.num_tasks) == num_tasks
    np.testing.assert_allclose(summary.mean_completion, outcome.completion.mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.mean_slowdown, (outcome.completion / counted.size).mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.sla_violation_rate, outcome.violation.mean(0), rtol=1e-6)
    for index in range(3):
        mine = counted.priority == index
        np.testing.assert_array_equal(summary.class_count[index], mine.sum(0))
        np.testing.assert_array_equal(summary.class_violations[index], (mine & outcome.violation).sum(0))


def test_utilisation_equals_load_and_imbalance_is_zero_for_one_processor(key):
    env, params = jaxlb.make("stable", speed=[2.0], load=0.6)
    summary = jaxlb.rollout(
        env, params, jaxlb.scheduler("rr"), key, num_lanes=500, num_tasks=2000, warmup=200
    )
    lanes = np.asarray(summary.utilisation[0], np.float64)
    assert abs(lanes.mean() - 0.6) < 5 * lanes.std() / np.sqrt(500)
    np.testing.assert_array_equal(summary.load_imbalance, 0.0)
    np.testing.assert_array_equal(summary.oracle_agreement, 1.0)


def test_sums_do_not_lose_small_terms():
    empty = FCFS(1).view(FCFS(1).init(1, (1,)), jnp.ones((1, 1)))
    totals = tally.start(empty, 1)
    one, tenth = (
        jax.tree.map(jnp.ones_like, totals.counts),
        jax.tree.map(lambda x: x + 0.1, totals.sums),
    )
    nothing = jnp.zeros(1)
    moved = jaxlb.Outcome(
        action=jnp.zeros(1, jnp.int32),
        wait=nothing,
        service=nothing + 0.1,
        completion=nothing,
        violation=nothing > 0,
    )

    @jax.jit
    def many(totals):
        add = lambda _, totals: tally.add(totals, one, tenth, moved)  # noqa: E731
        return jax.lax.fori_loop(0, 20_000_000, add, totals)

    # A plain float32 sum of 2 x 10^7 times 0.1 ends at 2097152, of as many ones at 16777216.
    summary = tally.summarise(many(totals), empty)
    np.testing.assert_allclose(summary.mean_completion, 0.1, rtol=1e-6)
    np.testing.assert_allclose(summary.utilisation, 1.0, rtol=1e-6)
    assert summary.class_count.item() == 20_000_000


def test_replay_of_one_lane_and_of_many_agree(key):
    env, params = jaxlb.make("heavy-tail")
    scheduler = jaxlb.scheduler("lwl")
    tasks = tasks_of_rollout(params, key, 3, 100)
    many = jaxlb.replay(env, params, scheduler, tasks, key)
    for lane in range(3):
        one = jaxlb.replay(env, params, scheduler, jax.tree.map(lambda x, n=lane: x[:, n], tasks), key)
        chex.assert_trees_all_close(one, jax.tree.map(lambda x, n=lane: x[:, n], many), rtol=1e-5, atol=1e-6)


def test_rollout_vmaps_over_parameters(key):
    env, params = jaxlb.make("stable")

    def mean(load):
        changed = params.replace(load=load)
        return jaxlb.rollout(env, changed, jaxlb.scheduler("lwr"), key, 16, 100).mean_completion.mean()

    loads = jnp.array([0.3, 0.8])
    np.testing.assert_allclose(jax.vmap(mean)(loads), [mean(load) for load in loads], rtol=1e-5)


def test_the_number_of_tasks_is_no_part_of_the_program(key):
    env, params = jaxlb.make("stable")
    scheduler = jaxlb.scheduler("sed")
    jaxlb.rollout(env, params, scheduler, key, 4, 10)
    before = continue_rollout._cache_size()
    for num_tasks, load in [(11, 0.5), (99, 0.7)]:
        jaxlb.rollout(env, params.replace(load=jnp.float32(load)), scheduler, key, 4, num_tasks, warmup=3)
    assert continue_rollout._cache_size() == before


def test_state_stays_small():
    env, params = jaxlb.make("stable")
    carry = start_rollout(env, params, jaxlb.scheduler("lwr"), jax.random.key(0), 64)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(carry.state)) / 64 <= 384


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gap": [1.0, -1.0]}, "gap = -1: must be at least 0"),
        ({"size": [1.0, 0.0]}, "size = 0: must be above 0"),
        ({"size": [1.0, np.nan]}, "size = nan: must be a number"),
        ({"size": [1.0, 1e308]}, r"size = 1e\+308: must be within float32"),
        ({"size": [1.0, 1e-40]}, "size = 1e-40: must be within float32"),
        ({"gap": [1.0, 1e39]}, r"gap = 1e\+39: must be within float32"),
        ({"deadline": [1.0, 1e39]}, r"deadline = 1e\+39: must be within float32"),
        ({"priority": [0.0, 0.5]}, "priority = 0.5: must be a whole number"),
        ({"priority": [0, 1]}, "priority = 1: must be at most 0"),
        ({"gap": [1.0]}, r"must all be \[T\], or all \[T, N\]"),
        ({"gap": [], "size": [], "priority": [], "deadline": []}, "at least one task"),
    ],
)
def test_bad_tasks_are_refused(change, message, key):
    env, params = jaxlb.make("stable")
    fields = {"gap": [1.0, 1.0], "size": [1.0, 1.0], "priority": [0, 0], "deadline": [3.0, 3.0]} | change
    tasks = jaxlb.Task(**{name: np.asarray(values, np.float64) for name, values in fields.items()})
    with pytest.raises(ValueError, match=message):
        jaxlb.replay(env, params, jaxlb.scheduler("lwr"), tasks, key)


@pytest.mark.parametrize(
    "change", [{"num_lanes": 0}, {"num_tasks": 0}, {"num_tasks": 2.5}, {"warmup": -1}, {"num_tasks": 2**31}]
)
def test_bad_counts_are_refused(change, key):
    env, params = jaxlb.make("stable")
    counts = {"num_lanes": 2, "num_tasks": 2} | change
    with pytest.raises(ValueError, match=r"must be (a whole number of at least|at most 2147483647)"):
        jaxlb.rollout(env, params, jaxlb.scheduler("lwr"), key, **counts)


def test_a_figure_that_is_added_later_is_counted(key, monkeypatch):
    env, params = jaxlb.make("stable")
    jaxlb.rollout(env, params, "lwr", key, 2, 200)
    waits = metrics.Figure("wait", "time", of_outcome=lambda task, outcome: outcome.wait)
    monkeypatch.setitem(metrics.FIGURES, "mean_wait", waits)
    summary = jaxlb.rollout(env, params, "lwr", jax.random.clone(key), 2, 200)
    assert (summary.mean_wait > 0).all()
    assert (summary.mean_wait < summary.mean_completion).all()
