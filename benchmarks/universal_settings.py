"""The systems in which the universal scheduler is judged, and the best of all rules in each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from claims import TEST_SEED, rules

import jaxlb
from jaxlb import tuning

RULES = ("lwr", "greedy", "sed", "jsq", "lwl", "jiq", "fpi", "drift-aware", "sita-e")
CHOICES = tuple(f"power-of-d(d={number})" for number in (2, 3, 5))
TUNED = (tuning.GUARDED_SITA, tuning.CARD, tuning.CARD_IN_BANDS, tuning.DICE)
OURS = {"completion": "mean_completion", "violations": "sla_violation_rate"}
DIFFERENCES = {"completion": "completion_difference_ci", "violations": "sla_violation_difference_ci"}


@dataclass(frozen=True)
class Setting:
    """A system: a scenario with overrides, perhaps on a recorded trace."""

    scenario: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    trace: tuple[str, str] | None = None
    group: str = ""
    rules: tuple[str, ...] = ()  # in place of all
    fewer: int = 1  # so many times fewer lanes, of what is slow to simulate


MANY, OPTIMUM = "More processors than in training", "Two processors: the optimum in place of rules"
CONTROL = "Where nothing can be gained: equal speeds, exponential sizes that are not seen"
PROCESSORS = "Processors that share, interrupt, slow down and fail"
RULES_THERE = (*RULES, *CHOICES, "myopic", "least-connections", "guarded-sita", "card", "static-split")
"""No settings of the last but one are tuned: they are made for first come, first served."""
VISIBLE = {"size_visible": True, "wait_visible": True}


def _heavy(**overrides: Any) -> Setting:
    return Setting("heavy-tail", overrides)


SETTINGS: dict[str, Setting] = {
    "heavy-tail": Setting("heavy-tail"),
    **{f"load {load:g}": _heavy(load=load) for load in (0.3, 0.5, 0.9, 0.97)},
    "equal speeds": _heavy(speed=[1.0] * 4),
    "permuted": _heavy(speed=[1.2, 0.5, 2.0, 0.8]),
    "speeds 1 : 30": _heavy(speed=[0.1, 0.3, 1.0, 3.0]),
    **{f"P = {number}": _heavy(num_processors=number) for number in (2, 8, 16, 64)},
    **{
        name: Setting(name)
        for name in ("seed", "stable", "heavy-tail-extreme", "slow-servers", "two-server", "shift", "park")
    },
    "large": Setting("large"),
    "squared CV 10": _heavy(size="lognormal", squared_cv=10.0),
    "squared CV 50": _heavy(size="lognormal", squared_cv=50.0),
    "one size": _heavy(size="deterministic"),
    "two sizes": _heavy(size="bimodal"),
    "bursty": _heavy(arrival="bursty"),
    "batches": _heavy(arrival="batch"),
    "diurnal": _heavy(arrival="diurnal"),
    "shifting": _heavy(arrival="shift"),
    "stale": Setting("stale"),
    **{f"stale {time}": Setting("stale", {"measure_interval": float(time)}) for time in (2, 10, 20)},
    "stale, noise 0.5": Setting("stale", {"measure_noise": 0.5}),
    "fresh, noise 0.5": Setting("stale", {"measure_noise": 0.5, "measure_interval": None}),
    "sizes hidden": _heavy(size_visible=False),
    "waits hidden": _heavy(wait_visible=False),
    "both hidden": _heavy(size_visible=False, wait_visible=False),
    "stable, both hidden": Setting("stable", {"size_visible": False, "wait_visible": False}),
    "two-server, visible": Setting("two-server", {"size_visible": True, "wait_visible": True}),
    **{
        f"{trace}, load {load:g}": Setting("heavy-tail", {"load": load}, (file, kind))
        for trace, file, kind in (
            ("azure-llm-code", "azure-llm-2023-code.csv", "azure-llm"),
            ("azure-llm-conv", "azure-llm-2023-conv.csv", "azure-llm"),
            ("nasa-ipsc", "nasa-ipsc-1993.swf", "swf"),
            ("swim-facebook", "swim-facebook-2009.tsv", "swim"),
        )
        for load in (0.5, 0.7, 0.9)
    },
    **{
        name: Setting(name, group=PROCESSORS, rules=RULES_THERE, fewer=fewer)
        for name, fewer in (
            *((name, 1) for name in ("time-sharing", "priorities", "failures", "throttling")),
            *((name, 4) for name in ("multicore", "inference")),
        )
    },
    "srpt": Setting("heavy-tail", {"discipline": "srpt"}, group=PROCESSORS, rules=RULES_THERE),
    **{
        f"P = {number}": Setting("heavy-tail", {"num_processors": number}, group=MANY)
        for number in (128, 256)
    },
    **{
        f"two processors {number}": Setting(scenario, VISIBLE | overrides, group=OPTIMUM, rules=("optimal",))
        for number, (scenario, overrides) in enumerate(
            (
                ("two-server", {"speed": [1.0, 1.0], "load": 0.8}),
                ("two-server", {"speed": [1.0, 0.2], "load": 0.7}),
                ("heavy-tail", {"num_processors": 2}),
                ("heavy-tail", {"num_processors": 2, "load": 0.85}),
            ),
            start=1,
        )
    },
    "stable, sizes unknown": Setting("stable", dict.fromkeys(VISIBLE, False), group=CONTROL, rules=("jsq",)),
}


def made(setting: Setting, traces: Path) -> tuple[jaxlb.Env, jaxlb.EnvParams]:
    """Make a setting's environment."""
    trace = None
    if setting.trace is not None:
        trace = jaxlb.read_trace(traces / setting.trace[0], setting.trace[1])
    return jaxlb.make(setting.scenario, trace=trace, **setting.overrides)


def lanes_of(env: jaxlb.Env, lanes: int, tasks: int) -> dict[str, Any]:
    """Return how much is simulated: fewer lanes of many processors, which take longer to settle."""
    many = max(env.num_processors // 8, 1)
    return {
        "num_lanes": max(lanes // many, 64),
        "num_tasks": tasks,
        "warmup": tasks * max(env.num_processors // 32, 1),
    }


def tried(setting: Setting) -> int:
    """Return how many rules and settings of rules the best one is the best of."""
    return len(setting.rules) or len(RULES) + len(CHOICES) + sum(map(len, TUNED))


def best_rules(setting: Setting, env: jaxlb.Env, params: jaxlb.EnvParams) -> dict[str, Any]:
    """Find the best of all rules for each objective, and tell how many were tried."""
    if len(setting.rules) == 1:
        return dict.fromkeys(OURS, setting.rules[0]) | {"tried": tried(setting)}
    key, some = jax.random.key(TEST_SEED + 1), lanes_of(env, 256 // setting.fewer, 2000)
    table = jaxlb.compare(env, params, rules(*(setting.rules or (*RULES, *CHOICES))), key, **some)
    rows = [row for row in table.schedulers if row.stationary] or list(table.schedulers)
    tuned = [
        tuning.best(env, params, jax.random.clone(key), names, **some)
        for names in (() if setting.rules else TUNED)
    ]
    found: dict[str, Any] = {"tried": tried(setting)}
    for objective, figure in OURS.items():
        each = [*rows, *(of_rule[objective] for of_rule in tuned)]
        found[objective] = min(each, key=lambda one: getattr(one, figure)).name
    return found
