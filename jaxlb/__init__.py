"""Thousands of heterogeneous multiprocessor systems in parallel, and the schedulers that balance them."""

from jaxlb.comparison import Comparison, compare
from jaxlb.env import Env, flatten
from jaxlb.interop import register
from jaxlb.learn import (
    DQNConfig,
    GNNConfig,
    PredictorConfig,
    TrainResult,
    train_dqn,
    train_gnn,
    train_predictor,
)
from jaxlb.metrics import Summary
from jaxlb.rewards import Weights
from jaxlb.rollout import device_mesh, replay, rollout
from jaxlb.runs import load
from jaxlb.scenarios import make, scenarios
from jaxlb.schedulers import scheduler, schedulers
from jaxlb.types import EnvParams, EnvState, Observation, Outcome, Scheduler, Task
from jaxlb.version import __version__
from jaxlb.workload import read_trace, workloads

__all__ = [
    "Comparison",
    "DQNConfig",
    "Env",
    "EnvParams",
    "EnvState",
    "GNNConfig",
    "Observation",
    "Outcome",
    "PredictorConfig",
    "Scheduler",
    "Summary",
    "Task",
    "TrainResult",
    "Weights",
    "__version__",
    "compare",
    "device_mesh",
    "flatten",
    "load",
    "make",
    "read_trace",
    "register",
    "replay",
    "rollout",
    "scenarios",
    "scheduler",
    "schedulers",
    "train_dqn",
    "train_gnn",
    "train_predictor",
    "workloads",
]
