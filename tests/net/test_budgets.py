"""Memory and turns that connections share: none of them takes what is there for all."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import LinkLost
from ciruela.net.limits import FRAMES_A_TURN, MOST_AT_WORK, NOISE_A_SECOND, NOISE_AT_ONCE, AnswerBudget, Budgets, Limits, Partials, nobody
from ciruela.net.outgoing import Pool
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.net.bench import NODE, REFERENCE_HANDSHAKE, Bench, Raw, frame, frames
from tests.proof import shows
from tests.proto import samples as s

MIB = 1024 * 1024
LARGE = b"\x82\xff" + (20 * MIB).to_bytes(8, "big") + b"\1\2\3\4"
"""The head of a frame with 20 MiB."""

INDEX = m.GetIndex(s.image(1), None)
PUBLISH = codec.encode_notification(s.NOTIFICATIONS["PublishImage"])


class Holder:
    """A link with a part of a message."""

    def __init__(self) -> None:
        self.given_up = False

    def overfull(self) -> None:
        self.given_up = True


class PartialTests(SynchronousTestCase):
    """Parts of large messages."""

    @shows("S10")
    def test_oldest_goes(self) -> None:
        """Publishers that send almost all of an index, and no more, would fill the memory: 99 MiB each."""
        partials = Partials(100)
        slow, other, fresh = Holder(), Holder(), Holder()
        partials.hold(slow, 60)
        partials.hold(other, 30)
        partials.hold(fresh, 10)
        self.assertEqual((partials.bytes, slow.given_up), (100, False))
        partials.hold(fresh, 50)
        self.assertEqual((slow.given_up, other.given_up, fresh.given_up, partials.bytes), (True, False, False, 80))
        partials.release(slow)
        partials.release(other)
        partials.release(fresh)
        self.assertEqual(partials.bytes, 0)

    @shows("S10")
    def test_larger_than_all(self) -> None:
        """One message that is larger than the budget ends its own link."""
        partials, alone = Partials(100), Holder()
        partials.hold(alone, 101)
        self.assertEqual((alone.given_up, partials.bytes), (True, 0))

    @shows("S10")
    def test_on_links(self) -> None:
        """The budget would be kept by nobody: it has to be told of what comes on real connections."""
        bench = Bench()
        bench.port.links.budgets.partials._most_bytes = 3 * MIB
        raws = []
        for _ in range(4):
            raw = bench.raw_client()
            raw.send(REFERENCE_HANDSHAKE)
            bench.flush()
            bench.served().ask(INDEX).addErrback(lambda _: None)
            bench.flush()
            raw.send(LARGE + bytes(MIB))
            bench.flush()
            raws.append(raw)
        self.assertEqual([raw.ended for raw in raws], [True, False, False, False])
        self.assertLessEqual(bench.port.links.budgets.partials.bytes, 3 * MIB)
        for pump in bench.pumps:
            pump.clientIO.loseConnection()
        bench.flush()
        self.assertEqual(bench.port.links.budgets.partials.bytes, 0)

    @shows("S10")
    def test_beside_blocks(self) -> None:
        """While blocks are due as well, a large message would be held outside of the budget, as large as an index may be."""
        bench = Bench()
        raw = self.index_due(bench, REFERENCE_HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: ciruela.v2\r\n\r\n"))
        bench.served().ask(m.GetBlocks("/a/b", s.image(1), (1,))).addErrback(lambda _: None)
        bench.flush()
        raw.send(LARGE + bytes(1000))
        bench.flush()
        raw.send(bytes(MIB))
        bench.flush()
        self.assertGreaterEqual(bench.port.links.budgets.partials.bytes, MIB)

    def index_due(self, bench: Bench, handshake: bytes = REFERENCE_HANDSHAKE) -> Raw:
        """A client that was asked for an index."""
        raw = bench.raw_client()
        raw.send(handshake)
        bench.flush()
        bench.served().ask(INDEX).addErrback(lambda _: None)
        bench.flush()
        return raw

    def drip(self, bench: Bench, raw: Raw, data: bytes, a_second: int, seconds: int) -> int:
        """Send so many bytes each second. For how many seconds the connection lasted."""
        for second in range(seconds):
            raw.send(data[second * a_second : (second + 1) * a_second])
            bench.advance(1)
            if raw.ended:
                return second
        return seconds

    @shows("S10")
    def test_slow_index(self) -> None:
        """A byte each second would keep 99 MiB here for as long as somebody likes."""
        data = LARGE + bytes(3 * MIB)
        bench = Bench()
        self.assertLess(self.drip(bench, self.index_due(bench), data, 20 * 1024, 30), 12)
        bench = Bench()
        self.assertEqual(self.drip(bench, self.index_due(bench), data, 80 * 1024, 30), 30)

    @shows("S10")
    def test_permission_ends(self) -> None:
        """Who was asked for an index, and gave none, might send 100 MiB at any time later."""
        bench = Bench()
        raw = self.index_due(bench)
        for _ in range(80):
            raw.send(frame(b"", opcode=9, masked=True))
            bench.advance(1)
        self.assertTrue(raw.ended)

    @shows("S10")
    def test_pool_ends_it(self) -> None:
        """The same for a node that was asked, once nobody waits for its answer any more."""
        bench = Bench()
        pool = Pool(bench.clock)
        answer = pool.ask(NODE, m.GetBaseDir("/a"), 5.0)
        bench.accept()
        bench.advance(5)
        self.failureResultOf(answer, LinkLost)
        bench.advance(1)
        self.assertFalse(pool.connected(NODE))
        answer = pool.ask(NODE, m.GetBaseDir("/a"))
        bench.accept()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        bench.advance(1)
        self.assertFalse(pool.connected(NODE))
        bench.accept() if bench.clock.tcpClients else None
        pool.stop()
        bench.advance(12)


class AnswerTests(SynchronousTestCase):
    """Answers that wait for who does not read."""

    @shows("S7")
    def test_budget(self) -> None:
        """What is queued keeps further large answers from being made, for strangers before it does for peers and clients."""
        answers = AnswerBudget(100, 20)
        called: list[str] = []
        self.assertTrue(answers.begin(False, lambda: None))
        answers.queued(False, 30)
        answers.made(False)
        again = lambda: called.append("again")  # noqa: E731
        self.assertFalse(answers.begin(False, again))
        self.assertTrue(answers.begin(True, lambda: None))
        answers.queued(False, -5)
        self.assertEqual(called, [])
        answers.queued(False, -10)
        self.assertEqual(called, ["again"])
        self.assertFalse(answers.begin(False, again) and answers.queued_bytes > 20)
        answers.forget(again)

    @shows("S7")
    def test_at_work(self) -> None:
        """So many are made at a time; the next one begins when one has been made."""
        answers, called = AnswerBudget(), []
        for _ in range(MOST_AT_WORK):
            self.assertTrue(answers.begin(False, lambda: None))
        again = lambda: called.append("again")  # noqa: E731
        self.assertFalse(answers.begin(False, again))
        answers.made(False)
        self.assertEqual(called, ["again"])

    @shows("S7", "A25")
    def test_deaf_strangers(self) -> None:
        """160 connections that ask for one index, four times each, and never read: 1.6 GiB. They share it, and most are not begun."""
        bench = Bench(is_peer=nobody)
        bench.port.links.budgets.answers.__init__(8 * MIB, 2 * MIB)
        bench.node.index = bytes(MIB)
        for number in range(160):
            raw = bench.raw_client(f"10.0.{number // 100}.{number % 100}")
            raw.send(REFERENCE_HANDSHAKE)
            bench.flush()
            served = bench.served()
            served._outbox.pauseProducing()
            raw.send(b"".join(frame(codec.encode_request(one, INDEX), masked=True) for one in range(4)))
            bench.pumps[-1].flush()
        self.assertLessEqual(bench.port.links.budgets.answers.queued_bytes, 3 * MIB)
        self.assertLessEqual(len(bench.node.asked), 3)
        queues = [pump.server._next._outbox._waiting for pump in bench.pumps]
        waiting = {id(view.obj) for queue in queues for message in queue for view, _ in message if view.obj is bench.node.index}
        self.assertEqual(len(waiting), 1, "all of them are sent the same bytes")
        before = len(bench.node.asked)
        for pump in bench.pumps[:before]:
            pump.server._next._outbox.resumeProducing()
        self.assertGreater(len(bench.node.asked), before, "when they read, the next ones are answered")
        for pump in bench.pumps:
            pump.clientIO.loseConnection()
        bench.flush()
        self.assertEqual(bench.port.links.budgets.answers.queued_bytes, 0)

    @shows("S7")
    def test_one_at_a_time(self) -> None:
        """A peer that asks for 64 lists would have all of them made at once."""
        bench = Bench()
        link = bench.link()
        answers = [link.ask(m.GetBaseDir("/a")) for _ in range(3)]
        bench.flush()
        for number in range(3):
            self.assertEqual(len(bench.node.waiting), number + 1)
            bench.node.waiting[number].callback(m.BaseDirData(b"\1" * 32, b"\2" * 32, {}))
            bench.flush()
            self.successResultOf(answers[number])

    @shows("S7")
    def test_same_message(self) -> None:
        """An index that is sent in two parts, or a list that was encoded before, would be another message."""
        data = b"i" * 300_000
        for response in (m.IndexData(data), m.IndexData(data, packed=True), m.IndexData(b"")):
            head, shared = codec.encode_answer(7, "GetIndex", response)
            self.assertEqual(head + shared, codec.encode_response(7, "GetIndex", response))
            self.assertIs(shared, response.data)
        dirs = m.BaseDirData(b"\1" * 32, b"\2" * 32, {"v1": s.V1})
        head, shared = codec.encode_answer(70_000, "GetBaseDir", codec.prepare("GetBaseDir", dirs))
        self.assertEqual(head + shared, codec.encode_response(70_000, "GetBaseDir", dirs))
        self.assertRaises(TypeError, codec.encode_answer, 1, "GetIndex", codec.prepare("GetBaseDir", dirs))
        self.assertRaises(TypeError, codec.prepare, "GetIndex", dirs)


class ListTests(SynchronousTestCase):
    """Lists of base dirs that come in."""

    @shows("S12")
    def test_decoded_in_a_thread(self) -> None:
        """A list of 20,000 entries would hold up everything else for a quarter of a second while it is decoded."""
        bench, jobs = Bench(), []

        def in_thread(job: Any, *args: Any, **kwargs: Any) -> Any:
            jobs.append(done := Deferred())
            return done.addCallback(lambda _: job(*args, **kwargs))

        pool = Pool(bench.clock, in_thread=in_thread)
        long = m.BaseDirData(b"\1" * 32, b"\2" * 32, {f"v{number}": s.V1 for number in range(2000)})
        for dirs, threads in ((m.BaseDirData(b"\1" * 32, b"\2" * 32, {"v1": s.V1}), 0), (long, 1)):
            answer = pool.ask(NODE, m.GetBaseDir("/a"))
            if bench.clock.tcpClients:
                bench.accept()
            bench.flush()
            bench.node.waiting[-1].callback(dirs)
            bench.flush()
            self.assertEqual(len(jobs), threads)
            if threads:
                self.assertNoResult(answer)
                jobs[0].callback(None)
            self.assertEqual(self.successResultOf(answer), dirs)
        answer = pool.ask(NODE, m.GetBaseDir("/a"))
        bench.flush()
        bench.node.waiting[-1].callback(long)
        bench.flush()
        bench.pumps[-1].serverIO.loseConnection()
        bench.flush()
        jobs[1].callback(None)  # nobody is there any more who could hear of it
        self.assertNoResult(answer)
        answer.addErrback(lambda _: None)
        pool.stop()


class NoiseTests(SynchronousTestCase):
    """Frames that mean nothing."""

    def served(self, bench: Bench) -> Raw:
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        return raw

    @shows("S11")
    def test_flood(self) -> None:
        """Ten connections that send texts of a byte would hold everybody up for seconds."""
        unknown = codec.encode_notification(s.NOTIFICATIONS["PublishImage"]).replace(b"PublishImage", b"PublishedOne")
        for one in (
            frame(b"x", opcode=1, masked=True),
            frame(b"", opcode=10, masked=True),
            frame(b"", opcode=9, masked=True),
            frame(unknown, masked=True),
            frame(PUBLISH, masked=True),
            frame(b"", masked=True),
        ):
            bench = Bench()
            raw = self.served(bench)
            raw.send(one * (NOISE_AT_ONCE + 50))
            bench.advance(1)
            self.assertTrue(raw.ended, one)

    @shows("S11")
    def test_pings_are_fine(self) -> None:
        """A client that pings each second, and was stopped for a minute, or a node that tells much, would be sent away."""
        bench = Bench()
        raw = self.served(bench)
        for _ in range(5):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True) * 60 + frame(b"", opcode=10, masked=True) * 60)
            bench.advance(12)
        for _ in range(120):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True) * (NOISE_A_SECOND // 2))
            bench.advance(1)
        self.assertFalse(raw.ended)
        bench = Bench()
        link = bench.link()
        for _ in range(10 * NOISE_AT_ONCE):
            bench.served().tell(s.NOTIFICATIONS["ReceivedImage"])
        bench.advance(1)
        self.assertTrue(link.alive)
        self.assertEqual(len(bench.client.told), 10 * NOISE_AT_ONCE)

    @shows("S11")
    def test_news_of_pieces(self) -> None:
        """Neighbors that exchange pieces for minutes would be sent away; strangers that make such news up would not."""
        news = frame(codec.encode_notification(m.ExchangePieces("/a/b", s.image(1), 1, m.PieceNews(has=1))), masked=True)
        for useful in (True, False):
            bench = Bench()
            bench.node.useful = useful
            raw = self.served(bench)
            raw.send(news * (NOISE_AT_ONCE + 50))
            bench.advance(1)
            self.assertEqual(raw.ended, not useful)

    @shows("S11")
    def test_turns(self) -> None:
        """64 KiB of tiny frames on each of many connections would be dealt with in one go, and everybody else waits."""
        bench = Bench()
        raw = self.served(bench)
        served: Any = bench.served()
        turns: list[int] = []
        go_on = served._go_on
        served._go_on = lambda: (turns.append(len(bench.node.asked)), go_on())
        requests = [frame(codec.encode_request(number, m.GetBlock(s.BLOCK, None)), masked=True) for number in range(3 * FRAMES_A_TURN)]
        served.dataReceived(b"".join(requests))
        self.assertLessEqual(len(bench.node.asked), FRAMES_A_TURN)
        self.assertTrue(served._held)
        for _ in range(5):
            bench.clock.advance(0)
            bench.flush()
        self.assertEqual(turns, [FRAMES_A_TURN, 2 * FRAMES_A_TURN, 3 * FRAMES_A_TURN][: len(turns)])
        self.assertGreaterEqual(len(turns), 2)
        self.assertEqual(len(bench.node.asked), 3 * FRAMES_A_TURN)
        self.assertFalse(served._held)
        self.assertFalse(raw.ended)

    @shows("S11")
    def test_end_between_turns(self) -> None:
        """A connection that ends while it waits for its turn would be read on."""
        bench = Bench()
        self.served(bench)
        served: Any = bench.served()
        served.dataReceived(frame(PUBLISH, masked=True) * (FRAMES_A_TURN + 10))
        self.assertEqual(len(bench.node.told), FRAMES_A_TURN)
        served.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(bench.clock.getDelayedCalls(), [])


class ViolationTests(SynchronousTestCase):
    """The end after a broken rule."""

    @shows("A22", "W6")
    def test_tcp_ends_with_the_other_side(self) -> None:
        """After a broken rule the other side hears that nothing more comes, and TCP is gone as soon as it closes too."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        served: Any = bench.served()
        raw.seen = b""
        served.hold(True)
        served.dataReceived(frame(b"x", masked=False))
        self.assertFalse(served._held, "nobody would notice the end")
        bench.flush()
        self.assertEqual([kind for _, kind, _ in frames(raw.seen)], [8])
        bench.pumps[-1].clientIO.loseConnection()
        bench.flush()
        self.assertEqual(bench.clock.getDelayedCalls(), [])
        self.assertEqual(bench.port.open, 0)


class TogetherTests(SynchronousTestCase):
    """What is shared between accepted and made connections."""

    @shows("S10", "S7")
    def test_budgets(self) -> None:
        """Each would have its own: twice as much memory as was meant."""
        budgets = Budgets()
        bench = Bench(Limits())
        bench.port.links.budgets = budgets
        pool = Pool(bench.clock, budgets=budgets)
        answer = pool.ask(NODE, m.GetBlock(s.BLOCK, None))
        bench.accept()
        self.successResultOf(answer)
        self.assertIs(bench.served()._budgets, budgets)
        self.assertIs(pool._lines[NODE].link._budgets, budgets)
