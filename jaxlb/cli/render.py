"""jaxlb render: schedulers at work, as a film."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxlb import checks
from jaxlb.cli import folders
from jaxlb.cli.common import Imports, Where, alone
from jaxlb.cli.compare import chosen_schedulers

NUM_FRAMES = 150


@dataclass(frozen=True, kw_only=True)
class Render(Imports, Where):
    """Film schedulers side by side, on the same tasks."""

    schedulers: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "rr,lwr"
    """Names from `jaxlb schedulers`, such as lwr or guarded-sita(big=2,share=0.8), separated by commas."""
    checkpoint: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Run folder of a trained scheduler, which joins them; may be given several times."""
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
        shown = chosen_schedulers(self.schedulers, self.checkpoint, env, params)
        if not shown:
            raise ValueError("--schedulers: must name at least one")
        folders.writable(self.out.parent)
        from jaxlb.report import animation

        animation.check(self.out)
        film = animation.film(env, params, shown, jax.random.key(self.seed), self.tasks)
        film.save(self.out, NUM_FRAMES)
        print(f"wrote {self.out}, {self.out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
