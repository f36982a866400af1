"""Networks from features to a number for each processor: Flax Linen modules behind (init, apply)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxlb import checks
from jaxlb.schedulers.learned import Features, Network
from jaxlb.types import Array


class _Perceptron(nn.Module):
    """All features side by side through dense layers: for one number of processors, in their order."""

    widths: Sequence[int]
    duelling: bool

    @nn.compact
    def __call__(self, x: Features) -> Array:
        h = jnp.concatenate([x.task, x.processor.reshape(*x.task.shape[:-1], -1)], -1)
        for width in self.widths:
            h = nn.relu(nn.Dense(width)(h))
        value = nn.Dense(x.processor.shape[-2])(h)
        return _duel(value, nn.Dense(1)(h)) if self.duelling else value


class _PerProcessor(nn.Module):
    """The same layers for every processor, each with the mean over all of the layer before.

    Permuting processors permutes the values, and any number of processors will do.
    """

    widths: Sequence[int]
    duelling: bool

    @nn.compact
    def __call__(self, x: Features) -> Array:
        h, shared = x.processor, x.task
        for width in self.widths:
            h = nn.relu(nn.Dense(width)(h) + nn.Dense(width, use_bias=False)(shared)[..., None, :])
            shared = h.mean(-2)
        value = nn.Dense(1)(h)[..., 0]
        return _duel(value, nn.Dense(1)(shared)) if self.duelling else value


def _duel(advantage: Array, level: Array) -> Array:
    """A level that all choices share, and advantages of mean 0 (Wang et al. 2016)."""
    return level + advantage - advantage.mean(-1, keepdims=True)


def _network(module: nn.Module) -> Network:
    def apply(parameters: Any, x: Features) -> Array:
        return jnp.asarray(module.apply(parameters, x))

    return Network(init=module.init, apply=apply)


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"widths = {tuple(widths)}: must be at least one layer of at least one unit")
    return tuple(widths)


@functools.cache
def mlp(widths: tuple[int, ...] = (128, 128), duelling: bool = False) -> Network:
    """A multi-layer perceptron over all features: for one number of processors.

    Args:
      widths: of the hidden layers.
      duelling: whether level and advantages are separate outputs.
    """
    return _network(_Perceptron(_widths(widths), duelling))


@functools.cache
def per_processor(widths: tuple[int, ...] = (64, 64), duelling: bool = False) -> Network:
    """A permutation-equivariant network: the same weights for any number of processors.

    Args:
      widths: of the layers; between them each processor learns the mean over all.
      duelling: whether level and advantages are separate outputs.
    """
    return _network(_PerProcessor(_widths(widths), duelling))


NETWORKS = {"mlp": mlp, "per-processor": per_processor}


def network(name: str, **options: Any) -> Network:
    """A network by its name, "mlp" or "per-processor", and its options.

    Raises:
      ValueError: an unknown name or a bad option.
    """
    checks.known("network", name, NETWORKS)
    widths = options.get("widths")
    if widths is not None:
        whole = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not whole or not all(isinstance(width, int) for width in widths):
            raise ValueError(f"widths = {widths!r}: must be a list of whole numbers")
        options["widths"] = tuple(widths)
    return NETWORKS[name](**options)
