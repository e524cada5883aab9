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
        raise DiskError(f"the db directory {db_dir} cannot be used: {error.strerror} (it must exist and be writable)") from error
    try:
        fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise DiskError(f"another daemon uses the db directory {db_dir}: stop it, or give this one its own --db-dir") from error
    os.set_inheritable(held.fd, False)
    return held
