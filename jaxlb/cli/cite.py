"""jaxlb cite: how to cite it, and a run."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxlb import records
from jaxlb.statistics import latex
from jaxlb.version import __version__


@dataclass(frozen=True)
class Cite:
    """Print the BibTeX entry of a run."""

    directory: tyro.conf.Positional[Path | None] = None
    """A run folder; if not given, jaxlb itself."""

    def run(self) -> None:
        """Print the entry."""
        entry = {
            "author": "{The jaxlb developers}",
            "title": "jaxlb: load balancing of heterogeneous multiprocessor systems in {JAX}",
            "version": __version__,
        }
        key = "jaxlb"
        if self.directory is not None:
            about = records.read(self.directory)
            if about is None:
                raise ValueError(f"{self.directory}: no run folder, which has a {records.RECORD}")
            found = {name: about["versions"][name] for name in ("jax", "numpy", "python")}
            of_run = [rf"\texttt{{{latex(about.get('line') or 'jaxlb ' + about['command'])}}}"]
            of_run += [f"scenario {latex(str(about['scenario']))}"] * (about.get("scenario") is not None)
            of_run += [f"commit {about['commit']}"] * (about.get("commit") is not None)
            of_run += [f"{name} {version}" for name, version in found.items()]
            entry |= {"version": about["versions"]["jaxlb"], "year": about["started"][:4]}
            entry |= {"note": ", ".join(of_run)}
            key = f"jaxlb-{about['id'][:8]}" if "id" in about else key
        lines = [f"  {name} = {{{value}}}," for name, value in entry.items()]
        print("\n".join([f"@software{{{key},", *lines, "}"]))
