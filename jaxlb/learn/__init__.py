"""Training of schedulers in the simulator: networks, replay memory, one trainer a file."""

from jaxlb.learn.dqn import DQNConfig, TrainResult, train_dqn

__all__ = ["DQNConfig", "TrainResult", "train_dqn"]
