"""What serving means: the processors, and what they hold. Nothing else knows a discipline."""

from jaxlb.stations.base import Station, View, response
from jaxlb.stations.fcfs import FCFS

__all__ = ["FCFS", "Station", "View", "response"]
