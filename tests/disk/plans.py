"""What a node does while its power goes, what a power cut may leave of it, and what a start must find then."""

from __future__ import annotations

import functools
import math
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ciruela.disk.layout import place
from ciruela.disk.openfile import STAMP_NS
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.vpath import VPath
from tests.disk.bench import CONFIGS, K1, NEW, OLD, OTHER, PARTS, V1, V2, Bench, Stand, Violation, Work, check_records, done, stand, succeed
from tests.disk.trees import Spec, flat
from tests.doubles.simos import SimOS
from tests.doubles.simos_inode import Inode

MOST_SUBSETS = 1 << 8
SAMPLE = 160
EXECUTABLE = frozenset({"/sub/x", "/copied"})
MANY: Spec = {f"/f{number}": b"%d" % (number % 3) for number in range(70)}
"""An image that one syncfs makes durable."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a node does while the power goes, over ``old``, and what may stand at ``path``: the last if it is done.

    ``strange`` stands there without a record, and is never lost. Without a ``sibling`` nothing else was ever uploaded: the directories of
    the records are made as well.
    """

    name: str
    old: Spec | None
    act: Work
    stands: tuple[Stand, ...]
    sibling: bool = True
    exchanges: bool = True
    clones: bool = False
    path: VPath = V1
    strange: Spec | None = None


PLANS = {
    plan.name: plan
    for plan in (
        Plan("append", None, lambda bench: bench.upload(V1, NEW, 5), (stand(None), stand(NEW))),
        Plan("first", None, lambda bench: bench.upload(V1, NEW, 5), (stand(None), stand(NEW)), sibling=False),
        Plan("append many", None, lambda bench: bench.upload(V1, MANY, 5), (stand(None), stand(MANY))),
        Plan("replace", OLD, lambda bench: bench.upload(V1, NEW, 5), (stand(OLD), stand(NEW))),
        Plan("replace without exchange", OLD, lambda bench: bench.upload(V1, NEW, 5), (stand(OLD), stand(NEW)), exchanges=False),
        Plan("append by copy", None, lambda bench: bench.upload(V1, PARTS, 5), (stand(None), stand(PARTS))),
        Plan("append by clone", None, lambda bench: bench.upload(V1, PARTS, 5), (stand(None), stand(PARTS)), clones=True),
        Plan("set aside", None, lambda bench: bench.upload(V1, NEW, 5), (stand(OLD, recorded=False), stand(NEW)), strange=OLD),
        Plan(
            "set aside without exchange",
            None,
            lambda bench: bench.upload(V1, NEW, 5),
            (stand(OLD, recorded=False), stand(NEW)),
            strange=OLD,
            exchanges=False,
        ),
        Plan("restore", NEW, lambda bench: bench.restore(V1, NEW, 1), (stand(NEW),)),
        Plan("remove", OLD, lambda bench: bench.remove(V1, OLD, 1), (stand(OLD), stand(None))),
        Plan("replace and keep", OLD, lambda bench: bench.upload(K1, NEW, 5), (stand(OLD), stand(NEW)), path=K1),
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
def ready(name: str) -> Bench:
    """A node as it is long before, for copies of it."""
    plan = PLANS[name]
    bench = Bench()
    with bench.sim.installed():
        if plan.sibling:
            succeed(bench, lambda bench: bench.upload(V2, OTHER, 1))
        if plan.old is not None:
            old = plan.old
            succeed(bench, lambda bench: bench.upload(plan.path, old, 1))
        if plan.strange is not None:
            bench.plant(plan.strange)
        bench.store.close()
    bench.sim.settle("/n")
    bench.sim.volume("/n").exchanges = plan.exchanges
    bench.sim.volume("/n").clones = plan.clones
    return bench


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


def check_start(plan: Plan, disks: SimOS, acked: bool, replay: str, *, finish: bool = True, failed: bool = False) -> None:
    """A start after a cut finds what was acknowledged, else the old or the new, whole; and the operation can be done again.

    After the disk has ``failed``, a replaced image may be lost that would have been kept: no commit waits for that.
    """
    bench = Bench(disks)
    with disks.installed():
        try:
            _check_start(plan, bench, acked, plan.stands[-1:] if acked else plan.stands, failed)
            if finish:
                succeed(bench, plan.act)
                bench.store.close()
                bench.restart()
                _check_start(plan, bench, True, plan.stands[-1:], failed)
                if bench.debris():
                    raise Violation(f"debris: {bench.debris()}")
        except (AssertionError, OSError, DiskError, DownloadFailed) as error:
            raise Violation(f"{replay}: {type(error).__name__}: {error}") from error


def _check_start(plan: Plan, bench: Bench, acked: bool, stands: tuple[Stand, ...], failed: bool) -> None:
    loaded = bench.loaded()
    check_records(bench)
    images = {held.vpath: held.committed.image for held in loaded.held if held.committed}
    for vpath, allowed in ((plan.path, stands), (V2, (stand(OTHER if plan.sibling else None),))):
        found = Stand(images.get(vpath), bench.tree(vpath))
        if found not in allowed:
            raise Violation(f"at {vpath} stands {found}")
    pending = [held.pending for held in loaded.held if held.pending]
    if acked and pending:
        raise Violation(f"acknowledged, and still pending: {pending}")
    wrong = [
        at for at, inode in bench.sim.inodes(str(place(CONFIGS, plan.path))) if images.get(plan.path) and not _as_it_should_be(at, inode)
    ]
    if wrong:
        raise Violation(f"modes or times are wrong: {wrong}")
    for image in images.values() if acked else ():
        if done(bench.store.read_index(image)) is None:
            raise Violation("the index of an acknowledged image is gone")
    kept = flat(OLD) if images.get(K1) == stands[-1].image else None
    if plan.path == K1 and bench.kept_tree(OLD) not in ((kept, None) if failed else (kept,)):
        raise Violation(f"kept is {bench.kept_tree(OLD)}")
    if plan.strange is not None and bench.tree(V1) != flat(plan.strange) and flat(plan.strange) not in bench.asides().values():
        raise Violation("what stood there without a record is lost")
    debris = bench.debris() - {place(CONFIGS, each.vpath).staging(each.state.image) for each in pending}
    if debris:
        raise Violation(f"debris: {debris}")


def _as_it_should_be(at: str, inode: Inode) -> bool:
    if inode.is_link:
        return True
    mode = 0o755 if inode.is_dir or at in EXECUTABLE else 0o644
    return stat.S_IMODE(inode.mode) == mode and (inode.is_dir or inode.modified_ns == STAMP_NS)
