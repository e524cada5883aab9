"""An open regular file, reached through ``safedir``: what is done goes to its descriptor, whatever stands at its name by then.

Every OSError says which operation failed (``strerror``) and where, relative to the directory that was opened first (``filename``).

Budgets of the whole process: directories and files kept open between uses, and trees put together at a time (finding K8.3).

Each open tree may keep a few handles whatever else is open (``tree``); what it keeps beyond that comes from one budget. With an empty
budget it opens again what it closed, which is slower and always works.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from threading import Lock
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from twisted.logger import Logger

from ciruela.disk import syscalls

OTHERS = 96
"""Descriptors that are left to sockets, logs, and what threads open for a moment."""

MOST_KEPT = 4096
LEAST_KEPT = 8

EACH = 6
"""Descriptors that one tree which is being put together holds at least, and a commit beside it."""

LEAST_TREES = 4


class Handles:
    """A number of handles that may be kept open. Used from several threads."""

    def __init__(self, most: int) -> None:
        self._lock = Lock()
        self._most = most
        self._taken = 0

    def resize(self, most: int) -> None:
        """So many may be kept from now on; what is kept already stays."""
        with self._lock:
            self._most = most

    def take(self) -> bool:
        """Take one. False, and nothing is taken, when there is none."""
        with self._lock:
            if self._taken >= self._most:
                return False
            self._taken += 1
            return True

    def give_back(self, count: int = 1) -> None:
        """These are closed."""
        with self._lock:
            self._taken -= count

    @property
    def taken(self) -> int:
        """Number of handles that are kept open now."""
        return self._taken


KEPT = Handles(MOST_KEPT)
"""The budget of this process."""


def kept_of(limit: int) -> int:
    """Computes how many handles a process that may have ``limit`` descriptors keeps open."""
    return max(LEAST_KEPT, min(MOST_KEPT, (limit - OTHERS) // 2))


def trees_of(limit: int) -> int:
    """Computes how many trees a process that may have ``limit`` descriptors puts together at a time."""
    return max(LEAST_TREES, (limit - OTHERS) // 2 // EACH)


_log = Logger()

STAMP_NS = 1_000_000_000
"""atime and mtime of files of an image: one second after the epoch (protocol section 5.11)."""

TICK_NS = 20_000_000
"""Age of a ctime from which on a later change cannot have the same one: twice the longest tick of the kernel's clock (HZ=100)."""

PAUSES_S = (0.05, 0.2, 0.5, 1.0)
"""Pauses of a thread between its tries to get a descriptor when none is left: others are closed all the time."""

_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})

P = ParamSpec("P")
T = TypeVar("T")


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call that opens something; only in threads. Raises OSError, for want of descriptors only after :data:`PAUSES_S`."""
    for pause_s in PAUSES_S:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            if error.errno not in _NONE_LEFT:  # guard: K8.3 A41, -> True
                raise
        time.sleep(pause_s)
    return call(*args, **kwargs)


def fault(error: OSError, operation: str, where: str) -> OSError:
    """``error`` with the operation and the place in it; the subclass (FileNotFoundError...) follows from the number."""
    return OSError(error.errno, f"{operation}: {os.strerror(error.errno or 0)}", where)


def let_go(fd: int, where: str) -> None:
    """Linux lets go of the descriptor also when it tells an error; what has to be durable was synced before, so that costs nothing."""
    try:
        os.close(fd)
    except OSError as error:
        _log.warn("closing {where}: {error}", where=where or ".", error=error)


class Opened:
    """A descriptor, held until it is closed. ``where`` is for messages, ``durable``: syncing does something."""

    __slots__ = ("durable", "fd", "where")

    def __init__(self, fd: int, where: str, durable: bool = True) -> None:
        self.fd = fd
        self.where = where
        self.durable = durable

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the descriptor; further calls do nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            let_go(fd, self.where)


class OpenFile(Opened):
    """An open regular file; positions are given with each call. It is as durable as the directory it is in."""

    __slots__ = ("_first",)

    def __init__(self, fd: int, where: str, durable: bool = True) -> None:
        super().__init__(fd, where, durable)
        self._first: os.stat_result | None = None

    @property
    def first(self) -> os.stat_result:
        """Status when it was opened, or when this was asked for first; device and inode never change."""
        self._first = self._first or self.stat()
        return self._first

    def stat(self) -> os.stat_result:
        """Gives the status of the open file, whatever stands at its name now. Raises OSError."""
        try:
            return os.fstat(self.fd)
        except OSError as error:
            raise fault(error, "stat", self.where) from None

    def read_at(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end of the file."""
        try:
            data = os.pread(self.fd, size, offset)
            while 0 < len(data) < size:
                more = os.pread(self.fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise fault(error, "read", self.where) from None
        return data

    def uncache(self, size: int, offset: int) -> None:
        """Have the next read of these bytes come from the disk, as far as no program has mapped them and nothing waits to be written."""
        try:
            os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise fault(error, "advise", self.where) from None

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data``."""
        try:
            done = os.pwrite(self.fd, data, offset)
            while done < len(data):  # guard: I1
                done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        except OSError as error:
            raise fault(error, "write", self.where) from None

    def write_run(self, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """Write all of ``parts``, one behind the other."""
        if len(parts) == 1:
            self.write_at(parts[0], offset)
            return
        try:
            done = os.pwritev(self.fd, parts, offset)
        except OSError as error:
            raise fault(error, "write", self.where) from None
        if done < sum(map(len, parts)):
            self.write_at(b"".join(parts)[done:], offset + done)

    def resize(self, size: int) -> None:
        """Give the file this size; what is new of it takes no space and reads as zeros."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise fault(error, "truncate", self.where) from None

    def clone_from(self, source: OpenFile, begin: int, offset: int, size: int) -> None:
        """Share ``size`` bytes at ``begin`` of ``source``, from ``offset`` on; takes no space. Raises OSError, see ``syscalls``."""
        try:
            syscalls.clone_range(source.fd, begin, size, self.fd, offset)
        except OSError as error:
            raise fault(error, "clone", self.where) from None

    def chmod(self, mode: int) -> None:
        """Set the permission bits, whatever the umask."""
        try:
            os.fchmod(self.fd, mode)
        except OSError as error:
            raise fault(error, "chmod", self.where) from None

    def chgrp(self, gid: int) -> None:
        """Give the file to a group. The kernel takes special permission bits away with it, so it comes before :meth:`chmod`."""
        try:
            os.fchown(self.fd, -1, gid)
        except OSError as error:
            raise fault(error, "chgrp", self.where) from None

    def stamp(self) -> None:
        """Set atime and mtime to :data:`STAMP_NS`."""
        try:
            os.utime(self.fd, ns=(STAMP_NS, STAMP_NS))
        except OSError as error:
            raise fault(error, "utime", self.where) from None

    def touch(self) -> None:
        """Set atime and mtime to now."""
        try:
            os.utime(self.fd)
        except OSError as error:
            raise fault(error, "utime", self.where) from None

    def fsync(self) -> None:
        """Make the content durable. After a failure it is unknown what is; never retry (threats A39)."""
        if not self.durable:
            return
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise fault(error, "fsync", self.where) from None
