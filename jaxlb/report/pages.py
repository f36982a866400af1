"""Pages that commands write."""

import itertools
import os
import platform
from collections.abc import Sequence

import jax

from jaxlb.verification import Case

_VERIFICATION = """# Verification

Written by

    {command}

{verdict}, in {time} on {cores} cores ({machine}, Python {python}, JAX {jax}).

Each case compares what the simulator measured with what queueing theory says (`jaxlb/theory.py`, with its
sources). Mean service is 1 unless said otherwise; a response is the time from arrival to departure, a
wait the time until service starts. Intervals come from independent lanes.

- A case **fails** if it is off by more than 4 standard errors *and* by more than 0.5 % (2 % for fluid
  limits, which hold for infinitely many processors), or if its 95 % interval reaches further than 0.5 %
  to either side (2 % for heavy tails and second moments). So a bias of 1 % is caught, and of a hundred
  such runs of a true simulator about one has a case beyond 4 standard errors.
- **Warm-up.** Lanes start empty. A queue forgets that at the rate of its relaxation time, about 2 (A + S)
  / (1 - load)^2 mean services (of the slowest processor), where A and S are the squared coefficients of
  variation of gaps and sizes (Abate and Whitt 1987). Five of them pass before counting begins, so at most
  e^-5 = 0.7 % of the initial deviation is left, averaged over a run several times longer. Where that would
  be very long (many processors, bursts, huge tasks), 10,000 tasks or 50 to 300 a processor pass.
- **Where no interval stands**, the value is not random and is compared as it is.

![Deviations in standard errors](verification.png)

"""


def verification(cases: Sequence[Case], command: str, minutes: float | None) -> str:
    """Write what `jaxlb verify` found, as Markdown.

    Args:
      cases: groups together.
      command: that regenerates the page.
      minutes: that it took; None: several stretches.
    """
    failed = sum(not case.passed for case in cases)
    page = _VERIFICATION.format(
        command=command,
        verdict=f"**{failed} of {len(cases)} cases failed**" if failed else f"All {len(cases)} cases passed",
        time=f"{minutes:.1f} minutes" if minutes else "several stretches",
        cores=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
        jax=jax.__version__,
    )
    for group, members in itertools.groupby(cases, key=lambda case: case.group):
        page += f"## {group}\n\n| case | measured | ± (95 %) | exact | deviation / SE | |\n"
        page += "|---|---:|---:|---:|---:|---|\n"
        for case in members:
            cells = (case.name, *case.figures(), "passed" if case.passed else "**failed**")
            page += f"| {' | '.join(cells)} |\n"
        page += "\n"
    return page.rstrip() + "\n"
