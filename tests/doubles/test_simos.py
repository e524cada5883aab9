"""The file systems in memory do what Linux does, and a power cut leaves what it may."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import syscalls
from tests.doubles.simos import SimOS

NAMES = (b"a", b"b", b"c", b"d")
ODD_NAMES = (b".", b"n" * 256, b"a/b", b"c/a", b"a/../b")
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Machine:
    """Does calls on a module like ``os``, keeps the descriptors by number of order, and tells what came out."""

    def __init__(self, calls: Any, sys: Any, root: str) -> None:
        self.os = calls
        self.sys = sys
        self.dirs: list[int] = [calls.open(root, DIRECTORY)]
        self.files: list[int] = []

    def close(self) -> None:
        for fd in self.dirs + self.files:
            self.os.close(fd)

    def outcome(self, step: Callable[[Machine], object]) -> object:
        try:
            return step(self)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def dir(self, number: int) -> int:
        return self.dirs[number % len(self.dirs)]

    def status(self, found: os.stat_result) -> object:
        same = [fd for fd in self.dirs + self.files if self.os.fstat(fd).st_ino == found.st_ino]
        inode = (self.dirs + self.files).index(same[0]) if same else None
        if stat.S_ISDIR(found.st_mode):
            return inode, oct(found.st_mode)
        times = (found.st_mtime_ns,) if found.st_mtime_ns < 10**10 else ()
        return inode, oct(found.st_mode), found.st_nlink, found.st_size, *times

    def opened(self, fd: int) -> object:
        found = self.os.fstat(fd)
        (self.dirs if stat.S_ISDIR(found.st_mode) else self.files).append(fd)
        return self.status(found)


def steps(rng: random.Random) -> Callable[[Machine], object]:
    """A call with random arguments."""
    one, two = rng.randrange(99), rng.randrange(99)
    names = NAMES if rng.random() < 0.95 else ODD_NAMES
    old, new = rng.choice(names), rng.choice(NAMES)
    flags = rng.choice((0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_EXCL)) | rng.choice((os.O_NOFOLLOW, os.O_NOFOLLOW, 0))
    access = rng.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY)) | os.O_NONBLOCK
    only_dirs = rng.choice((DIRECTORY | os.O_NOFOLLOW, DIRECTORY))
    data, offset, size = bytes([65 + one % 26]) * rng.randrange(9000), rng.choice((0, 0, 5, 4096, 9000)), rng.randrange(9000)
    mode = rng.choice((0o644, 0o755, 0o600))
    follow = rng.random() < 0.3
    at_file = rng.randrange(99)

    def file(m: Machine) -> int:
        return m.files[at_file % len(m.files)] if m.files else m.dir(one)

    def names_in(m: Machine) -> object:
        fresh = m.os.open(b".", DIRECTORY, dir_fd=m.dir(one))
        try:
            return sorted(m.os.listdir(fresh))
        finally:
            m.os.close(fresh)

    def scanned(m: Machine) -> object:
        with m.os.scandir(m.dir(one)) as found:
            return sorted((e.name, e.is_symlink(), e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False)) for e in found)

    def closed(m: Machine) -> object:
        fds = m.files if m.files and one % 2 else m.dirs
        return m.os.close(fds.pop(1 + two % (len(fds) - 1) if fds is m.dirs else two % len(fds))) if len(fds) > 1 else None

    def again(m: Machine) -> object:
        return m.opened(m.os.dup(m.dir(one)))

    def read(m: Machine) -> object:
        return m.os.pread(file(m), size, offset)

    return rng.choice(
        (
            lambda m: m.os.mkdir(old, mode | 0o700, dir_fd=m.dir(one)),
            lambda m: m.os.mkdir(old, 0o755, dir_fd=m.dir(one)),
            lambda m: m.opened(m.os.open(old, flags | access, mode, dir_fd=m.dir(one))),
            lambda m: m.opened(m.os.open(old, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, dir_fd=m.dir(one))),
            lambda m: m.opened(m.os.open(old, only_dirs, dir_fd=m.dir(one))),
            lambda m: m.opened(m.os.open(old, only_dirs, dir_fd=m.dir(one))),
            lambda m: m.os.pwrite(file(m), data, offset),
            lambda m: m.os.pwrite(file(m), data, offset),
            read,
            read,
            lambda m: m.status(m.os.fstat(file(m))),
            lambda m: m.os.fchmod(file(m), mode | 0o700),
            lambda m: m.os.utime(file(m), ns=(10**9, 10**9)),
            lambda m: m.os.fsync(file(m)),
            lambda m: m.sys.syncfs(m.dir(one)),
            lambda m: m.status(m.os.stat(old, dir_fd=m.dir(one), follow_symlinks=follow)),
            lambda m: m.status(m.os.stat(old, dir_fd=m.dir(one), follow_symlinks=False)),
            lambda m: m.os.link(b"/proc/self/fd/%d" % file(m), new, dst_dir_fd=m.dir(two), follow_symlinks=True),
            lambda m: m.os.link(b"/proc/self/fd/%d" % file(m), new, dst_dir_fd=m.dir(two), follow_symlinks=True),
            lambda m: m.os.symlink(old, new, dir_fd=m.dir(one)),
            lambda m: m.os.readlink(old, dir_fd=m.dir(one)),
            lambda m: m.os.unlink(old, dir_fd=m.dir(one)),
            lambda m: m.os.unlink(old, dir_fd=m.dir(one)),
            lambda m: m.os.rmdir(old, dir_fd=m.dir(one)),
            lambda m: m.os.rename(old, new, src_dir_fd=m.dir(one), dst_dir_fd=m.dir(two)),
            lambda m: m.os.rename(old, new, src_dir_fd=m.dir(one), dst_dir_fd=m.dir(two)),
            lambda m: m.sys.renameat2(m.dir(one), old, m.dir(two), new, syscalls.NOREPLACE),
            lambda m: m.sys.renameat2(m.dir(one), old, m.dir(two), new, syscalls.EXCHANGE),
            names_in,
            scanned,
            closed,
            again,
        )
    )


class LikeLinux(SynchronousTestCase):
    """The same calls on a real file system."""

    def test_same_results(self) -> None:
        """Everything that is proved on the file systems in memory would say nothing about real ones."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        outcomes: set[str] = set()
        for seed in range(120):
            root = Path(self.mktemp()).absolute()
            root.mkdir(0o755)
            sim = SimOS()
            sim.mkdirs("/top")
            rng = random.Random(seed)
            real, fake = Machine(os, syscalls, str(root)), Machine(sim, sim, "/top")
            for number in range(150):
                step = steps(rng)
                expected = real.outcome(step)
                found = fake.outcome(step)
                self.assertEqual(found, expected, f"seed {seed}, step {number}")
                if isinstance(expected, str):
                    outcomes.add(expected)
            real.close()
            fake.close()
            self.assertEqual(sim.open_descriptors(), 0)
        rare = {"ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EINVAL", "EBADF", "EPERM", "ENAMETOOLONG"}
        self.assertEqual(rare - outcomes, set())
