"""What serving means: the processors, and what they hold.

The dynamics know a discipline nowhere else. What rules, rewards and networks expect of a choice before it is
made, `response`, is still that of first come, first served.
"""

from jaxlb.stations.base import Station, View, check, response
from jaxlb.stations.fcfs import FCFS

__all__ = ["FCFS", "Station", "View", "check", "response"]
