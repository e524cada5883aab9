"""Power cuts at every call of an append, a replacement and a deletion (threats F38, A44).

A cut keeps what was synced, and any part of the rest that a file system may keep (``simos_volume``). Where there are at most
:data:`MOST_SUBSETS` possibilities, all of them are looked at, else a sample. To replay: ``check_cut("replace", 17, [0, 1, 1])`` with the
choices that the message names.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from twisted.logger import globalLogBeginner

from ciruela.disk.layout import place
from ciruela.model.errors import DiskError, DownloadFailed
from tests.disk.bench import CONFIGS, NEW, OLD, OTHER, V1, V2, Bench, Stand, Violation, Work, check_records, stand, succeed
from tests.disk.trees import Spec
from tests.doubles.simos import SimOS

MOST_SUBSETS = 1 << 10
SAMPLE = 240
MANY: Spec = {f"/f{number}": b"%d" % (number % 3) for number in range(70)}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a node does while the power goes, over ``old``, and what may stand at ``V1``: the last if it is done."""

    name: str
    old: Spec | None
    act: Work
    stands: tuple[Stand, ...]


PLANS = {
    plan.name: plan
    for plan in (
        Plan("append", None, lambda bench: bench.upload(V1, NEW, 5), (stand(None), stand(NEW))),
        Plan("append many", None, lambda bench: bench.upload(V1, MANY, 5), (stand(None), stand(MANY))),
        Plan("replace", OLD, lambda bench: bench.upload(V1, NEW, 5), (stand(OLD), stand(NEW))),
        Plan("remove", OLD, lambda bench: bench.remove(V1, OLD, 1), (stand(OLD), stand(None))),
    )
}


class Choices:
    """Chooses as it is told, then at random or 0; remembers what there was to choose from."""

    def __init__(self, told: list[int], rng: random.Random | None = None) -> None:
        self.told = told
        self.rng = rng
        self.made: list[int] = []
        self.most: list[int] = []

    def __call__(self, count: int) -> int:
        at = len(self.made)
        chosen = self.told[at] if at < len(self.told) else self.rng.randrange(count) if self.rng else 0
        self.made.append(chosen)
        self.most.append(count)
        return chosen

    def following(self) -> list[int] | None:
        """What to tell the next one, so that all possibilities have their turn; None after the last."""
        made, most = self.made[:], self.most[:]
        while made and made[-1] + 1 >= most[-1]:
            made.pop()
            most.pop()
        if not made:
            return None
        made[-1] += 1
        return made


LOOKING = frozenset({"open", "close", "stat", "fstat", "fstatvfs", "pread", "read", "listdir", "scandir", "readlink", "dup", "flock"})


@functools.cache
def moments(name: str, *, syncs: bool = True) -> list[tuple[SimOS, bool]]:
    """The disks before each call that is not only a look, and at the end; and whether the operation was acknowledged by then.

    Without ``syncs`` nothing that it does is made durable: for the proof that the check can fail.
    """
    plan = PLANS[name]
    bench = Bench()
    seen: list[tuple[SimOS, bool]] = []

    def before(call: str, _mount: str) -> None:
        if call not in LOOKING:
            seen.append((bench.sim.clone(), False))

    with bench.sim.installed():
        succeed(bench, lambda bench: bench.upload(V2, OTHER, 1))
        if plan.old is not None:
            old = plan.old
            succeed(bench, lambda bench: bench.upload(V1, old, 1))
        bench.sim.settle("/n")
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


def cuts(disks: SimOS, seed: int, most: int = MOST_SUBSETS, sample: int = SAMPLE) -> Iterator[tuple[SimOS, list[int]]]:
    """What a start may find after a cut now, and the choices that lead there: all, or a sample where they are more than ``most``."""
    first = Choices([])
    disks.clone().power_cut(first, "/n")
    if math.prod(first.most) > most:
        rng = random.Random(seed)
        for _ in range(sample):
            choices = Choices([], rng)
            after = disks.clone()
            after.power_cut(choices, "/n")
            yield after, choices.made
        return
    told: list[int] | None = []
    while told is not None:
        choices = Choices(told)
        after = disks.clone()
        after.power_cut(choices, "/n")
        yield after, choices.made
        told = choices.following()


def check_cut(name: str, at: int, told: list[int], *, syncs: bool = True) -> None:
    """Let the power go at one moment. Raises Violation."""
    disks, acked = moments(name, syncs=syncs)[at]
    after = disks.clone()
    after.power_cut(Choices(told), "/n")
    check_start(PLANS[name], after, acked, f'check_cut("{name}", {at}, {told})')


def check_start(plan: Plan, disks: SimOS, acked: bool, replay: str, *, finish: bool = True) -> None:
    """A start after a cut finds what was acknowledged, else the old or the new, whole; and the operation can be done again."""
    bench = Bench(disks)
    with disks.installed():
        try:
            _check_start(plan, bench, acked, plan.stands[-1:] if acked else plan.stands)
            if finish:
                if plan.name != "remove" or bench.tree(V1) is not None:
                    succeed(bench, plan.act)
                bench.store.close()
                bench.restart()
                _check_start(plan, bench, True, plan.stands[-1:])
                if bench.debris():
                    raise Violation(f"debris: {bench.debris()}")
        except (AssertionError, OSError, DiskError, DownloadFailed) as error:
            raise Violation(f"{replay}: {type(error).__name__}: {error}") from error


def _check_start(plan: Plan, bench: Bench, acked: bool, stands: tuple[Stand, ...]) -> None:
    loaded = bench.loaded()
    check_records(bench)
    images = {held.vpath: held.committed.image for held in loaded.held if held.committed}
    for vpath, allowed in ((V1, stands), (V2, (stand(OTHER),))):
        found = Stand(images.get(vpath), bench.tree(vpath))
        if found not in allowed:
            raise Violation(f"at {vpath} stands {found}")
    pending = [held.pending for held in loaded.held if held.pending]
    if acked and pending:
        raise Violation(f"acknowledged, and still pending: {pending}")
    debris = bench.debris() - {place(CONFIGS, each.vpath).staging(each.state.image) for each in pending}
    if debris:
        raise Violation(f"debris: {debris}")


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


def run(part: int, parts: int) -> str:
    """One share of all moments."""
    globalLogBeginner.beginLoggingTo([lambda _event: None], discardBuffer=True, redirectStandardIO=False)
    counts = [check_plan(name, part=part, parts=parts, sample=12 if name == "append many" else SAMPLE) for name in PLANS]
    return f"powercuts: {sum(cut for cut, _ in counts):,} cuts, {sum(left for _, left in counts):,} different disks, 0 violations"
