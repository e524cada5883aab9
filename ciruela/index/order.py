"""The one order of directories in an index, and how much an index may list; the same for reading and for writing (protocol section 1.2)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from ciruela.index.names import MAX_DEPTH, MAX_PATH_BYTES, components, size_in_utf8
from ciruela.index.tree import File, Symlink

MAX_INDEX_BYTES = 256 * 1024 * 1024
"""Largest index: two and a half million files of one block (threats A6)."""

MAX_LISTING_BYTES = 2 * 1024 * 1024 * 1024
"""Most memory that the values of one index may ask for beside their hashes, see :data:`ENTRY_BYTES`.

A short index can name very many empty files below one very long path; its size alone does not bound what it expands to.
"""

ENTRY_BYTES = 200
"""What one file, link or directory is counted with, beside its path: the objects that hold it."""

Entries = Sequence[File | Symlink]

_path = attrgetter("path")


class Preorder:
    """Follows the directories of an index and refuses any order but the canonical one.

    That is: the root first; below each directory its sub-directories by the bytes of their names, each followed by its own. So every
    directory is unique and comes after its parent. A sub-directory may not have the name of a file or link beside it.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._above: list[Entries] = []
        self._left = MAX_LISTING_BYTES
        self.prefix = ""
        """What stands before the names in the current directory: ``/`` or ``/a/b/``."""
        self.room = 0
        """Bytes that a name may have in the current directory; 0 when nothing may be in it."""
        self.most = 0
        """Most entries that the current directory may have."""

    def enter(self, path: str, entries: Entries) -> None:
        """Go on to the directory ``path``, whose ``entries`` may be filled later, in order. Raises ValueError out of order."""
        parts = components(path)
        depth = len(parts)
        if self._above:
            self._leave()
            if not parts:
                raise ValueError("the directory / is listed twice")
            if parts[:-1] != self._parts[: depth - 1]:
                raise ValueError(f"the directory {path[:80]!r} does not follow its parent")
            if depth <= len(self._parts) and parts[-1] <= self._parts[depth - 1]:
                raise ValueError(f"the directory {path[:80]!r} is listed twice or out of order")
            del self._above[depth:]
            beside = self._above[-1]
            at = bisect_left(beside, path, key=_path)
            if at < len(beside) and beside[at].path == path:
                raise ValueError(f"{path[:80]!r} is both a directory and an entry of its parent")
        elif parts:
            raise ValueError("the first directory is not /")
        self._parts = parts
        self._above.append(entries)
        self.prefix = path if depth == 0 else path + "/"
        size = size_in_utf8(self.prefix)
        self.room = MAX_PATH_BYTES - size if depth < MAX_DEPTH else 0
        self._spend(ENTRY_BYTES + size)
        self.most = self._left // (ENTRY_BYTES + size)

    def listed(self, count: int) -> None:
        """The current directory has ``count`` entries that were not given to :meth:`enter`. Raises ValueError when they are too many."""
        self._spend(count * (ENTRY_BYTES + len(self.prefix)))

    def _leave(self) -> None:
        self._spend(len(self._above[-1]) * (ENTRY_BYTES + len(self.prefix)))

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise ValueError("too many files, links and directories in one image; split it")
