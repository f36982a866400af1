"""jaxlb export: a scheduler as a file for a live system."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxlb import checks, runs
from jaxlb.cli.common import Where, Writes, note
from jaxlb.environments import Spec
from jaxlb.live import exporting, runtime
from jaxlb.live.exporting import Exported
from jaxlb.trained import is_run


@dataclass(frozen=True, kw_only=True)
class Export(Writes, Where):
    """Write a scheduler as a program for a live system."""

    scheduler: tyro.conf.Positional[str]
    """A name, such as universal or guarded-sita(big=2), or a run folder."""
    scenario: str = ""
    """What it runs in, a name from `jaxlb scenarios`, for rules that know their workload; if not given, the
    run's, or Poisson arrivals of exponential sizes."""
    processors: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = ""
    """Their speeds, work per time; if not given, the scenario's."""
    to: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "c,npz"
    """c: one header; npz: NumPy, with the module that reads it; stablehlo: for compilers."""
    out: Path
    """Folder for the files."""

    def run_folders(self) -> Sequence[Path]:
        """Return the run folders that the command reads."""
        return (Path(self.scheduler),) if is_run(self.scheduler) else ()

    def run(self) -> None:
        """Write the files."""
        kinds = checks.entries(self.to)
        for kind in kinds or [""]:
            checks.known("--to", kind, _WRITERS)
        env, params = self._spec().make()
        found = exporting.exported(self.scheduler, env, params)
        name = re.sub(r"\W", "_", Path(self.scheduler).name.partition("(")[0])
        name = name if name[:1].isalpha() else f"rule_{name}"
        texts = [_WRITERS[kind](found, name) for kind in kinds]
        self.out.mkdir(parents=True, exist_ok=True)
        for write in texts:
            for path in write(self.out):
                note(f"{path} written")

    def _spec(self) -> Spec:
        """Return what the environment is made from."""
        own = {}
        if self.processors:
            try:
                own["speed"] = [float(entry) for entry in checks.entries(self.processors)]
            except ValueError:
                raise ValueError(f"--processors {self.processors}: must be numbers, as in 1,1,2.5") from None
        if self.scenario:
            spec = self.spec()
        elif is_run(self.scheduler):
            trained = runs.find(Path(self.scheduler)).training.spec()
            spec = Spec(trained.scenario, trained.overrides | self.overrides(), trained.trace, True)
        elif own:
            spec = Spec(None, {"load": 0.7} | self.overrides())
        else:
            raise ValueError("--processors or --scenario: one must say which processors there are")
        return Spec(spec.scenario, spec.overrides | own, spec.trace, spec.allow_overload)


def _c(found: Exported, name: str) -> Callable[[Path], list[Path]]:
    text = exporting.as_header(found, name)

    def write(out: Path) -> list[Path]:
        path = out / f"{name}.h"
        path.write_text(text, encoding="utf-8")
        return [path]

    return write


def _npz(found: Exported, name: str) -> Callable[[Path], list[Path]]:
    source, arrays = exporting.as_python(found)

    def write(out: Path) -> list[Path]:
        path, module = out / f"{name}.npz", out / "jaxlb_live.py"
        about = np.array(json.dumps(found.about))
        np.savez(path, allow_pickle=False, about=about, source=np.array(source), **arrays)
        shutil.copyfile(runtime.__file__, module)
        return [path, module]

    return write


def _stablehlo(found: Exported, name: str) -> Callable[[Path], list[Path]]:
    text = exporting.as_stablehlo(found)

    def write(out: Path) -> list[Path]:
        path, about = out / f"{name}.mlir", out / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        memory = [leaf.tolist() for leaf in found.memory]
        about.write_text(json.dumps(found.about | {"memory": memory}) + "\n", encoding="utf-8")
        return [path, about]

    return write


_WRITERS = {"c": _c, "npz": _npz, "stablehlo": _stablehlo}
