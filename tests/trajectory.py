"""Replay that also returns the system at every decision, from the environment's public pieces."""

import jax
import jax.numpy as jnp

from jaxlb.params import with_lane_axis


def trajectory(env, params, scheduler, tasks, key):
    """Outcomes, queue lengths `[T, P, ...]` and waits `[T, P, ...]` at every decision, last state."""
    lanes = tasks.gap.shape[1:]
    params = with_lane_axis(params, lanes)
    state = env.start(params, jax.tree.map(lambda leaf: leaf[0], tasks), key)
    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), tasks)

    @jax.jit
    def run(state):
        def body(carry, task):
            state, memory = carry
            seen = env.observe(state, params, key)
            action, memory = scheduler.act(scheduler.variables, memory, seen, key)
            found = state.system.station.queue_length, state.system.station.wait
            state, outcome, _ = env.transition(state, action, task, params, key)
            return (state, memory), (outcome, *found)

        return jax.lax.scan(body, (state, scheduler.start(env, params, lanes)), following)

    (state, _), (outcome, queue_length, wait) = run(state)
    return outcome, queue_length, wait, state
