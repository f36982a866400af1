"""dm_env and Jumanji see what the environment does, through the ends of episodes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import interop

LENGTH = 5
ACTIONS = [3, 0, 1, 2, 3, 1, 1]


@pytest.fixture
def system():
    return jaxlb.make("heavy-tail", max_steps_in_episode=LENGTH)


def keys_of(seed):
    """The keys of the reset and of each step, as both adapters split theirs."""
    key, keys = jax.random.key(seed), []
    for _ in range(LENGTH + 1):
        key, own = jax.random.split(key)
        keys.append(own)
    return keys


def expected(system, keys):
    """Steps of the environment itself: what is seen after each, its reward, and whether an episode ends."""
    env, params = system
    observation, state = env.reset(keys[0], params)
    steps = [(observation, None, False)]
    for place, action in enumerate(ACTIONS[:LENGTH]):
        _, state, reward, _, truncated, info = env.step(keys[place + 1], state, jnp.int32(action), params)
        steps.append((info["final_observation"], reward, bool(truncated)))
    return steps


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dm_env(system):
    dm_env = pytest.importorskip("dm_env")
    adapted = interop.DmEnv(*system, seed=7)
    assert isinstance(adapted, dm_env.Environment)
    steps = expected(system, keys_of(7))
    found = [adapted.reset(), *(adapted.step(action) for action in ACTIONS[:LENGTH])]
    for step, (observation, reward, last) in zip(found, steps, strict=True):
        np.testing.assert_allclose(step.observation, observation, rtol=1e-6)
        assert step.last() == last
        if reward is not None:
            np.testing.assert_allclose(step.reward, reward, rtol=1e-6)
            assert step.discount == 1.0
        adapted.observation_spec().validate(step.observation)
    assert found[0].first() and found[-1].last()
    assert adapted.step(0).first()  # as dm_env has it, a step after the end begins anew
    for bad in (99, -1, 1.7, True):
        with pytest.raises(ValueError, match="action"):
            adapted.step(bad)
    adapted.action_spec().validate(np.int32(3))
    with pytest.raises(ValueError):
        adapted.action_spec().validate(np.int32(4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jumanji(system):
    jumanji = pytest.importorskip("jumanji")
    wrappers = pytest.importorskip("jumanji.wrappers")
    adapted = interop.JumanjiEnv(*system)
    assert isinstance(adapted, jumanji.Environment)
    steps = expected(system, keys_of(7))
    state, first = jax.jit(adapted.reset)(jax.random.key(7))
    found, step = [first], jax.jit(adapted.step)
    for action in ACTIONS[:LENGTH]:
        state, time_step = step(state, jnp.int32(action))
        found.append(time_step)
    for time_step, (observation, reward, last) in zip(found, steps, strict=True):
        np.testing.assert_allclose(time_step.observation, observation, rtol=1e-6)
        assert bool(time_step.last()) == last
        np.testing.assert_allclose(time_step.reward, 0.0 if reward is None else reward, rtol=1e-6)
        assert time_step.discount == 1.0
        adapted.observation_spec.validate(time_step.observation)
    # Jumanji's own wrapper: lanes side by side that begin anew.
    lanes = wrappers.VmapAutoResetWrapper(adapted)
    with jax.numpy_dtype_promotion("standard"):
        state, time_step = lanes.reset(jax.random.split(jax.random.key(0), 8))
        for _ in range(3 * LENGTH):
            state, time_step = jax.jit(lanes.step)(state, jnp.zeros(8, jnp.int32))
    assert time_step.last().all()
    assert np.isfinite(time_step.observation).all()


def test_who_lacks_a_package_is_told_which(monkeypatch):
    import sys

    for module, name in (("dm_env", "DmEnv"), ("jumanji", "JumanjiEnv")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"jaxlb.interop.{module}_adapter", raising=False)
        with pytest.raises(
            ImportError, match=f"{name} needs {module}: pip install {module.replace('_', '-')}"
        ):
            getattr(interop, name)
    with pytest.raises(AttributeError, match="no attribute 'Jumanji'"):
        _ = interop.Jumanji
