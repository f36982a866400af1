"""jaxlb train: a scheduler into a run folder, and on from there if it is stopped."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.table import Table

from jaxlb import checks, records, runs
from jaxlb.cli import folders, loggers
from jaxlb.cli.common import Draws, Where, console, grid_of, note, progress
from jaxlb.env import Env
from jaxlb.environments import Spec
from jaxlb.learn import TRAINERS
from jaxlb.learn.settings import configure, with_numbers
from jaxlb.learn.trainer import check_initial, prepared
from jaxlb.learn.universal import TUNING
from jaxlb.report.data import curve
from jaxlb.runs import Run
from jaxlb.scheduling import scheduler, schedulers
from jaxlb.trained import describe, is_run
from jaxlb.types import EnvParams, Scheduler


@dataclass(frozen=True, kw_only=True)
class Train(Draws, Where):
    """Train a scheduler into a run folder."""

    method: tyro.conf.Positional[str]
    """dqn: deep Q-learning. predictor: of backlogs, for drift-aware. gnn: regression of completion
    times by message passing. universal: prices of backlog."""
    train: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Settings of the trainer, such as num_iterations=5000 sla_weight=2 network=per-processor."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Run folder, or file of weights, of the same method whose networks it begins with; or universal, of that
    method, which tunes what comes with the package to the scenario; or, for a dqn, any scheduler that it acts
    as at first."""
    seed: int = 0
    """Of the first training."""
    seeds: int = 1
    """Trainings side by side, with as many seeds that follow each other."""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES")] = ()
    """Settings of the trainer with their values, as learning_rate=1e-3,3e-3 or discount=0.9:0.99:4; every
    combination is trained with every seed, all in one program."""
    patience: int | None = None
    """Stop once so many evaluations in a row have brought none of the trainings a new best."""
    out: Path | None = None
    """Run folder; if not given, runs/METHOD-SCENARIO."""
    spread_lanes: bool = False
    """Spread the lanes of each training over all devices, not the trainings; worth it with many lanes."""
    resume: bool = False
    """Go on with the run in the folder, as it was started; it ends as if it had never been stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Loggers that get the figures too."""

    def run_folders(self) -> Sequence[Path]:
        """Return the run folders that the command reads."""
        begins = [Path(self.from_)] if self.from_ and is_run(self.from_) else []
        return [*([self._out()] if self.resume else []), *begins]

    def _out(self) -> Path:
        return Path("runs", f"{self.method}-{self.scenario}") if self.out is None else self.out

    def run(self) -> None:
        """Train, log, save, draw."""
        checks.at_least("seeds", self.seeds, 1)
        checks.seed("seed", self.seed, self.seeds)
        if self.patience is not None:
            checks.at_least("patience", self.patience, 1)
        self.formats()
        population = grid_of("--sweep", self.sweep)
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite: give one of them")
        if jax.process_count() > 1:
            raise ValueError(
                f"jaxlb train runs in one process, not in {jax.process_count()}: "
                "under jax.set_mesh, train_dqn and its like run in several (docs/scaling.md)"
            )
        loggers.check(self.log)
        checks.known("method", self.method, TRAINERS)
        out, spec, seeds = self._out(), self.spec(), list(range(self.seed, self.seed + self.seeds))
        # As it was started, where that is not said again.
        begun = ((records.read(out) or {}).get("options") or {}) if self.resume else {}
        initial, patience = self._initial(out, begun), self.patience or begun.get("patience")
        if self.resume:
            run = runs.find(out)
            training = run.training
            runs.must_agree(self._given(spec, seeds), training)
            spec, config = training.spec(), training.config()
            env, params = spec.make()
            if run.finished():
                note(f"{out} is finished: there is nothing to go on with")
        else:
            config = configure(TRAINERS[self.method].config, **self._settings())
            env, params = spec.make()
            training = describe(env, params, config, seeds, spec, population)
            check_initial(training.trainer(), env, params, config, initial)
            folders.writable(out)
            runs.make_room(out, self.overwrite)
        about = dataclasses.asdict(training)
        with folders.begin(self, out, spec.scenario, self.resume, training=about) as record:
            run = Run(out, training)
            try:
                with (
                    loggers.opened(self.log, run, record.about["id"], run.iteration()) as log,
                    progress() as show,
                ):
                    shown = {"on_rows": log, "on_progress": show, "spread_lanes": self.spread_lanes}
                    runs.go_on(run, env, params, config, patience=patience, initial=initial, **shown)
                if run.iteration() < config.num_iterations:
                    how = "--resume with more --patience goes on from there"
                    note(f"stopped early at iteration {run.iteration():,}; {how}")
                _draw(run, env, params, config, self.formats())
            except KeyboardInterrupt:
                again = ["jaxlb", "train", self.method, "--out", str(out), "--resume"]
                again = shlex.join([*again, *(["--log", *self.log] if self.log else [])])
                raise KeyboardInterrupt(
                    f"stopped at iteration {run.iteration():,}; {again} goes on from there"
                ) from None
            table, result = _reached(run)
            record.finish(result)
        console().print(table)
        note(f"next: jaxlb evaluate {out}")

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the trainer."""
        given = checks.settings("--train", self.train)
        return TUNING | given if self.from_ == self.method == "universal" else given

    def _initial(self, out: Path, begun: dict[str, Any]) -> Scheduler | None:
        """Return what a training begins with that has no checkpoint yet; it was begun with such options."""
        source = self.from_
        if self.resume:
            if source not in (None, begun.get("from_")):
                first = begun.get("from_")
                raise ValueError(f"resume: from = {source!r}, but the run was started with {first!r}")
            source = None if runs.find(out).iteration() else begun.get("from_")
        if source is None or source == self.method == "universal":
            return None
        if is_run(source):
            return runs.load(source)
        if source in TRAINERS and source not in schedulers():
            raise ValueError(f"--from {source}: names a method; must be a run folder of {self.method}")
        return scheduler(source)

    def _given(self, spec: Spec, seeds: list[int]) -> dict[str, Any]:
        """Return the options that were given, as the run's record would have them."""
        given = {
            field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default
        }
        found = {"method": self.method, **self.overrides(), **self._settings()}
        found |= {"population": grid_of("--sweep", self.sweep)} if self.sweep else {}
        found |= {
            name: getattr(spec, name) for name in ("scenario", "trace", "allow_overload") if name in given
        }
        return found | ({"seeds": seeds} if given & {"seed", "seeds"} else {})


def _draw(run: Run, env: Env, params: EnvParams, config: Any, formats: Sequence[str]) -> None:
    """Draw how it learned and, on tasks of their own, what the predictions of the first seed are worth.

    Of a population, those of the best setting.
    """
    from jaxlb import charts
    from jaxlb.report import plots

    charts.save(plots.learning_curves(run.logged()), run.directory, "learning_curves", formats)
    trainer, seed, best = run.training.trainer(), run.training.seeds[0], run.best_setting()
    if trainer.inspect is None:
        return
    values = next(member.values for member in run.training.members() if member.setting == best)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    own = prepared(params, with_numbers(config, values))
    found = trainer.inspect(env, *own, run.load(best)[seed].variables, key)
    flat = [
        np.asarray(leaf).reshape(-1, *leaf.shape[2:])
        for leaf in (found.predicted, found.truth, found.chosen, found.load)
    ]
    charts.save(plots.completions(*flat), run.directory, "predictions", formats)
    names = [f"{place} (speed {float(speed):g})" for place, speed in enumerate(np.asarray(params.speed))]
    charts.save(plots.influence(np.asarray(found.influence), names), run.directory, "influence", formats)


def _reached(run: Run) -> tuple[Table, str]:
    """Return what each training reached as a table, and the first figure of the best as a line.

    Of a population there is a row for each setting: the mean over its seeds, and from the least to the most.
    """
    training, trainer = run.training, run.training.trainer()
    table = Table(title=f"{trainer.name} on {training.spec().scenario}", title_justify="left")
    names = trainer.reached if not training.population else (*trainer.reached, trainer.objective)
    shown = [(name, *curve(name)) for name in dict.fromkeys(names)]
    one = not training.population
    for heading in (*(["seed"] if one else training.population), "best at iteration"):
        table.add_column(heading, justify="right")
    for _, heading, _ in shown:
        table.add_column(heading, justify="right")

    def figures(rows: list[dict[str, Any]]) -> list[str]:
        cells = []
        for name, _, scale in shown:
            values = [row[name] for row in rows]
            if len(rows) == 1 or None in values:
                cells.append(runs.figure(None if None in values else values[0], scale))
            else:
                least, mean, most = min(values), sum(values) / len(values), max(values)
                cells.append("{:.3g} ({:.3g} to {:.3g})".format(*(scale * x for x in (mean, least, most))))
        return cells

    best, kept = run.best_setting(), runs.bests(run)
    for _, group in itertools.groupby(
        training.members(), key=lambda member: member.seed if one else member.setting
    ):
        members = list(group)
        tops = [kept[member.setting, member.seed] for member in members]
        name = [str(members[0].seed)] if one else [f"{value}" for value in members[0].values.values()]
        at = [f"{top['iteration']:,}" for top in tops]
        style = "bold" if not one and members[0].setting == best else None
        table.add_row(*name, ", ".join(dict.fromkeys(at)), *figures(tops), style=style)
    if best:
        table.caption = f"mean over seeds (least to most); the best, by {curve(trainer.objective)[0]}: {best}"
    of = f"{best}: " if best else ""
    return table, f"{of}{shown[0][1]} {figures([runs.best(run)])[0]}"
