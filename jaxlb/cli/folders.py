"""Run folders of the commands that write: one for each, tried before any work is done."""

import contextlib
import dataclasses
import importlib.util
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlb import checks, records
from jaxlb.cli.common import command_line, note
from jaxlb.records import RECORD, Record
from jaxlb.trained import is_run

_NOT_SETTINGS = {"config", "out", "json", "resume", "overwrite"}
"""Options that say where to, and how it is shown, not what is done."""


@contextlib.contextmanager
def begin(
    command: Any,
    directory: Path | None,
    scenario: str | None = None,
    resumed: bool = False,
    kept: Path | None = None,
    **about: Any,
) -> Iterator[Record]:
    """Keep the record of a command in its run folder; without a folder (None) nothing is written.

    Args:
      command: an instance of its dataclass.
      directory: the folder; what it holds of the same command is written over.
      scenario: that it is about.
      resumed: whether the run in the folder goes on as it was configured.
      kept: file in the folder with what is finished, with which the same command goes on. Where it is refused
        as another's, the record stays that of its own.
      about: more for the record.

    Raises:
      ValueError: it cannot be written, holds another command's run, or there is nothing to draw with.
    """
    if directory is None:
        yield Record(None, {})
        return
    name = type(command).__name__.lower()
    writable(directory)
    about |= {
        "line": command_line(command),
        "options": _options(command),
        "scenario": scenario,
        "seed": getattr(command, "seed", None),
    }
    file = directory / RECORD
    before = file.read_text(encoding="utf-8") if file.exists() else None
    record = records.begin(directory, name, resumed=resumed, **about)
    try:
        yield record
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        again = shlex.join(["jaxlb", name, "--config", str(file), "--out", str(directory)])
        if kept:
            raise KeyboardInterrupt(f"stopped; {again} goes on") from None
        raise KeyboardInterrupt(f"stopped before there were results; {again} begins again") from None
    except ValueError:
        # What was refused has left no run; the record of another stays as it was, if that is all or its own.
        alone = [path.name for path in directory.iterdir()] == [RECORD]
        if before is not None and (kept or alone):
            file.write_text(before, encoding="utf-8")
        elif before is None and alone:
            file.unlink()
        raise
    written = (path.name for path in sorted(directory.iterdir()) if path.is_file() and path.name[0] != ".")
    note(f"wrote {', '.join(written)} to {directory}")


def writable(directory: Path) -> None:
    """Create a folder, try it, and check that there is a plotting library, before any work is done."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--out draws pictures with matplotlib: pip install 'jaxlb[plot]'")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".jaxlb-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {directory}: cannot be written: {error.strerror}") from None


def _options(command: Any) -> dict[str, Any]:
    """Return a command's options as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(entry) for entry in value]
        # Wherever the file is used, the same trace is meant.
        return str(value.absolute()) if isinstance(value, Path) else value

    fields = (field.name for field in dataclasses.fields(command))
    options = {name: plain(getattr(command, name)) for name in fields if name not in _NOT_SETTINGS}
    if "import_" in options:  # so are files that are imported
        files = options["import_"]
        options["import_"] = [str(Path(one).absolute()) if one.endswith(".py") else one for one in files]
    if "schedulers" in options:  # and run folders among names
        named = checks.entries(options["schedulers"])
        options["schedulers"] = ",".join(str(Path(one).absolute()) if is_run(one) else one for one in named)
    return options


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Read which command a run's record is of, and its options.

    Raises:
      ValueError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path}: cannot be read: {error}") from None
    command, options = (
        found.get(name) if isinstance(found, dict) else None for name in ("command", "options")
    )
    if not isinstance(command, str) or not isinstance(options, dict):
        raise ValueError(
            f"--config {path}: must name a command and its options, "
            'as {"command": "compare", "options": {"lanes": 64}} does'
        )
    return command, options
