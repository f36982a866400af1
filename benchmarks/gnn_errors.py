"""Errors of regression: what is needed where all is visible, what can be known where things are hidden."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from claims import LANES, TEST_SEED, Claim, section
from gnn_training import ALONE, CONFIG, ORIGINAL, linear_forecaster, noisy, trained, with_memory

import jaxlb
from jaxlb.learn import gnn, networks
from jaxlb.learn.gnn import GNNConfig
from jaxlb.scheduling import forecasts, regression
from jaxlb.scheduling.learned import Features, Network


def unexplained(found: gnn.Inspection) -> float:
    """Return 1 - R² of completion times."""
    return float(((found.predicted - found.truth) ** 2).mean() / found.truth.var())


def without(network: Network, *names: str) -> Network:
    """Return a network that some features are kept from."""
    task, processor = (
        jnp.array([name not in names for name in all_names], jnp.float32) for all_names in regression.NAMES
    )

    def apply(parameters: Any, x: Features) -> jax.Array:
        return network.apply(parameters, Features(task=x.task * task, processor=x.processor * processor))

    return Network(network.init, apply)


def ablations(seeds: int) -> str:
    """Compare variants to find what it needs where everything is visible."""
    env, params = jaxlb.make("seed")
    formula = ("log forecast wait", "log forecast completion")
    variants: dict[str, Network] = {
        "as trained above": networks.gnn(),
        "without messages": ALONE,
        "without the skip": ORIGINAL,
        "original: no skip, not told the forecast completion": without(ORIGINAL, *formula),
        "the same without messages": without(networks.gnn(rounds=0, skip=False), *formula),
        "two rounds": networks.gnn(rounds=2),
        "max": networks.gnn(pooling="max"),
        "attention": networks.gnn(pooling="attention"),
        "2 nearest in speed": networks.gnn(graph="speed", neighbours=2),
        "2 nearest in load": networks.gnn(graph="load", neighbours=2),
        "2 by a learned score": networks.gnn(graph="learned", neighbours=2),
    }
    lines = ["| network | 1 - R² | oracle's choice % | seconds |", "|---|---|---|---|"]
    for place, (name, network) in enumerate(variants.items()):
        config = CONFIG.replace(network=network)
        _, results, seconds = trained(seeds if place < 5 else 1, env, params, config)
        inspections = [
            gnn.inspect(env, params, config, r.scheduler.variables, jax.random.key(TEST_SEED))
            for r in results
        ]
        missing = [unexplained(one) for one in inspections]
        agreed = [100 * float((one.chosen <= one.truth.min(-1) * (1 + 1e-6)).mean()) for one in inspections]
        cells = [", ".join(f"{x:.1e}" for x in missing), ", ".join(f"{x:.1f}" for x in agreed)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {np.median(seconds):.0f} |")
        jax.clear_caches()
    text = (
        "`seed`, all visible: the time each processor would take follows from what is known of it. Messages\n"
        "of others cannot help there, and the table shows that they do not. Each seed, or seed 0 alone."
    )
    return section("ablation", "\n".join([text, "", *lines]), [], [])


def each_by_itself(config: GNNConfig) -> GNNConfig:
    """Keep processors apart: no messages, no load of the system, a forecast of their own figures alone."""
    return config.replace(network=without(ALONE, "log system load"), forecaster=forecasts.FLUID)


Situation = tuple[str, dict[str, Any], str]
"""A scenario, what is changed of it, and the rule whose states errors are measured in."""
HIDDEN: dict[str, Situation] = {
    "`stable`, sizes hidden": ("stable", {"size_visible": False}, "greedy"),
    "`heavy-tail`, sizes hidden": ("heavy-tail", {"size_visible": False}, "greedy"),
    "`heavy-tail`, sizes and waits hidden": (
        "heavy-tail",
        {"size_visible": False, "wait_visible": False},
        "greedy",
    ),
    "`stale`": ("stale", {}, "drift-aware"),
    "`stale`, noise 0.5": ("stale", {"measure_noise": 0.5}, "drift-aware"),
}
Variants = dict[str, Callable[[GNNConfig], GNNConfig]]


def lane_errors(
    situation: Situation, variants: Variants, seeds: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]]:
    """Return mean squared and mean absolute errors in each lane, by name, of every seed."""
    scenario, overrides, rule = situation
    env, params = jaxlb.make(scenario, **overrides)
    place = regression.NAMES.processor.index("log forecast completion")
    squared: dict[str, list[np.ndarray]] = {name: [] for name in ("linear predictor", *variants)}
    absolute: dict[str, list[np.ndarray]] = {name: [] for name in squared}
    for seed in range(seeds):
        base = noisy(rule, linear_forecaster(env, params, seed))
        for name, variant in variants.items():
            own = variant(base)
            result = jaxlb.train_gnn(env, params, own, jax.random.key(seed))
            tests, key = own.replace(num_lanes=LANES, num_tasks=400), jax.random.key(TEST_SEED)
            held_out = gnn.examples(env, params, tests, result.scheduler, jnp.array(False), key)
            predictions = {name: gnn.predicted(own, result.scheduler.variables, held_out.features)}
            if name == "gnn":
                predictions["linear predictor"] = jnp.exp(held_out.features.processor[..., place])
            for each, predicted in predictions.items():
                # What remembers is looked at when it has something to remember.
                off = (predicted - held_out.completion)[200:]
                squared[each].append(np.asarray((off**2).mean((0, 2)), np.float64))
                absolute[each].append(np.asarray(jnp.abs(off).mean((0, 2)), np.float64))
        jax.clear_caches()
    return squared, absolute


def errors(
    seeds: int,
    name: str,
    text: str,
    situations: tuple[str, ...],
    variants: Variants,
    pairs: tuple[tuple[str, str], ...],
) -> str:
    """Write a section with a table of errors, and claims that those of the first of each pair are less."""
    names = ("linear predictor", *variants)
    head = [f"| situation | {' | '.join(names)} |", "|" + "---|" * (1 + len(names))]
    lines: tuple[list[str], ...] = ([], [])
    claims = []
    for title in situations:
        found = lane_errors(HIDDEN[title], variants, seeds)
        for of_each, power, rows in zip(found, (0.5, 1.0), lines, strict=True):
            cells = [", ".join(f"{each.mean() ** power:.4g}" for each in of_each[n]) for n in names]
            rows.append(f"| {title} | " + " | ".join(cells) + " |")
        for ours, theirs in pairs:
            both = zip(found[0][ours], found[0][theirs], strict=True)
            quotients = [float(one.mean() / other.mean()) ** 0.5 for one, other in both]
            claims.append(Claim(f"error of {ours} / {theirs}, {title}", quotients, 1.0))
    root = ["", "Root of the mean squared error:", "", *head, *lines[0]]
    absolute = ["", "Mean absolute error:", "", *head, *lines[1]]
    return section(name, "\n".join([text, *root, *absolute]), [], claims)


def hidden(seeds: int) -> str:
    """Compare where completion times are no formula of what is observed."""
    variants: Variants = {
        "each by itself": each_by_itself,
        "without messages": lambda config: config.replace(network=ALONE),
        "gnn": lambda config: config,
    }
    text = f"""Errors of completion times, of all processors, in mean services, each seed, on the same states
of {LANES:,} lanes under greedy or, where figures are old, `drift-aware`. "Linear predictor": on all features
(`train_predictor`, trained in the same situation). The networks have its forecast, and the load of the
system, as features; "each by itself" has neither, so that it uses figures of one processor alone. All are
fitted to means, so claims are of squared errors.

By theory, some of these claims cannot hold. Where waits are visible and sizes are hidden, the mean completion
is wait + mean size / speed: linear, so nothing is better than the linear predictor, and nothing is learned
from other processors. On `stale` without noise and with visible sizes, the account that the linear predictor
keeps is exact: its error is rounding. There is room where figures are noisy, and where waits are hidden.
There the load of the system already has what other processors could add: messages add nothing to it."""
    others = ("linear predictor", "each by itself", "without messages")
    return errors(seeds, "hidden", text, tuple(HIDDEN), variants, tuple(("gnn", name) for name in others))


def memory(seeds: int) -> str:
    """Compare networks with and without a recurrent state for each node."""
    variants: Variants = {
        "gnn": lambda config: config,
        "with memory": with_memory,
        "with memory, without messages": lambda config: with_memory(config).replace(
            network=networks.recurrent_gnn(rounds=0)
        ),
    }
    text = """Errors as above, where more can be had than from the last figures: every node keeps a
recurrent state from task to task."""
    pairs = ("with memory", "linear predictor"), ("with memory", "gnn")
    return errors(seeds, "memory", text, tuple(HIDDEN)[2::2], variants, pairs)
