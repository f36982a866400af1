"""Host-side checks: every bad value is named, with what is allowed, before anything is traced."""

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def traced(tree: Any) -> bool:
    """Return whether a leaf is under a trace, so that its value cannot be known."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def entries(text: str) -> list[str]:
    """Split a list at its commas; commas within brackets separate nothing."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def settings(what: str, texts: Iterable[str]) -> dict[str, Any]:
    """Read values by name from texts NAME=VALUE: numbers, lists and so on as JSON; anything else is text.

    Raises:
      ValueError: one looks different; `what` is what the message calls it.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"{what} {text!r}: must look like NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            # JSON has no .85 and no 2. for numbers; everybody else has.
            number = re.fullmatch(r"[+-]?(\.\d+|\d+\.)([eE][+-]?\d+)?", value)
            values[name] = float(value) if number else value
    return values


def known(kind: str, name: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `allowed`; the message suggests the nearest names."""
    allowed = sorted(allowed)
    if name in allowed:
        return
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(allowed) or 'none'}"
    raise ValueError(f"unknown {kind} {str(name)!r}; {hint}")


def free(kind: str, name: object, taken: Mapping[str, Any], new: Any) -> None:
    """Raise ValueError unless `name` may become the name of a new `kind`.

    A name may be given again to what is called the same, as a cell of a notebook does that is run twice.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"name = {name!r}: must be letters, digits, '-', '_' and '.', at least one of them")
    if name in taken and _called(taken[name]) != _called(new):
        raise ValueError(f"name = {name!r}: taken by another {kind}")


def _called(made: Any) -> Any:
    """Return what a function, a class or an instance is called, where that tells it from others."""
    made = inspect.unwrap(made) if callable(made) else made
    if not hasattr(made, "__qualname__"):  # an instance: of a class of that name, with these values
        return type(made).__module__, type(made).__qualname__, repr(made)
    return made if "<" in made.__qualname__ else (made.__module__, made.__qualname__)


def first_line(documented: Any) -> str:
    """Return the first line of a docstring, empty where there is none."""
    line = (inspect.getdoc(documented) or "").partition("\n")[0]
    # A dataclass without a docstring gets its signature as one.
    made_up = inspect.isclass(documented) and line.startswith(f"{documented.__name__}(")
    return "" if made_up and dataclasses.is_dataclass(documented) else line


MAX_COUNT = 2**31 - 1
"""The largest whole number that an int32 holds: what is counted in a program cannot exceed it."""


def shown(value: object) -> str:
    """Write a value for a message: in one line, and not a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def at_least(name: str, value: int, low: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `low` that an int32 holds."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} = {shown(value)}: must be a whole number of at least {low}")
    if value > MAX_COUNT:
        raise ValueError(f"{name} = {value}: must be at most {MAX_COUNT}")


def seed(name: str, value: Any, count: int = 1) -> None:
    """Raise ValueError unless `value` may seed a key, and the `count - 1` numbers after it too.

    A key has 32 bits of seed: larger ones would be another's again.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= 2**32 - count:
        raise ValueError(
            f"{name} = {shown(value)}: must be a whole number of at least 0, at most {2**32 - count}"
        )


def leaf(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    low: float | None = None,
    below: float | None = None,
    high: float | None = None,
    infinite: bool = False,
    whole: bool = False,
) -> None:
    """Raise ValueError unless every number in `value` is finite, in float32 too, and inside the bounds.

    Values under a trace pass: they cannot be known.

    Args:
      name: how the message names the value.
      value: number or array.
      above: exclusive lower bound.
      low: inclusive lower bound.
      below: exclusive upper bound.
      high: inclusive upper bound.
      infinite: whether plus infinity is allowed.
      whole: whether it must be whole numbers.
    """
    if traced(value):
        return
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):
        given = np.asarray(None)
    # Text and booleans would become numbers; complex ones, half of themselves.
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (np.integer, np.floating)):
        raise ValueError(f"{name} = {shown(value)}: must be a number")
    numbers = given.astype(np.float64)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    # Below the smallest normal number XLA takes 0 instead.
    kept = np.isfinite(narrow) & ((np.abs(narrow) >= np.finfo(np.float32).tiny) | (numbers == 0))
    rules = [
        ("a number, not NaN", ~np.isnan(numbers)),
        ("finite", np.isfinite(numbers) | (infinite & (numbers == np.inf))),
        ("within float32, from 1.18e-38 to 3.4e+38 or 0", kept | np.isinf(numbers)),
        ("a whole number", not whole or numbers == np.floor(numbers)),
        (f"above {above}", above is None or numbers > above),
        (f"at least {low}", low is None or numbers >= low),
        (f"below {below}", below is None or numbers < below),
        (f"at most {high}", high is None or numbers <= high),
    ]
    for allowed, passed in rules:
        if not np.all(passed):
            bad = numbers[~np.asarray(passed)].flat[0] if np.ndim(passed) else float(numbers)
            raise ValueError(f"{name} = {bad:g}: must be {allowed}")


def lane_axes(axes: Mapping[str, tuple[int, ...]], lanes: tuple[int, ...] | None) -> None:
    """Raise ValueError unless what values have behind axes of their own is nothing, or one axis of lanes.

    Args:
      axes: shape of that, by the value's name.
      lanes: the lanes that there are, `()` or `(N,)`; None: not known yet, but they must agree.
    """
    # One entry serves all lanes.
    given = {name: shape for name, shape in axes.items() if shape != () and (shape != (1,) or lanes == ())}
    for name, shape in given.items():
        expected = next(iter(given.values())) if lanes is None else lanes
        if shape != expected or len(shape) > 1:
            allowed = f" or {expected[:1]}, an entry for each lane" if expected else ""
            raise ValueError(f"{name} has lane axes {shape}: must be (){allowed}")


def multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raise ValueError unless a whole number is a multiple of another, named one."""
    if value % divisor:
        raise ValueError(f"{name} = {value}: must be a multiple of {of}, {divisor}")


def actions(name: str, given: Any, shape: tuple[int, ...], num_actions: int) -> np.ndarray:
    """Return actions as int32 of a shape; raise ValueError if one is no processor, or no whole number."""
    try:
        found = np.asarray(given)
    except ValueError:
        found = np.asarray(None)
    # A single action may come in an array, as policies return it.
    if found.shape != shape and (shape or found.size != 1):
        allowed = f"{shape}, one for each lane" if shape else "one number"
        raise ValueError(f"{name} has shape {found.shape}: must be {allowed}")
    leaf(name, found, whole=True)
    outside = found[(found < 0) | (found >= num_actions)]
    if outside.size:
        raise ValueError(f"{name} = {outside.flat[0]}: must be in 0 .. {num_actions - 1}")
    return found.reshape(shape).astype(np.int32)
