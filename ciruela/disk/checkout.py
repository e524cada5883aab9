"""Checkout of an image for a user: put together in a hidden directory beside its destination, shown in one step when it is whole.

The same work as at a node (``staging``), without records: there is no db directory here, and what an interrupted run left is found by its
name and kept as far as its hashes are right. Files keep the times at which they were written; a file that is linked to another tree is not
touched at all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ciruela.disk.executor import SerialExecutor, Steps
from ciruela.disk.layout import Place, Records
from ciruela.disk.openfile import OpenFile
from ciruela.disk.removal import remove_tree
from ciruela.disk.reuse import Content
from ciruela.disk.safedir import SafeDir
from ciruela.disk.staging import StagingDir, StagingRules, open_staging
from ciruela.disk.syscalls import checked_steps, downloading_steps
from ciruela.disk.tree import Tree
from ciruela.disk.verify import Mismatch, barrier, check, complete
from ciruela.index.tree import Index
from ciruela.interfaces import InThread, Reused
from ciruela.model.bitfield import BlockSet
from ciruela.model.config import STANDARD, STANDARD_MODES, Fsync, Reuse
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.ids import Block, ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.vpath import VPath

_TUNING = replace(STANDARD, disk_reserve_bytes=0)
"""A user may fill his own disk; a node may not."""


class DestinationKind(Enum):
    """Kind of the directory that stands at the destination."""

    NOTHING = "nothing"
    SAME = "the image"
    OTHER = "another directory"
    NO_DIRECTORY = "something that is no directory"


class _NoStore:
    """Stands for the store, where there is none (``staging.StagingHost``): nothing is committed here, so nobody has to hear of it."""

    def place(self, vpath: VPath) -> Place:
        """No other image has a place here."""
        raise DiskError(f"{vpath}: has no place here")

    def staging_shown(self, place: Place, image: ImageId, aside: bool) -> None:
        """Nothing is committed through the staging directory."""

    def staging_closed(self, place: Place, image: ImageId) -> None:
        """As many may be open as there are runs."""


class _Staged(StagingDir):
    """Takes what can be reused from any directories of the user; ``olds`` tells which stands for which path."""

    _log = Logger()
    olds: Mapping[VPath, str] = {}

    def _open_sibling(self, vpath: VPath, image: ImageId) -> Tree | None:  # noqa: ARG002  the seam's
        try:
            return Tree(SafeDir.at(self.olds[vpath]))
        except OSError as error:
            self._log.debug("{path} cannot be reused: {error}", path=self.olds[vpath], error=error)
            return None


class Checkout:
    """The copy of the image of ``index`` at ``name`` in the directory ``parent``. All methods work in threads, one after the other.

    They fail with DiskError for what the system does not allow, with DownloadFailed when the disk is full.
    """

    _log = Logger()

    def __init__(self, parent: str, name: str, index: Index, in_thread: InThread, *, link: bool = False) -> None:
        """``link``: whole files of directories to reuse get another name instead of being copied."""
        self._index = index
        self._lane = SerialExecutor(in_thread, name)
        self._place = Place(VPath((name,)), parent, (), name)
        self._how = Reuse.HARDLINK if link else Reuse.COPY
        self._root: SafeDir | None = None
        self._staged: _Staged | None = None

    @property
    def staging(self) -> str:
        """The name of the directory, beside the destination, in which the image is put together."""
        return self._place.staging(self._index.image)

    def look(self) -> Deferred[DestinationKind]:
        """Finds out what stands at the destination. Reads all of it if it might be the image."""
        return self._lane.steps(checked_steps(self._place, self._look()))

    def _look(self) -> Steps[DestinationKind]:
        with self._place.open_parent() as parent:
            found = parent.stat(self._place.name)
            if found is None:
                return DestinationKind.NOTHING
            if not stat.S_ISDIR(found.st_mode):
                return DestinationKind.NO_DIRECTORY
            tree = Tree(parent.open_dir(self._place.name))
        try:
            yield from check(tree, self._index, _as_executable)
        except Mismatch:
            return DestinationKind.OTHER
        finally:
            tree.close()
        return DestinationKind.SAME

    def open(self) -> Deferred[BlockSet]:
        """Open the staging directory, or make it. Fires as ``interfaces.Staging.keep``."""
        return self._lane.do(self._open).addCallback(lambda staged: staged.keep())

    def _open(self) -> _Staged:
        try:
            with self._place.open_parent() as parent:
                root = open_staging(parent, self.staging)
            # The lock lasts as long as the descriptor: the kernel lets go of it even when this run is killed.
            try:
                fcntl.flock(root.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # guard: I1
            except OSError:
                root.close()
                raise DiskError(f"{self._place}: another run is putting the same image together there; wait for it, or stop it") from None
        except OSError as error:
            raise DiskError(f"{self._place}: {error.strerror} ({error.filename})") from None
        self._root = root
        content, rules = Content(self._index, Tree(root)), StagingRules(_TUNING, self._how)
        self._staged = _Staged(_NoStore(), Records(self._place.base), self._place, content, self._lane, rules)
        return self._staged

    def reuse(self, olds: Sequence[tuple[str, Index]]) -> Deferred[Reused]:
        """Take what stands in other directories, each with its index. Every block is hashed."""
        staged = self._opened()
        named = {VPath((str(number),)): directory for number, (directory, _) in enumerate(olds)}
        staged.olds = named
        return staged.reuse([(vpath, index) for vpath, (_, index) in zip(named, olds, strict=True)])

    def write(self, blocks: Sequence[tuple[int, Block]]) -> Deferred[list[bool]]:
        """As ``interfaces.Staging.write``."""
        return self._opened().write(blocks)

    def write_here(self, blocks: Sequence[tuple[int, Block]]) -> list[bool]:
        """As ``interfaces.Staging.write_here``."""
        return self._opened().write_here(blocks)

    def _opened(self) -> _Staged:
        assert self._staged is not None
        return self._staged

    def show(self, *, replacing: bool) -> Deferred[None]:
        """Verify everything, make it durable, and show it at the destination in one step.

        With ``replacing`` a directory that stands there changes places with it and is deleted then. Fails with DownloadFailed when
        something stands there that must not be replaced, or when the content is not right.
        """
        return self._lane.steps(downloading_steps(self._place, self._show(replacing)))

    def _show(self, replacing: bool) -> Steps[None]:
        assert self._root is not None
        tree = Tree(self._root)
        self._root = None
        try:
            try:
                yield from complete(tree, self._index)
                yield from check(tree, self._index, _with_mode)  # guard: I1, -> (yield 0)
            except Mismatch as found:
                raise DownloadFailed(
                    AbortReason.COMMIT_ERROR, f"{found} (changed by somebody else meanwhile? run the command again)"
                ) from None
            tree.root.chmod(STANDARD_MODES.dir_bits)
            yield from barrier(tree, self._index, Fsync.COMMIT)
            with self._place.open_parent() as parent:
                yield from self._swap(parent, replacing)
                parent.fsync()
        finally:
            tree.close()

    def _swap(self, parent: SafeDir, replacing: bool) -> Steps[None]:
        name = self._place.name
        found = parent.stat(name) if replacing else None  # guard: I1, -> parent.stat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            parent.exchange(self.staging, name, self._place.aside(self._index.image))
            try:
                yield from remove_tree(parent, self.staging)
            except OSError as error:
                self._log.warn("what stood at {where} before cannot be removed: {error}", where=str(self._place), error=error)
            return
        try:
            parent.rename_new(self.staging, name)
        except FileExistsError:
            raise DownloadFailed(AbortReason.ALREADY_EXISTS, f"{self._place}: appeared meanwhile and is left as it is") from None

    def close(self) -> None:
        """Let go of what is open; the staging directory stays for the next run."""
        if self._staged is not None:
            self._staged.close()


def _as_executable(found: OpenFile | SafeDir, status: os.stat_result, mode: int) -> None:
    """A user's umask is nobody's business; whether a file can be executed is part of an image."""
    if isinstance(found, OpenFile) and bool(status.st_mode & stat.S_IXUSR) != bool(mode & stat.S_IXUSR):
        raise Mismatch(f"{found.where}: is executable, or is not")


def _with_mode(found: OpenFile | SafeDir, status: os.stat_result, mode: int) -> None:
    """Sets the mode of an image, except on a file with other names: that was linked because it has it. Raises OSError."""
    if stat.S_IMODE(status.st_mode) == mode:
        return
    if isinstance(found, OpenFile) and status.st_nlink > 1:
        raise OSError(errno.EPERM, "a linked file has another mode now", found.where)
    found.chmod(mode)
