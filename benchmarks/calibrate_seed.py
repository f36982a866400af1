"""Fit the `seed` scenario to the published snapshot table.

    python benchmarks/calibrate_seed.py

The table gives, for states visited by one behaviour scheduler (here LWR), how often a scheduler's choice was
the oracle's and how often it violated the SLA: Round Robin 25.8 % and 63.7 %, LWR 71.2 % and 42.6 %, the
oracle 39 % violations. Not published: speeds, load, smoothing, deadlines. This script searches them by the
cross-entropy method on common random numbers, then prints what it found and the rates on fresh tasks; the
rounded result stands in `jaxlb/catalogue.py`.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxlb
from jaxlb import tally
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.types import EnvParams

TARGETS = {  # oracle agreement, SLA violations
    "rr": (0.258, 0.637),
    "lwr": (0.712, 0.426),
    "oracle": (1.0, 0.390),
}
NAMES = ("log speed ratio", "load", "log time constant", "slack", "slack step", "constant", "squared cv")
LOW = np.array([0.40, 0.70, -4.0, 1.0, 0.0, 0.3, 3.0])
HIGH = np.array([0.80, 0.90, -1.0, 3.5, 1.0, 1.6, 9.0])
WARMUP, BEHAVIOUR = 2000, "lwr"

env, base = jaxlb.make("seed")


def build(x: jax.Array) -> EnvParams:
    """Make parameters from a point of the search space; processors from fastest to slowest, mean speed 1."""
    speed = jnp.exp(x[0] * jnp.array([1.5, 0.5, -0.5, -1.5]))
    return base.replace(
        speed=speed / speed.mean(),
        load=x[1],
        load_time_constant=jnp.exp(x[2]),
        class_slack=jnp.stack([x[3] - x[4], x[3], x[3] + x[4]]),
        deadline_constant=x[5],
        size=base.size.replace(squared_cv=x[6]),
    )


def rates(params: EnvParams, key: jax.Array, lanes: int, tasks: int) -> dict[str, jax.Array]:
    """Return agreement and violations of each scheduler in the states that LWR visits."""
    behaviour, found = jaxlb.scheduler(BEHAVIOUR), {}
    for name in TARGETS:
        scheduler = jaxlb.scheduler(name)
        carry = start_rollout(env, params, scheduler, key, lanes, behaviour)
        carry = continue_rollout(env, params, scheduler, carry, tasks + WARMUP, WARMUP, behaviour=behaviour)
        summary = tally.summarise(carry.totals, env.view(carry.state, params))
        found[name] = jnp.stack([summary.oracle_agreement.mean(), summary.sla_violation_rate.mean()])
    return found


@functools.partial(jax.jit, static_argnames=("lanes", "tasks"))
def losses(points: jax.Array, key: jax.Array, lanes: int, tasks: int) -> jax.Array:
    """Return the squared distance of every point `[S, 7]` to the targets, in percentage points."""

    def one(x: jax.Array) -> jax.Array:
        found = rates(build(x), key, lanes, tasks)
        off = jnp.stack([found[name] - jnp.array(TARGETS[name]) for name in TARGETS])
        return jnp.sum((100.0 * off) ** 2)

    return jax.lax.map(one, points)


def search(
    mean: np.ndarray, spread: np.ndarray, points: int, generations: int, lanes: int, tasks: int
) -> tuple:
    """Search by the cross-entropy method: sample, keep the best sixth, fit, again."""
    rng = np.random.default_rng(generations)
    for generation in range(generations):
        sample = np.clip(rng.normal(mean, spread, (points, len(LOW))), LOW, HIGH).astype(np.float32)
        loss = np.asarray(losses(sample, jax.random.key(generation), lanes, tasks))
        elite = sample[np.argsort(loss)[: points // 6]]
        mean, spread = elite.mean(0), elite.std(0) + 1e-3
        print(
            f"{lanes:4d} lanes, generation {generation:2d}: best {loss.min():7.3f}  {np.round(mean, 3)}",
            flush=True,
        )
    return mean, spread


def main() -> None:
    """Search coarsely, then finely, report, and check the scenario as it stands on fresh tasks."""
    began = time.perf_counter()
    mean, spread = search(0.5 * (LOW + HIGH), 0.5 * (HIGH - LOW), 48, 12, lanes=256, tasks=400)
    mean, _ = search(mean, 2.0 * spread, 24, 6, lanes=1024, tasks=1500)
    print(f"found in {time.perf_counter() - began:.0f} s:")
    for name, value in zip(NAMES, mean, strict=True):
        print(f"  {name:18s} {value:.4f}")
    params = build(jnp.asarray(mean, jnp.float32))
    print(f"  speeds {np.round(np.asarray(params.speed), 4)}, time constant {params.load_time_constant:.4f}")
    for title, checked in (("as found", params), ("as in jaxlb/catalogue.py", base)):
        print(f"{title}, 1024 lanes x 4000 fresh tasks:")
        for name, found in rates(checked, jax.random.key(99), 1024, 4000).items():
            print(f"  {name:8s} agreement {100 * found[0]:6.2f} %   violations {100 * found[1]:6.2f} %")


if __name__ == "__main__":
    main()
