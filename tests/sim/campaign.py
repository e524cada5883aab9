"""Seeds: each is a cluster and a random plan. ``python -m tests.sim SEED`` tells one move by move."""

from __future__ import annotations

import gc

from tests.sim.plans import drawn, play

SEEDS = 500
"""Seeds for each push."""


def run(part: int, parts: int) -> str:
    """The share ``part`` of the seeds. Raises Violation."""
    steps = 0
    gc.collect()
    gc.freeze()  # each seed ends with a collection: of what it made, not of all modules
    for seed in range(part, SEEDS, parts):
        plan = drawn(seed)
        play(seed, plan)
        steps += len(plan)
    return f"simulator: {len(range(part, SEEDS, parts))} seeds, {steps} moves, 0 violations"
