"""Frames past Autobahn: to bytes and back, in any pieces, with and without native code; and what the kernel is asked for meanwhile."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from ciruela.net import frames, limits
from ciruela.net.connection import WAKE_BYTES
from ciruela.net.frames import FrameHead, Inbound, Masks, head_for, head_of, masked
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.measure import without
from tests.net.bench import Bench
from tests.proto import samples as s

MASK = b"\x0f\xf0\x55\xaa"
LENGTHS = (0, 1, 125, 126, 127, 65535, 65536, 300_000)


def plainly(data: bytes, mask: bytes) -> bytes:
    """RFC 6455 5.3, octet by octet."""
    return bytes(one ^ mask[at % 4] for at, one in enumerate(data))


class Heads(SynchronousTestCase):
    def test_round_trip(self) -> None:
        """A length that is read in another way than it is written would put everything behind it out of step."""
        for length in LENGTHS:
            for mask in (b"", MASK):
                written = head_for(length, mask)
                self.assertEqual(head_of(written + b"more", bool(mask)), FrameHead(len(written), length, mask))
                for cut in range(len(written)):
                    self.assertIsNone(head_of(written[:cut], bool(mask)), "half a head was taken for a whole one")

    def test_not_for_us(self) -> None:
        """What Autobahn refuses, or puts together, would be taken for a message."""
        for first in (0x02, 0x80, 0x81, 0x88, 0x89, 0x8A, 0x83, 0xC2, 0xA2, 0x92):
            self.assertIsNone(head_of(bytes([first, 5]) + b"hello", masked=False), hex(first))
        self.assertIsNone(head_of(head_for(5, MASK) + b"hello", masked=False))
        self.assertIsNone(head_of(head_for(5, b"") + b"hello", masked=True))
        for wasteful in (b"\x82\x7e\x00\x05", b"\x82\x7f" + (65535).to_bytes(8, "big")):
            self.assertIsNone(head_of(wasteful + b"hello", masked=False))

    def test_masks(self) -> None:
        """A key that comes twice could be foreseen."""
        masks = Masks()
        keys = [masks.next() for _ in range(3 * frames.MASKS)]
        self.assertEqual({len(key) for key in keys}, {4})
        self.assertGreater(len(set(keys)), 3 * frames.MASKS - 10)


class Masking(SynchronousTestCase):
    def check(self) -> None:
        for length in (*range(10), 127, 128, 129, 1000, 65537):
            data = bytes(at * 7 & 255 for at in range(length))
            self.assertEqual(masked(memoryview(data), MASK), plainly(data, MASK))
            self.assertEqual(masked(data, b""), data)

    def test_native(self) -> None:
        """The other side would read noise."""
        self.assertTrue(frames.NATIVE)
        self.check()

    def test_without_native_code(self) -> None:
        """Where Autobahn came without it, an upload is slow, not wrong."""
        with without("_nvx_xormasker"):
            slowly = frames._in_place()
        self.assertIsNot(slowly, frames.apply_mask)
        with mock.patch.object(frames, "apply_mask", slowly):
            self.check()


class InboundTests(SynchronousTestCase):
    def test_pieces(self) -> None:
        """However TCP cuts it, a message is whole, and what follows it is not part of it."""
        data = bytes(range(256)) * 40
        for mask in (b"", MASK):
            for step in (1, 7, 4096, len(data), len(data) + 5):
                inbound, stream, at = Inbound(FrameHead(0, len(data), mask)), masked(data, mask) + b"after", 0
                while inbound.rest:
                    at += inbound.take(stream[at : at + step])
                self.assertEqual(at, len(data))
                self.assertEqual(inbound.message(), data)
                self.assertEqual(inbound.message(), data, "unmasked twice")

    def test_fill(self) -> None:
        """What follows a message in the kernel stays there; an end or a fault is left to the transport."""
        ours, theirs = socket.socketpair()
        with closing(ours), closing(theirs):
            ours.setblocking(False)
            inbound = Inbound(FrameHead(0, 10, b""))
            self.assertEqual(inbound.fill(ours), 0)
            theirs.send(b"01234")
            self.assertEqual(inbound.fill(ours), 5)
            theirs.send(b"56789after")
            self.assertEqual((inbound.fill(ours), inbound.rest), (5, 0))
            self.assertEqual(inbound.message(), b"0123456789")
            self.assertEqual(ours.recv(10), b"after")
            theirs.close()
            self.assertEqual(Inbound(FrameHead(0, 10, b"")).fill(ours), 0)
            self.assertEqual(ours.recv(10), b"")
        self.assertEqual(Inbound(FrameHead(0, 10, b"")).fill(ours), 0)


class OnLinks(SynchronousTestCase):
    """Answers with blocks, as a link takes them."""

    def setUp(self) -> None:
        self.bench = Bench()
        self.link = self.bench.link()
        self.served = self.bench.served()
        self.reply = self.served.ask(m.GetBlocks("/a/b", s.image(1), tuple(range(32))))
        self.bench.flush()
        self.data = bytes(range(256)) * 4096
        message = codec.encode_response(1, "GetBlocks", m.BlocksData((m.BlockPart(self.data),)))
        self.stream = head_for(len(message), MASK) + masked(message, MASK)

    def got(self) -> bytes:
        answer = self.successResultOf(self.reply)
        assert isinstance(answer, m.BlocksData)
        return bytes(answer.parts[0].data)

    def test_in_pieces(self) -> None:
        """A ping behind it would be lost, or read as part of it."""
        said: list[bytes] = []
        ping = b"\x89\x82" + MASK + masked(b"hi", MASK)
        with mock.patch.object(self.served, "onPing", said.append):
            for step in (1000, 70_000):
                self.setUp()
                with mock.patch.object(self.served, "onPing", said.append):
                    for at in range(0, len(self.stream), step):
                        self.served.dataReceived((self.stream + ping)[at : at + step])
                    self.served.dataReceived((self.stream + ping)[at + step :])
                self.assertEqual(self.got(), self.data)
        self.assertEqual(said, [b"hi", b"hi"])

    def test_silence_in_the_middle(self) -> None:
        """Half a message must not hold a connection for ever."""
        self.served.dataReceived(self.stream[:100_000])
        for _ in range(40):
            self.bench.advance(1)
        self.assertFalse(self.served.alive)
        self.failureResultOf(self.reply)

    def test_end_in_the_middle(self) -> None:
        """Whoever waits must hear that nothing more comes."""
        self.served.dataReceived(self.stream[:100_000])
        self.link.close()
        self.bench.flush()
        self.bench.advance(2)
        self.failureResultOf(self.reply)

    def test_the_kernel(self) -> None:
        """A link that is woken for each packet does nothing else; one that waits for too much would not hear a slow peer."""
        ours, theirs = socket.socketpair()

        def low() -> int:
            return ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

        with closing(ours), closing(theirs):
            ours.setblocking(False)
            served: Any = self.served
            served._socket = ours
            served.dataReceived(self.stream[:1000])
            self.assertEqual(low(), WAKE_BYTES)
            served._beat()
            self.assertEqual(low(), 1)
            theirs.send(self.stream[2000:4000])
            served.dataReceived(self.stream[1000:2000])
            self.assertEqual((low(), served._inbound.rest), (WAKE_BYTES, len(self.stream) - 4000))
            served.dataReceived(self.stream[4000:-10])
            self.assertEqual(low(), 10)
            theirs.send(self.stream[-5:])
            served.dataReceived(self.stream[-10:-5])
            self.assertEqual(low(), 1)
            self.assertEqual(self.got(), self.data)
            served._socket = None


class MemoryTests(SynchronousTestCase):
    def test_other_c_library(self) -> None:
        """A program that needs glibc would not start elsewhere."""
        self.assertTrue(limits.keep())
        with mock.patch.object(limits.ctypes, "CDLL", return_value=object()):
            self.assertFalse(limits.keep())
