"""The disks of :class:`tests.doubles.simos.SimOS` as a test sees them: mounting, looking, breaking, killing, cutting the power."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from tests.doubles.simos_inode import PAGE, Inode, Pick
from tests.doubles.simos_volume import Volume

Self = TypeVar("Self", bound="Disks")

CHANGING = frozenset(
    {
        "clone_range",
        "create",
        "fchmod",
        "fsync",
        "link",
        "mkdir",
        "pwrite",
        "rename",
        "renameat2",
        "rmdir",
        "symlink",
        "syncfs",
        "unlink",
        "utime",
    }
)
"""Calls that change something, or make it durable."""

SYNCING = frozenset({"fsync", "syncfs"})

FIRST_DESCRIPTOR = 1 << 20
"""Descriptors begin where no real one is: a call that is not caught fails instead of hitting a file of the machine."""

MAX_NAME_BYTES = 255
MAX_SYMLINKS = 40

TICK_NS = 1_000_000
"""How much later each change is than the one before."""

START_NS = 1_700_000_000_000_000_000


class Open:
    """What a descriptor refers to. ``offset`` is where the next ``read`` begins."""

    __slots__ = ("flags", "inode", "offset", "volume")

    def __init__(self, volume: Volume, inode: Inode, flags: int) -> None:
        self.volume = volume
        self.inode = inode
        self.flags = flags
        self.offset = 0


Spot = tuple[Volume, Inode, bytes, Volume, Inode | None]
"""Where a path leads: file system, directory and name of its last component, then file system and inode of what is there, or None."""


def fail(code: int) -> OSError:
    """The error that Linux gives with this number."""
    return OSError(code, os.strerror(code))


def nothing_fails(_call: str, _mount: str) -> None:
    """The usual ``before``."""


class Disks:
    """File systems in one tree, and the descriptors of those who use them.

    ``before(call, mount)`` is called at the start of each call with its name (``create`` for an open that creates) and the mount point of
    the file system that it concerns; what it raises is what the call does, which then has no effect. ``max_descriptors`` is a limit for
    all descriptors together; ``calls`` counts all calls.
    """

    def __init__(self, bytes_total: int = 1 << 40, inodes_total: int = 1 << 30) -> None:
        self.before: Callable[[str, str], None] = nothing_fails
        self.max_descriptors = 1 << 30
        self.calls = 0
        self._now_ns = START_NS
        self._open: dict[int, Open] = {}
        self._next = FIRST_DESCRIPTOR
        self._locks: dict[tuple[int, int], Open] = {}
        self._top = Volume("/", 1, bytes_total // PAGE, inodes_total, self._now_ns)
        self._volumes = {"/": self._top}

    def clone(self: Self) -> Self:
        """The same disks again, with nothing open, no faults, and a life of their own."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.before = nothing_fails
        twin._open = {}
        twin._locks = {}
        twin._volumes = {path: volume.clone() for path, volume in self._volumes.items()}
        twin._top = twin._volumes["/"]
        for path, volume in self._volumes.items():
            if volume.above is not None:
                above, number = volume.above
                twin._attach(twin._volumes[path], twin._volumes[above.path], number)
        return twin

    # -- mounting, ending, breaking --------------------------------------------------------------------------------------------

    def mount(self, path: str, bytes_total: int = 1 << 40, inodes_total: int = 1 << 30) -> Volume:
        """A new, empty file system at ``path``, which is created if need be."""
        assert path not in self._volumes, f"{path} is mounted already"
        self.mkdirs(path)
        *_, above, inode = self._look(os.fsencode(path), None, follow=True)
        assert inode is not None
        volume = self._volumes[path] = Volume(path, len(self._volumes) + 1, bytes_total // PAGE, inodes_total, self._now_ns)
        self._attach(volume, above, inode.number)
        return volume

    @staticmethod
    def _attach(volume: Volume, above: Volume, number: int) -> None:
        volume.above = (above, number)
        above.mounts[number] = volume

    def volume(self, path: str) -> Volume:
        """The file system mounted at ``path``, to change its limits and flags."""
        return self._volumes[path]

    def under(self, path: str) -> list[Volume]:
        """The file system mounted at ``path`` and those further below."""
        self.volume(path)
        return [volume for at, volume in self._volumes.items() if at == path or at.startswith(path.rstrip("/") + "/")]

    def kill(self, under: str = "/") -> None:
        """Close all descriptors there, as when a process ends. What was written stays, synced or not."""
        volumes = self.under(under)
        self._open = {fd: opened for fd, opened in self._open.items() if opened.volume not in volumes}
        self._locks = {key: opened for key, opened in self._locks.items() if opened.volume not in volumes}
        for volume in volumes:
            volume.close_all()

    def power_cut(self, pick: Pick, under: str = "/") -> None:
        """Keep what was synced there and a part of the rest; descriptors are gone. ``pick`` may be ``rng.randrange``."""
        self.kill(under)
        for volume in self.under(under):
            volume.power_cut(pick)

    def settle(self, under: str = "/") -> None:
        """Everything there is durable."""
        for volume in self.under(under):
            volume.settle()

    def digest(self, under: str = "/") -> bytes:
        """The same for two disks that no program can tell apart, but for times."""
        return b"".join(volume.digest() for volume in self.under(under))

    def open_descriptors(self, under: str = "/") -> int:
        """How many descriptors are open there."""
        volumes = self.under(under)
        return sum(opened.volume in volumes for opened in self._open.values())

    def bit_flip(self, path: str, offset: int, bit: int = 0) -> None:
        """Turn one bit of a file over, also on the disk; its times stay."""
        _, inode = self._file(path)
        inode.data[offset] ^= 1 << bit

    def truncate(self, path: str, size: int) -> None:
        """Cut a file off, also on the disk; its times stay."""
        volume, inode = self._file(path)
        volume.pages_used -= inode.space
        del inode.data[size:]
        volume.pages_used += inode.space
        inode.settled()

    def drop(self, path: str) -> None:
        """Take a name away, with all that is below it; durable."""
        *_, volume, inode = self._look(os.fsencode(path), None, follow=False)
        if inode is not None and inode.is_dir:
            for name in list(inode.entries):
                self.drop(f"{path}/{os.fsdecode(name)}")
        _, here, name, _, _ = self._look(os.fsencode(path), None, follow=False)
        volume.change(((here.number, name, 0),))
        volume.settle()

    def put_back(self, path: str, before: Volume) -> None:
        """Let the file system at ``path`` be what it was when ``before`` was cloned of it: somebody restored a snapshot."""
        self.kill(path)
        above = self._volumes[path].above
        assert above is not None, "the root cannot be restored"
        restored = self._volumes[path] = before.clone()
        self._attach(restored, *above)

    # -- looking and changing, past ``before`` and past any fault --------------------------------------------------------------

    def mkdirs(self, path: str) -> None:
        """Make a directory and those above it; durable."""
        volume, here = self._top, self._top.root
        for name in [part for part in os.fsencode(path).split(b"/") if part]:
            if name not in here.entries:
                made = volume.make(stat.S_IFDIR | 0o755, self._tick())
                volume.change(((here.number, name, made.number),))
                volume.settle()
            volume, here = self._step(volume, here, name)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make a file with this content; durable. What stood there is gone."""
        above, _, name = path.rpartition("/")
        *_, volume, here = self._look(os.fsencode(above or "/"), None, follow=True)
        assert here is not None
        made = volume.make(stat.S_IFREG | mode, self._tick())
        volume.change(((here.number, os.fsencode(name), made.number),))
        volume.write(made, memoryview(data), 0, self._tick())
        volume.settle()

    def content(self, path: str) -> bytes:
        """The content of a file."""
        return bytes(self._file(path)[1].data)

    def _file(self, path: str) -> tuple[Volume, Inode]:
        *_, volume, inode = self._look(os.fsencode(path), None, follow=True)
        if inode is None or not inode.is_file:
            raise fail(errno.ENOENT)
        return volume, inode

    def tree(self, path: str) -> dict[str, bytes] | None:
        """Everything at and below ``path`` as ``tests.disk.trees.flat`` tells it; None when nothing stands there."""
        found = self.inodes(path)
        if not found:
            return None
        return {at: inode.target if inode.is_link else bytes(inode.data) for at, inode in found}

    def inodes(self, path: str) -> list[tuple[str, Inode]]:
        """Everything at and below ``path``, by its path from there (``/`` is itself). Nothing there is no error."""
        try:
            *_, volume, inode = self._look(os.fsencode(path), None, follow=False)
        except FileNotFoundError:
            return []
        if inode is None:
            return []
        found = [("/", inode)]
        left = [("", volume, inode)]
        while left:
            prefix, volume, here = left.pop()
            for name in sorted(here.entries):
                below, inode = self._step(volume, here, name)
                at = f"{prefix}/{os.fsdecode(name)}"
                found.append((at, inode))
                if inode.is_dir:
                    left.append((at, below, inode))
        return found

    # -- finding ---------------------------------------------------------------------------------------------------------------

    def _tick(self) -> int:
        self._now_ns += TICK_NS
        return self._now_ns

    def _begin(self, call: str, volume: Volume) -> None:
        self.calls += 1
        self.before(call, volume.path)
        if volume.read_only and call in CHANGING and call not in SYNCING:
            raise fail(errno.EROFS)

    def _of(self, fd: int) -> Open:
        opened = self._open.get(fd)
        if opened is None:
            raise fail(errno.EBADF)
        return opened

    def _concerned(self, path: bytes, dir_fd: int | None) -> Volume:
        """The file system that a path speaks of: of the directory that it begins at, or the one with the longest fitting mount point."""
        if dir_fd is not None and not path.startswith(b"/"):
            return self._of(dir_fd).volume
        if len(self._volumes) == 1:
            return self._top
        text = os.fsdecode(path)
        fitting = [at for at in self._volumes if text == at or text.startswith(at.rstrip("/") + "/")]
        return self._volumes[max(fitting, key=len)] if fitting else self._top

    @staticmethod
    def _step(volume: Volume, here: Inode, name: bytes) -> tuple[Volume, Inode]:
        """One component further; KeyError for nothing there."""
        if name == b".":
            return volume, here
        if name == b"..":
            if here is volume.root and volume.above is not None:
                volume, number = volume.above
                here = volume.inodes[number]
            return volume, volume.inodes[here.home]
        number = here.entries[name]
        mounted = volume.mounts.get(number)
        return (volume, volume.inodes[number]) if mounted is None else (mounted, mounted.root)

    def _look(self, path: bytes, dir_fd: int | None, *, follow: bool) -> Spot:
        """Where ``path`` leads. ``follow`` a symlink at its end. Raises OSError, but not for a last component that is missing."""
        if not path:
            raise fail(errno.ENOENT)
        if dir_fd is None or path.startswith(b"/"):
            volume, here = self._top, self._top.root
        else:
            start = self._of(dir_fd)
            volume, here = start.volume, start.inode
            if b"/" not in path and here.is_dir and len(path) <= MAX_NAME_BYTES:  # what a daemon asks for, nearly always
                try:
                    below, inode = self._step(volume, here, path)
                except KeyError:
                    return volume, here, path, volume, None
                if not (follow and inode.is_link):
                    return volume, here, path, below, inode
        parts = [part for part in reversed(path.split(b"/")) if part]
        links = 0
        while parts:
            if not here.is_dir:
                raise fail(errno.ENOTDIR)
            name = parts.pop()
            if len(name) > MAX_NAME_BYTES:
                raise fail(errno.ENAMETOOLONG if here.names else errno.ENOENT)
            try:
                below, inode = self._step(volume, here, name)
            except KeyError:
                if parts:
                    raise fail(errno.ENOENT) from None
                return volume, here, name, volume, None
            if inode.is_link and (parts or follow):
                links += 1
                if links > MAX_SYMLINKS:
                    raise fail(errno.ELOOP)
                parts.extend(part for part in reversed(inode.target.split(b"/")) if part)
                if inode.target.startswith(b"/"):
                    volume, here = self._top, self._top.root
            elif parts:
                volume, here = below, inode
            else:
                return volume, here, name, below, inode
        return volume, here, b".", volume, here
