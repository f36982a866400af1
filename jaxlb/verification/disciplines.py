"""Disciplines: processors that share, interrupt or serve several tasks, beside exact values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlb import theory
from jaxlb.loop import continue_rollout, start_rollout
from jaxlb.metrics import Summary
from jaxlb.scheduling import scheduler
from jaxlb.types import Key
from jaxlb.verification import unsteady
from jaxlb.verification.base import DEAR, Exact, Finding, equal_processors, simulate, summed
from jaxlb.workload import sizes

QUICK = ("srpt, exponential sizes, load 0.5", "priority, deterministic sizes")
"""What the quick run has, too."""
_LOW = 1.0 / theory.bounded_pareto_moment(1, 1.5, 1.0, 1000.0)
"""Smallest size of those that are up to a thousand times as large and 1 on average."""


def _class_response(priority: int, run: Summary) -> np.ndarray:
    return np.asarray(run.class_completion[priority] / run.class_count[priority], np.float64)


FIGURES = {
    "mean response": lambda run: run.mean_completion,
    "share lost": lambda run: run.lost_rate,
    "mean slowdown": lambda run: run.mean_slowdown,
    "mean squared response": lambda run: -run.mean_reward,
    "mean response, class 1": lambda run: _class_response(0, run),
    "mean response, class 2": lambda run: _class_response(1, run),
    "mean response, class 3": lambda run: _class_response(2, run),
}
SIZES: Mapping[str, Any] = {
    "exponential": sizes.Exponential(1.0),
    "deterministic": sizes.Deterministic(1.0),
    "H2": sizes.Hyperexponential(1.0, 10.0),
    "bounded Pareto": sizes.BoundedPareto(_LOW, 1000.0 * _LOW, 1.5),
}


def _table() -> list[Exact]:
    """List M/G/1 under disciplines: mean response, and slowdown where it is known."""
    rows = {
        ("exponential", 0.5): {"ps": 2, "srpt": (1.425373, 1.225117), "psjf": 1.531383, "sjf": 1.712686},
        ("exponential", 0.8): {"srpt": (2.352773, 1.577852), "psjf": 2.658897, "sjf": 2.882219},
        ("H2", 0.8): {"ps": 5, "srpt": (2.151251, 1.228953), "psjf": 2.361794, "sjf": 7.440699},
        ("bounded Pareto", 0.7): {
            "ps": 3.333333,
            "srpt": (1.777038, 1.344664),
            "psjf": 1.908677,
            "sjf": 7.411280,
        },
    }
    return [
        Exact(
            f"{discipline}, {size} sizes, load {load}",
            size,
            load,
            dict(zip(("mean response", "mean slowdown"), np.atleast_1d(values).tolist(), strict=False)),
            millions=5.0 if size == "exponential" else 20.0,
            precision=0.005 if size == "exponential" else DEAR,
            queue_capacity=512 if (discipline, size) == ("sjf", "bounded Pareto") else 128,
            settings={"discipline": discipline},
        )
        for (size, load), row in rows.items()
        for discipline, values in row.items()
    ]


def _least_served() -> list[Exact]:
    """List foreground-background."""
    rows = {
        ("exponential", 0.5): (2.0, 1.609275),
        ("exponential", 0.8): (5.0, 2.995603),
        ("H2", 0.8): (3.504380, 1.605069),
        ("bounded Pareto", 0.7): (2.504426, 1.986595),
    }
    return [
        Exact(
            f"fb, {size} sizes, load {load}",
            size,
            load,
            {"mean response": response, "mean slowdown": slowdown},
            millions=4.0 if size == "H2" else 1.0,
            precision=DEAR,
            settings={"discipline": "fb"},
        )
        for (size, load), (response, slowdown) in rows.items()
    ]


def _moments() -> list[Exact]:
    return [
        Exact(
            f"{discipline}, exponential sizes, load 0.8",
            "exponential",
            0.8,
            {"mean response": 5.0, "mean squared response": square},
            millions=20.0,
            precision=DEAR,
            settings={"discipline": discipline, "completion_exponent": 2.0},
        )
        for discipline, square in (("ps", 83.333333), ("lcfs-pr", 250.0))
    ]


def _priorities() -> list[Exact]:
    """List three classes of tasks, with rates of .2, .3 and .25."""
    rows = {
        ("exponential", "priority"): (1.9375, 2.875, 7.0),
        ("deterministic", "priority"): (1.46875, 1.9375, 4.0),
        ("exponential", "priority-preemptive"): (1.25, 2.5, 8.0),
        ("deterministic", "priority-preemptive"): (1.125, 1.875, 5.0),
    }
    return [
        Exact(
            f"{discipline}, {size} sizes",
            size,
            0.75,
            {f"mean response, class {priority}": value for priority, value in enumerate(values, 1)},
            millions=8.0,
            precision=0.01,
            settings={
                "discipline": discipline,
                "class_probability": (0.2 / 0.75, 0.4, 0.25 / 0.75),
                "class_slack": (3.0, 3.0, 3.0),
                "sla_weight": (0.0, 0.0, 0.0),
            },
        )
        for (size, discipline), values in rows.items()
    ]


def _capacities() -> list[Exact]:
    """List processors that do more work the more tasks they hold, up to a number."""

    def one(name: str, size: str, load: float, response: float, **settings: Any) -> Exact:
        slow = settings["discipline"] != "ps"
        return Exact(
            f"{name}, {size} sizes, rate {load:g}",
            size,
            load,
            {"mean response": response},
            millions=1.0 if slow else 16.0 if size == "H2" else 8.0,
            precision=DEAR if slow else 0.01,
            warmup=1000,
            settings=settings,
        )

    return [
        *(
            one("ps, capacity min(n, 4)", size, 3.2, 1.745541, discipline="ps", capacity="cores(4)")
            for size in ("exponential", "H2")
        ),
        *(
            one("ps, batching(0.1)", size, 5.0, 2.0, discipline="ps", capacity="batching(0.1)")
            for size in ("exponential", "H2")
        ),
        one("ps, power(0.5)", "exponential", 2.0, 2.277212, discipline="ps", capacity="power(0.5)"),
        one(
            "limited-ps, 8 slots, batching(0.1)",
            "exponential",
            4.0,
            2.292503,
            discipline="limited-ps",
            slots=8,
            capacity="batching(0.1)",
        ),
        *(
            one(f"limited-ps, {slots} slots", "exponential", 0.8, 5.0, discipline="limited-ps", slots=slots)
            for slots in (2, 8)
        ),
        *(
            one(f"fcfs, {slots} slots", "deterministic", 0.8 * slots, value, discipline="fcfs", slots=slots)
            for slots, value in ((2, 1.903284), (4, 1.386095))
        ),
    ]


def _long() -> list[Exact]:
    """List a few slots under sizes that vary much: queues are long and change slowly."""

    def one(name: str, load: float, response: float, **settings: Any) -> Exact:
        return Exact(
            f"{name}, H2 sizes, rate {load:g}",
            "H2",
            load,
            {"mean response": response},
            precision=0.05,
            warmup=5000,
            queue_capacity=512,
            settings=settings,
        )

    return [
        *(
            one(f"limited-ps, {slots} slots", 0.8, value, discipline="limited-ps", slots=slots)
            for slots, value in ((2, 19.051495), (8, 8.263512))
        ),
        *(
            one(f"fcfs, {slots} slots", 0.8 * slots, value, discipline="fcfs", slots=slots)
            for slots, value in ((2, 10.202102), (4, 4.592304))
        ),
    ]


def _two() -> list[Exact]:
    """List two processors under JSQ."""
    return [
        Exact(
            f"JSQ, two processors, {discipline}, {size} sizes, load 0.5",
            size,
            0.5,
            {"mean response": response},
            millions=12.0,
            precision=DEAR if size == "H2" else 0.005,
            rule="jsq",
            num_processors=2,
            settings={"discipline": discipline},
        )
        for discipline, size, response in (
            ("fcfs", "exponential", 1.426320),
            ("ps", "H2", 1.436425),
            ("fcfs", "H2", 3.037992),
        )
    ]


def exact() -> list[Exact]:
    """List all systems.

    Sharing has closed formulas (Kleinrock 1976), and so have priorities (Cobham 1954, Avi-Itzhak and Naor
    1963). SRPT, PSJF, SJF and foreground-background (Schrage and Miller 1966, Harchol-Balter 2013) are
    computed by quadrature, and from Markov chains are processors that do the more work the more tasks they
    hold, or whose speed changes, or that lose tasks (Erlang 1917, Palm 1957); those that fail have formulas
    (Avi-Itzhak and Naor 1963).
    """
    parts = (
        _moments,
        _capacities,
        _long,
        _least_served,
        _table,
        _priorities,
        _two,
        unsteady.changing,
        unsteady.losing,
    )
    return [case for part in parts for case in part()]


def system(case: Exact, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare a system with what is known of it."""
    figures = {"completion_weight": 1.0, "imbalance_weight": 0.0, "sla_weight": 0.0} | dict(case.settings)
    env, params = equal_processors(
        case.num_processors,
        case.load,
        size=SIZES[case.size],
        allow_overload=True,
        queue_capacity=case.queue_capacity,
        **figures,
    )
    millions = case.millions * thoroughness
    run = simulate(env, params, scheduler(case.rule), key, millions, case.warmup, lanes=512)
    return {
        f"{case.name}: {name}": Finding(FIGURES[name](run), value, precision=case.precision)
        for name, value in case.exact.items()
    }


def endurance(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Run 10^8 tasks on end under sharing: the last ones take as long as the first, and none is lost."""
    lanes, parts, load = 512, 10, 0.4
    env, params = equal_processors(4, load, discipline="ps", queue_capacity=32)
    rule, part = scheduler("random"), int(1e8 * thoroughness / lanes / parts) + 1
    carry = continue_rollout(env, params, rule, start_rollout(env, params, rule, key, lanes), 500, 500)

    def counted() -> tuple[np.ndarray, ...]:
        # The task that has just arrived has not been assigned.
        held = np.asarray(env.view(carry.state, params).queue_length).sum(0)
        departed = np.asarray(carry.totals.counts["departed"], np.float64)
        return summed(carry.totals, "mean_completion"), departed, held

    found = [counted()]
    for _ in range(parts):
        carry = continue_rollout(env, params, rule, carry, part, 500)
        found.append(counted())
    total, departed, held = (np.array(each) for each in zip(*found, strict=True))
    means = np.diff(total, axis=0) / np.diff(departed, axis=0)
    lost = parts * part - (departed[-1] - departed[0]) - (held[-1] - held[0])
    title, exact = f"sharing, {100 * thoroughness:g} million tasks", 1.0 / (1.0 - load)
    return {
        f"{title}: mean response, the last tenth": Finding(means[-1], exact),
        f"{title}: the same, less that of the first": Finding(means[-1] - means[0], 0.0),
        f"{title}: tasks lost": Finding(lost, 0.0, tolerance=0.0),
    }
