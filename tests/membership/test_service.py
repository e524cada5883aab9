"""The service: what is sent when, and what hearing causes."""

from __future__ import annotations

from collections.abc import Callable

import cbor2
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.membership.cluster import Cluster
from ciruela.membership.notify import FAN_OUT, PROBES, HookRetransmitter, fan_out
from ciruela.membership.packets import (
    Ack,
    BaseHash,
    Complete,
    Deleted,
    DownloadFact,
    Header,
    Hooked,
    Item,
    MemberFact,
    NullKeyring,
    RemovedFact,
    WatchFact,
    body,
    decode,
    encode_item,
    encode_packets,
)
from ciruela.membership.pushpull import MOST_FIRST
from ciruela.membership.service import LATELY_S, LOOKED_THROUGH, MOST_PROGRESS_S, PROGRESS_S, Gossip
from ciruela.membership.softstate import WATCH_S
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData, Request, Response
from ciruela.runtime import HUSH_S
from tests.doubles.context import node_context
from tests.membership.test_choice import OwnFacts
from tests.proof import shows

ME, A, B = (MachineId(bytes((letter,)) * 16) for letter in b"mab")
AT_ME, AT_A, AT_B = (Address(f"10.0.0.{number}", 24783) for number in range(3))
STRANGER = Address("192.0.2.66", 24783)
NAMES = {AT_ME: "me.example", AT_A: "a.example", AT_B: "b.example"}
PATH = VPath.parse("/app/web/v1")
ONE, TWO = ImageId(b"1" * 32), ImageId(b"2" * 32)
EPOCH = 1_700_000_000_000


class Recorder:
    """Datagrams and ears that write down."""

    def __init__(self) -> None:
        self.sent: list[tuple[Address, tuple[Item, ...]]] = []
        self.raw: list[bytes] = []
        self.heard: list[tuple[object, ...]] = []
        self.progress: list[VPath] = []
        self.broken: Exception | None = None
        self.there: dict[tuple[Address, str], tuple[MachineId, Version]] = {}
        self.asked: list[tuple[Address, Request]] = []
        self.answer: Callable[[Address, Request], Deferred[Response]] | None = None
        self.lives: list[Address] = []

    def ask(self, address: Address, request: Request) -> Deferred[Response]:
        """A wire to nodes that know no push and pull, and tell the truth of what they have, unless ``answer`` says otherwise."""
        self.asked.append((address, request))
        if self.answer is not None:
            return self.answer(address, request)
        if isinstance(request, GetPathState):
            machine, version = self.there.get((address, request.path), (MachineId(b"?" * 16), None))
            return succeed(PathStateData(machine, "", EPOCH, taken=True, committed=version))
        return fail(RemoteError(f"{type(request).__name__!r} is not known here"))

    def connected(self, address: Address) -> bool:
        return False

    def bulk(self, address: Address) -> bool:
        return True

    def alive(self, address: Address) -> None:
        self.lives.append(address)

    def send(self, data: bytes, address: Address) -> None:
        if self.broken is not None:
            raise self.broken
        opened = NullKeyring().open(data)
        assert isinstance(opened, bytes)
        self.raw.append(data)
        self.sent.append((address, decode(opened).items))

    def differs(self, base: VPath, base_hash: bytes, address: Address) -> None:
        self.heard.append(("differs", base, base_hash, address))

    def hooks_due(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str, bits: int) -> None:
        self.heard.append(("hooks due", vpath, image, machine, hostname, bits))

    def hooked(self, hooked: Hooked, machine: MachineId, hostname: str) -> None:
        self.heard.append(("hooked", hooked, machine, hostname))

    def completed(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str) -> None:
        self.heard.append(("completed", vpath, image, machine, hostname))

    def removal_heard(self, item: RemovedFact, address: Address) -> None:
        self.heard.append(("removal heard", item, address))

    def gone(self, item: RemovedFact, machine: MachineId, hostname: str) -> None:
        self.heard.append(("gone", item, machine, hostname))

    def progressed(self, vpath: VPath) -> None:
        self.progress.append(vpath)


class GossipCase(SynchronousTestCase):
    """One node with a clock that tests drive."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.facts = OwnFacts()
        self.out = Recorder()
        self.seqs: dict[MachineId, int] = {}
        context = node_context(
            me=ME,
            hostname="me",
            epoch=EPOCH,
            datagrams=self.out,
            wire=self.out,
            clock=self.clock,
            now_ms=lambda: EPOCH + int(self.clock.seconds() * 1000),
            here=AT_ME,
        )
        self.gossip = Gossip(context, Cluster(ME, EPOCH, context.now_ms, str(AT_ME)), self.facts, self.out)
        self.gossip.configured(NAMES)
        self.gossip.start()

    def hear(self, machine: MachineId, source: Address, *items: Item, epoch: int = EPOCH) -> None:
        """One datagram arrives, and the reactor turn ends. What it says of images at its source is true."""
        for item in items:
            if isinstance(item, Complete):
                self.out.there[source, str(item.vpath)] = machine, Version(item.timestamp_ms, item.image)
        seq = self.seqs[machine] = self.seqs.get(machine, -1) + 1
        self.gossip.received(NullKeyring().seal(body(Header(machine, epoch, seq), [encode_item(item) for item in items])), source)
        self.clock.advance(0)

    def said(self, kind: type[Item]) -> list[tuple[Address, Item]]:
        """What was sent of one kind, and to whom, since the last call."""
        found = [(address, item) for address, items in self.out.sent for item in items if isinstance(item, kind)]
        self.out.sent.clear()
        return found

    def peers(self) -> None:
        """A and B are known; what was sent until then is forgotten."""
        self.hear(A, AT_A, MemberFact(A, None, 1, "host-a", 0, 1, ("app",)))
        self.hear(B, AT_B, MemberFact(B, None, 1, "host-b", 0, 1, ("app",)))
        self.hear(ME, AT_ME)
        self.out.sent.clear()


class BeatTests(GossipCase):
    """What is sent each second."""

    def test_probes_and_peers(self) -> None:
        """A node finds the others from their addresses alone, and leaves itself alone once it knows which address is its own."""
        self.clock.advance(1)
        self.assertEqual({address for address, _ in self.out.sent}, set(NAMES))
        self.peers()
        self.clock.advance(1)
        self.assertEqual({address for address, _ in self.out.sent}, {AT_A, AT_B})
        self.out.sent.clear()
        self.clock.pump([1.0] * 400)
        self.assertEqual({address for address, _ in self.out.sent}, {AT_A, AT_B})

    def test_few_datagrams_whatever_the_cluster(self) -> None:
        """The cost of gossip must not grow with the cluster (threats G2: 20 kB/s)."""
        self.gossip.configured({Address(f"10.1.{number // 250}.{number % 250}", 24783): str(number) for number in range(1000)})
        self.clock.pump([1.0] * 20)
        self.assertLessEqual(len(self.out.raw), 20 * (FAN_OUT + PROBES) + 2 * MOST_FIRST)
        self.assertLessEqual(len({address for address, _ in self.out.asked}), MOST_FIRST + len(NAMES), "a connection to every peer")

    def test_memory_is_searched_seldom_in_a_large_cluster(self) -> None:
        """Looking through ten thousand nodes in each second would cost more than all datagrams; who falls silent is found all the same."""
        looks: list[float] = []
        reachable = self.gossip.cluster.roster.reachable

        def count(now_s: float) -> tuple[list[Address], list[Address]]:
            looks.append(now_s)
            return reachable(now_s)

        self.patch(self.gossip.cluster.roster, "reachable", count)
        self.clock.pump([1.0] * 12)
        self.assertEqual(len(looks), 12)
        many = {Address(f"10.1.{number // 250}.{number % 250}", 24783): str(number) for number in range(3 * LOOKED_THROUGH)}
        self.gossip.configured({**NAMES, **many})
        looks.clear()
        self.clock.pump([1.0] * 12)
        self.assertEqual(len(looks), 4)

    def test_each_has_its_number(self) -> None:
        """Peers refuse what has a number that they saw."""
        self.clock.pump([0.5] * 10)
        headers = [cbor2.loads(data[7:])[:3] for data in self.out.raw]
        self.assertEqual({tuple(header[:2]) for header in headers}, {(ME, EPOCH)})
        numbers = [number for _, _, number in headers]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertGreater(len(headers), 5)
        self.assertEqual((self.gossip.counts.sent, self.gossip.counts.sent_bytes), (len(headers), sum(map(len, self.out.raw))))

    @shows("I8")
    def test_a_socket_that_fails(self) -> None:
        """One address that cannot be reached must not silence a node."""
        self.out.broken = OSError("network is unreachable")
        self.clock.pump([1.0] * 3)
        self.out.broken = None
        self.assertGreater(self.gossip.counts.send_errors, 3)
        self.clock.advance(1)
        self.assertTrue(self.out.sent)

    def test_stop(self) -> None:
        """Nothing runs on after the end."""
        self.peers()
        self.facts.images[PATH] = Version(1, ONE)
        self.facts.fetching = [DownloadFact(PATH, TWO, 1, False, False)]
        for _ in range(3):
            self.gossip.news_download(PATH)
        self.gossip.news_base(PATH.base)
        self.gossip.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.hear(A, AT_A, WatchFact(PATH, A, 1))
        self.gossip.news_complete(PATH)
        self.gossip.news_base(PATH.base)
        self.gossip.news_download(PATH)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(5)
        self.assertEqual((self.out.sent, self.clock.getDelayedCalls()), ([], []))

    def test_host_name(self) -> None:
        """A name that no datagram can carry is refused at the start, not in each second."""
        for name in ("h" * 256, "a\nb"):
            with self.assertRaises(ValueError):
                Gossip(node_context(hostname=name), self.gossip.cluster, self.facts, self.out)

    def test_too_many_directories(self) -> None:
        """The operator must learn that the others do not know all directories."""
        self.facts.key_list = [f"{number:0100d}" for number in range(1000)]
        errors = self.captured()
        self.clock.advance(1)
        self.assertIn("more directories", errors()[0])

    def captured(self) -> object:
        """A function that gives the formats of the warnings and errors logged since."""
        from twisted.logger import LogLevel, globalLogPublisher

        events: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if event["log_level"] in (LogLevel.warn, LogLevel.error, LogLevel.critical):
                events.append(str(event["log_format"]))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lambda: events


class NewsTests(GossipCase):
    """What is sent at once."""

    def setUp(self) -> None:
        super().setUp()
        self.peers()

    def test_one_datagram_for_a_turn(self) -> None:
        """A commit makes several pieces of news; each datagram costs every receiver an interrupt."""
        self.facts.bases = {PATH.base: b"h" * 32}
        self.facts.images[PATH] = Version(5, ONE)
        self.gossip.news_base(PATH.base)
        self.gossip.news_complete(PATH)
        self.gossip.news_base(PATH.base)
        self.assertEqual(self.out.sent, [])
        self.clock.advance(0)
        self.assertEqual(sorted(str(address) for address, _ in self.out.sent), [str(AT_A), str(AT_B)])
        for _, items in self.out.sent:
            self.assertEqual(
                [item for item in items if not isinstance(item, MemberFact)], [BaseHash(PATH.base, b"h" * 32), Complete(PATH, ONE, 5)]
            )

    def test_progress_is_thinned(self) -> None:
        """A fast download makes hundreds of steps a second; the last one must be said all the same."""
        self.facts.fetching = [DownloadFact(PATH, ONE, 0, False, False)]
        for step in range(100):
            self.facts.fetching = [DownloadFact(PATH, ONE, step, False, False)]
            self.gossip.news_download(PATH)
            self.clock.advance(PROGRESS_S / 50)
        self.clock.advance(PROGRESS_S)
        masks = [item.mask for address, item in self.said(DownloadFact) if address == AT_A and isinstance(item, DownloadFact)]
        self.assertLessEqual(len(masks), 5)
        self.assertEqual((masks[0], masks[-1]), (0, 99))

    def test_long_downloads_are_told_of_less(self) -> None:
        """Datagrams about what everybody concerned knows already would take more of the processor than the blocks."""

        def told(seconds: float) -> int:
            self.out.sent.clear()
            for step in range(round(seconds * 100)):
                self.facts.fetching = [DownloadFact(PATH, ONE, step, False, False)]
                self.gossip.news_download(PATH)
                self.clock.advance(0.01)
            return len([address for address, item in self.said(DownloadFact) if address == AT_A])

        self.assertGreaterEqual(told(1.0), 8)
        told(10.0)
        self.assertLessEqual(told(1.0), 1 / MOST_PROGRESS_S + 1)
        self.gossip.news_complete(PATH)
        self.assertGreaterEqual(told(1.0), 8, "a new image at the same path")

    def test_news_goes_to_those_who_take_the_directory(self) -> None:
        """In a big cluster five random nodes would mostly not be concerned."""
        names = {Address(f"10.1.0.{number}", 24783): str(number) for number in range(100)}
        self.gossip.configured(names)
        takers = list(names)[40:45]
        for number, address in enumerate(names):
            machine = MachineId(b"%016d" % number)
            self.hear(machine, address, MemberFact(machine, None, 1, "h", 0, 1, ("app",) if address in takers else ("other",)))
        self.out.sent.clear()
        self.facts.bases = {PATH.base: b"h" * 32}
        self.gossip.news_base(PATH.base)
        self.clock.advance(0)
        self.assertEqual({address for address, _ in self.said(BaseHash)}, set(takers))

    def test_completion_goes_to_watchers(self) -> None:
        """The client that waits hears of it at once, not when chance has it."""
        names = {Address(f"10.1.0.{number}", 24783): str(number) for number in range(100)} | NAMES
        self.gossip.configured(names)
        for number, address in enumerate(list(names)[:100]):
            machine = MachineId(b"%016d" % number)
            self.hear(machine, address, MemberFact(machine, None, 1, "h", 0, 1, ("app",)))
        self.hear(A, AT_A, WatchFact(PATH, A, 1))
        self.out.sent.clear()
        self.facts.images[PATH] = Version(5, ONE)
        self.gossip.news_complete(PATH)
        self.clock.advance(0)
        told = [address for address, _ in self.said(Complete)]
        self.assertIn(AT_A, told)
        self.assertEqual(len(told), fan_out(101) + 1)

    def test_completion_goes_to_those_who_are_getting_it(self) -> None:
        """In a big cluster a node that asked for sources in vain would wait until it asks again."""
        names = {Address(f"10.1.0.{number}", 24783): str(number) for number in range(100)}
        self.gossip.configured(names)
        needing = Address("10.1.0.78", 24783)
        for number, address in enumerate(names):
            machine = MachineId(b"%016d" % number)
            items = (DownloadFact(PATH, ONE, 0, False, False),) if address == needing else ()
            self.hear(machine, address, MemberFact(machine, None, 1, "h", 0, 1, ("app",)), *items)
        self.out.sent.clear()
        for image, told in ((TWO, False), (ONE, True)):
            self.facts.images[PATH] = Version(5, image)
            self.gossip.news_complete(PATH)
            self.clock.advance(0)
            addresses = {address for address, _ in self.said(Complete)}
            self.assertEqual((needing in addresses, len(addresses)), (told, fan_out(100) + told))

    def test_news_of_what_is_no_more(self) -> None:
        """Between news and sending a thing may end; nothing wrong is said then."""
        self.gossip.news_base(PATH.base)
        self.gossip.news_complete(PATH)
        self.gossip.news_download(PATH)
        self.clock.advance(0)
        self.assertEqual(self.out.sent, [])

    def test_new_client_hears_what_is_known(self) -> None:
        """A second sync of the same image must end although nobody says again that it is complete."""
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual(self.out.heard, [])
        self.facts.waiting = {PATH}
        self.gossip.news_watch(PATH)
        self.assertEqual(self.out.heard, [])
        self.clock.advance(0)
        self.assertEqual(self.out.heard, [("completed", PATH, ONE, A, "host-a")])
        self.assertEqual({address for address, _ in self.said(WatchFact)}, {AT_A, AT_B})

    @shows("A32")
    def test_removed_address_is_not_contacted(self) -> None:
        """An answer that was due to an address that the operator has just removed is not sent."""
        self.facts.images[PATH], self.facts.bits = Version(5, ONE), 1
        data = NullKeyring().seal(encode_packets(Header(A, EPOCH, 50), [DownloadFact(PATH, ONE, None, False, False)])[0])
        self.gossip.received(data, AT_A)
        self.gossip.configured({AT_B: "b.example"})
        self.clock.advance(2.0)
        self.assertNotIn(AT_A, [address for address, _ in self.out.sent])


class HearingTests(GossipCase):
    """What hearing causes, and what it does not."""

    def setUp(self) -> None:
        super().setUp()
        self.peers()

    def test_other_hash(self) -> None:
        """This is how a node that was down learns what it missed."""
        self.facts.bases = {PATH.base: b"h" * 32}
        new = VPath.parse("/app/new")
        self.hear(A, AT_A, BaseHash(PATH.base, b"h" * 32), BaseHash(VPath.parse("/other/web"), b"i" * 32))
        self.assertEqual(self.out.heard, [])
        self.hear(A, AT_A, BaseHash(PATH.base, b"i" * 32), BaseHash(new, b"n" * 32))
        self.assertEqual(self.out.heard, [("differs", PATH.base, b"i" * 32, AT_A), ("differs", new, b"n" * 32, AT_A)])

    def test_completion_for_a_client(self) -> None:
        """The client hears of it once, the sender each time that it was heard."""
        self.facts.waiting = {PATH}
        for _ in range(2):
            self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual(self.out.heard, [("completed", PATH, ONE, A, "host-a")])
        self.assertEqual(self.said(Ack), [(AT_A, Ack(PATH, ONE))] * 2)

    def test_completion_for_nobody(self) -> None:
        """Acknowledging everything would double the traffic and answer forged packets."""
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual((self.out.heard, self.out.sent), ([], []))

    def test_acknowledged_after_the_client_left(self) -> None:
        """Otherwise each node repeats its completion for a minute to a client that is gone."""
        self.facts.waiting = {PATH}
        self.gossip.news_watch(PATH)
        self.clock.pump([1.0] * 100)
        self.facts.waiting = set()
        self.out.sent.clear()
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual((self.out.heard, self.said(Ack)), ([], [(AT_A, Ack(PATH, ONE))]))
        self.clock.pump([1.0] * int(LATELY_S + 2))
        self.out.sent.clear()
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual(self.said(Ack), [])

    def test_watcher_is_told_until_it_acknowledges(self) -> None:
        """A lost datagram must not leave a client waiting for ever."""
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(B, AT_B, WatchFact(PATH, A, 1))
        times = []
        for tenth in range(300):
            if (AT_A, Complete(PATH, ONE, 5)) in self.said(Complete):
                times.append(tenth // 10)
            self.clock.advance(0.1)
        self.assertEqual(len(times), 5)
        for sooner, later, delay in zip(times, times[1:], (1, 2, 4, 8), strict=False):
            self.assertIn(later - sooner - delay, (0, 1), times)
        self.hear(A, AT_A, Ack(PATH, ONE))
        self.hear(B, AT_B, WatchFact(PATH, A, 2))
        self.clock.pump([1.0] * 40)
        self.assertEqual(self.said(Complete), [])

    def test_telling_ends_with_the_watch(self) -> None:
        """A watcher that died is not told for ever."""
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(B, AT_B, WatchFact(PATH, A, 1))
        self.clock.pump([1.0] * int(WATCH_S + 1))
        self.out.sent.clear()
        self.clock.pump([1.0] * 120)
        self.assertEqual(self.said(Complete), [])

    def test_restarted_watcher_is_told_again(self) -> None:
        """Its new clients know nothing of what it acknowledged before."""
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(A, AT_A, WatchFact(PATH, A, 1))
        self.hear(A, AT_A, Ack(PATH, ONE))
        self.out.sent.clear()
        self.hear(A, AT_A, WatchFact(PATH, A, 2), epoch=EPOCH + 5)
        self.assertEqual(self.said(Complete), [(AT_A, Complete(PATH, ONE, 5))])

    def test_commit_while_watched(self) -> None:
        """The usual order: first the watch, then the download, then the news; a lost first word is repeated."""
        self.hear(B, AT_B, WatchFact(PATH, A, 1))
        self.assertEqual(self.said(Complete), [])
        self.facts.images[PATH] = Version(5, ONE)
        self.gossip.news_complete(PATH)
        self.clock.advance(0)
        self.out.sent.clear()
        self.clock.pump([0.5] * 5)
        self.assertIn((AT_A, Complete(PATH, ONE, 5)), self.said(Complete))

    def test_downloader_is_told_of_a_source(self) -> None:
        """A node that joins late finds those who have the image at once; a forged question draws one answer in five seconds."""
        self.facts.images[PATH] = Version(5, ONE)
        for _ in range(3):
            self.hear(A, AT_A, DownloadFact(PATH, ONE, None, False, False))
        self.assertEqual(self.said(Complete), [(AT_A, Complete(PATH, ONE, 5))])
        self.hear(B, AT_B, DownloadFact(PATH, TWO, None, False, False))
        self.assertEqual(self.said(Complete), [])

    @shows("A32")
    def test_answers_are_no_longer_than_questions(self) -> None:
        """A forged source address must not make us flood that node (threats U25)."""
        self.facts.waiting = {VPath(("app", f"v{number}")) for number in range(20)}
        self.out.there = {(AT_A, str(vpath)): (A, Version(5, ONE)) for vpath in self.facts.waiting}
        self.out.raw.clear()
        packet = encode_packets(Header(A, EPOCH, 90), [Complete(vpath, ONE, 5) for vpath in sorted(self.facts.waiting)])
        self.assertEqual(len(packet), 1)
        question = NullKeyring().seal(packet[0])
        self.gossip.received(question, AT_A)
        self.clock.advance(0)
        self.assertEqual(len(self.out.raw), 1)
        self.assertLess(len(self.out.raw[0]), len(question))

    def test_progress_of_others(self) -> None:
        """A download that waits for blocks goes on as soon as somebody has more; the same word again wakes nobody."""
        for mask in (1, 1, 3):
            self.hear(A, AT_A, DownloadFact(PATH, ONE, mask, False, False))
        for _ in range(2):
            self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual(self.out.progress, [PATH] * 3)

    def test_rumors_travel(self) -> None:
        """Watches and members reach nodes that never met their origin."""
        other = MachineId(b"x" * 16)
        self.gossip.configured(NAMES | {Address("10.0.0.9", 24783): "x.example"})
        self.hear(A, AT_A, WatchFact(PATH, other, 1), MemberFact(other, "10.0.0.9:24783", 1, "x", 0, 1, ("app",)))
        self.clock.advance(2)
        sent = [item for address, items in self.out.sent if address == AT_B for item in items]
        self.assertIn((PATH, other, 1), [(item.vpath, item.machine, item.stamp) for item in sent if isinstance(item, WatchFact)])
        self.assertIn((other, "x"), [(item.machine, item.hostname) for item in sent if isinstance(item, MemberFact)])

    @shows("A32", "A36", "A37", "I9", "I12", "F27")
    def test_nothing_is_deleted_or_contacted_on_hearsay(self) -> None:
        """Deletions and acknowledgments that were never asked for change nothing here (threats 6.7)."""
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(A, AT_A, Deleted(PATH, ONE, 99), Ack(PATH, ONE), MemberFact(B, str(STRANGER), 9, "b", 0, 1, ("app",)))
        self.assertEqual((self.out.heard, self.out.sent), ([], []))
        self.clock.pump([1.0] * 10)
        self.assertEqual({address for address, _ in self.out.sent}, {AT_A, AT_B})


class RefusingTests(GossipCase):
    """Datagrams that are dropped: counted, nothing sent back, no error."""

    def setUp(self) -> None:
        super().setUp()
        self.peers()

    def refused(self, word: str, data: bytes, source: Address = AT_A) -> None:
        """``data`` is counted under ``word`` and has no other consequence."""
        before = dict(self.gossip.counts.refused)
        heard = self.gossip.counts.heard
        self.gossip.received(data, source)
        self.clock.advance(0)
        self.assertEqual(self.gossip.counts.refused, before | {word: before[word] + 1})
        self.assertEqual((self.gossip.counts.heard, self.out.sent, self.out.heard), (heard, [], []))

    @shows("A30", "I12", "G12")
    def test_reasons(self) -> None:
        """Forged datagrams must not cost more than a count (threats A30)."""
        self.facts.waiting = {PATH}
        seal = NullKeyring().seal
        good = seal(encode_packets(Header(A, EPOCH, 70), [Complete(PATH, ONE, 5)])[0])
        self.out.there[AT_A, str(PATH)] = A, Version(5, ONE)
        self.refused("unknown_source", good, STRANGER)
        self.refused("unknown_source", b"noise", STRANGER)
        self.refused("malformed", b"")
        self.refused("malformed", seal(b"noise"))
        self.refused("malformed", good + bytes(1400))
        self.refused("other_version", b"CG\x02" + good[3:])
        self.refused("unknown_key", good[:6] + b"\x01" + good[7:])
        self.refused("own", seal(encode_packets(Header(ME, EPOCH, 1), [Complete(PATH, ONE, 5)])[0]), AT_ME)
        self.refused("same_machine", seal(encode_packets(Header(ME, EPOCH + 1, 1), [Complete(PATH, ONE, 5)])[0]), AT_B)
        self.refused("same_machine", seal(encode_packets(Header(B, EPOCH - 1, 1), [Complete(PATH, ONE, 5)])[0]), AT_ME)
        self.gossip.received(good, AT_A)
        self.clock.advance(0)
        self.assertEqual(self.said(Ack), [(AT_A, Ack(PATH, ONE))])
        self.out.heard.clear()
        self.refused("replayed", good)

    @shows("A30", "A32", "I12", "G12", "F23")
    def test_strangers_are_not_even_parsed(self) -> None:
        """A flood from anywhere must cost as little as possible: the envelope is not touched."""

        class Untouchable(NullKeyring):
            def open(self, data: bytes) -> bytes:
                raise AssertionError("opened")

        self.gossip.envelope = Untouchable()
        self.refused("unknown_source", b"CG", STRANGER)

    @shows("I8")
    def test_an_error_of_our_own(self) -> None:
        """A mistake in what acts on gossip must not close the socket."""
        self.facts.waiting = {PATH}

        def broken(*args: object) -> None:
            raise RuntimeError("ears fell off")

        self.patch(self.out, "progressed", broken)
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.assertEqual(self.gossip.counts.refused["failed"], 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_complaints_are_rare(self) -> None:
        """A flood of bad datagrams must not fill the log; one line a minute tells the operator where they come from."""
        from twisted.logger import LogLevel, globalLogPublisher

        events: list[dict[str, object]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for _ in range(50):
            self.gossip.received(b"noise", AT_A)
            self.hear(A, AT_ME, epoch=EPOCH - 1)
        warnings = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(warnings), 2)
        self.assertEqual((warnings[1]["machine"], warnings[1]["other"], warnings[1]["address"]), (A.hex(), str(AT_A), str(AT_ME)))
        self.clock.pump([1.0] * int(HUSH_S + 2))
        self.gossip.received(b"noise", AT_A)
        self.assertEqual(len([event for event in events if event["log_level"] is LogLevel.warn]), 3)


class HookTests(GossipCase):
    """What nodes tell each other of hooks."""

    FAILED = Hooked(PATH, ONE, 5, 1, False, "exited with 1")

    def setUp(self) -> None:
        super().setUp()
        self.peers()

    def test_due_before_complete(self) -> None:
        """A client would leave when the image is there, before it knows that it has to wait for more."""
        self.facts.waiting = {PATH}
        self.hear(A, AT_A, Complete(PATH, ONE, 5, 3))
        self.assertEqual(self.out.heard, [("hooks due", PATH, ONE, A, "host-a", 3), ("completed", PATH, ONE, A, "host-a")])

    def test_said_with_complete(self) -> None:
        """The same, at the node that has the hook: what is due is said with the completion, not after it."""
        self.hear(B, AT_B, WatchFact(PATH, A, 1))
        self.out.sent.clear()
        self.facts.images[PATH], self.facts.bits = Version(5, ONE), 1
        self.gossip.news_complete(PATH)
        self.clock.advance(0)
        self.assertEqual({item for _, item in self.said(Complete)}, {Complete(PATH, ONE, 5, 1)})

    def test_end_for_a_client(self) -> None:
        """A client would wait until its deadline for a hook that has failed long ago."""
        self.hear(A, AT_A, self.FAILED)
        self.assertEqual(self.out.heard, [])
        self.facts.waiting = {PATH}
        self.gossip.news_watch(PATH)
        self.clock.advance(0)
        self.assertEqual(self.out.heard, [("hooked", self.FAILED, A, "host-a")])
        self.hear(A, AT_A, self.FAILED)
        self.assertEqual(len(self.out.heard), 1, "said twice")
        well = Hooked(PATH, ONE, 5, 1, True, "")
        self.hear(A, AT_A, well)
        self.assertEqual(self.out.heard[1:], [("hooked", well, A, "host-a")])

    def test_repeated(self) -> None:
        """The end of a hook would be lost with one datagram; or be repeated for ever, for nobody acknowledges it."""
        self.facts.images[PATH] = Version(5, ONE)
        self.hear(B, AT_B, WatchFact(PATH, A, 1))
        self.facts.ended = [self.FAILED]
        self.gossip.news_hook(PATH)
        told = []
        for second in range(60):
            self.hear(B, AT_B, WatchFact(PATH, A, 2 + second))
            self.clock.advance(1)
            told.append(sum(address == AT_A for address, _ in self.said(Hooked)))
        self.assertGreaterEqual(sum(map(bool, told)), 5)
        self.assertEqual(told[:2], [1, 1] if told[0] == 1 else told[:2])

    def test_watch_that_comes_later(self) -> None:
        """A client that begins to wait after the hook has ended would never hear how."""
        self.facts.images[PATH], self.facts.ended = Version(5, ONE), [self.FAILED]
        self.clock.advance(1)
        self.out.sent.clear()
        self.hear(B, AT_B, WatchFact(PATH, A, 1))
        self.assertIn((AT_A, self.FAILED), self.said(Hooked))


class RepeatTests(SynchronousTestCase):
    """Whom to tell of hooks, and how often."""

    def test_five_times(self) -> None:
        """A watcher would be told once only, or each second for as long as it waits."""
        repeats = HookRetransmitter()
        self.assertTrue(repeats.begin(PATH, A, 0.0, news=False))
        self.assertFalse(repeats.begin(PATH, A, 0.0, news=False))
        told = [second for second in range(200) if repeats.due(float(second), lambda *_: True)]
        self.assertEqual(told, [0, 1, 3, 7, 15])
        self.assertTrue(repeats.begin(PATH, A, 200.0, news=True))
        self.assertEqual(repeats.due(200.0, lambda *_: False), [])
        self.assertTrue(repeats.begin(PATH, A, 200.0, news=False), "a watch that is over is not forgotten")

    def test_bounded(self) -> None:
        """Many watches would fill the memory."""
        repeats = HookRetransmitter(limit=2)
        for number in range(5):
            repeats.begin(VPath(("app", f"v{number}")), A, 0.0, news=True)
        self.assertEqual(len(repeats.due(0.0, lambda *_: True)), 2)
