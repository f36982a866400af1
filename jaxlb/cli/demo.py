"""jaxlb demo: the whole story in one command."""

import dataclasses
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxlb import checks, runs
from jaxlb.cli import folders
from jaxlb.cli.common import alone, command_line, dumps
from jaxlb.cli.compare import Compare, print_table
from jaxlb.cli.train import Train
from jaxlb.comparison import Comparison
from jaxlb.environments import make
from jaxlb.report import data, html
from jaxlb.threads import threads
from jaxlb.version import __version__

RULES, FEWER = "rr,jsq,sed,lwr,greedy,fpi,{best},oracle", "lwr,{best}"
BEST = {
    "heavy-tail": ("guarded-sita(big=2)", "guarded-sita(big=2,share=0.6)"),
    "stale": ("drift-aware",),
    "seed": ("guarded-sita(big_to=fastest)",),
}
"""What does best on each, of all rules and settings in docs/results/dqn.md, by violations and completion."""

TRAININGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dqn", "heavy-tail", {"completion_exponent": 0.67, "sla_weight": 1, "num_iterations": 8000}),
    ("predictor", "stale", {}),
    ("gnn", "seed", {}),
)
"""Method, scenario, settings."""
QUICK: dict[str, dict[str, Any]] = {
    "dqn": {"num_iterations": 2000, "num_evaluations": 4, "batch_size": 128},
    "predictor": {"num_lanes": 50, "num_iterations": 100},
    "gnn": {"num_iterations": 800, "num_evaluations": 4},
}
"""Other settings, to be quick."""


@dataclass(frozen=True)
class Demo:
    """Train three schedulers, and write a page about them."""

    quick: bool = False
    """Shorter trainings, fewer tasks: in about a minute on two cores."""
    seed: int = 0
    """Of the trainings and of the random tasks."""
    out: Path = Path("runs/demo")
    """Folder for report.html, its numbers (demo.json), and a run folder of each training."""

    def run(self) -> None:
        """Train, compare, write, print."""
        alone("demo")
        checks.seed("seed", self.seed)
        with folders.begin(self, self.out) as folder:
            report, tables = self._report()
            (self.out / "demo.json").write_text(dumps(report), encoding="utf-8")
            (self.out / "report.html").write_text(html.page(report), encoding="utf-8")
            folder.finish("report.html: open it in a browser")
        for table in tables:
            print_table(*table)

    def _report(self) -> tuple[dict[str, Any], list[tuple[Comparison, dict[str, Any]]]]:
        """Train and compare; return the numbers of the page, and the tables to print."""
        began = time.perf_counter()
        trainings = [self._train(*training) for training in TRAININGS]
        trained = {training["name"]: training["scenario"] for training in trainings}
        compared = [self._compare(scenario, trained) for scenario in trained.values()]
        report = {
            "command": command_line(self),
            "versions": {
                "jaxlb": __version__,
                "JAX": jax.__version__,
                "Python": platform.python_version(),
            },
            "trainings": trainings,
            "scenarios": [section for section, _ in compared],
            "seconds": round(time.perf_counter() - began, 1),
        }
        return report, [table for _, table in compared]

    def _train(self, method: str, scenario: str, settings: dict[str, Any]) -> dict[str, Any]:
        out = self.out / method
        settings = settings | (QUICK[method] if self.quick else {})
        command = Train(
            method=method,
            scenario=scenario,
            train=tuple(f"{name}={value}" for name, value in settings.items()),
            seed=self.seed,
            out=out,
            overwrite=True,
        )
        began = time.perf_counter()
        _shown(command).run()
        return html.training(runs.find(out), command_line(command), time.perf_counter() - began)

    def _compare(self, scenario: str, trained: dict[str, str]) -> tuple[dict[str, Any], Any]:
        """Return the scenario's part of the page, and what its table is made of."""
        fit, misfits = self._fit(scenario, trained)
        rules, lanes, tasks = (FEWER, 256, 800) if self.quick else (RULES, 1024, 2000)
        best = BEST[scenario][:1] if self.quick else BEST[scenario]
        command = Compare(
            scenario=scenario,
            schedulers=rules.format(best=",".join(best)),
            seed=self.seed,
            lanes=lanes,
            tasks=tasks,
            checkpoint=tuple(self.out / name for name in fit),
        )
        _shown(command)
        setup = command.setup(command.spec(), command.checkpoint)
        shown = setup.env, setup.params
        with threads() as pool:
            # They compile while the comparison runs.
            tasks, replays = data.replayed(*shown, setup.schedulers, jax.random.key(self.seed), pool)
            comparison = command.judge(setup)
            outcomes = {name: replay.result() for name, replay in replays.items()}
        line = command_line(dataclasses.replace(command, out=self.out / scenario))
        section = html.section(comparison, *shown, tasks, outcomes, line, fit, misfits)
        return section, (comparison, setup.described)

    def _fit(self, scenario: str, trained: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the trained that can join on a scenario, and why the others cannot."""
        environment = make(scenario)
        misfits = {}
        for name in trained:
            if self.quick and trained[name] != scenario:
                misfits[name] = "--quick compares it only where it was trained"
                continue
            try:
                runs.find(self.out / name).training.check(*environment)
            except ValueError as error:
                misfits[name] = str(error)
        return {name: where for name, where in trained.items() if name not in misfits}, misfits


def _shown(command: Any) -> Any:
    """Print the command's line, and return the command."""
    print(f"$ {command_line(command)}", file=sys.stderr)
    return command
