"""Disciplines: one processor that shares, or whose tasks interrupt each other, beside exact values."""

from collections.abc import Mapping

from jaxlb.scheduling import scheduler
from jaxlb.types import Key
from jaxlb.verification.base import Finding, equal_processors, response, simulate

LOAD, MILLIONS = 0.5, 3.0

EXACT: Mapping[str, tuple[float, ...]] = {
    "ps": (2.0,),
    "lcfs-pr": (2.0,),
    "srpt": (1.425373, 1.225117),
    "psjf": (1.531383,),
    "sjf": (1.712686,),
    "fb": (2.0, 1.609275),
}
"""Mean response, and slowdown, with exponential sizes of mean 1 at this load.

Sharing has closed formulas (Kleinrock 1976); those of SRPT, PSJF, SJF and foreground-background (Schrage and
Miller 1966, Harchol-Balter 2013) are computed by quadrature.
"""


def one_processor(name: str, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare a discipline with its exact mean response, and slowdown."""
    env, params = equal_processors(1, LOAD, discipline=name, queue_capacity=32)
    run = simulate(env, params, scheduler("lwl"), key, MILLIONS * thoroughness, lanes=512)
    found, title = (response(run), run.mean_slowdown), f"{name}, exponential sizes, load {LOAD}"
    return {
        f"{title}: mean {what}": Finding(samples, exact)
        for what, samples, exact in zip(("response", "slowdown"), found, EXACT[name], strict=False)
    }
