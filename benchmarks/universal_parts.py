"""What each part of the universal scheduler buys: short trainings without it, for four processors."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claims
import jax
import jax.numpy as jnp
import numpy as np
from claims import TEST_SEED
from flax import linen as nn
from universal_settings import OURS, SETTINGS

import jaxlb
from jaxlb.functions import partial
from jaxlb.learn import prior
from jaxlb.learn.universal import UniversalConfig
from jaxlb.scheduling import guard
from jaxlb.scheduling import universal as acting
from jaxlb.scheduling.objective import COSTS
from jaxlb.scheduling.universal import PriceFeatures, PriceNetwork
from jaxlb.types import Array, EnvParams, Key, Scheduler

PROCESSORS = 4
OBJECTIVE = frozenset((*COSTS, "exponent"))
SYSTEM = frozenset(("processors", "spread of speeds"))
WORKLOAD = frozenset(acting.CONTEXT) - OBJECTIVE - SYSTEM
ITERATIONS = 250
JUDGED = (
    *("heavy-tail", "load 0.3", "load 0.9", "permuted", "speeds 1 : 30", "seed", "stable"),
    *("squared CV 50", "two sizes", "bursty"),
)


def _init_hiding(hidden: frozenset[str], key: Key, x: PriceFeatures) -> Any:
    del hidden
    return acting.prices().init(key, x)


def _apply_hiding(hidden: frozenset[str], parameters: Any, x: PriceFeatures) -> Array:
    told = jnp.array([name not in hidden for name in acting.CONTEXT], jnp.float32)
    return acting.prices().apply(parameters, x.replace(context=x.context * told))


def hiding(hidden: frozenset[str]) -> PriceNetwork:
    """Return the network of the package, but what is named is zero for it."""
    return PriceNetwork(partial(_init_hiding, hidden), partial(_apply_hiding, hidden))


class _ByPlace(nn.Module):
    """As large a network that knows processors by their places: a perceptron for all prices at once."""

    @nn.compact
    def __call__(self, x: PriceFeatures) -> Array:
        others = x.others.reshape(*x.others.shape[:-2], -1)
        system = jnp.broadcast_to(
            jnp.concatenate([x.context, others], -1)[..., None, :],
            (*x.wait.shape, x.context.shape[-1] + others.shape[-1]),
        )
        place = jnp.broadcast_to(jnp.eye(PROCESSORS, dtype=jnp.float32), (*x.wait.shape, PROCESSORS))
        h = jnp.concatenate([system, x.asked, place], -1)
        for _ in range(3):
            h = nn.relu(nn.Dense(96)(h))
        last = nn.Dense(
            len(COSTS), kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(-1.0)
        )
        return jnp.exp(jnp.clip(last(h), -8.0, 9.0)) * (x.wait / (x.wait + 0.5))[..., None]


def _init_by_place(key: Key, x: PriceFeatures) -> Any:
    del x  # of any number of processors
    return _ByPlace().init(key, acting.no_features(PROCESSORS))


BY_PLACE = PriceNetwork(partial(_init_by_place), partial(_ByPlace.apply, _ByPlace()))


class OneSystem(prior.Prior):
    """Always the same system, with any objective."""

    def draw(self, num_processors: int, key: Key) -> tuple[EnvParams, Any]:
        """Return `heavy-tail`, and an objective for each lane; the key is consumed."""
        drawn, objective = super().draw(num_processors, key)
        del drawn
        return jaxlb.make("heavy-tail", num_processors=num_processors)[1], objective


@dataclass(frozen=True)
class Variant:
    """What is trained and how it acts."""

    network: PriceNetwork = dataclasses.field(default_factory=acting.prices)
    systems: type[prior.Prior] = prior.Prior
    guarded: bool = True
    trained: str = ""  # the variant whose networks it takes; its own if empty


VARIANTS: Mapping[str, Variant] = {
    "all parts": Variant(),
    "no statistics of the workload": Variant(hiding(WORKLOAD)),
    "objective not told": Variant(hiding(OBJECTIVE)),
    "processors by place": Variant(BY_PLACE),
    "trained in `heavy-tail` alone": Variant(systems=OneSystem),
    "no guard": Variant(guarded=False, trained="all parts"),
    "trained in `heavy-tail` alone, no guard": Variant(
        systems=OneSystem, guarded=False, trained="trained in `heavy-tail` alone"
    ),
}


def train(variant: Variant, seed: int) -> Scheduler:
    """Train as `--ship` does, for one number of processors and a few minutes."""
    config = UniversalConfig(network=variant.network, num_iterations=ITERATIONS, num_evaluations=1)
    systems = variant.systems(num_lanes=256)
    return jaxlb.train_universal(prior.system(PROCESSORS), systems, config, jax.random.key(seed)).scheduler


def judge(
    name: str, rule: Mapping[str, str], entries: Mapping[str, Scheduler]
) -> Mapping[str, Mapping[str, float]]:
    """Return figures of schedulers / the best rule's, for each objective."""
    env, params = jaxlb.make(SETTINGS[name].scenario, **SETTINGS[name].overrides)
    found = {}
    for objective, figure in OURS.items():
        table = jaxlb.compare(
            env,
            params,
            {"rule": rule[objective]} | {one: aimed(each, objective) for one, each in entries.items()},
            jax.random.key(TEST_SEED),
            num_lanes=128,
            num_tasks=2000,
            warmup=2000,
        )
        theirs = getattr(table.row("rule"), figure)
        found[objective] = {one: getattr(table.row(one), figure) / theirs for one in entries}
    return found


def aimed(scheduler: Scheduler, objective: str) -> Scheduler:
    """Return the scheduler with an objective."""
    wanted = jaxlb.scheduler("universal", objective=objective).variables.objective
    return scheduler.replace(variables=scheduler.variables.replace(objective=wanted))


def unguarded(run: Callable[[], Any]) -> Any:
    """Call a function with a guard that allows everything."""
    margin = guard.MARGIN
    jax.clear_caches()
    try:
        guard.MARGIN = math.inf
        return run()
    finally:
        guard.MARGIN = margin
        jax.clear_caches()


def lines(seeds: int, rules: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Train all, judge all, and write the table."""
    networks = {}
    for name, variant in VARIANTS.items():
        if not variant.trained:
            jax.clear_caches()
            networks[name] = [train(variant, seed) for seed in range(seeds)]
            print(f"trained {name}", flush=True)
    found: dict[str, dict[tuple[str, str], list[float]]] = {name: {} for name in VARIANTS}
    for guarded in (True, False):
        some = {name: one for name, one in VARIANTS.items() if one.guarded == guarded}
        entries = {
            f"{name}, {seed}": each
            for name, one in some.items()
            for seed, each in enumerate(networks[one.trained or name])
        }
        for setting in JUDGED:
            jax.clear_caches()
            run = partial(judge, setting, rules[setting], entries)
            for objective, ratios in (run() if guarded else unguarded(run)).items():
                for name in some:
                    found[name][setting, objective] = [ratios[f"{name}, {seed}"] for seed in range(seeds)]
            print(f"judged {setting}", flush=True)
    return [
        "| | completion / the best rule's: geometric mean | worst | violations: geometric mean | worst |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(_cells(each))} |" for name, each in found.items()),
    ]


def _cells(found: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
    """Write geometric means of each seed, and the worst setting of all seeds."""
    cells = []
    for objective in OURS:
        own = {setting: each for (setting, what), each in found.items() if what == objective}
        means = np.exp(np.log(np.maximum(np.array(list(own.values())), 1e-6)).mean(0))
        worst = max(own, key=lambda setting: max(own[setting]))
        cells += [", ".join(f"{mean:.3f}" for mean in means), f"{max(own[worst]):.3g} ({worst})"]
    return cells


def parts(seeds: int) -> str:
    """Write the section; the best rules are those that `universal.py` found."""
    rules = json.loads(Path("docs/results/universal-rules.json").read_text(encoding="utf-8"))
    text = (
        f"Each variant is trained for {ITERATIONS} iterations on random systems of four processors that\n"
        f"see all, with {seeds} seeds, and judged in {len(JUDGED)} settings of four processors, which no\n"
        "training but those in `heavy-tail` alone saw: 128 lanes x 2,000 tasks after as many, divided by\n"
        "the best rule's there. The network of the package is trained for much longer, and on many more\n"
        "systems; what counts here is the difference to the first line. Without statistics, the context\n"
        "has the system and the objective alone; prices still take their unit from mean sizes and speeds."
    )
    return claims.section("parts", "\n".join([text, "", *lines(seeds, rules)]), [], [])
