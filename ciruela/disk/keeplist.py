"""Keep lists: files in which the operator names images that must stay (protocol section 5.13).

Whatever is wrong with such a file could mean that an image in use is not named in it. So it is read whole or not at all: unlike the
reference, which goes on with an empty list when there is no file, a missing or doubtful one is an error (threats A46).
"""

from __future__ import annotations

import errno

from twisted.internet.defer import Deferred, succeed

from ciruela.disk.safedir import SafeDir
from ciruela.interfaces import InThread, KeepList
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError, FormatError
from ciruela.model.vpath import check_component

MAX_BYTES = 4 * 1024 * 1024
"""Largest list that is read: some 40,000 names of usual length. Our own limit."""

EMPTY_MARK = "# empty"
"""The line with which a list says that it names nothing on purpose."""


def parse(data: bytes, num_levels: int) -> frozenset[tuple[str, ...]]:
    """The images in a list, by the components of their paths below the configured directory. Raises FormatError: ``line N: ...``.

    One path per line; space around it and slashes at its ends are dropped, lines that are blank or begin with ``#`` skipped. The last line
    must end, or it may be half of one. A list that names nothing has to say so, by the line :data:`EMPTY_MARK`: it may be one that
    somebody is about to fill.
    """
    if len(data) > MAX_BYTES:  # guard: A46 F57
        raise FormatError(f"it has more than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise FormatError(f"line {number}: there are bytes that are not UTF-8") from None
    if text and not text.endswith("\n"):  # guard: A46 F57
        raise FormatError("its last line does not end, it may be half-written")
    found = set()
    marked = False
    for number, line in enumerate(text.split("\n"), start=1):
        path = line.strip(" \t\r")
        if path != path.strip() or "\ufeff" in path:
            raise FormatError(f"line {number}: there is an invisible character in it, so it would name another image (type the line anew)")
        marked = marked or path == EMPTY_MARK
        if path and not path.startswith("#"):
            found.add(_parts(path, num_levels, number))
    if not found and not marked:  # guard: A46 F57
        raise FormatError(f'it names nothing (if that is right, write the line "{EMPTY_MARK}" into it)')
    return frozenset(found)


def _parts(path: str, num_levels: int, number: int) -> tuple[str, ...]:
    parts = tuple(path.strip("/").split("/"))
    for part in parts:
        try:
            check_component(part)  # guard: A46 F57, -> part.strip()
        except ValueError as error:
            raise FormatError(f"line {number}: {str(error)[:80]}") from None
    if len(parts) != num_levels:  # guard: A46 F57
        raise FormatError(f"line {number}: {path[:80]!r} has {len(parts)} components, num-levels is {num_levels}")
    return parts


def read(path: str, num_levels: int) -> KeepList:
    """The list in the file at the absolute ``path``, which must not be a symlink. Raises DiskError with everything that can be wrong."""
    above, _, name = path.rpartition("/")
    try:
        with SafeDir.at(above or "/") as directory, directory.open_read(name) as file:
            before = file.stat()
            data = file.read_at(MAX_BYTES + 1, 0)
            after = file.stat()
            standing = directory.stat(name)
    except OSError as error:
        hint = " (a symlink is not followed: name the file itself)" if error.errno == errno.ELOOP else ""
        raise DiskError(f"the keep list {path}: {error.strerror or error}{hint}") from error
    stamps = {(one.st_ino, one.st_size, one.st_mtime_ns) for one in (before, after, standing or before)}
    if standing is None or len(stamps) > 1:  # guard: A46 F57
        raise DiskError(f"the keep list {path}: it was changed while it was read")
    if len(data) <= MAX_BYTES and len(data) != before.st_size:
        raise DiskError(f"the keep list {path}: {before.st_size} bytes were expected, {len(data)} could be read")
    try:
        return parse(data, num_levels)
    except FormatError as error:
        raise DiskError(f"the keep list {path}: {error}") from None


class KeepListFiles:
    """Implements ``interfaces.KeepLists``. A read may hang for ever (a network file system): ``in_thread`` must be its own."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread

    def read(self, config: DirConfig) -> Deferred[KeepList]:
        """As ``interfaces.KeepLists.read``; a directory without ``keep-list-file`` needs no list."""
        if config.keep_list_file is None:
            return succeed(frozenset())
        return self._in_thread(read, config.keep_list_file, config.num_levels)
