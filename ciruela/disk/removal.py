"""Deleting trees: piece by piece, never through a symlink, never into another file system.

Debris that could not be deleted: remembered, and tried again from time to time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from threading import Lock

from twisted.logger import Logger

from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.hashrecord import HashRecord
from ciruela.disk.layout import BaseUnavailable, Place
from ciruela.disk.openfile import KEPT
from ciruela.disk.safedir import RESERVED, SafeDir

DOOMED = f"{RESERVED}x"
"""Prefix of the names of trees that are being deleted: whoever finds one may go on with it."""

MAX_DEPTH = 32
"""Directories held open at once; what lies deeper is first moved up. Our own limit, far below the usual 1,024 descriptors."""

LEAST_DEPTH = 4
"""So many of them in any case, more as far as the budget of the process goes (``openfile.Handles``)."""


def remove_tree(parent: SafeDir, name: str, known: HashRecord | None = None) -> Steps[None]:
    """Delete whatever stands at ``name``, in steps; nothing there is fine. ``known`` follows what becomes of files with other names.

    A directory is first renamed to a reserved name: nobody sees half of it, its name is free at once, and a start finds the rest. Raises
    OSError; EXDEV when another file system is mounted inside, which is then left alone.
    """
    found = parent.stat(name)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        parent.unlink(name)
        return
    if not name.startswith(DOOMED):  # guard: I1 A43
        name = yield from rename_away(parent, name, found.st_ino)
    device = parent.status().st_dev
    open_dirs = [_open_same_device(parent, name, device)]
    try:
        left = [(name, open_dirs[0].names())]
        while left:
            path, names = left[-1]
            yield ENTRY_COST
            if names:
                _remove_entry(open_dirs, left, names.pop(), device, known)
                continue
            open_dirs.pop().close()
            if len(open_dirs) >= LEAST_DEPTH:
                KEPT.give_back()
            left.pop()
            try:
                (open_dirs[-1] if open_dirs else parent).rmdir(path)
            except FileNotFoundError:
                continue
    finally:
        KEPT.give_back(max(0, len(open_dirs) - LEAST_DEPTH))
        for directory in open_dirs:
            directory.close()


def rename_away(parent: SafeDir, name: str, inode: int) -> Steps[str]:
    """Give the directory ``name`` a reserved name, at which a start finds it and goes on; returns that. Raises OSError."""
    doomed = f"{DOOMED}{inode}"
    yield from remove_tree(parent, doomed)
    parent.rename(name, doomed)
    return doomed


def _remove_entry(open_dirs: list[SafeDir], left: list[tuple[str, list[str]]], entry: str, device: int, known: HashRecord | None) -> None:
    """Unlink a name of the innermost directory, or go into it. Another one may be deleting the same tree: what is gone is done."""
    here = open_dirs[-1]
    inner = here.stat(entry)
    if inner is None:
        return
    try:
        if not stat.S_ISDIR(inner.st_mode):
            _unlink(here, entry, inner, known)
        elif len(open_dirs) < LEAST_DEPTH or (len(open_dirs) < MAX_DEPTH and KEPT.take()):  # guard: A41 I6, -> True
            _enter(open_dirs, left, entry, device)
        else:
            raised = f"{DOOMED}{inner.st_ino}"
            here.rename(entry, raised, open_dirs[0])
            left[0][1].append(raised)
    except FileNotFoundError:
        return


def _unlink(here: SafeDir, name: str, found: os.stat_result, known: HashRecord | None) -> None:
    """Remove a name that is not a directory. What is recorded of a file with other names stays true."""
    if known is None or not known.knows(here, found):
        here.unlink(name)
    elif found.st_nlink > 1:
        known.moved(*here.unlink_one_of_several(name))
    else:
        here.unlink(name)
        known.forget(found)


def _enter(open_dirs: list[SafeDir], left: list[tuple[str, list[str]]], entry: str, device: int) -> None:
    """Go into the directory ``entry``. The handle for it, if it needs one of the budget, is taken."""
    try:
        below = _open_same_device(open_dirs[-1], entry, device)
    except BaseException:
        if len(open_dirs) >= LEAST_DEPTH:
            KEPT.give_back()
        raise
    open_dirs.append(below)
    left.append((entry, below.names()))


def _open_same_device(parent: SafeDir, name: str, device: int) -> SafeDir:
    opened = parent.open_dir(name)
    try:
        if opened.status().st_dev != device:  # guard: I9 I3
            raise OSError(errno.EXDEV, "another file system is mounted here, it is not deleted", parent.within(name))
    except BaseException:
        opened.close()
        raise
    return opened


_log = Logger()


class DelayedDeletions:
    """Names in directories of images, by where these are. Used from several threads."""

    def __init__(self, in_use: Callable[[Place, str], bool], known: HashRecord) -> None:
        """``in_use`` says whether a download works at a name now; ``known`` as in :func:`remove_tree`."""
        self._in_use = in_use
        self._known = known
        self._lock = Lock()
        self._left: dict[tuple[str, tuple[str, ...]], tuple[Place, set[str]]] = {}

    def __len__(self) -> int:
        with self._lock:
            return sum(len(names) for _, names in self._left.values())

    def left(self, place: Place, name: str) -> None:
        """The tree ``name`` beside the image of ``place`` could not be deleted."""
        with self._lock:
            self._left.setdefault((place.base, place.parents), (place, set()))[1].add(name)

    def again(self) -> Steps[None]:
        """Try again to delete all of it; what is left of a tree may have another reserved name by now."""
        with self._lock:
            left, self._left = self._left, {}
        for place, names in left.values():
            try:
                parent = place.open_parent()
            except FileNotFoundError:
                continue
            except (BaseUnavailable, OSError):
                for name in names:
                    self.left(place, name)
                continue
            with parent:
                try:
                    yield from self._remove(parent, place, names)
                except OSError as error:
                    _log.debug("debris beside {place} cannot be looked at: {error}", place=str(place), error=error)
                    for name in names:
                        self.left(place, name)

    def _remove(self, parent: SafeDir, place: Place, names: set[str]) -> Steps[None]:
        for name in parent.names():
            if name not in names and not name.startswith(DOOMED):
                continue
            yield ENTRY_COST
            if self._in_use(place, name):  # guard: I11
                continue
            try:
                yield from remove_tree(parent, name, self._known)
            except OSError as error:
                _log.debug("debris {name} can still not be removed: {error}", name=parent.within(name), error=error)
                self.left(place, name)
            else:
                _log.info("debris {name} was removed", name=parent.within(name))
