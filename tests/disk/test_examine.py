"""Damage in committed images: that all of it is found, and that a whole copy takes its place (threats 6.11)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import openfile, safedir
from ciruela.disk.examine import MOST_DAMAGES
from ciruela.disk.openfile import OpenFile
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.interfaces import Findings, Pending
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.upload import AbortReason, Command
from ciruela.model.versions import SigEntry, Tombstone
from ciruela.model.vpath import VPath
from tests.disk.faulty import Faults, Killed
from tests.disk.real import V1, V2, Real
from tests.disk.trees import SMALL, Node, Spec, blocks_of, flat, index_bytes, on_disk, state_of
from tests.proof import shows

ALL = 1 << 40
ONE = VPath(("one",))


def flip(path: Path, at: int = 0) -> None:
    """Change one bit and nothing else, not even a time: as a disk does it."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Failing:
    """``os`` of which reading some files, or opening anything, fails."""

    def __init__(self, code: int, call: str, name: str = "") -> None:
        self._code, self._call, self._name = code, call, name

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name != self._call:
            return real

        def call(what: Any, *args: Any, **kwargs: Any) -> Any:
            where = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(what)
            if where.endswith(self._name):
                raise OSError(self._code, os.strerror(self._code))
            return real(what, *args, **kwargs)

        return call


class Looking(Real):
    """Everything that is wrong is found, whatever it is."""

    def findings(self, vpath: VPath, index: Index) -> Findings:
        examination = self.store.examine(vpath, index)
        found: Findings = self.successResultOf(examination.go_on(ALL))
        examination.close()
        return found

    def damages(self, vpath: VPath, index: Index) -> list[tuple[str, str]]:
        found = self.findings(vpath, index)
        self.assertTrue(found.current)
        self.assertEqual(found.count, len(found.damages))
        return [(damage.path, damage.what) for damage in found.damages]

    def test_whole(self) -> None:
        """A good image would be fetched again and again."""
        for vpath in (V1, ONE):
            self.assertEqual(self.damages(vpath, self.upload(vpath, SMALL)), [])

    @shows("A10", "F51")
    def test_each_damage(self) -> None:
        """One kind of damage would never be found. Whatever else is in the image is looked at as well."""
        index = self.upload(V1, SMALL)
        image = self.node.image(V1)
        cases: list[tuple[Callable[[], object], str, str]] = [
            (lambda: flip(image / "a/big.bin", 40_000), "/a/big.bin", "1 of 4 blocks are wrong"),
            (lambda: os.truncate(image / "README", 3), "/README", "has 3 bytes, not 6"),
            (lambda: (image / "a-b/üml").unlink(), "/a-b/üml", "is missing"),
            (lambda: (image / "run.sh").chmod(0o644), "/run.sh", "has mode 0644, not 0755"),
            (lambda: (image / "deep").chmod(0o700), "/deep", "has mode 0700, not 0755"),
            (lambda: (image / "empty/more").write_bytes(b""), "/empty/more", "is not in the index"),
            (lambda: (image / "deep/er/empty").rmdir(), "/deep/er/empty", "is missing"),
        ]
        want = []
        for damage, path, what in cases:
            damage()
            want.append((path, what))
            self.assertEqual(sorted(self.damages(V1, index)), sorted(want))

    @shows("A10", "F51")
    def test_from_the_disk(self) -> None:
        """A disk that has lost what it was given would be found out when the kernel has forgotten it, and not before."""
        index = self.upload(V1, SMALL)
        left_aside: dict[str, int] = {}

        def uncache(opened: OpenFile, size: int, _offset: int) -> None:
            name = opened.where.rpartition("/")[2]
            left_aside[name] = left_aside.get(name, 0) + size

        self.patch(OpenFile, "uncache", uncache)
        self.assertEqual(self.damages(V1, index), [])
        self.assertEqual(sum(left_aside.values()), index.total_bytes)
        self.assertEqual(left_aside["big.bin"], 102_400)

    @shows("A10")
    def test_other_types(self) -> None:
        """A file that became a link would be read, or written, somewhere else."""
        index = self.upload(V1, SMALL)
        image = self.node.image(V1)
        (image / "README").unlink()
        (image / "README").symlink_to(self.outside / "precious")
        (image / "zero").unlink()
        (image / "zero").mkdir()
        (image / "dangling").unlink()
        (image / "dangling").symlink_to("elsewhere")
        (image / "a/link").unlink()
        (image / "a/link").write_bytes(b"")
        (image / "a-b").rename(image / "moved")
        (image / "a-b").symlink_to("moved")
        self.assertEqual(
            sorted(self.damages(V1, index)),
            [
                ("/README", "is not a regular file"),
                ("/a-b", "is not a directory"),
                ("/a/link", "is not a symbolic link"),
                ("/dangling", "leads elsewhere"),
                ("/moved", "is not in the index"),
                ("/zero", "is not a regular file"),
            ],
        )

    @shows("A39", "F29")
    def test_read_errors(self) -> None:
        """A sector that cannot be read is damage: its file has to come from somewhere else."""
        index = self.upload(V1, SMALL)
        self.patch(openfile, "os", Failing(errno.EIO, "pread", "big.bin"))
        self.assertEqual(self.damages(V1, index), [("/a/big.bin", "cannot be read: read: Input/output error")])
        self.patch(safedir, "os", Failing(errno.EIO, "listdir", "/a"))
        self.assertEqual(self.damages(V1, index), [("/a", "cannot be read: list: Input/output error")])

    def test_nobody_can_tell(self) -> None:
        """A process without descriptors must not conclude that all its images are gone, nor an unmounted disk."""
        index = self.upload(V1, SMALL)
        self.patch(safedir, "os", Failing(errno.EMFILE, "open", "big.bin"))
        examination = self.store.examine(V1, index)
        self.failureResultOf(examination.go_on(ALL), DiskError)
        self.patch(safedir, "os", os)
        flip(self.node.image(V1) / "README")
        self.assertEqual(self.successResultOf(examination.go_on(ALL)).count, 1, "what had failed was taken for a clean end")
        self.node.srv.rename(self.node.root / "away")
        self.failureResultOf(self.store.examine(V1, index).go_on(ALL), DiskError)

    def test_all_gone(self) -> None:
        """An image that somebody deleted is missing, not fine."""
        index = self.upload(V1, SMALL)
        self.node.image(V1).rename(self.node.root / "away")
        self.assertEqual(self.damages(V1, index), [("/", "is missing")])

    def test_bounded(self) -> None:
        """A lost disk would fill memory and log with names; the count is still true."""
        index = self.upload(V1, {f"/{number:04}": b"x" for number in range(300)})
        for file in self.node.image(V1).iterdir():
            flip(file)
        found = self.findings(V1, index)
        self.assertEqual((len(found.damages), found.count), (MOST_DAMAGES, 300))

    def test_slices(self) -> None:
        """Uploads to the same path would wait until a whole image is read, and a limit of bytes a second would not be one."""
        index = self.upload(V1, {"/large": bytes(8 << 20), "/small": b"x"})
        flip(self.node.image(V1) / "large", 7 << 20)
        examination = self.store.examine(V1, index)
        costs = []
        while True:
            before = examination.cost
            found = self.successResultOf(examination.go_on(1 << 20))
            costs.append(examination.cost - before)
            if found is not None:
                break
        self.assertEqual(found.count, 1)
        self.assertGreaterEqual(len(costs), 8)
        self.assertLess(max(costs), 3 << 20)
        self.assertGreaterEqual(examination.cost, 8 << 20)

    def test_replaced_meanwhile(self) -> None:
        """The remains of an image that was just replaced would be called a damage of the new one."""
        index = self.upload(V1, SMALL)
        examination = self.store.examine(V1, index)
        self.assertIsNone(self.successResultOf(examination.go_on(1)))
        self.assertIsNone(self.successResultOf(examination.go_on(1)))
        self.upload(V1, {"/other": b"other"})
        found = None
        while found is None:
            found = self.successResultOf(examination.go_on(1))
        self.assertFalse(found.current)
        self.assertFalse(self.findings(V1, index).current)

    def test_lets_go(self) -> None:
        """Each image that was looked through would cost descriptors until none are left."""
        index = self.upload(V1, SMALL)
        before = os.listdir("/proc/self/fd")
        self.findings(V1, index)
        examination = self.store.examine(V1, index)
        for _ in range(4):
            self.assertIsNone(self.successResultOf(examination.go_on(1)))
        self.assertGreater(len(os.listdir("/proc/self/fd")), len(before))
        examination.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))


async def heal(node: Node, vpath: VPath, spec: Spec, time: int = 1_700_000_000_123) -> int:
    """What ``Downloads.repair`` asks of a disk. Gives the number of blocks that had to be fetched."""
    index = index_bytes(spec)[0]
    staging = await node.store.stage(vpath, index)
    try:
        kept = await staging.keep()
        reused = await staging.reuse([(vpath, index)])
        missing = [block for block in blocks_of(spec, index) if block[0] not in kept | reused.blocks]
        await staging.write(missing)
        await staging.restore(state_of(index, time))
    except BaseException:
        await staging.discard()
        raise
    return len(missing)


class Healing(Real):
    """A whole copy takes the place of a damaged one."""

    def heal(self, vpath: VPath, spec: Spec) -> int:
        fetched: int = self.successResultOf(Deferred.fromCoroutine(heal(self.node, vpath, spec)))
        return fetched

    @shows("A10", "F51")
    def test_only_what_is_bad_is_fetched(self) -> None:
        """One bad sector would cost a whole image over the network, or the good files would lose their other names."""
        for vpath in (V1, ONE):
            self.upload(vpath, SMALL)
            image = self.node.image(vpath)
            inode = (image / "README").stat().st_ino
            flip(image / "a/big.bin", 40_000)
            (image / "extra").write_bytes(b"")
            (image / "zero").unlink()
            (image / "a").chmod(0o700)
            self.assertEqual(self.heal(vpath, SMALL), 1)
            self.assertEqual(on_disk(image), flat(SMALL))
            self.assertEqual((image / "README").stat().st_ino, inode)
            self.assertEqual(stat.S_IMODE((image / "a").stat().st_mode), 0o755)
            self.assertEqual(self.node.debris(), [])

    def test_deleted_by_hand(self) -> None:
        """What somebody deleted comes back, as it would at the next start."""
        self.upload(V1, SMALL)
        self.node.image(V1).rename(self.node.root / "away")
        self.heal(V1, SMALL)
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    @shows("F51")
    def test_serving_goes_on(self) -> None:
        """While it is damaged, and after the exchange, every good block is given, and never a bad one."""
        index = self.upload(V1, SMALL)
        want = dict(blocks_of(SMALL, index))
        numbers = sorted(want)
        bad = next(number for number in numbers if want[number] == b"hello\n")
        flip(self.node.image(V1) / "README")
        given = self.store.read_blocks(V1, index, numbers)
        self.assertEqual(given, [None if number == bad else want[number] for number in numbers])
        self.heal(V1, SMALL)
        self.assertEqual(self.store.read_blocks(V1, index, numbers), [want[number] for number in numbers])

    def test_deleted_meanwhile(self) -> None:
        """An image that was deleted while it was being healed would come back."""
        index = self.upload(V1, SMALL)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write(blocks_of(SMALL, index)))
        self.successResultOf(self.store.remove(V1, Tombstone(state_of(index).version, 1_700_000_000_999)))
        failed = self.failureResultOf(staging.restore(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.SUPERSEDED)
        self.successResultOf(staging.discard())
        self.assertFalse(self.node.image(V1).exists())
        self.assertEqual(self.successResultOf(self.store.load()).held, [])

    def test_upload_meanwhile(self) -> None:
        """An upload that is on its way is not undone by what it is going to replace."""
        index = self.upload(V1, SMALL)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write(blocks_of(SMALL, index)))
        newer = index_bytes({"/newer": b"newer"})[0]
        self.successResultOf(self.store.write_pending(Pending(V1, state_of(newer, 9), Command.REPLACE)))
        self.failureResultOf(staging.restore(state_of(index)), DownloadFailed)
        self.successResultOf(staging.discard())
        held = self.successResultOf(self.store.load()).held
        self.assertEqual([(one.committed.image, one.pending.state.image) for one in held], [(index.image, newer.image)])

    def test_signatures_meanwhile(self) -> None:
        """A signature that came in while an image was healed would be lost, and the version would go backwards."""
        index = self.upload(V1, SMALL)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write(blocks_of(SMALL, index)))
        later = state_of(index).merged((SigEntry(1_800_000_000_000, bytes(64)),))
        self.successResultOf(self.store.write_state(V1, later))
        self.successResultOf(staging.restore(state_of(index)))
        (held,) = self.successResultOf(self.store.load()).held
        self.assertEqual(held.committed, later)

    @shows("A50")
    def test_shared_by_two_images(self) -> None:
        """A bad byte in a file that two images share is found in both, and never linked from one into the other."""
        second: Spec = {**SMALL, "/own": b"own"}
        one, two = self.upload(V1, SMALL), index_bytes(second)[0]
        self.successResultOf(self.store.write_pending(Pending(V2, state_of(two), Command.APPEND)))
        staging = self.staged(V2, two)
        self.assertGreater(self.successResultOf(staging.reuse([(V1, one)])).files, 0)
        self.successResultOf(staging.write(blocks_of(second, two)))
        self.successResultOf(staging.commit(state_of(two)))
        flip(self.node.image(V1) / "a/big.bin")
        for vpath, index in ((V1, one), (V2, two)):
            found = self.successResultOf(self.store.examine(vpath, index).go_on(ALL))
            self.assertEqual([damage.path for damage in found.damages], ["/a/big.bin"])
        self.assertEqual(self.heal(V1, SMALL), 1)
        self.assertEqual(self.heal(V2, second), 1)
        self.assertEqual(on_disk(self.node.image(V2)), flat(second))


SPEC: Spec = {"/bad": b"bad", "/good": b"good", "/sub/x*": b"run"}
DAMAGED: Spec = {**SPEC, "/bad": b"cad"}


class Interrupted(SynchronousTestCase):
    """Kills and failures at each call of a heal that changes something (threats F37)."""

    def node(self) -> Node:
        node = Node(Path(self.mktemp()).absolute())
        index, data = index_bytes(SPEC)
        self.successResultOf(Deferred.fromCoroutine(self.upload(node, index, data)))
        flip(node.image(V1) / "bad")
        self.assertEqual(on_disk(node.image(V1)), flat(DAMAGED))
        return node

    async def upload(self, node: Node, index: Index, data: bytes) -> None:
        await node.store.write_pending(Pending(V1, state_of(index), Command.APPEND))
        await node.store.write_index(index.image, data)
        staging = await node.store.stage(V1, index)
        await staging.write(blocks_of(SPEC, index))
        await staging.commit(state_of(index))

    def sweep(self, code: int | None, refused: frozenset[str] = frozenset()) -> int:
        image = index_bytes(SPEC)[0].image
        at = 0
        while True:
            at += 1
            Faults().install(self)
            node = self.node()
            faults = Faults(at, code, refused)
            faults.install(self)
            outcome: list[object] = []
            Deferred.fromCoroutine(heal(node, V1, SPEC)).addBoth(outcome.append)
            Faults().install(self)
            self.flushLoggedErrors(Killed)
            if code is not None or not refused:
                self.assertIn(on_disk(node.image(V1)), [flat(DAMAGED), flat(SPEC)], f"call {at}: {faults.calls[at - 1 :][:1]}")
            if code is not None and not isinstance(outcome[0], int):
                self.assertNotIn("v1.new.state", node.debris(), f"{at} {faults.calls[at - 3 : at + 3]} {outcome[0]}")
            if code is not None and at % 2:
                self.successResultOf(Deferred.fromCoroutine(heal(node, V1, SPEC)))
            node.store.close()
            node.store = node.restarted()
            (held,) = self.successResultOf(node.store.load()).held
            assert held.committed is not None
            self.assertEqual((held.committed.image, held.pending), (image, None))
            self.assertIn(on_disk(node.image(V1)), [flat(DAMAGED), flat(SPEC)], f"call {at} and a start")
            self.assertEqual(node.debris(), [])
            self.successResultOf(Deferred.fromCoroutine(heal(node, V1, SPEC)))
            self.assertEqual(on_disk(node.image(V1)), flat(SPEC))
            node.store.close()
            if not faults.reached:
                return at

    @shows("F37")
    def test_kills(self) -> None:
        """The only copy would be lost, or the record of it."""
        self.assertGreater(self.sweep(None), 20)

    @shows("F37")
    def test_kills_without_exchange(self) -> None:
        """The same where the trees change places by three renames: a start puts the old one back."""
        self.assertGreater(self.sweep(None, frozenset({"renameat2"})), 20)

    @shows("F37", "A39")
    def test_failures(self) -> None:
        """A disk that is full or read-only while an image is healed: the damaged copy stays, nothing else does."""
        for code in (errno.EIO, errno.ENOSPC, errno.EROFS):
            self.assertGreater(self.sweep(code), 20)


class Attacked(Real):
    """A program on the same host that writes into files which images share."""

    @shows("A50", "F59")
    def test_edits_while_files_are_linked(self) -> None:
        """What somebody edits while it is hashed and linked would become part of another image, and spread from there."""
        spec: Spec = {f"/{number}": bytes([number]) * 3 * BLOCK_BYTES for number in range(4)}
        index = self.upload(V1, spec)
        want = dict(blocks_of(spec, index))
        files = [self.node.image(V1) / str(number) for number in range(4)]
        stop, edits = Event(), [0]

        def attack() -> None:
            while not stop.is_set():
                path = files[edits[0] % 4]
                edits[0] += 1
                flip(path, edits[0] * 7919 % (3 * BLOCK_BYTES))
                if edits[0] % 5 == 0:
                    os.truncate(path, BLOCK_BYTES)
                if edits[0] % 7 == 0:
                    path.chmod(0o600)
                if edits[0] % 3 == 0:  # and now and then it is whole again, so that there is something to link
                    for other in files:
                        other.write_bytes(bytes([int(other.name)]) * 3 * BLOCK_BYTES)
                        other.chmod(0o644)

        attacker = Thread(target=attack)
        attacker.start()
        rounds = linked = shown = refused = 0
        try:
            while rounds < 40 or edits[0] < 400 or not linked:
                rounds += 1
                state = state_of(index, 1_700_000_000_200 + rounds)
                self.successResultOf(self.store.write_pending(Pending(V2, state, Command.REPLACE)))
                staging = self.staged(V2, index)
                linked += self.successResultOf(staging.reuse([(V1, index)])).files
                self.successResultOf(staging.write(sorted(want.items())))
                ended: list[object] = []
                staging.commit(state).addBoth(ended.append)
                if ended == [None]:
                    shown += 1
                    given = self.store.read_blocks(V2, index, sorted(want))
                    self.assertTrue(all(data in (None, want[number]) for number, data in enumerate(given)), "a wrong block was served")
                    self.successResultOf(self.store.remove(V2, Tombstone(state.version, 1)))
                else:
                    refused += 1
                    self.successResultOf(self.store.drop_pending(V2))
        finally:
            stop.set()
            attacker.join()
        self.assertGreater(linked, 0, "nothing was linked: the attack was on nothing")
        self.assertEqual(shown + refused, rounds)
        for path in files:
            path.write_bytes(b"the end of V1")
        self.successResultOf(self.store.write_pending(Pending(V2, state_of(index, 1_700_000_001_000), Command.REPLACE)))
        staging = self.staged(V2, index)
        self.assertEqual(self.successResultOf(staging.reuse([(V1, index)])).files, 0)
        self.successResultOf(staging.write(sorted(want.items())))
        self.successResultOf(staging.commit(state_of(index, 1_700_000_001_000)))
        self.assertEqual(on_disk(self.node.image(V2)), flat(spec))
