"""File systems in memory that remember what was synced: stands in for ``os``, ``syscalls`` and ``fcntl`` as ``ciruela.disk`` uses them.

::

    sim = SimOS()
    sim.mount("/n1")                      # the disk of one node; sim.mount("/n1/srv", bytes_total=1 << 20) for one with little room
    sim.mkdirs("/n1/db")
    sim.mkdirs("/n1/srv")
    with sim.installed():                 # or sim.install(case) in a test
        store = Store("/n1/db", {"app": DirConfig("app", "/n1/srv", ...)}, in_place)
        ...
        sim.kill("/n1")                   # the process of the node is gone: its descriptors are closed, its files stay
        sim.power_cut(rng.randrange, "/n1")
        sim.tree("/n1/srv/web/v1")        # what stands there

What ``fsync`` and ``syncfs`` were called for survives a power cut; ``simos_volume`` tells what a cut may leave of the rest. Errors are
those of Linux; there is one user, who may do everything, and no umask. Not for several threads. ``simos_disks`` has what tests use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import finished, hashrecord, openfile, reuse, safedir, syscalls, version, walk
from tests.doubles.simos_disks import Open, fail
from tests.doubles.simos_inode import PAGE, Inode
from tests.doubles.simos_names import Names
from tests.doubles.simos_volume import Volume

_PASSED = frozenset({"strerror", "fsencode", "fsdecode", "path", "stat_result", "statvfs_result", "error"})

PLACES = (safedir, openfile, finished, hashrecord, reuse, walk, version)
"""The modules that make system calls."""


def _places() -> Iterator[tuple[ModuleType, str, ModuleType]]:
    """Where they hold what is stood in for."""
    for module in PLACES:
        for word in ("os", "fcntl", "syscalls", "time"):
            held = getattr(module, word, None)
            if held is not None:
                yield module, word, held


class Entry:
    """One name that ``scandir`` gives."""

    __slots__ = ("_inode", "name")

    def __init__(self, name: str, inode: Inode) -> None:
        self.name = name
        self._inode = inode

    def is_symlink(self) -> bool:
        return self._inode.is_link

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        assert not follow_symlinks
        return self._inode.is_dir

    def is_file(self, *, follow_symlinks: bool) -> bool:
        assert not follow_symlinks
        return self._inode.is_file


class SimOS(Names):
    """The calls."""

    UNSUPPORTED = syscalls.UNSUPPORTED
    CANNOT_CLONE = syscalls.CANNOT_CLONE
    LOCK_EX = 2
    LOCK_NB = 4

    def __getattr__(self, name: str) -> Any:
        if name.startswith("O_") or name in _PASSED:
            found = self.__dict__[name] = getattr(os, name)
            return found
        raise AttributeError(f"SimOS has no {name}: add it to tests/doubles/simos.py")

    @contextmanager
    def installed(self) -> Iterator[SimOS]:
        """While this lasts, ``ciruela.disk`` works on these file systems."""
        places = list(_places())
        for module, name, _ in places:
            setattr(module, name, self)
        try:
            yield self
        finally:
            for module, name, real in places:
                setattr(module, name, real)

    def install(self, case: SynchronousTestCase) -> None:
        """As :meth:`installed`, until the test ends."""
        for module, name, _ in list(_places()):
            case.patch(module, name, self)

    def sleep(self, seconds: float) -> None:
        """Nothing happens meanwhile."""
        self._now_ns += round(seconds * 1e9)

    def monotonic(self) -> float:
        """Seconds."""
        return self._now_ns / 1e9

    @staticmethod
    def file_system_type(_fd: int) -> int:
        """All are ext4."""
        return 0xEF53

    def time_ns(self) -> int:
        """Wall time, by which inodes are stamped."""
        return self._now_ns

    # -- descriptors -----------------------------------------------------------------------------------------------------------

    def _opened(self, volume: Volume, inode: Inode, flags: int) -> int:
        fd = self._next
        self._next += 1
        inode.opens += 1
        self._open[fd] = Open(volume, inode, flags)
        return fd

    def open(self, path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        path = os.fsencode(path)
        self._begin("create" if flags & os.O_CREAT else "open", self._concerned(path, dir_fd))
        if len(self._open) >= self.max_descriptors:
            raise fail(errno.EMFILE)
        exclusive = bool(flags & os.O_CREAT and flags & os.O_EXCL)
        home, here, name, volume, inode = self._look(path, dir_fd, follow=not flags & os.O_NOFOLLOW and not exclusive)
        if inode is None:
            if not flags & os.O_CREAT:
                raise fail(errno.ENOENT)
            self._check_new(home, here)
            inode = home.make(stat.S_IFREG | mode, self._tick())
            home.change(((here.number, name, inode.number),))
            return self._opened(home, inode, flags)
        if exclusive:
            raise fail(errno.EEXIST)
        if inode.is_link:
            raise fail(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP)
        if inode.is_dir and (flags & os.O_CREAT or flags & os.O_ACCMODE != os.O_RDONLY):
            raise fail(errno.EISDIR)
        if flags & os.O_DIRECTORY and not inode.is_dir:
            raise fail(errno.ENOTDIR)
        if volume.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise fail(errno.EROFS)
        return self._opened(volume, inode, flags)

    def dup(self, fd: int) -> int:
        opened = self._of(fd)
        self._begin("dup", opened.volume)
        if len(self._open) >= self.max_descriptors:
            raise fail(errno.EMFILE)
        return self._opened(opened.volume, opened.inode, opened.flags)

    def close(self, fd: int) -> None:
        """The descriptor is gone, also if this fails."""
        opened = self._of(fd)
        del self._open[fd]
        opened.inode.opens -= 1
        opened.volume.let_go(opened.inode)
        if self._locks:
            self._locks = {key: holder for key, holder in self._locks.items() if holder is not opened}
        self._begin("close", opened.volume)

    def set_inheritable(self, fd: int, _inheritable: bool) -> None:
        self._of(fd)

    def flock(self, fd: int, _operation: int) -> None:
        """Always exclusive and never waiting: what a daemon asks for."""
        opened = self._of(fd)
        self._begin("flock", opened.volume)
        if self._locks.setdefault((opened.volume.device, opened.inode.number), opened) is not opened:
            raise fail(errno.EWOULDBLOCK)

    # -- looking ---------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _status(volume: Volume, inode: Inode) -> os.stat_result:
        links = 2 if inode.is_dir else inode.names
        seconds = inode.accessed_ns // 10**9, inode.modified_ns // 10**9
        times = {"st_atime_ns": inode.accessed_ns, "st_mtime_ns": inode.modified_ns, "st_ctime_ns": inode.changed_ns}
        times |= {"st_blocks": inode.space * PAGE // 512, "st_blksize": PAGE}
        return os.stat_result((inode.mode, inode.number, volume.device, links, 0, 0, inode.size, *seconds, seconds[1]), times)

    def fstat(self, fd: int) -> os.stat_result:
        opened = self._of(fd)
        self._begin("fstat", opened.volume)
        return self._status(opened.volume, opened.inode)

    def stat(self, path: str | bytes, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        path = os.fsencode(path)
        self._begin("stat", self._concerned(path, dir_fd))
        *_, volume, inode = self._look(path, dir_fd, follow=follow_symlinks)
        if inode is None:
            raise fail(errno.ENOENT)
        return self._status(volume, inode)

    def fstatvfs(self, fd: int) -> os.statvfs_result:
        volume = self._of(fd).volume
        self._begin("fstatvfs", volume)
        free, nodes = max(volume.pages_total - volume.pages_used, 0), volume.inodes_total
        left = max(nodes - volume.inodes_used, 0)
        return os.statvfs_result((PAGE, PAGE, volume.pages_total, free, free, nodes, left, left, int(volume.read_only), 255))

    def _listed(self, fd: int, call: str) -> list[tuple[bytes, Inode]]:
        opened = self._of(fd)
        self._begin(call, opened.volume)
        if not opened.inode.is_dir:
            raise fail(errno.ENOTDIR)
        return [(name, self._step(opened.volume, opened.inode, name)[1]) for name in opened.inode.entries]

    def listdir(self, fd: int) -> list[str]:
        return [os.fsdecode(name) for name, _ in self._listed(fd, "listdir")]

    @contextmanager
    def scandir(self, fd: int) -> Iterator[list[Entry]]:
        yield [Entry(os.fsdecode(name), inode) for name, inode in self._listed(fd, "scandir")]

    def readlink(self, path: str | bytes, *, dir_fd: int | None = None) -> bytes:
        path = os.fsencode(path)
        self._begin("readlink", self._concerned(path, dir_fd))
        inode = self._look(path, dir_fd, follow=False)[-1]
        if inode is None:
            raise fail(errno.ENOENT)
        if not inode.is_link:
            raise fail(errno.EINVAL)
        return inode.target

    def _readable(self, fd: int, call: str) -> Open:
        opened = self._of(fd)
        self._begin(call, opened.volume)
        if opened.inode.is_dir:
            raise fail(errno.EISDIR)
        if opened.flags & os.O_ACCMODE == os.O_WRONLY:
            raise fail(errno.EBADF)
        return opened

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._readable(fd, "pread").inode.data[offset : offset + size])

    POSIX_FADV_DONTNEED = os.POSIX_FADV_DONTNEED

    def posix_fadvise(self, fd: int, _offset: int, _size: int, _advice: int) -> None:
        """Everything is in memory here."""
        self._of(fd)

    def read(self, fd: int, size: int) -> bytes:
        opened = self._readable(fd, "read")
        data = bytes(opened.inode.data[opened.offset : opened.offset + size])
        opened.offset += len(data)
        return data

    # -- changing a file -------------------------------------------------------------------------------------------------------

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Writes as much as there is room for; ENOSPC when that is nothing."""
        opened = self._of(fd)
        self._begin("pwrite", opened.volume)
        volume, inode = opened.volume, opened.inode
        if opened.flags & os.O_ACCMODE == os.O_RDONLY:
            raise fail(errno.EBADF)
        room = (inode.space + max(volume.pages_total - volume.pages_used, 0)) * PAGE
        view = memoryview(data)[: max(room - offset, 0)] if offset + len(data) > room else memoryview(data)
        if not view and data:
            raise fail(errno.ENOSPC)
        if view:
            volume.write(inode, view, offset, self._tick())
        return len(view)

    def pwritev(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        """As one :meth:`pwrite` of them all."""
        return self.pwrite(fd, b"".join(parts), offset)

    def ftruncate(self, fd: int, size: int) -> None:
        """What is new takes space here, as if there were no holes."""
        opened = self._of(fd)
        self._begin("ftruncate", opened.volume)
        volume, inode = opened.volume, opened.inode
        volume.pages_used -= inode.space
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        volume.pages_used += inode.space
        inode.modified_ns = inode.changed_ns = self._tick()

    def clone_range(self, source_fd: int, source_offset: int, size: int, fd: int, offset: int) -> None:
        """As btrfs and xfs do it where the volume ``clones``. Space is counted as if nothing were shared."""
        source, opened = self._of(source_fd), self._of(fd)
        self._begin("clone_range", opened.volume)
        if not opened.volume.clones:
            raise fail(errno.EOPNOTSUPP)
        if source.volume is not opened.volume:
            raise fail(errno.EXDEV)
        end = source_offset + size
        if source_offset % PAGE or offset % PAGE or end > len(source.inode.data) or (end % PAGE and end != len(source.inode.data)):
            raise fail(errno.EINVAL)
        opened.volume.write(opened.inode, memoryview(bytes(source.inode.data[source_offset:end])), offset, self._tick())

    def fchmod(self, fd: int, mode: int) -> None:
        opened = self._of(fd)
        self._begin("fchmod", opened.volume)
        inode = opened.inode
        inode.mode = stat.S_IFMT(inode.mode) | mode
        inode.changed_ns = self._tick()
        opened.volume.dirty.add(inode.number)

    def utime(self, fd: int, *, ns: tuple[int, int]) -> None:
        opened = self._of(fd)
        self._begin("utime", opened.volume)
        opened.inode.accessed_ns, opened.inode.modified_ns = ns
        opened.inode.changed_ns = self._tick()
        opened.volume.dirty.add(opened.inode.number)

    def fsync(self, fd: int) -> None:
        """A failure loses what waited to be written: a later sync succeeds without writing it."""
        opened = self._of(fd)
        try:
            self._begin("fsync", opened.volume)
        except OSError:
            opened.volume.sync_failed(opened.inode)
            raise
        opened.volume.sync(opened.inode)

    def syncfs(self, fd: int) -> None:
        """As :meth:`fsync`, for everything on the file system."""
        volume = self._of(fd).volume
        try:
            self._begin("syncfs", volume)
        except OSError:
            volume.sync_failed(None)
            raise
        volume.sync_all()
