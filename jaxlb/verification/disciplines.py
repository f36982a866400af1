"""Disciplines: one processor that shares, interrupts, or serves several at once, beside exact values.

Sharing has closed formulas (Kleinrock 1976); SRPT, PSJF, SJF and foreground-background those of Schrage and
Miller (1966) and their like, by quadrature; limited sharing and several slots come from Markov chains.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlb.environments import make
from jaxlb.scheduling import scheduler
from jaxlb.types import Key
from jaxlb.verification.base import DEAR, Finding, response, simulate
from jaxlb.verification.laws import PARETO
from jaxlb.workload import sizes

_LAWS = {
    "exponential": sizes.Exponential(1.0),
    "hyperexponential": sizes.Hyperexponential(1.0, 10.0),
    "bounded Pareto": sizes.BoundedPareto(PARETO[1], PARETO[2], PARETO[0]),
    "deterministic": sizes.Deterministic(1.0),
}


class Exact(NamedTuple):
    """A system and its mean response, and slowdown if that is known.

    Attributes:
      discipline: with its options.
      law: of sizes, of mean 1.
      load: arrival rate x mean size / speed; with several slots, or more capacity, it may be above 1.
      response: time.
      millions: of tasks.
      slowdown: mean of response / size.
    """

    discipline: dict[str, Any]
    law: str
    load: float
    response: float
    millions: float
    slowdown: float | None = None


def _alone(law: str, load: float, millions: float, values: Mapping[str, tuple[float, ...]]) -> list[Exact]:
    """List disciplines in one system, each with its response, and slowdown."""
    return [
        Exact({"discipline": name}, law, load, value[0], millions, *value[1:])
        for name, value in values.items()
    ]


EXACT = (
    *_alone(
        "exponential",
        0.5,
        6.0,
        {
            "ps": (2.0,),
            "srpt": (1.425373, 1.225117),
            "psjf": (1.531383,),
            "sjf": (1.712686,),
            "fb": (2.0, 1.609275),
            "lcfs-pr": (2.0,),
        },
    ),
    *_alone(
        "exponential",
        0.8,
        30.0,
        {
            "ps": (5.0,),
            "srpt": (2.352773, 1.577852),
            "psjf": (2.658897,),
            "sjf": (2.882219,),
            "fb": (5.0, 2.995603),
        },
    ),
    *_alone(
        "hyperexponential",
        0.8,
        60.0,
        {
            "ps": (5.0,),
            "srpt": (2.151251, 1.228953),
            "psjf": (2.361794,),
            "sjf": (7.440699,),
            "fb": (3.504380, 1.605069),
        },
    ),
    *_alone(
        "bounded Pareto",
        0.7,
        60.0,
        {
            "ps": (1.0 / 0.3,),
            "srpt": (1.777038, 1.344664),
            "psjf": (1.908677,),
            "sjf": (7.411280,),
            "fb": (2.504426, 1.986595),
        },
    ),
    Exact({"discipline": "ps", "capacity": "cores(4)"}, "exponential", 3.2, 1.745541, 30.0),
    Exact({"discipline": "ps", "capacity": "cores(4)"}, "hyperexponential", 3.2, 1.745541, 60.0),
    Exact({"discipline": "ps", "capacity": "batching(0.1)"}, "exponential", 5.0, 2.0, 10.0),
    Exact({"discipline": "ps", "capacity": "power(0.5)"}, "exponential", 2.0, 2.277212, 20.0),
    Exact(
        {"discipline": "limited-ps", "slots": 8, "capacity": "batching(0.1)"},
        "exponential",
        4.0,
        2.292503,
        10.0,
    ),
    *(
        Exact({"discipline": "limited-ps", "slots": slots}, "hyperexponential", 0.8, value, 60.0)
        for slots, value in ((2, 19.051495), (8, 8.263512))
    ),
    *(
        Exact({"discipline": "fcfs", "slots": slots}, law, 0.8 * slots, value, millions)
        for law, slots, value, millions in (
            ("deterministic", 2, 1.903284, 10.0),
            ("deterministic", 4, 1.386095, 10.0),
            ("hyperexponential", 2, 10.202102, 60.0),
            ("hyperexponential", 4, 4.592304, 60.0),
        )
    ),
)
"""Systems of one processor of speed 1."""


def title(one: Exact) -> str:
    """Return what a case is called."""
    options = ", ".join(f"{name} {value}" for name, value in one.discipline.items() if name != "discipline")
    return f"{one.discipline['discipline']}{f' ({options})' if options else ''}, {one.law}, load {one.load:g}"


def one_processor(one: Exact, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare one system with its exact mean response, and slowdown."""
    env, params = make(
        "stable",
        num_processors=1,
        load=one.load,
        size=_LAWS[one.law],
        allow_overload=one.load >= 1,
        **one.discipline,
    )
    run = simulate(env, params, scheduler("lwl"), key, one.millions * thoroughness, warmup=3000, lanes=512)
    precision = DEAR if one.law in ("hyperexponential", "bounded Pareto") else 0.005
    findings = {f"{title(one)}: mean response": Finding(response(run), one.response, precision=precision)}
    if one.slowdown is not None:
        findings[f"{title(one)}: mean slowdown"] = Finding(
            run.mean_slowdown, one.slowdown, precision=precision
        )
    return findings
