"""A server described by what it was measured to do: its speed, how it batches, its slots."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from jaxlb import checks, departures
from jaxlb.stations import Table
from jaxlb.stations.capacity import batching
from jaxlb.stations.disciplines import shared_by_first
from jaxlb.types import Array, Task

COLUMNS = ("time", "input", "output", "latency")
"""Of a file: arrival, tokens of the request and of its answer, time until the last one."""
MOST = 2000
"""Requests that are fitted, the first ones."""
SLOTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers that are tried."""


@dataclass(frozen=True)
class Calibration:
    """A server that serves `slots` requests at a time; n of them get n / (1 + overhead (n - 1)) together.

    Attributes:
      speed: output tokens per time of a request that is alone.
      overhead: of every other request.
      prefill_weight: work of an input token, in output tokens.
      slots: requests that are served at a time, others wait.
      remarks: what the measurements do not tell.
      error: mean absolute log of predicted / measured latency: 0.05 is about 5 %.
      measured: `[T]` latencies.
      predicted: `[T]` latencies that such a server would have had.
    """

    speed: float
    overhead: float
    prefill_weight: float
    slots: int
    remarks: list[str]
    error: float
    measured: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)

    def settings(self) -> dict[str, Any]:
        """Return what `jaxlb.make` takes besides speeds and load."""
        return {
            "discipline": "limited-ps",
            "slots": self.slots,
            "capacity": f"batching({self.overhead:.4g})",
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, and what was not told, as JSON has them."""
        names = ("speed", "overhead", "prefill_weight", "slots", "error", "remarks")
        return {name: getattr(self, name) for name in names}

    def plot(self) -> Any:
        """Draw predicted against measured latencies, as a matplotlib Figure."""
        # It draws with a library that a simulation does not need.
        from jaxlb import charts

        title = f"{self.slots} slots, {self.speed:.4g} tokens per time alone, overhead {self.overhead:.3g}"
        return charts.against(
            self.measured, self.predicted, x_label="measured latency", y_label="predicted", title=title
        )


def read_measurements(path: str | Path) -> dict[str, np.ndarray]:
    """Read a CSV file with the columns `COLUMNS`, in order of arrival.

    Raises:
      ValueError: a column is missing, or a value is no number, negative or out of order.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}: must have {', '.join(COLUMNS)}")
    try:
        found = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def calibrate(
    time: Any,
    input: Any,  # the word for it, of a request
    output: Any,
    latency: Any,
    *,
    slots: Sequence[int] = SLOTS,
    on_progress: Callable[[str, float], None] | None = None,
) -> Calibration:
    """Fit a server to measurements of it, by least squares of log latencies.

    Args:
      time: `[T]` arrivals, in order.
      input: `[T]` tokens of each request.
      output: `[T]` tokens of each answer.
      latency: `[T]` time from arrival to the last token.
      slots: numbers that are tried.
      on_progress: called with what is tried and the share that is done.

    Raises:
      ValueError: fewer than 50 requests, a bad number, or measurements that cannot tell a parameter.
    """
    given = dict(zip(COLUMNS, (time, input, output, latency), strict=True))
    data = {name: np.asarray(values, np.float64)[:MOST] for name, values in given.items()}
    _check(data)
    end = data["time"] + data["latency"]
    peak = int(max(((data["time"] <= at) & (end > at)).sum() for at in data["time"]))
    if peak < 2:
        raise ValueError("overhead: cannot be told, since no two requests were ever served at once")
    varies = np.ptp(data["input"]) > 0
    if not varies or (np.ptp(data["output"]) and np.corrcoef(data["input"], data["output"])[0, 1] > 0.999):
        raise ValueError(
            "prefill_weight: cannot be told, since input tokens never vary, or only with output tokens"
        )
    tried = [number for number in sorted(slots) if number < peak] + [peak]
    alone = float(np.median(data["output"] / data["latency"]))
    best: tuple[float, int, np.ndarray, np.ndarray] | None = None
    for index, number in enumerate(tried):
        if on_progress is not None:
            on_progress(f"{number} slots", index / len(tried))
        loss, parameters, predicted = _fitted(number, peak, alone, data)
        if best is None or loss < best[0]:
            best = loss, number, parameters, predicted
    assert best is not None
    _, number, parameters, predicted = best
    speed, overhead, weight = np.exp(parameters)
    remarks = []
    if number == peak:
        remarks.append(f"slots: at least {peak}, as no more requests were there at once")
    if len(np.ravel(time)) > MOST:
        remarks.append(f"of {len(np.ravel(time)):,} requests, the first {MOST:,} were fitted")
    error = float(np.abs(np.log(predicted / data["latency"])).mean())
    return Calibration(
        float(speed), float(overhead), float(weight), number, remarks, error, data["latency"], predicted
    )


def _check(data: dict[str, np.ndarray]) -> None:
    if len({values.shape for values in data.values()}) > 1 or data["time"].ndim != 1:
        shapes = {name: values.shape for name, values in data.items()}
        raise ValueError(f"measurements have shapes {shapes}: must all be [T]")
    if len(data["time"]) < 50:
        raise ValueError(f"{len(data['time'])} requests: must be at least 50, or there is nothing to fit")
    for name, values in data.items():
        bounds: dict[str, Any] = {"above": 0} if name in ("output", "latency") else {"low": 0}
        checks.leaf(name, values, **({} if name == "time" else bounds))
    if (np.diff(data["time"]) < 0).any():
        raise ValueError("time: must be in order of arrival")


def _fitted(
    number: int, peak: int, alone: float, data: dict[str, np.ndarray]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the loss, the logs of speed, overhead and weight, and the latencies of so many slots."""
    gap = np.diff(data["time"], prepend=data["time"][0])
    given = [jnp.asarray(values, jnp.float32) for values in (gap, data["input"], data["output"])]
    latencies = jax.jit(partial(_latencies, number, 2 * peak + 16))

    def predicted(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(latencies(jnp.asarray(parameters, jnp.float32), *given), np.float64)

    def loss(parameters: np.ndarray) -> float:
        return float((np.log(predicted(parameters) / data["latency"]) ** 2).mean())

    start = np.log([2.0 * alone, 0.2, 0.05])
    simplex = start + np.vstack([np.zeros(3), np.diag([0.5, 1.0, 1.0])])
    options = {"maxfev": 250, "xatol": 1e-3, "fatol": 1e-7, "initial_simplex": simplex}
    found = optimize.minimize(loss, start, method="Nelder-Mead", options=options)
    return float(found.fun), found.x, predicted(found.x)


def _latencies(number: int, places: int, parameters: Array, gap: Array, input: Array, output: Array) -> Array:
    """Return the latencies `[T]` of a server; a request that finds no place among so many takes very long."""
    speed, overhead, weight = jnp.exp(parameters)
    # What it can do at most is for schedulers, and there is none.
    discipline = shared_by_first(number, partial(batching, overhead), most=np.inf)
    table, speed = Table(discipline, places), speed[None]
    state = table.init(1)
    settled = departures.none_yet(table.remaining(state, speed), gap.shape)

    def step(carry: tuple, task: tuple[Array, Array, Array]) -> tuple[tuple, None]:
        (state, settled), (index, gap, size) = carry, task
        state, gone = table.advance(state, speed, gap)
        settled = departures.settle(settled, gone)
        new = Task(gap, size, jnp.int32(0), jnp.float32(jnp.inf))
        return (table.assign(state, speed, new, index, jnp.int32(0))[0], settled), None

    tasks = jnp.arange(len(gap), dtype=jnp.int32), gap, output + weight * input
    (state, settled), _ = jax.lax.scan(step, (state, settled), tasks)
    settled = departures.settle(settled, table.remaining(state, speed))
    assert settled is not None
    known, outcome = settled
    return jnp.where(known, outcome.completion, 1e9)
