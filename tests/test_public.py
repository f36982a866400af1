"""What is public says what it is, without a look at the code."""

import dataclasses
import inspect

import pytest

import jaxlb


@pytest.mark.parametrize("name", [name for name in jaxlb.__all__ if isinstance(getattr(jaxlb, name), type)])
def test_help_tells_what_each_field_is(name):
    kind = getattr(jaxlb, name)
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else []
    told = inspect.getdoc(kind).partition("Attributes:")[2]
    assert not [one.name for one in fields if f"  {one.name}: " not in told]
