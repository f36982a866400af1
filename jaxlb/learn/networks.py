"""Networks from features to a number for each processor: Flax Linen modules behind (init, apply)."""

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.learn.settings import json_value
from jaxlb.numerics import stored
from jaxlb.scheduling.features import PROCESSOR_FEATURES, Features
from jaxlb.scheduling.learned import Network, Recurrent
from jaxlb.types import Array, Key, Lanes

Pooling = Literal["mean", "max", "attention"]
Graph = Literal["full", "speed", "load", "learned"]
SPEED, LOAD = (list(PROCESSOR_FEATURES).index(name) for name in ("log speed", "log load"))


class _Perceptron(nn.Module):
    """All features side by side through dense layers: for one number of processors, in their order."""

    widths: Sequence[int]
    duelling: bool

    @nn.compact
    def __call__(self, x: Features) -> Array:
        # Features first, as in `features.standardise`.
        task, processor = jnp.moveaxis(x.task, -1, 0), jnp.moveaxis(x.processor, (-2, -1), (0, 1))
        h = jnp.concatenate([task, processor.reshape(-1, *task.shape[1:])])
        # Transposed before the product, not within, which takes twice as long.
        h = stored(jnp.moveaxis(h, 0, -1))
        for width in self.widths:
            h = nn.relu(nn.Dense(width)(h))
        value = nn.Dense(x.processor.shape[-2])(h)
        return _duel(value, nn.Dense(1)(h)) if self.duelling else value


class _PerProcessor(nn.Module):
    """The same layers for every processor, each given the mean, the most and the least of the layer before.

    Permuting processors permutes the values, and any number of processors will do. The first layer reads
    all processors too: who completes first is a matter of the least completion.
    """

    widths: Sequence[int]
    duelling: bool

    @nn.compact
    def __call__(self, x: Features) -> Array:
        def of_all(h: Array) -> Array:
            return jnp.concatenate([h.mean(-2), h.max(-2), h.min(-2)], -1)

        h = x.processor
        shared = jnp.concatenate([x.task, of_all(h)], -1)
        for width in self.widths:
            h = nn.relu(nn.Dense(width)(h) + nn.Dense(width, use_bias=False)(shared)[..., None, :])
            shared = of_all(h)
        value = nn.Dense(1)(h)[..., 0]
        return _duel(value, nn.Dense(1)(shared)) if self.duelling else value


class _MessagePassing(nn.Module):
    """Processors as nodes; in each round every node learns what its neighbours have come to.

    What all nodes read alike is multiplied once for all of them, so it costs next to nothing.
    """

    widths: Sequence[int]
    rounds: int
    pooling: str
    graph: str
    neighbours: int
    skip: bool
    outputs: int
    duelling: bool

    @nn.compact
    def __call__(self, x: Features, memory: Array | None = None) -> tuple[Array, Array | None]:
        h = x.processor
        for place, width in enumerate(self.widths):
            new = nn.Dense(width)(h)
            if place == 0:
                new += nn.Dense(width, use_bias=False)(x.task)[..., None, :]
            if place < self.rounds:
                new += nn.Dense(width, use_bias=False)(self._received(h, x.processor))
            h = nn.relu(new)
            if place == 0 and memory is not None:
                memory, h = nn.GRUCell(width)(memory, h)
        # With a skip the layers start from nothing: they are there for what a linear fit leaves over.
        initial = nn.initializers.zeros if self.skip else nn.linear.default_kernel_init
        value = nn.Dense(self.outputs, kernel_init=initial)(h)
        if self.skip:
            value += nn.Dense(self.outputs, use_bias=False)(x.processor)
        if self.outputs == 1:
            value = value[..., 0]
        return _duel(value, nn.Dense(1)(h.mean(-2))) if self.duelling else value, memory

    def _received(self, h: Array, processor: Array) -> Array:
        """Return what each node receives of its neighbours, `[..., P, E]`.

        Where all nodes receive the same, it is `[..., 1, E]`.
        """
        if self.graph == "full" and self.pooling != "attention":
            return h.mean(-2, keepdims=True) if self.pooling == "mean" else h.max(-2, keepdims=True)
        if self.graph == "learned":
            salience = nn.Dense(1)(h)
            h_sent = nn.sigmoid(salience) * h  # so that what is chosen can be learned
        else:
            salience, h_sent = None, h
        index = self._index(processor, salience)
        message = h_sent[..., None, :, :] if index is None else _gathered(h_sent, index)
        if self.pooling == "attention":
            width = h.shape[-1]
            query, key = nn.Dense(width)(h)[..., None, :], nn.Dense(width)(message)
            weight = nn.softmax((query * key).sum(-1) / width**0.5)
            return (weight[..., None] * message).sum(-2)
        return message.mean(-2) if self.pooling == "mean" else message.max(-2)

    def _index(self, processor: Array, salience: Array | None) -> Array | None:
        """Return neighbours of each node, `[..., P, K]`, or of all of them, `[..., 1, K]`; None: all are."""
        num_processors = processor.shape[-2]
        if self.graph == "full" or self.neighbours >= num_processors:
            return None
        if salience is not None:
            return jax.lax.top_k(salience[..., 0], self.neighbours)[1][..., None, :]
        by = processor[..., SPEED if self.graph == "speed" else LOAD]
        order = jnp.argsort(by, -1)
        first = jnp.clip(jnp.argsort(order, -1) - self.neighbours // 2, 0, num_processors - self.neighbours)
        place = first[..., None] + jnp.arange(self.neighbours, dtype=first.dtype)
        nearest = jnp.take_along_axis(order, place.reshape(*by.shape[:-1], -1), -1)
        return nearest.reshape(place.shape)


def _gathered(h: Array, index: Array) -> Array:
    """Gather `[..., I, K, E]` from nodes `[..., P, E]` by index `[..., I, K]`."""
    flat = jnp.take_along_axis(h, index.reshape(*index.shape[:-2], -1, 1), -2)
    return flat.reshape(*index.shape, h.shape[-1])


def _duel(advantage: Array, level: Array) -> Array:
    """Add a level that all choices share to advantages, made to have mean 0 (Wang et al. 2016)."""
    return level + advantage - advantage.mean(-1, keepdims=True)


def _network(module: nn.Module, apply: Callable[..., Any] = nn.Module.apply) -> Network:
    """Wrap a module as (init, apply); `apply` is (module, parameters, features) -> values."""
    return Network(init=partial(nn.Module.init, module), apply=partial(apply, module))


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"widths = {tuple(widths)}: must be at least one layer of at least one unit")
    return tuple(widths)


def _apply_to_as_many(module: nn.Module, parameters: Any, x: Features) -> Any:
    """Return a perceptron's values.

    Raises:
      ValueError: it was trained for another number of processors.
    """
    found = x.task.shape[-1] + x.processor.shape[-2] * x.processor.shape[-1]
    known = parameters["params"]["Dense_0"]["kernel"].shape[-2]
    if known != found:
        trained_for = (known - x.task.shape[-1]) / x.processor.shape[-1]
        raise ValueError(
            f"a perceptron trained for {trained_for:g} processors, here are {x.processor.shape[-2]}: "
            "must be as many; networks per_processor and gnn serve any number"
        )
    return module.apply(parameters, x)


def mlp(widths: tuple[int, ...] = (128, 128), duelling: bool = False) -> Network:
    """Make a multi-layer perceptron over all features: for processors of given speeds in a given order.

    Args:
      widths: of the hidden layers.
      duelling: whether level and advantages are separate outputs.
    """
    return _network(_Perceptron(_widths(widths), duelling), _apply_to_as_many)


def per_processor(widths: tuple[int, ...] = (64, 32, 32), duelling: bool = False) -> Network:
    """Make a permutation-equivariant network: the same weights for any number of processors, in any order.

    Args:
      widths: of the layers; before each a processor learns the mean, the most and the least over all.
      duelling: whether level and advantages are separate outputs.
    """
    return _network(_PerProcessor(_widths(widths), duelling))


def _apply_message_passing(module: nn.Module, parameters: Any, x: Features) -> Any:
    return module.apply(parameters, x)[0]


def gnn(
    widths: tuple[int, ...] = (64, 32),
    rounds: int = 1,
    pooling: Pooling = "mean",
    graph: Graph = "full",
    neighbours: int = 8,
    skip: bool = True,
    outputs: int = 1,
    duelling: bool = False,
) -> Network:
    """Make a message-passing network over processors: the same weights for any number of them.

    Permuting processors permutes the values (but for ties in "speed" and "load" graphs, which go by index).

    Args:
      widths: of the layers, the same for every node.
      rounds: layers, from the first on, that read what the neighbours have come to; 0: none does.
      pooling: of neighbours: "mean", "max" or "attention" (Vaswani et al. 2017).
      graph: who is a neighbour: "full": all; "speed", "load": those nearest in it; "learned": those that a
        learned score puts first, the same for all nodes.
      neighbours: K, except in the full graph; the cost grows as P x K, and as P x P in a full graph with
        attention.
      skip: whether features also go straight to the output, through one linear layer.
      outputs: numbers for each processor; 2 for the target "distribution" of `train_gnn`.
      duelling: whether level and advantages are separate outputs.
    """
    if duelling and outputs > 1:
        raise ValueError(f"outputs = {outputs}: must be 1 with duelling")
    options = (rounds, pooling, graph, neighbours, skip, outputs, duelling)
    module = _message_passing(widths, *options)
    return _network(module, _apply_message_passing)


def _first_state(width: int, lanes: Lanes, num_processors: int) -> Array:
    return jnp.zeros((*lanes, num_processors, width), jnp.float32)


def _init_recurrent(module: nn.Module, start: Callable, key: Key, x: Features) -> Any:
    *lanes, num_processors, _ = x.processor.shape
    return module.init(key, x, start(tuple(lanes), num_processors))


def _apply_recurrent(module: nn.Module, parameters: Any, memory: Array, x: Features) -> Any:
    return module.apply(parameters, x, memory)


def recurrent_gnn(
    widths: tuple[int, ...] = (32, 32), rounds: int = 1, pooling: Pooling = "mean", outputs: int = 1
) -> Recurrent:
    """Make a network that passes messages between nodes that remember, for `train_gnn`.

    The first layer goes through a GRU (Cho et al. 2014), whose state stays with the processor from task to
    task.

    Args:
      widths: as of `gnn`, in a full graph and with a skip.
      rounds: the same.
      pooling: the same.
      outputs: the same.
    """
    options = (rounds, pooling, "full", 1, True, outputs, False)
    module = _message_passing(widths, *options)
    start = partial(_first_state, widths[0])
    return Recurrent(partial(_init_recurrent, module, start), start, partial(_apply_recurrent, module))


def _message_passing(widths: Sequence[int], rounds: int, pooling: str, graph: str, *options: Any) -> Any:
    """Make the module, with its options checked; they come in the order of its fields."""
    for name, value, allowed in (("pooling", pooling, get_args(Pooling)), ("graph", graph, get_args(Graph))):
        checks.known(name, value, allowed)
    widths = _widths(widths)
    module = _MessagePassing(widths, rounds, pooling, graph, *options)
    checks.at_least("rounds", rounds, 0)
    checks.at_least("neighbours", module.neighbours, 1)
    checks.at_least("outputs", module.outputs, 1)
    if rounds > len(widths):
        raise ValueError(f"rounds = {rounds}: must be at most the number of layers, {len(widths)}")
    return module


NETWORKS: dict[str, Callable[..., Network | Recurrent]] = {
    "mlp": mlp,
    "per-processor": per_processor,
    "gnn": gnn,
    "recurrent-gnn": recurrent_gnn,
}
OPTIONS = sorted({name for make in NETWORKS.values() for name in inspect.signature(make).parameters})
"""The options of networks."""
_OWN: dict[str, Callable[[], Network | Recurrent]] = {}
"""Those that users have given names, which have no options."""


def add(name: str, factory: Callable[[], Network | Recurrent]) -> None:
    """Register a name with `network` for what `factory()` makes; see `jaxlb.register`."""
    checks.free("network", name, NETWORKS | _OWN, factory)
    _OWN[name] = functools.cache(functools.wraps(factory)(lambda: factory()))


def network(name: str, **options: Any) -> Network | Recurrent:
    """Make a network by its name and its options.

    Raises:
      ValueError: an unknown name or a bad option.
    """
    checks.known("network", name, NETWORKS | _OWN)
    if name in _OWN:
        if options:
            raise ValueError(f"network {name!r}: is one of your own, and has no option {next(iter(options))}")
        return _OWN[name]()
    for option in options:
        checks.known(f"option of network {name!r}", option, inspect.signature(NETWORKS[name]).parameters)
    widths = options.get("widths")
    if widths is not None:
        whole = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not whole or not all(isinstance(width, int) for width in widths):
            raise ValueError(f"widths = {widths!r}: must be a list of whole numbers")
        options["widths"] = tuple(widths)
    return NETWORKS[name](**options)


def check(network: Any) -> None:
    """Raise ValueError if this is no network, or one that cannot be a static part of a program."""
    functions = (getattr(network, name, None) for name in ("init", "apply"))
    if isinstance(network, type) or not all(map(callable, functions)):
        raise ValueError(
            f"network = {checks.shown(network)}: must have init and apply, as a Network or a Flax module has"
        )
    try:
        hash(network)
    except TypeError as error:
        raise ValueError(
            f"network = {checks.shown(network)}: must be hashable, with tuples in place of lists ({error})"
        ) from None


def described(network: Network | Recurrent) -> dict[str, Any] | None:
    """Describe a network by the name and options that `network` takes, as JSON; None if none makes it."""
    module = next(iter(getattr(network.init, "args", ())), None)
    name = _NAMES.get((type(module), type(network)))
    if name is None or NETWORKS[name](**_options(name, module)) != network:
        return next(({"network": name} for name, own in _OWN.items() if own() == network), None)
    return {"network": name, **{key: json_value(value) for key, value in _options(name, module).items()}}


def _options(name: str, module: Any) -> dict[str, Any]:
    return {option: getattr(module, option) for option in inspect.signature(NETWORKS[name]).parameters}


_NAMES = {
    (_Perceptron, Network): "mlp",
    (_PerProcessor, Network): "per-processor",
    (_MessagePassing, Network): "gnn",
    (_MessagePassing, Recurrent): "recurrent-gnn",
}


def check_processors(name: str | None, trained: Any, scenario: str, met: Any) -> None:
    """Raise ValueError if a network, by its name, cannot serve so many processors; warn if of other speeds.

    A perceptron knows processors by their places, and nothing of speeds there that it has not seen.

    Args:
      name: of the network; None: one's own.
      trained: speeds `[P]` that it was trained for, or `[P, N]`, any of these.
      scenario: how messages name where it is to serve.
      met: speeds `[P, ...]` there.
    """
    if name != "mlp":
        return
    free = f"networks that serve any are {', '.join(repr(other) for other in NETWORKS if other != 'mlp')}"
    trained, met = np.asarray(trained), np.asarray(met)
    if len(met) != len(trained):
        raise ValueError(f"trained for {len(trained)} processors, {scenario} has {len(met)}: {free}")
    trained, met = trained.reshape(len(trained), -1), met.reshape(len(met), -1)
    # In mean speeds, as networks read them.
    known, here = (trained / trained.mean(0))[:, None], (met / met.mean(0))[:, :, None]
    if not np.isclose(here, known, rtol=1e-3).all(0).any(-1).all():
        was, now = (", ".join(f"{speed:.4g}" for speed in speeds[:, 0]) for speeds in (trained, met))
        warnings.warn(
            f"network 'mlp' was trained for processors of speeds {was}, in this order, and {scenario} has "
            f"{now}: it may choose badly there; {free}",
            stacklevel=2,
        )
