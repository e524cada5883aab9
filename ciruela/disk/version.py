"""``DB/.version``: in which form the db directory is, so that an older program leaves a newer one alone.

A directory without the file is the reference's, or was written before there was one: both are in the form :data:`FORMAT` or are brought
into it as they are used.

One daemon for one db directory (threats A49).
"""

from __future__ import annotations

import fcntl
import os
import re

from ciruela._version import __version__
from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import write_file
from ciruela.model.errors import DiskError

LOCK = ".lock"


def lock(db_dir: str) -> OpenFile:
    """Take the lock of ``db_dir``; it is held until the result is closed or the process ends. Raises DiskError, at once, if it is taken."""
    try:
        with SafeDir.at(db_dir) as directory:
            try:
                held = directory.create(LOCK)
            except FileExistsError:
                held = directory.open_write(LOCK)
    except OSError as error:
        raise DiskError(_unusable(db_dir, error.strerror)) from error
    try:
        fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise DiskError(f"another daemon uses the db directory {db_dir}: stop it, or give this one its own --db-dir") from error
    os.set_inheritable(held.fd, False)
    return held


def is_held(db_dir: str) -> bool:
    """Tell whether a daemon uses ``db_dir``. Nothing is changed. Raises DiskError where :func:`lock` would for another reason."""
    try:
        with SafeDir.at(db_dir) as directory:
            if directory.stat(LOCK) is None:
                return False
            with directory.open_write(LOCK) as held:
                fcntl.flock(held.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise DiskError(_unusable(db_dir, error.strerror)) from error
    return False


def _unusable(db_dir: str, reason: str | None) -> str:
    return f"the db directory {db_dir} cannot be used: {reason} (it must exist and be writable)"


NAME = ".version"
FORMAT = 1
"""To be raised when an older program would misread what this one writes."""

MAX_BYTES = 1024

_LINE = re.compile(r"format ([0-9]{1,9}), written by ciruela ([0-9A-Za-z.+_-]{1,64})\n")


def check(db_dir: str) -> None:
    """Raise DiskError when a newer program wrote ``db_dir``, or nobody can tell. Nothing is changed."""
    try:
        with SafeDir.at(db_dir) as root:
            known = read(root)
    except OSError as error:
        raise DiskError(f"the db directory {db_dir} cannot be used: {error.strerror} (it must exist and be writable)") from error
    if known is not None and known[0] > FORMAT:
        raise DiskError(
            f"the db directory {db_dir} has format {known[0]}, written by ciruela {known[1]}; this is ciruela {__version__}, which knows "
            f"formats up to {FORMAT}: start the newer program, or give this one its own --db-dir (nothing was changed)"
        )


def read(root: SafeDir) -> tuple[int, str] | None:
    """The format and who wrote it; None without the file. Raises OSError, and DiskError when it cannot be understood."""
    try:
        file = root.open_read(NAME)
    except FileNotFoundError:
        return None
    with file:
        data = file.read_at(MAX_BYTES, 0)
    found = _LINE.fullmatch(data.decode("ascii", "replace"))
    if found is None:
        raise DiskError(
            f"{root.within(NAME)} is not understood, so nobody knows which program wrote this db directory "
            "(if it was this one or an older one, remove the file; nothing was changed)"
        )
    return int(found[1]), found[2]


def mark(db_dir: str) -> None:
    """Write the file, durably, if it is not there or is of an older format. Raises OSError and DiskError."""
    with SafeDir.at(db_dir) as root:
        known = read(root)
        if known is None or known[0] < FORMAT:
            write_file(root, NAME, f"format {FORMAT}, written by ciruela {__version__}\n".encode("ascii"))
