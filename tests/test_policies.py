"""Policies of one's own loops: the same choices as in the loop, of processors that may be chosen."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb

NUMBER = 3


def values(weights, x):
    return jnp.tanh(jnp.log1p(jnp.abs(x))) @ weights


def policy(key, features, **options):
    return jaxlb.as_scheduler(values, jax.random.normal(key, (features, NUMBER)), **options)


def made(**settings):
    return jaxlb.make("seed", speed=[1.0, 0.5, 2.0], load=0.6, **settings)


@pytest.mark.parametrize("interval", [None, 2.0])
def test_choices_are_those_of_a_loop_of_steps(interval, key):
    env, params = made(measure_interval=interval)
    obs, state = env.reset(key, params)
    own = policy(jax.random.key(1), len(obs), stale=interval is not None)
    memory = own.start(env, params, ())

    def step(carry, key):
        obs, state = carry
        seen = env.observe(state, params, key)
        action, _ = own.act(own.variables, memory, seen, key)
        best = jnp.argmax(values(own.variables, obs))
        same = (jaxlb.flatten(seen, interval is not None) == obs).all()
        return env.step(key, state, action, params)[:2], (action, best, same)

    _, (action, best, same) = jax.lax.scan(step, (obs, state), jax.random.split(key, 100))
    assert same.all()
    np.testing.assert_array_equal(action, best)
    assert len(np.unique(action)) > 1


@pytest.mark.slow
def test_it_runs_wherever_schedulers_do(key):
    env, params = made()
    own = policy(jax.random.key(1), 4 + 4 * NUMBER, name="mine")
    table = jaxlb.compare(env, params, ["lwr", own], key, num_lanes=4, num_tasks=50)
    assert [row.name for row in table.schedulers] == ["lwr", "mine"]
    again = pickle.loads(pickle.dumps(own))
    tasks = jaxlb.workload.sample(key, params, 50)
    one, other = (jaxlb.replay(env, params, each, tasks, jax.random.key(0)) for each in (own, again))
    np.testing.assert_array_equal(one.action, other.action)


def of_luck(limit, x):
    """Values that are numbers as long as the task is small."""
    value = jnp.zeros((*x.shape[:-1], NUMBER))
    return jnp.where(x[..., :1] > limit, jnp.nan, value)


@pytest.mark.slow
def test_a_value_that_is_no_number_is_named_with_its_task(key):
    env, params = made()
    tasks = jaxlb.workload.sample(key, params, 40, (3,))
    limit = float(np.sort(np.asarray(tasks.size).ravel())[-5])
    over = np.argwhere(np.asarray(tasks.size) > limit)
    place, lane = min(map(tuple, over), key=lambda one: one)
    own = jaxlb.as_scheduler(of_luck, jnp.float32(limit), name="mine")
    lanes = len(set(over[:, 1]))
    message = f"'mine': a value was not a number at task {place} of lane {lane}, the first of {lanes} such"
    with pytest.raises(FloatingPointError, match=message):
        jaxlb.replay(env, params, own, tasks, key)
    guarded = jaxlb.scheduling.guarded(own)  # within another one, too
    for one in (own, guarded):
        one = one.replace(variables=jax.tree.map(lambda leaf: jnp.zeros_like(leaf), one.variables))
        with pytest.raises(FloatingPointError, match="a value was not a number at task 0 of lane 0"):
            jaxlb.rollout(env, params, one, key, 4, 10)
        with pytest.raises(FloatingPointError, match="a value was not a number at task 0 of lane 0"):
            jaxlb.compare(env, params, ["lwr", one], key, num_lanes=4, num_tasks=10)
    with pytest.raises(FloatingPointError, match="a value was not a number at task 0 of lane 0"):
        jaxlb.compare(env, params, ["lwr"], key, num_lanes=4, num_tasks=10, behaviour=one)


def test_only_what_may_be_chosen_is(key):
    affinity = [[1.0, 0.0, 0.5], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    env, params = made(affinity=affinity)
    own = policy(jax.random.key(1), env.observation_space(params).shape[0])
    tasks = jaxlb.workload.sample(key, params, 200)
    action = np.asarray(jaxlb.replay(env, params, own, tasks, key).action)
    assert (np.array(affinity)[np.asarray(tasks.priority), action] > 0).all()


def test_what_does_not_fit_is_said(key):
    env, params = made()
    run = {"num_lanes": 2, "num_tasks": 5}
    with pytest.raises(ValueError, match=r"'policy': apply returns shape .*, a value for each processor"):
        jaxlb.rollout(env, params, jaxlb.as_scheduler(lambda _, x: x, ()), key, **run)
    with pytest.raises(ValueError, match="stale = False: must be True where measure_interval is"):
        jaxlb.rollout(*made(measure_interval=1.0), policy(key, 16), key, **run)
    with pytest.raises(ValueError, match="admission must be False"):
        jaxlb.rollout(*made(admission=True), policy(key, 16), key, **run)
    with pytest.raises(ValueError, match="apply = 3: must be a function"):
        jaxlb.as_scheduler(3, ())
