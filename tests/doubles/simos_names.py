"""The calls of :class:`tests.doubles.simos.SimOS` that change names."""

from __future__ import annotations

import errno
import os
import stat

from ciruela.disk import syscalls
from tests.doubles.simos_disks import Disks, fail
from tests.doubles.simos_inode import Inode
from tests.doubles.simos_volume import Volume

PROC = b"/proc/self/fd/"
MAX_LINKS = 65_000
"""Names that a file may have, as on ext4."""

DOTS = frozenset({b".", b".."})


class Names(Disks):
    """Making, linking, removing and renaming."""

    NOREPLACE = syscalls.NOREPLACE
    EXCHANGE = syscalls.EXCHANGE

    @staticmethod
    def _check_new(volume: Volume, here: Inode, pages: int = 0) -> None:
        if not here.names:
            raise fail(errno.ENOENT)
        if volume.inodes_used >= volume.inodes_total or volume.pages_total - volume.pages_used < pages:
            raise fail(errno.ENOSPC)

    def _new(self, call: str, path: str | bytes, dir_fd: int | None, mode: int, target: bytes = b"") -> None:
        path = os.fsencode(path)
        self._begin(call, self._concerned(path, dir_fd))
        volume, here, name, _, inode = self._look(path, dir_fd, follow=False)
        if inode is not None:
            raise fail(errno.EEXIST)
        self._check_new(volume, here, stat.S_ISDIR(mode))
        made = volume.make(mode, self._tick(), target)
        volume.change(((here.number, name, made.number),))

    def mkdir(self, path: str | bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._new("mkdir", path, dir_fd, stat.S_IFDIR | mode)

    def symlink(self, target: str | bytes, path: str | bytes, *, dir_fd: int | None = None) -> None:
        self._new("symlink", path, dir_fd, stat.S_IFLNK | 0o777, os.fsencode(target))

    def link(
        self,
        source: str | bytes,
        path: str | bytes,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """``source`` is a descriptor in /proc, which is followed, or a name in a directory, which is not."""
        source, path = os.fsencode(source), os.fsencode(path)
        self._begin("link", self._concerned(path, dst_dir_fd))
        if source.startswith(PROC) and follow_symlinks:
            opened = self._of(int(source.removeprefix(PROC)))
            old_volume, inode = opened.volume, opened.inode
        elif src_dir_fd is not None and not follow_symlinks:
            *_, old_volume, found = self._look(source, src_dir_fd, follow=False)
            if found is None:
                raise fail(errno.ENOENT)
            inode = found
        else:
            raise AssertionError(f"link of {source!r}: only /proc/self/fd/N, followed, and names in directories are known here")
        volume, here, name, _, standing = self._look(path, dst_dir_fd, follow=False)
        if standing is not None:
            raise fail(errno.EEXIST)
        if old_volume is not volume:
            raise fail(errno.EXDEV)
        if not here.names:
            raise fail(errno.ENOENT)
        if inode.is_dir:
            raise fail(errno.EPERM)
        if not inode.names:
            raise fail(errno.ENOENT)
        if inode.names >= MAX_LINKS:
            raise fail(errno.EMLINK)
        volume.change(((here.number, name, inode.number),))
        inode.changed_ns = self._tick()

    def unlink(self, path: str | bytes, *, dir_fd: int | None = None) -> None:
        path = os.fsencode(path)
        self._begin("unlink", self._concerned(path, dir_fd))
        volume, here, name, _, inode = self._look(path, dir_fd, follow=False)
        if inode is None:
            raise fail(errno.ENOENT)
        if inode.is_dir:
            raise fail(errno.EISDIR)
        inode.changed_ns = self._tick()
        volume.change(((here.number, name, 0),))

    def rmdir(self, path: str | bytes, *, dir_fd: int | None = None) -> None:
        path = os.fsencode(path)
        self._begin("rmdir", self._concerned(path, dir_fd))
        volume, here, name, below, inode = self._look(path, dir_fd, follow=False)
        if inode is None:
            raise fail(errno.ENOENT)
        if name in DOTS:
            raise fail(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        if not inode.is_dir:
            raise fail(errno.ENOTDIR)
        if below is not volume:
            raise fail(errno.EBUSY)
        if inode.entries:
            raise fail(errno.ENOTEMPTY)
        volume.change(((here.number, name, 0),))

    def rename(self, old: str | bytes, new: str | bytes, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        self._rename("rename", os.fsencode(old), os.fsencode(new), src_dir_fd, dst_dir_fd, 0)

    def renameat2(self, old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
        self._rename("renameat2", old, new, old_fd, new_fd, flags)

    def _rename(self, call: str, old: bytes, new: bytes, old_fd: int | None, new_fd: int | None, flags: int) -> None:
        self._begin(call, self._concerned(old, old_fd))
        volume, here, name, below, moved = self._look(old, old_fd, follow=False)
        to_volume, to, to_name, to_below, standing = self._look(new, new_fd, follow=False)
        if volume is not to_volume:
            raise fail(errno.EXDEV)
        if name in DOTS or to_name in DOTS:
            raise fail(errno.EEXIST if name not in DOTS and flags & self.NOREPLACE else errno.EBUSY)
        if flags & self.EXCHANGE and not volume.exchanges:
            raise fail(errno.EINVAL)
        if moved is None:
            raise fail(errno.ENOENT)
        if flags & self.NOREPLACE and standing is not None:
            raise fail(errno.EEXIST)
        if flags & self.EXCHANGE and standing is None:
            raise fail(errno.ENOENT)
        if moved.is_dir and _inside(volume, to, moved):
            raise fail(errno.EINVAL)
        if standing is not None and standing.is_dir and _inside(volume, here, standing):
            raise fail(errno.EINVAL if flags & self.EXCHANGE else errno.ENOTEMPTY)
        if below is not volume or to_below is not volume:
            raise fail(errno.EBUSY)
        if moved is standing:
            return
        if not to.names:
            raise fail(errno.ENOENT)
        gone, come = (here.number, name, 0), (to.number, to_name, moved.number)
        moved.changed_ns = self._tick()
        if flags & self.EXCHANGE:
            assert standing is not None
            volume.change(((here.number, name, standing.number), come))
            return
        if standing is not None and standing.is_dir and not moved.is_dir:
            raise fail(errno.EISDIR)
        if standing is not None and moved.is_dir and not standing.is_dir:
            raise fail(errno.ENOTDIR)
        if standing is not None and standing.entries:
            raise fail(errno.ENOTEMPTY)
        if moved.is_dir:
            volume.change((gone, come))
        else:
            volume.change((come,), (gone,))


def _inside(volume: Volume, here: Inode, above: Inode) -> bool:
    """Whether ``here`` is ``above`` or lies below it."""
    while here is not above:
        if here.home == here.number or not here.names:
            return False
        here = volume.inodes[here.home]
    return True
