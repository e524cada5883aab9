"""Connections between real protocols in memory: a port of ours, links to it, and bare byte streams on either side."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.web.resource import Resource

from ciruela.interfaces import Address
from ciruela.net.connection import ClientLink
from ciruela.net.limits import LIMITS, IsPeer, Limits
from ciruela.net.outgoing import CLIENT_HOST, connect
from ciruela.net.server import PORT_LIMITS, PortLimits, site
from ciruela.proto import messages as m

NODE = Address("10.0.0.1", 24783)
REFERENCE_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: ciruela\r\nOrigin: http://ciruela/\r\nUser-Agent: tk-http/0.3.9\r\nConnection: upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
REFERENCE_ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def everybody(host: str) -> bool:
    """Every address is a peer's, so that nothing is a stranger's lot."""
    return True


class Counterpart:
    """Writes down what happens; answers blocks at once, indexes with ``index``, everything else when the test says so."""

    def __init__(self) -> None:
        self.asked: list[m.Request] = []
        self.told: list[m.Notification] = []
        self.lost_links: list[Any] = []
        self.links: set[Any] = set()
        self.waiting: list[Deferred[m.Response]] = []
        self.index = b"an index"
        self.fault: Exception | None = None
        self.useful = False

    def requested(self, link: Any, request: m.Request) -> Deferred[m.Response]:
        self.asked.append(request)
        self.links.add(link)
        if self.fault is not None:
            raise self.fault
        if isinstance(request, m.GetBlock):
            return succeed(m.BlockData(b"b" * 32768))
        if isinstance(request, m.GetIndex):
            return succeed(m.IndexData(self.index))
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Any, notification: m.Notification) -> bool:
        self.told.append(notification)
        self.links.add(link)
        return self.useful

    def lost(self, link: Any) -> None:
        self.lost_links.append(link)


class Pages(Resource):
    """Says which path was asked for."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return b"page " + request.path


class Raw(Protocol):
    """One end that is bytes only."""

    def __init__(self) -> None:
        self.seen = b""
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        self.seen += data

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.ended = True

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


def accept_key(handshake: bytes) -> bytes:
    """The answer to the key in a handshake (RFC 6455 1.3)."""
    key = next(line for line in handshake.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split(b":", 1)[1].strip()
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def frame(payload: bytes, opcode: int = 2, masked: bool = False, first: int = 0x80) -> bytes:
    """One websocket frame; a masked one has the mask 1, 2, 3, 4."""
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        length = bytes([bit | size])
    elif size > 65535:
        length = bytes([bit | 127]) + struct.pack("!Q", size)
    else:
        length = bytes([bit | 126]) + struct.pack("!H", size)
    if masked:
        mask = b"\1\2\3\4"
        payload = mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))
    return bytes([first | opcode]) + length + payload


def frames(data: bytes) -> list[tuple[bool, int, bytes]]:
    """(final, opcode, payload) of each frame in ``data``."""
    found = []
    while data:
        final, opcode = bool(data[0] & 0x80), data[0] & 15
        masked, size, at = data[1] & 0x80, data[1] & 127, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        mask = b"\0\0\0\0"
        if masked:
            mask, at = data[at : at + 4], at + 4
        found.append((final, opcode, bytes(byte ^ mask[i & 3] for i, byte in enumerate(data[at : at + size]))))
        data = data[at + size :]
    return found


class Bench:
    """A port of ours at ``NODE`` and who connects to it, on one clock."""

    make_clock: Callable[[], MemoryReactorClock] = MemoryReactorClock

    def __init__(self, limits: Limits = LIMITS, port_limits: PortLimits = PORT_LIMITS, is_peer: IsPeer = everybody) -> None:
        self.clock = self.make_clock()
        self.node = Counterpart()
        self.client = Counterpart()
        self.limits = limits
        self.port = site(self.node, Pages(), self.clock, limits, port_limits, is_peer, lambda: ("n", "n1"))
        self.pumps: list[iosim.IOPump] = []

    def join(self, server: Protocol, client: Protocol, ip: str = "10.0.0.9") -> iosim.IOPump:
        """Connect two protocols."""
        near = IPv4Address("TCP", ip, 40000 + len(self.pumps))
        far = IPv4Address("TCP", NODE.host, NODE.port)
        pump = iosim.connect(
            server,
            iosim.FakeTransport(server, True, far, near),
            client,
            iosim.FakeTransport(client, False, near, far),
            clock=self.clock,
        )
        self.pumps.append(pump)
        return pump

    def raw_client(self, ip: str = "10.0.0.9") -> Raw:
        """A stream of bytes to our port."""
        raw = Raw()
        self.join(self.port.buildProtocol(IPv4Address("TCP", ip, 40000)), raw, ip)
        return raw

    def flush(self) -> None:
        """Move everything that is on its way."""
        for _ in range(3):
            for pump in self.pumps:
                pump.flush()

    def advance(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass, with the network moving."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            self.flush()

    def accept(self, server: Protocol | None = None) -> Any:
        """Let the oldest attempt to connect succeed; gives the server's end."""
        _, _, factory, _, _ = self.clock.tcpClients.pop(0)
        if server is None:
            server = self.port.buildProtocol(IPv4Address("TCP", "10.0.0.9", 40000))
        self.join(server, factory.buildProtocol(IPv4Address("TCP", NODE.host, NODE.port)))
        self.flush()
        return server

    def link(self, host: str = CLIENT_HOST) -> ClientLink:
        """An open link of ours to our port."""
        opened: list[ClientLink] = []
        connect(self.clock, NODE, self.client, host, limits=self.limits).addCallback(opened.append)
        self.accept()
        return opened[0]

    def refuse(self, fault: Exception) -> None:
        """Let the oldest attempt to connect fail."""
        _, _, factory, _, _ = self.clock.tcpClients.pop(0)
        factory.clientConnectionFailed(None, Failure(fault))

    def served(self, at: int = -1) -> Any:
        """The link at the far end of a connection."""
        return self.pumps[at].server._next
