"""The ledger and its hashes."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Held, Loaded, Pending
from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command
from ciruela.model.versions import RetainedVersion, SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import ABORT_MEMORY_S, MAX_ABORTS, Ledger, base_dir_hash
from tests.proof import shows

A, B = (ImageId(bytes([number]) * 32) for number in (1, 2))
BASE = VPath.parse("/app/x")
V1, V2 = BASE.child("v1"), BASE.child("v2")


def state(image, *stamps, fill=7):
    return State(image, tuple(SigEntry(stamp, bytes([fill]) * 64) for stamp in stamps))


def pending(vpath, image, stamp=5):
    return Pending(vpath, state(image, stamp), Command.APPEND)


class BaseDirHashTests(SynchronousTestCase):
    """Nodes with the same versions must agree, all others must not."""

    def test_signatures_do_not_count(self):
        """Two nodes that hold different signatures of one version agree (or they would reconcile for ever)."""
        one = {"v1": state(A, 5, fill=1)}
        other = {"v1": state(A, 3, 5, fill=2)}
        self.assertEqual(base_dir_hash(one), base_dir_hash(other))

    def test_what_counts(self):
        """Another name, image or signing time is another hash; the order of the entries is not."""
        hashes = {
            base_dir_hash({}),
            base_dir_hash({"v1": state(A, 5)}),
            base_dir_hash({"v2": state(A, 5)}),
            base_dir_hash({"v1": state(B, 5)}),
            base_dir_hash({"v1": state(A, 6)}),
            base_dir_hash({"v1": state(A, 5), "v2": state(A, 5)}),
        }
        self.assertEqual(len(hashes), 6)
        self.assertEqual(base_dir_hash({"v1": state(A, 5), "v2": state(B, 5)}), base_dir_hash({"v2": state(B, 5), "v1": state(A, 5)}))


class LedgerTests(SynchronousTestCase):
    """What a node says of itself follows from what it holds."""

    def setUp(self):
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.changes = []
        self.ledger.changed = self.changes.append

    def test_life_of_an_upload(self):
        """The hash changes when an upload is accepted, so that others begin too, and not again when it is committed."""
        self.assertIsNone(self.ledger.base_hash(BASE))
        self.ledger.begin(pending(V1, A))
        accepted = self.ledger.base_hash(BASE)
        self.assertEqual(accepted, base_dir_hash({"v1": state(A, 5)}))
        self.ledger.commit(V1, state(A, 5))
        self.assertEqual(self.ledger.base_hash(BASE), accepted)
        self.assertIsNone(self.ledger.pending(V1))
        self.assertEqual(self.changes, [BASE, BASE])
        self.assertEqual(len(self.ledger), 1)

    def test_pending_overrides(self):
        """While an image is replaced the node speaks of the new one, and still shows the old one."""
        self.ledger.commit(V1, state(A, 5))
        self.ledger.begin(pending(V1, B, 6))
        self.assertEqual(self.ledger.entries(BASE), {"v1": state(B, 6)})
        self.assertEqual(list(self.ledger.committed_in(BASE)), [(V1, state(A, 5))])
        self.assertEqual(self.ledger.latest(V1), state(B, 6))

    def test_commit_of_another_image_keeps_pending(self):
        """Signatures that grow on the committed image do not end a running replace."""
        self.ledger.commit(V1, state(A, 5))
        self.ledger.begin(pending(V1, B, 6))
        self.ledger.commit(V1, state(A, 5, 7))
        self.assertIsNotNone(self.ledger.pending(V1))

    @shows("A56")
    def test_abort(self):
        """A given-up upload leaves no trace in the hash, and is remembered for two minutes."""
        self.ledger.begin(pending(V1, A))
        self.ledger.abort(V1, 99)
        self.assertIsNone(self.ledger.base_hash(BASE))
        self.assertEqual(self.ledger.base_hashes(), {})
        self.assertTrue(self.ledger.recently_aborted(V1, Version(5, A)))
        self.assertFalse(self.ledger.recently_aborted(V1, Version(5, B)))
        self.assertEqual([(one.vpath, one.image, one.timestamp_ms) for one in self.ledger.abandoned()], [(V1, A, 99)])
        self.clock.advance(ABORT_MEMORY_S)
        self.assertEqual(self.ledger.abandoned(), [])

    def test_abort_restores_committed(self):
        """When a replace is given up the old image is what the node speaks of again."""
        self.ledger.commit(V1, state(A, 5))
        before = self.ledger.base_hash(BASE)
        self.ledger.begin(pending(V1, B, 6))
        self.ledger.abort(V1, 0)
        self.assertEqual(self.ledger.base_hash(BASE), before)

    def test_signed_again(self):
        """A user who makes room and syncs again would wait for two minutes, because a node would not hear of it from the others."""
        self.ledger.begin(pending(V1, A))
        self.ledger.abort(V1, 0)
        self.assertTrue(self.ledger.recently_aborted(V1, Version(4, A)))
        self.assertFalse(self.ledger.recently_aborted(V1, Version(6, A)))

    @shows("A39", "A54", "F30")
    def test_pauses(self):
        """A node whose disk fails would fetch a large image again and again, or come minutes late when only room was lacking."""
        pauses = []
        for _ in range(8):
            self.ledger.begin(pending(V1, A))
            self.ledger.abort(V1, 0)
            pauses.append(0)
            while self.ledger.recently_aborted(V1, Version(5, A)):
                self.clock.advance(1)
                pauses[-1] += 1
        self.assertEqual(pauses, [20, 40, 80, 160, 320, 640, 640, 640])
        self.ledger = Ledger(self.clock)
        for _ in range(5):
            self.ledger.begin(pending(V1, A))
            self.ledger.abort(V1, 0)
            self.clock.advance(5)
        self.clock.advance(15)
        self.assertFalse(self.ledger.recently_aborted(V1, Version(5, A)), "a client that tries again and again makes it no worse")
        self.ledger.commit(V1, state(A, 5))
        self.ledger.begin(pending(V1, A))
        self.ledger.abort(V1, 0)
        self.clock.advance(20)
        self.assertFalse(self.ledger.recently_aborted(V1, Version(5, A)))

    def test_abort_of_nothing(self):
        """Aborting twice does no harm."""
        self.ledger.abort(V1, 0)
        self.assertEqual(self.ledger.abandoned(), [])

    def test_begin_forgets_abort(self):
        """A client that tries again is not held back by an earlier failure."""
        self.ledger.begin(pending(V1, A))
        self.ledger.abort(V1, 0)
        self.ledger.begin(pending(V1, A))
        self.assertFalse(self.ledger.recently_aborted(V1, Version(5, A)))

    @shows("I6")
    def test_aborts_are_bounded(self):
        """Uploads that fail one after the other would fill the memory, and the datagrams that tell of them."""
        for number in range(MAX_ABORTS + 10):
            vpath = BASE.child(f"x{number}")
            self.ledger.begin(pending(vpath, A))
            self.ledger.abort(vpath, number)
        known = self.ledger.abandoned()
        self.assertEqual((len(known), known[-1].timestamp_ms), (MAX_ABORTS, MAX_ABORTS + 9))

    def test_fill(self):
        """After a restart the node says what it said before."""
        held = [Held(V1, state(A, 5), None), Held(V2, None, pending(V2, B)), Held(BASE.child("v3"), None, None)]
        self.ledger.fill(Loaded(held, {}))
        self.assertEqual(self.ledger.entries(BASE), {"v1": state(A, 5), "v2": state(B, 5)})
        self.assertEqual([one.vpath for one in self.ledger.pendings()], [V2])
        self.assertEqual(self.changes, [])

    @shows("I9")
    def test_two_deletions_at_once(self):
        """Of two images that are deleted at the same time one would be forgotten here, and come back from a node that missed it."""
        stones = {name: Tombstone(Version(5, A), 9, (bytes(64),)) for name in ("v1", "v2")}
        for later in ("bury", "fold"):
            self.setUp()
            self.ledger.bury(V2, Tombstones(0, stones, serial=8))
            earlier = Tombstones(0, {"v1": stones["v1"]}, serial=7)
            self.ledger.bury(V1, earlier) if later == "bury" else self.ledger.fold(BASE, earlier)
            self.assertEqual(set(self.ledger.removed(BASE)), {"v1", "v2"})
            self.ledger.fold(BASE, Tombstones(5, {}, serial=9))
            self.assertEqual(self.ledger.burials(BASE), Tombstones(5, {}))

    @shows("F44", "I5")
    def test_directory_taken_away(self):
        """A directory that is configured no more, and in which only removals are known, would be told of for ever, and asked for."""
        gone = Tombstones(0, {"v1": Tombstone(Version(5, A), 9, (bytes(64),))})
        self.ledger.commit(V1, state(A, 5))
        self.ledger.keep(V1, (RetainedVersion(Version(4, B)),))
        self.ledger.vanish(V1, None)
        self.ledger.fold(BASE, gone)
        self.assertIsNotNone(self.ledger.base_hash(BASE))
        before = self.ledger.revision(BASE)
        self.ledger.forget("app")
        self.assertEqual((dict(self.ledger.base_hashes()), self.ledger.kept(V1), self.ledger.kept_images()), ({}, (), set()))
        self.assertGreater(self.ledger.revision(BASE), before)
        self.ledger.commit(VPath.parse("/app/y/v1"), state(A, 5))
        self.assertEqual(self.ledger.kept(V1), ())

    def test_level_zero(self):
        """A directory that is itself the image is its own base dir."""
        whole = VPath.parse("/site")
        self.ledger.commit(whole, state(A, 5))
        self.assertEqual(self.ledger.entries(whole), {"": state(A, 5)})


class ClaimTests(SynchronousTestCase):
    """What an append-only directory tells besides: claims and removals that something newer outlived."""

    def setUp(self):
        configs = {
            key: DirConfig(key, f"/srv/{key}", append_only=key == "log", num_levels=2, on_append_conflict=OnConflict.CONVERGE)
            for key in ("app", "log")
        }
        self.ledger = Ledger(Clock(), configs)

    @shows("K2.1", "I5")
    def test_hash(self):
        """Nodes with one version and two claims would call themselves equal, and not agree on what to do with a third."""
        one, other = {"v1": state(A, 5)}, {"v1": state(A, 3, 5)}
        self.assertEqual(base_dir_hash(one), base_dir_hash(other))
        self.assertEqual(base_dir_hash(one), base_dir_hash(one, append_only=True))
        self.assertNotEqual(base_dir_hash(one, append_only=True), base_dir_hash(other, append_only=True))
        gone = {"v1": Version(4, A)}
        self.assertEqual(base_dir_hash(one, gone, append_only=True), base_dir_hash(other, gone, append_only=True))

    @shows("K2.1")
    def test_removal_is_told_on(self):
        """A node that was away would not hear that what it has was removed before something else was uploaded."""
        for key, told in (("app", set()), ("log", {"v1"})):
            vpath = VPath.parse(f"/{key}/x/v1")
            self.ledger.bury(vpath, Tombstones(0, {"v1": Tombstone(Version(5, A), 9, (bytes(64),)), "v2": Tombstone(Version(6, A), 9)}))
            self.assertEqual(set(self.ledger.removed(vpath.base)), {"v1"})
            before = self.ledger.base_hash(vpath.base)
            self.ledger.commit(vpath, state(B, 7))
            self.assertEqual(set(self.ledger.removed(vpath.base)), told)
            self.assertNotEqual(self.ledger.base_hash(vpath.base), before)
            self.assertIsNone(self.ledger.removal(vpath))
