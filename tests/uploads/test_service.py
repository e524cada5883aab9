"""From an order to a recorded, running download."""

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Pending
from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.errors import DiskError
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason, Accepted, Command, Origin, Progress, RejectReason, UploadRequest
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.decision import Elsewhere
from ciruela.uploads.service import Uploads
from tests.doubles.context import node_context
from tests.proof import shows

A, B = (ImageId(bytes([number]) * 32) for number in (1, 2))
V1 = VPath.parse("/app/v1")
NOW = 1_700_000_000_000


def entry(stamp=NOW, fill=7):
    return SigEntry(stamp, bytes([fill]) * 64)


def state(image, *entries):
    return State(image, entries or (entry(),))


class World:
    """Disk, authority and downloads that note what they are asked."""

    def __init__(self):
        self.events = []
        self.statements = []
        self.verified_answer = None
        self.write_answer = None
        self.there = True
        self.stalled_paths = set()
        self.settling = None

    def verified(self, config, vpath, image, entries, statement=signed_bytes):
        self.statements.append(statement)
        return succeed({one: f"key {one.signature[0]}" for one in entries}) if self.verified_answer is None else self.verified_answer

    def present(self, vpath):
        self.events.append(("present", vpath))
        return succeed(self.there)

    def write_pending(self, pending):
        self.events.append(("write_pending", pending))
        return succeed(None) if self.write_answer is None else self.write_answer

    def write_state(self, vpath, written):
        self.events.append(("write_state", vpath, written))
        return succeed(None)

    def conflicted(self, vpath, image, detail):
        self.events.append(("conflicted", vpath, image))

    def start(self, pending, hints, content):
        self.events.append(("start", pending, hints))

    def stop(self, vpath, reason):
        self.events.append(("stop", vpath, reason))

    def stalled(self, vpath):
        return vpath in self.stalled_paths

    def settled(self, vpath):
        return self.settling


def log_text(case):
    """What was logged as an error so far, as one text."""
    return "\n".join(formatEvent(event) for event in case.logged)


class UploadsTests(SynchronousTestCase):
    """What is accepted is recorded before it is answered."""

    def setUp(self):
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.world = World()
        self.ledger = Ledger(Clock())
        configs = {
            "app": DirConfig("app", "/srv/app", append_only=False, num_levels=1),
            "log": DirConfig("log", "/srv/log", append_only=True, num_levels=1),
            "ice": DirConfig("ice", "/srv/ice", append_only=True, num_levels=1, on_append_conflict=OnConflict.FREEZE),
        }
        self.uploads = Uploads(
            node_context(configs=configs, disk=self.world, authority=self.world, now_ms=lambda: NOW),
            self.ledger,
            self.world,
            self.world.conflicted,
        )

    def order(self, image=A, command=Command.APPEND, origin=Origin.CLIENT, path=V1, entries=None, hints=()):
        return self.uploads.order(UploadRequest(command, path, image, None, entries or (entry(),), origin), hints)

    @shows("A11", "I4")
    def test_check(self):
        """A question would be judged by the signature of an upload, or otherwise than the upload, or begin something."""
        path = VPath.parse("/log/v1")
        self.ledger.commit(path, state(B, entry(NOW - 1, 8)))
        self.ledger.commit(V1, state(B, entry(NOW - 1, 8)))
        for vpath, image, command in (
            (V1, A, Command.APPEND),
            (V1, A, Command.REPLACE),
            (V1, B, Command.APPEND),
            (path, A, Command.APPEND),
            (path, A, Command.REPLACE),
            (VPath.parse("/app/v9"), A, Command.APPEND),
            (VPath.parse("/app/x/y"), A, Command.APPEND),
            (VPath.parse("/none/v1"), A, Command.APPEND),
        ):
            order = UploadRequest(command, vpath, image, None, (entry(),), Origin.CLIENT)
            told = self.successResultOf(self.uploads.check(order))
            self.assertEqual(self.world.events, [])
            done = self.successResultOf(self.uploads.order(order))
            self.assertEqual(told, done)
            self.world.events.clear()
        self.assertEqual(self.world.statements[:2], [signed_check_bytes, signed_bytes])
        self.world.verified_answer = succeed({})
        refused = self.successResultOf(self.uploads.check(UploadRequest(Command.APPEND, V1, A, None, (entry(),), Origin.CLIENT)))
        self.assertEqual(refused.reason, RejectReason.SIGNATURE_MISMATCH)

    def test_new(self):
        """Recorded, then started, then answered."""
        verdict = self.successResultOf(self.order(hints=("address",)))
        pending = Pending(V1, state(A), Command.APPEND)
        self.assertEqual(verdict, Accepted(Progress.NEW, state(A)))
        self.assertEqual(
            self.world.events, [("stop", V1, AbortReason.SUPERSEDED), ("write_pending", pending), ("start", pending, ("address",))]
        )
        self.assertEqual(self.ledger.pending(V1), pending)

    @shows("A51")
    def test_conflict_is_told(self):
        """The client whose image gave way would believe that it is on every node."""
        path = VPath.parse("/log/v1")
        self.ledger.commit(path, state(B, entry(NOW + 1)))
        verdict = self.successResultOf(self.order(origin=Origin.PEER, path=path))
        self.assertTrue(verdict.conflict)
        self.assertEqual(self.world.events[:2], [("conflicted", path, B), ("stop", path, AbortReason.CONFLICT)])
        self.assertEqual(self.ledger.pending(path).state.image, A)
        self.assertIn("conflict at append-only /log/v1", log_text(self))

    @shows("A51", "K2.1")
    def test_first_stays(self):
        """What was uploaded first and acknowledged would be displaced by a later append, whose client would not hear that it lost."""
        path = VPath.parse("/log/v1")
        self.ledger.commit(path, state(B, entry(NOW - 1)))
        refused = []
        self.uploads.refused = lambda order, reason: refused.append((order.image, reason))
        verdict = self.successResultOf(self.order(origin=Origin.PEER, path=path))
        self.assertEqual(verdict.reason, RejectReason.CONFLICT)
        self.assertEqual(self.world.events, [("conflicted", path, A)])
        self.assertEqual(refused, [(A, RejectReason.CONFLICT)])
        self.assertIsNone(self.ledger.pending(path))

    @shows("A51")
    def test_frozen(self):
        """With freeze the node keeps what it has, and says so to the client and in the log."""
        path = VPath.parse("/ice/v1")
        self.ledger.commit(path, state(B, entry(NOW - 1)))
        verdict = self.successResultOf(self.order(origin=Origin.PEER, path=path))
        self.assertEqual(verdict.reason, RejectReason.CONFLICT)
        self.assertEqual(self.world.events, [("conflicted", path, B)])
        self.assertIsNone(self.ledger.pending(path))
        self.assertIn(f"{A.hex()}, here {B.hex()} stays", log_text(self))

    @shows("A12")
    def test_deleted(self):
        """The ledger's tombstones and floors would be known and not asked."""
        version = state(A).version
        self.ledger.bury(V1, Tombstones(0, {"v1": Tombstone(version, NOW)}))
        self.assertEqual(self.successResultOf(self.order()).reason, RejectReason.STALE_TIMESTAMP)
        self.ledger.bury(V1, Tombstones(NOW, {}))
        self.assertIsInstance(self.successResultOf(self.order()), Accepted)
        other = self.order(origin=Origin.PEER, path=VPath.parse("/app/v2"))
        self.assertEqual(self.successResultOf(other).reason, RejectReason.STALE_TIMESTAMP)

    def test_refused_without_reading_keys(self):
        """A request for another directory costs no disk access."""
        self.world.verified_answer = fail(AssertionError("not to be asked"))
        self.world.verified_answer.addErrback(lambda _: None)
        verdict = self.successResultOf(self.order(path=VPath.parse("/other/v1")))
        self.assertEqual(verdict.reason, RejectReason.NO_CONFIG)
        self.assertEqual(self.world.events, [])

    @shows("A18", "I4")
    def test_unsigned_leaves_no_trace(self):
        """Nothing is written, started or remembered for a request that no key signed (threats A18)."""
        self.world.verified_answer = succeed({})
        self.assertEqual(self.successResultOf(self.order()).reason, RejectReason.SIGNATURE_MISMATCH)
        self.assertEqual(self.world.events, [])
        self.assertEqual(self.ledger.base_hashes(), {})

    @shows("K2.1", "A18")
    def test_strangers_make_nobody_ask(self):
        """Each request that no key signed would make this node ask five others; and peers would ask each other in turn."""
        asked = []

        class Others:
            def ask(self, vpath):
                asked.append(vpath)
                return succeed(Elsewhere(frozenset({Version(NOW - 9, B)})))

        self.uploads.neighbours = Others()
        self.world.verified_answer = succeed({})
        for command in Command:
            self.assertEqual(self.successResultOf(self.order(command=command)).reason, RejectReason.SIGNATURE_MISMATCH)
            self.world.verified_answer = succeed({})
        self.world.verified_answer = None
        self.assertIsInstance(self.successResultOf(self.order(origin=Origin.PEER, path=VPath.parse("/app/v2"))), Accepted)
        self.assertEqual(asked, [])
        self.assertEqual(self.successResultOf(self.order()).reason, RejectReason.ALREADY_EXISTS)
        self.assertEqual(asked, [V1])

    @shows("S2")
    def test_refused_for_its_command(self):
        """A replace that an append-only directory refused would be granted as an append; one that nobody signed would fill the memory."""
        path = VPath.parse("/log/v1")
        self.assertEqual(self.successResultOf(self.order(command=Command.REPLACE, path=path)).reason, RejectReason.DIR_IS_APPEND_ONLY)
        self.assertEqual(self.successResultOf(self.order(path=path)).reason, RejectReason.SIGNATURE_MISMATCH)
        self.assertIsInstance(self.successResultOf(self.order(path=path, entries=(entry(NOW + 1, 8),))), Accepted)
        self.world.verified_answer = succeed({})
        other = VPath.parse("/log/v2")
        self.successResultOf(self.order(command=Command.REPLACE, path=other))
        self.assertEqual(self.uploads.forms.at(other, NOW), ())

    def test_keys_unreadable(self):
        """Keys that cannot be read are an error, not a refusal."""
        self.world.verified_answer = fail(DiskError("keys: permission denied"))
        self.failureResultOf(self.order(), DiskError)

    @shows("A39", "F29")
    def test_record_fails(self):
        """What cannot be recorded is not accepted, and the path is free again (protocol C10)."""
        self.world.write_answer = fail(DiskError("no space"))
        self.failureResultOf(self.order(), DiskError)
        self.assertIsNone(self.ledger.pending(V1))
        self.world.write_answer = None
        self.assertIsInstance(self.successResultOf(self.order()), Accepted)

    @shows("A52")
    def test_one_at_a_time(self):
        """Two requests for one path are judged one after the other: the second sees the first."""
        held = Deferred()
        self.world.write_answer = held
        first, second = self.order(A), self.order(B)
        self.assertNoResult(first)
        self.assertNoResult(second)
        self.world.write_answer = None
        held.callback(None)
        self.assertIsInstance(self.successResultOf(first), Accepted)
        self.assertEqual(self.successResultOf(second).reason, RejectReason.ALREADY_UPLOADING)

    def test_other_paths_do_not_wait(self):
        """A slow disk for one path does not hold up another."""
        self.world.write_answer = Deferred()
        self.assertNoResult(self.order(A))
        self.world.write_answer = None
        self.assertIsInstance(self.successResultOf(self.order(A, path=VPath.parse("/app/v2"))), Accepted)

    @shows("A15", "F11")
    def test_already_done(self):
        """The same signature again writes nothing; a new one is recorded."""
        self.ledger.commit(V1, state(A))
        self.assertEqual(self.successResultOf(self.order()).progress, Progress.ALREADY_DONE)
        self.assertEqual(self.world.events, [("present", V1)])
        self.successResultOf(self.order(entries=(entry(NOW + 1, 8),)))
        merged = state(A, entry(), entry(NOW + 1, 8))
        self.assertIn(("write_state", V1, merged), self.world.events)
        self.assertEqual(self.ledger.committed(V1), merged)

    @shows("K3.6")
    def test_again_and_again(self):
        """A job that uploads the same image each night would make the state grow until no node can list the directory."""
        for path, stays in ((V1, ()), (VPath.parse("/log/v1"), (entry(),))):
            self.ledger.commit(path, state(A, entry(), entry(NOW, 9)))
            for night in range(1, 40):
                self.successResultOf(self.order(path=path, entries=(entry(NOW + night),)))
            self.assertEqual(self.ledger.committed(path), state(A, *stays, entry(NOW, 9), entry(NOW + 39)))

    def test_removed_by_hand(self):
        """An image that somebody deleted from the disk is fetched again, not called done."""
        self.ledger.commit(V1, state(A))
        self.world.there = False
        self.successResultOf(self.order())
        self.assertEqual(self.world.events[-1][0], "start")
        self.assertIsNotNone(self.ledger.pending(V1))

    @shows("A15")
    def test_in_progress_merges(self):
        """A second key's signature of a running upload is kept; the download is not started twice."""
        self.successResultOf(self.order())
        del self.world.events[:]
        self.assertEqual(self.successResultOf(self.order()).progress, Progress.IN_PROGRESS)
        self.assertEqual(self.world.events, [])
        self.successResultOf(self.order(entries=(entry(NOW, 8),)))
        merged = Pending(V1, state(A, entry(), entry(NOW, 8)), Command.APPEND)
        self.assertEqual(self.world.events, [("write_pending", merged)])
        self.assertEqual(self.ledger.pending(V1), merged)

    def test_superseded(self):
        """A newer version from a peer stops the older download before it is recorded."""
        self.successResultOf(self.order(A))
        del self.world.events[:]
        self.successResultOf(self.order(B, origin=Origin.PEER, entries=(entry(NOW + 1),)))
        self.assertEqual([event[0] for event in self.world.events], ["stop", "write_pending", "start"])
        self.assertEqual(self.ledger.pending(V1).state.image, B)

    @shows("I4", "I5")
    def test_begun_while_another_ends(self):
        """An order that was begun while the turn before it ended would be judged beside the next one: both could be accepted."""
        first, last, running = Deferred(), Deferred(), []
        self.uploads.alone(V1, lambda: first)
        self.uploads.alone(V1, lambda: succeed(None)).addCallback(lambda _: self.uploads.alone(V1, lambda: last))
        first.callback(None)
        self.uploads.alone(V1, lambda: succeed(running.append(1)))
        self.assertEqual(running, [])
        last.callback(None)
        self.assertEqual((running, self.uploads._turns), ([1], {}))

    @shows("I4")
    def test_not_waiting_any_more(self):
        """Who gives up waiting for his turn would end the turn of another."""
        first, running = Deferred(), []
        self.uploads.alone(V1, lambda: first)
        waiting = self.uploads.alone(V1, lambda: succeed(None))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.uploads.alone(V1, lambda: succeed(running.append(1)))
        self.assertEqual(running, [])
        first.callback(None)
        self.assertEqual((running, self.uploads._turns), ([1], {}))

    def test_commit_is_not_interrupted(self):
        """While an older version is being shown the newer one waits for that to end."""
        self.successResultOf(self.order(A))
        del self.world.events[:]
        self.world.settling = Deferred()
        waiting = self.order(B, origin=Origin.PEER, entries=(entry(NOW + 1),))
        self.assertNoResult(waiting)
        self.assertEqual(self.world.events, [])
        self.ledger.commit(V1, state(A))
        settled, self.world.settling = self.world.settling, None
        settled.callback(None)
        self.assertIsInstance(self.successResultOf(waiting), Accepted)
        self.assertEqual(self.ledger.committed(V1).image, A)
        self.assertEqual(self.ledger.pending(V1).state.image, B)
