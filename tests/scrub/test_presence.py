"""The look at what is there: records that are set aside while a node runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import NamesFound
from ciruela.model.errors import DiskError
from ciruela.model.ids import ImageId
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.scrub.presence import TICK_S, Presence
from ciruela.tracking.ledger import Ledger
from tests.doubles.context import node_context
from tests.proof import shows

V1 = VPath.parse("/app/v1")


def state(number: int) -> State:
    return State(ImageId(bytes([number]) * 32), (SigEntry(number, bytes(64)),))


class UnrecordedTests(SynchronousTestCase):
    """``Disk.prove`` sets a record aside, and something else happens at its path before the ledger hears of it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.ledger.commit(V1, state(1))
        self.unproved: list[Sequence[VPath]] = [[V1]]
        self.answers: list[Deferred[bool]] = []
        self.settling: Deferred[None] | None = None
        self.before: Callable[[], None] = lambda: None
        presence = Presence(node_context(disk=self, clock=self.clock), self.ledger, self, self.alone)  # type: ignore[arg-type]
        presence.start()
        self.addCleanup(presence.stop)

    def tick(self) -> None:
        self.clock.advance(TICK_S)

    def alone(self, _vpath: VPath, work: Callable[[], Deferred[None]]) -> Deferred[None]:
        self.before()
        return work()

    def settled(self, _vpath: VPath) -> Deferred[None] | None:
        return self.settling

    def look(self, _vpaths: Sequence[VPath]) -> Deferred[NamesFound]:
        return succeed(NamesFound((), {}))

    def tidy(self, *, delete: bool) -> Deferred[int]:
        return succeed(int(delete) * 0)

    def prove(self, _most: int) -> Deferred[Sequence[VPath]]:
        return succeed(self.unproved.pop() if self.unproved else ())

    def recorded(self, _vpath: VPath) -> Deferred[bool]:
        self.answers.append(Deferred())
        return self.answers[-1]

    @shows("K3.3")
    def test_set_aside(self) -> None:
        """An image whose record nobody believes would count, and be told of, until the next start."""
        self.tick()
        self.answers.pop().callback(False)
        self.assertIsNone(self.ledger.committed(V1))
        self.assertIsNone(self.ledger.pending(V1))

    @shows("K3.3", "I7")
    def test_committed_meanwhile(self) -> None:
        """An image that was committed, and acknowledged, between the two steps would count as gone until the next start."""
        self.before = lambda: self.ledger.commit(V1, state(2))
        self.tick()
        self.answers.pop().callback(True)
        self.assertEqual(self.ledger.committed(V1), state(2))

    @shows("K3.3", "I7")
    def test_being_committed(self) -> None:
        """The same while the commit is under way: before the disk is asked, or while it answers."""
        self.settling = first = Deferred()
        self.tick()
        self.assertEqual(self.answers, [])
        self.settling = None
        first.callback(None)
        self.settling = second = Deferred()
        self.answers.pop().callback(False)
        self.assertEqual(self.ledger.committed(V1), state(1))
        self.settling = None
        self.ledger.commit(V1, state(2))
        second.callback(None)
        self.answers.pop().callback(True)
        self.assertEqual((self.ledger.committed(V1), self.answers), (state(2), []))

    def test_commit_that_failed(self) -> None:
        """What was to take the place of the image did not come: the image would count without a record."""
        self.tick()
        self.settling = waiting = Deferred()
        self.answers.pop().callback(False)
        self.settling = None
        waiting.callback(None)
        self.answers.pop().callback(False)
        self.assertIsNone(self.ledger.committed(V1))

    @shows("F28")
    def test_disk_that_fails(self) -> None:
        """After one read error the image would count without a record until the next start, or nothing be looked at any more."""
        self.tick()
        self.answers.pop().errback(DiskError("/app/v1: read: Input/output error"))
        self.assertEqual(self.ledger.committed(V1), state(1))
        self.tick()
        self.answers.pop().callback(False)
        self.assertIsNone(self.ledger.committed(V1))
        self.tick()
        self.assertEqual(self.answers, [])
