"""The environment as other people's code uses it."""

import copy
import operator
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from tests import small


def test_reset_and_step_follow_gymnax(key):
    env, params = jaxlb.make("heavy-tail")
    obs, state = env.reset(key, params)
    assert obs.shape == (20,) == env.observation_space(params).shape
    assert env.observation_space(params).contains(obs)
    assert env.num_actions == env.action_space(params).n == 4
    assert env.name == "heavy-tail"
    action = env.action_space(params).sample(key)
    again, after, reward, terminated, truncated, info = env.step(key, state, action, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(obs, again, info["final_observation"])
    assert (reward.shape, terminated.shape, truncated.shape) == ((), (), ())
    assert (terminated.dtype, truncated.dtype) == (bool, bool)


@pytest.mark.parametrize("name", small.SCENARIOS)
def test_every_scenario_steps_with_stable_types(name, key):
    env, params = jaxlb.make(name)
    step = jax.jit(env.step)
    obs, state = jax.jit(env.reset)(key, params)
    _, after, *_ = step(key, state, jnp.int32(0), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((obs, state, after, params)))
    assert not any(leaf.dtype in (jnp.float64, jnp.int64) for leaf in jax.tree.leaves((obs, state, after)))
    assert obs.shape == env.observation_space(params).shape


def test_an_episode_truncates_resets_and_keeps_the_last_observation(key):
    env, params = jaxlb.make("stable", max_steps_in_episode=3)
    obs, state = env.reset(key, params)
    step = jax.jit(env.step)
    for count in range(1, 4):
        obs, state, _, terminated, truncated, info = step(
            jax.random.fold_in(key, count), state, jnp.int32(1), params
        )
        assert not terminated
        assert bool(truncated) == (count == 3)
        if count < 3:
            np.testing.assert_array_equal(obs, info["final_observation"])
    assert int(state.steps) == 0
    np.testing.assert_array_equal(state.system.station.wait, 0.0)
    np.testing.assert_array_equal(obs[4:16], 0.0)
    assert float(info["final_observation"][4:16].sum()) > 0


def test_actions_are_drawn_uniformly(key):
    actions = jax.vmap(jaxlb.spaces.Discrete(5).sample)(jax.random.split(key, 50_000))
    assert actions.dtype == jnp.int32
    counts = np.bincount(actions, minlength=5)
    assert len(counts) == 5
    # Chi-square of 4 degrees of freedom: exceeded by chance once in 10,000 keys.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 23.5


def test_an_action_is_the_upper_part_of_a_product(key):
    n = 40_000
    words = jax.vmap(jax.random.bits)(keys := jax.random.split(key, 1000))
    actions = jax.vmap(jaxlb.spaces.Discrete(n).sample)(keys)
    assert [int(word) * n >> 32 for word in words] == actions.tolist()


@pytest.mark.parametrize("n", [0, 2**16 + 1])
def test_an_action_space_of_too_few_or_too_many_is_refused(n):
    with pytest.raises(ValueError, match=f"n = {n}"):
        jaxlb.spaces.Discrete(n)


@pytest.mark.slow
def test_devices_step_their_lanes_by_themselves(key):
    env, params = jaxlb.make("stable", max_steps_in_episode=5)
    mesh, of_each = jaxlb.device_mesh(8), jax.sharding.PartitionSpec("devices")
    assert mesh.size == 2

    def advance(keys, state):
        def step(state, _):
            fresh = jax.vmap(jax.random.fold_in)(keys, state.steps)
            obs, state, reward, *_ = jax.vmap(env.step, (0, 0, None, None))(
                fresh, state, jnp.int32(1), params
            )
            return state, (obs, reward)

        return jax.lax.scan(step, state, length=20)

    keys = jax.random.split(key, 8)
    _, state = jax.vmap(env.reset, (0, None))(keys, params)
    specs = (of_each, jax.sharding.PartitionSpec(None, "devices"))
    split = jax.jit(jax.shard_map(advance, mesh=mesh, in_specs=(of_each, of_each), out_specs=specs))
    chex.assert_trees_all_close(split(keys, state), jax.jit(advance)(keys, state), rtol=1e-6)


@pytest.mark.slow
def test_only_a_lane_that_ends_begins_anew(key):
    env, params = jaxlb.make("seed", max_steps_in_episode=3)
    keys = jax.random.split(key, 3)
    _, state = jax.vmap(env.reset, (0, None))(keys, params)
    state = state.replace(steps=jnp.array([0, 2, 1], jnp.int32))  # the second lane is at its last task
    action = jnp.array([0, 1, 2], jnp.int32)
    together = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))(keys, state, action, params)
    np.testing.assert_array_equal(together[4], [False, True, False])
    alone = [
        jax.jit(env.step)(keys[lane], jax.tree.map(operator.itemgetter(lane), state), action[lane], params)
        for lane in range(3)
    ]
    alone = jax.tree.map(lambda *lanes: jnp.stack(lanes), *alone)
    chex.assert_trees_all_close(together, alone, rtol=1e-5, atol=1e-6)
    fresh, _ = env.reset(jax.random.split(keys[1], 4)[-1], params)
    np.testing.assert_allclose(together[0][1], fresh, rtol=1e-5)


def test_environments_are_hashable_equal_and_deep_copyable():
    one, _ = jaxlb.make("heavy-tail")
    other, _ = jaxlb.make("heavy-tail", load=0.5)
    assert one == other and hash(one) == hash(other) and copy.deepcopy(one) == one
    assert one != jaxlb.make("heavy-tail", queue_capacity=8)[0]


def test_numbers_change_without_recompilation(key):
    env, params = jaxlb.make("heavy-tail")
    step = jax.jit(chex.assert_max_traces(env.step, n=1))
    _, state = env.reset(key, params)
    for load in (0.3, 0.5, 0.7):
        changed = jaxlb.make("heavy-tail", load=load, tail_index=1.2 + load, speed=[1, 2, 3, 4 + load])[1]
        step(key, state, jnp.int32(0), changed)


def test_vmapped_parameters_equal_a_loop(key):
    env, params = jaxlb.make("stable")
    loads = jnp.array([0.2, 0.5, 0.9])

    @jax.jit
    def episode(load):
        changed = params.replace(load=load)
        _, state = env.reset(key, changed)
        return env.step(key, state, jnp.int32(0), changed)[0]

    together = jax.vmap(episode)(loads)
    for index, load in enumerate(loads):
        np.testing.assert_allclose(together[index], episode(load), rtol=1e-6)


def test_jit_equals_eager(key):
    env, params = jaxlb.make("seed")
    _, state = env.reset(key, params)
    eager = env.step(key, state, jnp.int32(2), params)
    chex.assert_trees_all_close(eager, jax.jit(env.step)(key, state, jnp.int32(2), params), rtol=1e-5)


def test_the_weighted_reward(key):
    env, params = jaxlb.make("heavy-tail", imbalance_weight=0.1, sla_weight=2.0)
    task = jaxlb.Task(jnp.float32(1.0), jnp.float32(6.0), jnp.int32(0), jnp.float32(4.0))
    state = env.start(params, task, key)
    # Speed 1.2: completion 5 > 4. Backlogs after it (0, 0, 6, 0): variance 6.75.
    _, outcome, reward = env.transition(state, jnp.int32(2), task, params, key)
    assert bool(outcome.violation)
    np.testing.assert_allclose(outcome.completion, 5.0, rtol=1e-6)
    np.testing.assert_allclose(reward, -5.0 - 0.1 * 6.75 - 2.0, rtol=1e-6)


def test_the_holding_cost_reward_sums_to_the_completion_times(key):
    env, params = jaxlb.make("park", speed=[1.0, 2.0])
    rng = np.random.default_rng(0)
    total, completions = 0.0, 0.0
    task = jaxlb.Task(jnp.float32(0.0), jnp.float32(1.0), jnp.int32(0), jnp.float32(9.0))
    state = env.start(params, task, key)
    for step in range(20):
        # A last long gap lets everything depart.
        following = task.replace(gap=jnp.float32(1e4 if step == 19 else rng.exponential()))
        following = following.replace(size=jnp.float32(rng.exponential()))
        state, outcome, reward = env.transition(state, jnp.int32(rng.integers(2)), following, params, key)
        total -= float(reward)
        completions += float(outcome.completion)
    np.testing.assert_allclose(total, completions, rtol=1e-5)


def test_an_action_out_of_range_is_clipped(key):
    env, params = jaxlb.make("stable")
    _, state = env.reset(key, params)
    for action, clipped in [(-3, 0), (99, 3)]:
        assert int(env.step(key, state, jnp.int32(action), params)[-1]["outcome"].action) == clipped


def test_trainers_are_imported_when_they_are_asked_for():
    program = (
        "import sys, jaxlb\n"
        "assert 'optax' not in sys.modules and set(jaxlb.__all__) <= set(dir(jaxlb))\n"
        "assert all(getattr(jaxlb, name) is not None for name in jaxlb.__all__)\n"
        "assert 'optax' in sys.modules and not hasattr(jaxlb, 'train_nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def cost_of_steps(env, params, key, num_steps):
    """Completion times, in a loop of steps with given actions."""

    def cost(speed, scale):
        changed = params.replace(speed=speed)
        _, state = env.reset(key, changed)
        state = state.replace(task=state.task.replace(size=state.task.size * scale))

        def step(state, index):
            step_key = jax.random.fold_in(key, index)
            _, state, _, _, _, info = env.step(step_key, state, index % env.num_actions, changed)
            return state, info["outcome"].completion

        return jax.lax.scan(step, state, jnp.arange(num_steps, dtype=jnp.int32))[1].sum()

    return cost


def cost_of_tasks(env, params, key, num_tasks):
    """Completion times of given tasks, whose sizes scale."""
    tasks = workload.sample(key, params, num_tasks)

    def cost(speed, scale):
        scaled = tasks.replace(size=tasks.size * scale)
        return jaxlb.replay(env, params.replace(speed=speed), "rr", scaled, key).completion.sum()

    return cost


RULES = ["guarded-sita", "card", "jsq", "fpi", "sita-e", "drift-aware"]


@pytest.mark.parametrize("rule", small.mostly_slow(RULES, ["guarded-sita", "drift-aware"]))
def test_replays_of_rules_that_choose_can_be_differentiated(rule, key):
    env, params = jaxlb.make("heavy-tail")
    tasks = workload.sample(key, params, 40)

    def cost(speed):
        return jaxlb.replay(env, params.replace(speed=speed), rule, tasks, key).completion.sum()

    slope = jax.grad(cost)(params.speed)
    assert np.isfinite(slope).all() and (np.asarray(slope) < 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("queue_capacity", [8, 128])
def test_the_holding_cost_has_a_gradient_whatever_is_remembered(queue_capacity, key):
    env, params = jaxlb.make("park", queue_capacity=queue_capacity, num_processors=2, load=0.7)

    @jax.jit
    def reward(scale):
        _, state = env.reset(key, params)
        for index in range(5):
            task = state.task.replace(size=state.task.size * scale)
            step_key = jax.random.fold_in(key, index)
            _, state, reward, *_ = env.step(step_key, state.replace(task=task), index % 2, params)
        return reward

    one, little = jnp.float32(1.0), 1e-3
    difference = (reward(one + little) - reward(one - little)) / (2.0 * little)
    np.testing.assert_allclose(jax.grad(reward)(one), difference, rtol=1e-2, atol=1.0)
    assert float(jax.grad(reward)(one)) < 0


@pytest.mark.parametrize("cost", [cost_of_steps, cost_of_tasks])
def test_costs_have_the_gradients_of_finite_differences(cost, key):
    """With respect to speeds and sizes, through waits, past new origins of time and new episodes."""
    env, params = jaxlb.make("seed", max_steps_in_episode=15)
    cost = jax.jit(cost(env, params, key, 25))
    speed, scale, little = params.speed, jnp.float32(1.0), 1e-3
    by_speed, by_scale = jax.grad(cost, (0, 1))(speed, scale)
    for processor in range(env.num_processors):
        shift = jnp.zeros_like(speed).at[processor].set(little)
        difference = (cost(speed + shift, scale) - cost(speed - shift, scale)) / (2.0 * little)
        np.testing.assert_allclose(by_speed[processor], difference, rtol=1e-2, atol=1e-2)
    difference = (cost(speed, scale + little) - cost(speed, scale - little)) / (2.0 * little)
    np.testing.assert_allclose(by_scale, difference, rtol=1e-2)
