"""The pool of connections to nodes."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net.outgoing import CLIENT_HOST, MOST_QUEUED, Pool, connect
from ciruela.proto import messages as m
from tests.net.bench import NODE, Bench, Counterpart, Raw, accept_key
from tests.proof import shows
from tests.proto import samples as s

BLOCK = m.GetBlock(s.BLOCK, None)
SLOW = m.GetPathState("/a")
DIRS = m.PathStateData(s.machine(0x21), "n1", 0, taken=False)


class PoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.bench = Bench()
        self.pool = Pool(self.bench.clock)

    def ask(self, request: m.Request = BLOCK, timeout_s: float | None = None) -> Deferred[m.Response]:
        return self.pool.ask(NODE, request, timeout_s)

    def connected(self) -> Deferred[m.Response]:
        answer = self.ask()
        self.bench.accept()
        return answer

    def lost(self, answer: Deferred[m.Response]) -> str:
        return str(self.failureResultOf(answer, LinkLost).value)

    def test_one_connection(self) -> None:
        """A connection for each request would cost a handshake per block, and the other side's places."""
        answers = [self.ask() for _ in range(5)]
        self.assertEqual(len(self.bench.clock.tcpClients), 1)
        self.assertEqual(self.bench.clock.tcpClients[0][:2], (NODE.host, NODE.port))
        self.assertFalse(self.pool.connected(NODE))
        self.bench.accept()
        self.assertTrue(self.pool.connected(NODE))
        for answer in [*answers, self.ask()]:
            self.bench.flush()
            self.successResultOf(answer)
        self.assertEqual(self.bench.clock.tcpClients, [])

    def test_what_a_node_sends(self) -> None:
        """Section 2.1: nodes use another Host than clients."""
        self.ask().addErrback(lambda _: None)
        raw = Raw()
        self.bench.accept(raw)
        self.assertIn(b"Host: ciruela_internal\r\nOrigin: http://ciruela_internal/\r\n", raw.seen)

    def test_ipv6(self) -> None:
        """Half of the clusters have no IPv4."""
        self.pool.ask(Address("2001:db8::1", 1), BLOCK).addErrback(lambda _: None)
        self.assertEqual(self.bench.clock.tcpClients[0][:2], ("2001:db8::1", 1))

    def test_remote_errors(self) -> None:
        """A refusal is no fault of the connection."""
        self.connected()
        self.bench.node.fault = RemoteError("no")
        answer = self.ask()
        self.bench.flush()
        self.failureResultOf(answer, RemoteError)
        self.assertTrue(self.pool.connected(NODE))

    @shows("A26", "I6")
    def test_told_before_it_is_connected(self) -> None:
        """What is to be told to a node that takes its time would grow without end."""
        note = m.ExchangePieces("/apps/v1", s.image(1), 1, m.PieceNews())
        for _ in range(MOST_QUEUED + 50):
            self.pool.tell(NODE, note)
        self.assertEqual(len(self.pool._lines[NODE]._told), MOST_QUEUED)
        self.bench.accept()
        self.bench.flush()
        self.assertEqual(len(self.bench.node.told), MOST_QUEUED)

    @shows("A24")
    def test_nobody_asks_here(self) -> None:
        """Connections that were made are for our questions only."""
        self.connected()
        answer = self.bench.served().ask(BLOCK)
        self.bench.flush()
        self.failureResultOf(answer, RemoteError)

    def test_idle(self) -> None:
        """Thousands of nodes must not keep a connection to each other for ever."""
        self.connected()
        self.bench.advance(9.5)
        self.assertTrue(self.pool.connected(NODE))
        self.ask().addErrback(lambda _: None)
        self.bench.advance(9.5)
        self.assertTrue(self.pool.connected(NODE))
        slow = self.ask(SLOW)
        self.bench.advance(20)
        self.assertTrue(self.pool.connected(NODE))
        self.bench.node.waiting[0].callback(DIRS)
        self.bench.flush()
        self.successResultOf(slow)
        self.bench.advance(10)
        self.assertFalse(self.pool.connected(NODE))
        self.bench.advance(2)
        self.assertEqual(self.bench.clock.getDelayedCalls(), [])
        self.assertEqual(self.pool._lines, {})

    @shows("A58")
    def test_backoff(self) -> None:
        """A dead node would be knocked at many times a second by every other."""
        for failures in (1, 2, 3):
            answer = self.ask()
            self.bench.refuse(Refused())
            self.assertEqual(self.lost(answer), "connection refused by 10.0.0.1:24783")
            self.assertIn("left alone", self.lost(self.ask()))
            self.bench.clock.advance(failures - 0.1)
            self.assertIn("left alone", self.lost(self.ask()))
            self.assertEqual(self.bench.clock.tcpClients, [])
            self.bench.clock.advance(0.1)
        self.successResultOf(self.connected())

    def test_no_route(self) -> None:
        """The words of the system are what an administrator can look up."""
        answer = self.ask()
        self.bench.refuse(ConnectError(string="No route to host"))
        text = self.lost(answer)
        self.assertTrue(text.startswith("cannot connect to 10.0.0.1:24783: "), text)
        self.assertIn("No route to host", text)

    @shows("A58")
    def test_handshake_that_never_ends(self) -> None:
        """Three seconds for everything, then the next peer."""
        answer = self.ask()
        self.bench.accept(Raw())
        self.bench.advance(2.5)
        self.assertNoResult(answer)
        self.bench.advance(0.5)
        self.assertEqual(self.lost(answer), "no answer from 10.0.0.1:24783 within 3 s")

    @shows("A58", "F52")
    def test_timeouts(self) -> None:
        """A request that is never answered must not block a download."""
        self.connected()
        long, short = self.ask(SLOW), self.ask(SLOW, 2.0)
        self.bench.advance(2)
        self.assertEqual(self.lost(short), "no answer from 10.0.0.1:24783 within 2 s")
        self.bench.advance(27.5)
        self.assertNoResult(long)
        self.bench.advance(0.5)
        self.assertIn("30 s", self.lost(long))
        self.assertTrue(self.pool.connected(NODE))

    def test_block_timeout(self) -> None:
        """Blocks may come from elsewhere, so their patience is shorter."""
        self.ask(SLOW).addErrback(lambda _: None)
        raw = Raw()
        self.bench.accept(raw)
        raw.send(
            b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: " + accept_key(raw.seen) + b"\r\n\r\n"
        )
        self.bench.flush()
        answer = self.ask()
        self.bench.advance(5.5)
        self.assertNoResult(answer)
        self.bench.advance(0.5)
        self.assertIn("5.64 s", self.lost(answer))

    def test_cancel_while_connecting(self) -> None:
        """A run that ends while a silent server is probed would tell its user of a fault that is none."""
        going = connect(self.bench.clock, NODE, Counterpart(), CLIENT_HOST)
        going.cancel()
        self.failureResultOf(going, CancelledError)

    def test_cancel(self) -> None:
        """A download that found another source takes its requests back, wherever they are."""
        waiting = self.ask()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.bench.accept()
        self.assertEqual(self.bench.node.asked, [])
        flying = self.ask(SLOW)
        self.bench.flush()
        flying.cancel()
        self.failureResultOf(flying, CancelledError)
        self.bench.node.waiting[0].callback(DIRS)
        self.bench.flush()
        self.successResultOf(self.again())

    def again(self) -> Deferred[m.Response]:
        answer = self.ask()
        self.bench.flush()
        return answer

    def test_in_flight(self) -> None:
        """More than 64 at once would be refused by the dialogue; the rest waits its turn."""
        self.connected()
        answers = [self.ask(SLOW) for _ in range(70)]
        self.bench.flush()
        self.assertEqual(len(self.bench.node.waiting), 64)
        for _ in range(70):
            self.bench.node.waiting.pop(0).callback(DIRS)
            self.bench.flush()
        for answer in answers:
            self.successResultOf(answer)

    @shows("A26", "I6")
    def test_queue(self) -> None:
        """A queue without an end only hides that a peer is too slow."""
        answers = [self.ask() for _ in range(257)]
        self.assertIn("256 requests wait", self.lost(answers[256]))
        self.bench.accept()
        self.bench.flush()
        for answer in answers[:256]:
            self.successResultOf(answer)

    def test_race_with_an_idle_close(self) -> None:
        """A reference daemon closes after 5 s; the request that was just sent must not fail for that."""
        self.connected()
        answer = self.ask(SLOW)
        self.bench.pumps[-1].serverIO.loseConnection()
        self.bench.flush()
        self.assertNoResult(answer)
        self.assertEqual(len(self.bench.clock.tcpClients), 1)
        self.bench.accept()
        self.bench.flush()
        self.bench.node.waiting[-1].callback(DIRS)
        self.bench.flush()
        self.assertEqual(self.successResultOf(answer), DIRS)

    def test_lost_twice(self) -> None:
        """A peer that falls over each time it is asked must count as failed."""
        self.connected()
        answers = [self.ask(SLOW), self.ask(SLOW)]
        for _ in range(2):
            self.bench.pumps[-1].serverIO.loseConnection()
            self.bench.flush()
            if self.bench.clock.tcpClients:
                self.bench.accept()
                self.bench.flush()
        for answer in answers:
            self.assertIn("lost", self.lost(answer))
        self.assertIn("left alone", self.lost(self.ask()))

    def test_asking_again_in_the_middle_of_a_loss(self) -> None:
        """Nothing may be sent on a connection that is ending, and who asks then is told the whole story."""
        self.connected()
        later: list[Deferred[m.Response]] = []
        self.ask(SLOW).addErrback(lambda _: later.append(self.ask()))
        for _ in range(2):
            self.bench.pumps[-1].serverIO.loseConnection()
            self.bench.flush()
            if self.bench.clock.tcpClients:
                self.bench.accept()
        self.assertIn("twice in a row", self.lost(later[0]))

    def test_loss_and_refusal(self) -> None:
        """The retry itself may fail; the caller has to hear of it."""
        self.connected()
        answer = self.ask(SLOW)
        self.bench.pumps[-1].serverIO.loseConnection()
        self.bench.flush()
        self.bench.refuse(Refused())
        self.assertEqual(self.lost(answer), "connection refused by 10.0.0.1:24783")

    def test_asking_again_from_an_errback(self) -> None:
        """Callers ask for the next block as soon as one failed, in the middle of the loss."""
        self.connected()
        later: list[Deferred[m.Response]] = []
        self.ask(SLOW, 1.0).addErrback(lambda _: later.append(self.ask()))
        self.bench.advance(1)
        self.successResultOf(later[0])

    def test_stop(self) -> None:
        """A daemon that stops leaves no connection, no timer and no waiting request."""
        self.connected()
        flying = self.ask(SLOW)
        waiting = self.pool.ask(Address("10.0.0.2", 1), BLOCK)
        self.bench.flush()
        stopped = self.pool.stop()
        self.lost(flying)
        self.lost(waiting)
        self.lost(self.ask())
        self.bench.advance(2)
        self.successResultOf(stopped)
        self.assertEqual(self.bench.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.bench.node.lost_links), 1)

    def test_stop_in_the_middle_of_a_failure(self) -> None:
        """Whoever hears that the last peer is gone may end the daemon there and then; it would wait for ever."""
        stopped: list[Deferred[None]] = []
        for address in (NODE, Address("10.0.0.2", 1)):
            self.pool.ask(address, BLOCK).addErrback(lambda _: stopped.append(self.pool.stop()))
        self.bench.refuse(Refused())
        self.successResultOf(stopped[0])
        self.assertEqual(len(stopped), 2)
        self.assertEqual(self.pool._lines, {})
        self.assertEqual([call for call in self.bench.clock.getDelayedCalls() if not call.cancelled], [])

    def test_an_attempt_that_fails_at_once(self) -> None:
        """A host without IPv6 knows at once that it cannot connect; what waits must hear of it, and the next attempt is made as usual."""
        self.pool.connect = lambda _address, _handler: fail(LinkLost("no such family"))  # type: ignore[assignment]
        self.assertEqual(self.lost(self.ask()), "no such family")
        self.assertIn("left alone", self.lost(self.ask()))
        self.bench.clock.advance(1)
        self.assertEqual(self.lost(self.ask()), "no such family")

    def test_stop_of_nothing(self) -> None:
        """Stopping at once is normal."""
        self.successResultOf(self.pool.stop())
