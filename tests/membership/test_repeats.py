"""News reaches everybody: more hear of it in a large cluster, and changed base dir hashes are said again: nobody waits for a beat."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail

from ciruela.interfaces import Address
from ciruela.membership import confirm
from ciruela.membership.broadcast import MOST_DATAGRAMS
from ciruela.membership.notify import FAN_OUT, MOST_REPEATED, REPEAT_FAN_OUT, REPEAT_S, REPEATS, fan_out
from ciruela.membership.packets import BaseHash, Complete, DownloadFact, MemberFact
from ciruela.model.errors import RemoteError
from ciruela.model.ids import MachineId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData, Request, Response
from tests.membership.test_service import ONE, PATH, GossipCase
from tests.proof import shows


class ReachTests(GossipCase):
    """How many hear of news at once."""

    def test_more_hear_of_news_in_a_large_cluster(self) -> None:
        """Of ten thousand nodes some would hear nothing before a beat; of its progress alone, which changes all the time, few hear."""
        self.assertEqual([fan_out(nodes) for nodes in (0, 2, 19, 20, 100, 1000, 10_000, 100_000)], [4, 4, 4, 5, 5, 6, 8, 9])
        names = {Address(f"10.1.{number // 250}.{number % 250}", 24783): str(number) for number in range(1000)}
        self.gossip.configured(names)
        for number, address in enumerate(names):
            machine = MachineId(b"%016d" % number)
            self.hear(machine, address, MemberFact(machine, None, 1, "h", 0, 1, ("app",)))
        self.out.sent.clear()
        self.facts.bases = {PATH.base: b"h" * 32}
        self.facts.fetching = [DownloadFact(PATH, ONE, 0, False, False)]
        self.gossip.news_download(PATH)
        self.clock.advance(0)
        self.assertEqual(len({address for address, _ in self.said(DownloadFact)}), FAN_OUT)
        self.gossip.news_base(PATH.base)
        self.clock.advance(0)
        self.assertEqual(len({address for address, _ in self.said(BaseHash)}), 6)


class CrowdTests(GossipCase):
    """Completions of so many nodes that they cannot all wait to be confirmed."""

    def test_all_are_confirmed(self) -> None:
        """The client of a cluster of ten thousand would wait for the nodes to say again, seconds later, that they are done."""
        self.patch(confirm, "MOST_CLAIMS", 4)
        self.patch(confirm, "MOST_UNDER_WAY", 2)
        places = {Address(f"10.1.0.{number}", 24783): MachineId(b"%016d" % number) for number in range(12)}
        self.gossip.configured(dict.fromkeys(places, "h"))
        self.facts.waiting = {PATH}
        open_: list[tuple[Address, Deferred[Response]]] = []

        def ask(address: Address, request: Request) -> Deferred[Response]:
            if not isinstance(request, GetPathState):
                return fail(RemoteError("not now"))
            open_.append((address, Deferred()))
            return open_[-1][1]

        self.out.answer = ask
        for address, machine in places.items():
            self.hear(machine, address, Complete(PATH, ONE, 5))
        self.assertEqual(len(open_), 2)
        for address, done in open_:
            done.callback(PathStateData(places[address], "", 5, taken=True, committed=Version(5, ONE)))
        told = [heard[3] for heard in self.out.heard if heard[0] == "completed"]
        self.assertEqual((set(told), len(told)), (set(places.values()), len(places)))


class RepeatTests(GossipCase):
    """What is said of a base dir after its hash has changed."""

    def setUp(self) -> None:
        super().setUp()
        self.places = [Address(f"10.1.0.{number}", 24783) for number in range(100)]
        self.gossip.configured(dict.fromkeys(self.places, "h"))
        for number, address in enumerate(self.places):
            machine = MachineId(b"%016d" % number)
            self.hear(machine, address, MemberFact(machine, None, 1, "h", 0, 1, ("app",)))
        self.change(b"h")

    def change(self, letter: bytes) -> None:
        """The hash is this one now, and that was said for the first time."""
        self.facts.bases = {PATH.base: letter * 32}
        self.gossip.news_base(PATH.base)
        self.clock.advance(0)

    def again(self, seconds: float) -> list[Address]:
        """Who is told nothing but the hash meanwhile; beats say more."""
        self.out.sent.clear()
        self.clock.pump([0.01] * round(seconds / 0.01))
        return [address for address, items in self.out.sent if {type(item) for item in items} == {BaseHash}]

    def agree(self, number: int, letter: bytes = b"h") -> None:
        self.hear(MachineId(b"%016d" % number), self.places[number], BaseHash(PATH.base, letter * 32))

    def test_twice(self) -> None:
        """A node that no datagram reached would begin with an upload up to a second after the others."""
        self.assertEqual(self.again(REPEAT_S - 0.01), [])
        for _ in range(REPEATS):
            self.assertEqual(len(self.again(REPEAT_S)), REPEAT_FAN_OUT)
        self.assertEqual(self.again(1.0), [])
        self.change(b"i")
        self.assertEqual(len(self.again(1.0)), REPEATS * REPEAT_FAN_OUT)

    @shows("A26", "F13")
    def test_only_a_change(self) -> None:
        """A commit changes no hash, and a client that asks again and again changes nothing: repeating would cost every node a datagram."""
        self.again(0.2)
        for _ in range(50):
            self.change(b"h")
            self.assertEqual(self.again(REPEAT_S), [])

    def test_changes_share_calls(self) -> None:
        """A hundred uploads a second into one base dir must not cost a hundred times as many datagrams."""
        told = []
        for step in range(100):
            self.change(bytes([step]))
            told += self.again(0.01)
        self.assertLessEqual(len(told), REPEAT_FAN_OUT * 1.0 / REPEAT_S)
        self.assertLessEqual(len(self.again(1.0)), REPEATS * REPEAT_FAN_OUT)

    def test_not_to_those_who_said_it(self) -> None:
        """Everybody would hear again what he said himself; who said something else needs it."""
        for number in range(99):
            self.agree(number, b"h" if number % 98 else b"x")
        told = self.again(1.0)
        self.assertEqual(len(told), REPEATS * REPEAT_FAN_OUT)
        self.assertLessEqual(set(told), {self.places[0], self.places[98], self.places[99]})

    def test_nobody_left(self) -> None:
        """In a small cluster nothing is said again when nothing was lost."""
        for number in range(100):
            self.agree(number)
        self.assertEqual(self.again(1.0), [])

    @shows("A32", "A36", "F23", "F27")
    def test_hearsay_repeats_nothing(self) -> None:
        """A forged or repeated datagram would make every node that hears it send more than it got."""
        self.again(0.2)
        self.out.sent.clear()
        for number in range(300):
            self.agree(number % 100, bytes([number % 5]))
        self.assertEqual(self.out.sent, [])
        self.assertEqual(self.again(1.0), [])

    def test_many_at_once(self) -> None:
        """A reload that brings thousands of base dirs would send thousands of datagrams in one turn."""
        self.again(0.2)
        self.facts.bases = {VPath.parse(f"/app/{number}"): b"h" * 32 for number in range(1000)}
        for base in self.facts.bases:
            self.gossip.news_base(base)
        self.clock.advance(0)
        self.assertLessEqual(len(self.again(0.2)), REPEATS * REPEAT_FAN_OUT * MOST_DATAGRAMS)

    @shows("A34", "F25")
    def test_bounded(self) -> None:
        """What is remembered of each change would grow with the nodes, the base dirs, and their number."""
        self.again(0.2)
        for number in range(100):
            self.agree(number)
        hashes = self.gossip._hashes
        self.assertEqual([change.agreeing for change in hashes._changes.values()], [set()])
        for number in range(MOST_REPEATED + 10):
            hashes.changed(VPath.parse(f"/app/{number}"), b"h" * 32)
        self.again(0.2)
        self.assertEqual((len(hashes._changes), len(hashes._queue), hashes._call), (MOST_REPEATED, 0, None))

    def test_stop(self) -> None:
        """A node that has stopped would go on to speak."""
        self.gossip.stop()
        self.assertEqual((self.again(1.0), self.clock.getDelayedCalls()), ([], []))

    def test_removed_meanwhile(self) -> None:
        """Nothing wrong is said of a base dir that is no more."""
        self.facts.bases = {}
        self.assertEqual(self.again(1.0), [])
