"""Kills and failures at each system call that changes something, of an append, a replace and a drop (threats F28, F29, F35, F36)."""

from __future__ import annotations

import errno
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import CommitPhase, decode_journal
from ciruela.index.tree import Index
from ciruela.interfaces import Held, Pending, Staging
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.upload import Command
from ciruela.model.vpath import VPath
from tests.disk.faulty import Faults, Killed
from tests.disk.trees import Node, Spec, blocks_of, flat, index_bytes, on_disk, state_of
from tests.measure import UnmeasuredTestCase
from tests.proof import shows

V1 = VPath(("app", "web", "v1"))
V2 = VPath(("app", "web", "v2"))
ONE = VPath(("one",))

OLD: Spec = {"/keep": b"the same", "/gone": b"old", "/sub/x*": b"run"}
NEW: Spec = {"/keep": b"the same", "/new": b"new", "/sub/x*": b"run twice", "/zero": b"", "/link": "new", "/dir": None}
MANY: Spec = {f"/f{number}": b"%d" % (number % 3) for number in range(70)}

NO_EXCHANGE = frozenset({"renameat2"})


class Sweep(UnmeasuredTestCase):
    """Runs an upload once for each call that it makes, and lets that call be the one that goes wrong."""

    def setUp(self) -> None:
        Faults().install(self)

    def fresh(self, vpath: VPath, old: Spec | None) -> Node:
        node = Node(Path(self.mktemp()).absolute())
        if old is not None:
            self.successResultOf(self.upload(node, vpath, old, 1))
        return node

    def upload(self, node: Node, vpath: VPath, spec: Spec, time: int) -> Deferred[None]:
        return Deferred.fromCoroutine(self._upload(node, vpath, spec, time))

    async def _upload(self, node: Node, vpath: VPath, spec: Spec, time: int) -> None:
        index, data = index_bytes(spec)
        store = node.store
        await store.write_pending(Pending(vpath, state_of(index, time), Command.REPLACE))
        await store.write_index(index.image, data)
        staging = await store.stage(vpath, index)
        try:
            kept = await staging.keep()
            await staging.write([block for block in blocks_of(spec, index) if block[0] not in kept])
            await staging.commit(state_of(index, time))
        finally:
            staging.close()

    def standing(self, node: Node, vpath: VPath) -> dict[str, bytes] | None:
        image = node.image(vpath)
        return on_disk(image) if image.exists() else None

    def recorded(self, node: Node) -> Held | None:
        held: list[Held] = self.successResultOf(node.store.load()).held
        self.assertLessEqual(len(held), 1)
        return held[0] if held else None

    def check(self, node: Node, vpath: VPath, old: Spec | None, new: Spec) -> None:
        """What stands is old or new, whole, and is what the records say."""
        found = self.recorded(node)
        committed = None if found is None or found.committed is None else found.committed.image
        images = {None: None if old is None else flat(old), index_bytes(new)[0].image: flat(new)}
        if old is not None:
            images[index_bytes(old)[0].image] = images.pop(None)
        self.assertIn(committed, images)
        self.assertEqual(self.standing(node, vpath), images[committed])

    def finish(self, node: Node, vpath: VPath, new: Spec) -> None:
        """The same upload again goes through and leaves nothing behind."""
        self.successResultOf(self.upload(node, vpath, new, 9))
        index: Index = index_bytes(new)[0]
        found = self.recorded(node)
        assert found is not None and found.committed is not None
        self.assertEqual((found.committed.image, found.pending), (index.image, None))
        self.assertEqual(self.standing(node, vpath), flat(new))
        self.assertEqual(node.debris(), [])
        for path in node.image(vpath).rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.assertEqual((path.stat().st_mtime_ns, path.stat().st_mode & 0o777 in (0o644, 0o755)), (10**9, True))

    def sweep(self, vpath: VPath, old: Spec | None, new: Spec, code: int | None, refused: frozenset[str] = frozenset()) -> int:
        at = 0
        while True:
            at += 1
            node = self.fresh(vpath, old)
            faults = Faults(at, code, refused)
            faults.install(self)
            outcome: list[object] = []
            self.upload(node, vpath, new, 5).addBoth(outcome.append)
            if code is not None and outcome != [None]:
                Faults(refused=refused).install(self)
                self.failureResultOf(node.store.drop_pending(vpath).addCallback(lambda _: 1 / 0), ZeroDivisionError)
            Faults().install(self)
            self.flushLoggedErrors(Killed)
            self.assertEqual(len(outcome), 1)
            if code is None and faults.reached and not refused:
                self.assertIn(self.standing(node, vpath), [None if old is None else flat(old), flat(new)])
            node.store.close()
            node.store = node.restarted()
            self.check(node, vpath, old, new)
            self.finish(node, vpath, new)
            node.store.close()
            if not faults.reached:
                self.assertEqual(outcome, [None])
                return at

    @shows("A43", "F35", "I1", "I11")
    def test_kill_append(self) -> None:
        """A kill would leave half an image, a wrong record, or debris for ever."""
        self.assertGreater(self.sweep(V1, None, NEW, None), 50)

    @shows("A43", "F36", "I1", "I11")
    def test_kill_replace(self) -> None:
        """A kill would leave neither the old nor the new image, or the one with the record of the other (C6)."""
        self.assertGreater(self.sweep(V1, OLD, NEW, None), 60)

    @shows("A43", "F36")
    def test_kill_replace_single(self) -> None:
        """The same at level 0, where the staging directory stands beside the configured directory."""
        self.assertGreater(self.sweep(ONE, OLD, NEW, None), 60)

    @shows("A43", "F36")
    def test_kill_replace_without_exchange(self) -> None:
        """On a file system without exchange, a kill between two renames would lose the image."""
        self.assertGreater(self.sweep(V1, OLD, NEW, None, NO_EXCHANGE), 60)

    def test_kill_replace_single_without_exchange(self) -> None:
        """The same at level 0."""
        self.assertGreater(self.sweep(ONE, OLD, NEW, None, NO_EXCHANGE), 60)

    @shows("A38", "F28", "I1")
    def test_full_disk(self) -> None:
        """A disk that fills up at any moment would mix images, lose a state, or end more than this upload."""
        self.assertGreater(self.sweep(V1, OLD, NEW, errno.ENOSPC), 60)

    @shows("A39", "F29", "I1")
    def test_failing_disk(self) -> None:
        """A write error at any moment would mix images, lose a state, or be taken for success."""
        self.assertGreater(self.sweep(V1, OLD, NEW, errno.EIO), 60)

    @shows("A39", "F29")
    def test_failing_disk_append(self) -> None:
        """The same for a path that had nothing."""
        self.assertGreater(self.sweep(V1, None, NEW, errno.EIO), 50)

    def test_failing_disk_without_exchange(self) -> None:
        """A failure between two renames would leave nothing at the path."""
        self.assertGreater(self.sweep(V1, OLD, NEW, errno.EIO, NO_EXCHANGE), 60)


class Undo(SynchronousTestCase):
    """A commit that fails after the rename."""

    def setUp(self) -> None:
        Faults().install(self)
        self.node = Node(Path(self.mktemp()).absolute())
        self.old, _ = index_bytes(OLD)
        self.new, _ = index_bytes(NEW)
        self.journal = self.node.db / "signatures" / "app" / "web" / "v1.new.state"

    def filled(self, spec: Spec, index: Index, time: int) -> Staging:
        self.successResultOf(self.node.store.write_pending(Pending(V1, state_of(index, time), Command.REPLACE)))
        staging: Staging = self.successResultOf(self.node.store.stage(V1, index))
        self.successResultOf(staging.write(blocks_of(spec, index)))
        return staging

    def fail_after_the_swap(self, staging: Staging, *, undo: bool) -> None:
        """The state cannot be put in place; nor, without ``undo``, the old image put back."""
        real, swaps = SafeDir.rename, []
        real_exchange = SafeDir.exchange

        def rename(here: SafeDir, old: str, new: str, to: SafeDir | None = None) -> None:
            if new == "v1.state":
                raise OSError(errno.EIO, "rename: Input/output error", new)
            real(here, old, new, to)

        def exchange(here: SafeDir, new: str, live: str, aside: str) -> None:
            swaps.append(new)
            if len(swaps) == 2 and not undo:
                raise OSError(errno.EIO, "exchange: Input/output error", live)
            real_exchange(here, new, live, aside)

        self.patch(SafeDir, "rename", rename)
        self.patch(SafeDir, "exchange", exchange)
        self.failureResultOf(staging.commit(state_of(self.new, 5)), DiskError)
        self.patch(SafeDir, "rename", real)
        self.patch(SafeDir, "exchange", real_exchange)

    def replaced(self, *, undo: bool) -> None:
        self.successResultOf(self.filled(OLD, self.old, 1).commit(state_of(self.old, 1)))
        self.fail_after_the_swap(self.filled(NEW, self.new, 5), undo=undo)

    @shows("A39", "I1")
    def test_put_back(self) -> None:
        """The new image would stand there with the record of the old one."""
        self.replaced(undo=True)
        self.assertEqual(on_disk(self.node.image(V1)), flat(OLD))
        self.assertIs(decode_journal(self.journal.read_bytes()).phase, CommitPhase.DOWNLOAD)

    def test_dropped_when_it_cannot_be_put_back(self) -> None:
        """Giving up an upload whose image is shown already would leave the record of the old one for ever."""
        self.replaced(undo=False)
        self.assertEqual(on_disk(self.node.image(V1)), flat(NEW))
        self.successResultOf(self.node.store.drop_pending(V1))
        held = self.successResultOf(self.node.store.load()).held
        self.assertEqual(held, [Held(V1, state_of(self.new, 5), None)])
        self.assertEqual(self.node.debris(), [])

    def test_more_signatures_when_it_cannot_be_put_back(self) -> None:
        """A second signature would make the journal forget that the image is shown."""
        self.replaced(undo=False)
        both = state_of(self.new, 5).merged(state_of(self.new, 6).signatures)
        self.successResultOf(self.node.store.write_pending(Pending(V1, both, Command.REPLACE)))
        held = self.successResultOf(self.node.restarted().load()).held
        self.assertEqual(held, [Held(V1, both, None)])
        self.assertEqual(on_disk(self.node.image(V1)), flat(NEW))

    def test_empty_directory_comes_back(self) -> None:
        """An image without a record would stand where an admin had made an empty directory, and block the next upload."""
        self.node.image(V1).mkdir(parents=True)
        staging = self.filled(NEW, self.new, 5)
        self.fail_after_the_swap(staging, undo=True)
        self.assertEqual(on_disk(self.node.image(V1)), {"/": b""})
        self.successResultOf(staging.commit(state_of(self.new, 5)))
        self.assertEqual(on_disk(self.node.image(V1)), flat(NEW))


class Barrier(SynchronousTestCase):
    """What happens when the disk does not take what was written."""

    def failing(self, spec: Spec, call: str, which: int) -> None:
        """Commit ``spec`` with the ``which``-th call of that name, counted from the start of the commit, failing."""
        node = Node(Path(self.mktemp()).absolute())
        index, _ = index_bytes(spec)
        self.successResultOf(node.store.write_pending(Pending(V1, state_of(index), Command.APPEND)))
        staging = self.successResultOf(node.store.stage(V1, index))
        self.successResultOf(staging.write(blocks_of(spec, index)))
        faults = Faults()
        faults.install(self)
        real = faults.called

        def called(name: str) -> None:
            real(name)
            if name == call and faults.calls.count(call) == which:
                raise OSError(errno.EIO, "Input/output error")

        self.patch(faults, "called", called)
        failed = self.failureResultOf(staging.commit(state_of(index)), DiskError).value
        self.assertIn(f"{call}: Input/output error", str(failed))
        self.assertEqual(faults.calls.count(call), which)
        self.assertNotIn("renameat2", faults.calls)
        Faults.remove(self)
        staging.close()
        self.assertFalse(node.image(V1).exists())
        held = self.successResultOf(node.restarted().load()).held
        self.assertEqual([(found.committed, found.pending is not None) for found in held], [(None, True)])

    @shows("A39", "F29", "I2")
    def test_each_fsync(self) -> None:
        """Data that never reached the disk would be acknowledged."""
        for which in range(1, len(index_bytes(NEW)[0].files) + len(index_bytes(NEW)[0].directories) + 1):
            self.failing(NEW, "fsync", which)

    @shows("A39", "F29", "I2")
    def test_syncfs(self) -> None:
        """The same for an image of many files, which is made durable in one go."""
        self.failing(MANY, "syncfs", 1)

    def test_few_and_many(self) -> None:
        """A small image would wait for everything else on the disk, or a large one for an fsync of each file."""
        for spec, sync_all in ((NEW, 0), (MANY, 1)):
            node = Node(Path(self.mktemp()).absolute())
            index, _ = index_bytes(spec)
            staging = self.successResultOf(node.store.stage(V1, index))
            self.successResultOf(staging.write(blocks_of(spec, index)))
            faults = Faults()
            faults.install(self)
            self.successResultOf(staging.commit(state_of(index)))
            Faults.remove(self)
            self.assertEqual(faults.calls.count("syncfs"), sync_all)
            self.assertLess(faults.calls.count("fsync"), 20)

    @shows("A44", "F38")
    def test_order(self) -> None:
        """After a power cut an acknowledged image would be empty files, or have the record of another one."""
        node = Node(Path(self.mktemp()).absolute())
        for spec, time in ((MANY, 1), ({**MANY, "/more": b"more"}, 2)):
            index, _ = index_bytes(spec)
            self.successResultOf(node.store.write_pending(Pending(V1, state_of(index, time), Command.REPLACE)))
            staging = self.successResultOf(node.store.stage(V1, index))
            self.successResultOf(staging.write(blocks_of(spec, index)))
            faults = Faults()
            faults.install(self)
            self.successResultOf(staging.commit(state_of(index, time)))
            Faults.remove(self)
            after_barrier = faults.calls[faults.calls.index("syncfs") :]
            prepare = ["open", "fchmod", "pwrite", "fsync"]
            journal = [*prepare, "rename", "fsync"]
            show = ["renameat2", "fsync"]
            record = ["rename", "fsync", "unlink", "fsync"]
            expected = ["syncfs", "fsync", *prepare, *journal, *show, *record]
            self.assertEqual(after_barrier[: len(expected)], expected)

    @shows("A38", "F28")
    def test_no_space_is_said(self) -> None:
        """A user would read "commit error" instead of being told that the disk is full."""
        node = Node(Path(self.mktemp()).absolute())
        index, _ = index_bytes(NEW)
        staging = self.successResultOf(node.store.stage(V1, index))
        for code in (errno.ENOSPC, errno.EDQUOT):
            Faults(1, code).install(self)
            failed = self.failureResultOf(staging.write(blocks_of(NEW, index)), DownloadFailed).value
            self.assertEqual(failed.reason.value, "no_space")
            Faults.remove(self)
        self.successResultOf(staging.write(blocks_of(NEW, index)))
        Faults(1, errno.ENOSPC).install(self)
        failed = self.failureResultOf(staging.commit(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason.value, "no_space")
