"""The staging directory: where one image is put together, hidden beside its destination (protocol sections 5.6 and 5.8)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ciruela.disk.commit import commit
from ciruela.disk.faults import FULL, downloading_steps
from ciruela.disk.lane import ENTRY_COST, Lane, Steps
from ciruela.disk.layout import Place, Records
from ciruela.disk.removal import remove_tree
from ciruela.disk.safedir import OpenFile, SafeDir
from ciruela.disk.tree import Tree, split
from ciruela.disk.verify import file_mode, good_blocks, names_by_directory
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.merge import BlockMap, same_files
from ciruela.index.tree import File, Index, Symlink
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.ids import BlockHash
from ciruela.model.order import Abort
from ciruela.model.state import State
from ciruela.model.tuning import Tuning
from ciruela.model.vpath import VPath
from ciruela.seams import Reused

T = TypeVar("T")

FRESH_MODE = 0o600
"""Mode of a file that is still being written."""


def room(directory: SafeDir, tuning: Tuning) -> int:
    """Bytes that a download may use on the file system of ``directory``."""
    free, size = directory.free_bytes()
    return free - tuning.reserve_bytes(size)


def no_space(needed: int, free: int) -> DownloadFailed:
    """The refusal of a download that would not fit."""
    return DownloadFailed(Abort.NO_SPACE, f"needs {needed} bytes, {max(free, 0)} bytes free beyond the reserve")


def open_staging(parent: SafeDir, name: str) -> SafeDir:
    """Open the staging directory, or create it with mode 0700. What else stands there is removed. Raises OSError."""
    found = parent.stat(name)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        parent.unlink(name)
        found = None
    if found is None:
        return parent.make_dir(name, 0o700)
    opened = parent.open_dir(name)
    try:
        if opened.status().st_dev != parent.status().st_dev:
            raise OSError(errno.EXDEV, "another file system is mounted here", parent.within(name))
        opened.chmod(0o700)
    except BaseException:
        opened.close()
        raise
    return opened


class StagingDir:
    """Implements ``seams.Staging``. All its work runs on the lane of its path, one slice at a time."""

    _log = Logger()

    def __init__(
        self,
        records: Records,
        place: Place,
        index: Index,
        root: SafeDir,
        lane: Lane,
        locate: Callable[[VPath], Place],
        shown: Callable[[], None],
        tuning: Tuning,
    ) -> None:
        self._records = records
        self._place = place
        self._index = index
        self._tree = Tree(root)
        self._lane = lane
        self._locate = locate
        self._shown = shown
        self._tuning = tuning
        self._map = BlockMap(index)
        self._here = bytearray(index.block_count)
        self._room_checked = False

    def _run(self, steps: Steps[T]) -> Deferred[T]:
        return self._lane.steps(downloading_steps(self._place.vpath, steps))

    # -- what is here already --------------------------------------------------------------------------------------------------

    def keep(self) -> Deferred[frozenset[int]]:
        """As ``seams.Staging.keep``."""
        return self._run(self._keep())

    def _keep(self) -> Steps[frozenset[int]]:
        self._tree.forget()
        below = names_by_directory(self._index)
        number = 0
        for directory in self._index.directories:
            yield ENTRY_COST
            first = number
            number += sum(isinstance(entry, File) for entry in directory.entries)
            try:
                here = self._tree.directory(directory.path)
            except FileNotFoundError:
                continue
            if directory.path != "/" and here.status().st_dev != self._tree.root.status().st_dev:
                raise OSError(errno.EXDEV, "another file system is mounted here", here.where)
            files = [entry for entry in directory.entries if isinstance(entry, File)]
            expected = {split(file.path)[1]: (first + at, file) for at, file in enumerate(files)}
            links = {split(entry.path)[1]: entry for entry in directory.entries if isinstance(entry, Symlink)}
            inner = set(below[directory.path])
            for name in here.names():
                yield ENTRY_COST
                if name in expected:
                    yield from self._keep_file(here, name, *expected[name])
                elif name in links:
                    if not _is(here, name, stat.S_ISLNK) or here.readlink(name) != links[name].target:
                        yield from remove_tree(here, name)
                elif name not in inner or not _is(here, name, stat.S_ISDIR):
                    yield from remove_tree(here, name)
        return frozenset(block for block, here_already in enumerate(self._here) if here_already)

    def _keep_file(self, here: SafeDir, name: str, number: int, wanted: File) -> Steps[None]:
        """Keep the whole blocks of a file.

        One that is not whole is kept only if it is surely ours to write: with mode 0600 and no other name. Others may be part of an image,
        or of an old tree that a program still has open.
        """
        if _is(here, name, stat.S_ISREG):
            with here.open_read(name) as opened:
                status = opened.stat()
                good = (yield from good_blocks(opened, wanted, self._index.kind)) if status.st_size <= wanted.size else []
                whole = status.st_size == wanted.size and len(good) == wanted.block_count
            shared_mode_wrong = status.st_nlink > 1 and stat.S_IMODE(status.st_mode) != file_mode(wanted)
            if not shared_mode_wrong if whole else good and _writable(status):
                blocks = self._map.numbers_of(number)
                for block in good:
                    self._here[blocks[block]] = 1
                return
        yield from remove_tree(here, name)

    def reuse(self, siblings: Sequence[tuple[VPath, Index]]) -> Deferred[Reused]:
        """As ``seams.Staging.reuse``."""
        return self._run(self._reuse(tuple(siblings)))

    def _reuse(self, siblings: Sequence[tuple[VPath, Index]]) -> Steps[Reused]:
        blocks: set[int] = set()
        files = size = 0
        for vpath, theirs in siblings:
            yield ENTRY_COST
            pairs = [(mine, other) for mine, other in same_files(self._index, theirs) if not self._whole(mine)]
            if not pairs:
                continue
            source = self._open_sibling(vpath)
            if source is None:
                continue
            try:
                for mine, other in pairs:
                    if (yield from self._link(source, mine, other)):
                        numbers = self._numbers(mine)
                        blocks.update(numbers)
                        self._here[numbers.start : numbers.stop] = b"\1" * len(numbers)
                        files += 1
                        size += mine.size
            finally:
                source.close()
        return Reused(frozenset(blocks), files, size)

    def _numbers(self, file: File) -> range:
        first = self._map.locate(file.path, 0)
        assert first is not None
        return range(first, first + file.block_count)

    def _whole(self, file: File) -> bool:
        numbers = self._numbers(file)
        return all(self._here[numbers.start : numbers.stop])

    def _open_sibling(self, vpath: VPath) -> Tree | None:
        try:
            place = self._locate(vpath)
            with place.open_parent() as parent:
                return Tree(parent.open_dir(place.name))
        except (DiskError, OSError) as error:
            self._log.debug("{vpath} cannot be reused: {error}", vpath=str(vpath), error=error)
            return None

    def _link(self, source: Tree, mine: File, other: File) -> Steps[bool]:
        """Hash ``other`` and link the very inode that was hashed. Anything that does not work means False, but for a full disk."""
        above, name = split(other.path)
        try:
            with source.directory(above).open_read(name) as opened:
                before = opened.stat()
                if before.st_size != mine.size or stat.S_IMODE(before.st_mode) != file_mode(mine):
                    return False
                good = yield from good_blocks(opened, mine, self._index.kind)
                if len(good) != mine.block_count:
                    return False
                to, name = split(mine.path)
                here = self._tree.directory(to, create=True)
                if here.stat(name) is not None:
                    self._tree.close_file(mine.path)
                    here.unlink(name)
                    numbers = self._numbers(mine)
                    self._here[numbers.start : numbers.stop] = bytes(len(numbers))
                here.link(opened, name)
                after = opened.stat()
                if (after.st_size, after.st_mtime_ns, after.st_mode) != (before.st_size, before.st_mtime_ns, before.st_mode):
                    here.unlink(name)
                    return False
        except OSError as error:
            if error.errno in FULL:
                raise
            self._log.debug("{path} is not linked: {error}", path=other.path, error=error)
            return False
        return True

    # -- what arrives ----------------------------------------------------------------------------------------------------------

    def write(self, blocks: Sequence[tuple[int, bytes]]) -> Deferred[list[bool]]:
        """As ``seams.Staging.write``. A block that the image has very often is written in several slices."""
        return self._run(self._write(tuple(blocks)))

    def _write(self, blocks: Sequence[tuple[int, bytes]]) -> Steps[list[bool]]:
        if not self._room_checked:
            self._check_room()
        results = []
        for number, data in blocks:
            file, block = self._map.by_number(number)
            wanted = file.block_hash(block)
            good = len(data) == file.block_size(block) and self._index.kind.hash(data) == wanted
            results.append(good)
            if good and not self._here[number]:
                yield from self._write_everywhere(wanted, data)
            yield len(data)
        return results

    def _write_everywhere(self, wanted: BlockHash, data: bytes) -> Steps[None]:
        for number in self._map.numbers(wanted):
            file, block = self._map.by_number(number)
            if self._here[number] or len(data) != file.block_size(block):
                continue
            self._tree.directory(split(file.path)[0], create=True)
            self._tree.file(file.path, _open_target).write_at(data, block * BLOCK_BYTES)
            self._here[number] = 1
            if file.block_count == 1:
                self._tree.close_file(file.path)
            yield len(data)

    def _check_room(self) -> None:
        """What neither an earlier run left nor a sibling gave has to fit. With nothing to write the reserve may be used up already."""
        here = iter(self._here)
        needed = sum(file.block_size(block) for file in self._map.files for block in range(file.block_count) if not next(here))
        free = room(self._tree.root, self._tuning)
        if needed and needed > free:
            raise no_space(needed, free)
        self._room_checked = True

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def commit(self, state: State) -> Deferred[None]:
        """As ``seams.Staging.commit``."""
        return self._commit(state, again=False)

    def restore(self, state: State) -> Deferred[None]:
        """As ``seams.Staging.restore``."""
        return self._commit(state, again=True)

    def _commit(self, state: State, *, again: bool) -> Deferred[None]:
        work = commit(self._records, self._place, self._tree, self._index, state, self._tuning.fsync, again=again)
        return self._run(work).addCallback(lambda _: self._done())

    def _done(self) -> None:
        self.close()
        self._shown()

    def close(self) -> None:
        """As ``seams.Staging.close``; descriptors in use by a thread are closed after it."""
        self._lane.do(self._tree.close)

    def discard(self) -> Deferred[None]:
        """As ``seams.Staging.discard``."""
        self.close()
        return self._run(self._discard())

    def _discard(self) -> Steps[None]:
        try:
            parent = self._place.open_parent()
        except FileNotFoundError:
            return
        with parent:
            yield from remove_tree(parent, self._place.staging(self._index.image))


def _is(here: SafeDir, name: str, kind: Callable[[int], bool]) -> bool:
    found = here.stat(name)
    return found is not None and kind(found.st_mode)


def _writable(status: os.stat_result) -> bool:
    """Whether a file was created here and nobody else can have it: a file of an image has another mode."""
    return status.st_nlink == 1 and stat.S_IMODE(status.st_mode) == FRESH_MODE


def _open_target(directory: SafeDir, name: str) -> OpenFile:
    """Open a file of ours to write, or create it. Any other is replaced, for it must not change."""
    try:
        return directory.create(name, FRESH_MODE)
    except FileExistsError:
        pass
    opened = directory.open_write(name)
    if _writable(opened.stat()):
        return opened
    opened.close()
    directory.unlink(name)
    return directory.create(name, FRESH_MODE)
