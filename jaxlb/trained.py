"""What was trained: how a run's record and a file of weights describe it, and the way back to a scheduler."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlb import checks, weights
from jaxlb.env import Env
from jaxlb.environments import Spec
from jaxlb.learn import TRAINERS, Trainer
from jaxlb.learn.settings import configure, json_value, own_fields, plain, plain_names, with_numbers
from jaxlb.learn.trainer import Systems, check, systems
from jaxlb.scheduling import schedulers
from jaxlb.types import EnvParams, Scheduler
from jaxlb.version import __version__


class Member(NamedTuple):
    """One of the trainings that a run has side by side.

    Attributes:
      setting: by which it differs from the others, as text: "learning_rate=0.001"; "" without a population.
      values: the same, by name.
      seed: of it.
    """

    setting: str
    values: dict[str, Any]
    seed: int

    @property
    def title(self) -> str:
        """Name it, within its run."""
        return ", ".join(part for part in (self.setting, f"seed {self.seed}") if part)

    @property
    def place(self) -> str:
        """Return where its files are, within the folder of all such."""
        return "/".join(part for part in (self.setting, f"seed-{self.seed}") if part)


@dataclass(frozen=True)
class Training:
    """What weights are of, as a run's record and a file of weights have it.

    Attributes:
      method: a name of `jaxlb.learn.TRAINERS`.
      settings: of it, but for what no name makes: a network of one's own, say.
      features: that its network is given, by group.
      speed: of the processors that it was trained for, `[P]` or `[P, N]`.
      environment: what `Spec` made it from; None: one's own.
      seeds: trained side by side.
      population: values of settings, each combination of which is trained with every seed.
    """

    method: str
    settings: dict[str, Any]
    features: dict[str, list[str]]
    speed: list[Any]
    environment: dict[str, Any] | None
    seeds: list[int]
    population: dict[str, list[Any]] = field(default_factory=dict)

    def members(self) -> list[Member]:
        """List the trainings side by side: settings as the population has them, the last changing first."""
        found = []
        for values in itertools.product(*self.population.values()):
            own = dict(zip(self.population, values, strict=True))
            setting = ",".join(f"{name}={value}" for name, value in own.items())
            found += [Member(setting, own, seed) for seed in self.seeds]
        return found

    def of(self, member: Member) -> "Training":
        """Return the training of a member alone."""
        settings = self.settings | member.values
        return dataclasses.replace(self, settings=settings, seeds=[member.seed], population={})

    def trainer(self) -> Trainer:
        """Return the trainer of the method."""
        return TRAINERS[self.method]

    def spec(self) -> Spec:
        """Return what the environment is made from.

        Raises:
          ValueError: it was one's own.
        """
        if self.environment is None:
            raise ValueError(
                "trained in Python, so what its environment was made from is not known: --scenario names one"
            )
        return Spec(**self.environment)

    def config(self, **own: Any) -> Any:
        """Return the settings, with what no name makes.

        Raises:
          ValueError: that is missing.
        """
        config = self.trainer().config
        for name in own_fields(config, self.settings):
            if name not in own:
                raise ValueError(f"its {name} is one of your own: jaxlb.load(..., {name}=...) takes it")
        # Of what is given, its name is not needed, which only a file that was not imported may know.
        theirs = {name for field, names in plain_names(config).items() if field in own for name in names}
        named = {name: value for name, value in self.settings.items() if name not in theirs}
        return configure(config, **named).replace(**own)

    def check(self, env: Env, params: EnvParams) -> None:
        """Raise ValueError unless the weights fit an environment; warn where they may do badly there."""
        self.trainer().fits(self.settings, np.asarray(self.speed), env, params)


def describe(
    env: Systems,
    params: Any,
    config: Any,
    seeds: Sequence[int],
    spec: Spec | None = None,
    population: Mapping[str, Sequence[Any]] | None = None,
) -> Training:
    """Describe a training with these settings.

    Raises:
      ValueError: a setting is out of bounds, or does not agree with others or the environment.
    """
    of_config = (trainer for trainer in TRAINERS.values() if isinstance(config, trainer.config))
    trainer = next(of_config, None)
    if trainer is None:
        kinds = ", ".join(trainer.config.__name__ for trainer in TRAINERS.values())
        raise ValueError(f"config = {checks.shown(config)}: must be one of {kinds}")
    seeds = [seed.item() if isinstance(seed, np.integer) else seed for seed in seeds]
    for seed in seeds:
        checks.seed("seed", seed)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds = {seeds}: must differ")
    named = {name: json_value(values) for name, values in (population or {}).items()}
    for name, values in named.items():
        if not isinstance(values, (list, range)) or not values:
            raise ValueError(f"population: {name} = {checks.shown(values)}: must be a list of values")
        for value in values:
            with_numbers(config, {name: value})
        if len(set(values)) < len(values):
            raise ValueError(f"population: {name} = {checks.shown(values)}: must differ")
    check(trainer, env, params, config)
    for values in itertools.product(*named.values()):
        check(trainer, env, params, with_numbers(config, dict(zip(named, values, strict=True))))
    first, own = next(iter(systems(env, params)))
    # A prior draws speeds; of processors there are as many in all of its lanes.
    speed = own.speed if isinstance(own, EnvParams) else np.ones(first.num_processors)
    return Training(
        method=trainer.name,
        settings=plain(config),
        features={group: list(names) for group, names in trainer.features},
        speed=np.asarray(speed).tolist(),
        environment=None if spec is None else dataclasses.asdict(spec),
        seeds=seeds,
        population={name: list(values) for name, values in named.items()},
    )


def write(path: Path, training: Training, variables: Any, **about: Any) -> None:
    """Write the variables of what was trained to a file, and what it is."""
    described = {"jaxlb": __version__, **about, "training": dataclasses.asdict(training)}
    weights.write(path, described, variables)


def read(path: Path, **own: Any) -> Scheduler:
    """Read the scheduler whose variables a file has.

    Args:
      path: of the file.
      own: what no name makes, such as `network`, if it was trained with one's own.

    Raises:
      ValueError: it is none, or what this version cannot use.
    """
    training = training_of(path, weights.about(path).get("training"))
    trainer = training.trainer()
    try:
        config = training.config(**own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    like = jax.eval_shape(functools.partial(trainer.variables, config, len(training.speed)))
    names = {group: tuple(names) for group, names in training.features.items()}
    return trainer.acting(config, weights.read(path, like), names)


def training_of(path: Path, found: Any) -> Training:
    """Read a file's description of a training, if this jaxlb can use what came of it."""
    try:
        training = Training(**found)
        if not (isinstance(training.settings, dict) and isinstance(training.speed, list) and training.speed):
            raise TypeError("settings or speeds are missing")
        known, theirs = dict(training.trainer().known), training.features
        missing = [name for group in theirs for name in theirs[group] if name not in known[group]]
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if missing:
        raise ValueError(
            f"{path}: its network is given {', '.join(missing)}, which this jaxlb does not have: "
            "install a newer one"
        )
    return training


def save(path: str | Path, scheduler: Scheduler, env: Systems, params: Any, config: Any) -> None:
    """Write a trained scheduler to a file that `load` reads.

    Args:
      path: of the file.
      scheduler: from `train_dqn`, `train_gnn` or `train_predictor`.
      env: that it was trained in.
      params: of the environment.
      config: that it was trained with.
    """
    write(Path(path), describe(env, params, config, []), scheduler.variables)


def is_run(scheduler: Any) -> bool:
    """Return whether this is a run folder, or a file of weights, and no name."""
    if isinstance(scheduler, Path):
        return True
    if not isinstance(scheduler, str) or scheduler.partition("(")[0].strip() in schedulers():
        return False
    return "/" in scheduler or Path(scheduler).exists()
