"""Reuse of files and blocks that stand in other images of the same base dir (protocol section 5.8, threats 6.2 and A50).

Whole files come first: with ``hardlink`` the very inode that was hashed gets another name. Then single blocks, by hash: where the file
system can share space between files (btrfs, xfs) it is asked to, and what it made is hashed; elsewhere the block is read, hashed, and
written. (Letting the kernel copy and hashing the copy was measured: it is slower where nothing is shared, and then a bad block is on the
disk before anybody knows.) A block counts when its hash was found right in the tree that is put together, or just before it was written.

``Content`` is the presence map of an image, block by block, and the tree in which it is put together.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

from twisted.logger import Logger

from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.finished import FinishedFiles
from ciruela.disk.hashrecord import HashRecord, content_hash
from ciruela.disk.openfile import TICK_NS, OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.syscalls import CANNOT_CLONE, FULL, warn_once
from ciruela.disk.tree import Tree, split
from ciruela.disk.verify import READ_BLOCKS, as_it_should, good_blocks, good_in
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.merge import same_files
from ciruela.index.tree import File, Index
from ciruela.interfaces import Reused
from ciruela.model.bitfield import BlockSet
from ciruela.model.config import STANDARD_MODES, Modes, Reuse
from ciruela.model.ids import HASH_BYTES, ImageId
from ciruela.model.vpath import VPath

FRESH_MODE = 0o600
"""Mode of a file that is still being written."""

_ZEROS = bytes(BLOCK_BYTES)


def writable(opened: OpenFile) -> bool:
    """Tells whether a file was created here and nobody else can have it: a file of an image has another mode."""
    status = opened.first
    return status.st_nlink == 1 and stat.S_IMODE(status.st_mode) == FRESH_MODE  # guard: A50, without 1


def open_target(directory: SafeDir, name: str) -> tuple[OpenFile, bool]:
    """Open a file of ours to write, or create it: then True. Any other is replaced, for it must not change."""
    try:
        return directory.create(name, FRESH_MODE), True
    except FileExistsError:
        pass
    opened = directory.open_write(name)
    if writable(opened):
        return opened, False
    opened.close()
    directory.unlink(name)
    return directory.create(name, FRESH_MODE), True


def is_zero(data: bytes | memoryview) -> bool:
    """Tells whether a block has zeros alone. The first byte of most others tells already."""
    return not data[0] and not data[-1] and data == _ZEROS[: len(data)]


class Content:
    """The blocks of ``index`` in ``tree``. Whoever puts one there has checked its hash before. Not for two threads at once.

    ``here`` are the numbers of those that are there; it is the one record of that, and changes with what is put there.

    A block of zeros is not written into a file that was created here: it stays a hole, which takes no space and reads the same.

    With ``modes`` a file gets them, and its times, together with its last block: ``finished`` says what it was then. Without, all of them
    stay as they were made.
    """

    def __init__(self, index: Index, tree: Tree, modes: Modes | None = None) -> None:
        self.index = index
        self.tree = tree
        self.blocks = index.blocks
        self.finished = None if modes is None else FinishedFiles(index, modes, tree.root)
        self._here = bytearray(index.block_count)
        self.here = BlockSet(self._here)
        self._fresh: dict[str, bool] = {}  # large files, created here, nothing but blocks in them: whether one has its full size

    def has(self, number: int) -> bool:
        """Tells whether a block is here."""
        return bool(self._here[number])

    def whole(self, file_number: int) -> bool:
        """Tells whether all blocks of a file are here."""
        numbers = self.blocks.numbers_of(file_number)
        return self._here.find(0, numbers.start, numbers.stop) < 0

    def missing(self, file_number: int) -> list[int]:
        """The numbers, within the file, of its blocks that are not here."""
        numbers = self.blocks.numbers_of(file_number)
        return [block for block, here in enumerate(self._here[numbers.start : numbers.stop]) if not here]

    def missing_bytes(self) -> int:
        """The size of all that is not here."""
        files, missing = self.blocks.files, 0
        for file_number in range(len(files)):
            if not self.whole(file_number):
                missing += sum(files[file_number].block_size(block) for block in self.missing(file_number))
        return missing

    def add(self, file_number: int, blocks: Iterable[int]) -> None:
        """These blocks of a file are here."""
        first = self.blocks.numbers_of(file_number).start
        for block in blocks:
            self._here[first + block] = 1

    def add_file(self, file_number: int) -> range:
        """A whole file is here; returns the numbers of its blocks."""
        numbers = self.blocks.numbers_of(file_number)
        self._here[numbers.start : numbers.stop] = b"\1" * len(numbers)
        return numbers

    def drop_file(self, file_number: int) -> None:
        """Marks all blocks of a file as missing."""
        numbers = self.blocks.numbers_of(file_number)
        self._here[numbers.start : numbers.stop] = bytes(len(numbers))
        if self.finished is not None:
            self.finished.forget(file_number)

    def put(self, file_number: int, block: int, *data: bytes | memoryview) -> None:
        """Write blocks of a file to their places, from ``block`` on. Raises OSError."""
        file = self.blocks.files[file_number]
        first = self.blocks.numbers_of(file_number).start + block
        if file.block_count == 1:
            self._put_small(file_number, file, data[0])
            self._here[first] = 1
            return
        opened = self._target(file_number)
        if self.finished is None:
            self._write(opened, file, block, data)
            self._here[first : first + len(data)] = b"\1" * len(data)
            return
        self.finished.look(file_number, opened)
        self._write(opened, file, block, data)
        self._here[first : first + len(data)] = b"\1" * len(data)
        if self.whole(file_number):
            self.finished.finish(file_number, opened)
            self.tree.close_file(file.path)
        else:
            self.finished.wrote(file_number, opened)

    def _put_small(self, file_number: int, file: File, data: bytes | memoryview) -> None:
        """Write a file of one block; it is opened once."""
        above, name = split(file.path)
        opened, fresh = open_target(self.tree.directory(above, create=True), name)
        with opened:
            if fresh and is_zero(data):
                opened.resize(file.size)
            else:
                opened.write_at(data, 0)
            if self.finished is not None:
                if fresh:  # guard: I1, -> True
                    self.finished.begin(file_number)
                self.finished.finish(file_number, opened)

    def _write(self, opened: OpenFile, file: File, block: int, data: Sequence[bytes | memoryview]) -> None:
        """Write a run of blocks, and leave holes for those that are zero, where nothing else can have been written before."""
        if file.path not in self._fresh or not any(map(is_zero, data)):  # guard: I1 W4, without 1
            opened.write_run(data, block * BLOCK_BYTES)
            return
        if not self._fresh[file.path]:
            opened.resize(file.size)
            self._fresh[file.path] = True
        for zero, run in groupby(enumerate(data, block), lambda one: is_zero(one[1])):
            if not zero:
                blocks = list(run)
                opened.write_run([one for _, one in blocks], blocks[0][0] * BLOCK_BYTES)

    def clone(self, file_number: int, offset: int, size: int, source: OpenFile, begin: int) -> bytes:
        """Let a file share ``size`` bytes with ``source``, from ``begin`` on there; returns what they are here. Raises OSError."""
        opened = self._target(file_number)
        opened.clone_from(source, begin, offset, size)
        self._fresh.pop(self.blocks.files[file_number].path, None)
        if self.finished is not None:
            self.finished.forget(file_number)  # guard: I1
        return opened.read_at(size, offset)

    def _target(self, file_number: int) -> OpenFile:
        path = self.blocks.files[file_number].path
        return self.tree.file(path, lambda directory, name: self._opened(directory, name, file_number), create=True)

    def _opened(self, directory: SafeDir, name: str, file_number: int) -> OpenFile:
        opened, fresh = open_target(directory, name)
        if fresh:
            self._fresh[self.blocks.files[file_number].path] = False
            numbers = self.blocks.numbers_of(file_number)
            # Another file may have stood there, with blocks that are missing in this one.
            if self.finished is not None and self._here.find(1, numbers.start, numbers.stop) < 0:  # guard: I1, without 2
                self.finished.begin(file_number)
        return opened


_log = Logger()

FILES_PER_STEP = 1000
"""Files of an index that are looked through in one step: below a millisecond."""

Origin = tuple[File, int]
"""Location of a block in a sibling: the file, and the number of the block in it."""


class Reusing:
    """One look through the siblings.

    ``open_sibling`` opens one, or gives None. ``fits`` says whether there is room for all that is missing.
    """

    def __init__(
        self,
        content: Content,
        how: Reuse,
        open_sibling: Callable[[VPath, ImageId], Tree | None],
        fits: Callable[[], bool],
        modes: Modes = STANDARD_MODES,
        known: HashRecord | None = None,
    ) -> None:
        """A file is linked only where it has ``modes`` already: all its names share them. What ``known`` knows is not read for that."""
        self._content = content
        self._how = how
        self._open_sibling = open_sibling
        self._fits = fits
        self._modes = modes
        self._known = known
        self._clones = how in (Reuse.HARDLINK, Reuse.REFLINK)
        self._may_write: bool | None = None
        self._taken = bytearray(content.index.block_count)
        self._files = 0
        self._bytes = 0

    def run(self, siblings: Sequence[tuple[VPath, Index]]) -> Steps[Reused]:
        """Take what can be had. A full disk raises OSError, as does a fault where the image is put together."""
        if self._how is Reuse.HARDLINK:  # guard: A50, -> True
            for vpath, theirs in siblings:
                yield ENTRY_COST
                yield from self._whole_files(vpath, theirs)
        if self._how is not Reuse.NONE:  # guard: A50, -> True
            for vpath, theirs in siblings:
                yield ENTRY_COST
                yield from self._single_blocks(vpath, theirs)
        return Reused(BlockSet(self._taken), self._files, self._bytes)

    # -- whole files -----------------------------------------------------------------------------------------------------------

    def _whole_files(self, vpath: VPath, theirs: Index) -> Steps[None]:
        content = self._content
        source: Tree | None = None
        try:
            for number, other in enumerate(same_files(content.index, theirs)):
                if other is None or content.whole(number):
                    continue
                source = source or self._open_sibling(vpath, theirs.image)
                if source is None:
                    return
                if (yield from self._link(source, number, other)):
                    numbers = content.add_file(number)
                    self._taken[numbers.start : numbers.stop] = b"\1" * len(numbers)
                    self._files += 1
                    self._bytes += other.size
        finally:
            if source is not None:
                source.close()

    def _link(self, source: Tree, number: int, other: File) -> Steps[bool]:
        """Give ``other`` a name here, if its content is what it should be. Anything that does not work means False, but for a full disk."""
        mine = self._content.blocks.files[number]
        above, name = split(other.path)
        try:
            there = source.directory(above)
            found = None if self._known is None else there.stat(name)
            # guard: A50 I1, without 3
            if (
                self._known is not None
                and found is not None
                and self._known.trusts(there, found, content_hash(mine, self._content.index.kind))
            ):
                yield ENTRY_COST
                return self._fits_as(found, mine) and self._named(number, found, partial(self._link_unread, there, name, found))
            began_ns = time.time_ns()
            with there.open_read(name) as opened:
                before = opened.first
                if not self._fits_as(before, mine):
                    return False
                good = yield from good_blocks(opened, mine, self._content.index.kind)
                if len(good) != mine.block_count:  # guard: A50 F59 I1
                    return False
                # Who changed it while it was read changed its ctime, which was old when that began.
                # guard: A50 F59, without 2
                sure = before.st_ctime_ns <= began_ns - TICK_NS and before.st_ctime_ns == opened.stat().st_ctime_ns
                return self._named(number, before, lambda here, mine: here.link(opened, mine), sure=sure)
        except OSError as error:  # guard: F33
            if error.errno in FULL:  # guard: A38 F28
                raise
            _log.debug("{path} is not linked: {error}", path=other.path, error=error)
            return False

    def _fits_as(self, found: os.stat_result, mine: File) -> bool:
        """Tells whether size, mode and group are those of ``mine``."""
        # guard: A50 F59, without 2; A50 F59, without 1
        return found.st_size == mine.size and as_it_should(found, self._modes.of_file(mine.executable), self._modes.gid)

    def _link_unread(self, there: SafeDir, old: str, found: os.stat_result, here: SafeDir, name: str) -> os.stat_result:
        after = here.link_as_it_is(there, old, name, found)
        assert self._known is not None
        self._known.moved(found, after)
        return after

    def _named(self, number: int, before: os.stat_result, link: Callable[[SafeDir, str], os.stat_result], *, sure: bool = True) -> bool:
        """Let ``link`` give a file a name here. ``sure``: its content is beyond doubt. Raises OSError."""
        content = self._content
        mine = content.blocks.files[number]
        above, name = split(mine.path)
        here = content.tree.directory(above, create=True)
        try:
            after = link(here, name)
        # A part of it is here already; the linked inode takes its place.
        except FileExistsError:
            content.tree.close_file(mine.path)
            here.unlink(name)  # guard: A50
            content.drop_file(number)
            after = link(here, name)
        # Somebody wrote to it while it was hashed. The inode is shared, so the hash proves nothing any more.
        if _signs(after) != _signs(before):  # guard: A50 F59
            here.unlink(name)
            return False
        if sure and content.finished is not None:  # guard: A50 I1, without 1
            content.finished.linked(number, after)
        return True

    # -- single blocks ---------------------------------------------------------------------------------------------------------

    def _single_blocks(self, vpath: VPath, theirs: Index) -> Steps[None]:
        content = self._content
        lacking = [number for number in range(len(content.blocks.files)) if not content.whole(number)]
        if not lacking:
            return
        alike = theirs.kind is content.index.kind
        found = (yield from self._search(lacking, theirs)) if alike else {}
        paths = {content.blocks.files[number].path for number in lacking}
        here = {file.path: file for file in theirs.files if file.path in paths}
        source: Tree | None = None
        try:
            for at, number in enumerate(lacking):
                if at % FILES_PER_STEP == 0:
                    yield ENTRY_COST
                runs = _runs(content, number, here.get(content.blocks.files[number].path), found, alike)
                if not runs:
                    continue
                source = source or self._open_sibling(vpath, theirs.image)
                if source is None:
                    return
                for first, count, origin in runs:
                    yield from self._take(source, number, first, count, origin)
                self._files += content.whole(number)
        finally:
            if source is not None:
                source.close()

    def _search(self, lacking: list[int], theirs: Index) -> Steps[dict[bytes, Origin]]:
        """Locates in a sibling the blocks that are not here: the first place of each, by hash."""
        content = self._content
        wanted: set[bytes] = set()
        for at, number in enumerate(lacking):
            if at % FILES_PER_STEP == 0:
                yield ENTRY_COST
            hashes = content.blocks.files[number].hashes
            wanted.update([hashes[block * HASH_BYTES : (block + 1) * HASH_BYTES] for block in content.missing(number)])
        found: dict[bytes, Origin] = {}
        for at, other in enumerate(theirs.files):
            if at % FILES_PER_STEP == 0:
                yield ENTRY_COST
            hashes = other.hashes
            for begin in range(0, len(hashes), HASH_BYTES):
                one = hashes[begin : begin + HASH_BYTES]
                if one in wanted:
                    found.setdefault(one, (other, begin // HASH_BYTES))
        return found

    def _take(self, source: Tree, number: int, first: int, count: int, origin: Origin) -> Steps[None]:
        """Copy ``count`` blocks of one file of a sibling to file ``number``, from block ``first`` on, as far as they are good."""
        content = self._content
        mine = content.blocks.files[number]
        other, begin = origin
        begin *= BLOCK_BYTES
        offset = first * BLOCK_BYTES
        size = min(count * BLOCK_BYTES, mine.size - offset)
        above, name = split(other.path)
        yield max(size, ENTRY_COST)
        try:
            opened = source.directory(above).open_read(name)
        except OSError as error:
            _log.debug("{path} is not reused: {error}", path=other.path, error=error)
            return
        with opened:
            cloned = self._cloned(opened, begin, number, offset, size)
            if cloned is not None:
                # The clone is hashed where it is now: the sibling may have changed since it was chosen.
                data = cloned
                good = good_in(data, mine, content.index.kind, first)  # guard: A50 F59 I1, -> list(range(first, first + count))
                content.add(number, good)
            elif not self._room():  # guard: A38 F28
                return
            else:
                try:
                    data = opened.read_at(size, begin)
                except OSError as error:
                    _log.debug("{path} is not reused: {error}", path=other.path, error=error)
                    return
                good = good_in(data, mine, content.index.kind, first)  # guard: A50 F59 I1, -> list(range(first, first + count))
                view = memoryview(data)
                for block in good:
                    content.put(number, block, view[(block - first) * BLOCK_BYTES : (block - first + 1) * BLOCK_BYTES])
        start = content.blocks.numbers_of(number).start
        for block in good:
            self._taken[start + block] = 1
        self._bytes += sum(mine.block_size(block) for block in good)

    def _cloned(self, opened: OpenFile, begin: int, number: int, offset: int, size: int) -> bytes | None:
        """Reads a part of a file since it shares space with another one; None where that cannot be."""
        if not self._clones:
            return None
        try:
            return self._content.clone(number, offset, size, opened, begin)
        except OSError as error:
            if error.errno in FULL:  # guard: A38 F28
                raise
            if error.errno in CANNOT_CLONE:
                self._clones = False
                if self._how is Reuse.REFLINK:
                    warn_once("reflink", self._warn_no_clones)
            return None

    def _warn_no_clones(self) -> None:
        _log.warn(
            "the file system of {where} cannot share space between files: what images have in common is copied (reuse: reflink needs btrfs "
            "or xfs)",
            where=self._content.tree.root.where or ".",
        )

    def _room(self) -> bool:
        """Tells whether anything may be written: when not all that is missing fits, the download ends anyway, and nothing is filled up."""
        if self._may_write is None:
            self._may_write = self._fits()
        return self._may_write


def _signs(status: os.stat_result) -> tuple[int, int, int, int]:
    """Fingerprint of a file (size, mtime, mode, group): it changes when somebody changes the file."""
    return status.st_size, status.st_mtime_ns, status.st_mode, status.st_gid


def _runs(content: Content, number: int, same_path: File | None, found: dict[bytes, Origin], alike: bool) -> list[tuple[int, int, Origin]]:
    """Finds runs of blocks of file ``number`` in a sibling: (block of ours, how many from there on, where the first stands).

    The place at the same path is preferred. Between indexes of different hash kinds it is the only one, and nobody knows before hashing.
    """
    mine = content.blocks.files[number]
    hashes = mine.hashes
    runs: list[tuple[int, int, Origin]] = []
    for block in content.missing(number):
        one = hashes[block * HASH_BYTES : (block + 1) * HASH_BYTES]
        if runs:
            first, count, (other, begin) = runs[-1]
            if block == first + count and count < READ_BLOCKS and _stands(mine, block, other, begin + count, one, alike):
                runs[-1] = first, count + 1, (other, begin)
                continue
        if same_path is not None and _stands(mine, block, same_path, block, one, alike):
            runs.append((block, 1, (same_path, block)))
        elif one in found:
            runs.append((block, 1, found[one]))
    return runs


def _stands(mine: File, block: int, other: File, at: int, one: bytes, alike: bool) -> bool:
    if alike:
        return other.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] == one
    return at < other.block_count and other.block_size(at) == mine.block_size(block)
