"""How a bulk connection comes to stand beside another one: tickets, handshakes, and the two ends, without their threads."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.net import bulk
from ciruela.net.limits import LIMITS, nobody
from ciruela.net.outgoing import IDLE_S, Pool
from ciruela.proto import messages as m
from tests.net.bench import NODE, REFERENCE_HANDSHAKE, Bench, Raw, everybody, frame, frames
from tests.net.test_bulk import Wire
from tests.proof import shows

ASK = m.GetBlocks("/apps/v1", ImageId(b"i" * 32), (1, 2))
HANDSHAKE = REFERENCE_HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: ciruela.bulk\r\n\r\n")


class ThreadClock(MemoryReactorClock):
    """A reactor that threads may call."""

    def callFromThread(self, f: Any, *args: Any) -> None:
        self.callLater(0, f, *args)


class NoThread:
    """A thread that never runs."""

    def __init__(self, **_: object) -> None:
        self.started = False

    def start(self) -> None:
        self.started = True


class BesideCase(SynchronousTestCase):
    """``wires``: the sockets that were taken, in this order."""

    def setUp(self) -> None:
        self.wires: list[Any] = []
        self.patch(bulk.threading, "Thread", NoThread)
        self.patch(bulk, "take", self.take)

    def take(self, transport: Any) -> Any:
        self.wires.append(Wire())
        return self.wires[-1]

    def bench(self, is_peer: Any = everybody) -> Bench:
        self.patch(Bench, "make_clock", ThreadClock)
        return Bench(is_peer=is_peer)

    def shown(self, bench: Bench, ticket: bytes) -> None:
        """The thread of the side that connected shows its ticket."""
        client = bench.pumps[-1].client
        client.transport.write(frame(ticket, masked=True))
        bench.flush()


class BesideTests(BesideCase):
    def test_to_give(self) -> None:
        """A client opens it to give: the node takes over it from then on, and over the first one as before when it has ended."""
        bench = self.bench()
        link = bench.link()
        served = bench.served(0)
        self.assertIsNone(served.fetch(ASK, len))
        for _ in range(2):
            link.widen(gives=True)
            bench.flush()
        self.assertEqual(len(bench.clock.tcpClients), 1, "once")
        bench.accept()
        self.assertIsNone(link.taking)
        self.assertIsInstance(link.giving, bulk.BulkGiver)
        self.shown(bench, link.giving._ticket)
        self.assertEqual(frames(self.wires[1].sent)[0][2], bulk.READY)
        self.assertTrue(served.taking.ready)
        fetched = served.fetch(ASK, len)
        self.assertNoResult(fetched)
        self.assertEqual((bench.port.bulk, bench.served(1).known, served.incoming), (1, True, 0))
        served.taking.end("enough")
        served.taking._over("gone")
        self.failureResultOf(fetched, LinkLost)
        bench.advance(1)
        self.assertEqual((bench.port.bulk, served.taking, bench.port.open), (0, None, 1))
        self.assertTrue(served.alive)

    def test_to_take(self) -> None:
        """A node opens it to take: it asks once the other side has taken the ticket."""
        bench = self.bench()
        link = bench.link()
        link.widen(gives=False)
        bench.flush()
        bench.accept()
        self.assertIsNone(link.fetch(ASK, len))
        self.shown(bench, link.taking._ticket)
        self.assertIsInstance(bench.served(0).giving, bulk.BulkGiver)
        link.taking._ready()
        self.assertNoResult(link.fetch(ASK, len))
        link.close()
        self.assertEqual((self.wires[0].calls, link.taking.reason), (["shutdown"], "closed by us"))
        bench.advance(2)
        self.assertEqual(self.wires[1].calls, ["shutdown"], "the other end hears of it by the connection beside")

    def test_pool(self) -> None:
        """Blocks are asked for where a bulk connection is, and a connection beside which something is under way is not idle."""
        bench = self.bench()
        pool = Pool(bench.clock)
        pool.widen(NODE)
        self.assertIsNone(pool.fetch(NODE, ASK, len))
        pool.ask(NODE, m.GetBlock(bytes(32), None))  # type: ignore[arg-type]
        bench.accept()
        bench.flush()
        pool.widen(NODE)
        bench.flush()
        self.assertIsNone(pool.fetch(NODE, ASK, len))
        bench.accept()
        line = pool._lines[NODE]
        assert line.link is not None
        self.shown(bench, line.link.taking._ticket)
        line.link.taking._ready()
        fetched = pool.fetch(NODE, ASK, len)
        bench.advance(IDLE_S + 5, 1.0)
        self.assertTrue(pool.connected(NODE))
        assert fetched is not None
        fetched.addErrback(lambda _: None).cancel()
        bench.advance(IDLE_S + 5, 1.0)
        self.assertFalse(pool.connected(NODE))

    @shows("A20", "A29")
    def test_strangers(self) -> None:
        """Somebody who has shown no signature would get a thread; a node is not asked again, and nothing is broken by that."""
        bench = self.bench(nobody)
        link = bench.link()
        link.widen(gives=True)
        bench.flush()
        self.assertEqual(bench.clock.tcpClients, [])
        refused = link.ask(m.OpenBulk(True))
        bench.flush()
        self.assertIn("signature", str(self.failureResultOf(refused, RemoteError).value))
        other_way = bench.served().ask(m.OpenBulk(True))
        bench.flush()
        self.assertIn("who made this one", str(self.failureResultOf(other_way, RemoteError).value))
        bench.served().widen(gives=True)
        self.assertTrue(link.alive)

    @shows("A20")
    def test_one_each_way(self) -> None:
        """One client would take all threads with one connection."""
        bench = self.bench()
        link = bench.link()
        link.widen(gives=True)
        bench.flush()
        bench.accept()
        self.shown(bench, link.giving._ticket)
        again = link.ask(m.OpenBulk(True))
        bench.flush()
        self.failureResultOf(again, RemoteError)

    @shows("A19", "A24", "F16")
    def test_bad_tickets(self) -> None:
        """A ticket that nobody gave, one that something follows at once, none at all: the connection ends, and no socket is taken."""
        bench = self.bench()
        link = bench.link()
        for said in (b"x" * 16, b"", b"y" * 5000):
            raw = self.raw(bench)
            raw.send(frame(said, masked=True))
            bench.flush()
            self.assertTrue(raw.ended)
        ticket = link.ask(m.OpenBulk(True))
        bench.flush()
        answer: Any = self.successResultOf(ticket)
        raw = self.raw(bench)
        raw.send(frame(answer.ticket, masked=True) + b"more")
        bench.flush()
        self.assertTrue(raw.ended)
        silent = self.raw(bench)
        bench.advance(LIMITS.handshake_s - 1)
        self.assertFalse(silent.ended)
        bench.advance(2)
        self.assertTrue(silent.ended)
        self.assertEqual((self.wires, bench.port.bulk), ([], 0))

    def raw(self, bench: Bench) -> Raw:
        raw = bench.raw_client()
        raw.send(HANDSHAKE)
        bench.flush()
        self.assertIn(b"Sec-WebSocket-Protocol: ciruela.bulk\r\n", raw.seen)
        return raw

    def test_gone_meanwhile(self) -> None:
        """The first connection ends while the second one is made: nothing is left of it."""
        bench = self.bench()
        link = bench.link()
        link.widen(gives=True)
        bench.flush()
        link.close()
        bench.accept()
        bench.advance(3)
        self.assertEqual((self.wires, link.giving, bench.port.open), ([], None, 0))

    def test_cannot_be_taken(self) -> None:
        """A connection whose socket cannot be had is closed, and blocks come over the first one."""
        bench = self.bench()
        link = bench.link()

        def broken(_transport: object) -> Any:
            raise bulk.Broken("no plain TCP connection")

        self.patch(bulk, "take", broken)
        link.widen(gives=True)
        bench.flush()
        bench.accept()
        bench.advance(2)
        self.assertEqual((link.giving, link.alive, bench.port.open), (None, True, 1))

    def test_no_thread_left(self) -> None:
        """Where the system allows no more threads, the socket and the place of the bulk connection would be lost for ever."""

        def refused(_thread: NoThread) -> None:
            raise RuntimeError("can't start new thread")

        bench = self.bench()
        link = bench.link()
        link.widen(gives=True)
        bench.flush()
        bench.accept()
        before = bulk.threading.stack_size()
        self.patch(NoThread, "start", refused)
        self.shown(bench, link.giving._ticket)
        bench.advance(2)
        served = bench.served(0)
        self.assertEqual((bench.port.bulk, served.taking, served.alive, self.wires[1].calls), (0, None, True, ["close"]))
        self.assertEqual(bulk.threading.stack_size(), before)

    def test_no_threads(self) -> None:
        """Where no thread can call the reactor, none is offered."""
        bench = Bench()
        link = bench.link()
        link.widen(gives=True)
        refused = link.ask(m.OpenBulk(True))
        bench.flush()
        self.failureResultOf(refused, RemoteError)
        self.assertEqual((bench.clock.tcpClients, bench.port.bulk), ([], 0))
