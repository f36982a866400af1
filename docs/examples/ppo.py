"""PPO in a loop of one's own, on one environment of gymnax's shape, to be copied and changed.

Run it with `python docs/examples/ppo.py`. What it learns becomes a scheduler, and is compared with LWR.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxlb

ENVS, STEPS, UPDATES, EPOCHS, PARTS = 128, 64, 300, 4, 4
DISCOUNT, TRACE, CLIP, ENTROPY, RATE = 0.99, 0.95, 0.2, 0.01, 1e-3


class ActorCritic(nn.Module):
    """Logits `[..., P]` and a value `[...]` of flat observations `[..., F]`."""

    actions: int

    @nn.compact
    def __call__(self, x):
        """Return logits and a value."""
        # Sizes and waits go over five orders of magnitude, and so would gradients.
        x = jnp.log1p(8.0 * x) - 1.5
        actor, critic = (nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x)))) for _ in range(2))
        return nn.Dense(self.actions, kernel_init=nn.initializers.zeros)(actor), nn.Dense(1)(critic)[..., 0]


def collect(env, params, network, weights, carry, key):
    """Let every environment take a step; return it and what is learned from."""
    obs, state = carry
    act_key, step_key = jax.random.split(key)
    logits, value = network.apply(weights, obs)
    action = jax.random.categorical(act_key, logits)
    log_prob = jnp.take_along_axis(nn.log_softmax(logits), action[:, None], -1)[:, 0]
    keys = jax.random.split(step_key, ENVS)
    after = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
    return after[:2], (obs, action, log_prob, value, after[2])


def loss_of(network, weights, part):
    """Return the clipped loss of actor and critic (Schulman and others 2017)."""
    obs, action, old, advantage, target = part
    logits, value = network.apply(weights, obs)
    log_probs = nn.log_softmax(logits)
    ratio = jnp.exp(jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0] - old)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * advantage).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return 0.5 * ((value - target) ** 2).mean() - gain - ENTROPY * entropy


@functools.partial(jax.jit, static_argnames=("env", "network", "updates"))
def train(env, params, network, key, updates):
    """Return the network's weights, and the mean reward of each update."""
    init_key, reset_key, key = jax.random.split(key, 3)
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, ENVS), params)
    weights = network.init(init_key, obs)
    steps = optax.linear_schedule(RATE, 0.0, updates * EPOCHS * PARTS)
    rule = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(steps))

    def update(carry, key):
        weights, optimiser, systems = carry
        collect_key, *keys = jax.random.split(key, 1 + EPOCHS)
        run = functools.partial(collect, env, params, network, weights)
        systems, rows = jax.lax.scan(run, systems, jax.random.split(collect_key, STEPS))
        obs, action, log_prob, value, reward = rows
        following = jnp.concatenate([value[1:], network.apply(weights, systems[0])[1][None]])
        error = reward + DISCOUNT * following - value  # a truncated episode goes on: queues never end

        def back(later, error):
            return (found := error + DISCOUNT * TRACE * later), found

        advantage = jax.lax.scan(back, jnp.zeros(ENVS), error, reverse=True)[1]
        rows = obs, action, log_prob, advantage, advantage + value
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)

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
    (weights, *_), rewards = jax.lax.scan(update, carry, jax.random.split(key, updates))
    return weights, rewards


def logits(network, weights, obs):
    """Return what the scheduler takes the largest of."""
    return network.apply(weights, obs)[0]


def main(updates=UPDATES):
    """Train on `heavy-tail`, and compare on other tasks."""
    # Rewards of the scenario go down to -3,000; the root of completion times weighs many short tasks.
    env, params = jaxlb.make(
        "heavy-tail", completion_weight=0.02, completion_exponent=0.5, imbalance_weight=0.0
    )
    network = ActorCritic(env.num_actions)
    weights, _ = train(env, params, network, jax.random.key(0), updates)
    own = jaxlb.as_scheduler(functools.partial(logits, network), weights, name="ppo")
    # Stable wherever greedy is, however long the queues: no training has seen those.
    own = jaxlb.scheduling.guarded(own)
    table = jaxlb.compare(
        env, params, {"lwr": "lwr", "ppo": own}, jax.random.key(1), num_lanes=256, num_tasks=2000, warmup=1000
    )
    for row in table.schedulers:
        print(f"{row.title}: {row.mean_completion:.2f}, {100 * row.sla_violation_rate:.2f} % violations")
    return table


if __name__ == "__main__":
    main()
