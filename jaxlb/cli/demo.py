"""jaxlb demo: the whole story in one command."""

import dataclasses
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxlb import checks, runs
from jaxlb.cli import folders
from jaxlb.cli.common import alone, command_line, dumps, note
from jaxlb.cli.compare import Compare, print_table
from jaxlb.cli.train import Train
from jaxlb.comparison import Comparison
from jaxlb.report import data, html
from jaxlb.threads import threads
from jaxlb.version import __version__

BEST = {
    "heavy-tail": "guarded-sita(big=2,share=0.6)",
    "stale": "drift-aware",
    "seed": "guarded-sita(big_to=fastest)",
}
"""The scenarios, with the rule that completes soonest in docs/results/dqn.md, of all rules and settings."""
UNIVERSAL = ("universal", "universal(objective=violations)")
TUNED = "heavy-tail"
"""Where it is tuned too."""
LANES, TASKS = 256, 1000
"""Of a comparison: lanes, and tasks of each."""


@dataclass(frozen=True)
class Demo:
    """Compare, tune, and write a page about it."""

    seed: int = 0
    """Of the tuning and of the random tasks."""
    out: Path = Path("runs/demo")
    """Folder for report.html, its numbers (demo.json), and a run folder of what was tuned."""

    def run(self) -> None:
        """Compare and write the page; then tune, and write it again."""
        alone("demo")
        checks.seed("seed", self.seed)
        began = time.perf_counter()
        with folders.begin(self, self.out) as folder:
            compared = {scenario: self._compare(scenario) for scenario in BEST}
            self._write(compared, [], began)
            note(f"{self.out / 'report.html'} can be opened; tuned to {TUNED}, universal joins it soon")
            training = self._tune()
            compared[TUNED] = self._compare(TUNED, (self.out / "tuned",))
            self._write(compared, [training], began)
            folder.finish("report.html: open it in a browser")
        for _, comparison, described in compared.values():
            print_table(comparison, described)

    def _write(self, compared: Mapping[str, tuple], trainings: Sequence[Any], began: float) -> None:
        report = {
            "command": command_line(self),
            "versions": {
                "jaxlb": __version__,
                "JAX": jax.__version__,
                "Python": platform.python_version(),
            },
            "trainings": trainings,
            "scenarios": [section for section, *_ in compared.values()],
            "seconds": round(time.perf_counter() - began, 1),
        }
        (self.out / "demo.json").write_text(dumps(report), encoding="utf-8")
        (self.out / "report.html").write_text(html.page(report), encoding="utf-8")

    def _tune(self) -> dict[str, Any]:
        out = self.out / "tuned"
        command = Train(
            method="universal", scenario=TUNED, from_="universal", seed=self.seed, out=out, overwrite=True
        )
        began = time.perf_counter()
        _shown(command).run()
        return html.training(runs.find(out), command_line(command), time.perf_counter() - began)

    def _compare(
        self, scenario: str, tuned: tuple[Path, ...] = ()
    ) -> tuple[dict[str, Any], Comparison, dict[str, Any]]:
        """Return the scenario's part of the page, and what its table is made of."""
        command = Compare(
            scenario=scenario,
            schedulers=",".join(("lwr", "greedy", BEST[scenario], *UNIVERSAL, *map(str, tuned))),
            seed=self.seed,
            lanes=LANES,
            tasks=TASKS,
        )
        _shown(command)
        setup = command.setup(command.spec())
        shown = setup.env, setup.params
        with threads() as pool:
            # They compile while the comparison runs.
            tasks, replays = data.replayed(*shown, setup.schedulers, jax.random.key(self.seed), pool)
            comparison = command.judge(setup)
            outcomes = {name: replay.result() for name, replay in replays.items()}
        line = command_line(dataclasses.replace(command, out=self.out / scenario))
        learned = dict.fromkeys(UNIVERSAL, html.ANYWHERE) | {"tuned": TUNED}
        section = html.section(comparison, *shown, tasks, outcomes, line, learned)
        return section, comparison, setup.described


def _shown(command: Any) -> Any:
    """Print the command's line, and return the command."""
    print(f"$ {command_line(command)}", file=sys.stderr)
    return command
