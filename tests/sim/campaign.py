"""Seeds: each is a cluster and a random plan. ``python -m tests.sim SEED`` tells one move by move."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

from tests.sim.invariants import agree, check, views
from tests.sim.moves import MOVES
from tests.sim.universe import KEYS, Universe, Violation

SEEDS = 500
"""Seeds for each push."""

LEAST_MOVES, MOST_MOVES = 12, 24
PAUSES_S = (0.0, 0.05, 0.5, 2.0, 5.0)
AGREE_S = 400.0
"""So long after the last fault all nodes have to agree: what a peer's list did not bring is asked for again after 300 s."""

MOST_SHOWN = 8


def settle(universe: Universe) -> None:
    """End all faults: a whole network, right clocks, keys and disks, everybody up, nobody lies."""
    universe.hub.heal()
    universe.hub.loss = universe.hub.duplication = universe.hub.reordering = 0.0
    for host in universe.everybody():
        host.skew_ms = 0
        host.shelf.free()
        host.resume()
        host.start()
    for host in universe.everybody():
        host.keys.update(KEYS)


def play(seed: int, tell: Callable[[str], None] = lambda _: None, moves: int | None = None) -> int:
    """One seed: the number of its moves. Raises Violation with the plan."""
    rng = random.Random(f"plan {seed}")
    count = rng.randint(LEAST_MOVES, MOST_MOVES) if moves is None else moves
    with Universe(seed) as universe:
        universe.run(rng.choice((0.1, 3.0)))
        for _ in range(count):
            move = rng.choices(list(MOVES), list(MOVES.values()))[0]
            told = move(universe, rng)
            universe.story.append(f"{universe.clock.seconds():8.2f} {told}")
            tell(universe.story[-1])
            universe.run(rng.choice(PAUSES_S))
            check(universe)
            _raise(universe)
        settle(universe)
        took_s = universe.run(AGREE_S, until=lambda: agree(universe))
        tell(f"{universe.clock.seconds():8.2f} agreed after {took_s:.1f} s")
        if not agree(universe):
            universe.violated("I5", f"no agreement {took_s:.0f} s after the last fault: {_differences(universe)}")
        check(universe, end=True)
        _raise(universe)
    gc.collect()
    return count


def _differences(universe: Universe) -> str:
    found = []
    for key, by_host in views(universe).items():
        if len({tuple(sorted(held.items())) for held in by_host.values()}) > 1:
            texts = (
                f"n{number} {[(str(vpath), version.image.hex()[:6]) for vpath, version in sorted(held.items())]}"
                for number, held in by_host.items()
            )
            found.append(f"{key}: {'; '.join(texts)}")
    return " | ".join(found)[:2000]


def _raise(universe: Universe) -> None:
    if universe.violations:
        rows = "\n".join(f"  {row}: {text}" for row, text in universe.violations[:MOST_SHOWN])
        raise Violation(f"seed {universe.seed} (python -m tests.sim {universe.seed}):\n{rows}\nafter\n" + "\n".join(universe.story))


def run(part: int, parts: int) -> str:
    """The share ``part`` of the seeds. Raises Violation."""
    moves = sum(play(seed) for seed in range(part, SEEDS, parts))
    return f"simulator: {len(range(part, SEEDS, parts))} seeds, {moves} moves, 0 violations"
