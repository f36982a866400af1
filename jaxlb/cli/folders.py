"""Run folders of all commands that write: what was asked for, by which versions, and what came of it.

    config.yaml   the options of the command, for --config
    about.json    command, scenario, seed, versions, git commit, when it began and ended, its result in a line

Results, pictures and checkpoints stand beside them.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import json
import platform
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from jaxlb import runs
from jaxlb.cli.common import note
from jaxlb.version import __version__

CONFIG, ABOUT = "config.yaml", "about.json"

_NOT_SETTINGS = {"config", "out", "json", "resume", "overwrite"}
"""Options that say where to, and how it is shown, not what is done."""


@dataclass
class Folder:
    """A run folder that a command works in; without a directory, none."""

    directory: Path | None
    about: dict[str, Any]

    def finish(self, result: str) -> None:
        """Note that all is written, and the best figure in a line."""
        self.about |= {"finished": _now(), "result": result}
        self.save()
        if self.directory is not None:
            written = (path.name for path in sorted(self.directory.iterdir()) if path.is_file())
            note(f"wrote {', '.join(written)} to {self.directory}")

    def save(self) -> None:
        """Write what it is about."""
        if self.directory is not None:
            runs.write(self.directory / ABOUT, json.dumps(self.about, indent=2) + "\n")


@contextlib.contextmanager
def begin(
    command: Any, directory: Path | None, scenario: str | None = None, resumed: bool = False
) -> Iterator[Folder]:
    """A run folder for a command, tried before any work is done; None for its directory: nothing is written.

    Args:
      command: an instance of its dataclass.
      directory: the folder; what it holds of the same command is written over.
      scenario: that it is about.
      resumed: whether the run in the folder goes on as it was configured.

    Raises:
      ValueError: it cannot be written, holds another command's run, or there is nothing to draw with.
    """
    if directory is None:
        yield Folder(None, {})
        return
    name = type(command).__name__.lower()
    writable(directory)
    about = read(directory)
    if about is not None and about["command"] != name:
        raise ValueError(f"{directory} holds a run of jaxlb {about['command']}: choose another folder")
    if about is None or not resumed:
        runs.write(directory / CONFIG, _config(name, command))
        about = {
            "id": uuid.uuid4().hex,
            "command": name,
            "scenario": scenario,
            "seed": getattr(command, "seed", None),
            "started": _now(),
        }
    about |= {"finished": None, "result": None, "versions": versions(), "commit": commit()}
    folder = Folder(directory, about)
    folder.save()
    try:
        yield folder
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        again = f"jaxlb {name} --config {directory / CONFIG} --out {directory}"
        raise KeyboardInterrupt(f"stopped before there were results; {again} begins again") from None


def writable(directory: Path) -> None:
    """Create a folder, try it, and look for the plotting library, before any work is done."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--out draws pictures with matplotlib: pip install 'jaxlb[plot]'")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".jaxlb-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {directory}: cannot be written: {error.strerror}") from None


def _config(name: str, command: Any) -> str:
    """A command's options as YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(entry) for entry in value]
        # Wherever the file is used, the same trace is meant.
        return str(value.absolute()) if isinstance(value, Path) else value

    settings = {
        field.name: plain(getattr(command, field.name))
        for field in dataclasses.fields(command)
        if field.name not in _NOT_SETTINGS
    }
    return yaml.safe_dump({"command": name} | settings, sort_keys=False)


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The command that a `config.yaml` is of, and its options.

    Raises:
      ValueError: it is none.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: cannot be read: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("command"), str):
        raise ValueError(f"--config {path}: must name a command and its options, such as 'command: compare'")
    return settings.pop("command"), settings


def read(directory: Path) -> dict[str, Any] | None:
    """What a run folder is about; None if it is none.

    Raises:
      ValueError: that cannot be read.
    """
    path = directory / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(about, dict) or not {"command", "started", "versions"} <= about.keys():
        raise ValueError(f"{path}: not one that jaxlb wrote")
    return about


def versions() -> dict[str, str]:
    """Of what results depend on."""
    return {
        "jaxlb": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The git commit of the working directory, "-dirty" if files were changed since; None without one."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
