"""Asking the peer that differs, and taking over what it has newer, a few at a time."""

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address, Pending
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError, LinkLost
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import Accepted, Command, Progress, Rejection, RejectReason, RemovalGranted
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, BlockData, GetBaseDir, RemovedEntry
from ciruela.reconcile import service
from ciruela.reconcile.service import KNOWN_S, MOST_BASES, MOST_DOWNLOADS, MOST_PER_BASE, REFUSED_S, Reconciler
from ciruela.tracking.ledger import FIRST_PAUSE_S, Ledger, base_dir_hash
from tests.doubles.context import node_context
from tests.proof import shows

BASE = VPath.parse("/app")
PEER, OTHER = Address("10.0.0.2", 1), Address("10.0.0.3", 1)


def image(number):
    return ImageId(bytes([number]) * 32)


def state(number, stamp):
    return State(image(number), (SigEntry(stamp, bytes(64)),))


class ReconcilerTests(SynchronousTestCase):
    """A node that was away catches up."""

    def setUp(self):
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.asked, self.orders, self.hints, self.watchers = [], [], [], []
        self.lists = {}
        self.removals = []
        self.failing = {}
        self.judged = []
        self.verdict = None
        configs = {
            "app": DirConfig("app", "/a", False, 1),
            "deep": DirConfig("deep", "/d", False, 2),
            "whole": DirConfig("whole", "/w", False, 0),
            "log": DirConfig("log", "/l", True, 1),
        }
        self.idle = set()
        self.reconciler = Reconciler(
            node_context(configs=configs, wire=self, clock=self.clock),
            self.ledger,
            self,
            self,
            lambda *args: self.hints.append(args),
            lambda *args: self.watchers.append(args),
            self.idle.__contains__,
        )

    def ask(self, address, request):
        self.asked.append((address, request))
        answer = self.lists.get(address)
        if isinstance(answer, Exception):
            return fail(answer)
        return Deferred() if answer is None else succeed(answer)

    def order(self, order, hints):
        self.orders.append((order.vpath.entry, hints))
        self.judged.append(State(order.image, order.signatures))
        if self.verdict is not None:
            return self.verdict(order)
        self.ledger.begin(Pending(order.vpath, State(order.image, order.signatures), Command.APPEND))
        return succeed(Accepted(Progress.NEW, State(order.image, order.signatures)))

    def remove(self, removal):
        self.removals.append(removal)
        found = self.failing.get(removal.vpath.entry, RemovalGranted(fresh=True))
        return found if isinstance(found, Deferred) else fail(found) if isinstance(found, Exception) else succeed(found)

    def peer_has(self, address=PEER, watches=None, pending=(), **states):
        self.lists[address] = BaseDirData(bytes(32), bytes(32), states, watches or {}, tuple(pending))
        return base_dir_hash(states)

    def names(self):
        return [name for name, _ in self.orders]

    def test_catch_up(self):
        """What the peer has newer is ordered, newest first, with the peer as the place to ask."""
        heard = self.peer_has(v1=state(1, 10), v2=state(2, 20))
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.asked, [(PEER, GetBaseDir("/app"))])
        self.assertEqual(self.orders, [("v2", (PEER,)), ("v1", (PEER,))])

    def test_equal_hash(self):
        """Nodes that agree do not talk."""
        self.ledger.commit(BASE.child("v1"), state(1, 10))
        self.reconciler.differs(BASE, base_dir_hash({"v1": state(1, 10)}), PEER)
        self.assertEqual(self.asked, [])

    @shows("A34")
    def test_not_ours(self):
        """Nothing is asked for directories that are not configured here, or are no base dirs."""
        for path in ("/other", "/app/v1", "/deep", "/whole/x"):
            self.reconciler.differs(VPath.parse(path), bytes(32), PEER)
        self.assertEqual(self.asked, [])
        for path in ("/deep/x", "/whole"):
            self.reconciler.differs(VPath.parse(path), bytes(32), PEER)
        self.assertEqual([request.path for _, request in self.asked], ["/deep/x", "/whole"])

    def test_known_hash(self):
        """A list that brought nothing is not fetched again for five minutes: hashes that differ for ever cost little."""
        self.ledger.commit(BASE.child("v1"), state(9, 99))
        heard = self.peer_has(v1=state(1, 10))
        for _ in range(3):
            self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual((len(self.asked), self.orders), (1, []))
        self.clock.advance(KNOWN_S)
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(len(self.asked), 2)

    @shows("A54", "F49")
    def test_throttle(self):
        """Three downloads at a time in one base dir; the next begins when one ends."""
        heard = self.peer_has(**{f"v{number}": state(number, number) for number in range(1, 8)})
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v7", "v6", "v5"])
        self.assertEqual(len(self.orders), MOST_PER_BASE)
        self.assertEqual(self.reconciler.backlog(), 4)
        self.reconciler.ended(BASE.child("v6"), well=True)
        self.assertEqual(self.names(), ["v7", "v6", "v5", "v4"])

    @shows("A56", "F53", "I5")
    def test_idle_downloads_leave_room(self):
        """Three uploads whose client died in the middle would keep everything else out of a base dir for an hour."""
        heard = self.peer_has(**{f"v{number}": state(number, number) for number in range(1, 8)})
        self.reconciler.differs(BASE, heard, PEER)
        self.idle.update(BASE.child(name) for name in ("v7", "v6"))
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v7", "v6", "v5", "v4", "v3"])
        self.assertEqual(len(self.asked), 1)

    @shows("A56", "I6")
    def test_idle_downloads_are_bounded(self):
        """A peer with uploads that nobody can give would fill the memory of all others with them."""
        self.patch(service, "MOST_IDLE", 5)
        for number in range(1, 9):
            heard = self.peer_has(**{f"v{number}": state(number, number)})
            self.reconciler.differs(BASE, heard, PEER)
            self.idle.add(BASE.child(f"v{number}"))
        self.assertEqual(len(self.orders), 5)
        self.assertEqual(self.reconciler.backlog(), 3)

    @shows("F48", "I5")
    def test_two_lists(self):
        """What only one peer has would be forgotten for five minutes because another peer has something else."""
        self.reconciler.differs(BASE, self.peer_has(**{f"v{number}": state(number, number) for number in range(1, 6)}), PEER)
        self.reconciler.differs(BASE, self.peer_has(OTHER, w=state(9, 9), v1=state(8, 8), v2=state(2, 1)), OTHER)
        for entry in ("v5", "v4", "v3", "w", "v1"):
            self.reconciler.ended(BASE.child(entry), well=True)
        self.assertEqual(
            self.orders, [("v5", (PEER,)), ("v4", (PEER,)), ("v3", (PEER,)), ("w", (OTHER,)), ("v1", (OTHER,)), ("v2", (PEER,))]
        )

    @shows("A34", "I6")
    def test_backlog_is_bounded(self):
        """A peer that makes up entries would fill the memory with what waits for its turn."""
        self.patch(service, "MOST_BACKLOG", 5)
        for lap in range(4):
            heard = self.peer_has(**{f"v{lap}{number}": state(1, 10 * lap + number) for number in range(1, 9)})
            self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.reconciler.backlog(), 5)

    @shows("A54", "F49", "I6")
    def test_throttle_of_all(self):
        """A peer with a thousand base dirs would make a thousand downloads run at once."""
        for number in range(MOST_DOWNLOADS + 10):
            self.reconciler.differs(VPath.parse(f"/deep/d{number}"), self.peer_has(v1=state(1, 10)), PEER)
        self.assertEqual(len(self.orders), MOST_DOWNLOADS)
        self.assertEqual(self.reconciler.backlog(), 10)

    @shows("A34", "F25", "I6")
    def test_questions_are_bounded(self):
        """A peer that tells of a million base dirs would make a million requests wait."""
        for number in range(MOST_BASES + 10):
            self.reconciler.differs(VPath.parse(f"/deep/d{number}"), bytes(32), PEER)
        self.assertEqual(len(self.asked), MOST_BASES)

    @shows("A34", "F25", "I6")
    def test_memory_is_bounded(self):
        """What was compared is remembered, but not for a million base dirs."""
        self.patch(service, "MOST_KNOWN", 20)
        self.setUp()
        heard = self.peer_has()
        for number in range(50):
            self.reconciler.differs(VPath.parse(f"/deep/d{number}"), heard, PEER)
        self.assertEqual((len(self.asked), len(self.reconciler._known)), (50, 20))

    def test_failure_is_tried_again(self):
        """A download that failed is asked for again when the base dir is next heard of."""
        heard = self.peer_has(v1=state(1, 10))
        self.reconciler.differs(BASE, heard, PEER)
        self.ledger.abort(BASE.child("v1"), 0)
        self.reconciler.ended(BASE.child("v1"), well=False)
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(len(self.asked), 2)
        self.assertEqual(self.names(), ["v1"])
        self.clock.advance(130)
        self.reconciler.ended(BASE.child("v1"), well=False)
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v1", "v1"])

    @shows("A56", "F53")
    def test_given_up_upload_dies(self):
        """Nodes do not tell each other for ever of an upload that none of them could get; one that has it can still give it."""
        heard = self.peer_has(v1=state(1, 10), pending=["v1"])
        self.reconciler.differs(BASE, heard, PEER)
        self.ledger.abort(BASE.child("v1"), 0)
        self.clock.advance(3600)
        self.reconciler.ended(BASE.child("v1"), well=False)
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v1"])
        self.peer_has(OTHER, v1=state(1, 10))
        self.reconciler.ended(BASE.child("v1"), well=False)
        self.reconciler.differs(BASE, heard, OTHER)
        self.assertEqual(self.names(), ["v1", "v1"])

    def test_news_while_asking(self):
        """What is heard during a question is asked about after the answer."""
        self.reconciler.differs(BASE, b"1" * 32, PEER)
        heard = self.peer_has(OTHER, v1=state(1, 10))
        self.reconciler.differs(BASE, heard, OTHER)
        self.assertEqual(len(self.asked), 1)
        self.reconciler._asking[BASE].callback(BaseDirData(bytes(32), bytes(32), {}))
        self.assertEqual(self.names(), ["v1"])

    def test_peer_fails(self):
        """A peer that does not answer, or answers something else, stops nothing."""
        self.lists[PEER] = LinkLost("refused")
        self.reconciler.differs(BASE, b"1" * 32, PEER)
        self.lists[PEER] = BlockData(b"")
        self.reconciler.differs(BASE, b"1" * 32, PEER)
        self.reconciler.differs(BASE, self.peer_has(OTHER, v1=state(1, 10)), OTHER)
        self.assertEqual(self.names(), ["v1"])

    def test_refused_entry(self):
        """An entry that no key here signed is reported, and does not stop the others."""
        self.verdict = lambda order: succeed(Rejection(RejectReason.SIGNATURE_MISMATCH))
        self.reconciler.differs(BASE, self.peer_has(v1=state(1, 1), v2=state(2, 2)), PEER)
        self.assertEqual(self.names(), ["v2", "v1"])
        self.assertEqual(self.reconciler.backlog(), 0)

    @shows("A52", "F46", "I5")
    def test_two_images_at_one_path(self):
        """The greater version of two that were uploaded at once would be passed over while the other one is being judged."""
        verdicts = []
        self.verdict = lambda order: verdicts.append(Deferred()) or verdicts[-1]
        self.reconciler.differs(BASE, self.peer_has(v1=state(1, 10), v2=state(5, 5)), PEER)
        self.reconciler.differs(BASE, self.peer_has(OTHER, v1=state(2, 10)), OTHER)
        self.assertEqual(self.orders, [("v1", (PEER,)), ("v2", (PEER,))])
        self.assertEqual(self.reconciler.backlog(), 1)
        verdicts[0].callback(Accepted(Progress.NEW, state(1, 10)))
        self.assertEqual(self.orders[2:], [("v1", (OTHER,))])
        self.assertEqual(self.reconciler.backlog(), 0)

    @shows("F30", "I5")
    @shows("K2.1")
    def test_claims(self):
        """Of what two peers have the later append would be taken, or the claim of an image that was uploaded again would be lost."""
        log = VPath.parse("/log")
        self.verdict = lambda _order: Deferred()
        for entry in ("w1", "w2", "w3"):  # so many may be judged at a time, the rest waits
            self.peer_has(**{entry: state(9, 99)})
            self.reconciler.differs(log, entry.encode(), PEER)
        first, again = state(1, 10), state(1, 30)
        self.peer_has(same=again, other=state(2, 20))
        self.reconciler.differs(log, b"one", PEER)
        self.peer_has(OTHER, same=first, other=state(3, 15))
        self.reconciler.differs(log, b"two", OTHER)
        waiting = {order.vpath.entry: (State(order.image, order.signatures), address) for order, address in self.reconciler._backlog[log]}
        self.assertEqual(waiting, {"same": (first.merged(again.signatures), PEER), "other": (state(3, 15), OTHER)})

    @shows("K2.1")
    def test_later_append_is_judged(self):
        """The client of an append that lost would not hear of it from a node that keeps the first one, which may still come to nothing."""
        log = VPath.parse("/log")
        self.ledger.begin(Pending(log.child("v1"), state(1, 10), Command.APPEND))
        self.verdict = lambda _order: succeed(Rejection(RejectReason.CONFLICT))
        heard = base_dir_hash({"v1": state(2, 20)}, append_only=True)
        self.peer_has(v1=state(2, 20))
        self.reconciler.differs(log, heard, PEER)
        self.assertEqual(self.judged, [state(2, 20)])
        self.clock.advance(REFUSED_S)
        self.reconciler.differs(log, heard, PEER)
        self.assertEqual(len(self.judged), 2)
        self.ledger.commit(log.child("v1"), state(1, 10))
        self.clock.advance(REFUSED_S)
        self.reconciler.differs(log, heard, PEER)
        self.clock.advance(REFUSED_S)
        self.reconciler.differs(log, heard, PEER)
        self.assertEqual(len(self.judged), 3)

    def test_another_hash_than_announced(self):
        """A peer of an earlier version, which hashes otherwise, would be asked with each of its datagrams."""
        self.ledger.commit(BASE.child("v1"), state(1, 10))
        self.peer_has(v1=state(1, 10))
        for _ in range(5):
            self.reconciler.differs(BASE, b"another", PEER)
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(REFUSED_S)
        self.reconciler.differs(BASE, b"another", PEER)
        self.assertEqual(len(self.asked), 2)

    def test_failed_lately(self):
        """A node whose disk was full for a moment would stay behind for minutes."""
        heard = self.peer_has(v1=state(1, 10))
        self.reconciler.differs(BASE, heard, PEER)
        self.ledger.abort(BASE.child("v1"), 0)
        self.reconciler.ended(BASE.child("v1"), well=False)
        for _ in range(3):
            self.clock.advance(FIRST_PAUSE_S - 1)
            self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v1", "v1"])

    @shows("F10", "F44", "I5")
    def test_refused_for_now(self):
        """After a clock or a key was put right a node would stay behind for five minutes."""
        heard = self.peer_has(v1=state(1, 10))
        for reason in (RejectReason.SIGNATURE_MISMATCH, RejectReason.TIMESTAMP_IN_FUTURE, RejectReason.QUOTA):
            self.verdict = lambda order, reason=reason: succeed(Rejection(reason))
            self.reconciler.differs(BASE, heard, PEER)
            before = len(self.asked)
            self.clock.advance(REFUSED_S - 1)
            self.reconciler.differs(BASE, heard, PEER)
            self.assertEqual(len(self.asked), before)
            self.clock.advance(1)
        self.verdict = None
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v1"] * 4)

    @shows("F10", "I5")
    def test_accepted_in_part(self):
        """After a key was added a node would go on with an older signature than all others for five minutes."""
        heard = self.peer_has(v1=state(1, 10))
        self.verdict = lambda order: succeed(Accepted(Progress.NEW, state(1, 9)))
        self.reconciler.differs(BASE, heard, PEER)
        self.clock.advance(REFUSED_S)
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(len(self.asked), 2)

    def test_disk_error(self):
        """An entry that cannot be recorded is asked for again later."""
        self.verdict = lambda order: fail(DiskError("no space"))
        heard = self.peer_has(v1=state(1, 1))
        self.reconciler.differs(BASE, heard, PEER)
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.names(), ["v1", "v1"])

    @shows("F44", "I5", "I9")
    def test_removal_that_fails(self):
        """One directory that cannot be removed here would keep all that was removed later visible for ever."""
        removed = {name: RemovedEntry(stamp, image(stamp), (bytes(64),)) for stamp, name in enumerate(("v1", "v2", "v3"), 1)}
        self.failing = {"v1": DiskError("/app/v1: another file system is mounted here")}
        self.lists[PEER] = BaseDirData(bytes(32), bytes(32), {}, removed=removed)
        heard = base_dir_hash({}, {name: Version(one.timestamp_ms, one.image) for name, one in removed.items()})
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual([one.vpath.entry for one in self.removals], ["v1", "v2", "v3"])
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(REFUSED_S)
        self.failing = {}
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual([one.vpath.entry for one in self.removals], ["v1", "v2", "v3"] * 2)

    @shows("I5", "I9")
    def test_removal_while_others_are_carried_out(self):
        """What another peer removed meanwhile would stay visible here for five minutes."""
        first, more = {"v1": RemovedEntry(1, image(1), (bytes(64),))}, {"v2": RemovedEntry(2, image(2), (bytes(64),))}
        self.lists[PEER] = BaseDirData(bytes(32), bytes(32), {}, removed=first)
        self.lists[OTHER] = BaseDirData(bytes(32), bytes(32), {}, removed=first | more)
        self.failing = {"v1": Deferred()}
        self.reconciler.differs(BASE, b"one", PEER)
        both = base_dir_hash({}, {"v1": Version(1, image(1)), "v2": Version(2, image(2))})
        self.reconciler.differs(BASE, both, OTHER)
        held, self.failing = self.failing["v1"], {}
        held.callback(RemovalGranted(fresh=True))
        self.clock.advance(REFUSED_S)
        self.reconciler.differs(BASE, both, OTHER)
        self.assertIn("v2", [one.vpath.entry for one in self.removals])

    def test_hints(self):
        """A peer that speaks of an image which is on its way here is a place to ask for it."""
        self.ledger.begin(Pending(BASE.child("v1"), state(1, 10), Command.APPEND))
        heard = self.peer_has(v1=state(1, 10), v2=state(2, 1))
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.hints, [(BASE.child("v1"), image(1), PEER)])

    def test_watches(self):
        """Who waits for an arrival is learned together with the entry; bad names are passed over."""
        machine = MachineId(b"m" * 16)
        heard = self.peer_has(v1=state(1, 10), watches={"v1": (machine,), "../x": (machine,)})
        self.reconciler.differs(BASE, heard, PEER)
        self.assertEqual(self.watchers, [(BASE.child("v1"), (machine,))])

    def test_ended_at_once(self):
        """Downloads that end before their verdict is known, because everything was here, do not use up the places for others."""

        def done(order):
            self.reconciler.ended(order.vpath, well=True)
            return succeed(Accepted(Progress.NEW, State(order.image, order.signatures)))

        self.verdict = done
        self.reconciler.differs(BASE, self.peer_has(**{f"v{number}": state(number, number) for number in range(1, 8)}), PEER)
        self.assertEqual(len(self.orders), 7)

    def test_stop(self):
        """Nothing goes on after the daemon has stopped."""
        self.reconciler.differs(BASE, self.peer_has(**{f"v{number}": state(number, number) for number in range(1, 8)}), PEER)
        self.reconciler.differs(VPath.parse("/deep/x"), bytes(32), OTHER)
        self.reconciler.stop()
        self.reconciler.ended(BASE.child("v7"), well=True)
        self.assertEqual(len(self.orders), 3)
        self.assertEqual(self.reconciler.backlog(), 0)
