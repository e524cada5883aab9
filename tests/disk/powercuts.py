"""Power cuts at every call of an append, a replacement, a repair and a deletion (threats F38, A44).

A cut keeps what was synced, and any part of the rest that a file system may keep (``simos_volume``). Where there are at most
:data:`tests.disk.plans.MOST_SUBSETS` possibilities, all of them are looked at, else a sample. To replay:
``check_cut("replace", 17, [0, 1, 1])`` with the choices that the message names.
"""

from __future__ import annotations

import functools

from twisted.logger import globalLogBeginner

from tests.disk.bench import succeed
from tests.disk.plans import LOOKING, MOST_SUBSETS, PLANS, SAMPLE, Choices, check_start, cuts, ready
from tests.disk.second_faults import COURSES, calls_of, check_course
from tests.doubles.simos import SimOS

LONG = "append many"
"""A plan of many files that are alike: a smaller sample says as much."""

LONG_STEP = 5

AT_PUSH_SUBSETS = 1 << 6
AT_PUSH_SAMPLE = 24
"""At a push fewer possibilities are looked at, at the same moments."""

AT_PUSH_STEP = 3
"""At a push each course begins with a fault at every third call, each at another third than the course before it."""


@functools.cache
def moments(name: str, *, syncs: bool = True) -> list[tuple[SimOS, bool]]:
    """The disks before each call that is not only a look, and at the end; and whether the operation was acknowledged by then.

    Without ``syncs`` nothing that it does is made durable: for the proof that the check can fail.
    """
    plan = PLANS[name]
    bench = ready(name).copy()
    seen: list[tuple[SimOS, bool]] = []

    def before(call: str, _mount: str) -> None:
        if call not in LOOKING:
            seen.append((bench.sim.clone(), False))

    with bench.sim.installed():
        bench.sim.before = before
        if not syncs:
            bench.sim.__dict__.update(fsync=_no_sync, syncfs=_no_sync)
        succeed(bench, plan.act)
        bench.store.close()
        seen.append((bench.sim.clone(), True))
    for sim, _ in seen:
        sim.__dict__.pop("fsync", None)
        sim.__dict__.pop("syncfs", None)
    return seen


def _no_sync(_fd: int) -> None:
    """What a disk does that lies."""


def check_cut(name: str, at: int, told: list[int], *, syncs: bool = True) -> None:
    """Let the power go at one moment. Raises Violation."""
    disks, acked = moments(name, syncs=syncs)[at]
    after = disks.clone()
    after.power_cut(Choices(told), "/n")
    check_start(PLANS[name], after, acked, f'check_cut("{name}", {at}, {told})')


def check_plan(
    name: str, *, part: int = 0, parts: int = 1, step: int = 1, most: int = MOST_SUBSETS, sample: int = SAMPLE
) -> tuple[int, int]:
    """Cut the power at each ``step``-th moment. How many cuts there were, and how many different disks they left."""
    count = 0
    seen: set[tuple[bytes, bool]] = set()
    for at, (disks, acked) in enumerate(moments(name)):
        if at % parts != part or (at % step and not acked):
            continue
        for after, made in cuts(disks, at, most, sample):
            count += 1
            key = after.digest("/n"), acked
            if key not in seen:
                seen.add(key)
                check_start(PLANS[name], after, acked, f'check_cut("{name}", {at}, {made})', finish=len(seen) % 4 == 0)
    return count, len(seen)


def run(part: int, parts: int, *, everything: bool = False) -> str:
    """One share of all moments, and of the faults that a power cut follows: all, but a fifth of them in the long plan."""
    globalLogBeginner.beginLoggingTo([lambda _event: None], discardBuffer=True, redirectStandardIO=False)
    most, sample = (MOST_SUBSETS, SAMPLE) if everything else (AT_PUSH_SUBSETS, AT_PUSH_SAMPLE)
    counts = [check_plan(name, part=part, parts=parts, most=most, sample=12 if name == LONG else sample) for name in PLANS]
    step = 1 if everything else AT_PUSH_STEP
    second = [
        check_course(
            name,
            course,
            range(1 + part + parts * (turn % step), len(calls_of(name)) + 1, parts * step * (LONG_STEP if name == LONG else 1)),
            sample=3 if name == LONG else 6,
        )
        for name in PLANS
        for turn, course in enumerate(COURSES)
    ]
    return (
        f"powercuts: {sum(cut for cut, _ in counts):,} cuts, {sum(left for _, left in counts):,} different disks; "
        f"{sum(cut for cut, _ in second):,} cuts after another fault, {sum(left for _, left in second):,} different disks; 0 violations"
    )
