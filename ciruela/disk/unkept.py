"""Counts what an image cannot keep and a directory has: setuid bits, hard links between files, extended attributes.

None of it fits into an index (protocol section 1), so it is dropped; whoever relies on it should learn that before a server runs without.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import itemgetter, or_

from ciruela.model.units import count

MOST_LINKED = 200_000
"""Files with several names that are remembered; beyond, further names of new ones are not counted."""

ATTRIBUTES_OF = 1000
"""Extended attributes are looked for in so many files, and in all that are executable: there are the capabilities, and to ask costs."""

_BITS = stat.S_ISUID | stat.S_ISGID
_LABELS = frozenset({"security.selinux", "security.SMACK64", "security.ima", "security.evm"})
"""Attributes that the system itself gives to each file of a host."""

_mode, _links = itemgetter(stat.ST_MODE), itemgetter(stat.ST_NLINK)


class Unkept:
    """What was met so far, in one directory tree. Used by one thread at a time."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}
        self._linked: set[tuple[int, int]] = set()
        self._asked = 0

    def file(self, status: os.stat_result, path: str) -> None:
        """A regular file, at ``path`` inside the image."""
        if status.st_mode & _BITS:
            self._met("setuid or setgid bits", path)
        if status.st_nlink > 1:
            key = status.st_dev, status.st_ino
            if key in self._linked:
                self._met("hard links", path)
            elif len(self._linked) < MOST_LINKED:
                self._linked.add(key)

    def opened(self, fd: int, status: os.stat_result, path: str) -> None:
        """As :meth:`file`, of one that is open. Raises OSError."""
        self.file(status, path)
        if not status.st_mode & stat.S_IXUSR:
            self._asked += 1
            if self._asked > ATTRIBUTES_OF:
                return
        if not _LABELS.issuperset(os.listxattr(fd)):
            self._met("extended attributes", path)

    def files(self, prefix: str, names: Iterable[str], found: Sequence[os.stat_result]) -> None:
        """All files and links of one directory; quick where there is nothing to count."""
        if found and (max(map(_links, found)) > 1 or reduce(or_, map(_mode, found)) & _BITS):
            for name, status in zip(names, found, strict=True):
                if stat.S_ISREG(status.st_mode):
                    self.file(status, prefix + name)

    def _met(self, what: str, path: str) -> None:
        number, first = self._found.get(what, (0, path))
        self._found[what] = number + 1, first

    def told(self) -> tuple[str, ...]:
        """A part of a sentence for each kind: ``hard links (14 files, as /a/b)``."""
        return tuple(f"{what} ({count(number, 'file')}, as {first})" for what, (number, first) in sorted(self._found.items()))
