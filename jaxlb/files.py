"""Files that are whole or not there: what is written replaces the old content at once; and text for them."""

import contextlib
import csv
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def unfinished(path: Path) -> Path:
    """Return where a file is written before it takes its place; a kill may leave it there."""
    return path.with_name(f".{path.name}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` then; killed on the way, the old stays."""
    new = unfinished(path)
    yield new
    new.replace(path)


def write(path: Path, text: str) -> None:
    """Replace a file's content."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows of the same columns as CSV, after a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Kept:
    """Results of a long computation, kept in a file as they come, so that a stopped one can go on.

    The file has a line of JSON that says whose results they are, then a line for each. A line that was
    being written when the computation was stopped is forgotten.

    Attributes:
      found: the results that the file had when it was opened, the oldest first.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]):
        """Open a file, which is begun if there is none; None keeps nothing.

        Raises:
          ValueError: it holds results of something else.
        """
        self.path, self.found = path, []
        self._lock = threading.Lock()
        if path is None:
            return
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        header, *lines = text.splitlines(keepends=True) or [""]
        if not header.endswith("\n"):  # nothing was kept yet
            write(path, json.dumps(about) + "\n")
            return
        try:
            same = json.loads(header) == json.loads(json.dumps(about))
        except ValueError:
            same = False
        if not same:
            raise self.other()
        whole = [line for line in lines if line.endswith("\n")]
        self.found = [json.loads(line) for line in whole]
        if len(whole) < len(lines):
            write(path, "".join([header, *whole]))

    def other(self) -> ValueError:
        """Return the error for a file with results of something else."""
        return ValueError(f"{self.path}: holds results of other settings; take another file, or delete it")

    def add(self, result: Mapping[str, Any]) -> None:
        """Keep a result; threads may do so at once."""
        if self.path is not None:
            with self._lock, self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
