"""How the networks of the page of message passing are configured and trained."""

import time
from typing import Any

import jax

import jaxlb
from jaxlb.learn import networks
from jaxlb.learn.gnn import GNNConfig
from jaxlb.scheduling import forecasts

CONFIG = GNNConfig()
ORIGINAL = networks.gnn(skip=False)
ALONE = networks.gnn(rounds=0)


def trained(
    seeds: int, env: Any, params: Any, config: GNNConfig = CONFIG, name: str = "gnn"
) -> tuple[dict[str, str | jaxlb.Scheduler], list[jaxlb.TrainResult], list[float]]:
    """Train; return schedulers by name, what was trained, and how long it took."""
    entries: dict[str, str | jaxlb.Scheduler] = {}
    results, seconds = [], []
    for seed in range(seeds):
        began = time.perf_counter()
        result = jax.block_until_ready(jaxlb.train_gnn(env, params, config, jax.random.key(seed)))
        seconds.append(time.perf_counter() - began)
        results.append(result)
        entries[f"{name}, seed {seed}"] = result.scheduler
        jax.clear_caches()
    return entries, results, seconds


def linear_forecaster(env: Any, params: Any, seed: int) -> forecasts.Forecaster:
    """Train a linear predictor of all features there, and forecast waits by it."""
    linear = jaxlb.train_predictor(env, params, None, jax.random.key(seed))
    return forecasts.predicted(jaxlb.PredictorConfig().predictor, linear.scheduler.variables)


def noisy(rule: str, forecaster: forecasts.Forecaster) -> GNNConfig:
    """Configure for targets that cannot be known: more examples, small steps, states of one sensible rule."""
    return CONFIG.replace(
        target="mean",
        forecaster=forecaster,
        behaviours=(rule,),
        learning_rate=3e-3,
        num_iterations=4000,
        num_lanes=800,
    )


def with_memory(config: GNNConfig) -> GNNConfig:
    """Let every node keep a recurrent state from task to task."""
    return config.replace(network=networks.recurrent_gnn(), sequence=16, batch_size=32)
