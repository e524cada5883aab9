"""The staging directory: where one image is put together, hidden beside its destination (protocol sections 5.6 and 5.8)."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.disk.commit import CommitResult, commit, prepare
from ciruela.disk.executor import ENTRY_COST, SerialExecutor, Steps
from ciruela.disk.hashrecord import HashRecord
from ciruela.disk.layout import Place, Records
from ciruela.disk.recovery import finish_aside
from ciruela.disk.removal import remove_tree
from ciruela.disk.reuse import FILES_PER_STEP, Content, Reusing, writable
from ciruela.disk.safedir import SafeDir
from ciruela.disk.syscalls import downloading_steps
from ciruela.disk.tree import Tree, split
from ciruela.disk.verify import as_it_should, good_blocks, names_by_directory
from ciruela.index.tree import File, Index, Symlink
from ciruela.interfaces import Reused
from ciruela.model.bitfield import BlockSet
from ciruela.model.config import STANDARD_MODES, CommitCheck, Modes, Reuse, Tuning
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.ids import Block, ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.values import dataclass
from ciruela.model.versions import RetainedVersion, State
from ciruela.model.vpath import VPath

T = TypeVar("T")


def room(directory: SafeDir, tuning: Tuning) -> int:
    """Bytes that a download may use on the file system of ``directory``."""
    free, size = directory.free_bytes()
    return free - tuning.reserve_bytes(size)


def no_space(needed: int, free: int) -> DownloadFailed:
    """The refusal of a download that would not fit."""
    return DownloadFailed(AbortReason.NO_SPACE, f"needs {needed} bytes, {max(free, 0)} bytes free beyond the reserve")


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
        if opened.status().st_dev != parent.status().st_dev:  # guard: I3
            raise OSError(errno.EXDEV, "another file system is mounted here", parent.within(name))
        opened.chmod(0o700)
    except BaseException:
        opened.close()
        raise
    return opened


class StagingHost(Protocol):
    """The store, as its staging directories see it."""

    def place(self, vpath: VPath) -> Place:
        """Finds the place at which the image at ``vpath`` stands, or is to stand. Raises DiskError when no config takes it."""

    def staging_shown(self, place: Place, image: ImageId, aside: bool) -> None:
        """The image was committed; ``aside``: what stood there without a record was set aside."""

    def staging_closed(self, place: Place, image: ImageId) -> None:
        """Nothing of the staging directory is open any more; called once."""


@dataclass(frozen=True, slots=True)
class StagingRules:
    """The settings by which an image is put together: limits of the disk, how siblings are reused, the modes of what is created.

    Files that ``known`` knows are linked without being read; without it all are read.
    """

    tuning: Tuning
    reuse: Reuse = Reuse.HARDLINK
    modes: Modes = STANDARD_MODES
    known: HashRecord | None = None


class StagingDir:
    """Implements ``interfaces.Staging``. All its work runs on the lane of its path, one slice at a time; only blocks may come beside it."""

    _log = Logger()

    def __init__(
        self,
        host: StagingHost,
        records: Records,
        place: Place,
        content: Content,
        lane: SerialExecutor,
        rules: StagingRules,
    ) -> None:
        self._host = host
        self._records = records
        self._place = place
        self._content = content
        self._index = content.index
        self._tree = content.tree
        self._lane = lane
        self._rules = rules
        self._closed = False
        self._room_checked = False
        self._writing = Lock()
        self._shut = False

    def _run(self, steps: Steps[T]) -> Deferred[T]:
        return self._lane.steps(downloading_steps(self._place.vpath, steps))

    # -- what is here already --------------------------------------------------------------------------------------------------

    def keep(self) -> Deferred[BlockSet]:
        """As ``interfaces.Staging.keep``."""
        return self._run(self._keep())

    def _keep(self) -> Steps[BlockSet]:
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
                elif name not in inner or not _is(here, name, stat.S_ISDIR):  # guard: I1
                    yield from remove_tree(here, name)
        return self._content.here

    def _keep_file(self, here: SafeDir, name: str, number: int, wanted: File) -> Steps[None]:
        """Keep the whole blocks of a file.

        One that is not whole is kept only if it is surely ours to write: with mode 0600 and no other name. Others may be part of an image,
        or of an old tree that a program still has open.
        """
        if _is(here, name, stat.S_ISREG):
            with here.open_read(name) as opened:
                status = opened.first
                good = (yield from good_blocks(opened, wanted, self._index.kind)) if status.st_size <= wanted.size else []
                whole = status.st_size == wanted.size and len(good) == wanted.block_count  # guard: A57 I1, without 2
            mode = self._rules.modes.of_file(wanted.executable)
            shared_mode_wrong = status.st_nlink > 1 and not as_it_should(status, mode, self._rules.modes.gid)
            if not shared_mode_wrong if whole else good and writable(opened):
                self._content.add(number, good)
                return
        yield from remove_tree(here, name)

    def reuse(self, siblings: Sequence[tuple[VPath, Index]]) -> Deferred[Reused]:
        """As ``interfaces.Staging.reuse``."""
        return self._run(self._reuse(tuple(siblings)))

    def _reuse(self, siblings: Sequence[tuple[VPath, Index]]) -> Steps[Reused]:
        rules = self._rules
        return (yield from Reusing(self._content, rules.reuse, self._open_sibling, self._fits, rules.modes, rules.known).run(siblings))

    def _open_sibling(self, vpath: VPath, image: ImageId) -> Tree | None:
        try:
            place = self._host.place(vpath)
            with place.open_parent() as parent:
                kept = place.kept(image)
                return Tree(parent.open_dir(kept if _is(parent, kept, stat.S_ISDIR) else place.name))
        except (DiskError, OSError) as error:
            self._log.debug("{vpath} cannot be reused: {error}", vpath=str(vpath), error=error)
            return None

    # -- what arrives ----------------------------------------------------------------------------------------------------------

    def write(self, blocks: Sequence[tuple[int, Block]]) -> Deferred[list[bool]]:
        """As ``interfaces.Staging.write``. A block that the image has very often is written in several slices."""
        return self._run(self._write(tuple(blocks)))

    def write_here(self, blocks: Sequence[tuple[int, Block]]) -> list[bool]:
        """As ``interfaces.Staging.write_here``: beside the lane, and maybe in several threads at once."""
        work = downloading_steps(self._place.vpath, self._write(blocks))
        while True:
            try:
                next(work)
            except StopIteration as end:
                results: list[bool] = end.value
                return results

    def _write(self, blocks: Sequence[tuple[int, Block]]) -> Steps[list[bool]]:
        with self._writing:
            if not self._room_checked:
                self._check_room()
        runs = self._content.blocks.runs([number for number, _ in blocks])
        results: list[bool] = []
        for file_number, first, count in runs:
            come = blocks[len(results) : len(results) + count]
            good = self._good(self._content.blocks.files[file_number], first, [data for _, data in come])
            results += good
            put = self._put(file_number, first, come, good)
            while True:
                # Hashing is outside of it: several threads can hash at the same time, one writes.
                with self._writing:
                    if self._shut:  # guard: I1
                        raise DiskError(f"{self._place}: its staging directory was closed")
                    cost = next(put, None)
                if cost is None:
                    break
                yield cost
        return results

    def _good(self, file: File, first: int, come: Sequence[Block]) -> list[bool]:
        """Tells of each of the blocks of a file from ``first`` on if it is right."""
        hashed = self._index.kind.hasher
        found = [hashed(data).digest() for data in come]
        # guard: A7 F5 I1, without 2
        return [
            len(data) == file.block_size(block) and one == file.block_hash(block)
            for block, (data, one) in enumerate(zip(come, found, strict=True), first)
        ]

    def _put(self, file_number: int, first: int, come: Sequence[tuple[int, Block]], good: Sequence[bool]) -> Steps[None]:
        """Writes those of the blocks of a file from ``first`` on that are ``good``, and not here, in as few calls as possible."""
        content, blocks_of = self._content, self._content.blocks
        fresh: list[Block] = []
        for block, (right, (number, data)) in enumerate(zip(good, come, strict=True), first):
            if right and not content.has(number):
                fresh.append(data)
            elif fresh:
                content.put(file_number, block - len(fresh), *fresh)
                fresh = []
        if fresh:
            content.put(file_number, first + len(come) - len(fresh), *fresh)
        yield sum(len(data) for _, data in come)
        for right, (number, data) in zip(good, come, strict=True):
            if right and blocks_of.twins[number]:
                yield from self._write_twins(blocks_of.numbers(blocks_of.hash_of(number)), data)

    def _write_twins(self, numbers: Sequence[int], data: Block) -> Steps[None]:
        """Write a block wherever else the image has it."""
        for number in numbers:
            file_number, block = self._content.blocks.place(number)
            if not self._content.has(number) and len(data) == self._content.blocks.files[file_number].block_size(block):
                self._content.put(file_number, block, data)
                yield len(data)

    def _fits(self) -> bool:
        return self._content.missing_bytes() <= room(self._tree.root, self._rules.tuning)

    def _check_room(self) -> None:
        """Checks that the missing bytes fit on disk. With nothing to write the reserve may be used up already. Raises DownloadFailed."""
        needed = self._content.missing_bytes()
        free = room(self._tree.root, self._rules.tuning)
        if needed and needed > free:  # guard: A38 F7 F28
            raise no_space(needed, free)
        self._room_checked = True

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def prepare(self) -> Deferred[str]:
        """As ``interfaces.Staging.prepare``."""
        where = "/".join((self._place.base.rstrip("/"), *self._place.parents, self._place.staging(self._index.image)))
        finished = self._content.finished
        work = prepare(self._tree, self._index, self._rules.modes, None if finished is None else finished.as_left)
        return self._run(work).addCallback(lambda _: where)

    def commit(self, state: State) -> Deferred[tuple[RetainedVersion, ...]]:
        """As ``interfaces.Staging.commit``."""
        return self._commit(state, again=False)

    def restore(self, state: State) -> Deferred[None]:
        """As ``interfaces.Staging.restore``."""
        return self._commit(state, again=True).addCallback(lambda _: None)

    def _commit(self, state: State, *, again: bool) -> Deferred[tuple[RetainedVersion, ...]]:
        tuning, modes, finished = self._rules.tuning, self._rules.modes, self._content.finished
        spare = finished.spared if finished is not None and tuning.verify_before_commit is CommitCheck.METADATA else None
        work = commit(self._records, self._place, self._tree, self._index, state, tuning.fsync, again=again, modes=modes, spare=spare)
        return self._run(work).addCallback(self._done)

    def _done(self, shown: CommitResult) -> tuple[RetainedVersion, ...]:
        # Only then, for what is done in several steps lets others in between.
        self._lane.steps(self._note()).addErrback(self._not_noted).addBoth(lambda _: self.close())
        self._host.staging_shown(self._place, self._index.image, shown.aside)
        return shown.retained

    def _note(self) -> Steps[None]:
        """Keep what the files of the image have in them, now that it is durable."""
        known, finished = self._rules.known, self._content.finished
        if known is None or finished is None:
            return
        contents = finished.contents()
        while not self._shut and (some := list(islice(contents, FILES_PER_STEP))):
            known.note(self._tree.root, some)
            yield FILES_PER_STEP * ENTRY_COST
        known.save()

    def _not_noted(self, failure: Failure) -> None:
        self._log.error("{vpath}: what its files have in them is not recorded: {error}", vpath=str(self._place.vpath), error=failure.value)

    def close(self) -> None:
        """As ``interfaces.Staging.close``; descriptors in use by a thread are closed after it."""
        first, self._closed = not self._closed, True

        def ended(result: T) -> T:
            if first:
                self._host.staging_closed(self._place, self._index.image)
            return result

        self._lane.do(self._shut_down).addBoth(ended)

    def _shut_down(self) -> None:
        with self._writing:
            self._shut = True
            self._tree.close()

    def discard(self) -> Deferred[None]:
        """As ``interfaces.Staging.discard``."""
        self.close()
        return self._run(self._discard())

    def _discard(self) -> Steps[None]:
        try:
            parent = self._place.open_parent()
        except FileNotFoundError:
            return
        with parent:
            with suppress(FileNotFoundError), self._records.states(self._place.vpath) as directory:
                finish_aside(directory, self._place, parent)
            yield from remove_tree(parent, self._place.staging(self._index.image))


def _is(here: SafeDir, name: str, kind: Callable[[int], bool]) -> bool:
    found = here.stat(name)
    return found is not None and kind(found.st_mode)
