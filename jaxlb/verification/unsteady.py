"""Processors whose speed changes, or that lose tasks, beside exact values."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxlb.types import Array, Key, Lanes, Scalar
from jaxlb.verification.base import DEAR, Exact
from jaxlb.workload.arrivals import Poisson
from jaxlb.workload.cold_starts import ColdStarts
from jaxlb.workload.speeds import Failing, Ring


class Patience(Poisson):
    """Poisson arrivals of tasks whose deadlines are exponential, whatever their size."""

    extra_words: ClassVar[int] = 1
    mean_deadline: Any = 1.0

    def start(self, key: Key, lanes: Lanes) -> Array:
        """Return a deadline before the first; the key is consumed."""
        del key
        return jnp.ones(lanes, jnp.float32)

    def gap(self, state: Array, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Array]:
        """Return the next gap and deadline."""
        gap, _ = super().gap((), rate, uniform, extra)
        return gap, -jnp.log(extra[0]) * self.mean_deadline

    def deadline(self, state: Array, computed: Array) -> Array:
        """Return the deadline."""
        del computed
        return state


def changing() -> list[Exact]:
    """List processors whose speed changes."""

    def one(name: str, rate: float, response: float, speeds: Any, top: float = 1.0) -> Exact:
        return Exact(
            f"{name}, rate {rate:g}",
            "exponential",
            rate / (top * float(speeds.mean()[0])),
            {"mean response": response},
            precision=DEAR,
            millions=4.0,
            warmup=1000,
            settings={"speed": (top,), "speeds": speeds},
        )

    def failing(fails: float, repaired: float, working: bool) -> Failing:
        return Failing(1.0 / fails, 1.0 / repaired, working=working)

    rows = (
        (0.5, 0.1, 0.4, False, 4.666667),
        (0.5, 0.1, 0.4, True, 4.166667),
        (0.7, 0.1, 0.9, False, 5.5),
        (0.7, 0.1, 0.9, True, 5.388889),
    )
    return [
        *(
            one(
                f"fails at rate {fails:g}{' while it works' if working else ''}, repaired at {repaired:g}",
                rate,
                response,
                failing(fails, repaired, working),
            )
            for rate, fails, repaired, working, response in rows
        ),
        *(
            one(f"starts cold, at rate {rate:g}", 0.7, 1.0 / 0.3 + 1.0 / rate, ColdStarts(1.0 / rate))
            for rate in (0.5, 2.0)
        ),
        one("speeds 1.5 and 0.5, in turn", 0.7, 6.437467, Ring((1.0, 1.0 / 3.0), (10.0, 10.0)), top=1.5),
    ]


def losing() -> list[Exact]:
    """List processors that refuse tasks, or whose tasks leave while they wait."""

    def one(name: str, rate: float, values: Mapping[str, float], **settings: Any) -> Exact:
        return Exact(
            f"{name}, rate {rate:g}",
            "exponential",
            rate,
            values,
            millions=8.0,
            precision=DEAR,
            warmup=1000,
            settings=settings,
        )

    slots = {"discipline": "fcfs", "slots": 10}
    return [
        one("10 slots, no queue", 8.0, {"share lost": 0.121661, "mean response": 1.0}, limit=10, **slots),
        one("room for 10", 0.9, {"share lost": 0.050814, "mean response": 4.646601}, limit=10),
        *(
            one(name, rate, {"share lost": lost}, leaving="waiting", arrival=Patience(1.0 / leave), **options)
            for name, rate, leave, lost, options in (
                ("leaves at rate 0.1", 0.9, 0.1, 0.157826, {}),
                ("10 slots, leaves at rate 0.5", 10.0, 0.5, 0.103913, slots),
            )
        ),
    ]
