"""The best settings of a rule, found by simulation: what a learned scheduler has to beat."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks, lengths, observe
from jaxlb.env import Env, canonical, with_lane_axis
from jaxlb.loop import rollout
from jaxlb.metrics import Summary
from jaxlb.scheduling import scheduler
from jaxlb.scheduling.base import no_memory
from jaxlb.types import Array, EnvParams, Key, Observation, Scheduler

GUARDED_SITA = tuple(
    f"guarded-sita(big={big}, big_to={big_to}, share={share})"
    for big in (1, 2)
    for big_to in ("slowest", "fastest")
    for share in (0.4, 0.6, 0.8, 1.0, 1.2)
)
"""Guarded SITA in 20 settings."""


class Tuned(NamedTuple):
    """A rule in one of its settings.

    Attributes:
      name: of the rule with its settings, for `jaxlb.scheduler`.
      scheduler: that it makes.
      mean_completion: time, in the simulation.
      sla_violation_rate: of tasks, the same.
    """

    name: str
    scheduler: Scheduler
    mean_completion: float
    sla_violation_rate: float


def _act(settings: tuple, memory: Any, observation: Observation, key: Key) -> tuple[Array, Any]:
    return scheduler("guarded-sita").act((), settings, observation, key)[0], memory


# All settings are one program: they differ in what `start` computes, which are the variables here.
_AS_TOLD = Scheduler("guarded-sita", (), no_memory, _act)


def guarded_sita(
    env: Env,
    params: EnvParams,
    key: Key,
    num_lanes: int = 256,
    num_tasks: int = 2000,
    warmup: int = 500,
) -> dict[str, Tuned]:
    """Find the best of `GUARDED_SITA` on a system, by mean "completion" and by "violations".

    All settings get the same tasks, side by side in one program.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      key: consumed. It is best not that of a comparison to come, whose tasks would have chosen the settings.
      num_lanes: environments for each setting.
      num_tasks: tasks counted in each lane.
      warmup: tasks run before that, not counted.

    Raises:
      ValueError: as `jaxlb.rollout`.
    """
    checks.at_least("num_lanes", num_lanes, 1)
    env.check(params, (num_lanes,))
    params = canonical(params)
    rules, lanes = [scheduler(name) for name in GUARDED_SITA], (num_lanes,)
    nominal = observe.nominal(with_lane_axis(params, lanes))
    each = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(rule.start(env, nominal, lanes) for rule in rules)
    )

    def run(env: Env) -> Summary:
        return jax.vmap(
            lambda settings: rollout(
                env, params, _AS_TOLD.replace(variables=settings), key, num_lanes, num_tasks, warmup
            )
        )(each)

    found, _ = lengths.exact(
        "guarded-sita",
        env,
        run,
        lambda found: found.queue_overflows,
        lambda: not env.wait_visible,  # then waits are inferred from lengths
        lengths.room(env, len(rules) * num_lanes, warmup + num_tasks),
    )
    completion, violations = (
        np.asarray(figure).mean(1) for figure in (found.mean_completion, found.sla_violation_rate)
    )

    def tuned(place: int) -> Tuned:
        return Tuned(GUARDED_SITA[place], rules[place], float(completion[place]), float(violations[place]))

    return {"completion": tuned(completion.argmin()), "violations": tuned(violations.argmin())}
