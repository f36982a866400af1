"""Files that are whole or not there: what is written replaces the old content at once; and text for them."""

import contextlib
import csv
import io
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
