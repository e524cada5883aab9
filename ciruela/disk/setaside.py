"""What stood at the name of an image without a record of ours: it is moved to a hidden name beside it, and never deleted.

``.ciruela-aside~NAME~INODE`` says what it was. Nothing is recorded of it elsewhere, so it is found whatever else is lost, and earlier
versions, whose reserved names begin with ``.ciruela~``, leave it alone as well.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from twisted.logger import Logger

from ciruela.disk import states
from ciruela.disk.layout import NEW_STATE, STATE, Place
from ciruela.disk.safedir import SafeDir
from ciruela.seams import SetAside

PREFIX = ".ciruela-aside~"

_MOST_NAME_BYTES = 255 - len(PREFIX) - 22
"""Room for the name of an image: an inode has up to 20 digits."""

_log = Logger()


def name_for(place: Place, inode: int) -> str:
    """The name under which a tree that stands at ``place`` is set aside. A very long name is cut off."""
    kept = place.name.encode("utf-8", "surrogateescape")[:_MOST_NAME_BYTES].decode("utf-8", "ignore")
    return f"{PREFIX}{kept}~{inode}"


def was_ours(directory: SafeDir, place: Place) -> bool:
    """Whether a damaged record says that something of ours stood at ``place``. Raises OSError."""
    return any(directory.stat(states.backup_name(place.record + suffix)) is not None for suffix in (STATE, NEW_STATE))


def take(parent: SafeDir, place: Place, names: tuple[str, ...]) -> None:
    """The new image is shown: give the tree that it changed places with, at one of these names, its own. Durable. Raises OSError."""
    for name in names:
        found = parent.stat(name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            continue
        aside = name_for(place, found.st_ino)
        parent.rename_new(name, aside)
        _log.error(
            "{place}: something stood there of which nothing is recorded; it is kept as {aside}: look through it, then delete it",
            place=str(place),
            aside=parent.within(aside),
        )
    parent.fsync()


def found(parent: SafeDir, sample: Place, names: Iterable[str]) -> list[SetAside]:
    """What of ``names`` in ``parent``, the directory of the images of ``sample``, was set aside. Raises OSError."""
    seen = []
    for name in names:
        if not name.startswith(PREFIX):
            continue
        status = parent.stat(name)
        kept, _, inode = name.removeprefix(PREFIX).rpartition("~")
        if status is None or not kept or not inode.isdecimal() or (not sample.vpath.entry and kept != sample.name):
            continue
        path = str(sample.vpath if not sample.vpath.entry else f"{sample.vpath.base}/{kept}")
        where = "/".join((sample.base.rstrip("/"), *sample.parents, name))
        seen.append(SetAside(path, where, status.st_ctime_ns // 1_000_000))
    return sorted(seen, key=lambda one: one.where)
