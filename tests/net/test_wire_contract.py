"""One suite for both implementations of the wire: the pool over websockets, and the network in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net.outgoing import Pool
from ciruela.proto import messages as m
from tests.doubles.memnet import Hub
from tests.net.bench import NODE, Bench, Counterpart
from tests.proto import samples as s

BLOCK = m.GetBlock(s.BLOCK, None)
SLOW = m.GetPathState("/a")
DIRS = m.PathStateData(s.machine(0x21), "n1", 0, taken=False)
NOBODY = Address("10.0.0.77", 1)
HERE = Address("10.0.0.9", 24783)


class OverWebsockets:
    def __init__(self) -> None:
        self.bench = Bench()
        self.node = self.bench.node
        self.wire: Any = Pool(self.bench.clock)

    def turn(self, seconds: float = 1.0) -> None:
        """Let everything happen that can."""
        for _ in range(round(seconds)):
            for host, *_ in list(self.bench.clock.tcpClients):
                if host == NODE.host:
                    self.bench.accept()
            self.bench.advance(1)


class InMemory:
    def __init__(self) -> None:
        self.clock = Clock()
        self.node = Counterpart()
        self.hub = Hub(self.clock, random.Random(1))
        self.hub.node(NODE, self.node, lambda data, address: None)
        self.wire: Any = self.hub.node(HERE, Counterpart(), lambda data, address: None)[0]

    def turn(self, seconds: float = 1.0) -> None:
        """Let everything happen that can."""
        for _ in range(round(seconds * 100)):
            self.clock.advance(0.01)


class Contract:
    """What work may rely on."""

    network: Callable[[Any], Any]

    def setUp(self) -> None:
        self.net = self.network()
        self.wire = self.net.wire

    def failure(self: Any, answer: Deferred[m.Response], kind: type[Exception]) -> str:
        return str(self.failureResultOf(answer, kind).value)

    def test_answers(self: Any) -> None:
        """Work in a simulation would not work on a network."""
        self.assertFalse(self.wire.connected(NODE))
        answers = [self.wire.ask(NODE, BLOCK), self.wire.ask(NODE, SLOW)]
        self.net.turn()
        self.assertTrue(self.wire.connected(NODE))
        self.assertEqual(self.successResultOf(answers[0]), m.BlockData(b"b" * 32768))
        self.assertNoResult(answers[1])
        self.assertEqual(self.net.node.asked, [BLOCK, SLOW])
        self.net.node.waiting[0].callback(DIRS)
        self.net.turn()
        self.assertEqual(self.successResultOf(answers[1]), DIRS)

    def test_version_is_remembered(self: Any) -> None:
        """The first blocks of each upload would be asked for one by one: nobody would know that the other side understands more."""
        self.assertFalse(self.wire.bulk(NODE))
        self.wire.ask(NODE, BLOCK).addErrback(lambda _: None)
        self.net.turn(2)
        self.assertTrue(self.wire.bulk(NODE))
        self.net.turn(40)
        self.assertTrue(self.wire.bulk(NODE))
        self.assertFalse(self.wire.bulk(NOBODY))

    def test_errors(self: Any) -> None:
        """The reason travels, the inside of the program does not."""
        self.net.node.fault = RemoteError("no such config")
        answer = self.wire.ask(NODE, BLOCK)
        self.net.turn()
        self.assertEqual(self.failure(answer, RemoteError), "no such config")
        self.net.node.fault = KeyError("secret")
        answer = self.wire.ask(NODE, BLOCK)
        self.net.turn()
        self.assertEqual(self.failure(answer, RemoteError), "internal error")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_nobody_there(self: Any) -> None:
        """A dead node fails its requests, within seconds."""
        answer = self.wire.ask(NOBODY, BLOCK)
        self.net.turn(4)
        self.failure(answer, LinkLost)
        self.assertFalse(self.wire.connected(NOBODY))

    def test_timeouts(self: Any) -> None:
        """A node that hangs fails its requests too, and stays connected."""
        block, slow = self.wire.ask(NODE, SLOW, 5.0), self.wire.ask(NODE, SLOW)
        self.net.turn(7)
        self.assertIn("no answer from 10.0.0.1:24783 within 5 s", self.failure(block, LinkLost))
        self.assertNoResult(slow)
        self.net.turn(26)
        self.failure(slow, LinkLost)
        self.assertTrue(self.wire.connected(NODE))

    def test_cancel(self: Any) -> None:
        """Late answers to requests that were taken back reach nobody."""
        early = self.wire.ask(NODE, BLOCK)
        early.cancel()
        self.failureResultOf(early, CancelledError)
        late = self.wire.ask(NODE, SLOW)
        self.net.turn()
        late.cancel()
        self.failureResultOf(late, CancelledError)
        self.net.node.waiting[0].callback(DIRS)
        answer = self.wire.ask(NODE, BLOCK)
        self.net.turn()
        self.successResultOf(answer)

    def test_one_connection(self: Any) -> None:
        """All requests to a node share one."""
        answers = [self.wire.ask(NODE, BLOCK) for _ in range(20)]
        self.net.turn()
        for answer in answers:
            self.successResultOf(answer)
        self.assertEqual(len(self.net.node.links), 1)


class PoolContract(Contract, SynchronousTestCase):
    def network(self) -> OverWebsockets:
        return OverWebsockets()


class MemoryContract(Contract, SynchronousTestCase):
    def network(self) -> InMemory:
        return InMemory()
