"""Deleting trees: piece by piece, never through a symlink, never into another file system."""

from __future__ import annotations

import errno
import stat
from collections.abc import Generator
from hashlib import blake2b

from ciruela.disk.lane import ENTRY_COST
from ciruela.disk.safedir import RESERVED, SafeDir

MAX_DEPTH = 32
"""Directories held open at once; what lies deeper is first moved up. Our own limit, far below the usual 1,024 descriptors."""


def reserved_name(name: str) -> str:
    """The name under which something called ``name`` is put out of sight before it is deleted."""
    return f"{RESERVED}x{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=15).hexdigest()}"


def remove_tree(parent: SafeDir, name: str) -> Generator[int, None, None]:
    """Delete whatever stands at ``name``, in steps that yield their cost; nothing there is fine.

    A name that is not reserved is first renamed to a reserved one, so that nobody sees half of a tree and a start can find the rest.
    Raises OSError; EXDEV when another file system is mounted inside, which is then left alone.
    """
    found = parent.stat(name)
    if found is None:
        return
    if not name.startswith(RESERVED):
        aside = reserved_name(name)
        yield from remove_tree(parent, aside)
        parent.rename(name, aside)
        name = aside
    if not stat.S_ISDIR(found.st_mode):
        parent.unlink(name)
        return
    device = parent.status().st_dev
    open_dirs = [_open_same_device(parent, name, device)]
    left = [(name, open_dirs[0].names())]
    try:
        while left:
            path, names = left[-1]
            here = open_dirs[-1]
            yield ENTRY_COST
            if not names:
                open_dirs.pop().close()
                left.pop()
                (open_dirs[-1] if open_dirs else parent).rmdir(path)
                continue
            entry = names.pop()
            inner = here.stat(entry)
            if inner is None or not stat.S_ISDIR(inner.st_mode):
                here.unlink(entry)
            elif len(open_dirs) < MAX_DEPTH:
                open_dirs.append(_open_same_device(here, entry, device))
                left.append((entry, open_dirs[-1].names()))
            else:
                raised = f"{RESERVED}d{inner.st_ino}"
                here.rename(entry, raised, open_dirs[0])
                left[0][1].append(raised)
    finally:
        for directory in open_dirs:
            directory.close()


def _open_same_device(parent: SafeDir, name: str, device: int) -> SafeDir:
    opened = parent.open_dir(name)
    if opened.status().st_dev != device:
        opened.close()
        raise OSError(errno.EXDEV, "another file system is mounted here, it is not deleted", parent.within(name))
    return opened
