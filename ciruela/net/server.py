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
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import IResource
from twisted.web.server import Site

from ciruela.clockwork import Hush
from ciruela.net import frames
from ciruela.net.limits import LIMITS, IsPeer, Limits, nobody
from ciruela.net.link import MAX_HEAD_BYTES, server_links
from ciruela.seams import Counterpart

_REASONS = {400: "Bad Request", 403: "Forbidden", 405: "Method Not Allowed", 413: "Content Too Large", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class PortLimits:
    """How many connections there may be, and how long their first words may take, in seconds.

    ``per_address`` counts an IPv4 address or the /64 of an IPv6 address as one. ``for_peers`` of the connections are kept for configured
    peers; never more than a quarter of all.
    """

    connections: int = 1000
    per_address: int = 128
    for_peers: int = 64
    first_byte_s: float = 5.0
    head_s: float = 10.0
    page_s: float = 60.0


PORT_LIMITS = PortLimits()


def site(
    counterpart: Counterpart,
    pages: IResource,
    clock: IReactorTime,
    link_limits: Limits = LIMITS,
    port_limits: PortLimits = PORT_LIMITS,
    is_peer: IsPeer = nobody,
) -> Port:
    """What to listen with. ``pages`` gets every GET and HEAD that is not a websocket handshake at exactly ``/``.

    Limits count websockets and pages together; the newest connection is refused with 503. ``is_peer`` tells whether a configured peer has
    a numeric address.
    """
    return Port(counterpart, pages, clock, link_limits, port_limits, is_peer)


class _OneRequest(HTTPChannel):
    """Pages close after each answer, so that the deadline for a connection is the deadline for its request."""

    def checkPersistence(self, request: object, version: bytes) -> bool:  # noqa: ARG002, N802
        """Twisted: whether another request may follow."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])  # type: ignore[attr-defined]
        return False


class Port(Site):
    """The port. ``refused`` counts connections that were one too many, ``hush`` keeps the log short."""

    _log = Logger(namespace="ciruela.net.server")

    def __init__(
        self,
        counterpart: Counterpart,
        pages: IResource,
        clock: IReactorTime,
        link_limits: Limits,
        limits: PortLimits,
        is_peer: IsPeer,
    ) -> None:
        super().__init__(pages, timeout=int(limits.page_s), reactor=clock)
        self.clock = clock
        self.limits = limits
        self.hush = Hush(clock)
        self.links = server_links(counterpart, clock, link_limits, is_peer, self.hush)
        self._is_peer = is_peer
        self.open = self.strangers = self.refused = 0
        self.by_address: Counter[str] = Counter()
        if not frames.NATIVE:
            self._log.critical(
                "Autobahn's native code (NVX) is missing: uploads will be some forty times slower. Install autobahn from its wheel."
            )

    def buildProtocol(self, addr: IAddress | None) -> Protocol:  # type: ignore[override]  # noqa: N802
        """Twisted: somebody connected."""
        door = _Door(self, self.origin(getattr(addr, "host", None)))
        door.factory = self
        return door

    def page_channel(self) -> IProtocol:
        """A protocol that answers one request from the pages."""
        channel: Any = _OneRequest()
        channel.factory = self
        channel.site = self
        channel.requestFactory = self.requestFactory
        channel.timeOut = None  # the door has a deadline for all of it
        channel.callLater = self.clock.callLater
        return cast(IProtocol, channel)

    def log(self, request: Request) -> None:
        """Twisted: a page was asked for. Not every time: who looks each second would fill the log."""
        source = str(request.getClientAddress().host)
        page = request.uri.decode("latin-1")
        self.hush.info(self._log, "page", source, "{source} looked at {page}: {code}", source=source, page=page, code=request.code)

    def enter(self, origin: Origin) -> str | None:
        """Count a connection in. Why it may not stay, or None."""
        limits = self.limits
        self.open += 1
        self.by_address[origin.block] += 1
        self.strangers += not origin.peer
        reserved = min(limits.for_peers, limits.connections // 4)
        why = None
        if self.open > limits.connections or (not origin.peer and self.strangers > limits.connections - reserved):
            why = "too many connections"
        elif self.by_address[origin.block] > limits.per_address and not origin.loopback:
            why = "too many connections from your address"
        if why is not None:
            self.refused += 1
            self.hush.warn(self._log, "refused", origin.block, "{source} was refused: {why}", source=origin.block, why=why)
        return why

    def leave(self, origin: Origin) -> None:
        """Count a connection out."""
        self.open -= 1
        self.strangers -= not origin.peer
        self.by_address[origin.block] -= 1
        if not self.by_address[origin.block]:
            del self.by_address[origin.block]

    def origin(self, host: str | None) -> Origin:
        """Who ``host`` is to this port."""
        return origin(host, self._is_peer)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection comes from: what is counted together, and whether it is this host itself or a configured peer."""

    block: str
    loopback: bool
    peer: bool


def origin(host: str | None, is_peer: IsPeer) -> Origin:
    """The origin of a connection from the numeric address ``host``."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return Origin(host or "", False, False)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            block = ipaddress.ip_network((address, 64), strict=False)
            return Origin(str(block), address.is_loopback, is_peer(str(address)))
        address = address.ipv4_mapped
    return Origin(str(address), address.is_loopback, is_peer(str(address)))


class _Door(Protocol):
    """Reads the head of a request and passes the connection on."""

    def __init__(self, port: Port, origin: Origin) -> None:
        self._port = port
        self._origin = origin
        self._head = b""
        self._next: IProtocol | None = None
        self._refused = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:  # noqa: N802
        """Twisted: count it, and start the clock."""
        limits = self._port.limits
        why = self._port.enter(self._origin)
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
        self._port.leave(self._origin)
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


def origin_allowed(origin: str | None, host: str) -> bool:
    """Whether a handshake with these headers may come in.

    The reference sends ``http://HOST/`` (protocol section 2.1). No browser ends an Origin with a slash, so none passes, whichever page
    or name it came from.
    """
    return origin is None or origin in ("http://ciruela/", "http://ciruela_internal/") or (host != "" and origin == f"http://{host}/")


def _is_key(values: list[str]) -> bool:
    try:
        return len(values) == 1 and len(values[0]) == 24 and len(base64.b64decode(values[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
