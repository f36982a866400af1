"""Reading recorded traces into the task stream. Host-side: plain Python and NumPy, nothing traced.

Files are read row by row into compact arrays (8 bytes a number), so size is no danger; what is dropped or
moved is counted in a warning; what cannot be understood is a ValueError that names file and line.
"""

import functools
import itertools
import math
import re
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlb import checks
from jaxlb.workload.arrivals import Trace
from jaxlb.workload.sizes import Empirical
from jaxlb.workload.tables import TRUNCATED, Cells, Lines, Rows, csv_rows, field_rows, json_rows

MAX_ROWS = 50_000_000
"""Rows beyond which a trace is refused: about 2 GB of memory while it is read."""

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Units of time, by how many make a second."""


@dataclass(frozen=True)
class TraceData:
    """A recorded task stream in its own units, in order of arrival.

    Attributes:
      name: of the file.
      time: `[T]` float64, seconds.
      size: `[T]` float64, work.
      priority: `[T]` int32.
      deadline: `[T]` float64, a size at speed 1.
      prefill: `[T]` float64, work until the first token.
    """

    name: str
    time: np.ndarray = field(repr=False)
    size: np.ndarray = field(repr=False)
    priority: np.ndarray | None = field(default=None, repr=False)
    deadline: np.ndarray | None = field(default=None, repr=False)
    prefill: np.ndarray | None = field(default=None, repr=False)

    @property
    def mean_gap(self) -> float:
        """Mean time between arrivals, seconds."""
        return float(self.time[-1] - self.time[0]) / (len(self.time) - 1)

    def workload(self, mean_size: float | None = None) -> tuple[Trace, Empirical]:
        """Make the arrival process and size law of this trace.

        Args:
          mean_size: rescale sizes to this mean, so that a scenario's deadlines and time constants keep
            their meaning; None keeps the trace's own unit. Recorded deadlines scale along.

        Raises:
          ValueError: a gap, size or deadline that float32 would make infinite or zero.
        """
        scale = 1.0 if mean_size is None else mean_size / self.size.mean()
        size = self.size * scale
        gap = np.diff(self.time, prepend=self.time[0] - self.mean_gap) / self.mean_gap
        deadline = None if self.deadline is None else self.deadline * scale
        checks.leaf(f"{self.name}: size, at a mean of {size.mean():.3g},", size, above=0)
        checks.leaf(f"{self.name}: gap, in mean gaps,", gap, low=0)
        if deadline is not None:
            checks.leaf(f"{self.name}: deadline, scaled like the sizes,", deadline, low=0)
        prefill = None if self.prefill is None else self.prefill * scale
        size = size.astype(np.float32)
        process = Trace(
            unit_gap=jnp.asarray(gap, jnp.float32),
            task_size=jnp.asarray(size),
            task_priority=None if self.priority is None else jnp.asarray(self.priority, jnp.int32),
            task_deadline=None if deadline is None else jnp.asarray(deadline, jnp.float32),
            task_prefill=None if prefill is None else jnp.asarray(prefill, jnp.float32),
        )
        return process, Empirical(jnp.asarray(np.sort(size)[::-1].copy()))


class Format(NamedTuple):
    """How files of a format are cut into rows, and what stands where.

    Attributes:
      rows: (lines, wanted columns, names of all columns or None) -> rows.
      options: those of `read_trace` beside the common ones, with their defaults.
      columns: their names, where the format has them and not the file.
      comment: how lines begin that are none of its rows.
    """

    rows: Callable[..., Rows]
    options: Mapping[str, Any]
    columns: tuple[str, ...] | None = None
    comment: str | None = None


_COMMON = {
    **dict.fromkeys(("priority_column", "deadline_column", "prefill_column", "start", "stop")),
    "time_unit": "s",
}

_SWF = """job number, submit time, wait time, run time, allocated processors, average CPU time, used memory,
    requested processors, requested time, requested memory, status, user, group, executable, queue, partition,
    preceding job, think time"""

TRACE_FORMATS: dict[str, Format] = {
    # Azure LLM inference.
    "azure-llm": Format(csv_rows, {"time_column": "TIMESTAMP", "prefill_weight": 0.0, "decode_weight": 1.0}),
    # Standard Workload Format 2.2.
    "swf": Format(
        functools.partial(field_rows, separator=None),
        {"time_column": "submit time", "size_column": "run time"},
        tuple(re.split(r",\s+", _SWF)),
        comment=";",
    ),
    "swim": Format(
        functools.partial(field_rows, separator="\t"),
        {"time_column": "submit time", "size_column": {"map input": 1, "shuffle": 1, "output": 1}},
        ("job", "submit time", "gap", "map input", "shuffle", "output"),
    ),
    "csv": Format(csv_rows, {"time_column": "time", "size_column": "size", "columns": None}),
    "jsonl": Format(json_rows, {"time_column": "time", "size_column": "size"}),
}
"""Each is the one table reader with columns of its own."""


def _likely_format(head: str) -> str | None:
    """Return the format that a file's first line suggests."""
    if head.startswith("{"):
        return "jsonl"
    if head.startswith(";") or len(head.split()) == 18:
        return "swf"
    if len(head.split("\t")) == 6:
        return "swim"
    if "," in head:
        return "azure-llm" if "ContextTokens" in head else "csv"
    return None


def _weights(option: str, value: Any) -> dict[str, float]:
    """Return the columns whose weighted sum is meant: one by its name, or several with their weights."""
    weights = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(weights, Mapping) or not weights or not all(map(_is_name, weights)):
        raise ValueError(
            f"{option} = {value!r}: must be the name of a column, or weights by column, "
            'such as {"end": 1, "start": -1}'
        )
    for name, weight in weights.items():
        checks.leaf(f"{option}: weight of {name!r}", weight)
        if np.ndim(weight):
            raise ValueError(f"{option}: weight of {name!r} = {weight!r}: must be one number")
    if not any(weights.values()):
        raise ValueError(f"{option} = {value!r}: one of the weights must not be 0")
    return {name: float(weight) for name, weight in weights.items()}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


class Selection(NamedTuple):
    """What is wanted of each row, checked; sums are columns with their weights."""

    time: str
    size: dict[str, float]
    priority: dict[str, float] | None
    deadline: dict[str, float] | None
    prefill: dict[str, float] | None
    unit: float
    window: dict[str, str]  # "start" and "stop", where they were given
    columns: tuple[str, ...] | None

    @property
    def wanted(self) -> list[str]:
        """All columns, each once."""
        return list(dict.fromkeys(itertools.chain(*self.sums)))

    @property
    def sums(self) -> list[dict[str, float]]:
        """Those that make a row of the table."""
        parts = ({self.time: 1.0}, self.size, self.priority, self.deadline, self.prefill)
        return [part for part in parts if part is not None]


def _selection(format: str, given: Mapping[str, Any]) -> Selection:
    own = TRACE_FORMATS[format]
    for name in given:
        checks.known(f"option of trace format {format!r}", name, (*own.options, *_COMMON))
    options = {**_COMMON, **own.options, **given}
    for name in ("time_column", "priority_column"):
        if not _is_name(options[name]) and (name == "time_column" or options[name] is not None):
            raise ValueError(f"{name} = {options[name]!r}: must be the name of a column")
    checks.known("time_unit", options["time_unit"], UNITS)
    if "prefill_weight" in options:
        tokens = {"ContextTokens": "prefill_weight", "GeneratedTokens": "decode_weight"}
        for name in tokens.values():
            checks.leaf(name, options[name], low=0)
        if not any(options[name] for name in tokens.values()):
            raise ValueError("prefill_weight = 0, decode_weight = 0: one must be above 0")
        options["size_column"] = {column: options[name] for column, name in tokens.items()}
        if options["prefill_weight"]:
            options["prefill_column"] = {"ContextTokens": options["prefill_weight"]}
    columns = options.get("columns")
    if columns is not None and not (isinstance(columns, (list, tuple)) and all(map(_is_name, columns))):
        raise ValueError(f"columns = {columns!r}: must be a list of names, one for each column of the file")
    window = {name: options[name] for name in ("start", "stop") if options[name] is not None}
    for name, value in window.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{name} = {value!r}: must be a time, as the time column has them")
    priority, deadline, prefill = (options[f"{name}_column"] for name in ("priority", "deadline", "prefill"))
    return Selection(
        time=options["time_column"],
        size=_weights("size_column", options["size_column"]),
        priority=None if priority is None else {priority: 1.0},
        deadline=None if deadline is None else _weights("deadline_column", deadline),
        prefill=None if prefill is None else _weights("prefill_column", prefill),
        unit=UNITS[options["time_unit"]],
        window={name: str(value) for name, value in window.items()},
        columns=own.columns if columns is None else tuple(columns),
    )


def read_trace(path: str | Path, format: str, **options: object) -> TraceData:
    """Read a trace file, plain or gzipped.

    Out-of-order tasks are sorted by time, tasks of size zero or less dropped, each with a warning that
    counts them. Several tasks in one instant are fine.

    Times are numbers, or look like 2023-11-16 18:17:03.98 or 2024-05-10T00:00:00+02:00; without a zone they
    are in UTC. The latter count from the whole second of the first row, so that no decimal is lost.

    Args:
      path: the file.
      format: one of `TRACE_FORMATS`: "azure-llm", "swf", "swim", "csv", "jsonl".
      options: of every format
        `time_column`, the column of arrival times, and `time_unit` ("s"; "ms", "us", "ns") if they are
        numbers;
        `size_column`, that of the work, or a dict of columns and their weights in a sum, such as
        `{"end": 1, "start": -1}`; for "azure-llm" instead `prefill_weight` (0) and `decode_weight` (1),
        work per token;
        `priority_column`; `deadline_column`, time allowed from arrival, in the time unit, or a dict as above;
        `prefill_column`, the part of the size until the first token, or a dict; for "azure-llm" it is that of
        `prefill_weight`;
        `start` and `stop`: only tasks that arrive from `start` on and before `stop`, written like the times
        of the file.
        For "csv" `columns`: the names of all columns, where the file has no header.

    Raises:
      ValueError: unknown format or option, a file that is missing, unreadable, empty or binary, a row with
        missing or surplus columns, NaN or no number, times of several kinds, more than `MAX_ROWS` rows, or
        fewer than two usable tasks.
    """
    try:
        path = Path(path)
    except TypeError:
        raise ValueError(f"path = {path!r}: must be a path") from None
    checks.known("trace format", format, TRACE_FORMATS)
    selection = _selection(format, options)
    lines = Lines(path, TRACE_FORMATS[format].comment)
    cells = Cells(lines.refuse)
    columns: list[array] = [array("d") for _ in selection.sums]
    try:
        for count, row in enumerate(_rows(lines, cells, format, selection), start=1):
            if count > MAX_ROWS:
                raise ValueError(f"{path}: more than {MAX_ROWS:,} rows: split the trace")
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    except ValueError as error:
        likely = _likely_format(lines.head)
        # It is the first row, or its header, that shows a file of another format.
        if columns[0] or not lines.head or likely == format:
            raise
        text, known = str(error).removesuffix(TRUNCATED), ", ".join(sorted(TRACE_FORMATS))
        guess = f"it looks like {likely!r}, not" if likely else "it does not look like"
        raise ValueError(f"{text}; {guess} {format!r} (formats: {known})") from None
    if not columns[0]:
        raise ValueError(f"{path}: holds no tasks" + " between start and stop" * bool(selection.window))
    table = np.stack([np.frombuffer(column) for column in columns])
    return _clean(path, table, selection, clock=cells.moments[selection.time])


def _rows(lines: Lines, cells: Cells, format: str, selection: Selection) -> Iterator[list[float]]:
    """Yield arrival time in seconds, size, then priority, deadline and prefill where they are wanted."""
    wanted, sums = selection.wanted, selection.sums
    units: list[float] = []
    low, high = -math.inf, math.inf
    for texts in TRACE_FORMATS[format].rows(lines, wanted, selection.columns):
        values = {name: cells.read(name, text) for name, text in zip(wanted, texts, strict=True)}
        if not units:
            # The first row shows which columns are times of day.
            units = _units(lines, cells, selection)
            low, high = _window(lines, cells, selection, units[0])
        row = [
            sum(weight * values[name] for name, weight in weights.items()) / unit
            for weights, unit in zip(sums, units, strict=True)
        ]
        if low <= row[0] < high:
            yield row


def _units(lines: Lines, cells: Cells, selection: Selection) -> list[float]:
    """Return what each sum is divided by; refuse what makes no sense."""
    units = []
    for place, weights in enumerate(selection.sums):
        moments = {cells.moments[name] for name, weight in weights.items() if weight}
        listed = " and ".join(map(repr, weights))
        if len(moments) > 1:
            lines.refuse(f"{listed}: some are numbers, some times of day")
        moment = moments.pop()
        if moment and place and sum(weights.values()) != 0:
            lines.refuse(f"{listed}: a time of day: subtract another, by weights 1 and -1")
        # Deadlines are in the unit of the sizes, with which they are scaled.
        units.append(selection.unit if place == 0 and not moment else 1.0)
    return units


def _window(lines: Lines, cells: Cells, selection: Selection, unit: float) -> tuple[float, float]:
    """Return the seconds between which tasks are wanted."""
    bounds = {"start": -math.inf, "stop": math.inf}
    for name, text in selection.window.items():
        bounds[name] = cells.read(f"option {name}", text) / unit
        if cells.moments[f"option {name}"] != cells.moments[selection.time]:
            lines.refuse(f"{name} = {text!r}: must be a time as column {selection.time!r} has them")
    if bounds["start"] >= bounds["stop"]:
        start, stop = selection.window["start"], selection.window["stop"]
        raise ValueError(f"stop = {stop!r}: must be later than start, {start!r}")
    return bounds["start"], bounds["stop"]


def _clean(path: Path, table: np.ndarray, selection: Selection, clock: bool) -> TraceData:
    """Drop, sort and check the rows of `table` `[columns, T]`; `clock`: times are times of day."""
    positive = table[1] > 0
    if not positive.all():
        warnings.warn(f"{path}: dropped {(~positive).sum():,} tasks of size zero or less", stacklevel=3)
        table = table[:, positive]
    negative = 0 if clock else int((table[0] < 0).sum())
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
    priority = None if selection.priority is None else rest.pop(0)
    if priority is not None and not np.all((priority >= 0) & (priority < 2**31) & (priority % 1 == 0)):
        raise ValueError(f"{path}: priorities must be whole numbers from 0, below 2^31")
    deadline = None if selection.deadline is None else rest.pop(0)
    if deadline is not None and np.any(deadline < 0):
        raise ValueError(f"{path}: deadlines must be at least 0")
    prefill = None if selection.prefill is None else rest.pop(0)
    if prefill is not None and np.any((prefill < 0) | (prefill > size)):
        raise ValueError(f"{path}: prefill must be at least 0, and at most the size")
    for name, values in (("time", time), ("size", size), ("deadline", deadline), ("prefill", prefill)):
        if values is not None:
            checks.leaf(f"{path}: {name}", values)
    priority = None if priority is None else priority.astype(np.int32)
    return TraceData(path.name, time, size, priority, deadline, prefill)
