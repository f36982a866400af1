"""Rows of text files, plain or gzipped: cells by the names of their columns, read as numbers or as times.

What does not fit is a ValueError that names file and line: nothing is skipped, and no cell read as another.
"""

import csv
import datetime
import functools
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:(Z)|([+-])([0-9]{2}):?([0-9]{2}))?"
)
TRUNCATED = " (file truncated?)"
"""A remark on a row that is too short."""

_EXAMPLE = "2023-11-16 18:17:03.98 or 2024-05-10T00:00:00Z"


class Lines:
    """The lines of a text file, in one pass; gzip is known by its first bytes, not by the file's name."""

    def __init__(self, path: Path, comment: str | None = None) -> None:
        """Set up a file's lines; those that begin with `comment` are skipped, whatever bytes they hold."""
        self.path, self.comment = path, comment
        self.number = 0  # of the last line
        self.row = 1  # the line on which the row begins that is being read
        self.head = ""  # the first line that is not blank

    def __iter__(self) -> Iterator[str]:
        """Yield the lines, with their ends."""
        try:
            with self.path.open("rb") as raw:
                zipped = raw.peek(2)[:2] == b"\x1f\x8b"
                plain = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if zipped else raw)
                # Bytes that are no UTF-8 come as lone surrogates, so that the line is known that has them.
                text = io.TextIOWrapper(plain, "utf-8-sig", "surrogateescape", newline="")
                for self.number, line in enumerate(text, start=1):
                    if self.comment is None or not line.lstrip().startswith(self.comment):
                        self._check(line)
                        self.head = self.head or line.strip()
                        yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path}: a damaged gzip file: {error}") from None
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _check(self, line: str) -> None:
        if "\0" in line:
            raise ValueError(f"{self.path}:{self.number}: holds a NUL byte: must be a text file")
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{self.path}:{self.number}: not UTF-8: must be a text file") from None

    def refuse(self, why: str) -> NoReturn:
        """Raise ValueError about the row that is being read."""
        raise ValueError(f"{self.path}:{self.row}: {why}")


Rows = Iterator[list[Any]]
"""The cells of the wanted columns: text, or what JSON has that is neither text nor a number."""


def csv_rows(lines: Lines, wanted: Sequence[str], columns: Sequence[str] | None) -> Rows:
    """Yield comma-separated values; the first row names the columns where `columns` does not."""
    rows = csv.reader(lines, strict=True)
    names, places = columns, None if columns is None else _places(lines, wanted, columns)
    while True:
        lines.row = lines.number + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            lines.refuse(f"no CSV: {error}")
        if cells is None:
            break
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        if names is None or places is None:
            names = [name.strip() for name in cells]
            places = _places(lines, wanted, names)
            continue
        if len(cells) != len(names):
            lines.refuse(_miscounted(len(cells), len(names)))
        yield [cells[place] for place in places]
    if names is None:
        lines.row = 1
        _places(lines, wanted, [])


def _places(lines: Lines, wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    for name in wanted:
        if name not in names:
            hint = " (no header? columns=[...] names them)" if any(map(_NUMBER.fullmatch, names)) else ""
            lines.refuse(f"no column {name!r}; the header has {', '.join(names)!r}{hint}")
        if list(names).count(name) > 1:
            lines.refuse(f"{list(names).count(name)} columns {name!r}: the header must name it once")
    return [list(names).index(name) for name in wanted]


def _miscounted(found: int, expected: int) -> str:
    return f"{found} columns where {expected} are expected" + TRUNCATED * (found < expected)


def field_rows(
    lines: Lines, wanted: Sequence[str], columns: Sequence[str] | None, separator: str | None
) -> Rows:
    """Yield fields between separators, None for blanks, under columns that the format names."""
    assert columns is not None
    places = _places(lines, wanted, columns)
    for line in lines:
        lines.row = lines.number
        if not line.strip():
            continue
        if not line.isascii():
            lines.refuse("holds characters that are no ASCII: must be numbers")
        cells = line.rstrip("\r\n").split(separator)
        if len(cells) != len(columns):
            lines.refuse(_miscounted(len(cells), len(columns)))
        yield [cells[place] for place in places]


def json_rows(lines: Lines, wanted: Sequence[str], columns: Sequence[str] | None) -> Rows:
    """Yield one JSON object of each line; numbers stay text, so that they are read like those of a table."""
    del columns
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=str)
    for line in lines:
        lines.row = lines.number
        if not line.strip():
            continue
        try:
            found = decoder.decode(line.strip())
        except (ValueError, RecursionError) as error:
            lines.refuse(f"no JSON: {getattr(error, 'msg', error)}")
        if not isinstance(found, dict):
            lines.refuse("must be a JSON object, one on each line")
        for name in wanted:
            if name not in found:
                lines.refuse(f"no {name!r}; the object has {', '.join(found)!r}")
        yield [found[name] for name in wanted]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a name twice in one object, among {', '.join(name for name, _ in pairs)!r}")
    return found


class Cells:
    """Cells of one file as numbers. Times of day count from the whole second of the first, in UTC.

    So no digit of a fraction is lost but what float64 cannot hold beside the seconds since then: 1e-10 s
    after a week. A file whose times have no zone is taken to be in UTC; one that has some with and some
    without is refused.
    """

    def __init__(self, refuse: Callable[[str], NoReturn]) -> None:
        """Begin to read; `refuse` raises a ValueError that says where."""
        self._refuse = refuse
        self._origin: int | None = None
        self._zoned: bool | None = None
        self.moments: dict[str, bool] = {}  # by column: whether its cells are times of day

    def read(self, name: str, cell: Any) -> float:
        """Read a cell of a column as a number, or as seconds since the first time of day."""
        if not isinstance(cell, str):
            self._refuse(f"{name} = {cell!r}: must be a number")
        text = cell.strip(" \t")
        moment = _NUMBER.fullmatch(text) is None
        value = self._moment(name, text) if moment else self._number(name, text)
        if self.moments.setdefault(name, moment) != moment:
            kinds = ("numbers", "times of day")
            self._refuse(f"{name} = {text!r}: must be like those before, which are {kinds[not moment]}")
        return value

    def _number(self, name: str, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            self._refuse(f"{name} = {text!r}: must be finite")
        if number == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            self._refuse(f"{name} = {text!r}: must be 0, or at least 5e-324")
        return number

    def _moment(self, name: str, text: str) -> float:
        parts = _MOMENT.fullmatch(text)
        if parts is None:
            if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
                self._refuse(f"{name} = {text!r}: must be finite")
            self._refuse(f"{name} = {text!r}: must be a number, or look like {_EXAMPLE}")
        year, month, day, hour, minute, second, fraction, utc, sign, *shift = parts.groups()
        whole = _seconds(year, month, day, hour, minute, second)
        if whole is None or (sign and (shift[0] > "23" or shift[1] > "59")):
            self._refuse(f"{name} = {text!r}: there is no such time")
        zoned = bool(utc or sign)
        if self._zoned is None:
            self._zoned = zoned
        if self._zoned != zoned:
            self._refuse(
                f"{name} = {text!r}: {'has a' if zoned else 'has no'} time zone, unlike those before: "
                "all must have one, or none"
            )
        if sign:
            east = 3600 * int(shift[0]) + 60 * int(shift[1])
            whole += east if sign == "-" else -east
        if self._origin is None:
            self._origin = whole
        return (whole - self._origin) + (float(f"0.{fraction}") if fraction else 0.0)


@functools.lru_cache(maxsize=1024)
def _days(year: str, month: str, day: str) -> int | None:
    try:
        return datetime.date(int(year), int(month), int(day)).toordinal()
    except ValueError:
        return None


def _seconds(year: str, month: str, day: str, hour: str, minute: str, second: str) -> int | None:
    days = _days(year, month, day)
    if days is None or hour > "23" or minute > "59" or second > "59":
        return None
    return 86400 * days + 3600 * int(hour) + 60 * int(minute) + int(second)
