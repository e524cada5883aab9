"""Bulk syscalls: the work of ``safedir`` for very many small files, by the same rules, with as few calls and objects as possible.

Names are those that the system just listed, single components below an open directory, and nothing is followed. Faults are OSErrors, as in
``safedir``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""O_NONBLOCK: opening a fifo that somebody planted must not wait for its other end."""


def list_names(directory: SafeDir) -> list[str]:
    """All names in ``directory``, unordered, as this system's Python spells them; once for each open directory."""
    try:
        return os.listdir(directory.fd)
    except OSError as error:
        raise OSError(error.errno, f"list: {os.strerror(error.errno or 0)}", directory.where or ".") from None


def stats(directory: SafeDir, listed: Iterable[str]) -> Iterator[os.stat_result]:
    """Yields the status of each name ``listed`` in ``directory``, one by one, which is faster. Follows no symlink. Raises OSError."""
    return map(partial(os.stat, dir_fd=directory.fd, follow_symlinks=False), listed)


def read_small(
    directory: SafeDir, entry: os.DirEntry[str], most: int, look: Callable[[int, os.stat_result], None]
) -> tuple[bytes | OpenFile, os.stat_result, os.stat_result]:
    """The content of a regular file, and its status before and after it was read; one of more than ``most`` bytes is opened only.

    The content is cut off when the file got shorter meanwhile. ``look`` gets the open descriptor and the status before.
    """
    keep = False
    try:
        fd = os.open(entry.name, _FILE, dir_fd=directory.fd)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            look(fd, before)
            size = before.st_size
            if size > most:
                keep = True
                return OpenFile(fd, directory.within(entry.name), directory.durable), before, before
            data = os.pread(fd, size, 0) if size else b""
            while 0 < len(data) < size and (more := os.pread(fd, size - len(data), len(data))):
                data += more
            return data, before, os.fstat(fd)
        finally:
            if not keep:
                os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"open and read: {os.strerror(error.errno or 0)}", directory.within(entry.name)) from None
