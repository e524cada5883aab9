"""Tests of ``ciruela.disk.scan`` and ``ciruela.disk.walk``, on real temporary directories."""

from __future__ import annotations

import os
import shutil
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import scan as scan_module
from ciruela.disk import walk
from ciruela.disk.safedir import SafeDir
from ciruela.disk.scan import Scan, ScanProgress, scan
from ciruela.index import emit as emit_module
from ciruela.index import names
from ciruela.index.digest import HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import parse
from ciruela.index.tree import File
from ciruela.model.errors import DiskError
from tests.index.examples import BIG, FEATURES, KIND
from tests.proof import shows

P = ParamSpec("P")
T = TypeVar("T")

MIB = 1024 * 1024
THREADS = scan_module.THREADS


def at_once(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Runs in place what would run in a thread."""
    return maybeDeferred(f, *args, **kwargs)


class Threads:
    """Thread jobs that run when the test says so; ``most`` is how many there were at a time."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self.most = 0

    def __call__(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.jobs.append((done, f, args))
        self.most = max(self.most, len(self.jobs))
        return done

    def run(self, *, last: bool = False) -> None:
        """Run one job to its end."""
        done, f, args = self.jobs.pop() if last else self.jobs.popleft()
        maybeDeferred(f, *args).chainDeferred(done)


class Clock:
    """Seconds that pass only by being asked for."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def open_fds() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class ScanCase(SynchronousTestCase):
    """A temporary directory, and that scans leave no file open."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)
        self.fds = open_fds()
        self.progress: list[ScanProgress] = []
        self.patch(scan_module, "THREADS", 2)  # as on a machine with two cores, wherever the tests run

    def tearDown(self) -> None:
        self.assertEqual(open_fds(), self.fds)

    def start(self, in_thread: Any = at_once, clock: Callable[[], float] | None = None, kind: HashKind = KIND) -> Deferred[Scan]:
        return scan(str(self.root), kind, in_thread, self.progress.append, clock or Clock())

    def scanned(self, kind: HashKind = KIND) -> Scan:
        return self.successResultOf(self.start(kind=kind))

    def refused(self, *texts: str) -> None:
        error = self.failureResultOf(self.start(), DiskError).value
        for text in texts:
            self.assertIn(text, str(error))

    def put(self, path: str, data: bytes = b"", mode: int = 0o644) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)
        return target

    def small_pieces(self) -> None:
        """Let files of a few megabytes have several pieces, each for a job of its own."""
        self.patch(walk, "PIECE_BYTES", MIB)
        self.patch(scan_module, "PIECE_BYTES", MIB)

    def make_features(self) -> None:
        self.put("README", b"hello\n")
        self.put("run.sh", b"#!/bin/sh\necho hi\n", 0o755)
        self.put("zero")
        (self.root / "dangling").symlink_to("no such target")
        self.put("a/big.bin", BIG)
        (self.root / "a/link").symlink_to("../README")
        self.put("a/b/back\\slash", b"x")
        self.put("a-b/sp ace", b"y")
        self.put("a-b/üml", b"z")
        (self.root / "empty").mkdir()


class TreeTests(ScanCase):
    """What is in an index."""

    def test_worked_example(self) -> None:
        """One byte off, and no reference program agrees on the id of the directory."""
        self.make_features()
        result = self.scanned()
        self.assertEqual(result.data, FEATURES)
        self.assertEqual((result.dirs, result.files, result.symlinks, result.bytes), (5, 7, 2, 40987))
        self.assertEqual(result.warnings, ())
        self.assertEqual(parse(result.data, result.index.image), result.index)
        self.assertEqual(self.progress[-1], ScanProgress(5, 7, 2, 40987))

    def test_empty(self) -> None:
        """An empty directory can be synced."""
        result = self.scanned()
        self.assertEqual(result.data.splitlines()[1:2], [b"/"])
        self.assertEqual((result.dirs, result.files), (1, 0))

    def test_kinds(self) -> None:
        """The user chooses the function; blocks and footer have to follow."""
        self.make_features()
        for kind in HashKind:
            result = self.scanned(kind)
            self.assertEqual(result.index.kind, kind)
            self.assertEqual(parse(result.data, result.index.image), result.index)
            self.assertEqual(result.index.files[0].hashes, kind.hash(b"hello\n"))

    def test_odd_names(self) -> None:
        """Users have files with such names, and hidden ones; all of them belong to the image."""
        names = [
            "new\nline",
            "quote'\"",
            " ",
            "tab\t",
            "-rf",
            "~",
            "*",
            "😀",
            "e\u0301",
            "é",
            ".hidden",
            "...",
            "\x01\x7f",
            "x" * 255,
            "a\\x20b",
        ]
        for name in names:
            self.put(name, name.encode())
            self.put(f"dir {name}"[:200] + "/" + name, b"")
        result = self.scanned()
        self.assertEqual(sorted(file.path[1:] for file in result.index.directories[0].entries), sorted(names))
        self.assertEqual(parse(result.data, result.index.image), result.index)

    def test_executable_is_the_owners_bit(self) -> None:
        """The mode on the servers comes from this one bit."""
        for mode in (0o644, 0o755, 0o744, 0o655, 0o500, 0o411):
            self.put(f"{mode:o}", b"", mode)
        found = {file.path[1:]: file.executable for file in self.scanned().index.files}
        self.assertEqual(found, {"644": False, "755": True, "744": True, "655": False, "500": True, "411": False})

    @shows("I3")
    def test_symlinks_are_not_followed(self) -> None:
        """A link to / would publish the whole machine."""
        secret = Path(self.mktemp())
        secret.mkdir()
        (secret / "key").write_bytes(b"secret")
        targets = {"dir": str(secret.absolute()), "file": str((secret / "key").absolute()), "loop": "loop", "up": "..", "self": "."}
        for name, target in targets.items():
            (self.root / name).symlink_to(target)
        result = self.scanned()
        self.assertEqual({link.path[1:]: link.target for link in result.index.symlinks}, targets)
        self.assertEqual((result.dirs, result.files, result.symlinks), (1, 0, 5))

    def test_the_root_may_be_a_symlink(self) -> None:
        """``ciruela sync current`` where ``current`` points to the newest build."""
        self.put("x", b"x")
        link = Path(self.mktemp())
        link.symlink_to(self.root.absolute())
        done = scan(str(link) + "/", KIND, at_once, self.progress.append, Clock())
        self.assertEqual(self.successResultOf(done).files, 1)

    def test_special_files_are_left_out(self) -> None:
        """A fifo must neither be waited for nor silently be missing."""
        os.mkfifo(self.root / "pipe")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(os.path.relpath(self.root / "sock"))
        listener.close()
        self.put("x", b"x")
        result = self.scanned()
        self.assertEqual([file.path for file in result.index.entries()], ["/x"])
        self.assertEqual(len(result.warnings), 2)
        self.assertIn("/pipe: a fifo", result.warnings[0])
        self.assertIn("/sock: a socket", result.warnings[1])
        self.assertIn(str(self.root), result.warnings[0])

    @shows("A27")
    def test_messages_are_safe_to_print(self) -> None:
        """A name with escape sequences must not take over the terminal of whoever reads the warning."""
        os.mkfifo(self.root / "pipe\x1b[2J\n")
        (warning,) = self.scanned().warnings
        self.assertTrue(warning.isprintable())
        self.assertIn("pipe\\x1b[2J\\n", warning)

    def test_large_files(self) -> None:
        """Large files are hashed in pieces by two threads; put together in a wrong order they would be other files."""
        self.small_pieces()
        content = b"".join(bytes([number]) * 65536 for number in range(53)) + b"tail"
        sizes = {"exact": 2 * MIB, "more": 3 * MIB + 100, "odd": MIB + 1, "small": MIB}
        for name, size in sizes.items():
            self.put(f"d/{name}", content[:size], 0o755 if name == "odd" else 0o644)
        self.put("d/middle", b"m")
        result = self.scanned()
        found = {file.path: file for file in result.index.files}
        for name, size in sizes.items():
            hashes = b"".join(KIND.hash(content[at : min(at + 32768, size)]) for at in range(0, size, 32768))
            self.assertEqual(found[f"/d/{name}"], File(f"/d/{name}", name == "odd", size, hashes))
        self.assertEqual((result.files, result.bytes), (5, sum(sizes.values()) + 1))
        self.assertEqual(emit(KIND, result.index.directories), (result.index.image, result.data))

    def test_hole_and_unaligned_piece(self) -> None:
        """Sparse files have blocks of zeros like any other."""
        with self.put("sparse").open("r+b") as sparse:
            sparse.truncate(walk.PIECE_BYTES + 5)
        file = self.scanned().index.files[0]
        self.assertEqual(file.block_count, walk.PIECE_BYTES // 32768 + 1)
        self.assertEqual({file.block_hash(number) for number in range(file.block_count - 1)}, {KIND.hash(bytes(32768))})
        self.assertEqual(file.block_hash(file.block_count - 1), KIND.hash(bytes(5)))

    def test_deep_trees_need_no_recursion(self) -> None:
        """A directory deep below another is read level by level, up to the limit that every node has."""
        self.put("/".join(["d"] * 63) + "/x", b"x")
        self.assertEqual(self.scanned().dirs, 64)
        self.put("/".join(["d"] * 63) + "/y/z", b"x")
        self.refused("64 levels", "/d/d/d")

    def test_long_paths(self) -> None:
        """A path that no request can carry is refused before hours of hashing, with its name."""
        self.addCleanup(shutil.rmtree, self.root)  # trial cannot remove such paths
        fd = os.open(self.root, os.O_DIRECTORY)
        for _ in range(16):
            os.mkdir("n" * 255, dir_fd=fd)
            below = os.open("n" * 255, os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("x", os.O_CREAT, dir_fd=fd))
        os.close(fd)
        self.refused("4096 bytes", "nnn")


class FaultTests(ScanCase):
    """What cannot be indexed is named, never silently left out."""

    def test_missing_root(self) -> None:
        """A typing mistake must not publish an empty directory over a good one."""
        for path, text in ((self.root / "nothing", "No such file"), (self.put("file"), "Not a directory")):
            done = scan(str(path), KIND, at_once, self.progress.append, Clock())
            error = self.failureResultOf(done, DiskError).value
            self.assertIn(str(path), str(error))
            self.assertIn(text, str(error))

    def test_names_that_are_not_utf8(self) -> None:
        """Such names stop reference daemons; the user has to learn which one it is."""
        os.mkdir(bytes(self.root / "sub"))
        Path(os.fsdecode(bytes(self.root / "sub") + b"/bad\xff")).touch()
        self.refused("/sub/bad\\xff", "UTF-8", "rename")

    def test_targets_that_are_not_utf8(self) -> None:
        """The same for targets of links."""
        os.symlink(b"\xff", bytes(self.root / "link"))
        self.refused("/link", "UTF-8")

    def test_unreadable(self) -> None:
        """A file that the user may not read would be missing on the servers."""
        self.put("sub/secret", b"x")
        real_open = os.open

        def denied(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if path in (b"secret", "secret"):
                raise PermissionError(13, "Permission denied", path)
            return real_open(path, flags, *args, **kwargs)

        self.patch(os, "open", denied)
        self.refused("/sub/secret", "Permission denied", "make it readable")

    def test_unreadable_directory(self) -> None:
        """And so would a whole directory."""
        self.put("sub/x", b"x")
        real_open = os.open

        def denied(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if path in (b"sub", "sub"):
                raise PermissionError(13, "Permission denied", path)
            return real_open(path, flags, *args, **kwargs)

        self.patch(os, "open", denied)
        self.refused("/sub:", "Permission denied", "make it readable")

    def test_read_error(self) -> None:
        """A bad disk must not give an index of what could be read."""
        self.put("bad", b"x" * 100)

        def broken(fd: int, size: int, offset: int) -> bytes:
            raise OSError(5, "Input/output error")

        self.patch(os, "pread", broken)
        self.refused("/bad", "Input/output error", "system log")

    def test_read_error_in_a_large_file(self) -> None:
        """The same in another thread."""
        self.put("d/bad", b"x" * (MIB + 1))

        def broken(fd: int, size: int, offset: int) -> bytes:
            raise OSError(5, "Input/output error")

        self.patch(os, "pread", broken)
        self.refused("/d/bad", "Input/output error")

    def test_too_large_for_an_index(self) -> None:
        """What every server would refuse is refused before it is signed."""
        self.put("x", b"x")
        self.patch(emit_module, "MAX_INDEX_BYTES", 150)
        self.refused(str(self.root), "split")

    def test_too_many_for_an_index(self) -> None:
        """The same for what would need too much memory on every server."""
        for number in range(20):
            self.put(str(number))
        self.patch(names, "MAX_LISTING_BYTES", 21 * 201)
        self.assertEqual(self.scanned().files, 20)
        self.patch(names, "MAX_LISTING_BYTES", 21 * 201 - 1)
        self.refused(str(self.root), "too many", "split")

    def test_long_names(self) -> None:
        """Some file systems allow longer names than those of the servers."""
        self.patch(walk, "MAX_COMPONENT_BYTES", 10)
        self.put("d/" + "n" * 10)
        self.scanned()
        self.put("d/" + "n" * 11)
        self.refused("/d/nnnnnnnnnnn", "10 bytes in a name", "rename")

    def test_progress_that_fails(self) -> None:
        """A mistake in the display must end the scan loudly instead of leaving it hanging."""

        def broken(_: ScanProgress) -> None:
            raise ValueError("display")

        self.put("x", b"x")
        for clock in (Clock(), Clock(1.0)):
            self.failureResultOf(scan(str(self.root), KIND, at_once, broken, clock), ValueError)


@shows("F54")
class ChangeTests(ScanCase):
    """A directory that does not hold still: half of an old file and half of a new one is neither."""

    def touch_while(self, function: str, action: Callable[[], object]) -> None:
        """Run ``action`` once, after the first call of ``os.function``."""
        real = getattr(os, function)
        waiting = [action]

        def disturbed(*args: Any) -> Any:
            result = real(*args)
            if waiting:
                waiting.pop()()
            return result

        self.patch(os, function, disturbed)

    def test_small_file_grows(self) -> None:
        """Bytes appended while it is read."""
        path = self.put("log", b"x" * 10)
        self.touch_while("pread", lambda: path.write_bytes(b"x" * 11))
        self.refused("/log", "changed", "sync again")

    def test_small_file_is_rewritten(self) -> None:
        """Same size, other content: only the time tells."""
        path = self.put("log", b"x" * 10)

        def rewrite() -> None:
            path.write_bytes(b"y" * 10)
            os.utime(path, ns=(1, 1))

        self.touch_while("pread", rewrite)
        self.refused("/log", "changed")

    def test_small_file_is_cut(self) -> None:
        """Fewer bytes than the system said."""
        path = self.put("log", b"x" * 10)
        real = os.fstat
        waiting = [lambda: os.truncate(path, 3)]

        def cut(fd: int) -> os.stat_result:
            result = real(fd)
            if result.st_size == 10 and waiting:
                waiting.pop()()
            return result

        self.patch(os, "fstat", cut)
        self.refused("/log", "changed")

    def test_large_file_changes(self) -> None:
        """A database that is written to all the time."""
        path = self.put("db", b"x" * (MIB + 1))
        for change in (lambda: os.truncate(path, 100), lambda: os.truncate(path, 2 * MIB), lambda: os.utime(path, ns=(1, 1))):
            path.write_bytes(b"x" * (MIB + 1))
            self.touch_while("pread", change)
            self.refused("/db", "changed")

    def test_fewer_bytes_than_the_size_says(self) -> None:
        """Some network file systems give less than they announce; the missing part must not pass for zeros or for nothing."""
        for name, size, function in (("small", 10, "pread"), ("large", MIB + 1, "pread")):
            path = self.put(name, b"x" * size)
            real = getattr(os, function)
            waiting = [b"x", b""]

            def short(*args: Any, real: Any = real, waiting: list[bytes] = waiting) -> Any:
                return waiting.pop(0) if waiting else real(*args)

            self.patch(os, function, short)
            self.refused(f"/{name}", "changed")
            path.unlink()

    def test_short_reads_are_continued(self) -> None:
        """A read may give less than was asked for without being at the end."""
        self.put("small", b"0123456789")
        real = os.pread
        self.patch(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
        self.assertEqual(self.scanned().index.files[0].hashes, KIND.hash(b"0123456789"))

    def test_file_vanishes(self) -> None:
        """Temporary files of another program."""
        self.put("a", b"x")
        path = self.put("b", b"x")
        self.touch_while("pread", path.unlink)
        self.refused("/b", "changed")

    def test_file_becomes_a_symlink(self) -> None:
        """Whoever may write to the directory must not lead the scan to a file that only the user can read."""
        self.put("a", b"x")
        path = self.put("b", b"x")

        def swap() -> None:
            path.unlink()
            path.symlink_to("/etc/passwd")

        self.touch_while("pread", swap)
        self.refused("/b", "changed")

    def test_file_becomes_a_fifo(self) -> None:
        """Opening a fifo for reading would wait for ever."""
        self.put("a", b"x")
        path = self.put("b", b"x")

        def swap() -> None:
            path.unlink()
            os.mkfifo(path)

        self.touch_while("pread", swap)
        self.refused("/b", "changed")

    def test_listed_twice(self) -> None:
        """Some file systems list a name twice while others write to the directory; the index must not have it twice."""
        self.put("d/x", b"x")
        real = SafeDir.entries
        self.patch(SafeDir, "entries", lambda directory: real(directory) * 2)
        self.refused("changed while it was read")

    def test_directory_becomes_a_symlink(self) -> None:
        """The same trick with a directory."""
        self.put("a", b"x")
        directory = self.root / "sub"
        directory.mkdir()

        def swap() -> None:
            directory.rmdir()
            directory.symlink_to("/etc")

        self.touch_while("pread", swap)
        self.refused("/sub", "changed")


class ThreadTests(ScanCase):
    """How work is handed to threads."""

    def test_threads_for_large_files(self) -> None:
        """One thread leaves half of the machine idle on large files, and two leave half of one with four cores."""
        self.assertIn(THREADS, range(2, 5))
        for threads in (2, 4):
            self.patch(scan_module, "THREADS", threads)
            self.large_by_threads(threads)

    def large_by_threads(self, most: int) -> None:
        self.small_pieces()
        content = bytes(range(256)) * 4096 * 4 + b"x" * MIB
        self.put("large", content)
        threads = Threads()
        done = self.start(threads)
        while threads.jobs:
            threads.run(last=True)
        self.assertEqual(threads.most, most)
        self.assertEqual(
            self.successResultOf(done).index.files[0].hashes,
            b"".join(KIND.hash(content[at : at + 32768]) for at in range(0, 5 * MIB, 32768)),
        )

    def test_one_thread_for_small_files(self) -> None:
        """A second thread makes small files slower."""
        for number in range(50):
            self.put(f"{number % 5}/{number}", b"x")
        threads = Threads()
        done = self.start(threads)
        while threads.jobs:
            threads.run()
        self.assertEqual(threads.most, 1)
        self.assertEqual(self.successResultOf(done).files, 50)

    def test_open_files_are_bounded(self) -> None:
        """A directory of thousands of videos must not use up the file descriptors."""
        for number in range(40):
            with self.put(f"{number:02}").open("r+b") as sparse:
                sparse.truncate(MIB + 1)
        before = open_fds()
        most = 0
        threads = Threads()
        done = self.start(threads)
        while threads.jobs:
            threads.jobs = deque(sorted(threads.jobs, key=lambda job: job[1].__name__ != "slice"))  # a walk that is always faster
            threads.run()
            most = max(most, open_fds() - before)
        self.assertEqual(self.successResultOf(done).files, 40)
        self.assertLessEqual(most, 2 * walk.BACKLOG_FILES + 2)
        self.assertGreater(most, 2)

    def test_progress(self) -> None:
        """A user in front of a large directory wants to see that it goes on; a display that is called for each file slows it down."""
        for number in range(100):
            self.put(f"{number % 3}/{number}", b"xy")
        clock = Clock(0.01)
        done = self.start(clock=clock)
        result = self.successResultOf(done)
        self.assertEqual(self.progress[-1], ScanProgress(4, 100, 0, 200))
        self.assertGreater(len(self.progress), 3)
        self.assertLess(len(self.progress), 12)
        counts = [(one.dirs, one.files, one.bytes) for one in self.progress]
        self.assertEqual(counts, sorted(counts))
        self.assertGreater(result.seconds, 1.0)

    def test_a_slow_step_does_not_hold_the_report(self) -> None:
        """Reports within one interval are dropped, not queued."""
        for number in range(10):
            self.put(str(number), b"x")
        self.successResultOf(self.start(clock=Clock(0.0)))
        self.assertEqual(len(self.progress), 1)

    def test_jobs_that_end_at_once(self) -> None:
        """A scan of many short jobs must not nest them into each other."""
        for number in range(600):
            self.put(f"{number}", b"x")
        self.assertEqual(self.successResultOf(self.start(clock=Clock(1.0))).files, 600)
        self.assertGreater(len(self.progress), 500)

    def test_cancel_while_walking(self) -> None:
        """Ctrl-C must not wait for a directory of a terabyte, and nothing may stay open."""
        for number in range(100):
            self.put(f"{number:03}", b"x")
        reads: list[int] = []
        real = os.pread

        def counted(fd: int, size: int, offset: int) -> bytes:
            reads.append(size)
            if len(reads) == 3:
                done.cancel()
            return real(fd, size, offset)

        self.patch(os, "pread", counted)
        threads = Threads()
        done = self.start(threads)
        threads.run()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(len(reads), 3)
        self.assertFalse(threads.jobs)

    def test_cancel_while_a_result_is_on_its_way(self) -> None:
        """Between the end of a job in its thread and the news of it on the reactor."""
        self.put("large", b"x" * (4 * MIB))
        threads = Threads()
        done = self.start(threads, Clock(1.0))
        news, f, args = threads.jobs.popleft()
        found = f(*args)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        news.callback(found)
        self.assertFalse(threads.jobs)
        self.assertEqual(self.progress, [])

    def test_cancel_while_hashing(self) -> None:
        """Nor for one file of a terabyte."""
        self.put("large", b"x" * (4 * MIB))
        self.put("other", b"x" * (4 * MIB))
        reads: list[int] = []
        real = os.pread

        def counted(fd: int, size: int, offset: int) -> bytes:
            reads.append(offset)
            if len(reads) == 2:
                done.cancel()
            return real(fd, size, offset)

        self.patch(os, "pread", counted)
        threads = Threads()
        done = self.start(threads)
        while threads.jobs:
            threads.run()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(len(reads), 2)

    def test_cancel_between_jobs(self) -> None:
        """Files that were opened by a job that ended after the cancel are closed as well."""
        self.put("large", b"x" * (4 * MIB))
        threads = Threads()
        done = self.start(threads, Clock(1.0))
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(len(threads.jobs), 1)
        threads.run()
        self.assertFalse(threads.jobs)
        self.assertEqual(self.progress, [])

    def test_cancel_while_the_index_is_built(self) -> None:
        """A result that comes too late is dropped."""
        self.put("x", b"x")
        threads = Threads()
        done = self.start(threads)
        threads.run()
        self.assertEqual(len(threads.jobs), 1)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        threads.run()
        self.assertEqual(self.progress, [])

    def test_failure_waits_for_the_other_thread(self) -> None:
        """A file must not be closed while the other thread still reads it; the first failure is the one that counts."""
        self.small_pieces()
        path = self.put("large", b"x" * (4 * MIB))
        threads = Threads()
        done = self.start(threads)
        threads.run()
        self.assertEqual(len(threads.jobs), 2)
        os.utime(path, ns=(1, 1))
        threads.run()
        self.assertNoResult(done)
        self.assertGreater(open_fds(), self.fds)
        threads.run()
        self.assertIn("changed", str(self.failureResultOf(done, DiskError).value))
