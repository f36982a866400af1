"""One choice of a scheduler, in a state that a test makes up."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxlb


def observation(wait, speed=None, queue_length=None, size=1.0, load=None):
    """An observation of one lane."""
    wait = jnp.asarray(wait, jnp.float32)
    speed = jnp.ones_like(wait) if speed is None else jnp.asarray(speed, jnp.float32)
    load = wait * speed if load is None else jnp.asarray(load, jnp.float32)
    queue_length = (
        jnp.zeros(wait.shape, jnp.int32) if queue_length is None else jnp.asarray(queue_length, jnp.int32)
    )
    size, zero = jnp.float32(size), jnp.float32(0.0)
    return jaxlb.Observation(
        gap=zero,
        size=size,
        priority=jnp.int32(0),
        deadline=zero,
        load_average=load.mean(),
        load_variance=load.var(),
        queue_length=queue_length,
        load=load,
        wait=wait,
        speed=speed,
        age=zero,
        assigned=jnp.zeros_like(wait),
        truth=jaxlb.types.Truth(size=size, wait=wait, speed=speed),
    )


def params_of(speed, **overrides):
    _, params = jaxlb.make("heavy-tail", speed=list(speed), **overrides)
    return params


def choose(name, seen, params=None, memory=None, key=None, **options):
    """One choice of a scheduler; its memory starts fresh unless given."""
    scheduler = jaxlb.scheduler(name, **options)
    params = params_of(np.asarray(seen.speed)) if params is None else params
    env, _ = jaxlb.make("heavy-tail", num_processors=len(seen.speed))
    memory = scheduler.start(env, params, ()) if memory is None else memory
    action, memory = scheduler.act(
        scheduler.variables, memory, seen, jax.random.key(0) if key is None else key
    )
    assert action.dtype == jnp.int32 and action.shape == ()
    return int(action), memory
