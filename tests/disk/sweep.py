"""Fails or kills at the N-th call of each operation, for every N (threats F28, F29, F35-F37; bench U).

A point is a scenario, a kind of fault and the number of the call that it hits. All calls count, also those that only look. A scenario is
one row of :data:`SCENARIOS`. To replay a violation: ``check_point(scenario("replace"), KINDS["EIO"], 17)``.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from ciruela.disk.layout import place
from ciruela.interfaces import Loaded
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.vpath import VPath
from tests.disk.bench import (
    CONFIGS,
    K1,
    NEW,
    OLD,
    ONE,
    OTHER,
    PARTS,
    V1,
    V2,
    V3,
    Bench,
    Stand,
    Violation,
    Work,
    check_records,
    done,
    indexed,
    kill_after,
    outcome,
    stand,
    succeed,
)
from tests.disk.faulty import Killed
from tests.disk.trees import Spec, flat, state_of
from tests.doubles.simos_disks import CHANGING, SYNCING

LEAST, LEAST_AT_PUSH = 17_000, 11_000
"""There are more points than this; how many depends on the calls of the program."""

ALL = frozenset({"everything"})


@dataclass(frozen=True)
class Kind:
    """A fault. ``code`` None is a kill. ``lasting`` are the calls that fail from then on, too."""

    name: str
    code: int | None
    lasting: frozenset[str] = frozenset()

    def hits(self, call: str) -> bool:
        """Whether it can begin with this call. What begins with a call that it does not concern is the same as one that begins later."""
        return not self.lasting or self.lasting is ALL or call in self.lasting


KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill", None),
        *(Kind(name, getattr(errno, name)) for name in ("ENOSPC", "EIO", "EROFS", "EACCES", "EMFILE")),
        Kind("ENOSPC for good", errno.ENOSPC, CHANGING - {"unlink", "rmdir"}),
        Kind("EROFS for good", errno.EROFS, CHANGING - SYNCING),
        Kind("EIO for good", errno.EIO, ALL),
    )
}


class Fault:
    """What happens before each call."""

    def __init__(self, kind: Kind | None, at: int) -> None:
        self.kind = kind
        self.at = at
        self.calls: list[str] = []

    def __call__(self, call: str, _mount: str) -> None:
        self.calls.append(call)
        kind, late = self.kind, len(self.calls) - self.at
        if kind is None or late < 0:
            return
        if kind.code is None:
            raise Killed
        if not late or kind.lasting is ALL or call in kind.lasting:
            raise OSError(kind.code, os.strerror(kind.code))


@dataclass(frozen=True, eq=False)
class Scenario:
    """An operation on a node that was made ready.

    ``stands`` are, for each path, what may be recorded and stand there after a start, the last of them when ``act`` was done.
    ``told``: the operation answers that it was done only if it was. ``moment``: for a moment nothing stands at the path.
    ``turns``: it is so much like another one that all kinds but kills take turns.
    ``also`` checks what else is promised after a start; its last argument is whether ``act`` was done.
    """

    name: str
    ready: Work
    act: Work
    stands: Mapping[VPath, tuple[Stand, ...]]
    told: bool = True
    moment: bool = False
    turns: bool = False
    also: Callable[[Bench, Loaded, bool], None] = field(default=lambda _bench, _loaded, _done: None)


# -- the table ----------------------------------------------------------------------------------------------------------------

LATER = state_of(indexed(OLD)[0], 1).merged(state_of(indexed(OLD)[0], 7).signatures)
DAMAGED: Spec = {**NEW, "/new": b"NEW" * 2000}
THERE = (stand(OTHER),)
JUNK = "/n/srv/web/.ciruela~junk"


async def _sibling(bench: Bench) -> None:
    await bench.upload(V2, OTHER, 1)


async def _old(bench: Bench) -> None:
    await _sibling(bench)
    await bench.upload(V1, OLD, 1)


async def _old_single(bench: Bench) -> None:
    await _sibling(bench)
    await bench.upload(ONE, OLD, 1)


async def _no_exchange(bench: Bench) -> None:
    await _old(bench)
    bench.sim.volume("/n").exchanges = False


async def _clones(bench: Bench) -> None:
    await _sibling(bench)
    bench.sim.volume("/n").clones = True


async def _planted(bench: Bench) -> None:
    await _sibling(bench)
    bench.plant(NEW)


async def _strange(bench: Bench) -> None:
    """A tree of which nothing is recorded, and which is not the image that comes."""
    await _sibling(bench)
    bench.plant(OLD)


async def _strange_without_exchange(bench: Bench) -> None:
    await _strange(bench)
    bench.sim.volume("/n").exchanges = False


def _aside(bench: Bench, _loaded: Loaded, acted: bool) -> None:
    """What nobody knows is never lost: it stands at the name, or is set aside, and a node tells of that."""
    asides = [tree for at, tree in bench.asides().items() if tree == flat(OLD)]
    if len(asides) != (bench.tree(V1) != flat(OLD)) or len(bench.store.set_aside()) != len(asides):
        raise Violation(f"set aside is {bench.asides()}, told {bench.store.set_aside()}")
    if acted and not asides:
        raise Violation("what stood there without a record is gone")


async def _pending(bench: Bench) -> None:
    await _old(bench)
    await bench.upload(V1, NEW, 5, upto="write")


async def _loose(bench: Bench) -> None:
    await _old(bench)
    await bench.store.write_index(indexed(NEW)[0].image, indexed(NEW)[1])


async def _buried(bench: Bench) -> None:
    await _old(bench)
    await bench.remove(V1, OLD, 1)


async def _interrupted(bench: Bench) -> None:
    """An exchange, a deletion and a download that were all cut off, and debris."""
    await _old(bench)
    kill_after(bench, "renameat2", 1, lambda bench: bench.upload(V1, NEW, 5))
    kill_after(bench, "rename", 2, lambda bench: bench.remove(V2, OTHER, 1))
    await bench.upload(V3, NEW, 6, upto="write")
    bench.sim.mkdirs(JUNK)
    bench.sim.write(f"{JUNK}/file", b"junk")


async def _damaged(bench: Bench) -> None:
    await bench.upload(V1, NEW, 5)
    for at in range(6000):
        bench.sim.bit_flip("/n/srv/web/v1/new", at, 5)


async def _read(bench: Bench) -> None:
    index, _, blocks = indexed(OLD)
    found = bench.store.read_blocks(V1, index, range(index.block_count))
    if any(data is not None and data != good for data, (_, good) in zip(found, blocks, strict=True)):
        raise Violation("wrong data was served")


async def _store(bench: Bench) -> None:
    await bench.store.write_index(indexed(NEW)[0].image, indexed(NEW)[1])


async def _drop(bench: Bench) -> None:
    await bench.store.drop_pending(V1)


def _signed(bench: Bench, loaded: Loaded, acted: bool) -> None:
    states = [held.committed for held in loaded.held if held.vpath == V1]
    if states not in ([LATER], [LATER if acted else state_of(indexed(OLD)[0], 1)]):
        raise Violation(f"recorded is {states}")


def _not_pending(bench: Bench, loaded: Loaded, acted: bool) -> None:
    if acted and any(held.pending for held in loaded.held):
        raise Violation("it is still pending")


def _folded(bench: Bench, loaded: Loaded, acted: bool) -> None:
    found = loaded.burials[V1.base]
    if (found.floor_ms, set(found.tombstones)) not in ((1, set()), *([] if acted else [(0, {"v1"})])):
        raise Violation(f"remembered is {found}")


def _remembered(bench: Bench, loaded: Loaded, acted: bool) -> None:
    gone = bench.tree(V1) is None
    known = V1.base in loaded.burials and "v1" in loaded.burials[V1.base].tombstones
    if gone != known:
        raise Violation(f"deleted: {gone}, remembered as deleted: {known}")


def _gone_or_unknown(bench: Bench, loaded: Loaded, acted: bool) -> None:
    """A removal is never remembered while the tree is visible."""
    known = V1.base in loaded.burials and "v1" in loaded.burials[V1.base].tombstones
    if known and bench.tree(V1) is not None:
        raise Violation("called removed, and visible")
    if acted and not known:
        raise Violation("a removal is forgotten")


def _indexes(kept: Collection[int], loose: int | None, *, stored: bool = True) -> Callable[[Bench, Loaded, bool], None]:
    """The indexes ``kept`` of :data:`_TREES` are there; ``loose``, when it was done, only if ``stored``."""

    def look(bench: Bench, _loaded: Loaded, acted: bool) -> None:
        for number in kept:
            if done(bench.store.read_index(indexed(_TREES[number])[0].image)) is None:
                raise Violation("the index of an image is gone")
        if loose is not None and acted and (done(bench.store.read_index(indexed(_TREES[loose])[0].image)) is not None) is not stored:
            raise Violation("an index is there that should be gone, or gone that should be there")

    return look


_TREES = (OLD, NEW, OTHER)


def _resumes(bench: Bench, loaded: Loaded, acted: bool) -> None:
    if [held.pending.state.image for held in loaded.held if held.pending] != [indexed(NEW)[0].image]:
        raise Violation("an accepted upload is forgotten")
    staging = place(CONFIGS, V3).staging(indexed(NEW)[0].image)
    if not bench.sim.tree(f"/n/srv/web/{staging}/new"):
        raise Violation("what was downloaded already is gone")


def _kept(bench: Bench, loaded: Loaded, acted: bool) -> None:
    """Of a replaced image nothing or all is kept, and a node says no more than it has."""
    standing = next((held for held in loaded.held if held.vpath == K1), None)
    told = [] if standing is None else [version.image for version in standing.kept]
    specs = {indexed(spec)[0].image: spec for spec in (OLD, NEW)}
    if told != bench.kept() or len(told) > 1 or (standing is not None and standing.committed and standing.committed.image in told):
        raise Violation(f"kept is {told}, recorded {bench.kept()}")
    for image in told:
        if bench.kept_tree(specs[image]) != flat(specs[image]):
            raise Violation("what is kept is not what was replaced")
        if done(bench.store.read_index(image)) is None:
            raise Violation("the index of an image that is kept is gone")


async def _kept_old(bench: Bench) -> None:
    await _sibling(bench)
    await bench.upload(K1, OLD, 1)


async def _kept_new(bench: Bench) -> None:
    await _kept_old(bench)
    await bench.upload(K1, NEW, 5)


OLD_OR_NEW = (stand(OLD), stand(NEW))
IS_OLD = {V1: (stand(OLD),), V2: THERE}

SCENARIOS = (
    Scenario("append", _sibling, lambda bench: bench.upload(V1, NEW, 5), {V1: (stand(None), stand(NEW)), V2: THERE}),
    Scenario("copy", _sibling, lambda bench: bench.upload(V1, PARTS, 5), {V1: (stand(None), stand(PARTS)), V2: THERE}, turns=True),
    Scenario("clone", _clones, lambda bench: bench.upload(V1, PARTS, 5), {V1: (stand(None), stand(PARTS)), V2: THERE}, turns=True),
    Scenario("replace", _old, lambda bench: bench.upload(V1, NEW, 5), {V1: OLD_OR_NEW, V2: THERE}),
    Scenario("replace at level 0", _old_single, lambda bench: bench.upload(ONE, NEW, 5), {ONE: OLD_OR_NEW, V2: THERE}, turns=True),
    Scenario(
        "replace without exchange",
        _no_exchange,
        lambda bench: bench.upload(V1, NEW, 5),
        {V1: OLD_OR_NEW, V2: THERE},
        turns=True,
        moment=True,
    ),
    Scenario(
        "adopt", _planted, lambda bench: bench.upload(V1, NEW, 5), {V1: (stand(NEW, recorded=False), stand(NEW)), V2: THERE}, turns=True
    ),
    Scenario(
        "set aside",
        _strange,
        lambda bench: bench.upload(V1, NEW, 5),
        {V1: (stand(OLD, recorded=False), stand(NEW)), V2: THERE},
        also=_aside,
    ),
    Scenario(
        "set aside without exchange",
        _strange_without_exchange,
        lambda bench: bench.upload(V1, NEW, 5),
        {V1: (stand(OLD, recorded=False), stand(NEW)), V2: THERE},
        also=_aside,
        turns=True,
        moment=True,
    ),
    Scenario(
        "remove what is not recorded",
        _strange,
        lambda bench: bench.remove(V1, OLD, 9, signed=True, named=True),
        {V1: (stand(OLD, recorded=False), stand(None)), V2: THERE},
        also=_gone_or_unknown,
    ),
    Scenario("repair", _damaged, lambda bench: bench.restore(V1, NEW, 5), {V1: (Stand(stand(NEW).image, stand(DAMAGED).tree), stand(NEW))}),
    Scenario("write_state", _old, lambda bench: bench.wait(bench.store.write_state(V1, LATER)), IS_OLD, also=_signed),
    Scenario("drop_pending", _pending, _drop, IS_OLD, also=_not_pending),
    Scenario("write_index", _old, _store, IS_OLD, also=_indexes((0, 2), 1)),
    Scenario(
        "load",
        _interrupted,
        lambda bench: bench.wait(bench.store.load()),
        {V1: (stand(NEW),), V2: (stand(None),)},
        told=False,
        also=_resumes,
    ),
    Scenario("read_blocks", _old, _read, IS_OLD),
    Scenario("remove", _old, lambda bench: bench.remove(V1, OLD, 1), {V1: (stand(OLD), stand(None)), V2: THERE}, also=_remembered),
    Scenario(
        "remove as signed",
        _old,
        lambda bench: bench.remove(V1, NEW, 9, signed=True),
        {V1: (stand(OLD), stand(None)), V2: THERE},
        also=_remembered,
        turns=True,
    ),
    Scenario("replace and keep", _kept_old, lambda bench: bench.upload(K1, NEW, 5), {K1: OLD_OR_NEW, V2: THERE}, also=_kept, turns=True),
    Scenario("roll back", _kept_new, lambda bench: bench.upload(K1, OLD, 9), {K1: (stand(NEW), stand(OLD))}, also=_kept, turns=True),
    Scenario(
        "remove what has kept", _kept_new, lambda bench: bench.remove(K1, NEW, 5), {K1: (stand(NEW), stand(None))}, also=_kept, turns=True
    ),
    Scenario(
        "fold_burials", _buried, lambda bench: bench.wait(bench.store.fold_burials(V1, 6000)), {V1: (stand(None),), V2: THERE}, also=_folded
    ),
    Scenario(
        "collect_indexes", _loose, lambda bench: bench.wait(bench.store.collect_indexes(())), IS_OLD, also=_indexes((0, 2), 1, stored=False)
    ),
)


# -- what is checked ----------------------------------------------------------------------------------------------------------


def scenario(name: str) -> Scenario:
    """The one of that name."""
    return next(one for one in SCENARIOS if one.name == name)


@functools.cache
def _made_ready(one: Scenario) -> Bench:
    bench = Bench()
    with bench.sim.installed():
        succeed(bench, one.ready)
        bench.store.close()
    bench.restart()
    return bench


@functools.cache
def calls_of(one: Scenario) -> tuple[str, ...]:
    """What it calls when nothing fails."""
    bench, fault = _made_ready(one).copy(), Fault(None, 0)
    with bench.sim.installed():
        bench.sim.before = fault
        succeed(bench, one.act)
    return tuple(fault.calls)


def points(*, everything: bool) -> list[tuple[Scenario, Kind, int]]:
    """All of them, or those of a push. Each call has kill; of the other kinds at most one where they take turns, else half at a push."""
    found = []
    for one in SCENARIOS:
        turns = len(KINDS) if one.turns else 1 if everything else 2
        for turn, kind in enumerate(KINDS.values()):
            for at, call in enumerate(calls_of(one), 1):
                if kind.hits(call) and (kind.code is None or at % turns == turn % turns):
                    found.append((one, kind, at))
    return found


def _visible(bench: Bench, one: Scenario, acted: bool, moment: bool) -> None:
    for vpath, stands in one.stands.items():
        found = bench.tree(vpath)
        allowed = [known.tree for known in (stands[-1:] if acted else stands)]
        if found not in allowed and not (moment and found is None):
            raise Violation(f"at {vpath} stands {found}")


def _started(bench: Bench, one: Scenario, acted: bool, *, over: bool) -> None:
    """A start needs nobody, and finds what it should."""
    bench.restart()
    loaded = bench.loaded()
    _visible(bench, one, acted, False)
    check_records(bench)
    images = {held.vpath: held.committed.image for held in loaded.held if held.committed}
    for vpath, stands in one.stands.items():
        if Stand(images.get(vpath), bench.tree(vpath)) not in (stands[-1:] if acted else stands):
            raise Violation(f"at {vpath} stands what is not recorded, or the other way round")
    pending = [held.pending for held in loaded.held if held.pending]
    if over and one.name != "load" and pending:
        raise Violation(f"still pending: {pending}")
    debris = bench.debris() - {place(CONFIGS, each.vpath).staging(each.state.image) for each in pending}
    if debris:
        raise Violation(f"debris: {debris}")
    one.also(bench, loaded, acted)


def check_point(one: Scenario, kind: Kind, at: int) -> None:
    """Let one thing go wrong. Raises Violation."""
    bench = _made_ready(one).copy()
    with bench.sim.installed():
        try:
            _check_point(bench, one, kind, at)
        except (AssertionError, OSError, DiskError, DownloadFailed) as error:
            raise Violation(f'check_point(scenario("{one.name}"), KINDS["{kind.name}"], {at}): {type(error).__name__}: {error}') from error


def _check_point(bench: Bench, one: Scenario, kind: Kind, at: int) -> None:
    fault = Fault(kind, at)
    bench.sim.before = fault
    result = outcome(bench, one.act)
    if len(fault.calls) < at:
        raise Violation(f"there were only {len(fault.calls)} calls")
    bench.sim.before = lambda _call, _mount: None
    failed = isinstance(result, Failure)
    if isinstance(result, Failure) and result.check(DiskError, DownloadFailed, Killed) is None:
        raise Violation(f"it ended with {result.value!r}")
    acted = not failed and one.told
    _visible(bench, one, acted, one.moment and (kind.code is None or bool(kind.lasting)))
    check_records(bench)
    if kind.code is not None:
        if not kind.lasting and at % 2 and one.name != "load":
            succeed(bench, one.act)
            acted = True
            _visible(bench, one, acted, False)
        bench.store.close()
        if bench.sim.open_descriptors():
            raise Violation(f"{bench.sim.open_descriptors()} descriptors are open for ever")
    _started(bench, one, acted, over=False)
    if one.name == "load":
        bench.restart()
    succeed(bench, one.act)
    bench.store.close()
    _started(bench, one, True, over=True)


def run(part: int, parts: int, *, everything: bool = False) -> str:
    """One share of the points."""
    globalLogBeginner.beginLoggingTo([lambda _event: None], discardBuffer=True, redirectStandardIO=False)
    mine = points(everything=everything)[part::parts]
    for one, kind, at in mine:
        check_point(one, kind, at)
    return f"sweep: {len(mine):,} points, 0 violations"
