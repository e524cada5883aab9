"""Plans: what happens to a universe, step by step. A plan is a value, so that one that fails can be kept, and made shorter."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.sim.invariants import agree, check, differences, quiet
from tests.sim.moves import MOVES
from tests.sim.universe import KEYS, Universe, Violation

LEAST_STEPS, MOST_STEPS = 12, 24
PAUSES_S = (0.0, 0.05, 0.5, 2.0, 5.0)
LARGE = 10
"""Hosts from which on a plan is only half as long: what happens among many takes long to compute."""

AGREE_S = 60.0
"""So long after the last fault all nodes have to agree. A probe of a peer that was away for long, a question that failed, and what was
refused is asked for again after 20 s; three at a time are fetched in one base dir."""

FAILED_S = 180.0
"""The same where an upload failed, perhaps several times: what comes from peers is tried again after 20 s, 40 s, 80 s..."""

MOST_SHOWN = 8
BY_NAME = {move.__name__: move for move in MOVES}
WEIGHTS = {move.__name__: weight for move, weight in MOVES.items()}

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Step:
    """One move: its name, the seed of its dice, and the virtual seconds after it."""

    move: str
    dice: int
    pause_s: float

    def __str__(self) -> str:
        return f'Step("{self.move}", {self.dice}, {self.pause_s})'


def drawn(seed: int) -> tuple[Step, ...]:
    """The plan that belongs to a seed."""
    rng = random.Random(f"plan {seed}")
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(LEAST_STEPS, MOST_STEPS))
    return tuple(Step(name, rng.getrandbits(32), rng.choice(PAUSES_S)) for name in names)


def settle(universe: Universe) -> None:
    """End all faults: a whole network, right clocks, keys and disks, everybody up, nobody lies."""
    universe.hub.heal()
    universe.hub.loss = universe.hub.duplication = universe.hub.reordering = 0.0
    for host in universe.everybody():
        host.skew_ms = 0
        host.shelf.free()
        host.own_id()
        host.resume()
        host.start()
        host.keys.update(KEYS)


def agreed(universe: Universe, tell: Tell) -> None:
    """Wait until all hold the same; note it when they do not."""
    failed = any(host.node.ledger.abandoned() for host in universe.ready())
    took_s = universe.run(FAILED_S if failed else AGREE_S, until=lambda: agree(universe))
    tell(f"{universe.clock.seconds():8.2f} agreed after {took_s:.1f} s")
    if not agree(universe):
        universe.violated("I5", f"no agreement {took_s:.0f} s after the last fault: {differences(universe)}")


def play(seed: int, steps: Sequence[Step], tell: Tell = lambda _: None, size: int | None = None) -> None:
    """Take the steps in the universe of ``seed``, end all faults, wait for agreement, and cut the power of everything once more.

    Raises Violation with the story.
    """
    with Universe(seed, size) as universe:
        if len(universe.hosts) >= LARGE:
            steps = steps[: LEAST_STEPS // 2]

        def told(text: str) -> None:
            universe.story.append(text)
            tell(text)

        for step in steps:
            told(f"{universe.clock.seconds():8.2f} {BY_NAME[step.move](universe, random.Random(step.dice))}")
            universe.run(step.pause_s)
            check(universe)
            _raise(universe, steps)
        settle(universe)
        agreed(universe, told)
        for client in universe.clients:
            client.leave()
        universe.run(12.0)
        check(universe, *quiet)
        _raise(universe, steps)
        for host in universe.everybody():
            host.power_cut()
        for host in universe.everybody():
            host.start()
        universe.run(1.0)
        check(universe, *quiet)
        universe.clients.clear()
        universe.graves.clear()
        gc.collect()
        check(universe)
        _raise(universe, steps)


def _raise(universe: Universe, steps: Sequence[Step]) -> None:
    if universe.violations:
        rows = "\n".join(f"  {row}: {text}" for row, text in universe.violations[:MOST_SHOWN])
        plan = "\n".join(f"    {step}," for step in steps)
        story = "\n".join(universe.story)
        raise Violation(f"seed {universe.seed} (python -m tests.sim {universe.seed}):\n{rows}\nafter\n{story}\nby\n{plan}")


def broken_rows(seed: int, steps: Sequence[Step]) -> frozenset[str]:
    """The rows that a plan violates."""
    try:
        play(seed, steps)
    except Violation as violation:
        lines = str(violation).splitlines()[1:]
        return frozenset(line.split(":")[0].strip() for line in lines[: lines.index("after")] if line.startswith("  ") and line[2] == "I")
    return frozenset()


def shortest(seed: int, steps: Sequence[Step], tell: Tell) -> tuple[Step, ...]:
    """Leave out steps as long as the first violated row is still violated."""
    rows = broken_rows(seed, steps)
    best = list(steps)
    at = 0
    while rows and at < len(best):
        fewer = best[:at] + best[at + 1 :]
        if rows & broken_rows(seed, fewer):
            best = fewer
            tell(f"{len(best)} steps")
        else:
            at += 1
    return tuple(best)
