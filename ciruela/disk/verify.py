"""Comparing a tree on disk with an index: every block hashed, every name accounted for (threats 6.4, steps 3 and 4)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from ciruela.disk.lane import ENTRY_COST, Steps
from ciruela.disk.safedir import STAMP_NS, OpenFile, SafeDir
from ciruela.disk.tree import Tree, split
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.tuning import Fsync

READ_BLOCKS = 32
"""Blocks read at once while hashing: 1 MiB."""

SYNC_ALL_ABOVE = 64
"""With more files and directories than this, one syncfs is cheaper than an fsync for each (performance study, section 2)."""

DIR_MODE = 0o755

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR})
"""What opening answers when something else stands at a name, or nothing."""

Visit = Callable[[OpenFile | SafeDir, os.stat_result, int], None]
"""Called with what was found good, what it is, and the permission bits that it should have."""


class Mismatch(Exception):
    """The tree is not what the index says; the message says where."""


def file_mode(file: File) -> int:
    """The permission bits of ``file`` in an image (protocol section 1.2)."""
    return 0o755 if file.executable else 0o644


def good_blocks(opened: OpenFile, wanted: File, kind: HashKind) -> Steps[list[int]]:
    """The numbers, within the file, of the blocks that are as the index says. What lies behind the end is not looked at."""
    good: list[int] = []
    for first in range(0, wanted.block_count, READ_BLOCKS):
        data = memoryview(opened.read_at(READ_BLOCKS * BLOCK_BYTES, first * BLOCK_BYTES))
        yield max(len(data), ENTRY_COST if first == 0 else 1)
        for number in range(first, min(first + READ_BLOCKS, wanted.block_count)):
            begin = (number - first) * BLOCK_BYTES
            block = data[begin : begin + wanted.block_size(number)]
            if len(block) == wanted.block_size(number) and kind.hash(block) == wanted.block_hash(number):
                good.append(number)
    return good


def names_by_directory(index: Index) -> dict[str, list[str]]:
    """For each directory path the names of the directories in it."""
    found: dict[str, list[str]] = {directory.path: [] for directory in index.directories}
    for directory in index.directories:
        if directory.path != "/":
            above, name = split(directory.path)
            found[above].append(name)
    return found


def check(tree: Tree, index: Index, visit: Visit) -> Steps[None]:
    """Go through ``index`` and compare everything. Raises Mismatch, OSError (a read error is no mismatch)."""
    below = names_by_directory(index)
    device = tree.root.status().st_dev
    for directory in index.directories:
        yield ENTRY_COST
        here = _directory(tree, directory)
        status = here.status()
        if status.st_dev != device:
            raise Mismatch(f"{directory.path}: another file system is mounted here")
        expected = {split(entry.path)[1] for entry in directory.entries}.union(below[directory.path])
        extra = set(here.names()) - expected
        if extra:
            raise Mismatch(f"{directory.path}: {min(extra)!r} is not in the index")
        if directory.path != "/":
            visit(here, status, DIR_MODE)
        for entry in directory.entries:
            match entry:
                case File():
                    yield from _check_file(here, entry, index.kind, device, visit)
                case Symlink():
                    _check_link(here, entry)
                    yield ENTRY_COST


def _directory(tree: Tree, directory: Directory) -> SafeDir:
    try:
        return tree.directory(directory.path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise Mismatch(f"{directory.path}: is not a directory") from None
        raise


def _check_file(here: SafeDir, wanted: File, kind: HashKind, device: int, visit: Visit) -> Steps[None]:
    try:
        opened = here.open_read(split(wanted.path)[1])
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise Mismatch(f"{wanted.path}: is not a regular file") from None
        raise
    with opened:
        status = opened.stat()
        if status.st_dev != device:
            raise Mismatch(f"{wanted.path}: another file system is mounted here")
        if status.st_size != wanted.size:
            raise Mismatch(f"{wanted.path}: has {status.st_size} bytes, not {wanted.size}")
        good = yield from good_blocks(opened, wanted, kind)
        if len(good) != wanted.block_count:
            bad = next(number for number in range(wanted.block_count) if number >= len(good) or good[number] != number)
            raise Mismatch(f"{wanted.path}: block {bad} is missing or wrong")
        if not wanted.size:
            yield ENTRY_COST
        visit(opened, status, file_mode(wanted))


def _check_link(here: SafeDir, wanted: Symlink) -> None:
    name = split(wanted.path)[1]
    found = here.stat(name)
    if found is None or not stat.S_ISLNK(found.st_mode) or here.readlink(name) != wanted.target:
        raise Mismatch(f"{wanted.path}: is not a symlink to {wanted.target[:80]!r}")


def complete(tree: Tree, index: Index) -> Steps[None]:
    """Create what needs no data and is not there: directories, empty files, symlinks. What stands is left for :func:`check`."""
    for directory in index.directories:
        yield ENTRY_COST
        try:
            here = tree.directory(directory.path, create=True)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise Mismatch(f"{directory.path}: is not a directory") from None
            raise
        for entry in directory.entries:
            name = split(entry.path)[1]
            if isinstance(entry, File) and entry.size:
                continue
            yield ENTRY_COST
            if here.stat(name) is not None:
                continue
            if isinstance(entry, Symlink):
                here.symlink(entry.target, name)
            else:
                here.create(name).close()


def settle(found: OpenFile | SafeDir, status: os.stat_result, mode: int) -> None:
    """Give what is ours its mode and, if it is a file, its times. A file with other names keeps its mode: Mismatch if that is wrong."""
    if stat.S_IMODE(status.st_mode) != mode:
        if isinstance(found, OpenFile) and status.st_nlink > 1:
            raise Mismatch(f"{found.where}: has mode {stat.S_IMODE(status.st_mode):04o} and other names that share it")
        found.chmod(mode)
    if isinstance(found, OpenFile) and (status.st_mtime_ns, status.st_atime_ns) != (STAMP_NS, STAMP_NS):
        found.stamp()


def barrier(tree: Tree, index: Index, fsync: Fsync) -> Steps[None]:
    """Make the whole tree durable, as ``fsync`` says. Raises OSError, after which nobody knows what is: never try again (threats A39)."""
    if fsync is Fsync.NONE:
        return
    if fsync is Fsync.COMMIT and len(index.files) + len(index.directories) > SYNC_ALL_ABOVE:
        yield ENTRY_COST
        tree.root.syncfs()
        return
    for directory in reversed(index.directories):
        for entry in directory.entries:
            if isinstance(entry, File):
                yield ENTRY_COST
                with tree.directory(directory.path).open_read(split(entry.path)[1]) as opened:
                    opened.fsync()
        yield ENTRY_COST
        tree.directory(directory.path).fsync()
