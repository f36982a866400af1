"""Thousands of heterogeneous multiprocessor systems in parallel, and the schedulers that balance them."""

from jaxlb.comparison import Comparison, compare
from jaxlb.env import Env, flatten
from jaxlb.metrics import Summary
from jaxlb.rollout import replay, rollout
from jaxlb.scenarios import make, scenarios
from jaxlb.schedulers import scheduler, schedulers
from jaxlb.types import EnvParams, EnvState, Observation, Outcome, Scheduler, Task
from jaxlb.workload import read_trace

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Env",
    "EnvParams",
    "EnvState",
    "Observation",
    "Outcome",
    "Scheduler",
    "Summary",
    "Task",
    "compare",
    "flatten",
    "make",
    "read_trace",
    "replay",
    "rollout",
    "scenarios",
    "scheduler",
    "schedulers",
]
