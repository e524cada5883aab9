"""Tests of ``ciruela.disk.hashcache`` and ``ciruela.disk.hashcache``, on real temporary directories."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher

from ciruela.disk import hashcache, syscalls, walk
from ciruela.disk.hashcache import KEY_BYTES, NEVER, CachedDirectory, HashCache, cache_home, decode, encode
from ciruela.disk.scan import Scan, scan
from ciruela.index.digest import HashKind
from ciruela.index.parse import parse
from ciruela.model.errors import DiskError, FormatError
from tests.disk.test_scan import Clock, ScanCase, at_once
from tests.index.examples import KIND
from tests.proof import shows

LATER_NS = 3_000_000_000
"""So long after the files were made the scans of these tests believe to be: more than ``known.REST_NS``."""


class CacheCase(ScanCase):
    """A directory, caches beside it, and which files were read."""

    def setUp(self) -> None:
        super().setUp()
        self.home = Path(self.mktemp())
        self.home.mkdir()
        self.ahead_ns = LATER_NS
        self.reads: list[str] = []
        real = os.open

        def noted(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if kwargs.get("dir_fd") is not None and not flags & os.O_DIRECTORY and not flags & os.O_CREAT and flags & os.O_NOFOLLOW:
                self.reads.append(os.fsdecode(path))
            return real(path, flags, *args, **kwargs)

        self.patch(os, "open", noted)
        syscalls._warned.discard("hash cache")

    def now_ns(self) -> int:
        """The wall time that the scans are told: that of the file system, and some more."""
        probe = self.home / "probe"
        probe.write_bytes(b"")
        found = probe.stat().st_mtime_ns
        probe.unlink()
        return found + self.ahead_ns

    def caches(self) -> HashCache:
        return HashCache(str(self.home), self.now_ns)

    def again(self, kind: HashKind = KIND) -> Scan:
        """Scan with the caches, which gives what a scan without gives."""
        done = scan(str(self.root), kind, at_once, self.progress.append, Clock(), self.caches())
        result = self.successResultOf(done)
        plain = self.successResultOf(scan(str(self.root), kind, at_once, lambda _: None, Clock()))
        self.assertEqual((result.data, result.image, result.warnings), (plain.data, plain.image, plain.warnings))
        self.assertEqual((result.dirs, result.files, result.symlinks, result.bytes), (plain.dirs, plain.files, plain.symlinks, plain.bytes))
        return result

    def read_again(self, kind: HashKind = KIND) -> list[str]:
        """The names of the files that a scan reads, with the caches as they are."""
        self.reads.clear()
        self.successResultOf(scan(str(self.root), kind, at_once, self.progress.append, Clock(), self.caches()))
        names = sorted(name for name in self.reads if not hashcache._NAME.fullmatch(name))
        self.again(kind)
        return names

    def files(self) -> list[Path]:
        """The caches on the disk."""
        return sorted((self.home / "ciruela").glob("*")) if (self.home / "ciruela").exists() else []

    def content(self) -> dict[tuple[int, int], CachedDirectory]:
        """What the only cache holds."""
        (path,) = self.files()
        return decode(path.read_bytes(), KIND)[1]


class UnkeptTests(CacheCase):
    """What no image keeps of a file is told, whether the file is read or known."""

    def plant(self) -> None:
        """Two files with the bits, a name and a half that are links, and what is usual."""
        self.put("bin/su", b"x", 0o4755)
        self.put("bin/write", b"x", 0o2755)
        self.put("a/one", b"1")
        os.link(self.root / "a/one", self.root / "a/two")
        os.link(self.root / "a/one", self.root / "b")
        os.link(self.put("outside", b"2"), self.home / "elsewhere")
        (self.root / "a/link").symlink_to("one")

    @shows("W4")
    def test_told(self) -> None:
        """A server would run a program without its rights, or hold three copies, and nobody was told that an image has neither."""
        self.plant()
        for _ in range(3):
            hard, bits = self.again().unkept
            self.assertRegex(hard, r"\Ahard links \(2 files, as /(a/one|a/two|b)\)\Z")
            self.assertRegex(bits, r"\Asetuid or setgid bits \(2 files, as /bin/(su|write)\)\Z")
        self.assertEqual(self.read_again(), [])
        self.put("bin/new", b"y")
        self.assertEqual(
            [part.partition(",")[0] for part in self.again().unkept], ["hard links (2 files", "setuid or setgid bits (2 files"]
        )

    @shows("W4")
    def test_nothing_to_tell(self) -> None:
        """A note at each sync of a usual directory is one that nobody reads."""
        self.make_features()
        os.link(self.put("outside", b"2"), self.home / "elsewhere")
        self.assertEqual((self.again().unkept, self.again().unkept), ((), ()))

    @shows("W4")
    def test_attributes(self) -> None:
        """A program would lose its capabilities on the way; labels that the system gives to each file are none of them."""
        self.put("ping", b"x", 0o755)
        self.put("usual", b"x", 0o755)
        self.put("odd", b"x")
        said = {b"x": ["security.selinux"]}
        self.patch(os, "listxattr", lambda fd: said[b"x"])
        self.assertEqual(self.scanned().unkept, ())
        said[b"x"] = ["security.selinux", "security.capability"]
        self.assertRegex(self.scanned().unkept[0], r"\Aextended attributes \(3 files, as /(ping|odd|usual)\)\Z")
        self.patch(walk, "ATTRIBUTES_OF", 0)
        self.assertIn("(2 files", self.scanned().unkept[0])

        def refuse(_: int) -> list[str]:
            raise OSError(errno.ENOTSUP, "not here")

        self.patch(os, "listxattr", refuse)
        self.assertEqual(self.scanned().unkept, ())


class HitTests(CacheCase):
    """An unchanged file is not read again, and the index is the same."""

    def test_nothing_changed(self) -> None:
        """Without this every sync of a large tree costs as much as the first one."""
        self.make_features()
        first = self.again()
        self.assertEqual(self.read_again(), [])
        again = self.again()
        self.assertEqual((again.data, again.index), (first.data, first.index))
        self.assertEqual(parse(again.data, again.image), first.index)
        self.assertEqual(self.progress[-1].files, 7)

    def test_unchanged_cache_is_not_written(self) -> None:
        """Writing it again each time would cost more than reading it."""
        self.make_features()
        self.again()
        (before,) = [path.stat().st_ino for path in self.files()]
        self.again()
        self.assertEqual([path.stat().st_ino for path in self.files()], [before])

    def test_one_file_changed(self) -> None:
        """Only what is new is read, in a directory with others."""
        self.make_features()
        self.put("a/b/large", b"l" * (walk.LARGE_BYTES + 1))
        self.again()
        self.put("a/b/back\\slash", b"y")
        self.put("a/b/new", b"n")
        self.assertEqual(self.read_again(), ["back\\slash", "new"])
        self.assertEqual(self.read_again(), [])

    def test_large_file(self) -> None:
        """Large files are where a cache saves most."""
        self.small_pieces()
        path = self.put("d/large", bytes(range(256)) * 4096 * 3)
        self.again()
        self.assertEqual(self.read_again(), [])
        with path.open("r+b") as file:
            file.write(b"other")
        self.assertEqual(self.read_again(), ["large"])

    def test_moved_directory(self) -> None:
        """A build that is renamed into place is the same build; its paths have to be the new ones."""
        self.make_features()
        self.again()
        (self.root / "a").rename(self.root / "z")
        self.assertEqual(self.read_again(), [])
        self.assertIn(b"/z/b\n", self.again().data)

    def test_moved_too_deep(self) -> None:
        """What fitted into an index where it was must not get into one where it does not."""
        self.put("a/" + "/".join(["d"] * 60) + "/x", b"x")
        self.again()
        (self.root / "1/2/3").mkdir(parents=True)
        (self.root / "a").rename(self.root / "1/2/3/a")
        done = scan(str(self.root), KIND, at_once, self.progress.append, Clock(), self.caches())
        self.assertIn("64 levels", str(self.failureResultOf(done, DiskError).value))

    def test_names_that_became_too_long(self) -> None:
        """The same with the length of a path."""
        self.addCleanup(shutil.rmtree, self.root)
        top = "/".join(["n" * 200] * 18)
        self.put(f"{top}/{'f' * 250}", b"x")
        self.again()
        (self.root / ("n" * 200)).rename(self.root / "m")
        (self.root / ("o" * 250)).mkdir()
        (self.root / "m").rename(self.root / ("o" * 250) / ("n" * 200))
        done = scan(str(self.root), KIND, at_once, self.progress.append, Clock(), self.caches())
        self.assertIn("4096 bytes", str(self.failureResultOf(done, DiskError).value))

    def test_links_and_directories(self) -> None:
        """Links and empty directories come and go like files."""
        self.make_features()
        self.again()
        (self.root / "a/link").unlink()
        (self.root / "a/link").symlink_to("elsewhere")
        (self.root / "empty").rmdir()
        (self.root / "empty2").mkdir()
        self.assertEqual(self.read_again(), [])

    def test_directory_becomes_a_file_and_back(self) -> None:
        """A name that stays while everything else about it changes."""
        self.make_features()
        self.again()
        shutil.rmtree(self.root / "a")
        self.put("a", b"file")
        self.assertEqual(self.read_again(), ["a"])
        (self.root / "a").unlink()
        self.put("a/b", b"dir")
        self.assertEqual(self.read_again(), ["b"])

    def test_executable(self) -> None:
        """A file that only became executable is another file on the servers."""
        path = self.put("run", b"#!")
        self.again()
        path.chmod(0o755)
        self.assertEqual(self.read_again(), ["run"])
        self.assertIn(b"  run x 2 ", self.again().data)

    def test_special_files(self) -> None:
        """What was left out the first time has to be told the second time too."""
        self.put("x", b"x")
        os.mkfifo(self.root / "pipe")
        self.again()
        self.assertEqual(len(self.again().warnings), 1)
        self.assertEqual(self.read_again(), [])

    def test_hash_kinds(self) -> None:
        """The hashes of one function are not those of another."""
        self.make_features()
        self.again(HashKind.BLAKE2B)
        self.assertNotEqual(self.read_again(HashKind.BLAKE3), [])
        self.assertEqual(self.read_again(HashKind.BLAKE2B), [])
        self.assertEqual(len(self.files()), 2)

    def test_odd_names(self) -> None:
        """Names are kept byte by byte."""
        for name in ("new\nline", "ü", "e\u0301", " ", "\x01\x7f", "a\\x20b", "x" * 255):
            self.put(f"dir {name}"[:200] + "/" + name, name.encode())
        self.again()
        self.assertEqual(self.read_again(), [])

    def test_without_caches(self) -> None:
        """``--no-cache`` neither reads nor writes one."""
        self.make_features()
        self.again()
        before = [(path, path.read_bytes(), path.stat().st_ino) for path in self.files()]
        self.reads.clear()
        self.scanned()
        self.assertEqual(len(self.reads), 7)
        self.put("new", b"new")
        self.scanned()
        self.assertEqual([(path, path.read_bytes(), path.stat().st_ino) for path in self.files()], before)


class ChangeTests(CacheCase):
    """Whatever could have changed is read again: a stale hash would pass an old version off as the new one."""

    def test_same_size_and_mtime(self) -> None:
        """Tools put the mtime back after they wrote; only the ctime tells."""
        path = self.put("x", b"old")
        self.again()
        before = path.stat()
        path.write_bytes(b"new")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        self.assertEqual((after.st_size, after.st_mtime_ns, after.st_ino), (before.st_size, before.st_mtime_ns, before.st_ino))
        self.assertEqual(self.read_again(), ["x"])

    def test_each_part_of_the_key(self) -> None:
        """Another inode, device, size, mtime or ctime is another file."""
        self.put("x", b"x")
        found = (self.root / "x").stat()
        names = ("st_ino", "st_dev", "st_size", "st_mtime_ns", "st_ctime_ns")
        for changed in names:

            class Other:
                """As ``found`` but for one number."""

            other: Any = Other()
            for name in names:
                setattr(other, name, getattr(found, name) + (name == changed))
            self.assertNotEqual(hashcache.keys_of([other]), hashcache.keys_of([found]), changed)
            self.assertNotEqual(hashcache.key_of(other), hashcache.key_of(found), changed)
        self.assertEqual(hashcache.key_of(found), hashcache.keys_of([found]))
        self.assertEqual(len(hashcache.key_of(found)), KEY_BYTES)

    def test_replaced_file(self) -> None:
        """A new file under the old name, with size and mtime of the old one, as ``mv`` and package tools leave it."""
        path = self.put("x", b"old")
        self.again()
        before = path.stat()
        self.put("y", b"new").rename(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual(self.read_again(), ["x"])

    def test_racy(self) -> None:
        """A write within one tick of the clock leaves no trace in the times, so what was just written is not believed the next time."""
        self.put("old", b"x")
        self.ahead_ns = 1_900_000_000
        self.again()
        self.assertEqual(self.read_again(), ["old"])
        self.ahead_ns = LATER_NS
        self.assertEqual(self.read_again(), ["old"])
        self.assertEqual(self.read_again(), [])

    def test_racy_link_and_large_file(self) -> None:
        """The same for links and for files that are hashed in pieces."""
        (self.root / "link").symlink_to("old")
        self.put("large", b"x" * (walk.LARGE_BYTES + 1))
        self.ahead_ns = 1_000_000_000
        self.again()
        (one,) = self.content().values()
        self.assertEqual(one.keys, NEVER * 2)

    def test_racy_by_one_time(self) -> None:
        """Either time counts: an mtime in the future says that clocks differ."""
        path = self.put("x", b"x")
        ahead = path.stat().st_mtime_ns + 3600 * 1_000_000_000
        os.utime(path, ns=(ahead, ahead))
        self.again()
        self.assertEqual(self.read_again(), ["x"])
        os.utime(path, ns=(1, 1))
        self.ahead_ns = 0
        self.read_again()
        self.assertEqual(self.read_again(), ["x"])

    def test_clock_set_back(self) -> None:
        """After that the times of new writes may be those of old ones."""
        self.put("x", b"x")
        self.again()
        self.ahead_ns = LATER_NS - 3600 * 1_000_000_000
        self.assertEqual(self.read_again(), ["x"])

    def test_other_file_systems(self) -> None:
        """A network file system may tell old times, or those of another clock: nothing on it is believed unread."""
        self.make_features()
        self.patch(syscalls, "file_system_type", lambda fd: 0x6969)  # NFS
        self.again()
        self.assertEqual(len(self.read_again()), 7)
        self.assertEqual(self.content_keys(), 0)

    def content_keys(self) -> int:
        """How many files the caches hold."""
        return sum(one.count for path in self.files() for one in decode(path.read_bytes(), KIND)[1].values())

    def test_type_of_the_file_system(self) -> None:
        """It is asked of the system: a file system that cannot be asked is none of those that are known."""
        fd = os.open("/proc", os.O_DIRECTORY)
        try:
            self.assertEqual(syscalls.file_system_type(fd), 0x9FA0)
        finally:
            os.close(fd)
        self.assertEqual(syscalls.file_system_type(fd), 0)

    def test_changed_while_it_is_read(self) -> None:
        """The times that are kept are those from before the reading."""
        path = self.put("x", b"old")
        os.utime(path, ns=(1, 1))
        real = os.pread
        waiting = [1]

        def disturbed(fd: int, size: int, offset: int) -> bytes:
            data = real(fd, size, offset)
            if waiting and data == b"old":
                waiting.pop()
                path.write_bytes(b"new")
                os.utime(path, ns=(1, 1))
            return data

        self.patch(os, "pread", disturbed)
        self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock(), self.caches()))
        self.assertEqual(waiting, [])
        self.assertEqual(self.read_again(), ["x"])

    def test_dropped(self) -> None:
        """A file that was found otherwise than known is read the next time, and only that one."""
        self.make_features()
        self.again()
        self.caches().drop(str(self.root), KIND, ["/a/b/back\\slash", "/README", "/no/such", "/a/none", "/a/b"])
        self.assertEqual(self.read_again(), ["README", "back\\slash"])
        self.assertEqual(self.read_again(), [])

    def test_dropped_root(self) -> None:
        """A directory that is gone has nothing to forget."""
        self.caches().drop(str(self.root / "gone"), KIND, ["/x"])
        self.assertEqual(self.files(), [])


class FileTests(CacheCase):
    """The caches on the disk: nothing about them can make a sync fail, or lead it astray."""

    def logged(self, action: Callable[[], object]) -> list[tuple[LogLevel, str]]:
        """What is logged meanwhile."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        action()
        ours = [event for event in events if event.get("log_namespace") == "ciruela.disk.hashcache"]
        return [(event["log_level"], event["log_format"]) for event in ours]

    def test_home(self) -> None:
        """Where users expect it, by the specification of the desktops; nowhere when there is no place."""
        self.assertEqual(cache_home({"XDG_CACHE_HOME": "/x/y", "HOME": "/h"}), "/x/y")
        self.assertEqual(cache_home({"XDG_CACHE_HOME": "relative", "HOME": "/h/"}), "/h/.cache")
        self.assertEqual(cache_home({"HOME": "/h"}), "/h/.cache")
        self.assertIsNone(cache_home({"HOME": "h"}))
        self.assertIsNone(cache_home({}))

    def test_modes(self) -> None:
        """Names of files are nobody else's business."""
        shutil.rmtree(self.home)
        self.put("x", b"x")
        self.home.mkdir()
        self.again()
        self.assertEqual((self.home / "ciruela").stat().st_mode & 0o7777, 0o700)
        self.assertEqual([path.stat().st_mode & 0o7777 for path in self.files()], [0o600])

    def test_home_is_made(self) -> None:
        """A new user has no ~/.cache yet."""
        self.put("x", b"x")
        caches = HashCache(str(self.home / ".cache"), self.now_ns)
        self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock(), caches))
        self.assertEqual(len(list((self.home / ".cache/ciruela").iterdir())), 1)

    def test_damaged(self) -> None:
        """A damaged cache counts as none, whatever the damage."""
        self.make_features()
        self.again()
        (path,) = self.files()
        good = path.read_bytes()
        for at in (0, 20, 40, 70, 90, 200, len(good) - 1):
            bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
            path.write_bytes(bad)
            self.assertEqual(len(self.read_again()), 7, at)
        for bad in (b"", good[:-1], good + b"x", good[:30], b"\0" * 1000):
            path.write_bytes(bad)
            self.assertEqual([level for level, _ in self.logged(lambda: self.read_again())], [LogLevel.debug])
        self.assertEqual(self.read_again(), [])

    def test_foreign_version(self) -> None:
        """One of a later program, or of a machine with another order of bytes."""
        self.put("x", b"x")
        self.again()
        (path,) = self.files()
        path.write_bytes(path.read_bytes().replace(b"cache 1 ", b"cache 2 "))
        self.assertEqual(self.read_again(), ["x"])

    def test_other_kind_under_the_name(self) -> None:
        """A cache that was copied over another."""
        self.put("x", b"x")
        self.again(HashKind.BLAKE3)
        (path,) = self.files()
        self.again(HashKind.BLAKE2B)
        for one in self.files():
            one.write_bytes(path.read_bytes())
        self.assertEqual(self.read_again(HashKind.BLAKE2B), ["x"])

    def test_too_large(self) -> None:
        """A cache must not fill the memory."""
        self.put("x", b"x")
        self.again()
        self.patch(hashcache, "MOST_CACHE_BYTES", 50)
        self.assertEqual(self.read_again(), ["x"])
        self.assertEqual(self.logged(lambda: self.put("y", b"y") and self.read_again())[-1][0], LogLevel.debug)

    def test_unwritable(self) -> None:
        """A read-only home costs one warning and nothing else."""
        self.put("x", b"x")

        def denied(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        self.patch(os, "mkdir", denied)
        logged = self.logged(lambda: (self.again(), self.again()))
        self.assertEqual([level for level, _ in logged], [LogLevel.warn])
        self.assertEqual(self.files(), [])

    def test_no_space(self) -> None:
        """Half a cache is no cache, and is not left lying about."""
        self.put("x", b"x")
        self.again()
        (path,) = self.files()
        before = path.read_bytes()
        self.put("y", b"y")

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        self.patch(os, "pwrite", full)
        self.assertEqual(self.logged(lambda: self.again())[0][0], LogLevel.warn)
        self.assertEqual([(one, one.read_bytes()) for one in self.files()], [(path, before)])

    def test_not_ours(self) -> None:
        """Hashes from a cache get into what the user signs: nobody else may be able to put some there."""
        self.put("x", b"x")
        self.again()
        (path,) = self.files()
        for place in (path, self.home / "ciruela"):
            mode = place.stat().st_mode & 0o777
            for bad in (0o020, 0o002):
                place.chmod(mode | bad)
                self.reads.clear()
                self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock(), self.caches()))
                self.assertIn("x", self.reads)
                if place == path:
                    self.assertEqual(self.files()[0].stat().st_mode & 0o777, 0o600)
                place.chmod(mode)
        self.assertEqual(self.read_again(), [])
        real = os.geteuid()
        self.patch(os, "geteuid", lambda: real + 1)
        self.reads.clear()
        self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock(), self.caches()))
        self.assertIn("x", self.reads)

    def test_symlinks_are_not_followed(self) -> None:
        """A link in place of the cache leads nowhere."""
        self.put("x", b"x")
        self.again()
        (path,) = self.files()
        target = self.home / "target"
        path.rename(target)
        path.symlink_to(target.absolute())
        content = target.read_bytes()
        self.assertEqual(self.read_again(), ["x"])
        self.assertEqual(target.read_bytes(), content)
        self.assertFalse(path.is_symlink())

    def test_runs_at_the_same_time(self) -> None:
        """Two runs replace each other's cache as a whole; both are right, and so is the next."""
        self.make_features()
        self.again()
        runs = [0]
        real = hashcache._replace

        def meanwhile(directory: Any, name: str, data: bytes) -> None:
            runs[0] += 1
            if runs[0] == 1:
                self.put("README", b"meanwhile")
                self.again()
            real(directory, name, data)

        self.patch(hashcache, "_replace", meanwhile)
        self.put("zero", b"0")
        self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock(), self.caches()))
        self.assertEqual(runs, [2])
        self.assertEqual(self.read_again(), ["README"])
        self.assertEqual(self.read_again(), [])
        self.assertEqual(len(self.files()), 1)

    def test_old_ones_are_removed(self) -> None:
        """A machine that builds each time in a new directory must not collect caches for ever."""
        directory = self.home / "ciruela"
        directory.mkdir(mode=0o700)
        self.put("x", b"x")
        now_s = self.now_ns() / 1e9
        made = {"1-1.blake3-256": 31 * 86_400, "1-2.blake3-256": 29 * 86_400, ".new-0123456789abcdef": 4000, ".new-fedcba9876543210": 100}
        for name, age_s in {**made, "stranger": 100 * 86_400}.items():
            (directory / name).write_bytes(b"x")
            os.utime(directory / name, (now_s - age_s, now_s - age_s))
        self.again()
        left = {path.name for path in self.files()}
        self.assertLessEqual({"1-2.blake3-256", ".new-fedcba9876543210", "stranger"}, left)
        self.assertEqual(len(left), 4)

    def test_too_many_are_removed(self) -> None:
        """And not too many in a month, nor too much."""
        directory = self.home / "ciruela"
        directory.mkdir(mode=0o700)
        self.put("x", b"x")
        now_s = self.now_ns() / 1e9
        for number in range(1, 6):
            (directory / f"1-{number}.blake3-256").write_bytes(b"x" * 1000)
            os.utime(directory / f"1-{number}.blake3-256", (now_s - 100 * number, now_s - 100 * number))
        self.patch(hashcache, "MOST_CACHES", 4)
        self.again()
        self.assertEqual(
            [path.name for path in self.files() if path.name.startswith("1-")], [f"1-{number}.blake3-256" for number in (1, 2, 3)]
        )
        self.patch(hashcache, "MOST_BYTES", 2500)
        self.put("y", b"y")
        self.again()
        self.assertEqual(
            [path.name for path in self.files() if path.name.startswith("1-")], [f"1-{number}.blake3-256" for number in (1, 2)]
        )

    def test_used_ones_stay(self) -> None:
        """The age of a cache counts from its last use: a tree that never changes is synced each week."""
        self.put("x", b"x")
        self.again()
        (path,) = self.files()
        old = path.stat().st_mtime - 2 * 86_400
        os.utime(path, (old, old))
        self.again()
        self.assertGreater(path.stat().st_mtime, old + 86_400)
        recent = path.stat().st_mtime - 3600
        os.utime(path, (recent, recent))
        self.again()
        self.assertEqual(int(path.stat().st_mtime), int(recent))


class FormatTests(ScanCase):
    """The bytes of a cache."""

    ONE = CachedDirectory(b"b\0d\0a", b"d", bytes(2 * KEY_BYTES), b"  a f 0\n  b s c\n", 1, 0)

    def test_round_trip(self) -> None:
        """What is written can be read, for every kind."""
        for kind in HashKind:
            content = {(1, 2): self.ONE, (1 << 63, (1 << 64) - 1): CachedDirectory(b"", b"", b"", b"", 0, 0)}
            self.assertEqual(decode(encode(kind, 5, content), kind), (5, content))
        self.assertEqual(hashcache.by_name(self.ONE), {"a": (bytes(KEY_BYTES), "  a f 0"), "b": (bytes(KEY_BYTES), "  b s c")})

    def test_contradictions(self) -> None:
        """Records that do not agree with themselves would give files the hashes of others."""
        for one in (
            CachedDirectory(b"b\0a", b"", bytes(KEY_BYTES), b"  a f 0\n", 1, 0),
            CachedDirectory(b"a", b"", bytes(KEY_BYTES), b"  a f 0\n  b f 0\n", 1, 0),
            CachedDirectory(b"a", b"", bytes(KEY_BYTES), b"  a f 0\n", 2, 0),
            CachedDirectory(b"", b"", bytes(KEY_BYTES), b"  a f 0\n", 1, 0),
            CachedDirectory(b"a\0b", b"c", bytes(KEY_BYTES), b"  a f 0\n", 1, 0),
            CachedDirectory(b"\xff", b"", bytes(KEY_BYTES), b"  a f 0\n", 1, 0),
            CachedDirectory(b"a\0b", b"\xff", bytes(KEY_BYTES), b"  a f 0\n", 1, 0),
            CachedDirectory(b"a", b"", bytes(KEY_BYTES), b"  \xff f 0\n", 1, 0),
        ):
            self.assertRaises(FormatError, decode, encode(KIND, 5, {(1, 2): one}), KIND)

    @settings(derandomize=True, deadline=None, database=None, max_examples=100)
    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        """Whatever lies there is refused in an orderly way."""
        self.assertRaises(FormatError, decode, data, KIND)

    def test_numbers_that_do_not_fit(self) -> None:
        """A file system with inodes beyond 63 bits has nothing that is known, and is no error."""

        class Odd:
            st_ino = 1 << 63
            st_dev = st_size = st_mtime_ns = st_ctime_ns = 1

        odd: Any = Odd()
        self.assertEqual((hashcache.keys_of([odd]), hashcache.key_of(odd), hashcache.rested_key(odd, 100)), (b"", b"", NEVER))
