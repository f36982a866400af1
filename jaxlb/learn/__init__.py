"""Training of schedulers in the simulator: networks, replay memory, one trainer a file."""

from jaxlb.learn.dqn import DQN, DQNConfig, train_dqn
from jaxlb.learn.gnn import GNN, GNNConfig, train_gnn
from jaxlb.learn.predictor import PREDICTOR, PredictorConfig, train_predictor
from jaxlb.learn.trainer import Trainer, TrainResult
from jaxlb.learn.universal import UNIVERSAL, UniversalConfig, train_universal

__all__ = [
    "TRAINERS",
    "DQNConfig",
    "GNNConfig",
    "PredictorConfig",
    "TrainResult",
    "UniversalConfig",
    "train_dqn",
    "train_gnn",
    "train_predictor",
    "train_universal",
]

TRAINERS: dict[str, Trainer] = {trainer.name: trainer for trainer in (DQN, PREDICTOR, GNN, UNIVERSAL)}
"""By name."""
