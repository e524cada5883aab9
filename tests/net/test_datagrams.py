"""The gossip socket."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.net.datagrams import DatagramPort, listen
from ciruela.seams import Address
from tests.proof import shows

PEER = Address("10.0.0.2", 24783)


class Transport:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.fault: Exception | None = None

    def write(self, data: bytes, address: tuple[str, int]) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append((data, address))


class Datagrams(SynchronousTestCase):
    def setUp(self) -> None:
        self.seen: list[Any] = []
        self.port = DatagramPort(lambda data, address: self.seen.append((data, address)), Clock())
        self.transport = Transport()
        self.port.transport = self.transport  # type: ignore[assignment]

    def test_both_ways(self) -> None:
        """No gossip, no spreading."""
        self.port.datagramReceived(b"news", (PEER.host, PEER.port))
        self.port.send(b"more", PEER)
        self.assertEqual(self.seen, [(b"news", PEER)])
        self.assertEqual(self.transport.sent, [(b"more", (PEER.host, PEER.port))])

    @shows("A35")
    def test_long_ones(self) -> None:
        """Nobody of ours sends them, so they are an attempt to make us work."""
        self.port.datagramReceived(b"x" * 1400, (PEER.host, 1))
        self.port.datagramReceived(b"x" * 1401, (PEER.host, 1))
        self.assertEqual((len(self.seen), self.port.refused), (1, 1))
        self.port.send(b"x" * 1401, PEER)
        self.assertEqual((self.transport.sent, self.port.unsent), ([], 1))

    @shows("I8")
    def test_faults_of_the_network(self) -> None:
        """A full buffer or a missing route must look like a lost datagram, not stop the gossip."""
        for fault in (OSError(101, "unreachable"), ValueError("family")):
            self.transport.fault = fault
            self.port.send(b"x", PEER)
        self.assertEqual(self.port.unsent, 2)
        self.port.connectionRefused()
        self.port.transport = None
        self.port.send(b"x", PEER)
        self.assertEqual(self.port.unsent, 3)

    @shows("I8")
    def test_faults_of_ours(self) -> None:
        """One bad datagram must not raise into the reactor."""
        port = DatagramPort(lambda data, address: 1 / 0, Clock())
        port.datagramReceived(b"x", (PEER.host, 1))
        self.assertEqual(port.faults, 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_listen(self) -> None:
        """The daemon binds the address it was told."""
        bound: list[Any] = []

        class Reactor:
            def listenUDP(self, port: int, protocol: Any, interface: str, maxPacketSize: int) -> str:
                bound.append((port, protocol, interface, maxPacketSize))
                return "a port"

        protocol, listening = listen(Reactor(), "10.0.0.1", 24783, lambda data, address: None, Clock())  # type: ignore[arg-type]
        self.assertEqual(listening, "a port")
        self.assertEqual(bound, [(24783, protocol, "10.0.0.1", 65536)])
