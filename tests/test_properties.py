"""Laws that hold whatever the tasks: scale, order, monotony, and that programs say what functions say."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlb
from tests import small
from tests.trajectory import trajectory

GOLDEN = Path(__file__).parent / "data" / "golden.json"
NUM_TASKS = 60

seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=15, deadline=None)


def random_tasks(seed, lanes=()):
    """Tasks of irregular gaps and sizes, some together, some far apart."""
    rng = np.random.default_rng(seed)
    shape = (NUM_TASKS, *lanes)
    gap = rng.exponential(0.6, shape) * rng.choice([0.0, 1.0, 8.0], shape, p=[0.2, 0.7, 0.1])
    return jaxlb.Task(
        gap=gap.astype(np.float32),
        size=(rng.pareto(1.5, shape) + 0.05).astype(np.float32),
        priority=np.zeros(shape, np.int32),
        deadline=np.full(shape, 2.0, np.float32),
    )


def random_speed(seed, num_processors):
    return np.random.default_rng(seed + 1).uniform(0.2, 3.0, num_processors).astype(np.float32)


def environment(speed, **overrides):
    return jaxlb.make("stable", speed=np.asarray(speed).tolist(), queue_capacity=NUM_TASKS, **overrides)


FIXED = jaxlb.Scheduler(
    name="fixed",
    variables=(),
    start=lambda env, params, lanes: jnp.int32(0),
    act=lambda choices, index, observation, key: (choices[index], index + 1),
)
"""A scheduler that makes the choices that its variables list, one after the other."""


def replayed(speed, scheduler, tasks):
    env, params = environment(speed)
    outcome = jaxlb.replay(env, params, scheduler, tasks, jax.random.key(0))
    return jax.tree.map(np.asarray, outcome)


@few
@given(seed=seeds, num_processors=st.sampled_from([1, 5]), name=st.sampled_from(["rr", "greedy", "sed"]))
def test_waits_are_never_negative_and_queues_keep_their_order(seed, num_processors, name):
    tasks, speed = random_tasks(seed), random_speed(seed, num_processors)
    outcome = replayed(speed, jaxlb.scheduler(name), tasks)
    assert (outcome.wait >= 0).all() and (outcome.service > 0).all()
    np.testing.assert_allclose(outcome.service, tasks.size / speed[outcome.action], rtol=1e-6)
    arrival = np.cumsum(tasks.gap.astype(float))
    start, departure = arrival + outcome.wait, arrival + outcome.completion
    for processor in range(num_processors):
        mine = np.flatnonzero(outcome.action == processor)
        # First come, first served, one at a time, and never idle while a task waits.
        np.testing.assert_allclose(
            start[mine][1:], np.maximum(departure[mine][:-1], arrival[mine][1:]), rtol=1e-5, atol=1e-5
        )


@few
@given(seed=seeds, num_processors=st.sampled_from([1, 4]))
def test_work_is_conserved_at_every_moment(seed, num_processors):
    tasks, speed = random_tasks(seed), random_speed(seed, num_processors)
    env, params = environment(speed)
    arrays = jax.tree.map(jnp.asarray, tasks)
    outcome, _, wait, _ = trajectory(env, params, jaxlb.scheduler("lwl"), arrays, jax.random.key(0))
    # Work found = work brought so far - work done, and a processor works while it has any.
    backlog = np.asarray(wait, float) * speed
    brought = np.zeros((NUM_TASKS, num_processors))
    brought[np.arange(NUM_TASKS), np.asarray(outcome.action)] = tasks.size
    after = backlog + brought
    done = np.minimum(after[:-1], tasks.gap[1:, None].astype(float) * speed)
    np.testing.assert_allclose(backlog[1:], after[:-1] - done, rtol=1e-5, atol=1e-5)


@few
@given(seed=seeds, name=st.sampled_from(["lwl", "sed", "fpi"]))
def test_permuting_processors_permutes_all_that_is_decided(seed, name):
    # Unequal speeds, so that no tie depends on the numbering.
    tasks, speed = random_tasks(seed), random_speed(seed, 4)
    order = np.random.default_rng(seed).permutation(4)
    straight = replayed(speed, jaxlb.scheduler(name), tasks)
    permuted = replayed(speed[order], jaxlb.scheduler(name), tasks)
    np.testing.assert_array_equal(order[permuted.action], straight.action)
    np.testing.assert_array_equal(permuted.completion, straight.completion)


@few
@given(seed=seeds, power=st.integers(-6, 6), name=st.sampled_from(["jsq", "greedy", "sed"]))
def test_scaling_time_and_sizes_scales_the_results(seed, power, name):
    # A power of two scales floats exactly: results scale to the last bit.
    tasks, speed, scale = random_tasks(seed), random_speed(seed, 3), np.float32(2.0**power)
    scaled = tasks.replace(gap=tasks.gap * scale, size=tasks.size * scale, deadline=tasks.deadline * scale)
    before = replayed(speed, jaxlb.scheduler(name), tasks)
    after = replayed(speed, jaxlb.scheduler(name), scaled)
    np.testing.assert_array_equal(after.action, before.action)
    np.testing.assert_array_equal(after.violation, before.violation)
    np.testing.assert_array_equal(after.completion, before.completion * scale)


@few
@given(seed=seeds, faster=st.integers(0, 2), factor=st.floats(1.0, 4.0))
def test_a_faster_processor_delays_nothing_under_fixed_choices(seed, faster, factor):
    tasks, speed = random_tasks(seed), random_speed(seed, 3)
    choices = jnp.asarray(np.random.default_rng(seed).integers(0, 3, NUM_TASKS), jnp.int32)
    before = replayed(speed, FIXED.replace(variables=choices), tasks)
    speed = speed.copy()
    speed[faster] *= np.float32(factor)
    after = replayed(speed, FIXED.replace(variables=choices), tasks)
    assert (after.completion <= before.completion * (1.0 + 1e-6)).all()
    assert (after.wait <= before.wait * (1.0 + 1e-6) + 1e-6).all()


# Exports run most rules function by function, on more tasks, in NumPy: see test_live. The second to the
# fourth they cannot.
EAGER = ["drift-aware", "oracle", "hedge", "deadline-admission", "universal", "sita-e"]


@pytest.mark.parametrize("name", small.mostly_slow(EAGER, ["drift-aware"]))
def test_jit_equals_eager(name):
    # Function by function without a compiler, against the compiled loop: not one choice may differ.
    tasks, key = random_tasks(3, lanes=(2,)), jax.random.key(1)
    tasks = jax.tree.map(lambda leaf: leaf[:12], tasks)
    env, params = environment([0.5, 0.8, 1.2, 2.0], load=0.6, admission=name == "deadline-admission")
    compiled = jaxlb.replay(env, params, jaxlb.scheduler(name), tasks, key)
    with jax.disable_jit():
        eager = jaxlb.replay(env, params, jaxlb.scheduler(name), tasks, key)
    chex.assert_trees_all_equal(compiled.action, eager.action)
    chex.assert_trees_all_close(compiled, eager, rtol=1e-6)


def test_vmapped_parameters_equal_a_loop_over_them():
    env, params = environment([0.5, 2.0])
    tasks = random_tasks(5)
    speeds = jnp.array([[0.5, 2.0], [1.0, 1.0], [3.0, 0.2]])
    rule, key = jaxlb.scheduler("greedy"), jax.random.key(0)

    def completion(speed):
        return jaxlb.replay(env, params.replace(speed=speed), rule, tasks, key).completion

    together = jax.vmap(completion)(speeds)
    for speed, found in zip(speeds, together, strict=True):
        np.testing.assert_array_equal(found, completion(speed))

    def summary(load):
        return jaxlb.rollout(env, params.replace(load=load), rule, key, 8, 50)

    loads = jnp.array([0.2, 0.5, 0.8])
    together = jax.vmap(summary)(loads)
    for index, load in enumerate(loads):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], together), summary(load), rtol=1e-6
        )


def golden_outcomes():
    """What becomes of the golden tasks: choices, completions as the bits of float32, for some rules."""
    golden = json.loads(GOLDEN.read_text())
    gap, size = (np.array(golden[name], np.int32).view(np.float32) for name in ("gap_bits", "size_bits"))
    tasks = jaxlb.Task(
        gap=gap, size=size, priority=np.zeros(len(gap), np.int32), deadline=np.full(len(gap), 3.0, np.float32)
    )
    found = {}
    for name in golden["outcomes"]:
        outcome = replayed(golden["speed"], jaxlb.scheduler(name), tasks)
        found[name] = {
            "action": outcome.action.tolist(),
            "completion_bits": outcome.completion.view(np.int32).tolist(),
        }
    return golden, found


def test_every_python_and_jax_gives_the_same_numbers_for_the_same_tasks():
    # The tasks and what became of them are in a file, written once; CI runs this on both pairs of versions.
    golden, found = golden_outcomes()
    assert found == golden["outcomes"]
