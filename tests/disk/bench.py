"""A node over an in-memory operating system, put into a state once and copied for each thing that is done to it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ciruela.disk import bases, commit, retained, states, tombstones
from ciruela.disk.layout import INDEX, NEW_STATE, STATE, place
from ciruela.disk.safedir import RESERVED
from ciruela.disk.store import Store
from ciruela.index.parse import parse
from ciruela.index.tree import Index
from ciruela.interfaces import Loaded, Pending
from ciruela.model.config import DirConfig
from ciruela.model.errors import BadIndex, FormatError
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.upload import Command
from ciruela.model.versions import Tombstone, Version
from ciruela.model.vpath import VPath
from tests.disk.faulty import Killed
from tests.disk.trees import Spec, blocks_of, flat, in_place, index_bytes, state_of
from tests.doubles.simos import SimOS

V1 = VPath(("app", "web", "v1"))
V2 = VPath(("app", "web", "v2"))
V3 = VPath(("app", "web", "v3"))
ONE = VPath(("one",))
K1 = VPath(("kept", "main"))

OLD: Spec = {"/keep": b"the same", "/gone": b"old", "/sub/x*": b"run"}
NEW: Spec = {"/keep": b"the same", "/new": b"new" * 2000, "/sub/x*": b"run twice", "/zero": b"", "/link": "new", "/dir": None}
OTHER: Spec = {"/keep": b"the same", "/other": b"other"}
PARTS: Spec = {"/copied*": b"the same", "/moved": b"other", "/new": b"new"}
"""Of ``OTHER`` one file has another mode here, so that it is copied, and one has another name, so that it is linked."""

CONFIGS = {
    "app": DirConfig("app", "/n/srv", append_only=False, num_levels=2),
    "kept": DirConfig("kept", "/n/kept", append_only=False, num_levels=1, keep_replaced=1),
    "one": DirConfig("one", "/n/single/site", append_only=False, num_levels=0),
}

_known: dict[int, tuple[Spec, Index, bytes, list[tuple[int, bytes]]]] = {}


def indexed(spec: Spec) -> tuple[Index, bytes, list[tuple[int, bytes]]]:
    """The index of a tree, its bytes and the blocks; computed once for each of the trees of a table."""
    found = _known.get(id(spec))
    if found is None:
        index, data = index_bytes(spec)
        found = _known[id(spec)] = (spec, index, data, blocks_of(spec, index))
    return found[1:]


class Violation(AssertionError):
    """Something that was promised does not hold."""


@dataclass(frozen=True)
class Stand:
    """What is recorded at a path, and what stands there."""

    image: ImageId | None
    tree: dict[str, bytes] | None


def stand(spec: Spec | None, *, recorded: bool = True) -> Stand:
    """A tree, with its record or without; None for nothing at all."""
    if spec is None:
        return Stand(None, None)
    return Stand(indexed(spec)[0].image if recorded else None, flat(spec))


class Bench:
    """Disks and the Store of a process that began just now."""

    def __init__(self, sim: SimOS | None = None) -> None:
        if sim is None:
            sim = SimOS()
            sim.mount("/n")
            for path in ("/n/db", "/n/srv", "/n/single", "/n/kept"):
                sim.mkdirs(path)
        self.sim = sim
        self.store = Store("/n/db", CONFIGS, in_place)

    def copy(self) -> Bench:
        """The same disks for another process."""
        return Bench(self.sim.clone())

    def restart(self) -> None:
        """The process is killed, and another one begins, which is not disturbed."""
        self.sim.kill("/n")
        self.sim.before = lambda _call, _mount: None
        self.store = Store("/n/db", CONFIGS, in_place)

    def tree(self, vpath: VPath) -> dict[str, bytes] | None:
        """What stands at ``vpath``."""
        return self.sim.tree(str(place(CONFIGS, vpath)))

    def loaded(self) -> Loaded:
        """What a start finds."""
        return done(self.store.load())

    def records(self) -> dict[str, bytes]:
        """All files in the db directory but temporary ones."""
        found = {}
        for at, inode in self.sim.inodes("/n/db"):
            if inode.is_file and not at.rpartition("/")[2].startswith(states.TEMPORARY):
                found[at] = bytes(inode.data)
        return found

    def kept(self) -> list[ImageId]:
        """What is kept at ``K1``, by its record."""
        record = self.records().get("/signatures/kept/.main.kept")
        return [] if record is None else [row.version.image for row in retained.decode(record)]

    def kept_tree(self, spec: Spec) -> dict[str, bytes] | None:
        """The tree of a replaced image that is kept at ``K1``."""
        return self.sim.tree(f"/n/kept/{place(CONFIGS, K1).kept(indexed(spec)[0].image)}")

    def plant(self, spec: Spec) -> None:
        """Make a tree at ``V1`` that nobody recorded, in the same way for whoever looks."""
        for path, content in spec.items():
            at = f"/n/srv/web/v1{path.removesuffix('*')}"
            self.sim.mkdirs(at if content is None else at.rpartition("/")[0])
            if isinstance(content, str):
                self.sim.symlink(content, at)
            elif content is not None:
                self.sim.write(at, content, 0o755 if path.endswith("*") else 0o664)

    def asides(self) -> dict[str, dict[str, bytes] | None]:
        """The trees that are set aside, by path."""
        found = {at for at, _ in self.sim.inodes("/n") if at.rpartition("/")[2].startswith(commit.PREFIX)}
        return {at: self.sim.tree(f"/n{at}") for at in found}

    def debris(self) -> set[str]:
        """Reserved and temporary names anywhere, but for trees that are kept."""
        names = {at.rpartition("/")[2] for at, _ in self.sim.inodes("/n")} - {place(CONFIGS, K1).kept(image) for image in self.kept()}
        return {name for name in names if name.startswith((RESERVED, states.TEMPORARY))}

    @staticmethod
    async def wait(waiting: Deferred[Any]) -> object:
        """The result of one call."""
        return await waiting

    # -- what is done to it ----------------------------------------------------------------------------------------------------

    async def upload(self, vpath: VPath, spec: Spec, time: int, *, upto: str = "commit") -> None:
        """An upload from its acceptance to its end, or ``upto`` ``write`` or ``stage``."""
        index, data, blocks = indexed(spec)
        store = self.store
        await store.write_pending(Pending(vpath, state_of(index, time), Command.REPLACE))
        await store.write_index(index.image, data)
        staging = await store.stage(vpath, index)
        try:
            if upto == "stage":
                return
            here = set(await staging.keep())
            siblings = [(V2, indexed(OTHER)[0])] if vpath != V2 else []
            if vpath == K1 and index.image in self.kept():
                siblings = [(K1, index)]
            here |= (await staging.reuse(siblings)).blocks
            await staging.write([block for block in blocks if block[0] not in here])
            self.sim.sleep(1.0)  # what was written rests, as after most downloads
            if upto == "commit":
                await staging.commit(state_of(index, time))
        finally:
            staging.close()

    async def restore(self, vpath: VPath, spec: Spec, time: int) -> None:
        """Put a damaged image together again."""
        index, _, blocks = indexed(spec)
        staging = await self.store.stage(vpath, index)
        try:
            here = await staging.keep()
            await staging.write([block for block in blocks if block[0] not in here])
            self.sim.sleep(1.0)
            await staging.restore(state_of(index, time))
        finally:
            staging.close()

    async def remove(self, vpath: VPath, spec: Spec, time: int, *, signed: bool = False, named: bool = False) -> None:
        """Delete an image, as a cleanup does, or as ``signed``; one that is not recorded any more is left to the next start.

        ``named``: its index is known, should something stand there without a record.
        """
        if not signed and str(vpath) not in {at.removeprefix("/signatures").removesuffix(STATE) for at in self.records()}:
            return
        index = indexed(spec)[0]
        tombstone = Tombstone(Version(time, index.image), 5000, (bytes(64),) if signed else ())
        await self.store.remove(vpath, tombstone, index if named else None)


Work = Callable[[Bench], Coroutine[Deferred[Any], Any, object]]


def outcome(bench: Bench, work: Work) -> object:
    """The result of ``work``, or its Failure. It has ended: there is nothing to wait for here."""
    found: list[object] = []
    Deferred.fromCoroutine(work(bench)).addBoth(found.append)
    if len(found) != 1:
        raise Violation("it hangs")
    return found[0]


def done(waiting: Deferred[Any]) -> Any:
    """The result. Raises the error in it."""
    found: list[Any] = []
    waiting.addBoth(found.append)
    if len(found) != 1:
        raise Violation("it hangs")
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


def succeed(bench: Bench, work: Work) -> object:
    """As :func:`outcome`. Raises the error."""
    return done(Deferred.fromCoroutine(work(bench)))


def kill_after(bench: Bench, call: str, which: int, work: Work) -> None:
    """Do ``work`` and kill the process right after its ``which``-th call of that name; another one begins."""
    seen, killed = 0, False

    def before(name: str, _mount: str) -> None:
        nonlocal seen, killed
        if seen >= which:
            killed = True
            raise Killed
        seen += name == call

    bench.sim.before = before
    outcome(bench, work)
    if not killed:
        raise Violation(f"{call} was not called {which} times, or last")
    bench.restart()


def check_records(bench: Bench) -> None:
    """No file of the db directory is empty, half or set aside."""
    for at, data in bench.records().items():
        name = at.rpartition("/")[2]
        try:
            if name.endswith(".backup"):
                raise Violation(f"{at} was set aside")
            if name.endswith(NEW_STATE):
                states.decode_journal(data)
            elif name.endswith(STATE):
                states.decode_state(data)
            elif name.endswith(tombstones.NAME):
                tombstones.decode(data)
            elif name.endswith(retained.SUFFIX):
                retained.decode(data)
            elif name.endswith(bases.NAME):
                bases.decode(data)
            elif at.startswith("/hashes/"):
                int(name, 16)  # it may be cut off in a power cut, and counts as empty then
            elif name.endswith(INDEX):
                parse(data, parse_image_id(name.removesuffix(INDEX)))
            else:
                raise Violation(f"{at}: nobody knows this file")
        except (FormatError, BadIndex) as error:
            raise Violation(f"{at} is bad: {error}") from error
