"""Capacity curves: what a processor gives to all the tasks together that it serves at a time."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.types import Array

Capacity = Callable[[Array], Array]
"""Number of tasks that are served -> what they get together, in speeds of the processor."""


def one(number: Array) -> Array:
    """Give the speed, whatever the number."""
    return jnp.ones_like(number)


def _cores(cores: float, number: Array) -> Array:
    return jnp.minimum(number, cores)


def batching(overhead: Any, number: Any) -> Any:
    """Give an accelerator's n / (1 + overhead (n - 1))."""
    return number / (1.0 + overhead * (number - 1.0))


def _power(exponent: float, number: Array) -> Array:
    return number**exponent


def _table(rates: tuple[float, ...], number: Array) -> Array:
    place = jnp.clip(number.astype(jnp.int32) - 1, 0, len(rates) - 1)
    return jnp.asarray(rates, jnp.float32)[place]


def capacity(given: str | Sequence[float]) -> Capacity:
    """Make a capacity curve: what n tasks get together, in speeds of the processor.

    Args:
      given: "one", whatever n; "cores(c)", min(n, c); "batching(a)", n / (1 + a (n - 1)), of an accelerator;
        "power(e)", n^e; or a table of rates for 1, 2, ... tasks, the last one for more.

    Raises:
      ValueError: an unknown name, a negative number, no cores, or rates that are not positive.
    """
    if not isinstance(given, str):
        rates = tuple(map(float, given))
        checks.leaf("capacity", rates, above=0)
        return partial(_table, rates)
    found = re.fullmatch(r"([a-z]+)(?:\(([^()]*)\))?", given.strip())
    curves = {"one": None, "cores": _cores, "batching": batching, "power": _power}
    checks.known("capacity", found[1] if found else given, curves)
    assert found is not None
    curve = curves[found[1]]
    if curve is None:
        return one
    try:
        number = float(found[2])
    except (TypeError, ValueError):
        raise ValueError(f"capacity = {given!r}: must be {found[1]}(number)") from None
    if curve is _cores:
        checks.leaf(f"capacity = {given!r}", number, above=0)
    checks.leaf(f"capacity = {given!r}", number, low=0)
    return partial(curve, number)
