"""Settings of trainers, declared once: what is plain, named, allowed and static follows from the fields.

A configuration is a frozen pytree. Its numbers are leaves that can be vmapped, all else is static; each field
is one of those below.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import struct

from jaxlb import checks

Config = TypeVar("Config")


def number(default: float | None, **bounds: Any) -> Any:
    """Define a number, a leaf; `bounds` are those of `checks.leaf`. None is allowed if it is the default."""
    return struct.field(default=default, metadata={"bounds": bounds})


def fixed(default: float | None, **bounds: Any) -> Any:
    """Define a number that is static."""
    return struct.field(pytree_node=False, default=default, metadata={"bounds": bounds})


def count(default: int, low: int = 1) -> Any:
    """Define a whole number of at least `low`, static."""
    return struct.field(pytree_node=False, default=default, metadata={"low": low})


def switch(default: bool) -> Any:
    """Define a setting that is true or false, static."""
    return struct.field(pytree_node=False, default=default, metadata={"switch": True})


def choice(default: str, allowed: Iterable[str]) -> Any:
    """Define a setting that is one of several words, static."""
    return struct.field(pytree_node=False, default=default, metadata={"allowed": tuple(allowed)})


def names(default: tuple[str, ...], make: Callable[[str], Any]) -> Any:
    """Define at least one name, each of something that `make` makes, static."""
    return struct.field(pytree_node=False, default=default, metadata={"each": make})


def named(
    default: str,
    make: Callable[..., Any],
    options: Iterable[str] = (),
    describe: Callable[[Any], dict[str, Any] | None] | None = None,
    pytree_node: bool = False,
    acts: bool = True,
) -> Any:
    """Define what `make(name, **options)` makes; plain settings have its name, and options by theirs.

    `describe` gives these for a value, or None for one that no name makes; without options it is not needed.
    What only training needs (not `acts`), nobody has to give to load what was trained.
    """
    return struct.field(
        pytree_node=pytree_node,
        default=make(default),
        metadata={
            "name": default,
            "make": make,
            "options": frozenset(options),
            "describe": describe,
            "acts": acts,
        },
    )


def group(default: Any) -> Any:
    """Define several numbers in a pytree of their own; plain settings have each by its name."""
    return struct.field(default=default, metadata={"group": type(default)})


def plain_names(kind: type) -> dict[str, frozenset[str]]:
    """List, for each field, the names that plain settings have for it."""
    found = {}
    for field in dataclasses.fields(kind):
        of_group = field.metadata.get("group")
        own = {field.name} if of_group is None else {part.name for part in dataclasses.fields(of_group)}
        found[field.name] = frozenset(own | field.metadata.get("options", frozenset()))
    return found


def configure(kind: type[Config], **settings: Any) -> Config:
    """Make a configuration from plain values, as a file or a command line has them.

    Args:
      kind: of configuration.
      settings: by name; what is not there has its default.

    Raises:
      ValueError: an unknown setting, or a name of nothing.
    """
    of_fields, values = plain_names(kind), {}
    for name in settings:
        checks.known("setting", name, frozenset().union(*of_fields.values()))
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        about = field.metadata
        given = {name: value for name, value in settings.items() if name in of_fields[field.name]}
        if not given:
            continue
        if "group" in about:
            values[field.name] = about["group"](**given)
        elif "make" in about:
            values[field.name] = about["make"](given.pop(field.name, about["name"]), **given)
        else:
            value = given[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def with_numbers(config: Any, values: Mapping[str, Any]) -> Any:
    """Return a configuration with other numbers, which one program takes whatever they are.

    Raises:
      ValueError: a name of something else, or a value that is no number.
    """
    fields = dataclasses.fields(config)
    leaves = [field for field in fields if field.metadata.get("pytree_node", True)]
    allowed = sorted(field.name for field in leaves if "bounds" in field.metadata)
    for name, value in values.items():
        if name not in allowed and name in frozenset().union(*plain_names(type(config)).values()):
            why = "cannot differ between trainings of one program, or changes what they are judged by"
            raise ValueError(f"{name}: {why}; these can differ: {', '.join(allowed) or 'none'}")
        checks.known("setting", name, allowed)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} = {checks.shown(value)}: must be a number")
    return config.replace(**values)


def _same(one: Any, other: Any) -> bool:
    """Return whether two pytrees have the same functions and the same numbers."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def plain(config: Any) -> dict[str, Any]:
    """Return the settings of a configuration as plain values by name, but for what no name alone makes."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, about = getattr(config, field.name), field.metadata
        if "group" in about:
            found |= {part.name: json_value(getattr(value, part.name)) for part in dataclasses.fields(value)}
        elif about.get("describe"):
            found |= about["describe"](value) or {}
        elif "make" in about:
            name = getattr(value, "name", about["name"])
            with contextlib.suppress(ValueError):  # one of its own, that no name makes
                found |= {field.name: name} if _same(value, about["make"](name)) else {}
        else:
            found[field.name] = json_value(value)
    return found


def json_value(value: Any) -> Any:
    """Return a number of any library, or numbers, as JSON has them."""
    if isinstance(value, (tuple, list)):
        return [json_value(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def own_fields(kind: type, settings: Mapping[str, Any]) -> list[str]:
    """List the fields of a configuration of which `plain` had no name, and which a scheduler needs to act."""
    made = [field.name for field in dataclasses.fields(kind) if field.metadata.get("acts")]
    return [name for name in made if name not in settings]


def check(config: Any) -> None:
    """Raise ValueError if a setting is out of its bounds; numbers under a trace pass."""
    for field in dataclasses.fields(config):
        value, about = getattr(config, field.name), field.metadata
        if "make" in about and about["acts"] and isinstance(value, str):
            raise ValueError(
                f"{field.name} = {value!r}: is a name, must be what it names; "
                f"{about['make'].__module__}.{about['make'].__name__}({value!r}) makes that"
            )
        if "low" in about:
            checks.at_least(field.name, value, about["low"])
        elif "bounds" in about and not (value is None and field.default is None):
            checks.leaf(field.name, value, **about["bounds"])
        elif "allowed" in about:
            checks.known(field.name, value, about["allowed"])
        elif "switch" in about:
            if not isinstance(value, bool):
                raise ValueError(f"{field.name} = {checks.shown(value)}: must be true or false")
        elif "each" in about:
            if not isinstance(value, tuple) or not value:
                raise ValueError(f"{field.name} = {checks.shown(value)}: must be a list of at least one name")
            for name in value:
                about["each"](name)
