"""Small disks for tests: tmpfs, and ext4 in a file; taken away again however the test ends. Needs the right to mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from twisted.trial.unittest import SynchronousTestCase

T = TypeVar("T", bound=Callable[..., None])

FREEZE, THAW = 0xC0045877, 0xC0045878
"""FIFREEZE and FITHAW of ioctl_fs: no write reaches the file system in between."""

_libc = ctypes.CDLL(None, use_errno=True)


def _run(*command: object) -> str:
    environ = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run([str(word) for word in command], capture_output=True, encoding="utf-8", check=False, env=environ)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def mount_call(source: str, target: str, kind: str, flags: int, options: str) -> int:
    """mount(2). Gives 0 or the error number."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) == 0:
        return 0
    return ctypes.get_errno()


def may_mount(user: int, attempt: Callable[[], int]) -> str:
    """Why ``user`` cannot mount; nothing when it can. ``attempt`` mounts something and gives an error number.

    Only what an administrator has forbidden is a reason. Any other error of root is raised: then the tests have to run, and cannot.
    """
    if user != 0:
        return "only root may mount"
    error = attempt()
    if error == 0:
        return ""
    if error in (errno.EPERM, errno.EACCES):
        return f"this root may not mount ({os.strerror(error)}: a container without CAP_SYS_ADMIN)"
    raise OSError(error, os.strerror(error))


def _attempt_tmpfs() -> int:
    top = tempfile.mkdtemp(prefix="ciruela-may-mount-")
    try:
        error = mount_call("tmpfs", top, "tmpfs", 0, "size=64k")
        if error == 0:
            _run("umount", top)
        return error
    finally:
        os.rmdir(top)


def _attempt_loop() -> int:
    """Finding a free loop device; where the kernel has none, that is forbidden as well."""
    try:
        _run("losetup", "--find")
    except AssertionError:
        return errno.EPERM
    return 0


@cache
def forbidden() -> str:
    """Why this process cannot mount a tmpfs, or nothing."""
    return may_mount(os.geteuid(), _attempt_tmpfs)


@cache
def loops_forbidden() -> str:
    """Why this process cannot mount a file, or nothing."""
    return forbidden() or may_mount(os.geteuid(), _attempt_loop)


def may_make(kind: str) -> Callable[[], str]:
    """A reason, for :func:`needs`, why no file system of this kind can be mounted here, or nothing."""

    def reason() -> str:
        if shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"there is no mkfs.{kind}"
        known = Path("/proc/filesystems").read_text(encoding="ascii").split()
        return loops_forbidden() or ("" if kind in known else f"this kernel has no {kind}")

    return reason


def needs(reason: Callable[[], str]) -> Callable[[T], T]:
    """For test methods that are impossible where ``reason()`` says something: they print that in one line and pass."""

    def decorate(test: T) -> T:
        @wraps(test)
        def run(case: SynchronousTestCase, *args: Any) -> None:
            why = reason()
            if why:
                print(f"{case.id()} cannot be run here: {why}")  # noqa: T201  a test that did not run must say so
            else:
                test(case, *args)

        return run  # type: ignore[return-value]

    return decorate


class Mounts:
    """Mounts of one test. Make it before the daemons that use them, so that these end first."""

    def __init__(self, case: SynchronousTestCase | None = None) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="ciruela-mounts-"))
        self._mounted: list[Path] = []
        if case is not None:
            case.addCleanup(self.close)

    def tmpfs(self, name: str, size_kib: int, inodes: int = 0, mode: str = "0755") -> Path:
        """An empty file system in memory. ``inodes`` 0: as many as memory allows."""
        options = f"size={size_kib}k,nr_inodes={inodes},mode={mode}"
        return self._mount(name, "-t", "tmpfs", "-o", options, "tmpfs")

    def ext4(self, image: Path, name: str, options: str = "commit=1") -> Path:
        """Mount the file ``image``, which has an ext4. A journal is replayed, as after a power cut."""
        return self._mount(name, "-t", "ext4", "-o", f"loop,{options}", image)

    def make_ext4(self, image: Path, size_mib: int) -> Path:
        """A new file with an empty ext4 that has a journal and no reserved blocks."""
        with open(image, "wb") as file:
            file.truncate(size_mib << 20)
        _run("mkfs.ext4", "-q", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        return image

    def make(self, kind: str, image: Path, name: str, size_mib: int) -> Path:
        """A new, empty file system of this kind in the file ``image``, mounted."""
        with open(image, "wb") as file:
            file.truncate(size_mib << 20)
        _run(f"mkfs.{kind}", "-q", image)
        return self._mount(name, "-t", kind, "-o", "loop", image)

    def _mount(self, name: str, *command: object) -> Path:
        where = self.top / name
        where.mkdir(exist_ok=True)
        _run("mount", *command, where)
        self._mounted.append(where)
        return where

    def cover(self, where: Path, source: Path) -> None:
        """Show the directory ``source`` at ``where`` too, which is covered."""
        _run("mount", "--bind", source, where)
        self._mounted.append(where)

    def remount(self, where: Path, options: str) -> None:
        """Change the options of a mount."""
        _run("mount", "-o", f"remount,{options}", where)

    def unmount(self, where: Path) -> None:
        """Take a mount away; its loop device, if any, is freed."""
        _run("umount", where)
        self._mounted.remove(where)

    @contextmanager
    def frozen(self, where: Path) -> Iterator[None]:
        """No write reaches the file system at ``where``; what is in it can be read."""
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, FREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(fd, THAW, 0)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmount everything, last first; what is busy is detached, and told."""
        problems = []
        for where in reversed(self._mounted):
            try:
                _run("umount", where)
            except AssertionError as error:
                problems.append(str(error))
                _run("umount", "--lazy", where)
        self._mounted.clear()
        shutil.rmtree(self.top)
        if problems:
            raise AssertionError("\n".join(problems))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy what is written in ``source``; holes stay holes. Nothing is synced."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        at = 0
        while at < size:
            try:
                begin = os.lseek(reading.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise
            at = os.lseek(reading.fileno(), begin, os.SEEK_HOLE)
            for place in range(begin, at, 1 << 20):
                os.pwrite(writing.fileno(), os.pread(reading.fileno(), min(1 << 20, at - place), place), place)
