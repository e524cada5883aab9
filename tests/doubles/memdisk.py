"""``interfaces.Disk`` in memory: synchronous, cheap, and able to crash. For clusters of many nodes under a fake clock.

Nodes may share one dictionary of blocks: an image is its index, and what a node has of it is one byte for each block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count
from typing import TypeVar
from zlib import crc32

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from ciruela.index.merge import same_files
from ciruela.index.parse import parse
from ciruela.index.tree import File, Index, Symlink
from ciruela.interfaces import Damage, Examination, Findings, Held, Identity, Loaded, NamesFound, Pending, Reused, SetAside, Staging
from ciruela.model.bitfield import BlockSet
from ciruela.model.config import DirConfig, Reuse
from ciruela.model.errors import CiruelaError, DiskError, DownloadFailed, OtherContent
from ciruela.model.hooks import Due
from ciruela.model.ids import Block, BlockHash, ImageId
from ciruela.model.upload import AbortReason, Command
from ciruela.model.versions import RetainedVersion, State, Tombstone, Tombstones
from ciruela.model.vpath import VPath

T = TypeVar("T")

Blocks = dict[BlockHash, bytes]


class MemStaging:
    """Implements ``interfaces.Staging``. After a crash of its disk every call fails with DiskError; the content is still on the disk."""

    def __init__(self, disk: MemDisk, vpath: VPath, index: Index, here: bytearray) -> None:
        self._disk = disk
        self._life = disk.life
        self._vpath = vpath
        self._index = index
        self._map = index.blocks
        self._here = here

    def _dead(self) -> CiruelaError | None:
        return None if self._life == self._disk.life else DiskError(f"{self._vpath}: this staging directory belongs to an earlier life")

    def keep(self) -> Deferred[BlockSet]:
        if dead := self._dead():
            return fail(dead)
        return succeed(BlockSet(self._here))

    def reuse(self, siblings: Sequence[tuple[VPath, Index]]) -> Deferred[Reused]:
        if dead := self._dead():
            return fail(dead)
        blocks: set[int] = set()
        files = size = 0
        may_write = self._missing() <= self._disk.free_bytes
        how = self._disk.configs[self._vpath.key].reuse
        for vpath, theirs in siblings if how is not Reuse.NONE else ():
            standing = self._disk.images.get(vpath)
            kept = any(one.image == theirs.image for one in self._disk.kept.get(vpath, ()))
            if not kept and (standing is None or standing.image != theirs.image):
                continue
            same = same_files(self._index, theirs)
            named = theirs.blocks
            for number in range(len(self._index.files)):
                numbers = self._map.numbers_of(number)
                found = [at for at in numbers if not self._here[at] and self._map.hash_of(at) not in self._disk.rotten]
                if how is not Reuse.HARDLINK or same[number] is None or len(found) < len(numbers):
                    found = [at for at in found if may_write and theirs.kind is self._index.kind and named.numbers(self._map.hash_of(at))]
                for at in found:
                    self._here[at] = 1
                    size += self._index_block_size(at)
                blocks.update(found)
                files += bool(found) and all(self._here[numbers.start : numbers.stop])
        return succeed(Reused(frozenset(blocks), files, size))

    def write(self, blocks: Sequence[tuple[int, bytes]]) -> Deferred[list[bool]]:
        return maybeDeferred(self.write_here, blocks)

    def write_here(self, blocks: Sequence[tuple[int, bytes]]) -> list[bool]:
        if dead := self._dead():
            raise dead
        missing = self._missing()
        if missing > self._disk.free_bytes:
            raise DownloadFailed(AbortReason.NO_SPACE, f"needs {missing} bytes, {self._disk.free_bytes} bytes free beyond the reserve")
        results = []
        for number, data in blocks:
            wanted = self._map.hash_of(number)
            good = len(data) == self._index_block_size(number) and self._index.kind.hash(data) == wanted
            if good:
                self._disk.blocks.setdefault(wanted, data)
                self._disk.rotten.discard(wanted)
                for same in self._map.numbers(wanted):
                    self._here[same] = 1
            results.append(good)
        return results

    def _missing(self) -> int:
        return sum(self._index_block_size(number) for number, here in enumerate(self._here) if not here)

    def _index_block_size(self, number: int) -> int:
        file, block = self._map.by_number(number)
        return file.block_size(block)

    def prepare(self) -> Deferred[str]:
        if dead := self._dead():
            return fail(dead)
        return succeed(f"{self._disk.where(self._vpath)}.staging")

    def commit(self, state: State) -> Deferred[tuple[RetainedVersion, ...]]:
        if dead := self._dead():
            return fail(dead)
        return self._disk.commit(self._vpath, self._index, self._here, state)

    def restore(self, state: State) -> Deferred[None]:
        if dead := self._dead():
            return fail(dead)
        standing = self._disk.states.get(self._vpath)
        if standing is None or standing.image != state.image or self._vpath in self._disk.pendings:
            return fail(DownloadFailed(AbortReason.SUPERSEDED, f"{self._vpath}: is not this image any more"))
        return self._disk.commit(self._vpath, self._index, self._here, state.merged(standing.signatures)).addCallback(lambda _: None)

    def close(self) -> None:
        self._life = -1

    def discard(self) -> Deferred[None]:
        if self._life == self._disk.life:
            self._disk.staged.pop((self._vpath, self._index.image), None)
        self._life = -1
        return succeed(None)


class MemExamination:
    """Implements ``interfaces.Examination``, block by block."""

    def __init__(self, disk: MemDisk, vpath: VPath, index: Index) -> None:
        self._disk = disk
        self._vpath = vpath
        self._index = index
        self._at = 0
        self._found: list[Damage] = []
        self.cost = 0

    def go_on(self, most_bytes: int) -> Deferred[Findings | None]:
        if self._vpath.key in self._disk.unmounted:
            return fail(DiskError(f"{self._vpath}: {self._disk.configs[self._vpath.key].directory} is not mounted"))
        standing = self._disk.images.get(self._vpath)
        committed = self._disk.states.get(self._vpath)
        current = committed is not None and committed.image == self._index.image
        if standing is None or standing.image != self._index.image:
            return succeed(Findings((Damage("/", "is missing"),), 1, current and standing is None))
        blocks = self._index.blocks
        end = self.cost + most_bytes
        while self._at < self._index.block_count:
            file, block = blocks.by_number(self._at)
            if file.block_hash(block) in self._disk.rotten:
                self._found.append(Damage(file.path, "is rotten"))
            self.cost += file.block_size(block)
            self._at += 1
            if self.cost >= end:
                return succeed(None)
        return succeed(Findings(tuple(self._found), len(self._found), current))

    def close(self) -> None:
        self._at = self._index.block_count


class MemDisk:
    """Implements ``interfaces.Disk``.

    Tests may set ``free_bytes`` (a full disk), ``unmounted`` (keys whose base is missing), ``foreign`` (paths where something stands that
    is not ours: an index if it has exactly that content, else None), ``damaged`` (paths of which a damaged record is kept), ``rotten``
    (block hashes that cannot be read back), ``device`` (which disk the bases are on).
    """

    def __init__(self, configs: Mapping[str, DirConfig], blocks: Blocks | None = None) -> None:
        self.configs = configs
        self.blocks: Blocks = {} if blocks is None else blocks
        self.states: dict[VPath, State] = {}
        self.buried: dict[VPath, Tombstones] = {}
        self.pendings: dict[VPath, Pending] = {}
        self.dues: dict[tuple[VPath, ImageId], Due] = {}
        self.indexes: dict[ImageId, tuple[bytes, Index]] = {}
        self.images: dict[VPath, Index] = {}
        self.staged: dict[tuple[VPath, ImageId], bytearray] = {}
        self.foreign: dict[VPath, Index | None] = {}
        self.damaged: set[VPath] = set()
        self.asides: list[SetAside] = []
        self.aside_trees: list[tuple[str, Index]] = []
        self.kept: dict[VPath, tuple[RetainedVersion, ...]] = {}
        self.unmounted: set[str] = set()
        self.rotten: set[BlockHash] = set()
        self.free_bytes = 1 << 60
        self.device = 1
        self.life = 0
        self._inodes = count(1000)

    # -- for tests -------------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Lose what a process has in memory; what was recorded or staged stays."""
        self.life += 1

    def lose(self, vpath: VPath) -> None:
        """Somebody deletes the directory of an image."""
        del self.images[vpath]

    def lose_record(self, vpath: VPath, *, damaged: bool = False) -> None:
        """The state of an image is gone, or ``damaged`` and set aside; its directory stands there as before."""
        del self.states[vpath]
        self.foreign[vpath] = self.images.pop(vpath)
        if damaged:
            self.damaged.add(vpath)

    def files(self, vpath: VPath) -> dict[str, bytes]:
        """What stands at ``vpath``: contents by path inside the image, targets of symlinks, ``b""`` for directories."""
        return self.files_of(self.images[vpath])

    def files_of(self, index: Index) -> dict[str, bytes]:
        """As :meth:`files`, of any tree."""
        found: dict[str, bytes] = {}
        for directory in index.directories:
            found[directory.path] = b""
            for entry in directory.entries:
                match entry:
                    case File():
                        found[entry.path] = b"".join(self.blocks[entry.block_hash(number)] for number in range(entry.block_count))
                    case Symlink():
                        found[entry.path] = entry.target.encode()
        return found

    # -- interfaces.Disk ------------------------------------------------------------------------------------------------------------

    def _refusal(self, vpath: VPath) -> DiskError | None:
        config = self.configs.get(vpath.key)
        if config is None:
            return DiskError(f"{vpath}: no directory is configured for {vpath.key!r}")
        if config.num_levels != vpath.level:
            return DiskError(f"{vpath}: has {vpath.level} levels, configured are {config.num_levels}")
        return None

    def load(self) -> Deferred[Loaded]:
        held = []
        for vpath in sorted(set(self.states) | set(self.pendings)):
            if self._refusal(vpath) is not None:
                continue
            committed, pending = self.states.get(vpath), self.pendings.get(vpath)
            if committed is not None and pending is not None and committed.image == pending.state.image:
                committed = self.states[vpath] = committed.merged(pending.state.signatures)
                pending = None
                del self.pendings[vpath]
            if committed is not None and vpath.key not in self.unmounted and vpath not in self.images:
                pending = pending or Pending(vpath, committed, Command.APPEND)
                committed = None
            held.append(Held(vpath, committed, pending, self.kept.get(vpath, ())))
        wanted = {(found.vpath, found.pending.state.image) for found in held if found.pending is not None}
        self.staged = {key: here for key, here in self.staged.items() if key in wanted or key[0].key in self.unmounted}
        return succeed(Loaded(held, dict(self.buried), list(self.dues.values())))

    def load_added(self, configs: Mapping[str, DirConfig]) -> Deferred[Loaded]:
        before, self.configs = self.configs, configs
        staged = dict(self.staged)
        try:
            return self.load()
        finally:
            self.configs, self.staged = before, staged

    def forget(self, vpaths: Collection[VPath]) -> None:
        """Nothing is open here."""

    def write_pending(self, pending: Pending) -> Deferred[None]:
        if refusal := self._refusal(pending.vpath):
            return fail(refusal)
        before = self.pendings.get(pending.vpath)
        if before is not None and before.state.image != pending.state.image:
            self.staged.pop((pending.vpath, before.state.image), None)
        self.pendings[pending.vpath] = pending
        return succeed(None)

    def drop_pending(self, vpath: VPath) -> Deferred[None]:
        if refusal := self._refusal(vpath):
            return fail(refusal)
        images: Iterable[Pending | State | None] = (self.pendings.pop(vpath, None), self.states.get(vpath))
        for found in images:
            if found is not None:
                self.staged.pop((vpath, found.state.image if isinstance(found, Pending) else found.image), None)
        return succeed(None)

    def write_state(self, vpath: VPath, state: State) -> Deferred[None]:
        if refusal := self._refusal(vpath):
            return fail(refusal)
        self.states[vpath] = state
        return succeed(None)

    def write_due(self, due: Due) -> Deferred[None]:
        if refusal := self._refusal(due.vpath):
            return fail(refusal)
        self.dues[due.vpath, due.image] = due
        return succeed(None)

    def drop_due(self, vpath: VPath, image: ImageId) -> Deferred[None]:
        self.dues.pop((vpath, image), None)
        return succeed(None)

    def where(self, vpath: VPath) -> str:
        if refusal := self._refusal(vpath):
            raise refusal
        return "/".join((self.configs[vpath.key].directory, *vpath.parts[1:]))

    def remove(self, vpath: VPath, tombstone: Tombstone, index: Index | None = None) -> Deferred[Tombstones]:
        if refusal := self._refusal(vpath):
            return fail(refusal)
        committed = self.states.get(vpath)
        if committed is None and tombstone.signatures and vpath not in self.pendings:
            if vpath.key in self.unmounted:
                return fail(DiskError(f"{vpath}: {self.configs[vpath.key].directory} is not mounted"))
            if vpath in self.foreign:
                standing = self.foreign[vpath]
                if index is None or standing is None or standing.image != index.image:
                    return fail(OtherContent(f"{vpath}: other content is there, of which nothing is recorded"))
                del self.foreign[vpath]
            now = self.buried[vpath.base] = self.buried.get(vpath.base, Tombstones()).with_one(vpath.entry, tombstone)
            return succeed(now)
        newer = committed is None or committed.version > tombstone.version
        if newer if tombstone.signatures else committed is None or committed.image != tombstone.version.image:
            return fail(DiskError(f"{vpath}: is not {tombstone.version.image.hex()} any more, it is not deleted"))
        if vpath in self.pendings:
            return fail(DiskError(f"{vpath}: an upload is on its way there, nothing is deleted"))
        if vpath.key in self.unmounted:
            return fail(DiskError(f"{vpath}: {self.configs[vpath.key].directory} is not mounted"))
        now = self.buried[vpath.base] = self.buried.get(vpath.base, Tombstones()).with_one(vpath.entry, tombstone)
        del self.states[vpath]
        self.images.pop(vpath, None)
        self.kept.pop(vpath, None)
        return succeed(now)

    def remember(self, vpath: VPath, tombstone: Tombstone) -> Deferred[Tombstones]:
        if refusal := self._refusal(vpath):
            return fail(refusal)
        now = self.buried[vpath.base] = self.buried.get(vpath.base, Tombstones()).with_one(vpath.entry, tombstone)
        return succeed(now)

    def fold_burials(self, vpath: VPath, before_ms: int) -> Deferred[Tombstones]:
        folded = self.buried[vpath.base] = self.buried.get(vpath.base, Tombstones()).folded(before_ms, 10_000)
        return succeed(folded)

    def identity(self, key: str) -> Deferred[Identity]:
        config = self.configs.get(key)
        if config is None or key in self.unmounted:
            return fail(DiskError(f"/{key}: the directory cannot be opened"))
        return succeed((self.device, crc32(config.directory.encode())))

    def free(self, key: str) -> Deferred[int]:
        if key in self.unmounted:
            return fail(DiskError(f"/{key}: the directory cannot be opened"))
        return succeed(min(1 << 40, self.free_bytes))

    def collect_indexes(self, keep: Collection[ImageId]) -> Deferred[int]:
        keep = {*keep, *(one.image for kept in self.kept.values() for one in kept)}
        named = {*keep, *(state.image for state in self.states.values()), *(pending.state.image for pending in self.pendings.values())}
        gone = [image for image in self.indexes if image not in named]
        for image in gone:
            del self.indexes[image]
        return succeed(len(gone))

    def read_index(self, image: ImageId) -> Deferred[Index | None]:
        found = self.indexes.get(image)
        return succeed(found[1] if found else None)

    def read_index_bytes(self, image: ImageId) -> Deferred[bytes | None]:
        found = self.indexes.get(image)
        return succeed(found[0] if found else None)

    def write_index(self, image: ImageId, data: bytes) -> Deferred[Index]:
        try:
            index = parse(data, image)
        except CiruelaError as error:
            return fail(error)
        self.indexes[image] = (data, index)
        return succeed(index)

    def stage(self, vpath: VPath, index: Index) -> Deferred[Staging]:
        if refusal := self._refusal(vpath):
            return fail(refusal)
        if vpath.key in self.unmounted:
            return fail(DownloadFailed(AbortReason.CANT_CREATE_DIRECTORY, f"{self.configs[vpath.key].directory}: is not mounted"))
        key = (vpath, index.image)
        siblings = any(other.base == vpath.base for other in self.states)
        if key not in self.staged and index.total_bytes > self.free_bytes and not siblings:
            needed = f"needs {index.total_bytes} bytes, {self.free_bytes} bytes free beyond the reserve"
            return fail(DownloadFailed(AbortReason.NO_SPACE, needed))
        here = self.staged.setdefault(key, bytearray(index.block_count))
        return succeed(MemStaging(self, vpath, index, here))

    def commit(self, vpath: VPath, index: Index, here: bytearray, state: State) -> Deferred[tuple[RetainedVersion, ...]]:
        """What ``MemStaging.commit`` does, in one step."""
        if not all(here):
            return fail(DownloadFailed(AbortReason.COMMIT_ERROR, f"{vpath}: block {here.index(0)} is missing or wrong"))
        if vpath in self.foreign:
            found = self.foreign[vpath]
            if found is None or found.image != index.image:
                if self.configs[vpath.key].append_only and vpath not in self.damaged:
                    return fail(DownloadFailed(AbortReason.ALREADY_EXISTS, f"{vpath}: is not ours and not this image; move it away"))
                above = self.where(vpath).rpartition("/")[0]
                if found is not None:
                    self.aside_trees.append((str(vpath), found))
                self.asides.append(SetAside(str(vpath), f"{above}/.ciruela-aside~{vpath.name}~{next(self._inodes)}", 0))
            del self.foreign[vpath]
        pending = self.pendings.get(vpath)
        if pending is not None and pending.state.image == state.image:
            state = state.merged(pending.state.signatures)
        self.pendings.pop(vpath, None)
        before, most = self.states.get(vpath), self.configs[vpath.key].keep_replaced
        replaced = () if before is None else (RetainedVersion.of(before),)
        rows = dict.fromkeys((*replaced, *self.kept.get(vpath, ())))
        self.kept[vpath] = tuple(one for one in rows if one.image != state.image)[:most]
        self.images[vpath] = index
        self.states[vpath] = state
        self.staged.pop((vpath, index.image), None)
        return succeed(self.kept[vpath])

    def present(self, vpath: VPath) -> Deferred[bool]:
        if refusal := self._refusal(vpath):
            return fail(refusal)
        if vpath.key in self.unmounted:
            return fail(DiskError(f"{vpath}: {self.configs[vpath.key].directory} is not mounted"))
        return succeed(vpath in self.images or vpath in self.foreign)

    def look(self, vpaths: Sequence[VPath]) -> Deferred[NamesFound]:
        unseen = {vpath.key: "is not mounted" for vpath in vpaths if vpath.key in self.unmounted}
        gone = [vpath for vpath in vpaths if vpath.key not in unseen and vpath not in self.images and vpath not in self.foreign]
        return succeed(NamesFound(tuple(gone), unseen))

    def prove(self, most: int) -> Deferred[Sequence[VPath]]:
        """All records have their checksum here."""
        return succeed(())

    def recorded(self, vpath: VPath) -> Deferred[bool]:
        return fail(refusal) if (refusal := self._refusal(vpath)) else succeed(vpath in self.states)

    def set_aside(self) -> Sequence[SetAside]:
        return list(self.asides)

    def tidy(self, *, delete: bool) -> Deferred[int]:
        """Deleting never fails here."""
        return succeed(0)

    def examine(self, vpath: VPath, index: Index) -> Examination:
        return MemExamination(self, vpath, index)

    def read_blocks(self, vpath: VPath, index: Index, numbers: Sequence[int]) -> list[Block | None]:
        if refusal := self._refusal(vpath):
            raise refusal
        committed = self.images.get(vpath)
        here = self.staged.get((vpath, index.image))
        found: list[Block | None] = []
        for number in numbers:
            wanted = index.blocks.hash_of(number)
            kept = any(one.image == index.image for one in self.kept.get(vpath, ()))
            has = kept or (committed is not None and committed.image == index.image) or (here is not None and here[number])
            found.append(self.blocks.get(wanted) if has and wanted not in self.rotten and vpath.key not in self.unmounted else None)
        return found
