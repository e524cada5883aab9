"""Comparing a tree on disk with an index: every block hashed, every name accounted for (threats 6.4, steps 3 and 4)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.openfile import STAMP_NS, OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.tree import Tree, name_start, split
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.config import STANDARD_MODES, Fsync, Modes
from ciruela.model.ids import HASH_BYTES, Block

READ_BLOCKS = 32
"""Blocks read at once while hashing: 1 MiB."""

READ_BYTES = READ_BLOCKS * BLOCK_BYTES

SYNC_ALL_ABOVE = 64
"""With more files and directories than this, one syncfs is cheaper than an fsync for each (performance study, section 2)."""

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR})
"""Errnos of opening a name at which something else stands, or nothing."""

Visit = Callable[[OpenFile | SafeDir, os.stat_result, int], None]
"""Called with what was found good, what it is, and the permission bits that it should have."""


Spare = Callable[[int, SafeDir, str, int], bool]
"""Tells whether a file need not be opened: its number in the index, the directory that it is in, its name there, the device of the tree."""


class Mismatch(Exception):
    """The tree is not what the index says; the message says where."""


def as_it_should(status: os.stat_result, mode: int, gid: int | None) -> bool:
    """Tells whether permission bits and group are these; any group will do where ``gid`` is None."""
    return stat.S_IMODE(status.st_mode) == mode and (gid is None or status.st_gid == gid)


def what_is_wrong(status: os.stat_result, mode: int, gid: int | None) -> str:
    """Describes the mode or group that :func:`as_it_should` refused."""
    if stat.S_IMODE(status.st_mode) != mode:
        return f"has mode {stat.S_IMODE(status.st_mode):04o}, not {mode:04o}"
    return f"belongs to group {status.st_gid}, not {gid}"


def give(found: OpenFile | SafeDir, status: os.stat_result, mode: int, gid: int | None) -> None:
    """Give group and permission bits to what is ours. Raises OSError."""
    if gid is not None and status.st_gid != gid:
        found.chgrp(gid)
        found.chmod(mode)
    elif stat.S_IMODE(status.st_mode) != mode:
        found.chmod(mode)


def good_in(data: bytes, wanted: File, kind: HashKind, first: int) -> list[int]:
    """The numbers, within the file, of the blocks in ``data`` that are as the index says; it begins with block ``first``.

    ``data`` must not go beyond the size of the file: then what is shorter than a block should be is wrong by its hash.
    """
    hashes, hashed = wanted.hashes, kind.hasher
    if len(data) <= BLOCK_BYTES:
        good = data and hashed(data).digest() == hashes[first * HASH_BYTES : (first + 1) * HASH_BYTES]  # guard: I1 A7, without 2
        return [first] if good else []
    view = memoryview(data)
    return [
        number
        for number, begin in enumerate(range(0, len(data), BLOCK_BYTES), first)
        if hashed(view[begin : begin + BLOCK_BYTES]).digest() == hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]  # guard: A50 I1
    ]


def blocks_in(data: bytes, wanted: File, kind: HashKind, first: int, count: int) -> list[Block | None]:
    """The ``count`` blocks from ``first`` on that ``data`` should be, as :func:`good_in`; None for those that it is not."""
    good = good_in(data, wanted, kind, first)
    if count == 1:
        return [data if good else None]
    found: list[Block | None] = [None] * count
    view = memoryview(data)
    for number in good:
        begin = (number - first) * BLOCK_BYTES
        found[number - first] = view[begin : begin + BLOCK_BYTES]
    return found


def good_blocks(opened: OpenFile, wanted: File, kind: HashKind, *, from_disk: bool = False) -> Steps[list[int]]:
    """The numbers, within the file, of the blocks that are as the index says. What lies behind the end is not looked at.

    ``from_disk``: the kernel's memory is no proof, as far as it can be left aside. Others who read the file notice little: each piece is
    back in memory at once.
    """
    good: list[int] = []
    for begin in range(0, wanted.size, READ_BYTES):
        size = min(READ_BYTES, wanted.size - begin)
        if from_disk:
            opened.uncache(size, begin)
        data = opened.read_at(size, begin)
        yield max(len(data), ENTRY_COST if begin == 0 else 1)
        good += good_in(data, wanted, kind, begin // BLOCK_BYTES)
    return good


def names_by_directory(index: Index) -> dict[str, list[str]]:
    """For each directory path the names of the directories in it."""
    found: dict[str, list[str]] = {directory.path: [] for directory in index.directories}
    for directory in index.directories:
        if directory.path != "/":
            above, name = split(directory.path)
            found[above].append(name)
    return found


def check(
    tree: Tree, index: Index, visit: Visit, modes: Modes = STANDARD_MODES, *, hashed: bool = True, spare: Spare | None = None
) -> Steps[None]:
    """Go through ``index`` and compare everything; blocks only if ``hashed``. Raises Mismatch, OSError (a read error is no mismatch).

    Files that ``spare`` speaks for are neither opened nor visited.
    """
    below = names_by_directory(index)
    device = tree.root.status().st_dev
    number = -1
    for directory in index.directories:
        yield ENTRY_COST
        here = _directory(tree, directory)
        status = here.status()
        if status.st_dev != device:  # guard: I1 I3
            raise Mismatch(f"{directory.path}: another file system is mounted here")
        start = name_start(directory.path)
        expected = {entry.path[start:] for entry in directory.entries}.union(below[directory.path])
        extra = set(here.names()) - expected  # guard: I1, extra = set(here.names()) - expected -> extra: set[str] = set()
        if extra:
            raise Mismatch(f"{directory.path}: {min(extra)!r} is not in the index")
        if directory.path != "/":
            visit(here, status, modes.dir_bits)
        for entry in directory.entries:
            if isinstance(entry, File):
                number += 1
                if spare is not None and spare(number, here, entry.path[start:], device):
                    yield ENTRY_COST
                    continue
            match entry:
                case File() if not hashed:
                    yield ENTRY_COST
                    with _opened(here, entry.path[start:], entry, device) as opened:
                        visit(opened, opened.first, modes.of_file(entry.executable))
                case File() if entry.size <= READ_BYTES:
                    yield max(entry.size, ENTRY_COST)
                    _check_small(here, entry.path[start:], entry, index.kind, device, visit, modes)
                case File():
                    yield from _check_file(here, entry.path[start:], entry, index.kind, device, visit, modes)
                case Symlink():
                    _check_link(here, entry.path[start:], entry)
                    yield ENTRY_COST


def _directory(tree: Tree, directory: Directory) -> SafeDir:
    try:
        return tree.directory(directory.path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise Mismatch(f"{directory.path}: is not a directory") from None
        raise


def _check_small(here: SafeDir, name: str, wanted: File, kind: HashKind, device: int, visit: Visit, modes: Modes) -> None:
    """As :func:`_check_file`, for a file that is read at once."""
    with _opened(here, name, wanted, device) as opened:
        _check_good(good_in(opened.read_at(wanted.size, 0), wanted, kind, 0) if wanted.size else [], wanted)
        visit(opened, opened.first, modes.of_file(wanted.executable))


def _check_file(here: SafeDir, name: str, wanted: File, kind: HashKind, device: int, visit: Visit, modes: Modes) -> Steps[None]:
    with _opened(here, name, wanted, device) as opened:
        _check_good((yield from good_blocks(opened, wanted, kind)), wanted)
        visit(opened, opened.first, modes.of_file(wanted.executable))


def _opened(here: SafeDir, name: str, wanted: File, device: int) -> OpenFile:
    """A regular file of this size on this file system."""
    try:
        opened = here.open_read(name)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise Mismatch(f"{wanted.path}: is not a regular file") from None
        raise
    status = opened.first
    if status.st_dev == device and status.st_size == wanted.size:  # guard: I1, without 2
        return opened
    opened.close()
    if status.st_dev != device:
        raise Mismatch(f"{wanted.path}: another file system is mounted here")
    raise Mismatch(f"{wanted.path}: has {status.st_size} bytes, not {wanted.size}")


def _check_good(good: list[int], wanted: File) -> None:
    if len(good) != wanted.block_count:  # guard: I1
        bad = next(number for number in range(wanted.block_count) if number >= len(good) or good[number] != number)
        raise Mismatch(f"{wanted.path}: block {bad} is missing or wrong")


def _check_link(here: SafeDir, name: str, wanted: Symlink) -> None:
    found = here.stat(name)
    if found is None or not stat.S_ISLNK(found.st_mode) or here.readlink(name) != wanted.target:  # guard: I1, without 3
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
        start = name_start(directory.path)
        for entry in directory.entries:
            if isinstance(entry, File) and entry.size:
                continue
            name = entry.path[start:]
            yield ENTRY_COST
            if here.stat(name) is not None:
                continue
            if isinstance(entry, Symlink):
                here.symlink(entry.target, name)
            else:
                here.create(name).close()


def settling(gid: int | None) -> Visit:
    """A visit that gives what is ours its mode, its group ``gid`` and, if it is a file, its times.

    A file with other names keeps its mode and group: Mismatch if they are wrong. It keeps its access time as well, which every reader of
    those other names changes.
    """

    def settle(found: OpenFile | SafeDir, status: os.stat_result, mode: int) -> None:
        if not as_it_should(status, mode, gid):
            if isinstance(found, OpenFile) and status.st_nlink > 1:  # guard: A9 A50
                raise Mismatch(f"{found.where}: {what_is_wrong(status, mode, gid)}, and has other names that share it")
            give(found, status, mode, gid)
        if isinstance(found, OpenFile) and (status.st_mtime_ns != STAMP_NS or (status.st_atime_ns != STAMP_NS and status.st_nlink == 1)):
            found.stamp()

    return settle


def barrier(tree: Tree, index: Index, fsync: Fsync) -> Steps[None]:
    """Make the whole tree durable, as ``fsync`` says. Raises OSError, after which nobody knows what is: never try again (threats A39)."""
    if fsync is Fsync.NONE:
        return
    if fsync is Fsync.COMMIT and len(index.files) + len(index.directories) > SYNC_ALL_ABOVE:
        yield ENTRY_COST
        tree.root.syncfs()  # guard: A44 F38 I2
        return
    for directory in reversed(index.directories):
        for entry in directory.entries:
            if isinstance(entry, File):
                yield ENTRY_COST
                with tree.directory(directory.path).open_read(split(entry.path)[1]) as opened:  # guard: A44 F38 I2
                    opened.fsync()
        yield ENTRY_COST
        tree.directory(directory.path).fsync()  # guard: A44 F38 I2
