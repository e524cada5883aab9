"""Replaced images that are kept: what stands where after a kill at any moment, and when they go."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace

import cbor2
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import retained
from ciruela.disk.layout import place
from ciruela.disk.store import Store
from ciruela.model.errors import FormatError
from ciruela.model.versions import RetainedVersion, SigEntry, Version
from ciruela.proto.bounded import loads
from tests.disk.bench import CONFIGS, K1, NEW, OLD, OTHER, Bench, done, indexed, outcome, succeed
from tests.disk.faulty import Killed
from tests.disk.sweep import KINDS, Fault
from tests.disk.trees import flat, in_place, state_of
from tests.proof import shows

IDS = {name: indexed(spec)[0].image for name, spec in (("old", OLD), ("new", NEW), ("other", OTHER))}


class KeptTests(SynchronousTestCase):
    """One replaced image is kept here."""

    def setUp(self) -> None:
        self.addCleanup(self.forget_kills)
        self.bench = Bench()
        self.bench.sim.install(self)
        self.upload(OLD, 1)

    def forget_kills(self) -> None:
        gc.collect()
        self.flushLoggedErrors(Killed)

    def upload(self, spec: dict[str, bytes | str | None], time: int) -> None:
        succeed(self.bench, lambda bench: bench.upload(K1, spec, time))

    def held(self) -> tuple[RetainedVersion, ...]:
        """What a start says is kept."""
        self.bench.restart()
        found = [held.kept for held in self.bench.loaded().held if held.vpath == K1]
        return found[0] if found else ()

    def kept(self, name: str, time: int) -> RetainedVersion:
        """The row of an image that was uploaded at ``time``."""
        return RetainedVersion(Version(time, IDS[name]), (SigEntry(time, bytes([time]) * 64),))

    def test_replaced(self) -> None:
        """There would be nothing to go back to; or every image that ever was would stay for ever."""
        self.upload(NEW, 5)
        self.assertEqual(self.bench.kept_tree(OLD), flat(OLD))
        self.upload(OTHER, 7)
        self.assertEqual(self.held(), (self.kept("new", 5),))
        self.assertIsNone(self.bench.kept_tree(OLD))
        self.assertEqual(self.bench.debris(), set())

    def test_back_and_forth(self) -> None:
        """Going back would lose the image that one came from, or copy everything."""
        self.upload(NEW, 5)
        inode = self.bench.sim.inodes(f"/n/kept/{place(CONFIGS, K1).kept(IDS['old'])}/keep")[0][1].number
        self.upload(OLD, 9)
        self.assertEqual(self.bench.tree(K1), flat(OLD))
        self.assertEqual(self.bench.sim.inodes("/n/kept/main/keep")[0][1].number, inode)
        self.assertEqual(self.held(), (self.kept("new", 5),))
        self.upload(NEW, 11)
        self.assertEqual(self.held(), (self.kept("old", 9),))

    def test_kill_at_any_moment(self) -> None:
        """After a crash the old image would be gone although the new one stands there, or its tree would be left under some name."""
        bench = self.bench
        done_calls = Fault(None, 0)
        probe = bench.copy()
        with probe.sim.installed():
            probe.sim.before = done_calls
            succeed(probe, lambda bench: bench.upload(K1, NEW, 5))
        for exchanges in (True, False):
            for at in range(1, len(done_calls.calls) + 1):
                copy = bench.copy()
                with copy.sim.installed():
                    copy.sim.volume("/n").exchanges = exchanges
                    copy.sim.before = Fault(KINDS["kill"], at)
                    outcome(copy, lambda bench: bench.upload(K1, NEW, 5))
                    copy.restart()
                    (held,) = [held for held in copy.loaded().held if held.vpath == K1]
                    assert held.committed is not None
                    new = held.committed.image == IDS["new"]
                    self.assertEqual(held.kept, (self.kept("old", 1),) if new else (), f"call {at}: {done_calls.calls[at - 1]}")
                    self.assertEqual(copy.kept_tree(OLD), flat(OLD) if new else None)
                    copy.store.close()

    def test_served(self) -> None:
        """A node that has it could not give it to those that lack it."""
        self.upload(NEW, 5)
        index, _, blocks = indexed(OLD)
        self.assertEqual(self.bench.store.read_blocks(K1, index, range(index.block_count)), [data for _, data in blocks])

    def test_removed_with_the_path(self) -> None:
        """What was removed would still be there, under a hidden name."""
        self.upload(NEW, 5)
        succeed(self.bench, lambda bench: bench.remove(K1, NEW, 5))
        self.assertIsNone(self.bench.kept_tree(OLD))
        self.assertEqual(self.held(), ())
        self.assertEqual(self.bench.debris(), set())

    def test_fewer_are_wanted(self) -> None:
        """Disk space would be taken for ever by what nobody wants to keep any more."""
        self.upload(NEW, 5)
        configs = CONFIGS | {"kept": replace(CONFIGS["kept"], keep_replaced=0)}
        self.bench.restart()
        self.bench.store = Store("/n/db", configs, in_place)
        self.bench.loaded()
        self.assertIsNone(self.bench.kept_tree(OLD))
        self.assertNotIn("/signatures/kept/.main.kept", self.bench.records())

    def test_index_stays(self) -> None:
        """The index of what is kept would be collected, and nobody could go back to it."""
        self.upload(NEW, 5)
        done(self.bench.store.collect_indexes([state_of(indexed(NEW)[0], 5).image]))
        self.assertIsNotNone(done(self.bench.store.read_index(IDS["old"])))

    def test_bad_record(self) -> None:
        """A damaged record would keep a node from starting, or a collection would go on without it."""
        self.upload(NEW, 5)
        self.bench.sim.write("/n/db/signatures/kept/.main.kept", b"junk")
        failed: list[object] = []
        collecting: Deferred[int] = self.bench.store.collect_indexes([])
        collecting.addErrback(lambda failure: failed.append(failure.getErrorMessage()))
        self.assertIn("no index is deleted", str(failed[0]))
        self.assertEqual(self.held(), ())
        self.assertEqual(self.bench.tree(K1), flat(NEW))

    @shows("S1")
    def test_signatures_stay(self) -> None:
        """A client could not see that the image it is to sign again was ever signed by somebody whom it trusts."""
        self.upload(NEW, 5)
        self.upload(NEW, 6)
        self.upload(OTHER, 7)
        (kept_now,) = self.held()
        self.assertEqual(kept_now.version, Version(6, IDS["new"]))
        self.assertEqual([entry.timestamp_ms for entry in kept_now.signatures][-1], 6)

    def test_earlier_record(self) -> None:
        """What was kept before an update would be forgotten by it, or by going back to the earlier version."""
        row = retained.RetainedRow(Version(5, IDS["old"]), 7, (SigEntry(5, b"s" * 64),))
        self.assertEqual(retained.decode(cbor2.dumps({"kept": [[5, IDS["old"], 7]]})), (replace(row, signatures=()),))
        most = [
            retained.RetainedRow(Version(number, IDS["old"]), number, tuple(SigEntry(at, b"s" * 64) for at in range(16)))
            for number in range(900)
        ]
        for rows in ([row], [row] * 500, most):
            data = retained.encode(rows)
            fields = loads(data, max_items=8 + 4 * retained.MOST, max_depth=3)
            assert isinstance(fields, dict)
            self.assertLessEqual(len(data), 64 * 1024)
            self.assertEqual(fields["kept"], [[one.version.timestamp_ms, one.version.image, one.inode] for one in rows])
            self.assertEqual([one.version for one in retained.decode(data)], [one.version for one in rows])
            self.assertEqual(retained.decode(data)[0].signatures, rows[0].signatures)

    @shows("K3.3")
    def test_flipped_bits(self) -> None:
        """Somebody would be shown another time, or another image, than was kept; or the other images would be lost with one bit."""
        rows = (
            retained.RetainedRow(Version(6, IDS["old"]), 7, (SigEntry(5, b"r" * 64), SigEntry(6, b"s" * 64))),
            retained.RetainedRow(Version(9, IDS["new"]), 8, (SigEntry(9, b"t" * 64),)),
        )
        good = retained.encode(rows)
        salvaged = 0
        for at in range(8 * len(good)):
            bent = bytearray(good)
            bent[at // 8] ^= 1 << at % 8
            with contextlib.suppress(FormatError):
                self.assertEqual(
                    [(one.version, one.inode) for one in retained.decode(bytes(bent))], [(one.version, one.inode) for one in rows]
                )
            with contextlib.suppress(FormatError):
                found = retained.salvaged(bytes(bent))
                salvaged += 1
                self.assertEqual(len(found), len(rows))
                changed = [
                    one for one, before in zip(found, rows, strict=True) if (one.version, one.inode) != (before.version, before.inode)
                ]
                self.assertLessEqual(len(changed), 1)
        self.assertGreater(salvaged, len(good) * 6)
        (bent_row, _) = retained.salvaged(good.replace(b"\x83\x06", b"\x83\x07", 1))
        self.assertEqual(bent_row, rows[0])

    @shows("K3.3", "I9")
    def test_damaged_record(self) -> None:
        """With one bit that the disk lost all kept images would be debris, and deleted by the next start."""
        self.upload(NEW, 5)
        at = "/n/db/signatures/kept/.main.kept"
        good = self.bench.records()["/signatures/kept/.main.kept"]
        bent = bytearray(good)
        bent[good.index(b"\x83\x01") + 1] ^= 2
        self.bench.sim.write(at, bytes(bent))
        self.assertEqual(self.held(), (self.kept("old", 1),))
        self.assertEqual(self.bench.kept_tree(OLD), flat(OLD))
        records = self.bench.records()
        self.assertEqual(records["/signatures/kept/.main.kept"], good)
        self.assertEqual(records["/signatures/kept/..main.kept.backup"], bytes(bent))
        (event,) = [one for one in self.bench.sim.inodes("/n/db/signatures/kept") if one[0].endswith(".backup")]
        self.assertEqual(event[1].mode & 0o777, 0o640)

    @shows("A59")
    def test_record_without_a_checksum(self) -> None:
        """An update would lose all that is kept."""
        self.upload(NEW, 5)
        fields = cbor2.loads(self.bench.records()["/signatures/kept/.main.kept"])
        del fields["ciruela"]
        self.bench.sim.write("/n/db/signatures/kept/.main.kept", cbor2.dumps(fields))
        self.assertEqual(self.held(), (self.kept("old", 1),))
        self.upload(OTHER, 7)
        self.assertIn("ciruela", cbor2.loads(self.bench.records()["/signatures/kept/.main.kept"]))

    def test_bad_signatures(self) -> None:
        """A bit that flipped in a signature would cost the image that is kept."""
        good = [0, 5, b"s" * 64]
        bad: list[object] = [
            [0, 5, b"short"],
            [0, -5, b"s" * 64],
            [True, 5, b"s" * 64],
            [9, 5, b"s" * 64],
            7,
            [],
            {},
        ]
        for signatures, found in (([*bad, good], 1), (bad, 0), (7, 0), ({}, 0)):
            (row,) = retained.decode(cbor2.dumps({"kept": [[5, IDS["old"], 7]], "signatures": signatures}))
            self.assertEqual((row.version, row.inode, len(row.signatures)), (Version(5, IDS["old"]), 7, found))

    def test_record_form(self) -> None:
        """Anything in the db directory might be read as rows."""
        row = retained.RetainedRow(Version(5, IDS["old"]), 7)
        self.assertEqual(retained.decode(retained.encode([row])), (row,))
        signed = replace(row, signatures=(SigEntry(4, b"r" * 64), SigEntry(5, b"s" * 64)))
        self.assertEqual(retained.decode(retained.encode([signed, row])), (signed, row))
        for bad in (
            b"",
            b"\xa0",
            retained.encode([replace(row, inode=-1)]),
            retained.encode([replace(row, version=Version(5, b"x"))]),
            b"\x00" * 70_000,
        ):
            with self.assertRaises(FormatError):
                retained.decode(bad)
