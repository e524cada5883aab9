"""Deleting an image, remembering that, and collecting the indexes that nobody needs any more."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import cbor2
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ciruela.disk import states, tombstones
from ciruela.disk.safedir import SafeDir
from ciruela.index.tree import Index
from ciruela.interfaces import Held, Pending
from ciruela.model.errors import DiskError, FormatError
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command
from ciruela.model.versions import Tombstone, Tombstones, Version
from ciruela.tracking.ledger import Ledger
from tests.disk.faulty import Faults, Killed
from tests.disk.real import V1, V2, Real
from tests.disk.trees import CHANGED, SMALL, Spec, blocks_of, flat, index_bytes, on_disk, state_of
from tests.proof import shows

STAMP = 1_700_000_000_123
LATER = STAMP + 1_000_000
OTHER: Spec = {"/other": b"other"}


def tombstone(index: Index, stamp: int = STAMP) -> Tombstone:
    return Tombstone(Version(stamp, index.image), LATER)


class Removing(Real):
    """``Store.remove``."""

    @shows("I9", "I10", "A12")
    def test_gone_and_remembered(self) -> None:
        """What was deleted would stay, come back after a restart, or take a neighbor with it."""
        index = self.upload(V1, SMALL)
        self.upload(V2, OTHER)
        found = self.successResultOf(self.store.remove(V1, tombstone(index)))
        self.assertEqual(found, Tombstones(0, {"v1": tombstone(index)}))
        self.assertFalse(self.node.image(V1).exists())
        self.assertEqual(
            sorted(path.name for path in (self.node.db / "signatures" / "app" / "web").iterdir()), [tombstones.NAME, "v2.state"]
        )
        loaded = self.successResultOf(self.node.restarted().load())
        self.assertEqual([held.vpath for held in loaded.held], [V2])
        self.assertEqual(dict(loaded.burials), {V1.base: found})
        self.assertEqual(on_disk(self.node.image(V2)), flat(OTHER))
        self.assertEqual(self.node.debris(), [])

    def test_signed(self) -> None:
        """A removal would leave an older image of which its signer did not know, or be forgotten where there is nothing."""
        index = self.upload(V1, SMALL)
        other, _ = index_bytes(CHANGED)
        signed = Tombstone(Version(STAMP + 1, other.image), LATER, (b"s" * 64,))
        self.failureResultOf(self.store.remove(V1, Tombstone(Version(STAMP - 1, index.image), LATER, (b"s" * 64,))), DiskError)
        self.assertTrue(self.node.image(V1).exists())
        self.assertEqual(self.successResultOf(self.store.remove(V1, signed)), Tombstones(0, {"v1": signed}))
        self.assertFalse(self.node.image(V1).exists())
        self.successResultOf(self.store.remove(V2, signed))
        loaded = self.successResultOf(self.node.restarted().load())
        self.assertEqual(dict(loaded.burials), {V1.base: Tombstones(0, {"v1": signed, "v2": signed})})

    @shows("I9")
    def test_two_at_once(self) -> None:
        """The first of two threads is often the last one to be heard: what the second deleted would be forgotten, and come back."""
        gone = {V1: self.upload(V1, SMALL), V2: self.upload(V2, OTHER)}
        told: list[Callable[[], object]] = []

        def threads(work: Callable[..., object], *args: object) -> Deferred[object]:
            found, done = work(*args), Deferred[object]()
            told.insert(0, lambda: done.callback(found))
            return done

        self.store._in_thread = threads  # type: ignore[assignment,method-assign]
        ledger = Ledger(Clock())
        for vpath, index in gone.items():
            ledger.commit(vpath, state_of(index))
            removed = self.store.remove(vpath, Tombstone(Version(STAMP, index.image), LATER, (b"s" * 64,)))
            removed.addCallback(lambda found, vpath=vpath: ledger.bury(vpath, found))
        while told:
            told.pop(0)()
        self.assertEqual((len(ledger), set(ledger.removed(V1.base))), (0, {"v1", "v2"}))

    def test_empty_directories_go(self) -> None:
        """Directories of services that are long gone would stay for ever; or one in use would go with them."""
        index = self.upload(V1, SMALL)
        other = self.upload(V2, OTHER)
        above = self.node.image(V1).parent
        self.successResultOf(self.store.remove(V1, tombstone(index)))
        self.assertTrue(above.exists())
        self.successResultOf(self.store.remove(V2, tombstone(other)))
        self.assertFalse(above.exists())
        self.assertTrue(above.parent.exists())
        self.upload(V2, OTHER)
        self.assertEqual(on_disk(self.node.image(V2)), flat(OTHER))

    def test_empty_directories_after_a_kill(self) -> None:
        """A kill between the two steps would leave the directory for ever."""
        index = self.upload(V1, SMALL)
        self.successResultOf(self.store.remove(V1, tombstone(index)))
        above = self.node.image(V1).parent
        above.mkdir()
        stranger = above.parent / "stranger"
        stranger.mkdir()
        self.successResultOf(self.node.restarted().load())
        self.assertFalse(above.exists())
        self.assertTrue(stranger.exists())

    @shows("I9", "A51")
    def test_only_what_was_meant(self) -> None:
        """An image that took its place meanwhile would be deleted in its stead."""
        index = self.upload(V1, SMALL)
        other, _ = index_bytes(CHANGED)
        self.failureResultOf(self.store.remove(V1, tombstone(other)), DiskError)
        self.failureResultOf(self.store.remove(V2, tombstone(index)), DiskError)
        self.successResultOf(self.store.write_pending(Pending(V1, state_of(other, LATER), Command.REPLACE)))
        failed = self.failureResultOf(self.store.remove(V1, tombstone(index)), DiskError).value
        self.assertIn("an upload is on its way", str(failed))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))
        self.assertEqual(dict(self.successResultOf(self.node.restarted().load()).burials), {})

    @shows("F37", "A43", "I9", "I10", "I11")
    def test_killed_anywhere(self) -> None:
        """A kill would leave half an image, one that is recorded and gone, or one that is gone and not remembered."""
        at, outcomes = 0, set()
        while True:
            at += 1
            Faults().install(self)
            index = self.upload(V1, SMALL)
            faults = Faults(at)
            faults.install(self)
            outcome: list[object] = []
            self.store.remove(V1, tombstone(index)).addBoth(outcome.append)
            Faults().install(self)
            self.flushLoggedErrors(Killed)
            self.store.close()
            self.store = self.node.store = self.node.restarted()
            loaded = self.successResultOf(self.store.load())
            standing = on_disk(self.node.image(V1)) if self.node.image(V1).exists() else None
            deleted = V1.base in loaded.burials
            outcomes.add(deleted)
            self.assertEqual(standing, None if deleted else flat(SMALL))
            self.assertEqual(loaded.held, [] if deleted else [Held(V1, state_of(index), None)])
            self.assertEqual(self.node.debris(), [])
            for path in (self.node.db / "signatures" / "app" / "web").iterdir():
                path.unlink()
            if standing is not None:
                self.node.image(V1).rename(self.node.root / f"kept{at}")
            if not faults.reached:
                self.assertGreater(at, 8)
                break
        self.assertEqual(outcomes, {False, True})

    @shows("F37", "A39", "I9")
    def test_disk_fails(self) -> None:
        """An image that still stands would count as deleted, and never be spread again."""
        index = self.upload(V1, SMALL)
        real = SafeDir.rename

        def rename(here: SafeDir, old: str, new: str, to: SafeDir | None = None) -> None:
            if old == "v1":
                raise OSError(errno.EIO, "rename: Input/output error", old)
            real(here, old, new, to)

        self.patch(SafeDir, "rename", rename)
        self.failureResultOf(self.store.remove(V1, tombstone(index)), DiskError)
        loaded = self.successResultOf(self.node.restarted().load())
        self.assertEqual((dict(loaded.burials), [held.vpath for held in loaded.held]), ({}, [V1]))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    @shows("F58", "I1")
    def test_read_meanwhile(self) -> None:
        """Who reads an image, links from it or lists it while it is deleted would get half a file, or an error that ends more than that."""
        index = self.upload(V1, SMALL)
        everything = range(index.block_count)
        staging = self.staged(V2, index)
        seen: list[list[bytes | None]] = [self.store.read_blocks(V1, index, everything)]
        real = SafeDir.unlink

        def unlink(here: SafeDir, name: str) -> None:
            self.patch(SafeDir, "unlink", real)
            seen.append(self.store.read_blocks(V1, index, everything))
            self.assertEqual(self.successResultOf(staging.reuse([(V1, index)])).files, 0)
            self.assertFalse(self.successResultOf(self.store.present(V1)))
            self.patch(SafeDir, "unlink", unlink)
            real(here, name)

        self.patch(SafeDir, "unlink", unlink)
        self.successResultOf(self.store.remove(V1, tombstone(index)))
        self.patch(SafeDir, "unlink", real)
        seen.append(self.store.read_blocks(V1, index, everything))
        self.assertNotIn(None, seen[0])
        self.assertGreater(len(seen), 5)
        good = dict(blocks_of(SMALL, index))
        for found in seen:
            self.assertTrue(all(data is None or data == good[number] for number, data in enumerate(found)))
        self.assertEqual(set(seen[-1]), {None})
        newer = self.upload(V1, CHANGED)
        self.assertNotIn(None, self.store.read_blocks(V1, newer, range(newer.block_count)))

    @shows("I9", "A43")
    def test_newer_than_its_tombstone(self) -> None:
        """A path that was deleted and uploaded anew would be deleted again at the next start."""
        index = self.upload(V1, SMALL)
        self.successResultOf(self.store.remove(V1, tombstone(index)))
        opened, newer = self.filled(V1, CHANGED)
        self.successResultOf(opened.commit(state_of(newer, LATER)))
        held = self.successResultOf(self.node.restarted().load()).held
        self.assertEqual(
            [(found.vpath, found.committed and found.committed.version, found.pending) for found in held],
            [(V1, Version(LATER, newer.image), None)],
        )
        self.assertEqual(on_disk(self.node.image(V1)), flat(CHANGED))


class Remembering(Real):
    """The file of tombstones."""

    def content(self, count: int) -> Tombstones:
        return Tombstones(7, {f"n{number}": Tombstone(Version(number, ImageId(bytes(32))), 1000 + number) for number in range(count)})

    @shows("A45", "F39")
    def test_format(self) -> None:
        """A restart would forget what was deleted, or believe a damaged file."""
        for count in (0, 1, 300):
            self.assertEqual(tombstones.decode(tombstones.encode(self.content(count))), self.content(count))
        row = [1, bytes(32), 2]
        good = {"floor": 5, "tombstones": {"v1": row}}
        tombstones.decode(cbor2.dumps(good))
        for wrong in (
            {},
            [],
            {"floor": 5},
            good | {"floor": True},
            good | {"floor": -1},
            good | {"floor": 1 << 64},
            good | {"tombstones": []},
            *(
                good | {"tombstones": {"v1": one}}
                for one in ([], row[:2], [-1, *row[1:]], [1, bytes(31), 2], [1, "x", 2], [*row[:2], True], 1)
            ),
            good | {"tombstones": {b"v1": row}},
            good | {"more": bytes(tombstones.MAX_BYTES)},
        ):
            self.assertRaises(FormatError, tombstones.decode, cbor2.dumps(wrong))

    @shows("I6")
    def test_bounded(self) -> None:
        """The file, and with it each deletion, would grow for ever; what is forgotten must not come back."""
        index = self.upload(V1, SMALL)
        directory = self.node.db / "signatures" / "app" / "web"
        self.patch(tombstones, "MOST_TOMBSTONES", 60)
        before = self.content(60)
        (directory / tombstones.NAME).write_bytes(tombstones.encode(before))
        found = self.successResultOf(self.store.remove(V1, tombstone(index)))
        self.assertEqual((len(found.tombstones), "v1" in found.tombstones, "n0" in found.tombstones), (60, True, False))
        self.assertEqual(self.successResultOf(self.store.fold_burials(V1, 1000 + 50)).floor_ms, 49)

    @shows("A45", "I9")
    def test_damaged(self) -> None:
        """A damaged file would stop the start, or be overwritten before anybody could look at it."""
        self.upload(V1, SMALL)
        directory = self.node.db / "signatures" / "app" / "web"
        (directory / tombstones.NAME).write_bytes(b"garbage")
        loaded = self.successResultOf(self.node.restarted().load())
        self.assertEqual([held.vpath for held in loaded.held], [V1])
        self.assertEqual((directory / f".{tombstones.NAME}.backup").read_bytes(), b"garbage")


class Collecting(Real):
    """``Store.collect_indexes``."""

    def path(self, index: Index) -> Path:
        return self.node.db / "indexes" / index.image.hex()[:2] / f"{index.image.hex()}.ds1"

    def stored(self, spec: Spec) -> Index:
        index, data = index_bytes(spec)
        self.successResultOf(self.store.write_index(index.image, data))
        return index

    @shows("I9", "F37")
    def test_only_what_nobody_names(self) -> None:
        """An image would stand there that nobody can verify, serve or repair any more."""
        committed, pending = self.upload(V1, SMALL), self.stored(CHANGED)
        self.successResultOf(self.store.write_pending(Pending(V2, state_of(pending), Command.APPEND)))
        kept, loose = self.stored(OTHER), self.stored({"/loose": b"loose"})
        strange = self.node.db / "signatures" / "gone" / "x.state"
        strange.parent.mkdir()
        elsewhere = self.stored({"/elsewhere": b""})
        strange.write_bytes(states.encode_state(state_of(elsewhere)))
        self.assertEqual(self.successResultOf(self.store.collect_indexes({kept.image})), 1)
        self.assertFalse(self.path(loose).exists())
        for index in (committed, pending, kept, elsewhere):
            self.assertTrue(self.path(index).exists())

    @shows("I9", "A45")
    def test_not_in_doubt(self) -> None:
        """With a damaged state, or a db directory without any, all indexes would look as if nobody needed them."""
        loose = self.stored(OTHER)
        self.failureResultOf(self.store.collect_indexes(()), DiskError)
        self.upload(V1, SMALL)
        state = self.node.db / "signatures" / "app" / "web" / "v1.state"
        good = state.read_bytes()
        state.write_bytes(good[:-1])
        self.failureResultOf(self.store.collect_indexes(()), DiskError)
        self.assertTrue(self.path(loose).exists())
        state.write_bytes(good)
        self.assertEqual(self.successResultOf(self.store.collect_indexes(())), 1)

    @shows("I9")
    def test_wanted_meanwhile(self) -> None:
        """An upload that is accepted while indexes are collected would lose its index."""
        loose = self.stored(OTHER)
        self.upload(V1, SMALL)
        real = SafeDir.unlink

        def unlink(here: SafeDir, name: str) -> None:
            self.assertNotEqual(name, self.path(loose).name)
            real(here, name)

        self.patch(SafeDir, "unlink", unlink)
        names, wanted = SafeDir.names, []

        def listing(here: SafeDir) -> list[str]:
            if here.where == "signatures/app/web" and not wanted:
                wanted.append(loose)
                self.store._marks.want(loose.image)
            return names(here)

        self.patch(SafeDir, "names", listing)
        self.assertEqual(self.successResultOf(self.store.collect_indexes(())), 0)
        self.assertEqual(wanted, [loose])
        self.assertTrue(self.path(loose).exists())
