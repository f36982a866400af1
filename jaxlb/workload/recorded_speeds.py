"""Recorded speeds: a file that says from when on each processor has which speed."""

from pathlib import Path

import numpy as np

from jaxlb import checks
from jaxlb.workload.speeds import Ring
from jaxlb.workload.tables import Cells, Lines, csv_rows

COLUMNS = ("time", "processor", "speed")


def read_speeds(path: str | Path, until: float) -> tuple[np.ndarray, Ring]:
    """Read recorded speeds, which repeat themselves after the end.

    The file is CSV with the columns time, processor and speed, others being ignored. Times ascend, from the
    first on, at which every processor has a row; a speed holds until the next row of its processor. Speeds
    are work per time, 0 while a processor is down; processors are 0, 1, ....

    Args:
      path: of the file, plain or gzipped.
      until: time at which the record ends, on its clock, in the unit in which tasks have theirs.

    Returns:
      The largest speed of each processor `[P]`, and the process: `make(..., speed=..., speeds=...)`.

    Raises:
      ValueError: a file that cannot be read, or a row that does not fit, by file and line; no end.
    """
    lines = Lines(Path(path))
    cells, times, rows = Cells(lines.refuse), [], []
    for row in csv_rows(lines, COLUMNS, None):
        time, processor, speed = (cells.read(name, cell) for name, cell in zip(COLUMNS, row, strict=True))
        if processor != int(processor) or not 0 <= processor < checks.MAX_COUNT:
            lines.refuse(f"processor = {processor:g}: must be 0, 1, ...")
        if speed < 0:
            lines.refuse(f"speed = {speed:g}: must be at least 0")
        if times and time < times[-1]:
            lines.refuse(f"time = {time:g}: must not be before {times[-1]:g}, the one above")
        if not times or time > times[-1]:
            times.append(time)
            rows.append(dict(rows[-1]) if rows else {})
        rows[-1][int(processor)] = speed
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    names = sorted(rows[-1])
    if names != list(range(len(names))):
        missing = min(set(range(max(names))) - set(names))
        raise ValueError(f"{path}: holds no row of processor {missing}, but some of {max(names)}")
    absent = [name for name in names if name not in rows[0]]
    if absent:
        raise ValueError(f"{path}: holds no speed of processor {absent[0]} at {times[0]:g}, where it begins")
    if not until > times[-1]:
        raise ValueError(f"until = {until:g}: must be after {times[-1]:g}, the last time of {path}")
    table = np.array([[row[name] for name in names] for row in rows])
    most = table.max(0)
    if not most.all():
        raise ValueError(f"{path}: processor {int(most.argmin())} has no speed above 0")
    return most, Ring(table / most, np.diff([*times, until]), varies=False, together=True)
