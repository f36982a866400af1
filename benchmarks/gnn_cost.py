"""What inference costs by message passing, beside perceptrons and over numbers of processors and edges."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from claims import Claim, section
from gnn_training import ORIGINAL
from timing import alternate, timed

from jaxlb.learn import networks
from jaxlb.scheduling import regression
from jaxlb.scheduling.learned import Features


def median_seconds(programs: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, float]:
    """Return median seconds of alternating runs."""
    taken = alternate({name: timed(run) for name, run in programs.items()}, rounds)
    return {name: float(np.median(each)) for name, each in taken.items()}


def some_features(lanes: int, number: int) -> Features:
    """Make features of that many lanes and processors."""
    task_key, processor_key = jax.random.split(jax.random.key(0))
    return Features(
        task=jax.random.normal(task_key, (lanes, 5)),
        processor=jax.random.normal(processor_key, (lanes, number, len(regression.NAMES.processor))),
    )


def inference(network: Any, lanes: int, number: int) -> Callable[[], Any]:
    """Return a function that computes values for so many lanes."""
    x = some_features(lanes, number)
    parameters = network.init(jax.random.key(1), x)
    apply = jax.jit(network.apply)
    return lambda: apply(parameters, x)


def cost(seeds: int) -> str:
    """Time inference alone, in alternating runs."""
    del seeds
    # Without the skip, as the MLPs have none.
    nets = {
        "gnn": ORIGINAL,
        "the same MLP for each": networks.gnn(rounds=0, skip=False),
        "one MLP over all": networks.mlp((64, 32)),
    }
    at_64 = median_seconds({name: inference(net, 1024, 64) for name, net in nets.items()})
    lines = ["| P = 64, 1024 lanes | time / gnn's |", "|---|---|"]
    lines += [f"| {name} | {seconds / at_64['gnn']:.2f} |" for name, seconds in at_64.items()]
    numbers, nodes = (64, 128, 256, 512, 1024), 65536
    # As many nodes in all, so that caches are filled alike: linear cost is the same time.
    dense = median_seconds({str(n): inference(ORIGINAL, nodes // n, n) for n in numbers})
    neighbours = (4, 8, 16, 32)
    lines += ["", "| P, 65,536 nodes in all | time / that of P = 64 |", "|---|---|"]
    lines += [f"| {name} | {seconds / dense['64']:.2f} |" for name, seconds in dense.items()]
    claims = [
        Claim(
            "time / that of the same MLP for each, P = 64",
            [at_64["gnn"] / at_64["the same MLP for each"]],
            2.0,
        ),
        Claim("time / that of one MLP over all, P = 64", [at_64["gnn"] / at_64["one MLP over all"]], 2.0),
        Claim("time for each node, P = 1024 / P = 64, mean", [dense["1024"] / dense["64"]], 1.5),
    ]
    for graph in ("speed", "learned"):
        of_k = median_seconds(
            {
                str(k): inference(networks.gnn(graph=graph, neighbours=k, pooling="attention"), 16, 1024)
                for k in neighbours
            }
        )
        of_p = median_seconds(
            {
                str(n): inference(networks.gnn(graph=graph, neighbours=8, pooling="attention"), 16384 // n, n)
                for n in (64, 1024)
            }
        )
        lines += [
            "",
            f"| {graph} graph with attention, P = 1024, 16 lanes: K | time / that of K = 4 |",
            "|---|---|",
        ]
        lines += [f"| {k} | {seconds / of_k['4']:.2f} |" for k, seconds in of_k.items()]
        claims += [
            Claim(f"time for each edge, K = 32 / K = 4, {graph} graph", [of_k["32"] / of_k["4"] / 8], 1.5),
            Claim(
                f"time for each node, P = 1024 / P = 64, K = 8, {graph} graph",
                [of_p["1024"] / of_p["64"]],
                1.5,
            ),
        ]
    return section("cost", "\n".join(["Inference, medians of alternating runs.", "", *lines]), [], claims)
