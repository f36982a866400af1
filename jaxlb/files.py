"""Files that are whole or not there: what is written replaces the old content at once."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


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
