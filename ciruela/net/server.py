"""The TCP port of a node: websockets at ``/``, pages everywhere else (protocol sections 2.1 and 8).

A connection is first read here, up to the end of the request's head, under absolute deadlines (threats A19); then a link or the pages
take over. Pages get one request a connection, without a body.

The head of an HTTP/1 request, read strictly (RFC 9112): what two readers could take for two different things is refused.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import IResource
from twisted.web.server import Site

from ciruela.interfaces import RequestHandler
from ciruela.model.units import logged
from ciruela.net import frames
from ciruela.net.bulk import Tickets
from ciruela.net.connection import MAX_HEAD_BYTES, server_links
from ciruela.net.limits import LIMITS, Budgets, IsPeer, Limits, nobody
from ciruela.runtime import RateLimitedLog

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) (HTTP/1\.[0-9])")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([/?].*)?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[!$&'()*+,;=._~0-9A-Za-z%-]*)(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class HttpRefusal:
    """A status and a sentence for people."""

    code: int
    why: str


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request. ``target`` begins with a slash, ``host`` is who was asked (None in HTTP/1.0 only), ``fields`` are by lower-case name.

    ``rewritten``: the head for who takes over, where the target was absolute; empty where it may be passed on as it came.
    """

    method: str
    target: str
    version: str
    host: str | None
    fields: dict[str, list[str]]
    rewritten: bytes = b""

    @property
    def upgrade(self) -> bool:
        """Tells whether it asks for something else than HTTP."""
        return "upgrade" in self.fields

    @property
    def body(self) -> bool:
        """Tells whether a body may follow, in whatever way its length is told."""
        return "transfer-encoding" in self.fields or self.fields.get("content-length", ["0"]) != ["0"]


def parse(data: bytes) -> RequestHead | HttpRefusal:
    """The request whose head is ``data``, without the empty line at its end."""
    first, *lines = data.decode("latin-1").split("\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        return HttpRefusal(400, "bad request line")
    method, target, version = line.groups()
    fields: dict[str, list[str]] = {}
    for text in lines:
        name, colon, value = text.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):  # guard: W6 A22, without 3
            return HttpRefusal(400, "bad header")
        fields.setdefault(name.lower(), []).append(value.strip(" \t"))
    hosts = fields.get("host", [])
    # guard: W6, not hosts and version != "HTTP/1.0" -> False
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0") or not all(_HOST.fullmatch(host) for host in hosts):
        return HttpRefusal(400, "Host is missing, wrong or there twice")
    host = hosts[0] if hosts else None
    if target.startswith("/"):
        return RequestHead(method, target, version, host, fields)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return HttpRefusal(400 if method in ("GET", "HEAD") else 405, "only GET and HEAD of a path are answered")
    scheme, host, rest = absolute.groups()
    if scheme.lower() != "http" or not host or not _HOST.fullmatch(host):
        return HttpRefusal(400, "bad request target")
    path = rest if rest and rest.startswith("/") else f"/{rest or ''}"
    others = [text for text in lines if text.partition(":")[0].lower() != "host"]
    rewritten = "\r\n".join((f"{method} {path} {version}", f"Host: {host}", *others)).encode("latin-1")
    return RequestHead(method, path, version, host, fields | {"host": [host]}, rewritten)


def names_this_host(host: str | None, names: Collection[str]) -> bool:
    """Tells whether a page may be given to somebody who asked ``host`` for it: a numeric address, localhost or one of ``names``.

    A web page of a stranger whose name was made to lead here (DNS rebinding) asks for another one. Without a name nobody was misled.
    """
    if not host:
        return True
    match = _HOST.fullmatch(host)
    name = "" if match is None else match[1].lower().removesuffix(".")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or name in names
    return True


def handshake_fault(head: RequestHead) -> HttpRefusal | None:
    """None if ``head`` is the handshake of RFC 6455 4.2.1, without a body, from an origin that is allowed."""
    fields = head.fields
    listed = [word.strip().lower() for value in fields.get("connection", []) for word in value.split(",")]
    if head.method != "GET" or head.version != "HTTP/1.1" or "upgrade" not in listed:  # guard: A22 F14
        return HttpRefusal(400, "not a websocket handshake")
    if "websocket" not in [word.strip().lower() for value in fields["upgrade"] for word in value.split(",")]:
        return HttpRefusal(400, "only an upgrade to websocket is possible")
    if fields.get("sec-websocket-version") != ["13"]:  # guard: A22 F14
        return HttpRefusal(400, "only version 13 of websocket is spoken")
    if head.body:
        return HttpRefusal(400, "a handshake has no body")
    if not _is_key(fields.get("sec-websocket-key", [])):  # guard: A28 A22 F14
        return HttpRefusal(400, "Sec-WebSocket-Key is missing or wrong")
    origins = fields.get("origin", [])
    if len(origins) > 1 or not origin_allowed(origins[0] if origins else None, head.host or ""):  # guard: A28 F14
        return HttpRefusal(403, "origin not allowed")
    return None


def origin_allowed(origin: str | None, host: str) -> bool:
    """Tells whether a handshake with these headers may come in.

    The reference sends ``http://HOST/`` (protocol section 2.1). No browser ends an Origin with a slash, so none passes, whichever page
    or name it came from.
    """
    # guard: A28 F14, -> True
    return origin is None or origin in ("http://ciruela/", "http://ciruela_internal/") or (host != "" and origin == f"http://{host}/")


def _is_key(values: list[str]) -> bool:
    try:
        return len(values) == 1 and len(values[0]) == 24 and len(base64.b64decode(values[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    413: "Content Too Large",
    421: "Misdirected Request",
    503: "Service Unavailable",
}

_NO_PAGE_HOST = "this node has another name; ask for it by its address, or add the name to page-hosts in its ciruela.yaml"


MOST_LOOKERS = 256
MOST_PAGES = 16
MOST_PAGE_CHARS = 100
LOOKED = "{source} looked at {page}: {code} (said once)"
"""Of so many sources, and of so many pages of each, it is logged that they were asked for; later requests and others at level debug."""


@dataclass(frozen=True, slots=True)
class PortLimits:
    """Limits of the port: how many connections there may be, and how many seconds their first words may take.

    ``per_address`` counts an IPv4 address or the /64 of an IPv6 address as one; from this host itself, and from the /48 of an IPv6 address,
    half of all may come. ``for_peers`` of the connections are kept for configured peers; never more than a quarter of all.
    """

    connections: int = 1000
    per_address: int = 128
    for_peers: int = 64
    first_byte_s: float = 5.0
    head_s: float = 10.0
    page_s: float = 60.0


PORT_LIMITS = PortLimits()

PageHosts = Callable[[], Collection[str]]
"""The names of this node."""


def _no_names() -> Collection[str]:
    """This node has no name."""
    return ()


def site(
    counterpart: RequestHandler,
    pages: IResource,
    clock: IReactorTime,
    link_limits: Limits = LIMITS,
    port_limits: PortLimits = PORT_LIMITS,
    is_peer: IsPeer = nobody,
    page_hosts: PageHosts = _no_names,
    budgets: Budgets | None = None,
) -> Port:
    """Makes the protocol factory to listen with. ``pages`` gets every GET and HEAD that is not a websocket handshake at exactly ``/``.

    Limits count websockets and pages together. When all places are taken the oldest connection ends of which nobody knows whose it is; when
    there is none, the newest is refused with 503. ``is_peer`` tells whether a configured peer has a numeric address, ``page_hosts`` the
    names, in lower case, under which pages may be asked for. ``budgets`` are shared with the connections that this node makes.
    """
    hush = RateLimitedLog(clock)
    links = server_links(counterpart, clock, link_limits, is_peer, hush, budgets)
    return Port(links, pages, clock, port_limits, is_peer, page_hosts, hush)


class _OneRequest(HTTPChannel):
    """Pages close after each answer, so that the deadline for a connection is the deadline for its request."""

    def checkPersistence(self, request: object, version: bytes) -> bool:  # noqa: ARG002, N802
        """Twisted: whether another request may follow."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])  # type: ignore[attr-defined]
        return False


class Port(Site):
    """The port. ``refused`` counts connections that were one too many, ``evicted`` those that made room; ``hush`` keeps the log short."""

    _log = Logger(namespace="ciruela.net.server")

    def __init__(
        self,
        links: WebSocketServerFactory,
        pages: IResource,
        clock: IReactorTime,
        limits: PortLimits,
        is_peer: IsPeer,
        page_hosts: PageHosts,
        hush: RateLimitedLog,
    ) -> None:
        """``links`` makes what accepted websockets become."""
        super().__init__(pages, timeout=int(limits.page_s), reactor=clock)
        self.clock = clock
        self.limits = limits
        self.hush = hush
        self.links = links
        self.page_hosts = page_hosts
        self._is_peer = is_peer
        self.open = self.strangers = self.refused = self.evicted = 0
        self.by_address: Counter[str] = Counter()
        self._unknown: dict[_ProtocolSniffer, None] = {}
        self._looked: dict[str, set[str]] = {}
        if not frames.NATIVE:
            self._log.critical(
                "Autobahn's native code (NVX) is missing: uploads will be some forty times slower. Install autobahn from its wheel."
            )

    def buildProtocol(self, addr: IAddress | None) -> Protocol:  # type: ignore[override]  # noqa: N802
        """Twisted: somebody connected."""
        door = _ProtocolSniffer(self, self.origin(getattr(addr, "host", None)))
        door.factory = self
        return door

    @property
    def bulk(self) -> int:
        """Number of bulk connections."""
        tickets: Tickets | None = getattr(self.links, "tickets", None)
        return 0 if tickets is None else tickets.open

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
        """Twisted: a page was asked for. Each page is told once of each source: who looks each second would fill the log for ever."""
        source = str(request.getClientAddress().host)
        page = request.uri.decode("latin-1").partition("?")[0][:MOST_PAGE_CHARS]
        told = self._looked.setdefault(source, set()) if len(self._looked) < MOST_LOOKERS or source in self._looked else None
        if told is None or page in told or len(told) >= MOST_PAGES:
            self._log.debug("{source} looked at {page}: {code}", source=source, page=logged(page), code=request.code)
            return
        told.add(page)
        self.hush.info(self._log, "page", f"{source} {page}", LOOKED, source=source, page=page, code=request.code)

    def enter(self, door: _ProtocolSniffer) -> str | None:
        """Count a connection in, and end the oldest that nobody knows to make room for it. Why it may not stay, or None."""
        limits, origin = self.limits, door.origin
        self.open += 1
        for block in origin.blocks:
            self.by_address[block] += 1
        self.strangers += not origin.peer
        half = max(1, limits.connections // 2)
        most = half if origin.loopback else limits.per_address  # guard: S9, half -> 10**9
        why = None
        # guard: A20 F17, without 1
        if self.by_address[origin.block] > most or (origin.site and self.by_address[origin.site] > max(half, limits.per_address)):
            why = "too many connections from your address"
        elif self._full(origin) and not self._make_room():
            why = "too many connections"
        if why is not None:
            self.refused += 1
            self.hush.warn(self._log, "refused", origin.block, "{source} was refused: {why}", source=origin.block, why=why)
        elif not origin.peer:
            self._unknown[door] = None
        return why

    def _full(self, origin: ConnectionOrigin) -> bool:
        limits = self.limits
        reserved = min(limits.for_peers, limits.connections // 4)
        # guard: A20 F17, -> False; A20 F17, -> self.open > limits.connections
        return self.open > limits.connections or (not origin.peer and self.strangers > limits.connections - reserved)

    def _make_room(self) -> bool:
        """End the oldest connection of which nobody knows whose it is. Whether there was one."""
        for door in list(self._unknown):
            del self._unknown[door]
            # One that has become known since stays, and is not looked at again.
            if not door.known:  # guard: S9, -> True
                self.evicted += 1
                told = "{source} had to make room for others: nobody knows it, and all places are taken"
                self.hush.warn(self._log, "evicted", door.origin.block, told, source=door.origin.block)
                door.leave()
                return True
        return False

    def leave(self, door: _ProtocolSniffer) -> None:
        """Count a connection out."""
        self._unknown.pop(door, None)
        self.open -= 1
        self.strangers -= not door.origin.peer
        for block in door.origin.blocks:
            self.by_address[block] -= 1
            if not self.by_address[block]:  # guard: A20
                del self.by_address[block]

    def origin(self, host: str | None) -> ConnectionOrigin:
        """Gives the origin of ``host``, as this port sees it."""
        return origin(host, self._is_peer)


@dataclass(frozen=True, slots=True)
class ConnectionOrigin:
    """Origin of a connection: the block that is counted as one, and whether it is this host itself or a configured peer.

    ``site`` is the /48 of an IPv6 address, of which somebody may have 65,536 blocks.
    """

    block: str
    loopback: bool
    peer: bool
    site: str = ""

    @property
    def blocks(self) -> tuple[str, ...]:
        """All that it counts for."""
        return (self.block, self.site) if self.site else (self.block,)


def origin(host: str | None, is_peer: IsPeer) -> ConnectionOrigin:
    """The origin of a connection from the numeric address ``host``."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return ConnectionOrigin(host or "", False, False)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            block, site = (str(ipaddress.ip_network((address, bits), strict=False)) for bits in (64, 48))  # guard: A20, 64 -> 128
            return ConnectionOrigin(block, address.is_loopback, is_peer(str(address)), site)
        address = address.ipv4_mapped
    return ConnectionOrigin(str(address), address.is_loopback, is_peer(str(address)))


class _ProtocolSniffer(Protocol):
    """Reads the head of a request and passes the connection on."""

    def __init__(self, port: Port, origin: ConnectionOrigin) -> None:
        self._port = port
        self.origin = origin
        self._head = b""
        self._next: IProtocol | None = None
        self._refused = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:  # noqa: N802
        """Twisted: count it, and start the clock."""
        limits = self._port.limits
        why = self._port.enter(self)
        if why is not None:
            self._refuse(503, why)
            return
        self._deadline = self._port.clock.callLater(limits.first_byte_s, self._abort)  # guard: A19 F16

    @property
    def known(self) -> bool:
        """Tells whether it has become clear whose connection this is."""
        return bool(getattr(self._next, "known", False))

    def leave(self) -> None:
        """Make room at once."""
        self._wait(None)
        self._abort()

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
        if not self._head and data:  # guard: A19 F16, without 1
            self._wait(self._port.limits.head_s)  # guard: A19 F16, -> self._wait(None)
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._head) > MAX_HEAD_BYTES):  # guard: A19, -> end > MAX_HEAD_BYTES; A19, without 1
            self._refuse(413, "the head of the request is too long")
        elif end >= 0:
            self._judge(self._head[:end])

    def _judge(self, data: bytes) -> None:
        head = parse(data)
        if isinstance(head, HttpRefusal):
            self._refuse(head.code, head.why)
            return
        if head.rewritten:
            self._head = head.rewritten + self._head[len(data) :]
        if head.target == "/" and head.upgrade:
            fault = handshake_fault(head)
            if fault is None:
                self._pass_on(cast(IProtocol, self._port.links.buildProtocol(None)), None)
            else:
                self._refuse(fault.code, fault.why)
        elif head.method not in ("GET", "HEAD"):  # guard: A22
            self._refuse(405, "only GET and HEAD are answered")
        elif head.body:  # guard: A22
            self._refuse(413, "requests have no body here")
        elif not names_this_host(head.host, self._port.page_hosts()):  # guard: S13
            self._refuse(421, _NO_PAGE_HOST)
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
        self._wait(1.0)  # guard: A20
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Twisted: the TCP connection is gone."""
        self._wait(None)
        self._port.leave(self)
        if self._next is not None:
            self._next.connectionLost(reason)
