"""gymnax's wrappers, rejax, and a loop like purejaxrl's, on our environment."""

import copy
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlb
from jaxlb.interop import FiveValueEnv


@pytest.fixture
def gymnax():
    module = pytest.importorskip("gymnax")
    pytest.importorskip("gymnax.wrappers")
    # As a user has it: neither gymnax nor rejax is strict.
    with jax.numpy_dtype_promotion("standard"):
        yield module


def test_five_values_are_the_six(key):
    env, params = jaxlb.make("heavy-tail", max_steps_in_episode=2)
    five = FiveValueEnv(env)
    obs, state = five.reset(key, params)
    chex.assert_trees_all_equal(env.reset(key, params), (obs, state))
    for end in (False, True):
        seen, after, reward, terminated, truncated, _ = env.step(key, state, 1, params)
        got = five.step(key, state, 1, params)
        chex.assert_trees_all_equal(got[:3], (seen, after, reward))
        assert bool(got[3]) == end == bool(terminated | truncated)
        assert (bool(got[4]["terminated"]), bool(got[4]["truncated"])) == (False, end)
        state = after
    assert (five.name, five.num_actions) == ("heavy-tail", 4)
    chex.assert_trees_all_equal(five.default_params, env.default_params)


def test_the_adapter_is_a_value():
    one, other = (FiveValueEnv(jaxlb.make("heavy-tail")[0]) for _ in range(2))
    assert one == other == copy.deepcopy(one) and len({one, other, copy.deepcopy(one)}) == 1
    assert one != FiveValueEnv(jaxlb.make("stable")[0])
    with pytest.raises(AttributeError):
        one.env = other.env


def test_spaces_are_gymnaxs_where_it_is_imported(gymnax, key):
    env, params = jaxlb.make("stale")
    spaces = gymnax.environments.spaces
    for one in (env, FiveValueEnv(env)):
        assert isinstance(one.action_space(params), spaces.Discrete)
        assert isinstance(one.observation_space(params), spaces.Box)
        assert one.action_space(params).n == 8 and one.observation_space(params).shape == (45,)
        assert bool(one.observation_space(params).contains(env.reset(key, params)[0]))


def test_log_and_flatten_wrappers(gymnax, key):
    env, params = jaxlb.make("heavy-tail", max_steps_in_episode=5)
    wrapped = gymnax.wrappers.LogWrapper(gymnax.wrappers.FlattenObservationWrapper(env))
    obs, state = wrapped.reset(key, params)
    assert obs.shape == wrapped.observation_space(params).shape == (20,)
    total = 0.0
    for step in range(1, 8):
        obs, state, reward, terminated, truncated, info = wrapped.step(
            jax.random.fold_in(key, step), state, jnp.int32(3), params
        )
        total += float(reward)
        assert bool(info["returned_episode"]) == bool(truncated) == (step == 5) and not terminated
        if step == 5:
            np.testing.assert_allclose(info["returned_episode_returns"], total, rtol=1e-5)
            assert int(info["returned_episode_lengths"]) == 5
            assert info["final_observation"].shape == (20,) and (obs != info["final_observation"]).any()


def test_gymnax_to_gym_wrapper(gymnax, key):
    env, params = jaxlb.make("heavy-tail", max_steps_in_episode=3)
    wrapped = gymnax.wrappers.GymnaxToGymWrapper(env, params)
    first, _ = wrapped.reset(seed=2)
    np.testing.assert_array_equal(first, env.reset(jax.random.split(jax.random.key(2))[1], params)[0])
    assert wrapped.action_space.n == 4
    for step in range(1, 4):
        obs, reward, terminated, truncated, _ = wrapped.step(wrapped.action_space.sample())
        assert np.asarray(obs) in wrapped.observation_space and np.isfinite(reward)
        assert (bool(terminated), bool(truncated)) == (False, step == 3)


@pytest.mark.slow
def test_gymnax_to_vector_gym_wrapper(gymnax):
    """Its lanes are ours, through resets too, though it puts batched functions into its copy."""
    from gymnax.wrappers.gym import GymnaxToVectorGymWrapper

    env, params = jaxlb.make("heavy-tail", max_steps_in_episode=3)
    wrapped = GymnaxToVectorGymWrapper(env, num_envs=5, params=params)
    first, _ = wrapped.reset(seed=7)
    keys = jax.random.split(jax.random.key(7), 5)
    split = jax.vmap(jax.random.split, out_axes=1)
    keys, reset_keys = split(keys)
    observation, state = jax.vmap(env.reset, (0, None))(reset_keys, params)
    np.testing.assert_allclose(first, observation, rtol=1e-5)
    for step in range(1, 8):
        action = jnp.full(5, step % 4)
        keys, step_keys = split(keys)
        observation, state, reward, _, truncated, _ = jax.vmap(env.step, (0, 0, 0, None))(
            step_keys, state, action, params
        )
        seen, cost, _, ended, _ = wrapped.step(action)
        np.testing.assert_allclose(seen, observation, rtol=1e-5)
        np.testing.assert_allclose(cost, reward, rtol=1e-5)
        assert ended.tolist() == truncated.tolist() == [step % 3 == 0] * 5
    assert "reset" not in vars(env) and env == copy.deepcopy(env)
    assert len({env, copy.deepcopy(env)}) == 1


def test_settings_of_an_environment_are_fixed():
    env, _ = jaxlb.make("heavy-tail")
    for name in ("num_processors", "anything"):
        with pytest.raises(AttributeError):
            setattr(env, name, 5)
    with pytest.raises(AttributeError):
        del env.num_processors


REJAX = {
    "dqn": {"fill_buffer": 500, "buffer_size": 2000, "batch_size": 64},
    "sac": {"fill_buffer": 500, "buffer_size": 2000, "batch_size": 64},
    "ppo": {"num_envs": 16, "num_steps": 32, "num_minibatches": 4, "num_epochs": 2},
    "pqn": {"num_envs": 16, "num_steps": 32, "num_minibatches": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn", "sac", "pqn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rejax_trains_unmodified(gymnax, name, key):
    rejax = pytest.importorskip("rejax")
    env, params = jaxlb.make("heavy-tail", max_steps_in_episode=50)
    trainer = rejax.get_algo(name).create(
        env=FiveValueEnv(env),
        env_params=params,
        total_timesteps=4096,
        eval_freq=4096,
        skip_initial_evaluation=True,
        normalize_observations=True,
        normalize_rewards=True,
        **REJAX[name],
    )
    assert trainer.discrete
    state, (lengths, returns) = jax.jit(trainer.train)(key)
    before = trainer.init_state(key)
    field = "actor_ts" if hasattr(state, "actor_ts") else "q_ts"
    weights, first = (getattr(of, field).params for of in (state, before))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    assert any(
        (one != other).any() for one, other in zip(*map(jax.tree.leaves, (weights, first)), strict=True)
    )
    assert lengths.shape == (1, 128) and (np.asarray(lengths) == 50).all()
    assert np.isfinite(returns).all() and (np.asarray(returns) < 0).all()


class Transition(NamedTuple):
    done: jax.Array
    action: jax.Array
    value: jax.Array
    reward: jax.Array
    log_probability: jax.Array
    obs: jax.Array
    info: dict


class ActorCritic(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, obs):
        hidden = nn.tanh(nn.Dense(64)(jnp.log1p(obs)))
        return nn.Dense(self.num_actions)(hidden), nn.Dense(1)(hidden)[..., 0]


def make_train(env, params, num_envs, num_steps, num_updates):
    """PPO as purejaxrl writes it: environments vmapped, one scan over steps inside one over updates."""
    network = ActorCritic(env.action_space(params).n)
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-3))

    def loss(weights, batch, advantage, target):
        logits, value = network.apply(weights, batch.obs)
        log = jax.nn.log_softmax(logits)
        log_probability = jnp.take_along_axis(log, batch.action[..., None], -1)[..., 0]
        ratio = jnp.exp(log_probability - batch.log_probability)
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        surrogate = jnp.minimum(ratio * scaled, jnp.clip(ratio, 0.8, 1.2) * scaled).mean()
        entropy = -(jnp.exp(log) * log).sum(-1).mean()
        return 0.5 * jnp.square(value - target).mean() - surrogate - 0.01 * entropy

    def train(key):
        key, network_key, reset_key = jax.random.split(key, 3)
        weights = network.init(network_key, jnp.zeros(env.observation_space(params).shape))
        obs, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, num_envs), params)

        def update(carry, _):
            def step(carry, _):
                weights, env_state, obs, key = carry
                key, action_key, step_key = jax.random.split(key, 3)
                logits, value = network.apply(weights, obs)
                action = jax.random.categorical(action_key, logits)
                log = jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]
                seen, env_state, reward, done, info = jax.vmap(env.step, (0, 0, 0, None))(
                    jax.random.split(step_key, num_envs), env_state, action, params
                )
                return (weights, env_state, seen, key), Transition(
                    done, action, value, reward, log, obs, info
                )

            weights, moments, env_state, obs, key = carry
            (_, env_state, obs, key), batch = jax.lax.scan(
                step, (weights, env_state, obs, key), None, num_steps
            )
            last = network.apply(weights, obs)[1]

            def back(carry, t):
                advantage, following = carry
                kept = 0.9 * (1.0 - t.done)
                advantage = t.reward + kept * following - t.value + 0.9 * kept * advantage
                return (advantage, t.value), advantage

            advantage = jax.lax.scan(back, (jnp.zeros_like(last), last), batch, reverse=True)[1]
            target = advantage + batch.value
            for _ in range(4):
                gradient = jax.grad(loss)(weights, batch, advantage, target)
                change, moments = optimiser.update(gradient, moments)
                weights = optax.apply_updates(weights, change)
            return (weights, moments, env_state, obs, key), batch.info

        start = (weights, optimiser.init(weights), env_state, obs, key)
        return jax.lax.scan(update, start, None, num_updates)[1]

    return train


@pytest.mark.slow
def test_a_loop_like_purejaxrls_learns(gymnax, key):
    """One fast server of four does nearly everything best alone."""
    env, params = jaxlb.make("slow-servers", max_steps_in_episode=32, completion_exponent=0.5)
    env = FiveValueEnv(gymnax.wrappers.LogWrapper(env))
    info = jax.jit(make_train(env, params, num_envs=64, num_steps=32, num_updates=30))(key)
    assert info["returned_episode"].shape == (30, 32, 64)
    # Each update is one episode of every lane.
    assert (np.asarray(info["returned_episode"])[:, -1]).all()
    assert (np.asarray(info["returned_episode_lengths"])[:, -1] == 32).all()
    returns = np.asarray(info["returned_episode_returns"])[:, -1].mean(1)
    assert returns[-1] > 0.6 * returns[0]
