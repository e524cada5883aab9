"""One daemon for one db directory (threats A49)."""

from __future__ import annotations

import fcntl
import os

from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
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
