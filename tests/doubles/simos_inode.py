"""Files, directories and symlinks of :class:`tests.doubles.simos.SimOS`: what they are now, and what the disk has of them."""

from __future__ import annotations

import stat
from collections.abc import Callable

PAGE = 4096
"""Bytes that reach the disk together, and the unit of space."""

Pick = Callable[[int], int]
"""Chooses one of so many possibilities by its number; 0 is always "what was done last reached the disk"."""


class Inode:
    """A file, a directory or a symlink, which of them its first ``mode`` tells for ever.

    ``names`` counts its names, ``opens`` its descriptors. ``entries`` and ``durable`` are the names in a directory, now and on the disk;
    ``home`` is the number of the directory above it, ``durable_home`` that and its name on the disk. ``pages`` is what the disk has of the
    pages of a file that were written since the last sync, ``lost`` those of them whose sync failed.
    """

    __slots__ = (
        "accessed_ns",
        "changed_ns",
        "data",
        "durable",
        "durable_home",
        "durable_meta",
        "durable_size",
        "entries",
        "home",
        "is_dir",
        "is_file",
        "is_link",
        "lost",
        "mode",
        "modified_ns",
        "names",
        "number",
        "opens",
        "pages",
        "target",
    )

    def __init__(self, number: int, mode: int, now_ns: int) -> None:
        self.number = number
        self.mode = mode
        self.is_dir, self.is_link, self.is_file = stat.S_ISDIR(mode), stat.S_ISLNK(mode), stat.S_ISREG(mode)
        self.accessed_ns = self.modified_ns = self.changed_ns = now_ns
        self.names = self.opens = 0
        self.home = 0
        self.durable_home: tuple[int, bytes] | None = None
        self.entries: dict[bytes, int] = {}
        self.durable: dict[bytes, int] = {}
        self.target = b""
        self.data = bytearray()
        self.pages: dict[int, bytes] = {}
        self.lost: set[int] = set()
        self.durable_size = 0
        self.durable_meta = self.meta

    @property
    def size(self) -> int:
        return PAGE if self.is_dir else len(self.target) if self.is_link else len(self.data)

    @property
    def space(self) -> int:
        """Pages that it takes; holes count."""
        return 1 if self.is_dir else -(-len(self.data) // PAGE)

    @property
    def meta(self) -> tuple[int, int, int]:
        return self.mode, self.accessed_ns, self.modified_ns

    def clone(self) -> Inode:
        """The same again, with nothing in common."""
        twin = Inode.__new__(Inode)
        for slot in Inode.__slots__:
            setattr(twin, slot, getattr(self, slot))
        twin.entries = self.entries.copy()
        twin.durable = self.durable.copy()
        twin.data = self.data[:]
        twin.pages = self.pages.copy()
        twin.lost = self.lost.copy()
        return twin

    def write(self, data: memoryview, offset: int) -> None:
        """Keep what the disk has of the pages that change, then change them."""
        end = offset + len(data)
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        for page in range(offset // PAGE, -(-end // PAGE)):
            if page not in self.pages:
                self.pages[page] = bytes(self.data[page * PAGE : min((page + 1) * PAGE, self.durable_size)])
            self.lost.discard(page)
        self.data[offset:end] = data

    def synced(self) -> None:
        """All is on the disk but what an earlier sync lost: the kernel takes those pages for clean."""
        self.pages = {page: self.pages[page] for page in self.lost}
        self.durable_size = len(self.data)
        self.durable_meta = self.meta

    def cut(self, pick: Pick) -> None:
        """Become something that the disk may have."""
        if self.durable_meta != self.meta and pick(2):
            self.mode, self.accessed_ns, self.modified_ns = self.durable_meta
        if self.durable_size != len(self.data) and pick(2):
            self.data = self.data[: self.durable_size].ljust(self.durable_size, b"\0")
        for page in sorted(self.pages):
            begin, end = page * PAGE, min((page + 1) * PAGE, len(self.data))
            old = self.pages[page]
            if begin < end and (chosen := pick(3 if old.strip(b"\0") else 2)):
                self.data[begin:end] = (old if chosen == 2 else b"")[: end - begin].ljust(end - begin, b"\0")
        self.settled()

    def settled(self) -> None:
        """What it is now is what the disk has."""
        self.pages.clear()
        self.lost.clear()
        self.durable_size = len(self.data)
        self.durable_meta = self.meta
        self.durable = self.entries.copy()
