"""jaxlb in other people's programs: names of their own, gymnax's old five values, Gymnasium."""

from jaxlb.interop.five_value import FiveValueEnv
from jaxlb.interop.registration import register

__all__ = ["FiveValueEnv", "register"]
