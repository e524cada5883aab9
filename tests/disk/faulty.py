"""The system calls of ``ciruela.disk``, of which one fails or is the last."""

from __future__ import annotations

import errno
import os
from types import ModuleType
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import openfile, safedir, syscalls

PLACES = (safedir, openfile)

CHANGING = frozenset(
    {"mkdir", "pwrite", "fchmod", "utime", "fsync", "link", "symlink", "unlink", "rmdir", "rename", "renameat2", "syncfs", "open"}
)


class Killed(BaseException):
    """The process ended here."""


class Faults:
    """Counts calls that change something. Call number ``at`` fails.

    With ``code`` None that is where the process is killed: this call and all later ones raise Killed and have no effect. Else only this
    call raises an OSError with that number. ``refused`` names calls that always answer EINVAL, as a file system without them does. Nothing
    is really synced: no test looks at what a power cut leaves, and each would wait for the disk.
    """

    def __init__(self, at: int = 0, code: int | None = None, refused: frozenset[str] = frozenset()) -> None:
        self.at = at
        self.code = code
        self.refused = refused
        self.calls: list[str] = []

    @property
    def reached(self) -> bool:
        return len(self.calls) >= self.at

    def install(self, case: SynchronousTestCase) -> None:
        for place in PLACES:
            case.patch(place, "os", _Watched(os, self))
            case.patch(place, "syscalls", _Watched(syscalls, self))

    @staticmethod
    def remove(case: SynchronousTestCase) -> None:
        for place in PLACES:
            case.patch(place, "os", os)
            case.patch(place, "syscalls", syscalls)

    def called(self, name: str) -> None:
        self.calls.append(name)
        count = len(self.calls)
        if self.at and self.code is None and count >= self.at:
            raise Killed
        if count == self.at and self.code is not None:
            raise OSError(self.code, os.strerror(self.code))
        if name in self.refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class _Watched:
    def __init__(self, real: ModuleType, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name not in CHANGING:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                self._faults.called(name)
            return None if name in ("fsync", "syncfs") else real(*args, **kwargs)

        return call
