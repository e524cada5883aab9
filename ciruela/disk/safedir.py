"""The only way to files below a base directory or the db directory: open directories and single names (threats 6.2).

No path is joined here or above: every name is one component, looked up relative to an open directory, and never followed when it is a
symlink. So whoever plants symlinks or moves directories while the daemon works cannot lead it elsewhere.

Errors are those of :mod:`ciruela.disk.openfile`.
"""

from __future__ import annotations

import errno
import os
import stat

from twisted.logger import Logger

from ciruela.disk import syscalls
from ciruela.disk.openfile import Opened, OpenFile, fault, let_go, patiently
from ciruela.disk.syscalls import warn_once

_log = Logger()

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # guard: I3 A3 F2, -> os.O_CLOEXEC | os.O_NONBLOCK
"""O_NONBLOCK: opening a fifo that somebody planted must not wait for its other end."""

RESERVED = ".ciruela~"
"""Prefix of the names beside the images that belong to the daemon."""


def led_to(path: str) -> str:
    """Resolves a path of the operator, through all symlinks, to an existing directory. Raises OSError."""
    found = os.path.realpath(path, strict=True)
    if not stat.S_ISDIR(os.stat(found).st_mode):  # guard: A46 F57
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return found


def raw(name: str) -> bytes:
    """The bytes of one path component. Raises OSError (EINVAL) for what is not a single component."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:  # guard: I3 A1 F2
        raise OSError(errno.EINVAL, "not a single path component", name)
    return name.encode("utf-8", "surrogateescape")


class SafeDir(Opened):
    """An open directory. Names are single components; nothing is ever followed.

    Where it is not ``durable``, nor is anything opened through it: syncing does nothing, as the operator wants it (``fsync: none``).
    """

    __slots__ = ()

    @classmethod
    def at(cls, path: str, durable: bool = True) -> SafeDir:
        """Open a directory by its configured path; only here may symlinks lead. Messages of what is below are relative to it."""
        try:
            return cls(patiently(os.open, path, _DIRECTORY), "", durable)
        except OSError as error:
            raise fault(error, "open directory", path) from None

    def within(self, name: str) -> str:
        """``name`` in this directory, as messages show it."""
        return f"{self.where}/{name}" if self.where else name

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def status(self) -> os.stat_result:
        """Gives the status of this directory itself. Raises OSError."""
        try:
            return os.fstat(self.fd)
        except OSError as error:
            raise fault(error, "stat", self.where or ".") from None

    def stat(self, name: str) -> os.stat_result | None:
        """Gives the status of ``name``, of a symlink its own; None when nothing stands there. Raises OSError."""
        try:
            return os.stat(raw(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise fault(error, "stat", self.within(name)) from None

    def names(self) -> list[str]:
        """All names in this directory, unordered; bytes that are not UTF-8 come as surrogates."""
        try:
            fresh = patiently(os.open, b".", _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
            try:
                found = os.listdir(fresh)
            finally:
                let_go(fresh, self.where)
        except OSError as error:
            raise fault(error, "list", self.where or ".") from None
        return [os.fsencode(name).decode("utf-8", "surrogateescape") for name in found]

    def entries(self) -> list[os.DirEntry[str]]:
        """All that is in this directory, unordered, with its type. The entries look nothing up by a path: they are relative to this."""
        try:
            with os.scandir(self.fd) as found:
                return list(found)
        except OSError as error:
            raise fault(error, "list", self.where or ".") from None

    def readlink(self, name: str) -> str:
        """The target of the symlink ``name``."""
        try:
            return os.readlink(raw(name), dir_fd=self.fd).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise fault(error, "readlink", self.within(name)) from None

    def free_bytes(self) -> tuple[int, int]:
        """Bytes that may still be written to this file system, and its size."""
        try:
            found = os.fstatvfs(self.fd)
        except OSError as error:
            raise fault(error, "statvfs", self.where or ".") from None
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def file_system_type(self) -> int:
        """Number of the type of the file system, see ``syscalls.file_system_type``."""
        return syscalls.file_system_type(self.fd)

    # -- opening ---------------------------------------------------------------------------------------------------------------

    def open_dir(self, name: str) -> SafeDir:
        """Open a directory. A symlink gives NotADirectoryError."""
        try:
            # guard: I3 A3 F2, _DIRECTORY | os.O_NOFOLLOW -> _DIRECTORY
            fd = patiently(os.open, raw(name), _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
        except OSError as error:
            raise fault(error, "open directory", self.within(name)) from None
        return SafeDir(fd, self.within(name), self.durable)

    def make_dir(self, name: str, mode: int = 0o755) -> SafeDir:
        """Create a directory that must not stand yet (FileExistsError) and open it; ``mode`` holds whatever the umask."""
        try:
            os.mkdir(raw(name), mode, dir_fd=self.fd)
        except OSError as error:
            raise fault(error, "mkdir", self.within(name)) from None
        try:
            made = self.open_dir(name)
        except OSError:
            self._unmake(name)
            raise
        try:
            made.chmod(mode)
        except OSError:
            made.close()
            self._unmake(name)
            raise
        return made

    def descend(self, names: tuple[str, ...], *, create: bool = False, mode: int = 0o755) -> SafeDir:
        """Open a directory some levels below; with ``create`` make what is missing, durably, with ``mode``. This directory stays open."""
        here = self
        try:
            for name in names:
                below = here._enter(name, create=create, mode=mode)
                if here is not self:
                    here.close()
                here = below
            return SafeDir(patiently(os.dup, self.fd), self.where, self.durable) if here is self else here
        except BaseException:
            if here is not self:
                here.close()
            raise

    def _enter(self, name: str, *, create: bool, mode: int) -> SafeDir:
        try:
            return self.open_dir(name)
        except FileNotFoundError:
            if not create:
                raise
        try:
            made = self.make_dir(name, mode)
        except FileExistsError:
            return self.open_dir(name)
        try:
            self.fsync()
        except OSError:
            made.close()
            self._unmake(name)  # guard: A39 A44 F29
            raise
        return made

    def _unmake(self, name: str) -> None:
        """Remove a directory whose name may not be durable: the next one would take it for good. Others may have put something in it."""
        try:
            self.rmdir(name)
        except OSError as error:
            _log.warn("{name} cannot be removed again: {error}", name=self.within(name), error=error)

    def _open(self, name: str, flags: int, mode: int, operation: str) -> OpenFile:
        try:
            fd = patiently(os.open, raw(name), flags | _FILE, mode, dir_fd=self.fd)
        except OSError as error:
            raise fault(error, operation, self.within(name)) from None
        opened = OpenFile(fd, self.within(name), self.durable)
        if flags & os.O_EXCL:
            return opened
        try:
            if not stat.S_ISREG(opened.first.st_mode):  # guard: F2 I3
                raise OSError(errno.EINVAL, f"{operation}: not a regular file", self.within(name))
        except BaseException:
            opened.close()
            raise
        return opened

    def open_read(self, name: str) -> OpenFile:
        """Open a regular file for reading."""
        return self._open(name, os.O_RDONLY, 0, "open")

    def open_write(self, name: str) -> OpenFile:
        """Open a regular file that stands already, for reading and writing."""
        return self._open(name, os.O_RDWR, 0, "open for writing")

    def create(self, name: str, mode: int = 0o600) -> OpenFile:
        """Create a file that must not stand yet (FileExistsError) and open it for reading and writing."""
        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, "create")  # guard: I1, os.O_CREAT | os.O_EXCL -> os.O_CREAT

    # -- changing --------------------------------------------------------------------------------------------------------------

    def link(self, source: OpenFile, name: str) -> os.stat_result:
        """Give the open file ``source``, and nothing that took its place, a second name here; returns what it is afterwards.

        The link is checked afterwards and taken back when it is not the same inode. Needs /proc.
        """
        target = raw(name)
        try:
            os.link(f"/proc/self/fd/{source.fd}".encode(), target, dst_dir_fd=self.fd, follow_symlinks=True)
            made = os.stat(target, dir_fd=self.fd, follow_symlinks=False)
            if not os.path.samestat(made, source.first):  # guard: A50 F59
                os.unlink(target, dir_fd=self.fd)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except OSError as error:
            raise fault(error, "link", self.within(name)) from None
        return made

    def link_as_it_is(self, source: SafeDir, old: str, name: str, found: os.stat_result) -> os.stat_result:
        """Give the file ``old`` in ``source``, which is ``found``, a second name here; returns what it is afterwards.

        As :meth:`link`, without opening it.
        """
        target = raw(name)
        try:
            os.link(raw(old), target, src_dir_fd=source.fd, dst_dir_fd=self.fd, follow_symlinks=False)
            made = os.stat(target, dir_fd=self.fd, follow_symlinks=False)
            if not os.path.samestat(made, found):  # guard: A50 F59
                os.unlink(target, dir_fd=self.fd)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except OSError as error:
            raise fault(error, "link", self.within(name)) from None
        return made

    def symlink(self, target: str, name: str) -> None:
        """Create a symlink with the text ``target``."""
        try:
            os.symlink(target.encode("utf-8", "surrogateescape"), raw(name), dir_fd=self.fd)
        except OSError as error:
            raise fault(error, "symlink", self.within(name)) from None

    def unlink(self, name: str) -> None:
        """Remove a name that is not a directory."""
        try:
            os.unlink(raw(name), dir_fd=self.fd)
        except OSError as error:
            raise fault(error, "unlink", self.within(name)) from None

    def unlink_one_of_several(self, name: str) -> tuple[os.stat_result, os.stat_result]:
        """Remove a name of a file that has others; returns what the file was before and what it is afterwards."""
        try:
            fd = patiently(os.open, raw(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                before = os.fstat(fd)
                os.unlink(raw(name), dir_fd=self.fd)
                return before, os.fstat(fd)
            finally:
                let_go(fd, self.within(name))
        except OSError as error:
            raise fault(error, "unlink", self.within(name)) from None

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        try:
            os.rmdir(raw(name), dir_fd=self.fd)
        except OSError as error:
            raise fault(error, "rmdir", self.within(name)) from None

    def rename(self, old: str, new: str, to: SafeDir | None = None) -> None:
        """Rename within this directory (or into ``to``), over a file or an empty directory that stands there."""
        try:
            os.rename(raw(old), raw(new), src_dir_fd=self.fd, dst_dir_fd=(to or self).fd)
        except OSError as error:
            raise fault(error, "rename", self.within(old)) from None

    def rename_new(self, old: str, new: str) -> None:
        """Rename; FileExistsError when anything stands at ``new``.

        Where renameat2 is not to be had: looks first, then renames, which leaves a gap for somebody else between the two.
        """
        try:
            # guard: I9 A43, -> os.rename(raw(old), raw(new), src_dir_fd=self.fd, dst_dir_fd=self.fd)
            syscalls.renameat2(self.fd, raw(old), self.fd, raw(new), syscalls.NOREPLACE)
        except OSError as error:
            if error.errno not in syscalls.UNSUPPORTED:
                raise fault(error, "rename", self.within(old)) from None
        else:
            return
        if self.stat(new) is not None:
            raise OSError(errno.EEXIST, f"rename: {os.strerror(errno.EEXIST)}", self.within(new))
        self.rename(old, new)

    def exchange(self, new: str, live: str, aside: str) -> None:
        """Let ``new`` and ``live`` change places in one step.

        Where the file system cannot do that: ``live`` goes to ``aside``, ``new`` to ``live``, ``aside`` to ``new``. That is not atomic:
        for a moment nothing stands at ``live``, and a kill then leaves it at ``aside``, where recovery finds it. Each step is durable
        before the next. Logged once.
        """
        try:
            syscalls.renameat2(self.fd, raw(new), self.fd, raw(live), syscalls.EXCHANGE)
        except OSError as error:
            if error.errno not in syscalls.UNSUPPORTED:
                raise fault(error, "exchange", self.within(live)) from None
        else:
            return
        warn_once("exchange", self._warn_exchange)
        self.rename(live, aside)
        try:
            self.fsync()
            self.rename(new, live)
            try:
                self.fsync()
                self.rename(aside, new)
            except OSError:  # guard: A43 F36
                self.rename(live, new)
                raise
        except OSError:  # guard: A43 F36
            self.rename(aside, live)
            raise

    def _warn_exchange(self) -> None:
        _log.warn(
            "the file system of {where} cannot exchange two directories; replaced images are missing for a moment (use ext4, xfs or btrfs)",
            where=self.where or ".",
        )

    def chmod(self, mode: int) -> None:
        """Set the permission bits of this directory, whatever the umask."""
        try:
            os.fchmod(self.fd, mode)
        except OSError as error:
            raise fault(error, "chmod", self.where or ".") from None

    def chgrp(self, gid: int) -> None:
        """Give this directory to a group; see ``OpenFile.chgrp``."""
        try:
            os.fchown(self.fd, -1, gid)
        except OSError as error:
            raise fault(error, "chgrp", self.where or ".") from None

    def fsync(self) -> None:
        """Make the names in this directory durable."""
        if not self.durable:
            return
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise fault(error, "fsync", self.where or ".") from None

    def syncfs(self) -> None:
        """Make the whole file system durable; a write error since this directory was opened is reported."""
        if not self.durable:
            return
        try:
            syscalls.syncfs(self.fd)
        except OSError as error:
            raise fault(error, "syncfs", self.where or ".") from None
