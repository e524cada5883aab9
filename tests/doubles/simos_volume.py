"""One file system of :class:`tests.doubles.simos.SimOS`: its names and its space, and what of them has reached the disk.

A change of names is an :data:`Operation` in a log until a sync of its directory puts it on the disk. A power cut keeps all that was
synced, and of the rest any part that a file system may keep:

* an operation reached the disk or not, whatever came before or after it; of two for the same name the later one wins. Making, linking and
  unlinking a name is one operation. A rename of a file is two, the new name and the end of the old one, for POSIX does not tie
  them. A rename of a directory and an exchange are one: no file system that was repaired has a directory under two names;
* a page of 4 KiB that was written has its new content, the old one, or zeros; so a longer write is torn at the borders of pages;
* the size, and the mode with the times, are the new or the old ones; so a file whose name is durable may be empty;
* a page whose sync failed is not made durable by a later one, unless it is written again (threats A39).
"""

from __future__ import annotations

import heapq
import stat
from collections.abc import Iterable
from hashlib import blake2b

from tests.doubles.simos_inode import Inode, Pick

LOG_OPERATIONS = 4096
"""Most operations that wait for a sync; of more the older half is put on the disk, as a kernel does sooner or later."""

DEAD_INODES = 16
"""After so many inodes lost their last name, those are looked for that even the disk does not know; their numbers are used again."""

Effect = tuple[int, bytes, int]
"""In the directory with this number this name means the inode with that number; 0 for none."""

Operation = tuple[Effect, ...]
"""Effects that reach the disk together."""


class Volume:
    """A file system. ``path`` is where it is mounted, ``pages_total`` and ``inodes_total`` are what it has room for.

    ``read_only``, ``exchanges`` (False: renameat2 answers EINVAL, as on some network file systems) and ``clones`` (True: parts of files
    can be cloned, as on btrfs and xfs) may be changed at any time.
    """

    def __init__(self, path: str, device: int, pages_total: int, inodes_total: int, now_ns: int) -> None:
        self.path = path
        self.device = device
        self.pages_total = pages_total
        self.inodes_total = inodes_total
        self.read_only = False
        self.exchanges = True
        self.clones = False
        self.inodes: dict[int, Inode] = {}
        self.dirty: set[int] = set()
        self.log: list[Operation] = []
        self.mounts: dict[int, Volume] = {}
        self.above: tuple[Volume, int] | None = None
        self.pages_used = 0
        self.inodes_used = 0
        self._dead = 0
        self._unused: list[int] = []
        self._next = 2
        self.root = self.make(stat.S_IFDIR | 0o755, now_ns)
        self.root.names = 1
        self.root.home = self.root.number

    def clone(self) -> Volume:
        """The same again, not mounted, with nothing open."""
        twin = Volume.__new__(Volume)
        twin.__dict__.update(self.__dict__)
        twin.inodes = {number: inode.clone() for number, inode in self.inodes.items()}
        twin.root = twin.inodes[self.root.number]
        twin.dirty = self.dirty.copy()
        twin.log = self.log.copy()
        twin.mounts = {}
        twin.above = None
        twin._unused = self._unused.copy()
        twin.close_all()
        return twin

    def make(self, mode: int, now_ns: int, target: bytes = b"") -> Inode:
        """A new inode without a name."""
        if self._unused:
            number = heapq.heappop(self._unused)
        else:
            number = self._next
            self._next += 1
        inode = self.inodes[number] = Inode(number, mode, now_ns)
        inode.target = target
        self.inodes_used += 1
        self.pages_used += inode.space
        return inode

    def write(self, inode: Inode, data: memoryview, offset: int, now_ns: int) -> None:
        """Change the content of a file; the space was checked."""
        before = inode.space
        inode.write(data, offset)
        inode.modified_ns = inode.changed_ns = now_ns
        self.pages_used += inode.space - before
        self.dirty.add(inode.number)

    def close_all(self) -> None:
        """Forget all descriptors."""
        for inode in [inode for inode in self.inodes.values() if inode.opens]:
            inode.opens = 0
            self.let_go(inode)

    # -- names -----------------------------------------------------------------------------------------------------------------

    def change(self, *operations: Operation) -> None:
        """Do ``operations`` and log them."""
        for operation in operations:
            touched = []
            for directory, name, new in operation:
                above = self.inodes[directory]
                old = above.entries.pop(name, 0)
                if old:
                    touched.append(self.inodes[old])
                    touched[-1].names -= 1
                if new:
                    inode = self.inodes[new]
                    inode.names += 1
                    inode.home = directory
                    above.entries[name] = new
            self.log.append(operation)
            for inode in touched:
                self.let_go(inode)
        if len(self.log) > LOG_OPERATIONS:
            older, self.log = self.log[: LOG_OPERATIONS // 2], self.log[LOG_OPERATIONS // 2 :]
            self._reach(older)

    def let_go(self, inode: Inode) -> None:
        """Give back the space of ``inode`` if neither a name nor a descriptor is left. What the disk knows of it stays."""
        if inode.names or inode.opens:
            return
        self.inodes_used -= 1
        self.pages_used -= inode.space
        self._dead += 1
        if self._dead >= DEAD_INODES:
            self._collect()

    def _collect(self) -> None:
        """Drop inodes to which nothing leads, on the disk or off it, and what waits for a sync of such directories."""
        inside: dict[int, list[int]] = {}
        for operation in self.log:
            for directory, _, new in operation:
                inside.setdefault(directory, []).append(new)
        seen = {0, self.root.number}
        left = [self.root.number, *(number for number, inode in self.inodes.items() if inode.opens)]
        seen.update(left)
        while left:
            number = left.pop()
            inode = self.inodes[number]
            for below in (*inode.entries.values(), *inode.durable.values(), *inside.get(number, ())):
                if below not in seen:
                    seen.add(below)
                    left.append(below)
        self._drop([number for number in self.inodes if number not in seen])
        kept = (tuple(effect for effect in operation if effect[0] in seen) for operation in self.log)
        self.log = [operation for operation in kept if operation]
        self._dead = 0

    def _drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self.inodes[number]
            self.dirty.discard(number)
            heapq.heappush(self._unused, number)

    # -- what is durable -------------------------------------------------------------------------------------------------------

    def sync(self, inode: Inode) -> None:
        """Put the content, the mode and the times of a file on the disk, or those and the names of a directory."""
        inode.synced()
        if not inode.pages:
            self.dirty.discard(inode.number)
        if inode.is_dir and self.log:
            self._sync_names(inode.number)

    def _sync_names(self, number: int) -> None:
        """What is tied to a name in the directory comes along, and what came before it for the same names."""
        reached: list[Operation] = []
        left: list[Operation] = []
        names: set[tuple[int, bytes]] = set()
        for operation in reversed(self.log):
            if any(effect[0] == number or effect[:2] in names for effect in operation):
                reached.append(operation)
                names.update(effect[:2] for effect in operation)
            else:
                left.append(operation)
        self.log = left[::-1]
        self._reach(reached[::-1])

    def sync_all(self) -> None:
        """As :meth:`sync`, for everything."""
        for number in sorted(self.dirty):
            self.sync(self.inodes[number])
        self._reach(self.log)
        self.log = []

    def sync_failed(self, inode: Inode | None) -> None:
        """What waited to be written of this file (None: of any) is lost, though the kernel shows it for now."""
        for number in self.dirty if inode is None else {inode.number} & self.dirty:
            self.inodes[number].lost.update(self.inodes[number].pages)

    def _reach(self, operations: Iterable[Operation]) -> None:
        """Do ``operations`` to the names on the disk. A directory that gets a name there loses the one it had."""
        inodes = self.inodes
        for operation in operations:
            for _, _, new in operation:
                if new and inodes[new].is_dir:
                    self._leave(inodes[new])
            for directory, name, new in operation:
                names = inodes[directory].durable
                old = names.pop(name, 0)
                if old:
                    inodes[old].durable_home = None
                if new:
                    names[name] = new
                    inodes[new].durable_home = (directory, name)

    def _leave(self, moved: Inode) -> None:
        if moved.durable_home is None:
            return
        directory, name = moved.durable_home
        moved.durable_home = None
        above = self.inodes.get(directory)
        if above is not None and above.durable.get(name) == moved.number:
            del above.durable[name]

    def power_cut(self, pick: Pick) -> None:
        """Become one of the file systems that the next start may find; ``pick`` decides which. Nothing is open then."""
        self._reach([operation for operation in self.log if pick(2) == 0])
        self.log = []
        for inode in self.inodes.values():
            inode.names = inode.opens = 0
        self.root.names = 1
        reached = {self.root.number}
        left = [self.root]
        while left:
            directory = left.pop()
            directory.entries = directory.durable.copy()
            for number in directory.entries.values():
                inode = self.inodes[number]
                inode.names += 1
                inode.home = directory.number
                reached.add(number)
                if inode.is_dir:
                    left.append(inode)
        self._drop([number for number in self.inodes if number not in reached])
        for number in sorted(self.dirty):
            self.inodes[number].cut(pick)
        self.dirty.clear()
        self._dead = 0
        self.inodes_used = len(self.inodes)
        self.pages_used = sum(inode.space for inode in self.inodes.values())

    def settle(self) -> None:
        """Everything is durable, also what a sync lost: a disk as it is long after the last write."""
        self.sync_all()
        for number in self.dirty:
            self.inodes[number].settled()
        self.dirty.clear()

    def digest(self) -> bytes:
        """The same for two file systems that no program can tell apart, but for times."""
        found = blake2b(digest_size=16)
        left = [self.root]
        while left:
            inode = left.pop()
            found.update(b"%d %o %d %d\n" % (inode.number, inode.mode, inode.names, inode.size))
            found.update(inode.target or inode.data)
            for name, number in sorted(inode.entries.items()):
                found.update(b"%s\0%d\n" % (name, number))
                left.append(self.inodes[number])
        return found.digest()
