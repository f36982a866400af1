"""JAX as its users set it: 64 bits, strict broadcasting, watched keys; keys of both kinds; numbers."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.loop import continue_rollout

SMALL = jaxlb.DQNConfig(
    num_iterations=4, num_evaluations=2, num_lanes=8, batch_size=8, memory_rows=32, evaluation_tasks=10
)

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
import jaxlb
small = dict(num_iterations=4, num_evaluations=2)
task_key, key = jax.random.split(jax.random.key(0))
key = jax.random.clone(key)
env, params = jaxlb.make("heavy-tail")
tasks = jaxlb.workload.sample(task_key, params, 20, (4,))
fresh = lambda: jax.random.clone(key)
outcome = jaxlb.replay(env, params, "greedy", tasks, fresh())
assert outcome.completion.dtype == np.float32
def mean(load):
    return jaxlb.rollout(env, params.replace(load=load), "lwr", fresh(), 4, 20).mean_completion
print(np.asarray(jax.vmap(mean)(jnp.linspace(0.1, 0.9, 3))).tolist())
wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
wide = wide.replace(max_steps_in_episode=1000)
np.testing.assert_array_equal(jaxlb.rollout(env, wide, "lwr", fresh(), 4, 20).mean_completion, mean(0.7))
obs, state = env.reset(fresh(), params)
obs, state, reward, *_ = jax.jit(env.step)(fresh(), state, 1, params)
assert obs.dtype == reward.dtype == np.float32
jaxlb.compare(env, params, {"jsq": "jsq", "hedge": "hedge"}, fresh(), num_lanes=4, num_tasks=20)
for arrival in ("bursty", "diurnal", "drift", "shift", "renewal", "batch"):
    jaxlb.workload.sample(fresh(), jaxlb.make("stable", arrival=arrival)[1], 5, (2,))
jaxlb.rollout(*jaxlb.make("stable", measure_interval=1.0), "lwr", fresh(), 2, 5)
TRAIN
"""

DQN = """
import contextlib, io, tempfile
from pathlib import Path
from jaxlb.cli.train import Train
out = Path(tempfile.mkdtemp())
settings = [f"{name}={value}" for name, value in small.items()]
settings += ["sla_weight=2", "discount=1"]
settings += ["num_lanes=8", "batch_size=8", "memory_rows=32", "evaluation_tasks=9"]
with contextlib.redirect_stdout(io.StringIO()):
    Train(method="dqn", scenario="heavy-tail", train=tuple(settings), out=out).run()
scheduler = jaxlb.load(out)
assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(scheduler.variables)} == {4}
jaxlb.rollout(env, params, scheduler, fresh(), 4, 20)
"""
OTHERS = """
config = jaxlb.DQNConfig(num_lanes=8, batch_size=8, memory_rows=32, evaluation_tasks=9, **small)
dqn = jaxlb.train_dqn(env, params, config, fresh())
assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(dqn.scheduler)} == {4}
gnn = jaxlb.train_gnn(env, params, jaxlb.GNNConfig(num_lanes=20, num_tasks=20, **small), fresh())
jaxlb.rollout(env, params, gnn.scheduler, fresh(), 4, 20)
config = jaxlb.PredictorConfig(num_lanes=50, num_tasks=20, **small)
found = jaxlb.train_predictor(env, params, config, fresh())
jaxlb.rollout(env, params, found.scheduler, fresh(), 4, 20)
two = jaxlb.make("two-server", size_visible=True, wait_visible=True)
jaxlb.rollout(*two, "optimal", fresh(), 4, 20)
"""


def run(training, **settings):
    program = PROGRAM.replace("TRAIN", training)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


SETTINGS = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_DEBUG_KEY_REUSE": "1"}


@pytest.mark.slow
def test_all_runs_under_other_settings_of_jax_and_figures_stay():
    assert run(DQN + OTHERS, **SETTINGS) == run("")


@pytest.mark.slow
def test_both_kinds_of_keys_are_taken_and_mean_the_same():
    typed, raw = jax.random.key(3), jax.random.PRNGKey(3)
    env, params = jaxlb.make("seed", max_steps_in_episode=2)
    lwr = jaxlb.scheduler("lwr")

    def stepped(key):
        obs, state = env.reset(key, params)
        shown = [obs]
        for action in (1, 2, 0):  # beyond the end of an episode
            obs, state, *_ = jax.jit(env.step)(key, state, action, params)
            shown.append(obs)
        return shown

    def compared(key):
        return jaxlb.compare(env, params, {"lwr": lwr}, key, num_lanes=4, num_tasks=10).as_dict()

    tasks = workload.sample(typed, params, 10)
    entries = [
        stepped,
        compared,
        lambda key: workload.sample(key, params, 10, (3,)),
        lambda key: jaxlb.rollout(env, params, lwr, key, 4, 10),
        lambda key: jaxlb.replay(env, params, jaxlb.scheduler("power-of-d"), tasks, key),
        lambda key: jaxlb.train_dqn(env, params, SMALL, key).history,
        lambda key: jax.vmap(env.reset, (0, None))(jax.random.split(key, 3), params)[0],
    ]
    for entry in entries:
        chex.assert_trees_all_equal(entry(raw), entry(typed))
    for bad in (7, np.zeros(2), "0"):
        with pytest.raises(ValueError, match=r"key = .*: must be one that jax.random.key or"):
            jaxlb.rollout(env, params, lwr, bad, 4, 10)


def test_a_number_is_one_program_however_it_is_given(key):
    env, params = jaxlb.make("stable")
    jaxlb.rollout(env, params, "lwr", key, 4, 10)
    before = continue_rollout._cache_size()
    for load in (0.5, np.float32(0.5), np.float64(0.5), jnp.float32(0.5), jnp.asarray(0.5), np.array(0.5)):
        jaxlb.rollout(env, params.replace(load=load), "lwr", key, 4, 10)
        jaxlb.rollout(env, params.replace(speed=[1.0, 1.0, 1.0, 1.0], load=load), "lwr", key, 4, 10)
    assert continue_rollout._cache_size() == before


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
def test_rollouts_replays_and_trainings_run_within_shard_map(checked, key):
    """Each device a rollout of its own: the same as one after the other."""
    mesh, keys = jaxlb.device_mesh(2), jax.random.split(key, 2)
    env, params = jaxlb.make("heavy-tail")
    tasks = workload.sample(key, params, 10, (4,))
    spec = jax.sharding.PartitionSpec("devices")

    def each(function):
        def alone(keys):
            return jax.tree.map(lambda leaf: leaf[None], function(keys[0]))

        mapped = jax.shard_map(alone, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=checked)
        return jax.jit(mapped)(keys)

    functions = (
        lambda key: jaxlb.train_dqn(env, params, SMALL, key).history,
        lambda key: jaxlb.rollout(env, params, "lwr", key, 4, 30),
        lambda key: jaxlb.replay(env, params, "power-of-d", tasks, key),
        lambda key: jaxlb.rollout(*jaxlb.make("stable", speeds="failing", up_time=3.0), "lwr", key, 4, 30),
        lambda key: jaxlb.rollout(*jaxlb.make("stable", discipline="fb"), "lwr", key, 4, 30),
        lambda key: jaxlb.rollout(*jaxlb.make("stable", discipline="limited-ps"), "lwr", key, 4, 30),
    )
    for function in functions if checked else functions[:1]:  # unchecked, nothing can be refused
        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(jax.jit(function), keys))
        chex.assert_trees_all_close(each(function), expected, rtol=1e-4)
