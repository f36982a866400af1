"""PQN in a loop of one's own: Q-learning without replay or target network, to be copied and changed.

Run it with `python docs/examples/pqn.py`. What it learns becomes a scheduler, and is compared with LWR.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxlb

ENVS, STEPS, UPDATES, EPOCHS, PARTS = 128, 32, 600, 2, 8
DISCOUNT, TRACE, RATE, EXPLORED = 0.99, 0.65, 1e-3, 0.5


class Values(nn.Module):
    """Values `[..., P]` of flat observations `[..., F]`; normalised layers stand in for a target network."""

    actions: int

    @nn.compact
    def __call__(self, x):
        """Return values."""
        # Sizes and waits go over five orders of magnitude, and so would gradients.
        x = jnp.log1p(8.0 * x) - 1.5
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(96)(x)))
        return nn.Dense(self.actions)(x)


def collect(env, params, network, weights, explore, carry, key):
    """Let every environment take a step; return it and what is learned from."""
    obs, state = carry
    chance_key, any_key, step_key = jax.random.split(key, 3)
    value = network.apply(weights, obs)
    anything = jax.random.randint(any_key, (ENVS,), 0, env.num_actions)
    action = jnp.where(jax.random.uniform(chance_key, (ENVS,)) < explore, anything, value.argmax(-1))
    keys = jax.random.split(step_key, ENVS)
    after = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
    return after[:2], (obs, action, after[2], value.max(-1))


def loss_of(network, weights, part):
    """Return the squared error of the values of choices."""
    obs, action, target = part
    value = jnp.take_along_axis(network.apply(weights, obs), action[:, None], -1)[:, 0]
    return 0.5 * ((value - target) ** 2).mean()


@functools.partial(jax.jit, static_argnames=("env", "network", "updates"))
def train(env, params, network, key, updates):
    """Return the network's weights, and the mean reward of each update."""
    init_key, reset_key, key = jax.random.split(key, 3)
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, ENVS), params)
    weights = network.init(init_key, obs)
    steps = optax.linear_schedule(RATE, 0.0, updates * EPOCHS * PARTS)
    rule = optax.chain(optax.clip_by_global_norm(10.0), optax.radam(steps))

    def update(carry, key_and_done):
        weights, optimiser, systems = carry
        key, done = key_and_done
        collect_key, *keys = jax.random.split(key, 1 + EPOCHS)
        explore = jnp.maximum(1.0 - done / EXPLORED, 0.02)
        run = functools.partial(collect, env, params, network, weights, explore)
        systems, (obs, action, reward, best) = jax.lax.scan(
            run, systems, jax.random.split(collect_key, STEPS)
        )
        last = network.apply(weights, systems[0]).max(-1)

        def back(later, row):  # a truncated episode goes on: queues never end
            reward, following = row
            return (found := reward + DISCOUNT * (TRACE * later + (1.0 - TRACE) * following)), found

        following = jnp.concatenate([best[1:], last[None]])
        target = jax.lax.scan(back, last, (reward, following), reverse=True)[1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (obs, action, target))

        def learn(carry, part):
            weights, optimiser = carry
            gradient = jax.grad(functools.partial(loss_of, network))(weights, part)
            change, optimiser = rule.update(gradient, optimiser)
            return (optax.apply_updates(weights, change), optimiser), None

        def epoch(carry, key):
            order = jax.random.permutation(key, ENVS * STEPS).reshape(PARTS, -1)
            return jax.lax.scan(learn, carry, jax.tree.map(lambda leaf: leaf[order], flat))

        (weights, optimiser), _ = jax.lax.scan(epoch, (weights, optimiser), jnp.stack(keys))
        return (weights, optimiser, systems), reward.mean()

    carry = weights, rule.init(weights), (obs, state)
    given = jax.random.split(key, updates), jnp.arange(updates) / updates
    (weights, *_), rewards = jax.lax.scan(update, carry, given)
    return weights, rewards


def main(updates=UPDATES):
    """Train on `heavy-tail`, and compare on other tasks."""
    # Rewards of the scenario go down to -3,000; the root of completion times weighs many short tasks.
    env, params = jaxlb.make(
        "heavy-tail", completion_weight=0.02, completion_exponent=0.5, imbalance_weight=0.0
    )
    network = Values(env.num_actions)
    weights, _ = train(env, params, network, jax.random.key(0), updates)
    own = jaxlb.as_scheduler(network.apply, weights, name="pqn")
    # Stable wherever greedy is, however long the queues: no training has seen those.
    own = jaxlb.scheduling.guarded(own)
    table = jaxlb.compare(
        env, params, {"lwr": "lwr", "pqn": own}, jax.random.key(1), num_lanes=256, num_tasks=2000, warmup=1000
    )
    for row in table.schedulers:
        print(f"{row.title}: {row.mean_completion:.2f}, {100 * row.sla_violation_rate:.2f} % violations")
    return table


if __name__ == "__main__":
    main()
