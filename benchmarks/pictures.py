"""Pictures of the documentation that no other command draws.

python benchmarks/pictures.py [--directory docs/images]
"""

from pathlib import Path

import figures
import tyro

import jaxlb


def main(directory: Path = Path("docs/images")) -> None:
    """Draw and write them."""
    systems = [
        jaxlb.make("stable", speed=[1.0, 1.0], load=0.8)[1],
        jaxlb.make("stable", speed=[1.0, 0.2], load=0.7)[1],
    ]
    path = directory / "optimal-policy.png"
    figures.optimal_policies(systems, relative_sizes=(0.25, 1.0, 3.0), most=8.0).savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    tyro.cli(main)
