"""Functions that are values: equal where they do the same, and picklable."""

import functools
from typing import Any

import jax


class partial(functools.partial):
    """`functools.partial`, equal to another of the same function and arguments.

    Compiled programs are looked up by the functions within them: what is made twice alike is compiled once.
    And it can be pickled if its function is one of a module, where a function within a function cannot.
    """

    def _parts(self) -> tuple:
        # Arrays are looked up as the objects they are: those under a trace cannot be compared.
        def part(x: Any) -> Any:
            return ("array", id(x)) if isinstance(x, jax.Array) else x

        keywords = tuple((name, part(x)) for name, x in sorted(self.keywords.items()))
        return self.func, tuple(map(part, self.args)), keywords

    def __eq__(self, other: Any) -> bool:  # noqa: D105
        return type(other) is type(self) and self._parts() == other._parts()

    def __hash__(self) -> int:  # noqa: D105
        return hash(self._parts())
