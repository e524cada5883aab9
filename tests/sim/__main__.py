"""``python -m tests.sim SEED [--moves N] [--shorten]``: one seed, move by move."""

from __future__ import annotations

import argparse
import sys

from tests.sim.plans import drawn, play, shortest
from tests.sim.universe import Violation


def main() -> int:
    """1 when an invariant does not hold."""
    parser = argparse.ArgumentParser(description="Play one seed of the simulator.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--moves", type=int, help="only the first so many moves")
    parser.add_argument("--shorten", action="store_true", help="leave out moves that a violation does not need; takes minutes")
    options = parser.parse_args()

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    steps = drawn(options.seed)[: options.moves]
    if options.shorten:
        steps = shortest(options.seed, steps, tell)
    try:
        play(options.seed, steps, tell)
    except Violation as violation:
        tell(str(violation))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
