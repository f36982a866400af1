"""jaxlb in other people's programs: names of their own, and the shapes that other libraries have."""

import importlib
from typing import Any

from jaxlb.interop.five_value import FiveValueEnv
from jaxlb.interop.registration import register

__all__ = ["FiveValueEnv", "register"]

_NEED = {"DmEnv": ("dm_env", "dm-env"), "JumanjiEnv": ("jumanji", "jumanji")}
"""Names that need a package, by its module: imported when they are asked for."""


def __getattr__(name: str) -> Any:
    """Import what needs a package of its own."""
    if name not in _NEED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, package = _NEED[name]
    try:
        found = importlib.import_module(f"jaxlb.interop.{module}_adapter")
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(f"{name} needs {module}: pip install {package}") from None
    return getattr(found, name)
