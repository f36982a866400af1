"""jaxlb render: schedulers at work, as a film."""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxlb import checks
from jaxlb.cli import folders
from jaxlb.cli.chosen import Chooses, Names
from jaxlb.cli.common import Where, alone

NUM_FRAMES = 150


@dataclass(frozen=True, kw_only=True)
class Render(Chooses, Where):
    """Film schedulers side by side, on the same tasks."""

    schedulers: Names = "rr,lwr"
    tasks: int = 120
    """Tasks that arrive while it is filmed."""
    seed: int = 0
    """Of the random tasks."""
    out: Path
    """File to write: .gif, or .mp4 where ffmpeg is installed."""

    def run(self) -> None:
        """Replay, draw, write."""
        alone("render")
        checks.at_least("tasks", self.tasks, 2)
        checks.seed("seed", self.seed)
        env, params = self.spec().make()
        shown = self.chosen(env, params)
        if not shown:
            raise ValueError("--schedulers: must name at least one")
        folders.writable(self.out.parent)
        from jaxlb.report import animation

        animation.check(self.out)
        film = animation.film(env, params, shown, jax.random.key(self.seed), self.tasks)
        film.save(self.out, NUM_FRAMES)
        print(f"wrote {self.out}, {self.out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
