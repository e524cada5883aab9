"""What symlinks of this host lead to, where the operator named them in ``protect``: the image behind one of them is not cleaned up.

As with keep lists, whatever is wrong with one of them could mean that an image in use is not known to be. So it is all of them or an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred, succeed

from ciruela.disk.safedir import led_to
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.vpath import VPath, leads_to
from ciruela.seams import InThread, KeepList


def targets(paths: Sequence[str], directory: str) -> Mapping[tuple[str, ...], str]:
    """What the symlinks ``paths`` lead to inside ``directory``, by components below it, and which of them; of what lies elsewhere nothing.

    A short one stands for everything below it. Raises DiskError for a path that leads nowhere or cannot be followed.
    """
    found: dict[tuple[str, ...], str] = {}
    try:
        top = led_to(directory)
    except OSError as error:
        raise DiskError(f"{directory}: {error.strerror or error}") from error
    for path in paths:
        try:
            target = led_to(path)
        except OSError as error:
            raise DiskError(f"the protected link {path}: {error.strerror or error} (it must lead to a directory that is there)") from error
        inside = target == top or target.startswith(top.rstrip(os.sep) + os.sep)
        if inside:
            found.setdefault(tuple(part for part in target[len(top) :].split(os.sep) if part), path)
    return found


def protected(paths: Sequence[str], directory: str) -> KeepList:
    """What :func:`targets` finds, without the links."""
    return frozenset(targets(paths, directory))


class ProtectedLinks:
    """Implements ``seams.ProtectedLinks``. Following one may take for ever (a network file system), as reading a keep list may."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread

    def follow(self, config: DirConfig) -> Deferred[KeepList]:
        """As ``seams.ProtectedLinks.follow``."""
        if not config.protect:
            return succeed(frozenset())
        return self._in_thread(protected, config.protect, config.directory)

    def leading(self, config: DirConfig, vpath: VPath) -> Deferred[str | None]:
        """As ``seams.ProtectedLinks.leading``."""

        def which(found: Mapping[tuple[str, ...], str]) -> str | None:
            return next((path for parts, path in found.items() if leads_to(parts, vpath.parts[1:])), None)

        return self._in_thread(targets, config.protect, config.directory).addCallback(which)
