"""What serving means: the processors, and what they hold.

The dynamics know a discipline nowhere else. What rules and networks expect of a choice before it is made,
`response`, is still that of first come, first served.
"""

from typing import Any

from jaxlb.stations import disciplines
from jaxlb.stations.base import (
    INTERRUPTED,
    Station,
    View,
    capacity,
    check,
    check_interrupted,
    growth,
    needs_settled,
    response,
    true_response,
)
from jaxlb.stations.fcfs import FCFS
from jaxlb.stations.table import Table

__all__ = [
    "FCFS",
    "INTERRUPTED",
    "Station",
    "Table",
    "View",
    "capacity",
    "check",
    "check_interrupted",
    "disciplines",
    "growth",
    "named",
    "needs_settled",
    "response",
    "true_response",
]


def named(discipline: str, **options: Any) -> Station:
    """Make processors that serve by a discipline.

    Args:
      discipline: "fcfs", "ps", "lcfs-pr", "sjf", "srpt", "psjf", "fb", "priority", "priority-preemptive",
        "edf", "limited-ps" or "c-mu".
      options: `slots`, how many tasks are served at a time, or share, a list where processors differ;
        `capacity`, of "ps" and "limited-ps", a name or a table, as in `disciplines.capacity`; `weights`, of
        "c-mu", one for each priority class.

    Raises:
      ValueError: an unknown name or option, or one out of bounds.
    """
    if discipline == "fcfs" and options.get("slots", 1) == 1:
        disciplines.named(discipline, **options)
        return FCFS()
    return Table(disciplines.named(discipline, **options))
