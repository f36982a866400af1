"""jaxlb train: a scheduler into a run folder, and on from there if it is stopped."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.table import Table

from jaxlb import checks, runs
from jaxlb.cli import folders, loggers
from jaxlb.cli.common import Where, Writes, console, note, progress
from jaxlb.devices import device_mesh, side_by_side
from jaxlb.learn import TRAINERS
from jaxlb.learn.settings import configure, plain
from jaxlb.learn.trainer import check
from jaxlb.runs import Record, Run


@dataclass(frozen=True, kw_only=True)
class Train(Writes, Where):
    """Train a scheduler into a run folder."""

    method: Annotated[Literal["dqn", "predictor", "gnn"], tyro.conf.Positional]
    """dqn: deep Q-learning. predictor: of backlogs, for drift-aware. gnn: regression of completion
    times by message passing."""
    train: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Settings of the trainer, such as num_iterations=5000 sla_weight=2 network=per-processor."""
    seed: int = 0
    """Of the first training."""
    seeds: int = 1
    """Trainings side by side, with as many seeds that follow each other."""
    out: Path | None = None
    """Run folder; if not given, runs/METHOD-SCENARIO."""
    spread_lanes: bool = False
    """Spread the lanes of each training over all devices, not the trainings; worth it with many lanes."""
    resume: bool = False
    """Go on with the run in the folder, as it was started; it ends as if it had never been stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Loggers that are told the figures too."""

    def run(self) -> None:
        """Train, log, save, draw."""
        checks.at_least("seeds", self.seeds, 1)
        checks.seed("seed", self.seed, self.seeds)
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite: give one of them")
        if jax.process_count() > 1:
            raise ValueError(
                f"jaxlb train runs in one process, not in {jax.process_count()}: "
                "under jax.set_mesh, train_dqn and its like run in several (docs/scaling.md)"
            )
        loggers.check(self.log)
        out = Path("runs", f"{self.method}-{self.scenario}") if self.out is None else self.out
        record = self._record()
        if self.resume:
            scenario = runs.find(out).record.scenario
            _must_agree(record, dataclasses.replace(self, **_DEFAULTS)._record(), runs.find(out).record)
        else:
            scenario = self.scenario
            runs.make_room(out, self.overwrite)
        with folders.begin(self, out, scenario, self.resume) as folder:
            run = runs.find(out) if self.resume else runs.create(out, record)
            done = run.iteration()
            try:
                with loggers.opened(self.log, run, folder.about["id"], done) as log:
                    _train(run, done, log, self.spread_lanes)
            except KeyboardInterrupt:
                again = f"jaxlb train {self.method} --out {out} --resume"
                again += f" --log {' '.join(self.log)}" if self.log else ""
                raise KeyboardInterrupt(
                    f"stopped at iteration {run.iteration():,}; {again} goes on from there"
                ) from None
            logged = run.logged()
            _draw(run, logged)
            table, result = _reached(run, logged)
            folder.finish(result)
        console().print(table)
        note(f"next: jaxlb evaluate {out}")

    def _record(self) -> Record:
        """What is asked for, checked."""
        env, params, _ = self.environment()
        trainer = TRAINERS[self.method]
        settings = plain(trainer.config()) | checks.settings("--train", self.train)
        check(trainer, env, params, configure(trainer.config, **settings))
        return Record(
            method=self.method,
            scenario=self.scenario,
            overrides=self.overrides(),
            trace=self.recorded(),
            allow_overload=self.allow_overload,
            num_processors=env.num_processors,
            settings=settings,
            seeds=list(range(self.seed, self.seed + self.seeds)),
            features=runs.features(trainer),
        )


_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(Train) if field.name != "method"
}


def _must_agree(asked: Record, default: Record, started: Record) -> None:
    """Raise ValueError if a setting that was given is not the one that the run was started with."""

    def settings(record: Record) -> dict[str, Any]:
        plain = dataclasses.asdict(record)
        both = plain.pop("overrides") | plain.pop("settings")
        return both | {
            name: plain[name] for name in ("method", "scenario", "trace", "allow_overload", "seeds")
        }

    usual, theirs = settings(default), settings(started)
    for name, value in settings(asked).items():
        # Of the method there is no default: it is always given.
        given = name == "method" or value != usual.get(name)
        if given and value != theirs.get(name):
            raise ValueError(
                f"--resume: {name} = {value!r}, but the run was started with {theirs.get(name)!r}"
            )


def _train(run: Run, done: int, log: Callable[[list[dict[str, Any]]], None], spread_lanes: bool) -> None:
    """From the last checkpoint, or from nothing, to the end."""
    record, trainer = run.record, run.record.trainer()
    env, params, config = record.prepared()
    total = config.num_iterations
    start = functools.partial(runs.start, trainer, env, params, config, record.seeds)
    run.forget_after(done)
    if done == total:
        return
    mesh = jax.set_mesh(device_mesh(config.num_lanes)) if spread_lanes else contextlib.nullcontext()
    with progress() as show, mesh:
        state = run.restore(state=jax.eval_shape(start))["state"] if done else jax.jit(start)()
        if not spread_lanes:
            state = side_by_side(state, len(record.seeds))
        advance = functools.partial(trainer.advance, env, params, config)
        # The state that goes in is not needed again, and what it remembers is the largest thing there is.
        advance = jax.jit(jax.vmap(advance), donate_argnums=0)
        advance = advance.lower(state).compile()
        while done < total:
            began = time.perf_counter()
            state, figures = jax.block_until_ready(advance(state))
            seconds = time.perf_counter() - began
            iterations, done = int(state.iteration[0]) - done, int(state.iteration[0])
            rows = _rows(record.seeds, figures, iterations / seconds)
            # Logged first: what was logged after the last checkpoint is made again.
            run.log(rows)
            log(rows)
            run.save(done, best=state.best, last=state.variables, **{"state": state} if done < total else {})
            if show is not None:
                show(f"iteration {done:,}", done / total)
            diverged = np.asarray(state.diverged)
            if (diverged >= 0).any():
                which = int(np.argmax(diverged >= 0))
                raise FloatingPointError(
                    f"training diverged: with seed {record.seeds[which]} the loss was not finite at "
                    f"iteration {diverged[which]:,}; {run.directory} keeps the weights before that. "
                    f"Try {trainer.remedy}"
                )


def _rows(seeds: list[int], figures: Any, iterations_per_second: float) -> list[dict[str, Any]]:
    """A line for each seed; what is not finite is null."""
    columns = {name: np.asarray(getattr(figures, name)).tolist() for name in figures.__dataclass_fields__}
    lines = []
    for index, seed in enumerate(seeds):
        values = {name: column[index] for name, column in columns.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        lines.append({"seed": seed, **finite, "iterations_per_second": iterations_per_second})
    return lines


def _draw(run: Run, logged: list[dict[str, Any]]) -> None:
    """How it learned, and what its predictions are worth."""
    from jaxlb.report import plots

    plots.learning_curves(logged).savefig(run.directory / "learning_curves.png")
    if run.record.trainer().inspect is not None:
        _draw_predictions(run)


def _draw_predictions(run: Run) -> None:
    """What the predictions of the first seed's best weights are worth, on tasks of their own."""
    from jaxlb.report import plots

    record, trainer = run.record, run.record.trainer()
    assert trainer.inspect is not None
    env, params, config = record.prepared()
    variables = runs.load_all(run)[record.seeds[0]].variables
    key = jax.random.fold_in(jax.random.key(record.seeds[0]), 1)
    found = trainer.inspect(env, params, config, variables, key)
    flat = [
        np.asarray(leaf).reshape(-1, *leaf.shape[2:])
        for leaf in (found.predicted, found.truth, found.chosen, found.load)
    ]
    plots.completions(*flat).savefig(run.directory / "predictions.png")
    names = [f"{place} (speed {float(speed):g})" for place, speed in enumerate(np.asarray(params.speed))]
    plots.influence(np.asarray(found.influence), names).savefig(run.directory / "influence.png")


def _reached(run: Run, logged: list[dict[str, Any]]) -> tuple[Table, str]:
    """What each seed reached; the first figure of the best seed as a line."""
    trainer = run.record.trainer()
    table = Table(title=f"{run.record.method} on {run.record.scenario}", title_justify="left")
    for heading in ("seed", "best at iteration", *(heading for heading, _, _ in trainer.reached)):
        table.add_column(heading, justify="right")

    def figures(row: dict[str, Any]) -> list[str]:
        return [f"{scale * row[name]:.4g}" for _, name, scale in trainer.reached]

    tops = [
        max((row for row in logged if row["seed"] == seed), key=lambda row: row[trainer.objective])
        for seed in run.record.seeds
    ]
    for top in tops:
        table.add_row(str(top["seed"]), f"{top['iteration']:,}", *figures(top))
    return table, f"{trainer.reached[0][0]} {figures(max(tops, key=lambda row: row[trainer.objective]))[0]}"
