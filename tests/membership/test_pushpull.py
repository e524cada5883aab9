"""Exchanges over connections, and the proof of what datagrams say: when who is asked, and what follows."""

from __future__ import annotations

import random
from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.membership.cluster import Completed, RemovedHeard
from ciruela.membership.confirm import CONFIRMED_S, MOST_CLAIMS, MOST_UNDER_WAY, Claim, Confirmations
from ciruela.membership.notify import DATAGRAMS
from ciruela.membership.packets import (
    Ack,
    BaseHash,
    Complete,
    Header,
    Item,
    MemberFact,
    Packet,
    RemovedFact,
    WatchFact,
    decode,
    encode_packets,
)
from ciruela.membership.pushpull import AGAIN_S, MOST_FIRST, UNABLE_S, Exchanges
from ciruela.membership.pushpull import MOST_UNDER_WAY as MOST_EXCHANGES
from ciruela.membership.servers import Strangers
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir, PathStateData, PushPull, PushPullData, Request, Response
from ciruela.runtime import HUSH_S
from tests.membership.test_service import AT_A, AT_B, AT_ME, EPOCH, ME, ONE, PATH, STRANGER, TWO, A, B, GossipCase
from tests.proof import shows


class Wire:
    """Answers as a test says; remembers who was asked what."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[tuple[float, Address, Request]] = []
        self.open: list[Deferred[Response]] = []
        self.answer: Response | Exception | None = None
        self.v2 = True
        self.lives: list[Address] = []

    def ask(self, address: Address, request: Request) -> Deferred[Response]:
        self.asked.append((self.clock.seconds(), address, request))
        if isinstance(self.answer, Exception):
            return fail(self.answer)
        if self.answer is not None:
            return succeed(self.answer)
        done: Deferred[Response] = Deferred()
        self.open.append(done)
        return done

    def connected(self, address: Address) -> bool:
        return False

    def bulk(self, address: Address) -> bool:
        return self.v2

    def alive(self, address: Address) -> None:
        self.lives.append(address)

    def times(self, address: Address) -> list[float]:
        return [at_s for at_s, to, _ in self.asked if to == address]


@shows("K4")
class ExchangeTests(SynchronousTestCase):
    """When a peer is spoken to."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wire = Wire(self.clock)
        self.wire.answer = PushPullData(True, 1, ())
        self.heard: list[Address] = []
        self.exchanges = Exchanges(
            self.clock,
            random.Random(1),
            self.wire,
            lambda address: PushPull(1, None, ()),
            lambda address, answer: self.heard.append(address),
        )
        self.exchanges.configured([AT_A, AT_B])

    def seconds(self, count: int, *needing: Address) -> None:
        for _ in range(count):
            self.clock.advance(1)
            self.exchanges.beat(needing)

    def test_news_goes_together(self) -> None:
        """The first news waits for nobody; a hundred more a second make one exchange."""
        for _ in range(100):
            self.exchanges.want(AT_A)
        self.assertEqual(self.wire.times(AT_A), [0.0])
        self.seconds(5)
        self.assertEqual(self.wire.times(AT_A), [0.0, 1.0])
        self.assertEqual(self.heard, [AT_A] * 2)

    def test_who_needs_it(self) -> None:
        """A peer that is not heard by UDP would hear half a minute late; one that is needs nothing."""
        self.seconds(21, AT_A)
        self.assertEqual(len(self.wire.times(AT_A)), 21 // AGAIN_S + 1)
        self.assertEqual(self.wire.times(AT_B), [])

    def test_the_dead_are_tried_less_and_less(self) -> None:
        """A peer that is down must not cost an attempt each second; one that is back is not left alone."""
        self.wire.answer = LinkLost("refused")
        self.seconds(600, AT_A)
        self.assertLess(len(self.wire.times(AT_A)), 35)
        self.assertGreater(len(self.wire.times(AT_A)), 10)
        self.wire.answer = PushPullData(True, 1, ())
        self.exchanges.alive(AT_A)
        self.exchanges.want(AT_A)
        self.assertEqual((self.heard, self.wire.lives), ([AT_A], [AT_A]))

    def test_older_versions(self) -> None:
        """What a node does not know, it does not learn within five seconds; after a new start it may."""
        self.wire.answer = RemoteError("'PushPull' is not known here")
        self.seconds(int(UNABLE_S) - 5, AT_A)
        self.assertEqual(len(self.wire.asked), 1)
        self.exchanges.alive(AT_A)
        self.seconds(1, AT_A)
        self.assertEqual(len(self.wire.asked), 1)
        self.exchanges.alive(AT_A, anew=True)
        self.seconds(1, AT_A)
        self.assertEqual(len(self.wire.asked), 2)
        self.wire.answer, self.wire.v2 = RemoteError("PushPull is understood where ciruela.v2 was agreed upon"), False
        self.seconds(100, AT_B)
        self.assertEqual(len(self.wire.times(AT_B)), 1)

    def test_refused_for_another_reason(self) -> None:
        """A node that cannot tell for a moment who asks would be left alone for ten minutes."""
        self.wire.answer = RemoteError("it is not known where this connection comes from")
        self.seconds(60, AT_A)
        self.assertGreater(len(self.wire.asked), 2)

    def test_starting_nodes_are_asked_again(self) -> None:
        """A node that has not read its disk yet would be taken for one of an older version."""
        self.wire.answer = RemoteError("the node is starting, try again in a moment")
        self.seconds(10, AT_A)
        self.assertGreater(len(self.wire.asked), 1)

    def test_few_at_a_time(self) -> None:
        """A thousand peers behind a firewall would be a thousand connections at once."""
        many = [Address(f"10.1.0.{number}", 1) for number in range(100)]
        self.exchanges.configured(many)
        self.wire.answer = None
        self.exchanges.begin(many)
        self.seconds(3, *many)
        self.assertEqual(len(self.wire.open), MOST_EXCHANGES)
        self.wire.answer = PushPullData(True, 1, ())
        self.wire.open[0].callback(self.wire.answer)
        self.assertGreater(len(self.wire.asked), MOST_EXCHANGES)
        self.assertGreaterEqual(len({address for _, address, _ in self.wire.asked}), MOST_FIRST)

    def test_a_peer_that_exchanged_itself(self) -> None:
        """Both would say everything to each other twice."""
        self.exchanges.answered(AT_A)
        self.exchanges.beat([AT_A])
        self.assertEqual(self.wire.asked, [])

    def test_end(self) -> None:
        """Nothing runs on after the end, nor to a peer that the operator has taken out."""
        self.wire.answer = None
        self.exchanges.want(AT_A)
        self.exchanges.want(AT_B)
        self.exchanges.configured([AT_B])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.exchanges.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.exchanges.want(AT_B)
        self.assertEqual(len(self.wire.asked), 2)


def complete(image: ImageId = ONE, machine: MachineId = A, vpath: VPath = PATH) -> Completed:
    """What a datagram said."""
    return Completed(vpath, image, machine, "a", AT_A, True)


def state(image: ImageId | None, machine: MachineId = A) -> PathStateData:
    """What the node says itself."""
    return PathStateData(machine, "a", EPOCH, taken=True, committed=None if image is None else Version(5, image))


class StrangerTests(SynchronousTestCase):
    """Servers that no list of peers names."""

    def test_parts(self) -> None:
        """A server that has told one part of its directories would not be counted for those of the other."""
        strangers = Strangers()
        for number, (parts, asked, rows) in enumerate(
            (((0,), "b", 1), ((1,), "a", 1), ((0, 1), "a", 1), ((0, 1), "b", 1), ((0, 1), "c", 0))
        ):
            items = [MemberFact(A, None, EPOCH, "host-a", part, 2, ("ab"[part],)) for part in parts]
            found = strangers.spoke(AT_A, [Packet(Header(A, EPOCH, number * 2 + one), (item,)) for one, item in enumerate(items)], 0.0)
            self.assertEqual(found and found.hostname, "host-a")
            self.assertEqual(len(strangers.rows(asked, 0.0)), rows, (parts, asked))

    def test_nothing(self) -> None:
        """Who says nothing is nobody."""
        strangers = Strangers()
        self.assertIsNone(strangers.spoke(AT_A, [], 0.0))
        self.assertEqual(strangers.all(), [])


@shows("S5")
class ConfirmTests(SynchronousTestCase):
    """A client hears only what the node itself says over a connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wire = Wire(self.clock)
        self.told: list[Claim] = []
        self.waiting = {PATH}
        self.crowded: list[VPath] = []
        self.confirmations = Confirmations(
            self.clock, self.wire, lambda vpath: vpath in self.waiting, self.told.append, self.crowded.append
        )

    def seconds(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(1)
            self.confirmations.beat()

    def test_true_and_false(self) -> None:
        """DONE, and the node has nothing, another image, or is another node."""
        for answer in (state(None), state(TWO), state(ONE, B)):
            self.wire.answer = answer
            self.confirmations.ask(complete())
            self.seconds(2)
        self.assertEqual((self.told, self.confirmations.refuted, self.confirmations.proved(complete())), ([], 3, False))
        self.wire.answer = state(ONE)
        self.confirmations.ask(complete())
        self.assertEqual((self.told, self.confirmations.proved(complete())), ([complete()], True))
        self.assertFalse(self.confirmations.proved(complete(TWO)))
        self.seconds(int(CONFIRMED_S))
        self.assertFalse(self.confirmations.proved(complete()), "a proof of long ago")

    def test_hooks_that_come_later(self) -> None:
        """Hooks that became due after the image was there would be told to no client."""
        self.wire.answer = state(ONE)
        later = replace(complete(), due=3)
        for claim in (complete(), later, later):
            self.confirmations.ask(claim) if not self.confirmations.proved(claim) else None
        self.assertEqual(self.told, [complete(), later])

    def test_removals(self) -> None:
        """The same for what was removed."""
        item = RemovedFact(PATH, ONE, 5)
        claim = RemovedHeard(item, A, "a", AT_A, True)
        self.wire.answer = state(ONE)
        self.confirmations.ask(claim)
        self.assertEqual(self.told, [])
        self.seconds(2)
        self.wire.answer = state(TWO)
        self.confirmations.ask(claim)
        self.assertEqual(self.told, [claim])

    def test_until_it_answers(self) -> None:
        """One lost connection, and a client would wait until its deadline; nobody waits, and nobody is asked."""
        self.wire.answer = LinkLost("reset")
        self.confirmations.ask(complete())
        self.seconds(20)
        self.assertEqual([round(at_s) for at_s in self.wire.times(AT_A)], [0, 1, 3, 7, 15])
        self.waiting.clear()
        self.seconds(60)
        self.assertEqual(len(self.wire.asked), 5)
        self.waiting.add(PATH)
        self.wire.answer = state(ONE)
        self.confirmations.ask(complete())
        self.assertEqual(self.told, [complete()])

    def test_asked_once(self) -> None:
        """A flood of forged completions would be a flood of questions."""
        for _ in range(50):
            self.confirmations.ask(complete())
        self.assertEqual(len(self.wire.asked), 1)
        self.wire.open[0].callback(state(None))
        for _ in range(50):
            self.confirmations.ask(complete())
        self.assertEqual(len(self.wire.asked), 1)

    def test_several_at_a_time(self) -> None:
        """A thousand nodes that are done together are asked one after the other, or all at once."""
        for number in range(2 * MOST_CLAIMS):
            self.confirmations.ask(complete(vpath=VPath(("app", f"v{number}"))))
        self.assertEqual(len(self.wire.asked), MOST_UNDER_WAY)
        self.wire.answer = state(ONE)
        for done in self.wire.open:
            done.callback(state(ONE))
        self.assertEqual(len(self.told), MOST_CLAIMS)

    @shows("A34", "F25")
    def test_more_than_there_is_room_for(self) -> None:
        """The last of ten thousand nodes would be confirmed only when they say again, a second later, that they are done."""
        machines = [MachineId(number.to_bytes(16, "big")) for number in range(2 * MOST_CLAIMS)]
        for machine in machines:
            self.confirmations.ask(replace(complete(), machine=machine))
        self.assertEqual((len(self.confirmations._asked), self.crowded), (MOST_CLAIMS, []))
        self.confirmations.ask(complete(vpath=VPath(("app", "nobody waits"))))
        answers = iter(self.wire.open)
        for machine in machines[: MOST_CLAIMS // 2]:
            self.assertEqual(self.crowded, [])
            next(answers).callback(state(ONE, machine))
        self.assertEqual((len(self.told), self.crowded), (MOST_CLAIMS // 2, [PATH]))
        for machine in machines[MOST_CLAIMS // 2 : MOST_CLAIMS]:
            next(answers).callback(state(ONE, machine))
        self.assertEqual((len(self.told), self.crowded), (MOST_CLAIMS, [PATH]))

    def test_crowded_and_over(self) -> None:
        """What no client waits for any more would be looked at again."""
        for number in range(MOST_CLAIMS + 1):
            self.confirmations.ask(replace(complete(), machine=MachineId(number.to_bytes(16, "big"))))
        self.waiting.clear()
        self.confirmations.beat()
        for done in list(self.wire.open):
            done.callback(state(ONE))
        self.assertEqual(self.crowded, [])

    def test_older_version(self) -> None:
        """While a cluster is updated, nodes of the version before would never be done."""
        listed = BaseDirData(b"", b"", {"v1": State(ONE, (SigEntry(5, b"s" * 64),))})

        def ask(address: Address, request: Request) -> Deferred[Response]:
            return succeed(listed) if isinstance(request, GetBaseDir) else fail(RemoteError("'GetPathState' is not known here"))

        self.patch(self.wire, "ask", ask)
        self.confirmations.ask(complete(TWO))
        self.assertEqual(self.told, [])
        self.confirmations.ask(complete())
        self.assertEqual(self.told, [complete()])

    def test_said_by_itself(self) -> None:
        """What the node said over a connection needs no question; one under way is given up."""
        self.confirmations.ask(complete())
        self.confirmations.prove(complete())
        self.assertTrue(self.confirmations.proved(complete()))
        self.assertEqual((self.told, self.clock.getDelayedCalls()), ([], []))

    def test_end(self) -> None:
        """Nothing runs on after the end."""
        self.confirmations.ask(complete())
        self.confirmations.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


@shows("K4", "K1.7")
class SpeakingTests(GossipCase):
    """What is said and heard over connections by a whole node."""

    def push(self, host: str, machine: MachineId, *items: Item, heard_ms: int | None = 5, epoch: int = EPOCH) -> tuple[bool, list[Item]]:
        """A node pushes; whether it was believed, and what it was told."""
        seq = self.seqs[machine] = self.seqs.get(machine, -1) + 1
        answer = self.gossip.pushed(host, PushPull(24783, heard_ms, tuple(encode_packets(Header(machine, epoch, seq), items))))
        return answer.taken, [item for data in answer.facts for item in decode(data).items]

    def test_same_facts(self) -> None:
        """What a datagram may do a push may, and nothing else."""
        self.facts.bases = {PATH.base: b"h" * 32}
        self.facts.waiting = {PATH}
        taken, told = self.push(
            AT_A.host, A, MemberFact(A, None, EPOCH, "host-a", 0, 1, ("app",)), BaseHash(PATH.base, b"i" * 32), Complete(PATH, ONE, 5)
        )
        self.assertTrue(taken)
        self.assertEqual(self.out.heard, [("differs", PATH.base, b"i" * 32, AT_A), ("completed", PATH, ONE, A, "host-a")])
        self.assertEqual([item for item in told if isinstance(item, BaseHash)], [BaseHash(PATH.base, b"h" * 32)])
        self.assertEqual({type(item) for item in told}, {MemberFact, BaseHash, WatchFact})
        self.assertEqual([request for _, request in self.out.asked if not isinstance(request, PushPull)], [], "asked again")

    def test_strangers_are_not_believed(self) -> None:
        """Anybody may connect; what he says must change nothing."""
        self.facts.waiting = {PATH}
        taken, _ = self.push(
            STRANGER.host, A, MemberFact(A, None, EPOCH, "host-a", 0, 1, ("app",)), Complete(PATH, ONE, 5), WatchFact(PATH, A, EPOCH)
        )
        self.assertEqual((taken, self.out.heard, self.gossip.cluster.hosts("app")), (False, [], {}))
        self.assertEqual(self.gossip.cluster.watchers(PATH), frozenset())
        self.assertRaises(RemoteError, self.gossip.pushed, "", PushPull(1, None, ()))
        told = [bool(self.gossip.pushed(STRANGER.host, PushPull(1, None, ())).facts) for _ in range(200)]
        self.assertLess(sum(told), 100, "who asks for everything all the time gets it")

    def test_malformed(self) -> None:
        """A damaged push costs what comes after the damage."""
        good = tuple(encode_packets(Header(A, EPOCH, 0), [MemberFact(A, None, EPOCH, "host-a", 0, 1, ("app",))]))
        self.assertTrue(self.gossip.pushed(AT_A.host, PushPull(24783, None, (*good, b"noise", *good))).taken)
        self.assertEqual(self.gossip.counts.refused["malformed"], 1)
        self.assertEqual(self.gossip.cluster.hosts("app"), {A: "a.example"})

    def test_news_at_once(self) -> None:
        """News for a peer that hears no datagrams would come seconds late, at each of the nodes that it goes through."""
        self.peers()
        self.clock.advance(2)
        self.push(AT_A.host, A, heard_ms=None)
        self.assertEqual(self.gossip.exchanges.deaf(), [], "nothing can have come there yet")
        self.push(AT_A.host, A, heard_ms=None)
        self.clock.advance(2)
        self.out.asked.clear()
        self.facts.bases = {PATH.base: b"h" * 32}
        self.gossip.exchanges.alive(AT_A, anew=True)
        self.gossip.news_base(PATH.base)
        self.clock.advance(0)
        self.assertEqual([address for address, _ in self.out.asked], [AT_A])

    def test_taken_is_an_acknowledgment(self) -> None:
        """A completion that no datagram brings is said over a connection, until it was taken and no longer."""
        pushed: list[PushPull] = []

        def answer(address: Address, request: Request) -> Deferred[Response]:
            assert isinstance(request, PushPull)
            if address == AT_A:
                pushed.append(request)
            return succeed(PushPullData(address == AT_A, 5, ()))

        self.out.answer = answer
        self.peers()
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(B, AT_B, WatchFact(PATH, A, EPOCH))
        pushed.clear()
        times = []
        for second in range(60):
            self.hear(A, AT_A)
            self.hear(B, AT_B, WatchFact(PATH, A, EPOCH + second + 1))
            self.clock.advance(1)
            told = [item for request in pushed for data in request.facts for item in decode(data).items if isinstance(item, Complete)]
            times += [second] * bool(told)
            pushed.clear()
        self.assertEqual(len(times), 1, times)
        self.assertGreaterEqual(times[0], 2**DATAGRAMS - 2)

    def test_not_taken(self) -> None:
        """A peer that lists us not would be believed to have heard."""
        self.out.answer = lambda address, request: succeed(PushPullData(False, None, ()))
        self.peers()
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(B, AT_B, WatchFact(PATH, A, EPOCH))
        self.clock.pump([1.0] * 20)
        self.assertEqual(self.gossip._tellings.open(A), [(PATH, ONE)])

    def test_unknown_sources_are_named_once(self) -> None:
        """The datagrams of a peer that leave from another address than the configured one would vanish without a word."""
        from twisted.logger import globalLogPublisher

        said: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if "no list of peers" in str(event.get("log_format")):
                said.append(str(event["log_format"]).format(**event))

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for _ in range(3):
            for port in range(20):
                self.gossip.received(b"noise", Address(STRANGER.host, 1000 + port))
                self.push(STRANGER.host, A, MemberFact(A, None, EPOCH, "host-a", 0, 1, ("app",)))
            self.clock.advance(HUSH_S + 1)
        self.assertEqual(len(said), 2, said)
        self.assertIn("gossip comes from 192.0.2.66:1000, which no list of peers names", said[0])
        self.assertIn(f"host-a (machine id {A.hex()}) speaks from 192.0.2.66:24783", said[1])

    def test_ourselves(self) -> None:
        """The own address in a list of peers would be asked for ever."""
        self.out.answer = lambda address, request: succeed(
            PushPullData(True, None, tuple(encode_packets(Header(ME, EPOCH, 0), [Ack(PATH, ONE)])) if address == AT_ME else ())
        )
        self.out.asked.clear()
        self.gossip.exchanges.alive(AT_ME, anew=True)
        self.gossip.exchanges.want(AT_ME)
        self.clock.pump([1.0] * 60)
        self.assertEqual(self.gossip.cluster.roster.own(), [AT_ME])
        self.assertLessEqual(len([address for address, _ in self.out.asked if address == AT_ME]), 1)
