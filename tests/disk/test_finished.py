"""What a commit reads of the files that the same process has written, and what it notices without reading."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import finished
from ciruela.disk.finished import SAMPLED
from ciruela.disk.layout import place
from ciruela.disk.openfile import STAMP_NS, TICK_NS, OpenFile
from ciruela.disk.reuse import FRESH_MODE
from ciruela.disk.store import Store
from ciruela.index.digest import BLOCK_BYTES
from ciruela.interfaces import Pending, Staging
from ciruela.model.config import STANDARD, CommitCheck, Fsync
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.upload import AbortReason, Command
from tests.disk.bench import CONFIGS, V1, V2, Bench, done
from tests.disk.trees import Spec, blocks_of, flat, in_place, index_bytes, state_of
from tests.doubles import simos_disks
from tests.proof import shows

LARGE = random.Random(8).randbytes(3 * BLOCK_BYTES + 5)
HUGE = random.Random(9).randbytes(finished.READ_BYTES + 7)
SPEC: Spec = {
    "/large": LARGE,
    "/sub/small*": b"small",
    "/twice": b"small",
    "/empty": b"",
    "/link": "small",
    "/zero": bytes(2 * BLOCK_BYTES),
}
ALL = {"large": len(LARGE), "small": 5, "twice": 5, "zero": 2 * BLOCK_BYTES}
LAST = {"large": 5, "zero": BLOCK_BYTES}
"""Read of ``SPEC`` when nothing was touched: the last blocks of large files."""


class FinishedCase(SynchronousTestCase):
    """A store on a disk in memory, on which each change is a millisecond later than the one before."""

    def setUp(self) -> None:
        # The sample is a block that the small images here do not have, but for the tests of it.
        if "sample" not in self.id():
            self.patch(finished, "SAMPLED", 1 << 40)
        self.bench = Bench()
        self.sim = self.bench.sim
        self.sim.install(self)
        self.use(SPEC)

    siblings: Spec | None = None
    vpath = V1

    def use(self, spec: Spec) -> None:
        self.spec = spec
        self.index, self.data = index_bytes(spec)
        self.blocks = blocks_of(spec, self.index)

    def at(self, path: str) -> str:
        """The path of a staged file."""
        where = place(CONFIGS, self.vpath)
        return "/".join(("/n/srv/web", where.staging(self.index.image) + path))

    def staged(self) -> Staging:
        vpath = self.vpath
        self.successResultOf(self.bench.store.write_pending(Pending(vpath, state_of(self.index), Command.REPLACE)))
        self.successResultOf(self.bench.store.write_index(self.index.image, self.data))
        opened: Staging = self.successResultOf(self.bench.store.stage(vpath, self.index))
        return opened

    def written(self) -> Staging:
        """All blocks are here, and rest."""
        staging = self.staged()
        self.assertTrue(all(self.successResultOf(staging.write(self.blocks))))
        self.sim.sleep(1)
        return staging

    @contextmanager
    def reading(self) -> Iterator[dict[str, int]]:
        """The bytes that are read meanwhile of each file of the image, by its name."""
        names = {path.removesuffix("*").rpartition("/")[2] for path in self.spec | (self.siblings or {})}
        seen: dict[str, int] = {}
        read_at = OpenFile.read_at

        def noted(opened: OpenFile, size: int, offset: int) -> bytes:
            name = opened.where.rpartition("/")[2]
            if name in names:
                seen[name] = seen.get(name, 0) + size
            return read_at(opened, size, offset)

        with mock.patch.object(OpenFile, "read_at", noted):
            yield seen

    def commit(self, staging: Staging) -> dict[str, int]:
        """Commit; returns how many bytes are read of each file."""
        with self.reading() as seen:
            self.successResultOf(staging.commit(state_of(self.index)))
        self.assertTrue(self.bench.tree(self.vpath) == flat(self.spec))
        wrong = [at for at, inode in self.sim.inodes(str(place(CONFIGS, self.vpath))) if inode.is_file and inode.modified_ns != STAMP_NS]
        self.assertEqual(wrong, [])
        return seen

    def refused(self, staging: Staging, why: str = "") -> None:
        failed = self.failureResultOf(staging.commit(state_of(self.index)), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.COMMIT_ERROR)
        self.assertIn(why, str(failed))
        self.assertTrue(self.bench.tree(self.vpath) is None)

    def overwrite(self, path: str, *, put_back: bool = True) -> None:
        """Change one byte, as an editor does that keeps size and mtime."""
        fd = self.sim.open(path, os.O_RDWR)
        self.sim.pwrite(fd, b"?", 1)
        if put_back:
            self.sim.utime(fd, ns=(STAMP_NS, STAMP_NS))
        self.sim.close(fd)


class Untouched(FinishedCase):
    def test_not_read(self) -> None:
        """Each byte would be read and hashed a second time: a quarter of the processor time of a node."""
        self.assertEqual(self.commit(self.written()), LAST)

    @shows("I1")
    def test_late_block(self) -> None:
        """A thread that is still at work when a download ends would write through descriptors that are another file's by then."""
        staging = self.staged()
        self.assertEqual(staging.write_here(self.blocks[:1]), [True])
        staging.close()
        failed = self.assertRaises(DiskError, staging.write_here, self.blocks[1:])
        self.assertIn("closed", str(failed))
        self.successResultOf(staging.discard())
        self.assertEqual(self.assertRaises(DiskError, staging.write_here, self.blocks[1:]).args, failed.args)

    def test_one_open(self) -> None:
        """A small file would be opened a second time for its mode and its times, and at the commit."""
        opened: list[str] = []
        before = self.sim.open

        def noted(path: str | bytes, flags: int, *rest: int, **named: int) -> int:
            opened.append(os.fsdecode(path))
            return before(path, flags, *rest, **named)

        with mock.patch.object(self.sim, "open", noted):
            self.commit_without_syncing()
        self.assertEqual(sorted(name for name in opened if name in ("small", "twice")), ["small", "twice"])

    def commit_without_syncing(self) -> None:
        """Where few files are synced one by one, each is opened for that."""
        self.bench.store = Store("/n/db", CONFIGS, in_place, replace(STANDARD, fsync=Fsync.NONE))
        self.commit(self.written())

    def test_full(self) -> None:
        """Who wants everything read before it is shown would not get it."""
        self.bench.store = Store("/n/db", CONFIGS, in_place, replace(STANDARD, verify_before_commit=CommitCheck.FULL))
        self.assertEqual(self.commit(self.written()), ALL)

    def test_in_pieces(self) -> None:
        """A large file that comes out of order, with others between, would be read as if somebody had written to it."""
        staging = self.staged()
        for block in random.Random(3).sample(self.blocks, len(self.blocks)):
            self.successResultOf(staging.write([block]))
        self.sim.sleep(1)
        self.assertEqual(self.commit(staging), LAST)

    def test_prepared(self) -> None:
        """The operator's check would cost a second look at each file, or be followed by reading all of them."""
        staging = self.written()
        self.successResultOf(staging.prepare())
        self.assertEqual(self.commit(staging), LAST)

    def test_read_meanwhile(self) -> None:
        """A file of which blocks were given to others, which sets its access time, would be read once more."""
        staging = self.written()
        for _, inode in self.sim.inodes(self.at("/large")):
            inode.accessed_ns += 1
        self.assertEqual(self.commit(staging), LAST)

    def test_just_written(self) -> None:
        """A change in the tick of the clock in which a small file was finished would be shown."""
        staging = self.written()
        self.sim.sleep(-1)
        self.assertEqual(self.commit(staging), ALL)

    def test_large_just_written(self) -> None:
        """A large file would always be read: the commit follows its last block at once."""
        self.use({"/huge": HUGE})
        staging = self.written()
        self.sim.sleep(-1)
        began_ns = self.sim.time_ns()
        self.assertEqual(self.commit(staging), {"huge": 7})
        self.assertLess(self.sim.time_ns() - began_ns, 10 * TICK_NS)

    @shows("I1")
    def test_sample(self) -> None:
        """A mistake of ours that writes a block to a wrong place would never be noticed."""
        self.use({f"/f{number}": b"%d" % number for number in range(2 * SAMPLED)})
        read = self.commit(self.written())
        self.assertEqual(len(read), 2)

    @shows("I1")
    def test_last_block(self) -> None:
        """A large file that was cut off below the file system would be shown; one flipped bit stands for it here."""
        staging = self.written()
        self.sim.bit_flip(self.at("/large"), len(LARGE) - 1)
        self.refused(staging, "/large: block 3 is missing or wrong")


class Touched(FinishedCase):
    """Somebody writes to the staging directory, which only root and the daemon's own user can."""

    @shows("I1", "A50")
    def test_written_to(self) -> None:
        """Content that nobody uploaded would be shown."""
        for path in ("/large", "/sub/small", "/twice", "/zero"):
            for put_back in (True, False):
                staging = self.written()
                self.overwrite(self.at(path), put_back=put_back)
                self.sim.sleep(1)
                self.refused(staging, f"{path}: block 0 is missing or wrong")
                self.successResultOf(staging.discard())

    @shows("I1", "A50")
    def test_between_two_blocks(self) -> None:
        """What was written between two blocks of a file would count as ours after the second one."""
        staging = self.staged()
        self.successResultOf(staging.write(self.blocks[:2]))
        self.overwrite(self.at("/large"))
        self.successResultOf(staging.write(self.blocks[2:]))
        self.sim.sleep(1)
        self.refused(staging, "/large: block 0 is missing or wrong")

    @shows("I1", "A50")
    def test_in_the_same_tick(self) -> None:
        """On a kernel with a coarse clock a change right after ours would have the same ctime; its mtime tells."""
        for most in (2, len(self.blocks)):
            staging = self.staged()
            with mock.patch.object(simos_disks, "TICK_NS", 0):
                self.successResultOf(staging.write(self.blocks[:most]))
                self.overwrite(self.at("/large"), put_back=False)
            self.successResultOf(staging.write(self.blocks[most:]))
            self.sim.sleep(1)
            self.refused(staging, "/large: block 0 is missing or wrong")
            self.successResultOf(staging.discard())

    @shows("I1", "A50", "F40")
    def test_clock_set_back(self) -> None:
        """With a clock that was set back a change would pass for an old one."""
        staging = self.written()
        self.sim.sleep(-3600)
        self.assertEqual(self.commit(staging), ALL, "nothing can be told by times that are still to come")
        self.bench.restart()
        self.use({**SPEC, "/more": b"more"})
        staging = self.written()
        self.sim.sleep(-3600)
        self.overwrite(self.at("/large"))
        failed = self.failureResultOf(staging.commit(state_of(self.index)), DownloadFailed).value
        self.assertIn("/large: block 0 is missing or wrong", str(failed))

    @shows("I1", "A57")
    def test_restart(self) -> None:
        """What another process wrote, or a power cut left, would be shown unread."""
        staging = self.written()
        staging.close()
        self.bench.restart()
        staging = self.staged()
        self.assertEqual(len(self.successResultOf(staging.keep())), len(self.blocks))
        self.sim.sleep(1)
        self.assertEqual(self.commit(staging), ALL)

    @shows("I1", "A57")
    def test_restart_in_the_middle_of_a_file(self) -> None:
        """Blocks that were there after a restart would count as ours when the file is finished."""
        staging = self.staged()
        self.successResultOf(staging.write(self.blocks[:2]))
        staging.close()
        self.bench.restart()
        staging = self.staged()
        self.assertEqual(len(self.successResultOf(staging.keep())), 2)
        self.overwrite(self.at("/large"))
        self.successResultOf(staging.write(self.blocks[2:]))
        self.sim.sleep(1)
        self.refused(staging, "/large: block 0 is missing or wrong")

    @shows("I1", "A50")
    def test_replaced(self) -> None:
        """Another file with the same size, mode and mtime would be shown in its place."""
        staging = self.written()
        at = self.at("/twice")
        self.sim.unlink(at)
        self.sim.write(at, b"SMALL", 0o644)
        fd = self.sim.open(at, os.O_RDWR)
        self.sim.utime(fd, ns=(STAMP_NS, STAMP_NS))
        self.sim.close(fd)
        self.sim.sleep(1)
        self.refused(staging, "/twice: block 0 is missing or wrong")

    @shows("I1", "A50")
    def test_replaced_in_the_middle(self) -> None:
        """A file that was replaced while its blocks came would be finished with those that it lacks."""
        staging = self.staged()
        self.successResultOf(staging.write(self.blocks[:2]))
        at = self.at("/large")
        self.sim.unlink(at)
        self.failureResultOf(staging.prepare(), DownloadFailed)  # lets go of the open file, and finds that it is not there
        self.successResultOf(staging.write(self.blocks[2:]))
        self.sim.sleep(1)
        self.refused(staging, "/large: block 0 is missing or wrong")

    @shows("I1", "A50")
    def test_linked(self) -> None:
        """A file that got a second name, through which it may change, would be shown unread."""
        staging = self.written()
        fd = self.sim.open(self.at("/twice"), os.O_RDONLY)
        self.sim.link(f"/proc/self/fd/{fd}", "/n/other")
        self.sim.close(fd)
        self.sim.sleep(1)
        self.assertEqual(self.commit(staging), {**LAST, "twice": 5})

    @shows("I1", "A50")
    def test_truncated(self) -> None:
        """A file that was cut off, or cut off and made as long again, would be shown."""
        for size, why in ((2, "has 2 bytes, not 5"), (5, "block 0 is missing or wrong")):
            staging = self.written()
            fd = self.sim.open(self.at("/twice"), os.O_RDWR)
            self.sim.ftruncate(fd, 2)
            self.sim.ftruncate(fd, size)
            self.sim.utime(fd, ns=(STAMP_NS, STAMP_NS))
            self.sim.close(fd)
            self.sim.sleep(1)
            self.refused(staging, f"/twice: {why}")
            self.successResultOf(staging.discard())

    @shows("I1")
    def test_stood_there(self) -> None:
        """A file that somebody put there before would count as created by us."""
        staging = self.staged()
        self.sim.write(self.at("/twice"), b"other", FRESH_MODE)
        self.successResultOf(staging.write(self.blocks))
        self.sim.sleep(1)
        self.assertEqual(self.commit(staging), {**LAST, "twice": 5})

    @shows("I1")
    def test_shared(self) -> None:
        """Space that was shared with another file was never in a buffer of ours; it would count as written."""
        self.sim.volume("/n").clones = True
        other: Spec = {"/large": LARGE[: 2 * BLOCK_BYTES] + b"?" * BLOCK_BYTES}
        done(Deferred.fromCoroutine(self.bench.upload(V2, other, 1)))
        staging = self.staged()
        reused = self.successResultOf(staging.reuse([(V2, index_bytes(other)[0])]))
        self.assertEqual(list(reused.blocks), [0, 1])
        self.successResultOf(staging.write(self.blocks[2:]))
        self.sim.sleep(1)
        self.assertEqual(self.commit(staging), {**LAST, "large": len(LARGE)})
