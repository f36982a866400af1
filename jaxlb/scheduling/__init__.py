"""Schedulers by name."""

import functools
import inspect
import re
from collections.abc import Callable, Hashable

import jax

from jaxlb import checks
from jaxlb.scheduling import (
    adaptive,
    admission,
    classical,
    fleets,
    forecasts,
    optimal,
    predictive,
    routers,
    size_based,
    universal,
)
from jaxlb.scheduling import corrected as _corrected
from jaxlb.scheduling import guardrails as _guardrails
from jaxlb.scheduling.base import stateless, with_memory
from jaxlb.scheduling.guard import guarded
from jaxlb.types import Scheduler

__all__ = [
    "add",
    "forecasts",
    "guarded",
    "resolved",
    "scheduler",
    "schedulers",
    "stateless",
    "with_memory",
]


def deadline_admission(rule: str = "greedy", factor: float = 1.0) -> Scheduler:
    """Refuse what would miss its deadline wherever it went; a rule, by its name, assigns the rest.

    Args:
      rule: a name of `schedulers()`.
      factor: of the deadline, up to which a task is admitted.
    """
    return admission.deadline_admission(scheduler(rule), factor)


def guardrails(rule: str = "greedy", tightness: float = 2.0) -> Scheduler:
    """Share the tasks of every size evenly, for processors that serve the shortest first; a rule chooses.

    Args:
      rule: a name of `schedulers()`.
      tightness: how many of the largest tasks of about its size a processor may be ahead.
    """
    return _guardrails.guardrails(scheduler(rule), tightness)


def corrected(rule: str = "universal") -> Scheduler:
    """Correct old queue lengths by what this dispatcher has sent and heard of since; a rule chooses by them.

    Args:
      rule: a name of `schedulers()`.
    """
    return _corrected.corrected(scheduler(rule))


_FACTORIES: dict[str, Callable[..., Scheduler]] = {
    "random": classical.random,
    "weighted-random": classical.weighted_random,
    "static-split": classical.static_split,
    "rr": classical.rr,
    "wrr": classical.wrr,
    "jsq": classical.jsq,
    "least-connections": classical.least_connections,
    "jiq": classical.jiq,
    "power-of-d": classical.power_of_d,
    "sed": classical.sed,
    "lwr": classical.lwr,
    "lwr-rr": classical.lwr_rr,
    "lwl": classical.lwl,
    "greedy": classical.greedy,
    "myopic": classical.myopic,
    "sita-e": size_based.sita_e,
    "guarded-sita": size_based.guarded_sita,
    "fpi": size_based.fpi,
    "card": size_based.card,
    "dice": size_based.dice,
    "optimal": optimal.optimal,
    "predictive": predictive.predictive,
    "drift-aware": predictive.drift_aware,
    "peak-ewma": routers.peak_ewma,
    "least-request": routers.least_request,
    "client-wrr": routers.client_wrr,
    "c3": routers.c3,
    "bounded-loads": routers.bounded_loads,
    "gateway": routers.gateway,
    "prequal": fleets.prequal,
    "jbt": fleets.jbt,
    "lsq": fleets.lsq,
    "tidal": fleets.tidal_water_filling,
    "slow-start": fleets.slow_start,
    "replicas": fleets.replicas,
    "deadline-admission": deadline_admission,
    "guardrails": guardrails,
    "corrected": corrected,
    "hedge": adaptive.hedge,
    "universal": universal.universal,
    "oracle": classical.oracle,
}


def scheduler(name: str, **options: object) -> Scheduler:
    """Make a scheduler by name.

    Args:
      name: one of `schedulers()`; options may follow in it, as in "guarded-sita(big=2, share=0.8)".
      options: what its factory takes, such as `d=2` for "power-of-d"; see `jaxlb.scheduling`.

    Raises:
      ValueError: unknown name or option, or an option out of bounds or given twice.
    """
    with_options = re.fullmatch(r"([^()]*?)\s*\((.*)\)", str(name), re.DOTALL)
    if with_options:
        name = with_options[1]
        for option, value in checks.settings(
            f"option of scheduler {name!r}", checks.entries(with_options[2])
        ).items():
            if option in options:
                raise ValueError(f"{option} = {value!r}: given twice to scheduler {name!r}")
            options[option] = tuple(value) if isinstance(value, list) else value
    checks.known("scheduler", name, _FACTORIES)
    allowed = options_of(name)
    for option, value in options.items():
        checks.known(f"option of scheduler {name!r}", option, allowed)
        if not isinstance(value, Hashable):
            raise ValueError(f"{option} = {value!r}: must be a number, a word or a tuple")
    return _FACTORIES[name](**options)


def options_of(name: str) -> list[str]:
    """List the options of the scheduler of that name."""
    return list(inspect.signature(_FACTORIES[name]).parameters)


def resolved(given: object) -> Scheduler:
    """Return a scheduler as it is, or the one of that name with its default options.

    Raises:
      ValueError: unknown name, or neither a name nor a scheduler.
    """
    if isinstance(given, str):
        return scheduler(given)
    if not isinstance(given, Scheduler):
        raise ValueError(f"scheduler = {checks.shown(given)}: must be a name or a jaxlb.Scheduler")
    if any(callable(leaf) for leaf in jax.tree.leaves(given.variables)):
        raise ValueError(
            f"scheduler {given.name!r}: its variables are functions; must be numbers: "
            "a scheduler is (name, variables, start, act)"
        )
    return given


def schedulers() -> dict[str, str]:
    """List the names of all schedulers, each with the first line of its description."""
    return {name: checks.first_line(factory) for name, factory in _FACTORIES.items()}


def add(name: str, factory: Callable[..., Scheduler]) -> None:
    """Register a name with `scheduler` for what `factory(**options)` makes; see `jaxlb.register`.

    What it has made is kept: functions that it makes anew each time would be compiled anew each time.
    """
    checks.free("scheduler", name, _FACTORIES, factory)

    @functools.cache
    @functools.wraps(factory)
    def made(**options: object) -> Scheduler:
        with jax.ensure_compile_time_eval():  # kept, so it must not belong to a trace that asks first
            return factory(**options)

    _FACTORIES[name] = made
