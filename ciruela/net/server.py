"""The TCP port of a node: websockets at ``/``, pages everywhere else (protocol sections 2.1 and 8).

A connection is first read here, up to the end of the request's head, under absolute deadlines (threats A19); then a link or the pages
take over. Pages get one request a connection, without a body.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Site

from ciruela.net.link import LIMITS, MAX_HEAD_BYTES, Limits, accelerated, origin_allowed, server_links
from ciruela.seams import Counterpart

_REASONS = {400: "Bad Request", 403: "Forbidden", 405: "Method Not Allowed", 413: "Content Too Large", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class PortLimits:
    """How many connections there may be, and how long their first words may take, in seconds."""

    connections: int = 1000
    per_ip: int = 128
    first_byte_s: float = 5.0
    head_s: float = 10.0
    page_s: float = 60.0


def site(
    counterpart: Counterpart,
    pages: IResource,
    max_connections: int,
    clock: IReactorTime,
    link_limits: Limits = LIMITS,
    port_limits: PortLimits | None = None,
) -> Site:
    """What to listen with. ``pages`` gets every GET and HEAD that is not a websocket handshake at exactly ``/``.

    ``max_connections`` counts websockets and pages together; the newest is refused with 503.
    """
    return _Port(counterpart, pages, clock, link_limits, port_limits or PortLimits(connections=max_connections))


class _OneRequest(HTTPChannel):
    """Pages close after each answer, so that the deadline for a connection is the deadline for its request."""

    def checkPersistence(self, request: object, version: bytes) -> bool:  # noqa: ARG002, N802
        """Twisted: whether another request may follow."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])  # type: ignore[attr-defined]
        return False


class _Port(Site):
    _log = Logger(namespace="ciruela.net.server")

    def __init__(self, counterpart: Counterpart, pages: IResource, clock: IReactorTime, link_limits: Limits, limits: PortLimits) -> None:
        super().__init__(pages, timeout=int(limits.page_s), reactor=clock)
        self.clock = clock
        self.limits = limits
        self.links = server_links(counterpart, clock, link_limits)
        self.open = 0
        self.by_ip: Counter[str] = Counter()
        if not accelerated():
            self._log.critical(
                "Autobahn runs without its native code: websockets will be some forty times slower. Install autobahn with NVX support."
            )

    def buildProtocol(self, addr: IAddress | None) -> Protocol:  # type: ignore[override]  # noqa: N802
        """Twisted: somebody connected."""
        door = _Door(self, getattr(addr, "host", None))
        door.factory = self
        return door

    def page_channel(self) -> IProtocol:
        """A protocol that answers one request from the pages."""
        channel: Any = _OneRequest()
        channel.factory = self
        channel.site = self
        channel.requestFactory = self.requestFactory
        channel.timeOut = self.timeOut
        channel.callLater = self.clock.callLater
        return cast(IProtocol, channel)

    def enter(self, ip: str | None) -> str | None:
        """Count a connection in. Why it may not stay, or None."""
        self.open += 1
        if ip is not None:
            self.by_ip[ip] += 1
        if self.open > self.limits.connections:
            return "too many connections"
        if ip is not None and self.by_ip[ip] > self.limits.per_ip and not _loopback(ip):
            return "too many connections from your address"
        return None

    def leave(self, ip: str | None) -> None:
        """Count a connection out."""
        self.open -= 1
        if ip is not None:
            self.by_ip[ip] -= 1
            if not self.by_ip[ip]:
                del self.by_ip[ip]


def _loopback(ip: str) -> bool:
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class _Door(Protocol):
    """Reads the head of a request and passes the connection on."""

    def __init__(self, port: _Port, ip: str | None) -> None:
        self._port = port
        self._ip = ip
        self._head = b""
        self._next: IProtocol | None = None
        self._refused = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:  # noqa: N802
        """Twisted: count it, and start the clock."""
        limits = self._port.limits
        why = self._port.enter(self._ip)
        if why is not None:
            self._refuse(503, why)
            return
        self._deadline = self._port.clock.callLater(limits.first_byte_s, self._abort)

    def _abort(self) -> None:
        self._deadline = None
        transport = self.transport
        assert transport is not None
        transport.abortConnection()  # type: ignore[attr-defined]

    def _wait(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self._port.clock.callLater(seconds, self._abort)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Twisted: bytes came."""
        if self._next is not None:
            self._next.dataReceived(data)
            return
        if self._refused:
            return
        if not self._head and data:
            self._wait(self._port.limits.head_s)
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._head) > MAX_HEAD_BYTES):
            self._refuse(413, "the head of the request is too long")
        elif end >= 0:
            self._judge(self._head[:end])

    def _judge(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        fields: dict[str, list[str]] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                self._refuse(400, "bad header")
                return
            fields.setdefault(name.lower(), []).append(value.strip())
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self._refuse(400, "bad request line")
        elif words[1] == "/" and "upgrade" in fields:
            fault = _handshake_fault(words, fields)
            if fault is None:
                self._pass_on(cast(IProtocol, self._port.links.buildProtocol(None)), None)
            else:
                self._refuse(*fault)
        elif words[0] not in ("GET", "HEAD"):
            self._refuse(405, "only GET and HEAD are answered")
        elif "transfer-encoding" in fields or fields.get("content-length", ["0"]) != ["0"]:
            self._refuse(413, "requests have no body here")
        else:
            self._pass_on(self._port.page_channel(), self._port.limits.page_s)

    def _pass_on(self, protocol: IProtocol, deadline_s: float | None) -> None:
        self._wait(deadline_s)
        transport = self.transport
        assert transport is not None
        self._next = protocol
        data, self._head = self._head, b""
        protocol.makeConnection(transport)
        self.dataReceived = protocol.dataReceived  # type: ignore[method-assign]
        protocol.dataReceived(data)

    def _refuse(self, code: int, why: str) -> None:
        self._refused = True
        self._head = b""
        transport: ITransport | None = self.transport
        assert transport is not None
        body = f"{why}\n".encode("ascii")
        extra = "Sec-WebSocket-Version: 13\r\n" if code == 400 else ""
        transport.write(
            f"HTTP/1.1 {code} {_REASONS[code]}\r\nServer: ciruela\r\nContent-Type: text/plain\r\n{extra}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode("ascii")
            + body
        )
        self._wait(1.0)
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Twisted: the TCP connection is gone."""
        self._wait(None)
        self._port.leave(self._ip)
        if self._next is not None:
            self._next.connectionLost(reason)


def _handshake_fault(words: list[str], fields: dict[str, list[str]]) -> tuple[int, str] | None:
    """Status and reason unless this is the handshake of RFC 6455 4.2.1, without a body, from an origin that is allowed."""
    listed = [word.strip().lower() for value in fields.get("connection", []) for word in value.split(",")]
    if words[0] != "GET" or words[2] != "HTTP/1.1" or "upgrade" not in listed:
        return 400, "not a websocket handshake"
    if "websocket" not in [word.strip().lower() for value in fields["upgrade"] for word in value.split(",")]:
        return 400, "only an upgrade to websocket is possible"
    if fields.get("sec-websocket-version") != ["13"]:
        return 400, "only version 13 of websocket is spoken"
    if "transfer-encoding" in fields or fields.get("content-length", ["0"]) != ["0"]:
        return 400, "a handshake has no body"
    hosts = fields.get("host", [])
    if len(hosts) != 1 or not _is_key(fields.get("sec-websocket-key", [])):
        return 400, "Host or Sec-WebSocket-Key is missing or wrong"
    origins = fields.get("origin", [])
    if len(origins) > 1 or not origin_allowed(origins[0] if origins else None, hosts[0]):
        return 403, "origin not allowed"
    return None


def _is_key(values: list[str]) -> bool:
    try:
        return len(values) == 1 and len(values[0]) == 24 and len(base64.b64decode(values[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
