"""The gossip socket."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.net.datagrams import DatagramPort, listen
from tests.proof import shows

PEER = Address("10.0.0.2", 24783)


class Transport:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.fault: Exception | None = None
        self.host = "10.0.0.1"

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", self.host, 24783)

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

    @shows("K1.3")
    def test_dual_stack(self) -> None:
        """A node on ``::`` would not know its peers by their IPv4 addresses, nor reach them."""
        self.transport.host = "::"
        self.port.startProtocol()
        self.port.datagramReceived(b"news", ("::ffff:10.0.0.2", PEER.port))
        self.assertEqual(self.seen, [(b"news", PEER)])
        self.port.send(b"more", PEER)
        self.port.send(b"more", Address("2001:db8::1", 5))
        self.assertEqual([address for _, address in self.transport.sent], [("::ffff:10.0.0.2", PEER.port), ("2001:db8::1", 5)])
        self.transport.host = "10.0.0.1"
        self.port.startProtocol()
        self.port.send(b"more", PEER)
        self.assertEqual(self.transport.sent[-1][1], (PEER.host, PEER.port))

    @shows("K1.3")
    def test_what_cannot_be_sent_is_said(self) -> None:
        """A node whose datagrams never leave would say nothing of it; or each second."""
        said: list[str] = []

        def observe(event: dict[str, Any]) -> None:
            if "could not be sent" in str(event.get("log_format")):
                said.append(str(event["log_format"]).format(**event))

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.transport.fault = OSError(101, "Network is unreachable")
        for _ in range(50):
            self.port.send(b"x", PEER)
        self.assertEqual(said, ["a datagram to 10.0.0.2:24783 could not be sent: Network is unreachable"])
        self.assertEqual(self.port.unsent, 50)

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
