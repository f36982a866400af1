"""Thousands of heterogeneous multiprocessor systems in parallel, and the schedulers that balance them."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from jaxlb.comparison import Comparison
from jaxlb.devices import device_mesh
from jaxlb.env import Env
from jaxlb.environments import make, scenarios
from jaxlb.interop import register
from jaxlb.judging import compare
from jaxlb.loop import rollout
from jaxlb.metrics import Summary
from jaxlb.observe import flatten
from jaxlb.replaying import replay
from jaxlb.rewards import Weights
from jaxlb.scheduling import scheduler, schedulers
from jaxlb.scheduling.policies import as_scheduler
from jaxlb.sweeps import Sweep, sweep
from jaxlb.tuning import Tuning, tune
from jaxlb.types import EnvParams, EnvState, Observation, Outcome, Scheduler, Task
from jaxlb.version import __version__
from jaxlb.workload import read_trace, workloads

if TYPE_CHECKING:
    from jaxlb.learn import (
        DQNConfig,
        GNNConfig,
        PredictorConfig,
        TrainResult,
        UniversalConfig,
        train_dqn,
        train_gnn,
        train_predictor,
        train_universal,
    )
    from jaxlb.live import decider
    from jaxlb.runs import load
    from jaxlb.trained import save

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
    "Sweep",
    "Task",
    "TrainResult",
    "Tuning",
    "UniversalConfig",
    "Weights",
    "__version__",
    "as_scheduler",
    "compare",
    "decider",
    "device_mesh",
    "flatten",
    "load",
    "make",
    "read_trace",
    "register",
    "replay",
    "rollout",
    "save",
    "scenarios",
    "scheduler",
    "schedulers",
    "sweep",
    "train_dqn",
    "train_gnn",
    "train_predictor",
    "train_universal",
    "tune",
    "workloads",
]

# Trainers bring optax, which takes its time and which simulating does not need.
_IMPORTED_WHEN_NEEDED = {
    "DQNConfig": "jaxlb.learn",
    "GNNConfig": "jaxlb.learn",
    "PredictorConfig": "jaxlb.learn",
    "TrainResult": "jaxlb.learn",
    "UniversalConfig": "jaxlb.learn",
    "decider": "jaxlb.live",
    "load": "jaxlb.runs",
    "save": "jaxlb.trained",
    "train_dqn": "jaxlb.learn",
    "train_gnn": "jaxlb.learn",
    "train_predictor": "jaxlb.learn",
    "train_universal": "jaxlb.learn",
}


def __getattr__(name: str) -> Any:
    """Import a trainer, or a module such as `jaxlb.cli`, when it is first used."""
    if name in _IMPORTED_WHEN_NEEDED:
        return getattr(importlib.import_module(_IMPORTED_WHEN_NEEDED[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List all names, imported or not."""
    return sorted({*globals(), *__all__})
