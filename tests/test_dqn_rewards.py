"""Deep Q-learning of rewards of one's own."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import cli, rewards, runs
from jaxlb.learn import networks
from jaxlb.learn.dqn import DQNConfig, train_dqn
from jaxlb.learn.settings import configure
from jaxlb.rewards import Weights
from tests import small


class Tardiness(rewards.Reward):
    def __call__(self, env, params, before, after, outcome, gap):
        return -jnp.log1p(jnp.maximum(outcome.completion - before.task.deadline, 0.0))


@pytest.mark.slow
def test_a_reward_of_ones_own_is_learned(key):
    env, params = jaxlb.make("heavy-tail")
    config = DQNConfig(
        reward=Tardiness(), num_iterations=2000, num_evaluations=4, num_lanes=64, batch_size=128
    )
    result = jaxlb.train_dqn(env, params, config, key)
    # Nothing is known of it beforehand, and it is what was judged.
    assert float(result.scheduler.variables.weights.sla_weight) == 0.0
    judged = dataclasses.replace(env, reward=Tardiness())
    run = jax.random.key(1), 128, 1000, 500
    ours, lwr = (
        jaxlb.rollout(judged, params, one, *run).mean_reward.mean() for one in (result.scheduler, "lwr")
    )
    assert ours > 0.7 * lwr  # costs, below 0: with four keys 0.16 to 0.41 of LWR's
    assert result.history.greedy_objective.max() < 0


@pytest.mark.slow
def test_the_weighted_reward_as_one_of_ones_own_is_learned_whole(key):
    """Its value is the same sum, of which nothing is known beforehand."""

    class Same(rewards.Weighted):
        pass

    env, params = jaxlb.make("heavy-tail")
    same = DQNConfig(
        reward=Same(), num_lanes=4, memory_rows=8, batch_size=4, num_iterations=4, num_evaluations=1
    )
    theirs = same.replace(reward=rewards.Weighted(), weights=rewards.Weights(0.0, 0.5, 0.0, 0.0))
    assert jax.tree.leaves(same.known_part()) == jax.tree.leaves(theirs.known_part())
    result = jaxlb.train_dqn(env, params, same, key)
    environment = jaxlb.rollout(env, params, result.scheduler, key, 4, 20).mean_reward
    assert np.isfinite(environment).all()
    # What it collects is the reward of the environment, not that of weights which it has not.
    np.testing.assert_allclose(result.history.objective, result.history.reward, rtol=1e-6)
    whole = jaxlb.train_dqn(env, params, theirs, key)
    np.testing.assert_allclose(whole.history.objective, 0.0)
    assert abs(result.history.objective) > 0.1


@pytest.mark.slow
def test_a_reward_by_name_is_a_setting(tmp_path):
    settings = (*small.DQN, "reward=holding-cost")
    assert cli.run(["train", "dqn", "--train", *settings, "--out", str(tmp_path / "run")]) == 0
    run = runs.find(tmp_path / "run")
    assert run.training.settings["reward"] == "holding-cost"
    assert run.training.config().reward == rewards.HoldingCost()
    assert isinstance(jaxlb.load(tmp_path / "run"), jaxlb.Scheduler)
    assert cli.run(["train", "dqn", "--train", "reward=holding", "--out", str(tmp_path / "other")]) == 2


@pytest.mark.slow
def test_who_loads_a_training_needs_no_reward(key, tmp_path):
    env, params = jaxlb.make("heavy-tail")
    own = configure(DQNConfig, **small.plain())
    own = own.replace(network=networks.per_processor((8,)), reward=Tardiness())
    result = train_dqn(env, params, own, key)
    jaxlb.save(tmp_path / "weights", result.scheduler, env, params, own)
    chex.assert_trees_all_equal(jaxlb.load(tmp_path / "weights").variables, result.scheduler.variables)
    with pytest.raises(ValueError, match="reward: is one in place of the weights; give it or them"):
        train_dqn(env, params, own.replace(weights=Weights(sla_weight=2.0)), key)
    with pytest.raises(
        ValueError, match=r"reward = .*: must be 'weighted' .* derive from jaxlb.rewards.Reward"
    ):
        train_dqn(env, params, own.replace(reward=lambda *given: 0.0), key)
