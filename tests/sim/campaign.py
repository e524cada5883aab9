"""Seeds: each is a cluster and a random plan. ``python -m tests.sim SEED`` tells one move by move."""

from __future__ import annotations

import gc

from tests.sim.plans import drawn, play

SEEDS = 500
"""Seeds of a whole campaign."""

AT_PUSH = 200
"""The first of them, for each push. The pinned ones are among the tests, too."""


def run(part: int, parts: int, *, everything: bool = False, first: int = 0) -> str:
    """The share ``part`` of the seeds from ``first`` on. Raises Violation."""
    seeds = range(first, first + (SEEDS if everything else AT_PUSH))[part::parts]
    steps = 0
    gc.collect()
    gc.freeze()  # each seed ends with a collection: of what it made, not of all modules
    for seed in seeds:
        plan = drawn(seed)
        play(seed, plan)
        steps += len(plan)
    return f"simulator: {len(seeds)} seeds, {steps} moves, 0 violations"
