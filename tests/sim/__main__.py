"""``python -m tests.sim SEED [--moves N]``: one seed, move by move."""

from __future__ import annotations

import argparse
import sys

from tests.sim.campaign import play
from tests.sim.universe import Violation


def main() -> int:
    """1 when an invariant does not hold."""
    parser = argparse.ArgumentParser(description="Play one seed of the simulator.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--moves", type=int, help="so many moves instead of those that the seed has")
    options = parser.parse_args()
    try:
        play(options.seed, lambda line: sys.stdout.write(line + "\n"), options.moves)
    except Violation as violation:
        sys.stdout.write(f"{violation}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
