"""The rows of the page of the DQN: where it is trained, how, and what is claimed of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import claims
import jax
import numpy as np
from claims import FIGURES, LANES, TEST_SEED, Claim, at_most, rules

import jaxlb
from jaxlb import theory, tuning
from jaxlb.learn import networks
from jaxlb.types import Scheduler


@dataclass(frozen=True)
class Found:
    """What one seed brought: the training, and its row in the comparison on unseen tasks."""

    env: jaxlb.Env
    params: jaxlb.EnvParams
    result: jaxlb.TrainResult
    seconds: float
    table: jaxlb.Comparison
    name: str

    def row(self) -> Any:
        """Return the DQN's row."""
        return self.table.row(self.name)

    def ratio(self, what: str, rule: str) -> float:
        """Return the DQN's figure divided by that of a rule."""
        return claims.ratio(self.table, self.name, rule, what)


Claims = Callable[[Found], list[Claim]]
"""What is claimed of one seed."""


@dataclass(frozen=True)
class Row:
    """One line of the table: where to train, how, and what is claimed.

    Attributes:
      scenario: for `jaxlb.make`, with `overrides`.
      config: of the trainer.
      rules: the baselines, by name.
      claims: what one seed found -> what is claimed of it.
      overrides: for `jaxlb.make`.
      trace: CSV file in the folder of traces; trained on its first half, tested on its second.
      trained_at: the lanes' loads are spread evenly over this range; None: the scenario's load.
      loads: to test at; None: the scenario's.
    """

    scenario: str
    config: jaxlb.DQNConfig
    rules: Mapping[str, Scheduler]
    claims: Claims
    overrides: Mapping[str, Any] = field(default_factory=dict)
    trace: str | None = None
    trained_at: tuple[float, float] | None = None
    loads: tuple[float, ...] | None = None


def completion_time(exponent: float = 1.0) -> jaxlb.Weights:
    """Return the objective of completion times alone."""
    return jaxlb.Weights(1.0, exponent, 0.0, 0.0)


def bounded(bounds: Mapping[tuple[str, str], float]) -> Claims:
    """Claim that figures are at most so many times those of rules."""
    return lambda found: at_most(lambda figure, rule: [found.ratio(figure, rule)], bounds)


def guarded() -> dict[str, Scheduler]:
    """Make guarded SITA in every setting of a grid, and FPI."""
    return rules(*tuning.GUARDED_SITA, "fpi")


def heavy_tail(found: Found) -> list[Claim]:
    """Claim to beat LWR and greedy, and each guarded SITA and FPI in all three figures at once."""
    bounds = {("violations", "lwr"): 0.10, ("slowdown", "lwr"): 0.40}
    bounds |= {("completion", rule): 0.70 for rule in ("lwr", "greedy")}
    others = guarded()
    closest = {name: max(found.ratio(name, other) for other in others) for name in FIGURES.values()}
    return bounded(bounds)(found) + [
        Claim(f"{what} / that of the best of {len(others)} guarded SITA and FPI", [closest[name]], 1.0)
        for what, name in FIGURES.items()
    ]


def seed_scenario(found: Found) -> list[Claim]:
    """Claim that the reward rises by 40 % and violations are at most LWR's; RR, overloaded, is no measure."""
    reward = np.asarray(found.result.history.reward)
    return [
        *bounded({("violations", "lwr"): 1.0, ("completion", "lwr"): 1.0})(found),
        Claim("cost of the last tenth / of the first", [float(reward[-1] / reward[0])], 0.6),
    ]


def exactly(optimum: Callable[[], float], within: float, *others: str) -> Claims:
    """Claim a mean completion within a share of the optimum, and at most that of other rules."""

    def claimed(found: Found) -> list[Claim]:
        mean = found.row().mean_completion
        return [
            Claim("completion / the optimum's", [mean / optimum()], 1.0 + within),
            *(
                Claim(f"completion / {rule}'s", [found.ratio("mean_completion", rule)], 1.0)
                for rule in others
            ),
        ]

    return claimed


def control(found: Found) -> list[Claim]:
    """Claim to be within 2 % of JSQ, and not significantly better."""
    interval = found.row().completion_difference_ci
    assert interval is not None
    mean = found.table.row("jsq").mean_completion
    return [
        Claim("completion / jsq's", [found.ratio("mean_completion", "jsq")], 1.02),
        Claim("(jsq's completion - largest plausible of the DQN) / jsq's", [-interval[1] / mean], 0.0),
    ]


def rows() -> dict[str, Row]:
    """List all rows."""
    small = {"size_visible": True, "wait_visible": True}
    dqn = jaxlb.DQNConfig
    exact = dqn(weights=completion_time())
    # Queues at load 0.8 remember 100 tasks and more, and 1 % wants values that exact: of the greedy policy,
    # not of one that explores.
    exacter = exact.replace(
        discount=0.997, num_iterations=30_000, batch_size=1024, n_step=1, final_exploration=0.0
    )
    optimal_within = bounded({("completion", "optimal"): 1.01})
    return {
        "heavy-tail": Row(
            "heavy-tail",
            dqn(weights=jaxlb.Weights(completion_exponent=0.67, sla_weight=1.0)),
            rules("lwr", "greedy") | guarded(),
            heavy_tail,
        ),
        "heavy-tail-extreme": Row(
            "heavy-tail-extreme",
            dqn(weights=jaxlb.Weights(sla_weight=2.0)),
            rules("lwr", "greedy"),
            bounded({("violations", "lwr"): 0.10, ("completion", "lwr"): 0.40}),
        ),
        "seed": Row(
            "seed",
            dqn(weights=jaxlb.Weights(1.0, 1.0, 0.0, 1.0), exploration=1.0, exploration_part=0.3),
            rules("rr", "lwr", "greedy"),
            seed_scenario,
        ),
        "slow-servers": Row(
            "slow-servers",
            dqn(weights=completion_time(0.8)),
            rules("greedy", "lwr"),
            bounded({("completion", "greedy"): 0.97}),
        ),
        "two-server": Row(
            "two-server",
            exact,
            rules("sed", "jsq", "least-connections"),
            exactly(
                lambda: theory.Lengths(0.7, (1.0, 0.2), capacity=70).optimum()[0],
                0.03,
                "sed",
                "jsq",
                "least-connections",
            ),
        ),
        "two equal, all visible": Row(
            "two-server",
            exacter,
            rules("optimal"),
            optimal_within,
            small | {"speed": [1.0, 1.0], "load": 0.8},
        ),
        "two unequal, all visible": Row("two-server", exacter, rules("optimal"), optimal_within, small),
        "stable, sizes unknown": Row(
            "stable",
            dqn(
                weights=completion_time(),
                discount=0.95,
                network=networks.per_processor((32, 32)),
                num_lanes=512,
            ),
            rules("jsq"),
            control,
            {"size_visible": False, "wait_visible": False},
        ),
        "park": Row("park", dqn(), rules("lwl"), park),
        "azure-llm-2023-code": Row(
            "heavy-tail",
            # Of many loads, so that bursts differ: 4,400 recorded tasks alone are learned by heart.
            dqn(weights=completion_time(0.25), evaluation_tasks=2000),
            rules("lwr", "greedy"),
            bounded({(what, rule): 1.0 for what in ("violations", "slowdown") for rule in ("lwr", "greedy")}),
            trace="azure-llm-2023-code.csv",
            trained_at=(0.4, 0.9),
        ),
        "loads 0.3 to 0.9": Row(
            "heavy-tail",
            dqn(),
            rules("lwr"),
            bounded({("violations", "lwr"): 0.25}),
            trained_at=(0.3, 0.9),
            loads=(0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9),
        ),
        "stale": Row(
            "stale",
            dqn(weights=jaxlb.Weights(sla_weight=1.0)),
            rules("lwr", "greedy", "oracle"),
            bounded({("violations", "oracle"): 1.0, ("completion", "lwr"): 0.2}),
        ),
    }


def park(found: Found) -> list[Claim]:
    """Claim the median over paired episodes, from empty, of the total response divided by LWL's."""
    key, run = jax.random.key(TEST_SEED), (LANES, 1000)
    ours = jaxlb.rollout(found.env, found.params, found.result.scheduler, key, *run)
    lwl = jaxlb.rollout(found.env, found.params, jaxlb.scheduler("lwl"), key, *run)
    each = np.asarray(ours.mean_completion) / np.asarray(lwl.mean_completion)
    return [Claim(f"median over {LANES} episodes of response / lwl's", [float(np.median(each))], 1.0)]
