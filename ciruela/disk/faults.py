"""What a failed system call means to the rest of the program."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ciruela.disk.lane import Steps
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.order import Abort

P = ParamSpec("P")
T = TypeVar("T")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The disk, its inodes or a quota are used up."""


class Full(DiskError):
    """No space or inodes are left; it may work later."""


def disk_error(what: object, error: OSError) -> DiskError:
    """``error`` as a DiskError (Full for lack of space) that names ``what`` it concerned, the operation and the relative path."""
    place = f" ({error.filename})" if error.filename else ""
    kind = Full if error.errno in FULL else DiskError
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
        raise DownloadFailed(Abort.NO_SPACE, str(error)) from error


def downloading_steps(what: object, work: Steps[T]) -> Steps[T]:
    """As :func:`checked_steps`, for a download: lack of space is DownloadFailed(NO_SPACE)."""
    try:
        return (yield from checked_steps(what, work))
    except Full as error:
        raise DownloadFailed(Abort.NO_SPACE, str(error)) from error


_warned: set[str] = set()


def warn_once(topic: str, warn: Callable[[], None]) -> None:
    """Call ``warn`` the first time that ``topic`` comes up in this process."""
    if topic not in _warned:
        _warned.add(topic)
        warn()
