"""Identity of a base: tells whether it is still the directory that it was.

A disk that is not mounted leaves an empty directory at its mount point. Taken for the base, it would look as if every image had been
lost, all would be fetched again onto the wrong disk, and a cleanup would believe what it sees (threats A40, F30). So device and inode of
each base are remembered beside its states. A base that is another directory is believed only if one of the recorded images stands there.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from itertools import islice
from threading import Lock

from twisted.logger import Logger

from ciruela.disk import states
from ciruela.disk.layout import NEW_STATE, RECORDS_MODE, SIGNATURES, STATE, BaseUnavailable, Place, Records
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import is_sealed, sealed
from ciruela.model.errors import FormatError
from ciruela.proto.bounded import loads

NAME = ".base"

MOST_LOOKED_FOR = 100
"""Recorded images that are looked for in a base that changed. Our own limit."""

_log = Logger()

Identity = tuple[int, int]
"""Device and inode."""


def encode(directory: str, identity: Identity) -> bytes:
    """The bytes of the file that remembers which directory ``directory`` was."""
    return sealed({"directory": directory, "identity": list(identity)})


def decode(data: bytes) -> tuple[str, Identity]:
    """The path and the identity in such a file. Raises FormatError."""
    match fields := loads(data, max_items=16, max_depth=2):
        case {"directory": str(directory), "identity": [int(device), int(inode)]} if states.is_identity(device, inode):
            is_sealed(fields, data)
            return directory, (device, inode)
    raise FormatError("not a map of directory and identity")


class Bases:
    """The bases of one daemon by key. Used from several threads."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = Lock()
        self._accepted: dict[str, Identity] = {}
        self._devices: dict[tuple[str, tuple[str, ...]], int] = {}

    def check(self, place: Place, base: SafeDir) -> None:
        """Raise BaseUnavailable if ``base``, opened at the path of ``place``, is not the directory that it was.

        Raises OSError when that cannot be told.
        """
        status = base.status()
        found = (status.st_dev, status.st_ino)
        key = place.vpath.key
        with self._lock:
            if self._accepted.get(key) == found:
                return
            name = f".{key}{NAME}"
            with self._records.root() as root, root.descend((SIGNATURES,), create=True, mode=RECORDS_MODE) as directory:
                known = states.read_record(directory, name, decode)
                if known is not None and known[0] == place.base and known[1] != found:
                    self._compare(place, base, directory, name)
                if known == (place.base, found) or self._remember(directory, name, encode(place.base, found)):
                    self._accepted[key] = found

    def check_inner(self, place: Place, parent: SafeDir) -> None:
        """Raise BaseUnavailable if another file system is mounted over ``parent``, the directory of the images of ``place``, than before.

        Known is what this process saw. As with a base, it is believed if one of the recorded images is there. Raises OSError.
        """
        device = parent.status().st_dev
        at = place.base, place.parents
        with self._lock:
            known = self._devices.setdefault(at, device)
            if known == device:
                return
            if self._has_lost_all(place, parent):
                where = "/".join((place.base.rstrip("/"), *place.parents))
                raise BaseUnavailable(
                    f"{where}: another file system is mounted there than before, and none of the recorded images is there (mount the right "
                    "one; if it is new and empty on purpose, restart the daemon)"
                )
            self._devices[at] = device

    def _has_lost_all(self, place: Place, parent: SafeDir) -> bool:
        """Tells whether images are recorded beside ``place``, and none of those that are looked for stands there."""
        try:
            directory = self._records.states(place.vpath)
        except FileNotFoundError:
            return False
        with directory:
            recorded = list(islice(_states_below(directory, (), 1), MOST_LOOKED_FOR))
        return bool(recorded) and not any(_stands(parent, parts) for parts in recorded)

    @staticmethod
    def _remember(directory: SafeDir, name: str, data: bytes) -> bool:
        """Write it down. A disk that is full must not make the images unreachable: then it is tried again the next time."""
        try:
            states.write_file(directory, name, data)
        except OSError as error:
            _log.warn("{name} cannot be written: {error}", name=directory.within(name), error=error)
            return False
        return True

    def _compare(self, place: Place, base: SafeDir, directory: SafeDir, name: str) -> None:
        looked = 0
        for parts in self._recorded(place, directory):
            if _stands(base, parts):
                _log.warn("{base} is another directory than before, with the images of before: it is taken for the same", base=place.base)
                return
            looked += 1
            if looked >= MOST_LOOKED_FOR:
                break
        if looked:
            raise BaseUnavailable(
                f"{place.base}: is another directory than before, and none of the recorded images is there (is the disk mounted? if it is "
                f"new and empty on purpose, stop the daemon, delete {directory.within(name)} in the db directory, and start it again)"
            )

    def _recorded(self, place: Place, directory: SafeDir) -> Iterator[tuple[str, ...]]:
        """The committed images of a key: their components below the base."""
        if not place.vpath.level:
            if directory.stat(place.record + STATE) is not None:
                yield (place.name,)
            return
        try:
            top = directory.open_dir(place.vpath.key)
        except FileNotFoundError:
            return
        with top:
            yield from _states_below(top, (), place.vpath.level)


def _states_below(directory: SafeDir, above: tuple[str, ...], levels: int) -> Iterator[tuple[str, ...]]:
    for name in sorted(directory.names()):
        if name.startswith("."):
            continue
        if levels == 1:
            if name.endswith(STATE) and not name.endswith(NEW_STATE):
                yield (*above, name.removesuffix(STATE))
        elif (found := directory.stat(name)) is not None and stat.S_ISDIR(found.st_mode):
            with directory.open_dir(name) as below:
                yield from _states_below(below, (*above, name), levels - 1)


def _stands(base: SafeDir, parts: tuple[str, ...]) -> bool:
    try:
        with base.descend(parts):
            return True
    except OSError:
        return False
