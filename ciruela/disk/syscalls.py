"""Linux calls that Python has no words for: renameat2, syncfs, fstatfs and cloning a part of a file.

A failed system call is translated to what it means to the rest of the program.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ciruela.disk.executor import Steps
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.upload import AbortReason

P = ParamSpec("P")
T = TypeVar("T")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The disk, its inodes or a quota are used up."""


class Full(DiskError):
    """No space or inodes are left; it may work later."""


def disk_error(what: object, error: OSError) -> DiskError:
    """``error`` as a DiskError (Full for lack of space) that names ``what`` it concerned, the operation and the relative path."""
    place = f" ({error.filename})" if error.filename else ""
    kind = Full if error.errno in FULL else DiskError  # guard: A38 F28, -> DiskError
    return kind(f"{what}: {error.strerror or error}{place}")


def checked(what: object, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``f``; an OSError becomes a DiskError."""
    try:
        return f(*args, **kwargs)
    except OSError as error:
        raise disk_error(what, error) from error


def checked_steps(what: object, work: Steps[T]) -> Steps[T]:
    """``work``, of which an OSError becomes a DiskError."""
    try:
        return (yield from work)
    except OSError as error:
        raise disk_error(what, error) from error


def downloading(what: object, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As :func:`checked`, for a download: lack of space is DownloadFailed(NO_SPACE)."""
    try:
        return checked(what, f, *args, **kwargs)
    except Full as error:
        raise DownloadFailed(AbortReason.NO_SPACE, str(error)) from error


def downloading_steps(what: object, work: Steps[T]) -> Steps[T]:
    """As :func:`checked_steps`, for a download: lack of space is DownloadFailed(NO_SPACE)."""
    try:
        return (yield from checked_steps(what, work))
    except Full as error:
        raise DownloadFailed(AbortReason.NO_SPACE, str(error)) from error


_warned: set[str] = set()


def warn_once(topic: str, warn: Callable[[], None]) -> None:
    """Call ``warn`` the first time that ``topic`` comes up in this process."""
    if topic not in _warned:
        _warned.add(topic)
        warn()


NOREPLACE = 1
"""RENAME_NOREPLACE of renameat2(2): fail with EEXIST when the new name stands."""

EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2): the two names change places in one step."""

UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
"""Errnos of a kernel (ENOSYS) or a file system (EINVAL, EOPNOTSUPP) that does not know a flag of renameat2."""

CANNOT_CLONE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
"""Errnos of a file system in which files cannot share space. Others (EINVAL, EXDEV) speak of this range or these files alone."""

LOCAL = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x2FC12FC1, 0xF2F52010, 0xCA451A4E, 0x01021994, 0x858458F6, 0x794C7630})
"""Types of file systems whose ctime can be relied on: ext2 to ext4, xfs, btrfs, zfs, f2fs, bcachefs, tmpfs, ramfs, overlay (statfs(2)).

Not those on a network, which may tell times that are some seconds old or those of another clock, and not those without a ctime on the disk.
"""

_FICLONERANGE = 0x4020940D
"""_IOW(0x94, 13, struct file_clone_range) of linux/fs.h."""

_STATFS_BYTES = 512
"""More than ``struct statfs`` has on any machine; its first word is the type."""

_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """Rename with :data:`NOREPLACE` or :data:`EXCHANGE`. Raises OSError, ENOSYS also when the C library lacks the call."""
    try:
        call = _libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if call(old_fd, ctypes.c_char_p(old), new_fd, ctypes.c_char_p(new), ctypes.c_uint(flags)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def syncfs(fd: int) -> None:
    """Make everything durable that was written to the file system of ``fd``. Raises OSError.

    Linux (5.8 and later) reports a write error once to each descriptor that was open when it happened, so ``fd`` has to be older
    than the writes it is to answer for.
    """
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def clone_range(source_fd: int, source_offset: int, size: int, fd: int, offset: int) -> None:
    """Let ``fd`` share ``size`` bytes of ``source_fd``: FICLONERANGE of ioctl_ficlonerange(2).

    Offsets and size are multiples of the file system's block size, but for a range that ends with the source. Raises OSError.
    """
    fcntl.ioctl(fd, _FICLONERANGE, struct.pack("=qQQQ", source_fd, source_offset, size, offset))


def file_system_type(fd: int) -> int:
    """The number of the type of the file system that ``fd`` is on (statfs(2)); 0, which none has, where it cannot be told."""
    room = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, room) != 0:
        return 0
    return ctypes.c_ulong.from_buffer(room).value & 0xFFFFFFFF
