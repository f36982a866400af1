"""Schedulers that options name: rules, and what run folders hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxlb import checks, runs
from jaxlb.cli.common import Imports, note
from jaxlb.env import Env
from jaxlb.scheduling import scheduler
from jaxlb.trained import is_run
from jaxlb.types import EnvParams, Scheduler

Names = Annotated[str, tyro.conf.arg(metavar="A,B,...")]


@dataclass(frozen=True, kw_only=True)
class Chooses(Imports):
    """The option of commands that take schedulers."""

    schedulers: Names = "lwr,greedy,universal"
    """Names from `jaxlb schedulers`, such as lwr or guarded-sita(big=2,share=0.8), and run folders of
    `jaxlb train`, separated by commas."""

    def names(self) -> list[str | Path]:
        """Return the names and the run folders."""
        return [*checks.entries(self.schedulers)]

    def run_folders(self) -> Sequence[Path]:
        """Return the run folders that the command reads."""
        return [Path(name) for name in self.names() if is_run(name)]

    def chosen(self, env: Env, params: EnvParams) -> dict[str, Scheduler]:
        """Return the schedulers by the names that a table gives them.

        Raises:
          ValueError: an unknown name, a folder without a training, or of one that cannot serve here, or two
            of one name.
        """
        found: dict[str, Scheduler] = {}
        for name in dict.fromkeys(self.names()):
            ours = _trained(Path(name), env, params) if is_run(name) else {str(name): scheduler(str(name))}
            for title in ours.keys() & found.keys():
                raise ValueError(f"{name}: the table has a {title!r} already; rename the folder")
            found |= ours
        return found


def _trained(directory: Path, env: Env, params: EnvParams) -> dict[str, Scheduler]:
    """Return the schedulers that a run trained, by the names that the table gives them."""
    run = runs.find(directory)
    run.training.check(env, params)
    name, found, best = directory.resolve().name, run.load(), run.best_setting()
    if best:
        note(f"{directory}: {best}, the best setting")
    return {name if len(found) == 1 else f"{name}, seed {seed}": one for seed, one in found.items()}
