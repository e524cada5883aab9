"""The exchange of pieces on a node: who becomes a neighbor, what is said, and what ends it."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.exchange import MOST_WAITING, REFUSED_S, SILENT_S, PieceExchanges
from ciruela.interfaces import Address
from ciruela.model.bitfield import Pieces
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import ExchangePieces, GetBlocks, PieceNews, PieceOffer
from ciruela.swarm import neighbors
from tests.doubles.context import node_context

IMAGE = ImageId(b"i" * 32)
PATH = VPath.parse("/app/v1")
PIECES = Pieces(1024, 1)


class Link:
    """A connection that was made to this node, from ``host``."""

    bulk = exchanges = True

    def __init__(self, host: str) -> None:
        self.host = self.name = host
        self.told: list[ExchangePieces] = []
        self.waiting = []

    def tell(self, note) -> None:
        self.told.append(note)

    def when_sent(self, call) -> None:
        self.waiting.append(call)


class Taker:
    """A download that lacks ``lacks``."""

    def __init__(self, lacks: int) -> None:
        self.lacks = lacks
        self.taken = []

    def take(self, key, pieces: int) -> None:
        self.taken.append((key, pieces))
        self.lacks &= ~pieces

    def release(self, pieces: int) -> None:
        self.lacks |= pieces

    def wanted(self) -> int:
        return self.lacks


class ExchangeTests(SynchronousTestCase):
    """One node; others say something over connections to it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.told: list[tuple[Address, PieceNews]] = []
        self.here = {(PATH, IMAGE): PIECES}
        self.known = {self.address(number) for number in range(1, 60)}
        wire = type("Wire", (), {"tell": lambda _, address, note: self.told.append((address, note.news))})()
        self.exchanges = PieceExchanges(
            node_context(clock=self.clock, wire=wire), self.known.__contains__, lambda vpath, image: succeed(self.here.get((vpath, image)))
        )
        self.exchanges.start()

    def address(self, number: int) -> Address:
        return Address(f"10.0.0.{number}", 24783)

    def say(self, number: int, news: PieceNews, *, link: Link | None = None, path: str = str(PATH)) -> Link:
        """Node ``number`` says something."""
        link = link or Link(f"10.0.0.{number}")
        self.exchanges.heard(link, ExchangePieces(path, IMAGE, 24783, news))
        return link

    def said_to(self, number: int) -> list[PieceNews]:
        self.clock.advance(0)
        told = [news for address, news in self.told if address == self.address(number)]
        self.told = [one for one in self.told if one[0] != self.address(number)]
        return told

    def test_holder_gives(self) -> None:
        """Who has an image offers it to whoever begins to fetch it, and sends what is taken until it is complete there."""
        link = self.say(1, PieceNews(joins=True))
        first, *_ = self.said_to(1)
        self.assertTrue(first.joins)
        self.assertEqual(first.has, PIECES.full)
        offers = first.offers
        self.assertTrue(offers)
        self.say(1, PieceNews(takes=offers[0].pieces, answers=(offers[0].pieces,)), link=link)
        exchange = self.exchanges._running[PATH, IMAGE]
        owed = exchange.policy.neighbors[self.address(1)].owed
        self.assertEqual(owed, offers[0].pieces)
        (piece,) = [number for number in range(256) if owed >> number & 1]
        self.exchanges.answered(link, GetBlocks(str(PATH), IMAGE, tuple(PIECES.blocks(piece))), True)
        self.assertEqual(exchange.policy.neighbors[self.address(1)].owed, owed, "it was not sent yet")
        link.waiting.pop()()
        self.assertEqual(exchange.policy.neighbors[self.address(1)].owed, 0)
        self.say(1, PieceNews(has=PIECES.full, answers=(0,) * 20), link=link)
        self.clock.pump([0.1] * 5)
        self.assertEqual(self.exchanges._running, {}, "nobody lacks anything")

    def test_not_here(self) -> None:
        """Who asks for an image that is not here is told to look elsewhere, and nothing is kept of it."""
        self.here.clear()
        self.say(1, PieceNews(joins=True))
        self.assertEqual(self.said_to(1), [PieceNews(leaves=True)])
        self.assertEqual((self.exchanges._running, self.exchanges._waiting), ({}, {}))

    def test_index_is_read(self) -> None:
        """Who asks while the index is still read is answered afterwards; how many may wait is bounded, whoever they are."""
        found = Deferred()
        self.exchanges.complete = lambda _vpath, _image: found
        for number in range(1, 60):
            for _ in range(3):
                self.say(number, PieceNews(joins=True))
        self.assertEqual(len(self.exchanges._waiting[PATH, IMAGE]), MOST_WAITING)
        found.callback(PIECES)
        self.assertTrue(self.said_to(1)[0].joins)
        self.assertEqual(self.exchanges._waiting, {})

    def test_strangers(self) -> None:
        """Only configured peers are listened to, at the address from which they speak; and no path is taken as it comes."""
        self.exchanges.heard(Link("192.0.2.7"), ExchangePieces(str(PATH), IMAGE, 24783, PieceNews(joins=True)))
        self.say(1, PieceNews(joins=True), path="/../v1")
        self.assertEqual((self.told, self.exchanges._running), ([], {}))

    def test_client_that_did_not_publish(self) -> None:
        """A client exchanges what it has published: one that nobody met is told to leave."""
        self.exchanges.begin(PATH, IMAGE, PIECES, 0, Taker(PIECES.full))
        link = Link("192.0.2.7")
        self.exchanges.heard(link, ExchangePieces(str(PATH), IMAGE, 0, PieceNews(has=1, offers=(PieceOffer(1),))))
        self.assertEqual([note.news for note in link.told], [PieceNews(leaves=True)])

    def test_most_neighbors(self) -> None:
        """A node has a bounded number of neighbors; who is one too many looks for others."""
        for number in range(1, neighbors.MOST + 1):
            self.say(number, PieceNews(joins=True))
        self.assertFalse(any(news.leaves for _, news in self.told))
        self.say(neighbors.MOST + 1, PieceNews(joins=True))
        self.assertEqual(self.said_to(neighbors.MOST + 1), [PieceNews(leaves=True)])

    def test_meets(self) -> None:
        """A download becomes the neighbor of the nearest, and asks others in place of those that have enough already."""
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, 0, Taker(PIECES.full))
        nodes = {MachineId(bytes([number]) * 16): self.address(number) for number in range(1, 40)}
        exchange.meet(nodes, [])
        self.clock.advance(0)
        asked = {address for address, _ in self.told}
        self.assertEqual(len(asked), neighbors.ASKED)
        full = min(asked, key=str)
        self.exchanges.heard(Link(full.host), ExchangePieces(str(PATH), IMAGE, 24783, PieceNews(leaves=True)))
        exchange.meet(nodes, [])
        now = set(exchange.policy.neighbors)
        self.assertEqual((len(now), full in now), (neighbors.ASKED, False))
        for number in range(1, 40):
            self.say(number, PieceNews()) if self.address(number) in now else None
        self.clock.advance(REFUSED_S)
        self.assertEqual(set(exchange.policy.neighbors), now)

    def test_silent(self) -> None:
        """A neighbor from which nothing is ever heard makes room for another one."""
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, 0, Taker(PIECES.full))
        exchange.meet({MachineId(b"1" * 16): self.address(1)}, [])
        self.clock.pump([0.1] * int(SILENT_S * 10 - 5))
        self.assertIn(self.address(1), exchange.policy.neighbors)
        self.clock.pump([0.1] * 10)
        self.assertEqual(exchange.policy.neighbors, {})

    def test_takes(self) -> None:
        """What is offered and lacked is taken: the neighbor hears of it before it is asked for it."""
        taker = Taker(0b110)
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, PIECES.full & ~0b111, taker)
        exchange.meet({MachineId(b"1" * 16): self.address(1)}, [])
        self.said_to(1)
        self.say(1, PieceNews(has=0b111, offers=(PieceOffer(0b1), PieceOffer(0b10)), joins=True))
        (news,) = self.said_to(1)
        self.assertEqual((news.answers, taker.taken), ((0, 0b10), [(self.address(1), 0b10)]))
        self.assertEqual(news.takes & 1, 1, "what comes in another way is not offered again")
        exchange.arrived(self.address(1), 0b10)
        self.assertEqual(exchange.policy.coming, {})

    def test_one_turn(self) -> None:
        """What comes in one turn of the reactor would be answered in a message each, and with every answer a busy node falls behind."""
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, 0, Taker(PIECES.full))
        link = self.say(1, PieceNews(has=0b11, offers=(PieceOffer(0b1),), joins=True))
        self.said_to(1)
        self.say(1, PieceNews(offers=(PieceOffer(0b10),)), link=link)
        exchange.arrived(self.address(1), 0b1)
        self.say(1, PieceNews(offers=(PieceOffer(0b1),)), link=link)
        (news,) = self.said_to(1)
        self.assertEqual((news.answers, news.has), ((0b10, 0), 0b1))

    def test_lost_connection(self) -> None:
        """What a neighbor owed when its connection broke is taken from others."""
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, 0, Taker(PIECES.full))
        links = [self.say(number, PieceNews(has=0b1, offers=(PieceOffer(0b1),), joins=True)) for number in (1, 2)]
        self.assertEqual(exchange.policy.coming[0][0], self.address(1))
        self.exchanges.lost(links[0])
        self.assertEqual((exchange.policy.coming, list(exchange.policy.neighbors)), ({}, [self.address(2)]))
        self.say(2, PieceNews(offers=(PieceOffer(0b1),)), link=links[1])
        self.assertEqual(exchange.policy.coming[0][0], self.address(2))

    def test_late(self) -> None:
        """What does not come in time may come from others, and is not waited for on its connection."""
        taker = Taker(PIECES.full)
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, 0, taker)
        self.say(1, PieceNews(has=0b1, offers=(PieceOffer(0b1),), joins=True))
        self.clock.advance(0)
        self.assertEqual(taker.lacks & 1, 0)
        self.clock.pump([0.1] * 20)
        self.assertEqual((taker.lacks & 1, exchange.policy.coming), (1, {}))

    def test_given_up(self) -> None:
        """The neighbors of a download that is given up hear that nothing comes from here any more."""
        exchange = self.exchanges.begin(PATH, IMAGE, PIECES, 0b1, Taker(PIECES.full))
        exchange.meet({MachineId(b"1" * 16): self.address(1)}, [])
        self.said_to(1)
        self.exchanges.end(PATH, IMAGE)
        self.assertEqual(self.said_to(1), [PieceNews(leaves=True)])

    def tearDown(self) -> None:
        self.exchanges.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
