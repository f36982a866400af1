"""Gymnasium's own checks and vectors, and Stable-Baselines3, on our scenarios."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import jaxlb
from tests import small


@pytest.mark.parametrize("name", small.SCENARIOS)
def test_gymnasiums_checker_finds_nothing(name):
    """Its complaints are warnings, and warnings are errors here."""
    # Drawing is the same for all: once is enough.
    check_env(gymnasium.make(f"jaxlb/{name}-v0").unwrapped, skip_render_check=name != "heavy-tail")


def test_overrides_are_those_of_make():
    env = gymnasium.make("jaxlb/heavy-tail-v0", load=0.3, num_processors=6)
    assert env.action_space == gymnasium.spaces.Discrete(6)
    assert env.observation_space.shape == (28,)
    assert float(env.unwrapped.params.load) == np.float32(0.3)
    with pytest.raises(ValueError, match="unknown parameter 'laod'; did you mean load"):
        gymnasium.make("jaxlb/heavy-tail-v0", laod=0.3)
    with pytest.raises(ValueError, match="unknown parameter 'laod'; did you mean load"):
        gymnasium.make_vec("jaxlb/heavy-tail-v0", num_envs=2, laod=0.3)


def test_a_step_is_the_environments(key):
    env = gymnasium.make("jaxlb/heavy-tail-v0", load=0.6)
    first, _ = env.reset(seed=5)
    pure, params = jaxlb.make("heavy-tail", load=0.6)
    carried, reset_key = jax.random.split(jax.random.key(5))
    observation, state = pure.reset(reset_key, params)
    np.testing.assert_allclose(first, observation, rtol=1e-5)
    for action in (2, 0, 0):
        carried, step_key = jax.random.split(carried)
        observation, state, reward, _, _, info = pure.step(step_key, state, action, params)
        seen, cost, terminated, truncated, outcome = env.step(action)
        np.testing.assert_allclose(seen, observation, rtol=1e-5)
        np.testing.assert_allclose(cost, reward, rtol=1e-5)
        np.testing.assert_allclose(outcome["completion"], info["outcome"].completion, rtol=1e-5)
        assert (terminated, truncated, outcome["action"]) == (False, False, action)


def test_an_episode_ends_with_its_last_observation_and_begins_empty():
    env = gymnasium.make("jaxlb/stable-v0", max_steps_in_episode=3)
    env.reset(seed=0)
    ends = []
    for _ in range(3):
        last, *_, truncated, _ = env.step(1)
        ends.append(truncated)
    assert ends == [False, False, True]
    assert last[4:16].sum() > 0
    fresh, _ = env.reset()
    assert fresh[4:16].sum() == 0


def test_seeds_are_reproducible_and_no_seed_is_another_each_time():
    def play(env, seed):
        seen = [env.reset(seed=seed)[0]]
        for step in range(7):  # two episodes and a bit
            observation, _, _, truncated, _ = env.step(step % 4)
            seen.append(env.reset()[0] if truncated else observation)
        return np.stack(seen)

    one, other = (gymnasium.make("jaxlb/shift-v0", max_steps_in_episode=3) for _ in range(2))
    np.testing.assert_array_equal(play(one, 7), play(other, 7))
    np.testing.assert_array_equal(play(one, 7), play(one, 7))
    assert (play(one, 7) != play(one, 8)).any()
    assert (one.reset(seed=7)[0] != one.reset()[0]).any()
    unseeded = [gymnasium.make("jaxlb/shift-v0").reset()[0] for _ in range(2)]
    assert (unseeded[0] != unseeded[1]).any()


def test_bounds_hold_where_queues_overflow():
    env = gymnasium.make("jaxlb/seed-v0", queue_capacity=4, load=3.0, allow_overload=True)
    env.reset(seed=0)
    high, longest, urgency = env.observation_space.high, 0.0, 0.0
    for _ in range(100):
        observation, *_ = env.step(1)
        assert observation in env.observation_space
        longest, urgency = max(longest, observation[5]), max(urgency, observation[1])
    assert longest == high[5] == 4
    assert urgency < high[1] == 3
    assert (env.observation_space.low == 0).all() and (high[8:] == np.finfo(np.float32).max).all()


def test_an_action_that_is_no_processor_is_refused():
    env = gymnasium.make("jaxlb/stable-v0").unwrapped
    env.reset(seed=0)
    vector = gymnasium.make_vec("jaxlb/stable-v0", num_envs=2)
    vector.reset(seed=0)
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=rf"action = {bad}: must be in 0 \.\. 3"):
            env.step(bad)
        with pytest.raises(ValueError, match=rf"actions = {bad}: must be in 0 \.\. 3"):
            vector.step(np.array([0, bad]))
    with pytest.raises(ValueError, match=r"shape \(3,\): must be \(2,\)"):
        vector.step(np.zeros(3, int))
    for bad, message in ((1.7, "= 1.7: must be a whole number"), (np.nan, "must be a number, not NaN")):
        with pytest.raises(ValueError, match=message):
            env.step(bad)
        with pytest.raises(ValueError, match=message):
            vector.step(np.array([0.0, bad]))
    for bad in (None, "1", True, [0, 1]):
        with pytest.raises(ValueError, match=r"action (=|has shape)"):
            env.step(bad)


def test_an_action_may_come_in_an_array():
    env = gymnasium.make("jaxlb/stable-v0").unwrapped
    for action in (2, np.int64(2), np.array(2), np.array([2]), np.array([2.0], np.float32)):
        env.reset(seed=0)
        assert env.step(action)[-1]["action"] == 2


def test_nothing_is_stepped_before_a_reset():
    env = jaxlb.interop.gymnasium_envs.LoadBalancingEnv("stable")
    vector = gymnasium.make_vec("jaxlb/stable-v0", num_envs=2)
    for call in (lambda: env.step(0), lambda: vector.step(np.array([0, 0]))):
        with pytest.raises(gymnasium.error.ResetNeeded, match="step before reset"):
            call()
        with pytest.raises(ValueError, match="step before reset"):
            call()


def test_seeds_that_cannot_be_are_refused():
    env = gymnasium.make("jaxlb/stable-v0").unwrapped
    vector = gymnasium.make_vec("jaxlb/stable-v0", num_envs=2)
    with pytest.raises(ValueError, match="seed has 3 entries: must have 2"):
        vector.reset(seed=[1, 2, 3])
    for bad in (-1, 2**32, 1.5, "7", True):
        with pytest.raises(
            ValueError, match=r"seed = .*: must be a whole number of at least 0, at most 4294967295"
        ):
            env.reset(seed=bad)
        with pytest.raises(
            ValueError, match=r"seed = .*: must be a whole number of at least 0, at most 4294967295"
        ):
            vector.reset(seed=[0, bad])
    with pytest.raises(
        ValueError, match=r"seed of the first lane = 4294967295: must be .* at most 4294967294"
    ):
        vector.reset(seed=2**32 - 1)
    last, _ = vector.reset(seed=2**32 - 2)
    assert (last[1] == env.reset(seed=2**32 - 1)[0]).all()


def _equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, dict):
            _equal(value, theirs[name])
        elif value.dtype == object:
            for one, other in zip(value, theirs[name], strict=True):
                assert (one is None) == (other is None)
                np.testing.assert_allclose([] if one is None else one, [] if other is None else other, 1e-5)
        else:
            np.testing.assert_allclose(value, theirs[name], rtol=1e-5)


def test_a_vector_is_gymnasiums_own_vector_of_single_environments():
    """Same observations, rewards, ends and information, through several automatic resets."""
    name, settings = "jaxlb/stale-v0", {"max_steps_in_episode": 4, "load": 0.95}
    ours = gymnasium.make_vec(name, num_envs=5, **settings)
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(name, **settings)] * 5, autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    for seed in (11, None, [4, 3, 2, 1, 0], [7, None, None, 8, 9]):
        np.testing.assert_allclose(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0], rtol=1e-5)
        for step in range(1, 10):
            actions = rng.integers(0, 8, 5)
            *figures, infos = ours.step(actions)
            *expected, told = theirs.step(actions)
            for one, other in zip(figures, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5)
            _equal(infos, told)
            assert ("final_obs" in infos) == (step % 4 == 0)


def test_gymnasiums_vector_of_recorded_environments_has_the_same_lanes():
    """As CleanRL's programs make it."""
    name, tasks = "jaxlb/heavy-tail-v0", 20

    def recorded():
        return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(name, max_steps_in_episode=tasks))

    theirs = gymnasium.vector.SyncVectorEnv(
        [recorded] * 3, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    ours = gymnasium.make_vec(name, num_envs=3, max_steps_in_episode=tasks)
    seen, own = theirs.reset(seed=[5, 6, 7])[0], ours.reset(seed=[5, 6, 7])[0]
    total = np.zeros(3)
    for _ in range(tasks):
        np.testing.assert_allclose(seen, own, rtol=1e-4, atol=1e-4)
        action = own[:, 12:16].argmin(1)
        seen, reward, _, truncated, infos = theirs.step(action)
        own, expected, *_ = ours.step(action)
        np.testing.assert_allclose(reward, expected, rtol=1e-5)
        total += expected
    assert truncated.all()
    np.testing.assert_allclose(infos["final_info"]["episode"]["r"], total, rtol=1e-4)
    assert (infos["final_info"]["episode"]["l"] == tasks).all()


def test_thousands_of_lanes_take_one_call():
    from jaxlb.interop import gymnasium_envs

    vector = gymnasium.make_vec("jaxlb/heavy-tail-v0", num_envs=4096, max_steps_in_episode=20)
    observation, _ = vector.reset(seed=0)
    assert observation.shape == (4096, 20) and len(np.unique(observation[:, 0])) > 4000
    programs = gymnasium_envs._step_lanes._cache_size()
    violations = []
    for _ in range(50):
        # Least wait: figures 12 .. 15.
        observation, rewards, _, _, infos = vector.step(observation[:, 12:16].argmin(1))
        assert observation in vector.observation_space
        violations.append(infos.get("violation", infos.get("final_info", {}).get("violation")).mean())
    assert gymnasium_envs._step_lanes._cache_size() <= programs + 1
    assert rewards.shape == (4096,)
    assert 0 < np.mean(violations) < 0.5
    vector.close()


def test_pictures_have_bars_where_there_is_work():
    env = gymnasium.make("jaxlb/heavy-tail-v0", render_mode="rgb_array")
    env.reset(seed=0)
    empty = env.render()
    assert empty.dtype == np.uint8 and empty.shape == (360, 480, 3)
    for _ in range(12):
        env.step(0)
    full = env.render()
    bar = np.array([0x1F, 0x6F, 0x8B])
    waiting = np.array([0x99, 0xC1, 0xD4])
    assert not (empty == bar).all(-1).any() and not (empty == waiting).all(-1).any()
    where = np.argwhere((full == waiting).all(-1))
    assert len(where) > 1000 and where[:, 1].max() < 480 / 2  # all of it at the first of four processors
    env.close()
    with pytest.raises(ValueError, match="render_mode = 'ansi': must be None, 'human' or 'rgb_array'"):
        jaxlb.interop.gymnasium_envs.LoadBalancingEnv("stable", render_mode="ansi")
    with pytest.raises(ValueError, match="render_mode = 'human': must be None or 'rgb_array'"):
        jaxlb.interop.gymnasium_envs.LoadBalancingVectorEnv(2, "stable", render_mode="human")


def test_a_vector_draws_every_lane():
    vector = gymnasium.make_vec("jaxlb/heavy-tail-v0", num_envs=2, render_mode="rgb_array")
    one = gymnasium.make("jaxlb/heavy-tail-v0", render_mode="rgb_array")
    vector.reset(seed=7)
    one.reset(seed=7)
    for _ in range(5):
        vector.step(np.array([0, 3]))
        one.step(0)
    pictures = vector.render()
    assert len(pictures) == 2 and not (pictures[0] == pictures[1]).all()
    np.testing.assert_array_equal(pictures[0], one.render())
    vector.close()
    one.close()


def test_a_window_opens_and_closes(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    before = len(pyplot.get_fignums())
    env = gymnasium.make("jaxlb/heavy-tail-v0", render_mode="human")
    env.reset(seed=0)
    env.step(3)
    assert len(pyplot.get_fignums()) == before + 1
    assert env.render() is None
    env.close()
    env.close()
    assert len(pyplot.get_fignums()) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DQN", "PPO"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_stable_baselines3_trains_unmodified(name):
    sb3 = pytest.importorskip("stable_baselines3")
    import torch
    from stable_baselines3.common.env_checker import check_env as sb3_check
    from stable_baselines3.common.evaluation import evaluate_policy

    torch.set_num_threads(1)  # the other core runs other tests
    env = gymnasium.make("jaxlb/slow-servers-v0", max_steps_in_episode=100, completion_exponent=0.5)
    sb3_check(env)
    settings = {"DQN": {"learning_starts": 500}, "PPO": {"n_steps": 512, "batch_size": 128}}[name]
    model = getattr(sb3, name)("MlpPolicy", env, seed=0, device="cpu", **settings)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(3000)
    assert model.num_timesteps >= 3000
    after = model.policy.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(bool((after[key] != value).any()) for key, value in before.items())
    returns, lengths = evaluate_policy(model, model.get_env(), 3, return_episode_rewards=True)
    assert lengths == [100, 100, 100] and np.isfinite(returns).all()
