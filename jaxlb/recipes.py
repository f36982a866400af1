"""How schedulers, networks and other tuples of functions are pickled: as the call that made them.

Functions made within functions cannot be pickled, and compiled programs are looked up by the very objects. So
what a factory of jaxlb makes is kept, with the call, and unpickling it makes the call again: in the same
process that is the same object.
"""

import copyreg
import functools
from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")

_CALLS: dict[Any, tuple[Callable[..., Any], tuple, dict[str, Any]]] = {}
"""What was made, and by which call."""


def cached(factory: Callable[..., Made]) -> Callable[..., Made]:
    """A factory that makes one object for the same arguments, which is pickled as the call."""
    return recorded(functools.cache(factory))


def recorded(factory: Callable[..., Made]) -> Callable[..., Made]:
    """A factory at the top of a module, what it makes being pickled as the call."""

    @functools.wraps(factory)
    def make(*arguments: Any, **options: Any) -> Made:
        made = factory(*arguments, **options)
        # The first call counts: one that passes on what another has made adds nothing.
        _CALLS.setdefault(made, (make, arguments, options))
        return made

    return make


def picklable(kind: type[Made]) -> type[Made]:
    """Have named tuples of a kind pickled as the calls that made them; others as their functions."""
    copyreg.pickle(kind, _reduced)  # pyright: ignore[reportArgumentType]
    return kind


def _reduced(made: Any) -> tuple[Callable[..., Any], tuple]:
    return (_called, _CALLS[made]) if made in _CALLS else (type(made), tuple(made))


def _called(make: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> Any:
    return make(*arguments, **options)
