"""Saying no: a rule that refuses tasks in front of one that assigns the others."""

from typing import Any

import jax.numpy as jnp

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.scheduling.base import expected_completion, first_memory, no_departures, usable
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static


def _start(inner: Scheduler, env: Static, params: EnvParams, lanes: Lanes) -> Any:
    if not env.admission:
        raise ValueError(
            f"scheduler 'deadline-admission({inner.name})': must have an environment in which tasks may be "
            "refused, as make(..., admission=True) makes it"
        )
    return first_memory(inner.name, inner.start, env, params, lanes)


def _act(
    act: Any, factor: float, variables: Any, memory: Any, observation: Observation, key: Key
) -> tuple[Array, Any]:
    o = observation
    action, after = act(variables, memory, o, key)
    soonest = usable(o, expected_completion(o), jnp.inf).min(0)
    refuse = len(o.speed)
    return jnp.where(soonest <= factor * o.deadline, action, refuse), after


def deadline_admission(inner: Scheduler, factor: float = 1.0) -> Scheduler:
    """Refuse a task that would miss its deadline wherever it went; let another scheduler assign the rest.

    What that remembers of its choices is not told of refusals.

    Args:
      inner: assigns.
      factor: of the deadline, up to which a task is admitted; in (0, infinity).
    """
    checks.leaf("factor", factor, above=0)
    no_departures("deadline-admission", inner)
    start = partial(_start, inner.replace(variables=()))
    return Scheduler(
        f"deadline-admission({inner.name})", inner.variables, start, partial(_act, inner.act, factor)
    )
