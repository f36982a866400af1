"""Reading recorded traces into the task stream. Host-side: plain Python and NumPy, nothing traced.

Files are read line by line into compact arrays (16 bytes a row), so size is no danger; what is dropped or
moved is counted in a warning; what cannot be understood is a ValueError that names file and line.
"""

import csv
import datetime
import math
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxlb import checks
from jaxlb.workload.arrivals import Trace
from jaxlb.workload.sizes import Empirical

MAX_ROWS = 50_000_000
"""Rows beyond which a trace is refused: about 2 GB of memory while it is read."""


@dataclass(frozen=True)
class TraceData:
    """A recorded task stream in its own units, in order of arrival."""

    name: str
    time: np.ndarray = field(repr=False)  # [T] float64, seconds
    size: np.ndarray = field(repr=False)  # [T] float64, work
    priority: np.ndarray | None = field(default=None, repr=False)  # [T] int32
    deadline: np.ndarray | None = field(default=None, repr=False)  # [T] float64, seconds

    @property
    def mean_gap(self) -> float:
        """Mean time between arrivals, seconds."""
        return float(self.time[-1] - self.time[0]) / (len(self.time) - 1)

    def workload(self, mean_size: float | None = None) -> tuple[Trace, Empirical]:
        """The arrival process and size law of this trace.

        Args:
          mean_size: rescale sizes to this mean, so that a scenario's deadlines and time constants keep
            their meaning; None keeps the trace's own unit. Recorded deadlines scale along.
        """
        scale = 1.0 if mean_size is None else mean_size / self.size.mean()
        size = (self.size * scale).astype(np.float32)
        gap = np.diff(self.time, prepend=self.time[0] - self.mean_gap) / self.mean_gap
        process = Trace(
            unit_gap=jnp.asarray(gap, jnp.float32),
            task_size=jnp.asarray(size),
            task_priority=None if self.priority is None else jnp.asarray(self.priority, jnp.int32),
            task_deadline=None if self.deadline is None else jnp.asarray(self.deadline * scale, jnp.float32),
        )
        return process, Empirical(jnp.asarray(np.sort(size)[::-1].copy()))


Row = tuple[float, ...]
"""Arrival time, size, then priority and deadline where the format has them."""


def _number(text: str, what: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{where}: {what} = {text!r}: must be a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{where}: {what} = {text!r}: must be finite")
    return number


def _columns(parts: list[str], count: int, where: str) -> list[str]:
    if len(parts) < count:
        raise ValueError(f"{where}: {len(parts)} columns where {count} are expected (file truncated?)")
    return parts


def _header(lines: Iterator[tuple[int, str]], wanted: list[str], path: Path) -> tuple[list[int], int]:
    number, line = next(lines, (1, ""))
    names = [name.strip() for name in next(csv.reader([line.lstrip("\ufeff")]), [])]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"{path}:{number}: no column {missing[0]!r}; the header has {', '.join(names)!r}")
    return [names.index(name) for name in wanted], len(names)


def _csv_rows(
    lines: Iterator[tuple[int, str]], wanted: list[str], path: Path
) -> Iterator[tuple[str, list[str]]]:
    indices, count = _header(lines, wanted, path)
    for number, line in lines:
        where = f"{path}:{number}"
        parts = _columns(next(csv.reader([line])), count, where)
        yield where, [parts[index] for index in indices]


def _timestamp(text: str, where: str) -> float:
    # Split off the fraction: the files give seven decimals, one more than datetime keeps.
    whole, _, fraction = text.partition(".")
    try:
        moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    except ValueError:
        raise ValueError(
            f"{where}: TIMESTAMP = {text!r}: must look like 2023-11-16 18:17:03.9799600"
        ) from None
    return moment.timestamp() + (_number(f"0.{fraction}", "TIMESTAMP fraction", where) if fraction else 0.0)


def _azure_llm(
    lines: Iterator[tuple[int, str]], path: Path, *, prefill_weight: float = 0.0, decode_weight: float = 1.0
) -> Iterator[Row]:
    """Azure LLM inference CSV; work = prefill_weight x ContextTokens + decode_weight x GeneratedTokens."""
    for where, (stamp, context, generated) in _csv_rows(
        lines, ["TIMESTAMP", "ContextTokens", "GeneratedTokens"], path
    ):
        work = prefill_weight * _number(context, "ContextTokens", where)
        work += decode_weight * _number(generated, "GeneratedTokens", where)
        yield _timestamp(stamp, where), work


def _swf(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[Row]:
    """Standard Workload Format 2.2; work = run time in seconds."""
    for number, line in lines:
        if not line.lstrip().startswith(";"):
            where = f"{path}:{number}"
            parts = _columns(line.split(), 18, where)
            yield _number(parts[1], "submit time", where), _number(parts[3], "run time", where)


def _swim(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[Row]:
    """SWIM TSV; work = bytes of map input, shuffle and output."""
    for number, line in lines:
        where = f"{path}:{number}"
        parts = _columns(line.rstrip("\n").split("\t"), 6, where)
        yield (
            _number(parts[1], "submit time", where),
            sum(_number(part, "bytes", where) for part in parts[3:6]),
        )


def _csv(
    lines: Iterator[tuple[int, str]],
    path: Path,
    *,
    time_column: str = "time",
    size_column: str = "size",
    priority_column: str | None = None,
    deadline_column: str | None = None,
) -> Iterator[Row]:
    """Any CSV with a header; the caller names the columns."""
    wanted = [time_column, size_column] + [name for name in (priority_column, deadline_column) if name]
    for where, texts in _csv_rows(lines, wanted, path):
        yield tuple(_number(text, name, where) for name, text in zip(wanted, texts, strict=True))


TRACE_FORMATS: dict[str, Callable[..., Iterator[Row]]] = {
    "azure-llm": _azure_llm,
    "swf": _swf,
    "swim": _swim,
    "csv": _csv,
}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise ValueError(f"{path}:{number}: holds a NUL byte: must be a text file")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}): must be a text file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def read_trace(path: str | Path, format: str, **options: object) -> TraceData:
    """Read a trace file.

    Out-of-order tasks are sorted by time, tasks of size zero or less dropped, each with a warning that
    counts them. Several tasks in one instant are fine.

    Args:
      path: the file.
      format: one of `TRACE_FORMATS`: "azure-llm", "swf", "swim", "csv".
      options: for "azure-llm" `prefill_weight` (0) and `decode_weight` (1), work per token; for "csv"
        `time_column` ("time"), `size_column` ("size"), `priority_column`, `deadline_column`.

    Raises:
      ValueError: unknown format or option, a file that is missing, unreadable, empty or binary, a row with
        missing columns, NaN or no number, more than `MAX_ROWS` rows, or fewer than two usable tasks.
    """
    path = Path(path)
    checks.known("trace format", format, TRACE_FORMATS)
    reader = TRACE_FORMATS[format]
    for name in options:
        checks.known(f"option of trace format {format!r}", name, reader.__kwdefaults__ or {})

    columns: list[array] = []
    for count, row in enumerate(reader(_lines(path), path, **options), start=1):
        if count > MAX_ROWS:
            raise ValueError(f"{path}: more than {MAX_ROWS:,} rows: split the trace")
        if not columns:
            columns = [array("d") for _ in row]
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    if not columns:
        raise ValueError(f"{path}: holds no tasks")
    table = np.stack([np.frombuffer(column) for column in columns])
    return _clean(path, table, has_priority=options.get("priority_column") is not None)


def _clean(path: Path, table: np.ndarray, has_priority: bool) -> TraceData:
    """Drop, sort and check the rows of `table` `[columns, T]`."""
    positive = table[1] > 0
    if not positive.all():
        warnings.warn(f"{path}: dropped {(~positive).sum():,} tasks of size zero or less", stacklevel=3)
        table = table[:, positive]
    negative = int((table[0] < 0).sum())
    disordered = int((np.diff(table[0]) < 0).sum())
    if negative or disordered:
        warnings.warn(
            f"{path}: sorted: {disordered:,} tasks were out of order, {negative:,} had negative times",
            stacklevel=3,
        )
        table = table[:, np.argsort(table[0], kind="stable")]
    time, size, rest = table[0], table[1], list(table[2:])
    if len(time) < 2 or time[-1] == time[0]:
        raise ValueError(f"{path}: {len(time)} usable tasks: at least two at different times are needed")
    priority = rest.pop(0) if has_priority else None
    if priority is not None and np.any((priority < 0) | (priority != np.floor(priority))):
        raise ValueError(f"{path}: priorities must be whole numbers from 0")
    deadline = rest.pop(0) if rest else None
    if deadline is not None and np.any(deadline < 0):
        raise ValueError(f"{path}: deadlines must be at least 0")
    return TraceData(path.name, time, size, None if priority is None else priority.astype(np.int32), deadline)
