"""The reward of an assignment, and of every assignment there could be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import rewards
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.params import with_lane_axis
from jaxlb.rewards import Weights


def decision(key, **overrides):
    """An environment with 8 lanes somewhere on their way."""
    env, params = jaxlb.make("heavy-tail", class_probability=[0.3, 0.7], class_slack=[1.0, 2.0], **overrides)
    carry = start_rollout(env, params, jaxlb.scheduler("random"), key, 8)
    carry = continue_rollout(env, params, jaxlb.scheduler("random"), carry, 20)
    return env, with_lane_axis(params, (8,)), carry.state


@pytest.mark.parametrize(
    ("sla_weight", "exponent"),
    [
        ([3.0, 0.5], 0.5),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((2.0, None), (2.0, 0.5), ([3.0, 0.5], None))
        ),
    ],
)
def test_each_choice_gets_the_reward_that_its_transition_gives(key, sla_weight, exponent):
    env, params, state = decision(
        key, imbalance_weight=0.1, sla_weight=sla_weight, completion_exponent=exponent, completion_weight=0.7
    )
    task = state.task
    each = rewards.of_each_choice(
        params, state.system.station.wait, task.size, task.priority, task.deadline, params.speed
    )
    for action in range(4):
        _, _, reward = env.transition(state, jnp.full(8, action), task, params, key)
        np.testing.assert_allclose(each[action], reward, rtol=2e-4)


def test_the_parts_of_a_reward():
    weights = Weights(completion_weight=3.0, completion_exponent=2.0, imbalance_weight=0.25, sla_weight=10.0)
    zero = jnp.int32(0)
    assert rewards.weighted(weights, zero, jnp.float32(2.0), jnp.bool_(False), jnp.float32(8.0)) == -14.0
    assert rewards.weighted(weights, zero, jnp.float32(2.0), jnp.bool_(True), jnp.float32(8.0)) == -24.0
    by_class = weights.replace(sla_weight=jnp.array([10.0, 100.0]))
    of = [
        rewards.weighted(by_class, jnp.int32(c), jnp.float32(0.0), jnp.bool_(True), jnp.float32(0))
        for c in (0, 1)
    ]
    assert of == [-10.0, -100.0]
    speed = jnp.array([1.0, 3.0])  # mean 2: a task of size 8 takes 4
    assert rewards.alone(weights, jnp.float32(8.0), speed) == -48.0


def test_weights_in_mean_services_are_the_same_objective_in_any_units(key):
    weights = Weights(completion_weight=0.5, completion_exponent=0.5, imbalance_weight=0.1, sla_weight=0.5)
    found = []
    for time, work in ((1.0, 1.0), (8.0, 1.0), (1.0, 16.0)):
        env, params = jaxlb.make(
            "heavy-tail", low=work, high=1000.0 * work, speed=[0.5 * work / time, 2.0 * work / time]
        )
        params = weights.put_into(params)
        summary = jaxlb.rollout(env, params, jaxlb.scheduler("lwr"), key, 16, 100)
        found.append(np.asarray(summary.mean_reward))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match=r"sla_weight has shape \(3,\): must be one number, or \(1,\)"):
        jaxlb.make("heavy-tail", sla_weight=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="completion_exponent = 0: must be above 0"):
        jaxlb.make("heavy-tail", completion_exponent=0.0)
    with pytest.raises(ValueError, match="completion_weight = -1: must be at least 0"):
        jaxlb.make("heavy-tail", completion_weight=-1.0)

    env, params = jaxlb.make("heavy-tail")
    for weights in (lambda state, outcome: 0.0, None, {"sla_weight": 1.0}, "holding-cost"):
        with pytest.raises(ValueError, match=r"weights = .*: must be jaxlb\.Weights") as caught:
            jaxlb.train_dqn(env, params, jaxlb.DQNConfig(weights=weights), jax.random.key(0))
        assert "\n" not in str(caught.value)


def test_rewards_can_differ_by_lane(key):
    env, params = jaxlb.make("heavy-tail")
    lanes = params.replace(completion_weight=jnp.array([1.0, 2.0]), sla_weight=jnp.float32(0.0))
    lanes = lanes.replace(imbalance_weight=jnp.float32(0.0))
    summary = jaxlb.rollout(env, lanes, jaxlb.scheduler("lwr"), key, 2, 50)
    ratio = -summary.mean_reward / summary.mean_completion
    np.testing.assert_allclose(ratio, [1.0, 2.0], rtol=1e-5)


class Constant(jaxlb.rewards.Reward):
    value: float = 1.0

    def __call__(self, env, params, before, after, outcome, gap):
        return jnp.full_like(outcome.completion, self.value) * gap


def test_a_reward_of_ones_own_is_the_one_that_counts(key):
    env, params = jaxlb.make("stable", reward=Constant(-3.0))
    summary = jaxlb.rollout(env, params, "lwr", key, num_lanes=8, num_tasks=300)
    gap = params.size.mean() / (params.load * jnp.sum(jnp.asarray(params.speed)))
    np.testing.assert_allclose(summary.mean_reward.mean(), -3.0 * gap, rtol=0.1)  # 2400 gaps: 5 sd
    _, state = env.reset(key, params)
    assert float(env.step(key, state, 0, params)[2]) < 0
    assert (
        env != jaxlb.make("stable")[0]
        and jaxlb.make("stable", reward="weighted")[0] == jaxlb.make("stable")[0]
    )


class OfEach(jaxlb.rewards.Reward):
    def __call__(self, env, params, before, after, outcome, gap):
        return env.station.view(after.system.station, params.speed).wait


def test_a_reward_of_another_shape_is_refused(key):
    env, params = jaxlb.make("heavy-tail", reward=OfEach())
    with pytest.raises(
        ValueError, match=r"reward OfEach: returns shape \(4, 8\), must be \(8,\), one a lane"
    ):
        jaxlb.rollout(env, params, "lwr", key, num_lanes=8, num_tasks=10)


def test_what_is_no_reward_is_refused():
    for bad in (lambda state: 0.0, 3, None):
        with pytest.raises(ValueError, match=r"reward = .*: must be 'weighted' or 'holding-cost', or derive"):
            jaxlb.make("stable", reward=bad)
