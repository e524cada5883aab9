"""The record of hashes: what is linked without being read, and who cannot make it link something else."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred

from ciruela.disk import executor, hashrecord, staging
from ciruela.disk.hashrecord import decode, encode
from ciruela.disk.openfile import STAMP_NS, OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.interfaces import Staging
from ciruela.model.config import STANDARD, Fsync
from ciruela.model.errors import FormatError
from ciruela.model.vpath import VPath
from tests.disk.bench import CONFIGS, K1, V1, V2, V3, done
from tests.disk.test_finished import FinishedCase
from tests.disk.trees import Spec, flat, in_place, index_bytes, state_of
from tests.doubles import simos_disks
from tests.proof import shows

LARGE = random.Random(8).randbytes(3 * BLOCK_BYTES + 5)
OLD: Spec = {"/large": LARGE, "/sub/small*": b"small", "/other": b"other", "/gone": b"gone"}
NEW: Spec = {"/large": LARGE, "/sub/small*": b"small", "/moved": b"other", "/new": b"new"}
UNCHANGED = {"large": len(LARGE), "small": 5, "other": 5}
"""Files of ``OLD`` that ``NEW`` has, with their sizes."""

IMAGE = "/n/srv/web/v1"


class RecordCase(FinishedCase):
    """V1 has ``OLD``, and V2 is to have ``NEW``."""

    def setUp(self) -> None:
        super().setUp()
        self.upload(V1, OLD)
        self.bench.store.close()  # what is known so far is in the record
        self.sim.sleep(1)

    def upload(
        self, vpath: VPath, spec: Spec, siblings: list[tuple[VPath, Index]] | None = None, *, restore: bool = False
    ) -> dict[str, int]:
        """Returns how many bytes were read of each file of the siblings and of the new image, up to the end of the commit."""
        self.vpath = vpath
        self.use(spec)
        with self.reading() as seen:
            staging = self.begun(siblings or [])
            self.sim.sleep(1)
            end = staging.restore if restore else staging.commit
            self.successResultOf(end(state_of(self.index)))
        self.assertTrue(self.bench.tree(vpath) == flat(spec))
        return seen

    siblings = OLD | NEW

    def begun(self, siblings: list[tuple[VPath, Index]]) -> Staging:
        """All is here, and counts in ``reused`` how many files were linked."""
        staging: Staging = self.staged()
        here = set(self.successResultOf(staging.keep()))
        reused = self.successResultOf(staging.reuse(siblings))
        self.reused = reused.files
        here |= reused.blocks
        self.assertTrue(all(self.successResultOf(staging.write([block for block in self.blocks if block[0] not in here]))))
        return staging

    def next(self, vpath: VPath = V2, spec: Spec = NEW, before: VPath = V1, old: Spec = OLD) -> dict[str, int]:
        """Upload the next version; returns as :meth:`upload`."""
        return self.upload(vpath, spec, [(before, index_bytes(old)[0])])

    def restart(self, *, kill: bool = False) -> None:
        if not kill:
            self.bench.store.close()
        self.bench.restart()

    def records(self) -> dict[str, bytes]:
        return {at: data for at, data in self.bench.records().items() if at.startswith("/hashes/")}

    def edit(self, path: str, *, put_back: bool = True) -> None:
        self.overwrite(IMAGE + path, put_back=put_back)


class Trusted(RecordCase):
    def test_not_read(self) -> None:
        """Each unchanged file of the next version would be read twice: before it is linked, and at the commit."""
        self.assertEqual(self.next(), {})
        self.assertEqual(self.reused, 3)
        self.assertEqual(self.next(V3, OLD, V2, NEW), {})
        self.assertEqual(self.reused, 3)

    def test_in_several_slices(self) -> None:
        """What an image of very many files has in them would be recorded after its directory was closed, which cannot be done."""
        self.patch(staging, "FILES_PER_STEP", 1)
        self.patch(executor, "SLICE_COST", 1)
        jobs: deque[tuple[Deferred[object], Callable[[], object]]] = deque()

        def in_thread(f: Callable[[], object]) -> Deferred[object]:
            jobs.append((Deferred(), f))
            return jobs[-1][0]

        self.vpath = V2
        self.use(NEW)
        begun: Any = self.begun([(V1, index_bytes(OLD)[0])])
        begun._lane._in_thread = in_thread
        self.sim.sleep(1)
        committed = begun.commit(state_of(self.index))
        while jobs:
            done_, job = jobs.popleft()
            done_.callback(job())
        self.successResultOf(committed)
        self.assertEqual(self.next(V3, NEW, V2, NEW), {})
        self.assertEqual(self.reused, 4)

    def test_after_a_restart(self) -> None:
        """The first upload after a restart would read everything."""
        self.restart()
        self.assertEqual(self.next(), {})

    def test_after_a_kill(self) -> None:
        """What was not recorded in time is read once; nothing else is lost."""
        self.assertEqual(self.next(V3, {**OLD, "/more": b"more"}), {})
        self.restart(kill=True)
        self.assertEqual(self.next(), UNCHANGED)
        self.assertEqual(self.reused, 3)

    def test_replaced(self) -> None:
        """The old tree is deleted, which changes the ctime of all files that the new one shares with it."""
        self.next(V1, NEW, V1, OLD)
        self.assertEqual(self.bench.debris(), set())
        self.assertEqual(self.next(V2, OLD, V1, NEW), {})

    def test_replaced_after_a_restart(self) -> None:
        """The same where nothing was reused before the deletion."""
        self.next()
        self.restart()
        self.successResultOf(self.bench.store.load())
        done(Deferred.fromCoroutine(self.bench.remove(V1, OLD, 2_000_000_000_000)))
        self.assertIs(self.bench.tree(V1), None)
        self.assertEqual(self.next(V3, OLD, V2, NEW), {})

    def test_kept(self) -> None:
        """The same for replaced images that are kept for a while."""
        for spec in (OLD, NEW, OLD, NEW):
            read = self.upload(K1, spec, [(K1, index_bytes(NEW if spec is OLD else OLD)[0])] if self.bench.tree(K1) else [])
        self.assertEqual(read, {})

    def test_first_time(self) -> None:
        """With a db directory of an earlier version all would be read twice: once for linking, once at the commit."""
        self.restart()
        for at in self.records():
            self.sim.unlink(f"/n/db{at}")
        self.restart(kill=True)
        self.assertEqual(self.next(), UNCHANGED)
        self.assertEqual(self.next(V3, OLD, V2, NEW), {})

    def test_several_at_once(self) -> None:
        """Two uploads that link the same files change their ctimes for each other: what is not sure any more is read."""
        self.vpath = V2
        self.use(NEW)
        first, index = self.begun([(V1, index_bytes(OLD)[0])]), self.index
        self.assertEqual(self.next(V3), {})
        self.use(NEW)
        with self.reading() as seen:
            self.successResultOf(first.commit(state_of(index)))
        self.assertEqual(seen, {"large": len(LARGE), "small": 5, "moved": 5})
        self.assertTrue(self.bench.tree(V2) == flat(NEW))


class NotTrusted(RecordCase):
    """Everything is read, as before there was a record."""

    def tune(self, **settings: object) -> None:
        self.bench.store = Store("/n/db", CONFIGS, in_place, replace(STANDARD, **settings))  # type: ignore[arg-type]

    def test_not_wanted(self) -> None:
        """An operator who does not trust ctimes would have them trusted."""
        self.restart()
        before = self.records()
        self.tune(trust_ctime=False)
        self.assertEqual(self.next(), UNCHANGED)
        self.bench.store.close()
        self.assertEqual(self.records(), before)

    @shows("I1", "A44")
    def test_without_syncing(self) -> None:
        """A power cut could leave another content with the same ctime."""
        self.tune(fsync=Fsync.NONE)
        self.assertEqual(self.next(), UNCHANGED)

    @shows("A50", "I1")
    def test_elsewhere(self) -> None:
        """A network file system may tell an old ctime."""
        self.restart(kill=True)
        self.patch(self.sim, "file_system_type", lambda _: 0x6969)
        self.assertEqual(self.next(), UNCHANGED)

    @shows("A10", "A50")
    def test_repair(self) -> None:
        """An image with a flipped bit would be mended with itself, for its times are as they were."""
        self.sim.bit_flip(f"{IMAGE}/other", 0)
        self.upload(V1, OLD, [(V1, index_bytes(OLD)[0])], restore=True)
        self.assertEqual(self.reused, 3)

    @shows("A10", "A50")
    def test_after_damage(self) -> None:
        """A disk that has changed a file would spread it, and all others that it may have changed."""
        for number, restarted in enumerate((False, True)):
            index = index_bytes(OLD)[0]
            self.sim.bit_flip(f"{IMAGE}/other", number)
            findings = self.successResultOf(self.bench.store.examine(V1, index).go_on(1 << 40))
            assert findings is not None
            self.assertEqual(findings.count, 1)
            if restarted:
                self.restart(kill=True)
            self.assertEqual(self.next(VPath(("app", "web", f"n{number}")), {**NEW, "/n": b"%d" % number}), {**UNCHANGED, "other": 10})
            self.assertEqual(self.reused, 2)

    def test_records_that_are_none(self) -> None:
        """Whatever is wrong with the file would be an error, or be believed."""
        self.restart()
        [(at, good)] = self.records().items()
        device = int(at.rpartition("/")[2], 16)
        newest_ns, entries = decode(good, device)
        self.assertEqual(len(entries), len(OLD))
        self.assertEqual(encode(device, newest_ns, entries), good)
        flipped = bytearray(good)
        flipped[-1] ^= 1
        bad = [
            b"",
            good[:-1],
            good + b"\0",
            good[:30],
            bytes(flipped),
            good.replace(b"hashes 1", b"hashes 2"),
            encode(device + 1, newest_ns, entries),
        ]
        for number, data in enumerate(bad):
            self.assertRaises(FormatError, decode, data, device)
            self.restart(kill=True)
            self.sim.write(f"/n/db{at}", data, 0o640)
            self.assertEqual(self.next(VPath(("app", "web", f"b{number}")), {**NEW, "/n": b"%d" % number}), UNCHANGED, number)
            self.restart()
        self.sim.write(f"/n/db{at}", good, 0o640)

    @shows("I11")
    def test_half_written(self) -> None:
        """What a kill left of the record would stay for ever."""
        self.restart()
        [at] = self.records()
        self.sim.write(f"/n/db/hashes/.tmp.{at.rpartition('/')[2]}", b"half", 0o640)
        self.successResultOf(self.bench.store.load())
        self.assertEqual(self.bench.debris(), set())

    @shows("I6")
    def test_too_large(self) -> None:
        """A file of any size would be read into memory, or the memory grow with each file ever uploaded."""
        self.patch(hashrecord, "MOST_ENTRIES", 2)
        self.restart()
        self.patch(hashrecord, "_MOST_BYTES", 100)
        self.assertEqual(self.next(), UNCHANGED)
        self.restart()
        [(at, data)] = self.records().items()
        self.assertEqual(len(decode(data, int(at.rpartition("/")[2], 16))[1]), 2)


class Attacked(RecordCase):
    """Somebody, who is root or the user of the daemon, wants another content in the next version."""

    def check_read(self, *names: str) -> None:
        """These are read before the next version is shown, and no others."""
        self.assertEqual(set(self.next()), set(names))

    @shows("A50", "F59", "I1")
    def test_edited(self) -> None:
        """A file that was edited in place, with its mtime put back, would be part of the next image."""
        self.edit("/large")
        self.check_read("large")
        self.assertEqual(self.reused, 2)

    @shows("A50", "F59", "I1")
    def test_edited_in_the_tick_of_a_link(self) -> None:
        """A change with the ctime that the daemon itself gave the file by linking it."""
        self.next()
        with mock.patch.object(simos_disks, "TICK_NS", 0):
            self.next(V3, {**NEW, "/more": b"more"})
            [(_, inode)] = self.sim.inodes(f"{IMAGE}/other")
            linked_ns = inode.changed_ns
            self.sim.sleep((linked_ns - self.sim.time_ns()) / 1e9)
            self.edit("/other", put_back=False)
            self.assertEqual(inode.changed_ns, linked_ns)
        self.sim.sleep(1)
        self.assertEqual(self.upload(VPath(("app", "web", "v4")), NEW, [(V3, index_bytes({**NEW, "/more": b"more"})[0])]), {"moved": 10})

    @shows("A50", "F59", "I1")
    def test_edited_between_look_and_link(self) -> None:
        """A change after the look at the file and before it gets its new name."""
        link = SafeDir.link_as_it_is

        def edited(here: SafeDir, source: SafeDir, old: str, name: str, found: os.stat_result) -> os.stat_result:
            if old == "other":
                self.edit("/other", put_back=False)
            return link(here, source, old, name, found)

        with mock.patch.object(SafeDir, "link_as_it_is", edited):
            self.check_read("other")
        self.assertEqual(self.reused, 2)

    @shows("A50", "F59", "I1")
    def test_swapped_between_look_and_link(self) -> None:
        """Another file at the name that was looked at."""
        link = SafeDir.link_as_it_is

        def swapped(here: SafeDir, source: SafeDir, old: str, name: str, found: os.stat_result) -> os.stat_result:
            if old == "other":
                self.replace("/other", b"OTHER")
            return link(here, source, old, name, found)

        with mock.patch.object(SafeDir, "link_as_it_is", swapped):
            self.next()
        self.assertEqual(self.reused, 2)

    def replace(self, path: str, data: bytes) -> None:
        """Another file at the same name, of the same size, mode and mtime."""
        at = f"{IMAGE}{path}"
        mode = self.sim.inodes(at)[0][1].mode & 0o777
        self.sim.unlink(at)
        self.sim.write(at, data, mode)
        fd = self.sim.open(at, os.O_RDWR)
        self.sim.utime(fd, ns=(STAMP_NS, STAMP_NS))
        self.sim.close(fd)

    @shows("A50", "F59", "I1")
    def test_replaced(self) -> None:
        """Another file at the same name."""
        self.replace("/other", b"OTHER")
        self.check_read("other")
        self.assertEqual(self.reused, 2)

    @shows("A50", "F59", "I1")
    def test_edited_between_link_and_commit(self) -> None:
        """A change after the file was linked: the commit would show it."""
        self.vpath = V2
        self.use(NEW)
        staging = self.begun([(V1, index_bytes(OLD)[0])])
        self.edit("/other")
        self.sim.sleep(1)
        self.refused(staging, "/moved: block 0 is missing or wrong")

    @shows("A50", "F40", "I1")
    def test_clock_set_back(self) -> None:
        """With the clock at the moment of an old ctime, a change could be given that very ctime."""
        at_ns = self.sim.inodes(f"{IMAGE}/other")[0][1].changed_ns
        self.sim.sleep((at_ns - self.sim.time_ns()) / 1e9)
        with mock.patch.object(simos_disks, "TICK_NS", 0):
            self.edit("/other")
            self.assertEqual(self.sim.inodes(f"{IMAGE}/other")[0][1].changed_ns, at_ns)
            for restarted in (False, True):
                if restarted:
                    self.restart(kill=True)
                self.vpath = V2
                self.use(NEW)
                with self.reading() as seen:
                    staging = self.begun([(V1, index_bytes(OLD)[0])])
                self.assertEqual((set(seen), self.reused), (set(UNCHANGED), 2))
                self.successResultOf(staging.discard())

    @shows("A50", "I1")
    def test_copied_disk(self) -> None:
        """A copy of the directories on another disk, of which one file is other than on the first one."""
        self.restart()
        contents = {at: bytes(inode.data) for at, inode in self.sim.inodes(IMAGE) if inode.is_file}
        for path, data in contents.items():
            self.replace(path, b"OTHER" if path == "/other" else data)
        self.check_read(*UNCHANGED)
        self.assertEqual(self.reused, 2)

    @shows("A50", "I1")
    def test_restored_record(self) -> None:
        """The db directory out of a backup, over images that have changed since."""
        self.restart()
        backup = self.records()
        self.edit("/other")
        self.next(V3)
        self.restart()
        for at, data in backup.items():
            self.sim.write(f"/n/db{at}", data, 0o640)
        self.bench.restart()
        self.assertEqual(self.next(), {**UNCHANGED, "other": 10})
        self.assertEqual(self.reused, 2)

    @shows("A50", "F59", "I1")
    def test_edited_while_it_is_hashed(self) -> None:
        """A change after the last byte was read for the hash, with the mtime put back, before the file is linked."""
        self.forget_all()
        read_at = OpenFile.read_at

        def edited(opened: OpenFile, size: int, offset: int) -> bytes:
            data = read_at(opened, size, offset)
            if opened.where.endswith("/other"):
                self.edit("/other")
            return data

        self.vpath = V2
        self.use(NEW)
        with mock.patch.object(OpenFile, "read_at", edited):
            staging = self.begun([(V1, index_bytes(OLD)[0])])
        self.assertEqual(self.reused, 3)
        self.sim.sleep(1)
        self.refused(staging, "/moved: block 0 is missing or wrong")

    def forget_all(self) -> None:
        """As with a db directory of an earlier version."""
        self.restart()
        for at in self.records():
            self.sim.unlink(f"/n/db{at}")
        self.restart(kill=True)

    @shows("A50", "I1")
    def test_just_written_when_it_was_hashed(self) -> None:
        """A file that was hashed in the tick of its last change may have changed after that without a sign."""
        self.forget_all()
        with mock.patch.object(simos_disks, "TICK_NS", 0):
            self.edit_nothing("/other")
            self.vpath = V2
            self.use(NEW)
            with self.reading() as seen:
                staging = self.begun([(V1, index_bytes(OLD)[0])])
                self.assertEqual(seen["other"], 5)
        self.sim.sleep(1)
        self.assertIn("moved", self.commit(staging))

    def edit_nothing(self, path: str) -> None:
        fd = self.sim.open(IMAGE + path, os.O_RDWR)
        self.sim.utime(fd, ns=(STAMP_NS, STAMP_NS))
        self.sim.close(fd)
