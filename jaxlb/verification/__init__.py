"""The simulator against exact results: what `jaxlb verify` runs.

A case compares a measured mean with a value that `theory` computes or the literature gives. Lanes are
independent, so their spread gives the standard error. A case fails if it is off by more than 4 standard
errors and by more than its tolerance (0.5 % unless stated otherwise), and also if its 95 % interval is wider
than its precision (0.5 % to either side, 2 % where the variance makes that dear).

Lanes start empty. What they do before is forgotten at the rate of the relaxation time, which for a queue of
load r and squared coefficients of variation a of the gaps and s of the sizes is about 2 (a + s) / (1 - r)^2
mean services (Abate and Whitt 1987), here of the slowest processor; five of these are not counted, so that
at most e^-5 = 0.7 % of the initial deviation is left when counting begins, spread over a longer run.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxlb import files
from jaxlb.environments import make, scenarios
from jaxlb.threads import threads
from jaxlb.types import Key
from jaxlb.verification import disciplines, inputs, laws, queues, rules
from jaxlb.verification.base import Case, Experiment, Finding, judge
from jaxlb.version import __version__

__all__ = ["GROUPS", "QUICK", "Case", "Experiment", "Finding", "experiments", "judge", "verify"]

GROUPS = (
    "One processor",
    "Disciplines",
    "Central queue",
    "Blind splitting",
    "Queue lengths",
    "Stale information",
    "Task sizes",
    "Optimal",
    "Balance",
    "Gaps drawn",
    "Sizes drawn",
    "Precision",
)
"""Groups of cases, in the order in which they are shown."""


def experiments() -> list[Experiment]:
    """List all experiments, the longest first, so that two cores end together."""
    part = functools.partial
    one, blind, lengths = "One processor", "Blind splitting", "Queue lengths"
    size_laws = laws.laws()
    return [
        Experiment("Precision", "10^9 tasks", inputs.endurance, quick=False),
        Experiment("Precision", "10^8 tasks under sharing", disciplines.endurance, quick=False),
        *(
            Experiment("Stale information", name, part(rules.stale, *setting), quick=False)
            for name, setting in {
                "JSQ, every 1": (None, 1.0, 500, 16, 1.1),
                "JSQ, every 0.2": (None, 0.2, 500, 8, 0.6),
                "power of 2, every 5": (2, 5.0, 256, 24, 0.6),
                "power of 3, every 5": (3, 5.0, 256, 24, 0.6),
                "power of 2, every 1": (2, 1.0, 256, 16, 0.6),
                "power of 2, every 0.2": (2, 0.2, 256, 12, 0.6),
            }.items()
        ),
        *(
            Experiment(
                lengths, f"mean field {d}, {load}", part(rules.mean_field, d, load, millions), quick=False
            )
            for d, load, millions in ((2, 0.5, 0.4), (2, 0.9, 0.8))
        ),
        Experiment(lengths, "power of 2", rules.power_of_two, quick=False),
        Experiment("Task sizes", "SITA-E", rules.sita, quick=False),
        *(Experiment("Central queue", f"M/M/{k}", part(queues.mmk, k), quick=k == 4) for k in (2, 4)),
        Experiment(one, "M/M/1", queues.mm1),
        *(
            Experiment(
                one, f"M/G/1 {name}", part(queues.mg1, name, law), quick=name in ("deterministic", "bimodal")
            )
            for name, law in size_laws.items()
        ),
        *(
            Experiment(
                "Disciplines", case.name, part(disciplines.system, case), quick=case.name in disciplines.QUICK
            )
            for case in disciplines.exact()
        ),
        Experiment("Central queue", "Kiefer-Wolfowitz", queues.pathwise),
        *(Experiment(blind, f"E_{k}/M/1", part(rules.round_robin, k), quick=k == 4) for k in (2, 4)),
        Experiment(blind, "random", rules.random_splitting),
        Experiment(lengths, "JSQ", rules.jsq),
        *(
            Experiment(
                lengths, f"speeds 1 and {slow}", part(rules.unequal_processors, slow), quick=slow == 0.2
            )
            for slow in (0.2, 0.5)
        ),
        Experiment("Optimal", "optimal", rules.size_aware, quick=False),
        *(
            Experiment("Balance", name, part(inputs.balance, name), quick=name == "seed")
            for name in scenarios()
            if make(name)[0].station.settled  # others are held against exact values
        ),
        *(
            Experiment(
                "Gaps drawn", name, part(inputs.gaps, name, *process), quick=name in ("Poisson", "MMPP(2)")
            )
            for name, process in inputs.processes().items()
        ),
        *(
            Experiment("Sizes drawn", name, part(inputs.task_sizes, name, law), quick=name == "exponential")
            for name, law in size_laws.items()
        ),
    ]


QUICK = 0.1
"""Thoroughness of the quick run."""


def verify(
    key: Key,
    *,
    quick: bool = False,
    keep: Path | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> list[Case]:
    """Run all experiments and judge what they find.

    Args:
      key: consumed.
      quick: a tenth of the tasks, and only the experiments that are still significant then.
      keep: a file in which the cases of finished experiments are kept; what it has already is not run again.
      on_progress: called with the name of an experiment that has ended and the share of all that have.

    Returns:
      The cases, groups together.

    Raises:
      ValueError: the file is of another verification.
    """
    chosen = [experiment for experiment in experiments() if experiment.quick or not quick]
    thoroughness = QUICK if quick else 1.0
    own = {"jax": jax.__version__, "key": np.asarray(jax.random.key_data(key)).tolist(), "quick": quick}
    kept = files.Kept(keep, {"jaxlb": __version__, **own})
    known = {one["experiment"]: [Case(*case) for case in one["cases"]] for one in kept.found}
    ended: list[str] = []

    def run(experiment: Experiment, key: Key) -> list[Case]:
        title = f"{experiment.group}: {experiment.name}"
        cases = known.get(title)
        if cases is None:
            began = time.perf_counter()
            findings = experiment.run(key, thoroughness).items()
            cases = [judge(experiment.group, name, finding, thoroughness) for name, finding in findings]
            kept.add({"experiment": title, "seconds": time.perf_counter() - began, "cases": cases})
        ended.append(title)
        if on_progress is not None:
            on_progress(experiment.name, len(ended) / len(chosen))
        return cases

    # Compiling takes one core, and so does theory: two experiments at a time keep all busy.
    with threads() as pool:
        keys = jax.random.split(key, len(chosen))
        found = [case for cases in pool.map(run, chosen, keys) for case in cases]
    return sorted(found, key=lambda case: GROUPS.index(case.group))
