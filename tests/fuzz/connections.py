"""What has to hold on a connection: frames of a websocket in both roles, requests and answers, the head of an HTTP request."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import ip_address
from typing import Any

import txaio
from autobahn.websocket.protocol import TrafficStats
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, LoopingCall

from ciruela.net.bulk import Broken, receive
from ciruela.net.connection import ClientLink, ServerLink
from ciruela.net.limits import IdleTimeout, Limits
from ciruela.net.sendqueue import SendQueue
from ciruela.net.server import MAX_HEAD_BYTES, origin_allowed, site
from ciruela.runtime import TokenBucket
from tests.fuzz.frames import outcome
from tests.net.bench import REFERENCE_HANDSHAKE, Bench, Counterpart, Pages, frame, frames

MESSAGE_LIMIT = 600
"""Of the links here, so that short inputs can reach it."""


class Tape:
    """A transport that keeps what is written and how it ended."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ended = ""

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writeSequence(self, pieces: Iterable[bytes]) -> None:
        self.written.extend(pieces)

    @property
    def disconnecting(self) -> bool:
        return bool(self.ended)

    def loseConnection(self) -> None:
        self.ended = self.ended or "closed"

    def abortConnection(self) -> None:
        self.ended = "cut"

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "10.0.0.9", 40000)

    getHost = getPeer

    def _nothing(self, *_args: object) -> None:
        """Nothing to do in memory."""

    registerProducer = unregisterProducer = pauseProducing = resumeProducing = loseWriteConnection = setTcpNoDelay = setTcpKeepAlive = (
        _nothing
    )


class Log:
    """A logger that remembers faults of the program."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def failure(self, words: str, *_args: object, **_fields: object) -> None:
        import traceback

        self.faults.append(f"{words}\n{traceback.format_exc()}")

    def _nothing(self, *_args: object, **_fields: object) -> None:
        """Not of interest."""

    debug = info = warn = error = _nothing


def chopped(data: bytes) -> Iterator[bytes]:
    """The bytes after the first, in pieces whose size the first chooses: as TCP may deliver them."""
    how = data[0] & 3 if data else 0
    stream = data[1:]
    step = (len(stream), 1 if len(stream) < 60 else 61, 7 if len(stream) < 1000 else 333, len(stream) // 2)[how] or 1
    for at in range(0, len(stream), step):
        yield stream[at : at + step]


# -- frames -------------------------------------------------------------------------------------------------------------------


class _Heard:
    """Stands where a talk stands, and writes down."""

    large_due = bulk_due = trusted = known = spoken = True

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.over = False

    def received(self, data: bytes) -> None:
        if not self.over:
            assert type(data) in (bytes, bytearray), type(data)
            self.messages.append(bytes(data))

    def end(self, _reason: str) -> None:
        self.over = True

    def clog(self, _clogged: bool) -> None:
        """Nothing is asked here."""


@cache
def open_link(server: bool) -> tuple[Clock, dict[str, Any]]:
    """A clock, and what a link consists of right after its handshake."""
    bench = Bench()
    link: Any = bench.link()
    if server:
        link = bench.served()
    clock = Clock()
    state = vars(link) | {"_clock": clock}
    for one_per_link in (
        "transport",
        "_talk",
        "_pulse",
        "_patience",
        "gone",
        "_outbox",
        "_quiet",
        "send_queue",
        "is_closed",
        "trafficStats",
    ):
        del state[one_per_link]
    return clock, state


def link_after_handshake(server: bool, limit_bytes: int = MESSAGE_LIMIT) -> tuple[Any, Tape, _Heard, Log]:
    """A fresh link that is open and takes messages of ``limit_bytes``, without the cost of a handshake for each of a hundred thousand."""
    clock, state = open_link(server)
    role: Any = ServerLink if server else ClientLink
    link = role.__new__(role)
    tape, heard, log = Tape(), _Heard(), Log()
    vars(link).update(state)
    link.transport, link._talk, link._log = tape, heard, log
    link._limits = Limits(large_bytes=limit_bytes)
    link._patience = IdleTimeout(link._limits, 1.0)
    link._pulse = LoopingCall(link._beat)
    link._quiet = TokenBucket(clock, 0, 1e9)
    link._set_limit()
    link._outbox, link.send_queue = SendQueue(tape, clock, 60.0, link._outbox_changed, link._stalled), deque()
    link.gone, link.is_closed = Deferred(), txaio.create_future()
    link.utf8validator, link.trafficStats = Utf8Validator(), TrafficStats()
    return link, tape, heard, log


def _check_link(data: bytes, server: bool) -> bool:
    link, tape, heard, log = link_after_handshake(server)
    clock, _ = open_link(server)
    for piece in chopped(data):
        link.dataReceived(piece)
    while link._next_turn is not None:
        clock.advance(0)
    expected = outcome(data[1:], server, MESSAGE_LIMIT)
    sent = frames(b"".join(tape.written))
    closes = [payload for _, opcode, payload in sent if opcode == 8]
    assert log.faults == [], log.faults[0]
    assert heard.messages == expected.messages, "other messages than by the rules"
    assert [payload for _, opcode, payload in sent if opcode == 10] == expected.pongs, "other pongs than by the rules"
    assert all(final and opcode in (8, 10) for final, opcode, _ in sent), sent
    assert link.ignored_texts == expected.texts, (link.ignored_texts, expected.texts)
    assert [int.from_bytes(payload[:2], "big") for payload in closes] == ([] if expected.code is None else [expected.code]), closes
    assert heard.over == (expected.code is not None)
    held = sum(map(len, link.message_data or ())) if getattr(link, "message_data", None) else 0
    assert held <= MESSAGE_LIMIT, held
    if expected.code is None:
        assert tape.ended == "", tape.ended
        assert clock.getDelayedCalls() == []
    else:
        assert tape.ended or clock.getDelayedCalls(), "nothing will end TCP"
    if expected.code is not None or len(data) % 16 == 0:
        link.connectionLost(connectionDone)
        assert clock.getDelayedCalls() == [], "a timer outlives its connection"
    return bool(heard.messages or expected.pongs)


def check_server_link(data: bytes) -> bool:
    """What a client may send: the link does what a plain reading of RFC 6455 says, however the bytes are cut."""
    return _check_link(data, server=True)


def check_client_link(data: bytes) -> bool:
    """The same for what a server may send."""
    return _check_link(data, server=False)


def frame_samples(server: bool) -> tuple[bytes, ...]:
    """Good sequences of frames, and bad ones, with each way to cut them."""

    def one(payload: bytes = b"", opcode: int = 2, first: int = 0x80) -> bytes:
        return frame(payload, opcode, masked=server, first=first)

    sequences = (
        one(b"hello") + one(b"", 9) + one(b"x" * 125, 10),
        one(b"x" * 126) + one(b"\xc3\xbc", 1),
        one(b"a", first=0) + one(b"b", 0, first=0) + one(b"ping", 9) + one(b"c", 0),
        one(b"\xe2\x82", 1, first=0) + one(b"\xac", 0),
        one(b"y" * MESSAGE_LIMIT),
        one(b"z" * MESSAGE_LIMIT, first=0) + one(b"!", 0),
        one(b"\x03\xe8bye", 8) + one(b"late"),
        one(b"\x0f\xa0", 8),
        one(b"", 8),
        one(b"", first=0) + one(b"", 0, first=0) * 20 + one(b"end", 0),
    )
    return tuple(bytes([how]) + sequence for how, sequence in enumerate(sequences))


def cut_frames(data: bytes) -> list[tuple[int, int]]:
    """Whole frames, and their heads."""
    spans: list[tuple[int, int]] = []
    at = 1
    while len(data) - at >= 2 and len(spans) < 200:
        size = data[at + 1] & 127
        width = {126: 2, 127: 8}.get(size, 0)
        begin = at + 2 + width + (4 if data[at + 1] & 0x80 else 0)
        if width:
            size = int.from_bytes(data[at + 2 : at + 2 + width], "big")
        end = min(begin + size, len(data))
        spans += [(at, end), (at, min(begin, end))]
        at = end
    return spans


def frame_tokens(server: bool) -> tuple[bytes, ...]:
    """Heads and frames that are wrong by themselves."""
    bit = 0x80 if server else 0
    mask = b"\1\2\3\4" if server else b""
    lengths = (
        b"\x7e\x00\x05",
        b"\x7f" + bytes(8),
        b"\x7f\x80" + bytes(7),
        b"\x7f\x7f" + b"\xff" * 7,
        b"\x7f\0\0\0\0\x80\0\0\0",
        b"\x7e" + (MESSAGE_LIMIT + 1).to_bytes(2, "big"),
    )
    heads = tuple(b"\x82" + bytes([length[0] | bit]) + length[1:] + mask for length in lengths)
    closes = tuple(frame(code.to_bytes(2, "big"), 8, masked=server) for code in (0, 999, 1000, 1005, 1006, 1016, 2999, 3000, 5000))
    bad = (
        frame(b"x", masked=not server),
        frame(b"\xff", 1, masked=server),
        frame(b"\x03", 8, masked=server),
        frame(b"\x03\xe8\xff", 8, masked=server),
    )
    return (*heads, *closes, *bad, frame(b"", 9, masked=server), frame(b"q", 0, masked=server), frame(b"q", 0, masked=server, first=0))


# -- the head of an HTTP request ----------------------------------------------------------------------------------------------


class _Next(Protocol):
    """Takes a connection over, and keeps what comes."""

    def __init__(self) -> None:
        self.seen = b""

    def dataReceived(self, data: bytes) -> None:
        self.seen += data


class _Nexts(Factory):
    protocol = _Next


@cache
def _ports() -> tuple[Clock, Any, Any]:
    """A clock, a port that hands connections to something that only listens, and a real one."""
    clock = Clock()
    names = lambda: ("n1", "a")  # noqa: E731
    deaf: Any = site(Counterpart(), Pages(), clock, page_hosts=names)
    deaf.links = _Nexts()
    deaf.page_channel = _Next
    return clock, deaf, site(Counterpart(), Pages(), clock, page_hosts=names)


def check_head(data: bytes) -> bool:
    """A head is refused in order, handed on unchanged to whom it is for, or waited for; never without a deadline."""
    clock, port, _ = _ports()
    tape = Tape()
    door: Any = port.buildProtocol(tape.getPeer())
    door.makeConnection(tape)
    for piece in chopped(data):
        door.dataReceived(piece)
    stream, answer = data[1:], b"".join(tape.written)
    head, end, _ = stream.partition(b"\r\n\r\n")
    taker: _Next | None = door._next
    if taker is None and answer:
        status, _, rest = answer.partition(b"\r\n")
        assert status.split(b" ", 2)[1] in (b"400", b"403", b"405", b"413", b"421"), status
        fields, _, body = rest.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in fields
        assert answer.isascii()
        assert tape.ended == "closed"
    elif taker is None:
        assert not end, "a whole head, and no answer"
        assert len(stream) <= MAX_HEAD_BYTES, len(stream)
    else:
        assert answer == b"", answer
        if head.split(b" ", 2)[1].startswith(b"/"):  # else the target was absolute
            assert taker.seen == stream, "other bytes than came in"
        assert taker.seen.partition(b"\r\n\r\n")[2] == stream.partition(b"\r\n\r\n")[2]
        assert len(head) <= MAX_HEAD_BYTES
        _judged(taker.seen.partition(b"\r\n\r\n")[0], isinstance(getattr(taker, "factory", None), _Nexts))
    assert len(door._head) <= MAX_HEAD_BYTES + len(data)
    websocket = taker is not None and isinstance(getattr(taker, "factory", None), _Nexts)
    assert bool(clock.getDelayedCalls()) != websocket, "no deadline, or one beside the link's own"
    door.connectionLost(connectionDone)
    assert clock.getDelayedCalls() == [], "a timer outlives its connection"
    assert port.open == 0
    return taker is not None


def _name(host: str) -> bool:
    """Whether ``host`` is neither a numeric address nor one of the names of the port here."""
    plain = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ip_address(plain)
    except ValueError:
        return plain.lower().removesuffix(".") not in ("", "n1", "a", "localhost")
    return False


def _judged(head: bytes, websocket: bool) -> None:
    """A second look at a head that was let in."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    fields: dict[str, list[str]] = {}
    for name, colon, value in pairs:
        assert colon, name
        assert name == name.strip(), name
        assert not any((char < " " and char != "\t") or char == "\x7f" for char in name + value), (name, value)
        fields.setdefault(name.lower(), []).append(value.strip())
    assert "transfer-encoding" not in fields
    assert fields.get("content-length", ["0"]) == ["0"]
    method, target, version = first.split(" ")
    assert version.startswith("HTTP/1."), version
    assert method in ("GET", "HEAD"), method
    assert target.startswith("/"), target
    assert websocket == (target == "/" and "upgrade" in fields)
    assert len(fields.get("host", [])) == 1 or version == "HTTP/1.0"
    assert websocket or not _name(fields.get("host", [""])[0]), fields
    if websocket:
        assert first == "GET / HTTP/1.1"
        origins = fields.get("origin", [])
        assert len(fields["host"]) == 1
        assert len(origins) <= 1
        assert origin_allowed(origins[0] if origins else None, fields["host"][0])
        assert fields["sec-websocket-version"] == ["13"]
        assert len(base64.b64decode(fields["sec-websocket-key"][0])) == 16
        assert len(fields["sec-websocket-key"]) == 1


def check_port(data: bytes) -> bool:
    """The same with real websockets and pages behind the door: none of them may raise, whatever they get."""
    clock, _, port = _ports()
    tape, log = Tape(), Log()
    door: Any = port.buildProtocol(tape.getPeer())
    door.makeConnection(tape)
    seen_by: list[Callable[[bytes], None]] = []
    for piece in chopped(data):
        if not tape.ended:
            door.dataReceived(piece)
            if door._next is not None and not seen_by:
                door._next._log = log
                seen_by.append(door._next.dataReceived)
    assert log.faults == [], log.faults[0]
    door.connectionLost(connectionDone)
    clock.advance(0)
    assert clock.getDelayedCalls() == [], "a timer outlives its connection"
    assert port.open == 0
    return bool(seen_by)


def head_samples() -> tuple[bytes, ...]:
    """The reference's handshake, ours, a browser's, pages."""
    ours = REFERENCE_HANDSHAKE.replace(b"13\r\n", b"13\r\nSec-WebSocket-Protocol: ciruela.v1\r\n")
    browser = b"GET /status HTTP/1.1\r\nHost: n1:24783\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n\r\n"
    foreign = REFERENCE_HANDSHAKE.replace(b"http://ciruela/", b"http://evil.example")
    body = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    late = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 3000 + b"\r\n\r\n"
    heads = (
        REFERENCE_HANDSHAKE,
        ours,
        browser,
        foreign,
        body,
        b"HEAD /m HTTP/1.0\r\n\r\n",
        b"GET http://n1:24783/status/?a HTTP/1.1\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]:24783\r\n\r\n",
        late,
        REFERENCE_HANDSHAKE + frame(b"early", masked=True),
    )
    return tuple(bytes([how]) + head for how, head in enumerate(heads))


TOKENS_HEAD = (
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"GET ",
    b"POST ",
    b"/ ",
    b"//",
    b"/../",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"http://a",
    b"http://n1:1/x ",
    b"https://a/ ",
    b"Host: b\r\n",
    b"Origin: null\r\n",
    b"Origin: http://ciruela/\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: keep-alive, Upgrade\r\n",
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
    b"Sec-WebSocket-Version: 8\r\n",
    b"\xff",
    "ü".encode(),
    b"a" * 300,
    b"X: y\r\n" * 100,
    b"Z" * (MAX_HEAD_BYTES + 10),
)


class _Stream:
    """A socket with all that its other side will ever say."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv_into(self, into: memoryview, _size: int, _flags: int) -> int:
        found = self._data[: len(into)]
        into[: len(found)] = found
        self._data = self._data[len(found) :]
        return len(found)


def bulk_samples() -> tuple[bytes, ...]:
    """Whole binary messages of all ways to write a length, one after the other, and what follows them at the end."""
    ends = (b"", frame(b"\3\xe8", 8), frame(b"ping", 9), b"\x82\x7f" + (1 << 40).to_bytes(8, "big"))
    return tuple(
        b"".join(frame(b"m" * size, masked=masked) for size in sizes) + end
        for masked in (False, True)
        for sizes in ((0, 5), (125, 126, 300), (MESSAGE_LIMIT,))
        for end in ends
    )


def check_bulk(data: bytes) -> bool:
    """Bulk connections in both roles: whole binary messages come as RFC 6455 has them, and the first other thing ends all."""
    accepted = False
    for masked in (False, True):
        source: Any = _Stream(data)
        messages: list[bytes] = []
        try:
            while True:
                messages.append(bytes(receive(source, MESSAGE_LIMIT, lambda size: None, masked=masked)))
        except Broken as broken:
            expected = outcome(data, masked, MESSAGE_LIMIT).messages
            whole = str(broken) == "closed by the other side"
            assert messages == (expected if whole else expected[: len(messages)]), (masked, messages, expected)
        accepted = accepted or bool(messages)
    return accepted
