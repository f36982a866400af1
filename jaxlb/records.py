"""The record of a run, `run.json`: what was to be done, by which versions, and what came of it.

Results, pictures and weights stand beside it.
"""

import datetime
import json
import platform
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlb import files
from jaxlb.version import __version__

RECORD = "run.json"


@dataclass
class Record:
    """A run's record; without a directory it is kept nowhere.

    Attributes:
      directory: the run folder.
      about: `id`, `command`, its `line`, `options`, `scenario`, `seed`, `started`, `finished`, `result`,
        `versions`, `commit`; and, of a training, `training`.
    """

    directory: Path | None
    about: dict[str, Any]

    def finish(self, result: str) -> None:
        """Record that all is written, and the best figure in a line."""
        self.about |= {"finished": _now(), "result": result}
        self.save()

    def save(self) -> None:
        """Write the record."""
        if self.directory is not None:
            files.write(self.directory / RECORD, json.dumps(self.about, indent=2, allow_nan=False) + "\n")


def begin(directory: Path, command: str, *, resumed: bool = False, **about: Any) -> Record:
    """Begin a record in a folder, in place of one of the same command; if resumed, go on with that one.

    Raises:
      ValueError: the folder holds another command's run.
    """
    known = read(directory)
    if known is not None and known["command"] != command:
        raise ValueError(f"{directory} holds a run of jaxlb {known['command']}: choose another folder")
    if known is None or not resumed:
        known = {"id": uuid.uuid4().hex, "command": command, **about, "started": _now()}
    known |= {"finished": None, "result": None, "versions": versions(), "commit": commit()}
    directory.mkdir(parents=True, exist_ok=True)
    record = Record(directory, known)
    record.save()
    return record


def read(directory: Path) -> dict[str, Any] | None:
    """Read the record of a run folder; return None if it has none.

    Raises:
      ValueError: that cannot be read.
    """
    path = directory / RECORD
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(about, dict) or not {"command", "started", "versions"} <= about.keys():
        raise ValueError(f"{path}: not one that jaxlb wrote, or of another version: choose another folder")
    return about


def versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    return {
        "jaxlb": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """Return the git commit here, with "-dirty" if files were changed since; None without one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
