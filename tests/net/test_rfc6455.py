"""The rules of RFC 6455, case by case, for both ends of a link.

The cases follow groups 1 to 7 and 10 of the Autobahn test suite, written anew for what this program speaks: binary messages, texts that
are ignored, no fragments of its own and no extensions.
"""

from __future__ import annotations

import codecs
import struct
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import LinkLost
from ciruela.net import connection as link_module
from ciruela.net.limits import AHEAD_BYTES, ORDINARY_BYTES
from ciruela.net.outgoing import connect
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.net.bench import NODE, REFERENCE_HANDSHAKE, Bench, Raw, accept_key, frames
from tests.proof import shows
from tests.proto import samples as s

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80
PROTOCOL, PAYLOAD, TOO_BIG = 1002, 1007, 1009
MASK = b"\x0f\xf0\x55\xaa"


class Peer:
    """Bytes on the other side of one open link of ours. Its messages are written down; those that look like messages are read as well."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.masks = role == "server"
        self.bench = Bench()
        self.messages: list[bytes] = []
        if role == "server":
            self.raw = self.bench.raw_client()
            self.raw.send(REFERENCE_HANDSHAKE)
            self.bench.flush()
            self.link: Any = self.bench.served()
        else:
            opened: list[Any] = []
            connect(self.bench.clock, NODE, self.bench.client, "ciruela").addCallback(opened.append)
            self.raw = Raw()
            self.bench.accept(self.raw)
            self.raw.send(client_answer(self.raw.seen))
            self.bench.flush()
            self.link = opened[0]
        self.raw.seen = b""
        self.talk = self.link._talk
        received = self.talk.received

        def take(data: bytes) -> None:
            if not self.talk.over:
                self.messages.append(data)
            if data[:1] in (b"\x83", b"\x84"):
                received(data)

        self.talk.received = take

    def frame(self, payload: bytes = b"", opcode: int = BINARY, first: int = FIN, masked: bool | None = None) -> bytes:
        """A frame as this side has to send it, unless ``masked`` says otherwise."""
        size = len(payload)
        length = struct.pack("!BH", 126, size) if size < 65536 else struct.pack("!BQ", 127, size)
        return self.head(opcode, first, bytes([size]) if size < 126 else length, masked) + self.hide(payload, masked)

    def head(self, opcode: int, first: int, length: bytes, masked: bool | None = None) -> bytes:
        """The head of a frame with any spelling of its length."""
        hides = self.masks if masked is None else masked
        return bytes([first | opcode, length[0] | (0x80 if hides else 0)]) + length[1:] + (MASK if hides else b"")

    def hide(self, payload: bytes, masked: bool | None = None) -> bytes:
        """``payload`` as it stands behind such a head."""
        if not (self.masks if masked is None else masked):
            return payload
        key = (MASK * (len(payload) // 4 + 1))[: len(payload)]
        return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")

    def send(self, data: bytes, chop: int = 65536) -> None:
        """``data`` arrives, ``chop`` bytes at a time."""
        for at in range(0, len(data), chop):
            self.link.dataReceived(data[at : at + chop])
        self.bench.flush()

    def said(self, *kinds: int) -> list[bytes]:
        """What our link sent in frames of these kinds."""
        return [payload for _, opcode, payload in frames(self.raw.seen) if opcode in kinds]

    @property
    def code(self) -> int | None:
        """The code in the one close frame that was sent to us; 0 when it had none."""
        closes = self.said(CLOSE)
        if not closes:
            return None
        assert len(closes) == 1, closes
        assert len(closes[0]) <= 125
        closes[0][2:].decode("utf-8")
        return int.from_bytes(closes[0][:2], "big")

    def part(self) -> None:
        """Let TCP end, and all timers with it."""
        self.bench.advance(1)
        assert self.raw.ended
        assert self.bench.clock.getDelayedCalls() == [], self.bench.clock.getDelayedCalls()


def client_answer(handshake: bytes, more: bytes = b"", accept: bytes | None = None) -> bytes:
    """What a server answers to ``handshake``."""
    key = accept_key(handshake) if accept is None else accept
    head = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "
    return head + key + b"\r\n" + more + b"\r\n"


def peers() -> Iterator[Peer]:
    """One of each role, fresh."""
    yield Peer("server")
    yield Peer("client")


class Case(SynchronousTestCase):
    def closed(self, peer: Peer, code: int, why: object = "") -> None:
        """Our link has said goodbye with ``code``, hears nothing more, and ends TCP."""
        self.assertEqual(peer.code, code, f"{peer.role}: {why}")
        self.assertFalse(peer.link.alive, why)
        before = len(peer.messages), len(peer.raw.seen)
        peer.send(peer.frame(b"late") + peer.frame(b"late", PING) + peer.frame(b"\x03\xe8", CLOSE))
        self.assertEqual((len(peer.messages), len(peer.raw.seen)), before, f"{peer.role}: {why}")
        peer.part()

    def refused(self, code: int, opcode: int = BINARY, payload: bytes = b"", first: int = FIN, before: int | None = None) -> None:
        """Both roles close with ``code`` at this frame, which may follow a first fragment of kind ``before``."""
        for peer in peers():
            if before is not None:
                peer.send(peer.frame(b"begin", before, first=0))
            peer.send(peer.frame(payload, opcode, first))
            self.closed(peer, code, (opcode, first, payload[:20]))
            self.assertEqual(peer.messages, [])


@shows("G13")
class Framing(Case):
    SIZES = (0, 1, 125, 126, 127, 128, 65535, 65536)

    def test_binary_of_all_sizes(self) -> None:
        """Messages around the three spellings of a length would be lost."""
        for peer in peers():
            for size in self.SIZES:
                payload = bytes(size % 251 + at % 5 for at in range(size))
                peer.send(peer.frame(payload))
                self.assertEqual(peer.messages.pop(), payload)
                self.assertIsInstance(payload, bytes)
                chop = 1 if size < 200 else 997
                peer.send(peer.frame(payload), chop)
                self.assertEqual(peer.messages.pop(), payload, (peer.role, size))

    def test_text_of_all_sizes(self) -> None:
        """A text of any size must be skipped exactly, or everything after it is garbage."""
        for peer in peers():
            for size in self.SIZES:
                peer.send(peer.frame(b"*" * size, TEXT) + peer.frame(b"next"))
                self.assertEqual(peer.messages.pop(), b"next")
            self.assertEqual(peer.link.ignored_texts, len(self.SIZES))
            self.assertEqual(peer.messages, [])
            self.assertTrue(peer.link.alive)

    def test_many_in_one_read(self) -> None:
        """TCP knows no messages: any number of them may arrive together, cut anywhere."""
        for peer in peers():
            data = b"".join(peer.frame(bytes([number]) * number) for number in range(100))
            for chop in (1, 2, 13, 65536):
                peer.send(data, chop)
                self.assertEqual(peer.messages, [bytes([number]) * number for number in range(100)])
                peer.messages.clear()

    @shows("A22", "F14")
    def test_lengths_have_one_spelling(self) -> None:
        """A length written longer than needed is how frames are smuggled past what stands between (RFC 6455 5.2)."""
        for length in (
            struct.pack("!BH", 126, 0),
            struct.pack("!BH", 126, 125),
            struct.pack("!BQ", 127, 5),
            struct.pack("!BQ", 127, 65535),
            struct.pack("!BQ", 127, 2**63),
            struct.pack("!BQ", 127, 2**64 - 1),
        ):
            for peer in peers():
                peer.send(peer.head(BINARY, FIN, length))
                self.closed(peer, PROTOCOL, length)

    @shows("A22", "F14")
    def test_masks(self) -> None:
        """A client that does not mask can be made to poison caches; a server that masks is not one (RFC 6455 5.1)."""
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG):
            for peer in peers():
                peer.send(peer.frame(b"", opcode, masked=not peer.masks))
                self.closed(peer, PROTOCOL, opcode)

    def test_any_mask(self) -> None:
        """The client chooses the mask, and a mask of zeros is one."""
        for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0"):
            peer = Peer("server")
            with mock.patch(f"{__name__}.MASK", mask):
                peer.send(peer.frame(b"some bytes"), 3)
            self.assertEqual(peer.messages, [b"some bytes"])


@shows("G13")
class Pings(Case):
    def test_echo(self) -> None:
        """A peer that hears no pong, or another one, takes us for dead."""
        for peer in peers():
            for payload in (b"", b"Hello", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125):
                peer.send(peer.frame(payload, PING))
                self.assertEqual(peer.said(PONG), [payload], peer.role)
                peer.raw.seen = b""
                peer.send(peer.frame(payload, PING), 1)
                self.assertEqual(peer.said(PONG), [payload], peer.role)
                peer.raw.seen = b""
            self.assertEqual(peer.messages, [])

    def test_ten_in_a_row(self) -> None:
        """Pongs come in the order of the pings, whatever the reads."""
        for chop in (65536, 1):
            for peer in peers():
                peer.send(b"".join(peer.frame(b"payload-%d" % number, PING) for number in range(10)), chop)
                self.assertEqual(peer.said(PONG), [b"payload-%d" % number for number in range(10)])

    @shows("A22", "F14")
    def test_too_long(self) -> None:
        """Control frames have at most 125 bytes (RFC 6455 5.5)."""
        for opcode in (CLOSE, PING, PONG):
            for size in (126, 65536):
                self.refused(PROTOCOL, opcode, b"\x03\xe8" * (size // 2))

    def test_unsolicited_pongs(self) -> None:
        """The reference's pongs come late, or for pings that were never sent: they mean nothing (RFC 6455 5.5.3)."""
        for peer in peers():
            peer.send(peer.frame(b"", PONG) + peer.frame(b"p" * 125, PONG) + peer.frame(b"ping", PING) + peer.frame(b"x", PONG))
            self.assertEqual(peer.said(PING, PONG, CLOSE), [b"ping"])
            self.assertTrue(peer.link.alive)


@shows("G13")
class Reserved(Case):
    @shows("A22", "F14")
    def test_bits(self) -> None:
        """No extension is ever agreed on, so no frame may have its bits (RFC 6455 5.2)."""
        for bits in range(1, 8):
            for opcode in (CONT, TEXT, BINARY, CLOSE, PING, PONG):
                before = BINARY if opcode == CONT else None
                self.refused(PROTOCOL, opcode, b"", FIN | bits << 4, before)
            self.refused(PROTOCOL, BINARY, b"x" * 300, FIN | bits << 4)

    @shows("A22", "F14")
    def test_opcodes(self) -> None:
        """Opcodes without a meaning may not be skipped: the next version may give them one (RFC 6455 5.2)."""
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
            self.refused(PROTOCOL, opcode)
            self.refused(PROTOCOL, opcode, b"some data")
            self.refused(PROTOCOL, opcode, b"", 0)

    def test_what_came_before_counts(self) -> None:
        """A message is not lost because the one after it is bad, and a ping is answered."""
        for chop in (65536, 1):
            for peer in peers():
                peer.send(peer.frame(b"first") + peer.frame(b"ping", PING) + peer.frame(b"", 5) + peer.frame(b"last"), chop)
                self.assertEqual(peer.messages, [b"first"])
                self.assertEqual(peer.said(PONG), [b"ping"])
                self.closed(peer, PROTOCOL)


@shows("G13")
class Fragments(Case):
    def test_put_together(self) -> None:
        """Whoever stands between may cut a message into fragments, even empty ones (RFC 6455 5.4)."""
        for parts in (
            [b"ab", b"cd"],
            [b"", b"", b""],
            [b"a", b"", b"b" * 2000, b"c" * 5, b"d"],
            [b"x" * 3000, b"y", b"z" * 1500],
            [b"1"] * 500,
        ):
            for chop in (65536, 7, 1):
                for peer in peers():
                    data = peer.frame(parts[0], BINARY, first=0)
                    data += b"".join(peer.frame(part, CONT, first=0) for part in parts[1:-1])
                    data += peer.frame(parts[-1], CONT)
                    peer.send(data + peer.frame(b"next"), chop)
                    self.assertEqual(peer.messages, [b"".join(parts), b"next"])
                    self.assertLessEqual({type(message) for message in peer.messages}, {bytes, bytearray})

    def test_control_frames_between(self) -> None:
        """Pings must be answered in the middle of a long message (RFC 6455 5.4)."""
        for peer in peers():
            peer.send(peer.frame(b"ab", BINARY, first=0) + peer.frame(b"1", PING))
            self.assertEqual(peer.said(PONG), [b"1"])
            peer.send(peer.frame(b"cd", CONT, first=0) + peer.frame(b"2", PING) + peer.frame(b"p", PONG) + peer.frame(b"ef", CONT))
            self.assertEqual(peer.said(PONG), [b"1", b"2"])
            self.assertEqual(peer.messages, [b"abcdef"])

    @shows("A22", "F14")
    def test_continuation_of_nothing(self) -> None:
        """The rest of a message that never began would be taken for one."""
        for first in (FIN, 0):
            self.refused(PROTOCOL, CONT, b"rest", first)
            for peer in peers():
                peer.send(peer.frame(b"whole") + peer.frame(b"rest", CONT, first))
                self.assertEqual(peer.messages, [b"whole"])
                self.closed(peer, PROTOCOL)
        for peer in peers():
            peer.send(peer.frame(b"a", first=0) + peer.frame(b"b", CONT) + peer.frame(b"c", CONT))
            self.assertEqual(peer.messages, [b"ab"])
            self.closed(peer, PROTOCOL)

    @shows("A22", "F14")
    def test_message_inside_a_message(self) -> None:
        """Two messages would be mixed."""
        for before in (TEXT, BINARY):
            for opcode in (TEXT, BINARY):
                for first in (FIN, 0):
                    self.refused(PROTOCOL, opcode, b"inside", first, before)

    @shows("A22", "F14")
    def test_fragmented_control_frames(self) -> None:
        """Control frames are never cut (RFC 6455 5.5)."""
        for opcode in (CLOSE, PING, PONG):
            self.refused(PROTOCOL, opcode, b"", 0)
            self.refused(PROTOCOL, opcode, b"\x03\xe8", 0, BINARY)

    def test_goodbye_between(self) -> None:
        """Half a message is none, also when the connection ends in good order."""
        for peer in peers():
            peer.send(peer.frame(b"half", first=0) + peer.frame(b"\x03\xe8", CLOSE) + peer.frame(b"more", CONT))
            self.assertEqual(peer.messages, [])
            self.closed(peer, 1000)


@shows("G13")
class Texts(Case):
    """Texts are no messages of ours. RFC 6455 8.1 still wants each of them checked."""

    GOOD = (
        "Hello",
        "\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1",
        "\u03ba\u1f79\u03c3\u03bc\u03b5",
        "\x00\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
        "\ud7ff\ue000\ufffd\ufffe\U0001fffe",
    )
    BAD = (
        b"\x80",
        b"\xbf",
        b"\x80\xbf\x80",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xf8\x80\x80\x80\xaf",
        b"\xfc\x80\x80\x80\x80\xaf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xfe",
        b"\xff",
        b"\xce\xba\xed\xa0\x80edited",
        b"ok\xe1\xbdok",
        b"\xc3 ",
    )
    CUT = (b"\xce", b"\xe1\xbd", b"\xf4\x8f\xbf", b"ok\xf0")

    def test_good(self) -> None:
        """A diagnostic text of another program ends a connection, with some letters in it."""
        for peer in peers():
            for text in self.GOOD:
                data = text.encode("utf-8", "surrogatepass")
                self.assertEqual(data.decode("utf-8"), text)
                for chop in (65536, 1):
                    peer.send(peer.frame(data, TEXT), chop)
                pieces = [peer.frame(data[at : at + 1], CONT if at else TEXT, first=0) for at in range(len(data))]
                peer.send(b"".join(pieces) + peer.frame(b"", CONT))
            self.assertEqual(peer.link.ignored_texts, 3 * len(self.GOOD))
            self.assertTrue(peer.link.alive)

    @shows("A22", "F14")
    def test_bad(self) -> None:
        """What is not UTF-8 is refused with the code that says so (RFC 6455 8.1)."""
        for data in self.BAD + self.CUT:
            with self.assertRaises(UnicodeDecodeError):
                data.decode("utf-8")
            self.refused(PAYLOAD, TEXT, data)
            for peer in peers():
                peer.send(peer.frame(data, TEXT), 1)
                self.closed(peer, PAYLOAD, data)

    def test_bad_in_fragments(self) -> None:
        """It is found before the message is whole: a text can be very long."""
        for data in self.BAD:
            for peer in peers():
                peer.send(peer.frame(b"\xce\xba" + data, TEXT, first=0) + peer.frame(b"rest", CONT, first=0))
                self.closed(peer, PAYLOAD, data)
        for data in self.CUT:
            for peer in peers():
                peer.send(peer.frame(data, TEXT, first=0))
                self.assertIsNone(peer.code)
                peer.send(peer.frame(b"", CONT))
                self.closed(peer, PAYLOAD, data)

    def test_only_texts(self) -> None:
        """A block may hold any bytes."""
        for peer in peers():
            for data in self.BAD:
                peer.send(peer.frame(data))
                self.assertEqual(peer.messages.pop(), data)


@shows("G13")
class Goodbyes(Case):
    def answered(self, payload: bytes) -> None:
        for peer in peers():
            peer.send(peer.frame(payload, CLOSE))
            self.closed(peer, 1000, payload)

    def test_without_and_with_a_reason(self) -> None:
        """A close frame is answered with one (RFC 6455 5.5.1), and TCP ends."""
        self.answered(b"")
        self.answered(struct.pack("!H", 1000))
        self.answered(struct.pack("!H", 1000) + b"Hello World!")
        self.answered(struct.pack("!H", 1000) + "\u00e9".encode() * 61 + b"!")

    def test_codes(self) -> None:
        """All codes that may be sent (RFC 6455 7.4 and its registry)."""
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
            self.answered(struct.pack("!H", code))

    @shows("A22", "F14")
    def test_codes_that_are_none(self) -> None:
        """Reserved codes never stand in a frame (RFC 6455 7.4.1)."""
        for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535):
            self.refused(PROTOCOL, CLOSE, struct.pack("!H", code))
            self.refused(PROTOCOL, CLOSE, struct.pack("!H", code) + b"reason")

    @shows("A22", "F14")
    def test_bad_payloads(self) -> None:
        """Half a code, a reason that is too long, a reason that is not UTF-8."""
        self.refused(PROTOCOL, CLOSE, b"\x03")
        self.refused(PROTOCOL, CLOSE, b"\x03\xe8" + b"r" * 124)
        for reason in (b"\xce\xba\xed\xa0\x80", b"\xff", b"cut\xe1\xbd"):
            self.refused(PAYLOAD, CLOSE, b"\x03\xe8" + reason)

    @shows("A22", "F14")
    def test_nothing_counts_after_it(self) -> None:
        """What arrives behind a close frame is not looked at (RFC 6455 1.4 and 5.5.1), be it good or bad."""
        note = codec.encode_notification(s.NOTIFICATIONS["PublishImage"])
        for peer in peers():
            after = (
                peer.frame(note),
                peer.frame(b"p", PING),
                peer.frame(b"\x03\xe8", CLOSE),
                peer.frame(b"", 5),
                peer.frame(b"\xff", TEXT),
            )
            for more in after:
                for chop in (65536, 1):
                    fresh = Peer(peer.role)
                    fresh.send(fresh.frame(b"\x03\xe8", CLOSE) + more, chop)
                    self.assertEqual(fresh.messages, [])
                    self.assertEqual(fresh.said(PONG, BINARY), [])
                    self.assertEqual(fresh.code, 1000)
                    fresh.part()
                    told = fresh.bench.node.told + fresh.bench.client.told
                    self.assertEqual(told, [], "a message after the goodbye had an effect")

    def test_requests_fail_at_once(self) -> None:
        """Whoever waits for an answer would go on waiting for a connection that has said goodbye."""
        for peer in peers():
            answer = peer.link.ask(m.GetIndexAt("/a/b"))
            peer.send(peer.frame(b"\x03\xe9", CLOSE))
            self.failureResultOf(answer, LinkLost)
            self.failureResultOf(peer.link.ask(m.GetIndexAt("/a/b")), LinkLost)
            counterpart = peer.bench.node if peer.role == "server" else peer.bench.client
            self.assertEqual(counterpart.lost_links, [peer.link])
            peer.part()
            self.assertEqual(counterpart.lost_links, [peer.link])

    def test_long_reason(self) -> None:
        """A close frame that is itself against the rules would be answered, not read (RFC 6455 5.5)."""
        for peer in peers():
            peer.link._protocol_violation("r" * 300)
            peer.bench.flush()
            self.assertEqual(peer.said(CLOSE), [struct.pack("!H", PROTOCOL) + b"r" * 123])
            self.closed(peer, PROTOCOL)

    def test_requests_fail_with_the_rule(self) -> None:
        """People must be told that the other side broke a rule, not that "the connection was lost"."""
        for peer in peers():
            answer = peer.link.ask(m.GetIndexAt("/a/b"))
            peer.send(peer.frame(b"", 3))
            self.assertIn("broke the websocket protocol", str(self.failureResultOf(answer, LinkLost).value))
            peer.part()

    def test_goodbye_to_our_goodbye(self) -> None:
        """The two may cross, and the second may be bad."""
        for payload in (b"\x03\xe8", b"", b"\x03", b"\x00\x00"):
            for peer in peers():
                peer.link.close()
                peer.bench.flush()
                self.assertEqual(peer.code, 1000)
                peer.send(peer.frame(b"crossing") + peer.frame(payload, CLOSE))
                self.assertEqual(peer.messages, [])
                self.assertEqual(peer.code, 1000)
                peer.part()

    def test_peer_that_ends_tcp(self) -> None:
        """After our close frame nothing more has to come: TCP may end without one."""
        for peer in peers():
            peer.send(peer.frame(b"", 3))
            self.assertFalse(peer.raw.ended)
            assert peer.raw.transport is not None
            peer.raw.transport.loseConnection()
            peer.bench.flush()
            self.successResultOf(peer.link.gone)
            self.assertEqual(peer.bench.clock.getDelayedCalls(), [])

    def test_peer_that_goes_on(self) -> None:
        """A peer that takes no notice has a second, and nothing of what it sends in it is kept."""
        for peer in peers():
            peer.send(peer.frame(b"", 3))
            for _ in range(4):
                peer.send(b"\x82" * 60_000)
                peer.bench.advance(0.2, 0.2)
                self.assertEqual(peer.link.data, b"")
            peer.bench.advance(0.4, 0.2)
            self.assertTrue(peer.raw.ended)
            self.assertEqual(peer.bench.clock.getDelayedCalls(), [])


@shows("G13")
class Sizes(Case):
    def held(self, peer: Peer) -> int:
        """Bytes that the link keeps for what it received."""
        parts = getattr(peer.link, "message_data", None) or []
        ahead = 0 if peer.link._inbound is None else len(peer.link._inbound._buffer)
        kept = ahead + sum(map(sys.getsizeof, parts)) + sys.getsizeof(parts) + len(peer.link.data)
        return kept + sum(map(sys.getsizeof, getattr(peer.link, "frame_data", None) or []))

    @shows("A21", "F15")
    def test_exact_limit(self) -> None:
        """The largest block answer must pass, and not one byte more."""
        for peer in peers():
            peer.send(peer.frame(b"x" * ORDINARY_BYTES))
            self.assertEqual(len(peer.messages.pop()), ORDINARY_BYTES)
            peer.send(peer.frame(b"x" * (ORDINARY_BYTES + 1)))
            self.assertEqual(peer.messages, [])
            self.closed(peer, TOO_BIG)
        for peer in peers():
            peer.send(peer.frame(b"x" * (ORDINARY_BYTES - 1), first=0) + peer.frame(b"y", CONT))
            self.assertEqual(len(peer.messages.pop()), ORDINARY_BYTES)
            peer.send(peer.frame(b"x" * ORDINARY_BYTES, first=0))
            self.assertIsNone(peer.code)
            peer.send(peer.frame(b"y", CONT))
            self.assertEqual(peer.messages, [])
            self.closed(peer, TOO_BIG)

    @shows("A21", "F15")
    def test_declared_sizes(self) -> None:
        """The head alone decides: nothing is made ready for a frame of four exabytes, nor waited for."""
        for size in (ORDINARY_BYTES + 1, 2**31, 2**32, 2**62, 2**63 - 1):
            for opcode in (TEXT, BINARY):
                for peer in peers():
                    peer.send(peer.head(opcode, FIN, struct.pack("!BQ", 127, size)))
                    self.assertLess(self.held(peer), 1000)
                    self.closed(peer, TOO_BIG, size)
        for peer in peers():
            peer.send(peer.head(PING, FIN, struct.pack("!BQ", 127, 2**31)))
            self.closed(peer, PROTOCOL)

    @shows("A21", "F15")
    def test_fragments_of_one_byte(self) -> None:
        """Very many tiny parts would take forty times the memory of their bytes, or never end.

        The campaign does this with the real limit and a million parts; here the limit is a sixteenth.
        """
        limit = ORDINARY_BYTES // 16
        with mock.patch.object(link_module, "ORDINARY_BYTES", limit):
            for payload in (b"x", b""):
                for peer in peers():
                    part = peer.frame(payload, CONT, first=0)
                    peer.send(peer.frame(payload, first=0) + part * (limit - 1))
                    self.assertIsNone(peer.code)
                    self.assertLess(self.held(peer), 2 * limit)
                    peer.send(part)
                    self.assertEqual(peer.messages, [])
                    self.closed(peer, TOO_BIG)

    @shows("F15")
    def test_one_byte_at_a_time(self) -> None:
        """The same for a frame that drips in byte by byte."""
        limit = ORDINARY_BYTES // 16
        for peer in peers():
            data = peer.frame(b"x" * limit)
            peer.send(data[:-1], 1)
            self.assertLess(self.held(peer), 2 * limit)
            peer.send(data[-1:])
            self.assertEqual(peer.messages, [b"x" * limit])

    @shows("A21", "F15")
    def test_said_but_not_sent(self) -> None:
        """A thousand connections that announce a long message each would take the memory of the host, and send nothing."""
        for peer in peers():
            peer.send(peer.frame(b"x" * ORDINARY_BYTES)[:100])
            self.assertLess(self.held(peer), 1000)
        for peer in peers():
            peer.send(peer.frame(b"x" * AHEAD_BYTES)[:100])
            self.assertLessEqual(self.held(peer), AHEAD_BYTES + 1000)

    def test_texts_are_not_kept(self) -> None:
        """Nobody reads them, so nobody shall have to make room for them."""
        for peer in peers():
            peer.send(peer.frame(b"x" * 200_000, TEXT, first=0))
            self.assertLess(self.held(peer), 1000)
            peer.send(peer.frame(b"x" * 100_000, CONT))
            self.closed(peer, TOO_BIG)


class ClientHandshake(Case):
    def outcome(self, more: bytes = b"", accept: bytes | None = None) -> str:
        """Why our client leaves after this answer to its handshake; "open" when it stays."""
        bench = Bench()
        opening = connect(bench.clock, NODE, bench.client, "ciruela")
        raw = Raw()
        bench.accept(raw)
        raw.send(client_answer(raw.seen, more, accept))
        bench.flush()
        if not isinstance(getattr(opening, "result", None), link_module.ClientLink):
            fault = str(self.failureResultOf(opening, LinkLost).value)
            self.assertEqual(bench.clock.getDelayedCalls(), [])
            return fault
        return "open"

    @shows("A22", "F14")
    def test_answers_that_nobody_asked_for(self) -> None:
        """A server that switches on compression, or another protocol, would be misunderstood from then on (RFC 6455 4.1)."""
        self.assertEqual(self.outcome(), "open")
        self.assertEqual(self.outcome(b"Sec-WebSocket-Protocol: ciruela.v1\r\n"), "open")
        self.assertIn("no websocket there", self.outcome(b"Sec-WebSocket-Protocol: chat\r\n"))
        self.assertIn("no websocket there", self.outcome(b"Sec-WebSocket-Extensions: permessage-deflate\r\n"))
        self.assertIn("no websocket there", self.outcome(accept=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
        self.flushLoggedErrors()


class Utf8(SynchronousTestCase):
    def test_the_samples(self) -> None:
        """A sample that is not what it says would test nothing."""
        for data in Texts.CUT:
            codecs.getincrementaldecoder("utf-8")().decode(data)
        for data in Texts.BAD:
            with self.assertRaises(UnicodeDecodeError):
                codecs.getincrementaldecoder("utf-8")().decode(data)
