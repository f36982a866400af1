"""The way out of the simulator: what decides in a live system."""

from jaxlb.live.exporting import decider

__all__ = ["decider"]
