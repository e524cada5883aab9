"""Asking other nodes what they have."""

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData
from ciruela.uploads.decision import NOWHERE, Elsewhere
from ciruela.uploads.neighbours import ANSWER_S, KEPT_S, MOST_ASKED, MUTE_S, Nearby, Neighbours
from tests.doubles.context import node_context
from tests.proof import shows

A, B = (ImageId(bytes([number]) * 32) for number in (1, 2))
V1 = VPath.parse("/app/v1")


def address(number):
    return Address(f"10.0.0.{number}", 1)


def data(number, committed=None, pending=None, taken=True, refused=()):
    return PathStateData(MachineId(bytes([number]) * 16), f"n{number}", 1, taken, committed, pending, refused_orders=refused)


class NeighboursTests(SynchronousTestCase):
    """What they have counts, and they hold nobody up."""

    def setUp(self):
        self.clock = Clock()
        self.asked = []
        self.answers = {}
        self.nearby = Nearby([address(1), address(2)])
        self.stalled = set()
        self.acquainted = succeed(None)
        self.neighbours = Neighbours(
            node_context(wire=self, clock=self.clock),
            lambda key: self.nearby,
            lambda vpath, image: self.stalled,
            lambda: self.acquainted,
        )

    def ask(self, where, request):
        self.asked.append((where, request))
        answer = self.answers.get(where, data(9))
        return answer if isinstance(answer, Deferred) else succeed(answer)

    def told(self):
        return self.successResultOf(self.neighbours.ask(V1))

    @shows("K2.1")
    def test_answers(self):
        """What one of them has would not be known; what stalls, or is of a node without the directory, would keep a path."""
        version, coming = Version(5, A), Version(6, B)
        self.nearby = Nearby([address(number) for number in range(1, 5)])
        self.answers = {
            address(1): data(1, committed=version, refused=(bytes(32),)),
            address(2): data(2, pending=coming),
            address(3): data(3, pending=Version(7, B)),
            address(4): data(4, committed=Version(8, B), taken=False),
        }
        self.stalled = {MachineId(bytes([3]) * 16)}
        self.assertEqual(self.told(), Elsewhere(frozenset({version}), frozenset({coming}), frozenset({bytes(32)})))
        self.assertEqual({request for _, request in self.asked}, {GetPathState("/app/v1")})

    def test_nobody(self):
        """A node that is alone would wait."""
        self.nearby = Nearby([])
        self.assertEqual(self.told(), NOWHERE)

    @shows("K2.1")
    def test_silence(self):
        """A peer that has just died would hold an upload up for as long as its connection takes to break."""
        self.answers[address(1)] = Deferred()
        self.answers[address(2)] = data(2, committed=Version(5, A))
        found = self.neighbours.ask(V1)
        self.assertNoResult(found)
        self.clock.advance(ANSWER_S)
        self.assertEqual(self.successResultOf(found).committed, frozenset({Version(5, A)}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failures(self):
        """A peer of an earlier version, or one whose connection breaks, would make an upload fail."""
        self.answers = {address(1): fail(RemoteError("not understood")), address(2): fail(LinkLost("gone"))}
        self.assertEqual(self.told(), NOWHERE)

    def test_bug(self):
        """A fault of our own would leave clients without an answer."""
        self.answers = {address(1): fail(ZeroDivisionError())}
        self.assertEqual(self.told(), NOWHERE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_few(self):
        """In a large cluster each upload would be asked about everywhere."""
        self.nearby = Nearby([address(number) for number in range(1, 100)])
        self.told()
        self.assertEqual(len(self.asked), MOST_ASKED)

    def test_shared(self):
        """The question before an order and the order itself would both be asked about; and an answer would be believed for ever."""
        self.answers[address(1)] = held = Deferred()
        first, second = self.neighbours.ask(V1), self.neighbours.ask(V1)
        held.callback(data(1))
        self.assertEqual(self.successResultOf(first), self.successResultOf(second))
        self.told()
        self.assertEqual(len(self.asked), 2)
        self.clock.advance(KEPT_S)
        self.told()
        self.assertEqual(len(self.asked), 4)

    def test_dead_ones_last(self):
        """One dead peer would cost each upload a second."""
        self.nearby = Nearby([address(number) for number in range(1, 8)])
        self.answers = {address(1): Deferred(), address(2): Deferred()}
        for _ in range(20):
            found = self.neighbours.ask(V1)
            self.clock.advance(ANSWER_S)
            self.successResultOf(found)
            self.clock.advance(KEPT_S)
        del self.asked[:]
        self.told()
        self.assertEqual({where for where, _ in self.asked} & self.answers.keys(), set())

    @shows("K2.1")
    def test_not_heard(self):
        """Those whose datagrams do not get through would not be asked; a host that is off would cost each upload a second."""
        self.nearby = Nearby([address(1)], [address(2), address(3)])
        self.answers[address(2)] = Deferred()
        found = self.neighbours.ask(V1)
        self.clock.advance(ANSWER_S)
        self.successResultOf(found)
        self.assertEqual({where for where, _ in self.asked}, {address(1), address(2), address(3)})
        del self.asked[:]
        self.clock.advance(KEPT_S)
        self.told()
        self.assertEqual({where for where, _ in self.asked}, {address(1), address(3)})
        self.clock.advance(MUTE_S)
        self.neighbours.ask(V1)
        self.assertEqual(len(self.asked), 5)

    def test_acquaintance(self):
        """A node that has just started would ask nobody, for it knows nobody yet."""
        self.acquainted = Deferred()
        found = self.neighbours.ask(V1)
        self.assertEqual(self.asked, [])
        self.acquainted.callback(None)
        self.successResultOf(found)
        self.assertEqual(len(self.asked), 2)
