"""The best settings of a rule, found by simulation: what a learned scheduler has to beat."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import checks, lengths, observe, stationarity
from jaxlb.env import Env
from jaxlb.functions import partial
from jaxlb.loop import rollout
from jaxlb.metrics import Summary
from jaxlb.params import canonical, with_lane_axis
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
CARD, CARD_IN_BANDS = (
    tuple(
        f"card(band={band}, threshold={threshold}, bands={bands}, flexible={flexible})"
        for band in (0.1, 0.3, 0.6)
        for threshold in (1, 2, 5)
        for flexible in ("false", "true")
    )
    for bands in (1, 4)
)
"""CARD in 18 settings, with one band of medium tasks and with four."""
DICE = tuple(
    f"dice(limit={limit}, growth={growth}, last={last})"
    for limit in (1, 2, 4, 8, 16)
    for growth in (1, 2, 4)
    for last in ("slowest", "fastest")
)
"""Dice in 30 settings."""


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


def _act(
    act: Callable, settings: tuple, memory: Any, observation: Observation, key: Key
) -> tuple[Array, Any]:
    return act((), settings, observation, key)[0], memory


def best(
    env: Env,
    params: EnvParams,
    key: Key,
    names: Sequence[str] = GUARDED_SITA,
    num_lanes: int = 256,
    num_tasks: int = 2000,
    warmup: int = 500,
) -> dict[str, Tuned]:
    """Find the best settings of a rule on a system, by mean "completion" and by "violations".

    All settings get the same tasks, side by side in one program: they differ in what `start` computes. One
    that keeps a processor busy all the time, as one may that starves large tasks, is best only if all do.

    Args:
      env: from `jaxlb.make`.
      params: of the environment.
      key: consumed. It is best not that of a comparison to come, whose tasks would have chosen the settings.
      names: of one rule, each with its settings, such as `GUARDED_SITA`, `CARD`, `CARD_IN_BANDS` or `DICE`.
      num_lanes: environments for each setting.
      num_tasks: tasks counted in each lane.
      warmup: tasks run before that, not counted.

    Raises:
      ValueError: as `jaxlb.rollout`; or names of several rules, or of one whose settings are not all in what
        it computes when a run starts.
    """
    checks.at_least("num_lanes", num_lanes, 1)
    env.check(params, (num_lanes,))
    params = canonical(params)
    rules, lanes = [scheduler(name) for name in names], (num_lanes,)
    nominal = observe.nominal(with_lane_axis(params, lanes))
    starts = [rule.start(env, nominal, lanes) for rule in rules]
    kinds = {
        (rule.act, jax.tree.structure(start), tuple(map(np.shape, jax.tree.leaves(start))))
        for rule, start in zip(rules, starts, strict=True)
    }
    if len(kinds) != 1 or jax.tree.leaves([rule.variables for rule in rules]):
        raise ValueError(f"names = {checks.shown(names)}: must be one rule's, which remembers its settings")
    each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    told = Scheduler(rules[0].name, (), no_memory, partial(_act, rules[0].act))

    def run(env: Env) -> Summary:
        return jax.vmap(
            lambda settings: rollout(
                env, params, told.replace(variables=settings), key, num_lanes, num_tasks, warmup
            )
        )(each)

    found, _ = lengths.exact(
        rules[0].name,
        env,
        run,
        lambda found: found.queue_overflows,
        lambda: not env.wait_visible,  # then waits are inferred from lengths
        lengths.room(env, len(rules) * num_lanes, warmup + num_tasks),
    )
    completion, violations = (
        np.asarray(figure).mean(1) for figure in (found.mean_completion, found.sla_violation_rate)
    )

    if env.station.most == 1.0:  # of what does the more the more it holds, nobody knows
        busy = np.asarray(found.utilisation, np.float64).mean(-1).max(-1)
        overloads = (busy >= stationarity.ALL_THE_TIME) & (busy.min() < stationarity.ALL_THE_TIME)
        completion, violations = (np.where(overloads, np.inf, each) for each in (completion, violations))

    def tuned(place: int) -> Tuned:
        return Tuned(names[place], rules[place], float(completion[place]), float(violations[place]))

    return {"completion": tuned(int(completion.argmin())), "violations": tuned(int(violations.argmin()))}
