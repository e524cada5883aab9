"""What strangers may do before they have shown a signature, and how long slow ones are waited for."""

from __future__ import annotations

from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.net.limits import LARGE_BYTES, ORDINARY_BYTES, STRANGER_BYTES, Limits, Patience, limits_for, nobody
from ciruela.net.server import PortLimits, origin
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.net.bench import REFERENCE_HANDSHAKE, Bench, Raw, frame, frames
from tests.proof import shows
from tests.proto import samples as s

PUBLISH = codec.encode_notification(s.NOTIFICATIONS["PublishImage"])
ACK = m.UploadAck(True, None, {})
NO_ACK = m.UploadAck(False, "signature_mismatch", {})


def append(number: int) -> bytes:
    return codec.encode_request(number, s.REQUESTS["AppendDir"][1])


class StrangerTests(SynchronousTestCase):
    """A node that anybody can reach must not give everybody what it gives its clients and peers."""

    def stranger(self, limits: Limits | None = None, **options: Any) -> tuple[Bench, Raw]:
        options.setdefault("is_peer", nobody)
        bench = Bench(**({} if limits is None else {"limits": limits}), **options)
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        return bench, raw

    def say(self, bench: Bench, raw: Raw, *messages: bytes) -> None:
        raw.send(b"".join(frame(message, masked=True) for message in messages))
        bench.flush()

    @shows("A19", "F16")
    def test_silent(self) -> None:
        """A connection that only pings holds a place for ten seconds, not for ever."""
        bench, raw = self.stranger()
        for _ in range(9):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.advance(1)
        self.assertFalse(raw.ended)
        for _ in range(5):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.advance(1)
        self.assertTrue(raw.ended)

    @shows("A19")
    def test_nonsense_is_silence(self) -> None:
        """What cannot be understood is no first word."""
        bench, raw = self.stranger()
        for _ in range(14):
            self.say(bench, raw, b"nonsense")
            bench.advance(1)
        self.assertTrue(raw.ended)

    def test_first_word(self) -> None:
        """A client that has asked may then wait for its images as long as it likes."""
        bench, raw = self.stranger()
        self.say(bench, raw, PUBLISH)
        for _ in range(60):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.advance(1)
        self.assertFalse(raw.ended)

    def test_peers_may_be_silent(self) -> None:
        """A peer that connects and has nothing to ask yet is not sent away."""
        bench, raw = self.stranger(is_peer=lambda host: host == "10.0.0.9")
        for _ in range(20):
            raw.send(frame(b"", opcode=9, masked=True))
            bench.advance(1)
        self.assertFalse(raw.ended)

    @shows("A26", "I6")
    def test_few_at_work(self) -> None:
        """Four requests at a time; the others wait and are not lost. With the first valid signature there may be 64."""
        bench, raw = self.stranger()
        self.say(bench, raw, *(append(number) for number in range(1, 11)))
        self.assertEqual(len(bench.node.waiting), 4)
        bench.node.waiting[0].callback(NO_ACK)
        bench.flush()
        self.assertEqual(len(bench.node.waiting), 5)
        bench.node.waiting[1].callback(ACK)
        bench.flush()
        self.assertEqual(len(bench.node.waiting), 10)
        for answer in bench.node.waiting[2:]:
            answer.callback(NO_ACK)
        bench.flush()
        self.assertEqual(len(frames(raw.seen)), 10)

    @shows("A21", "F15")
    def test_message_size(self) -> None:
        """64 KiB before a valid signature, 256 KiB after it."""
        bench, raw = self.stranger()
        self.say(bench, raw, PUBLISH)
        raw.send(frame(bytes(STRANGER_BYTES + 1), masked=True))
        bench.advance(2)
        self.assertTrue(raw.ended)
        bench, raw = self.stranger()
        self.say(bench, raw, append(1))
        bench.node.waiting[0].callback(ACK)
        self.say(bench, raw, PUBLISH)
        raw.send(frame(bytes(ORDINARY_BYTES), masked=True))
        bench.advance(1)
        self.assertFalse(raw.ended)
        raw.send(frame(bytes(ORDINARY_BYTES + 1), masked=True))
        bench.advance(2)
        self.assertTrue(raw.ended)

    @shows("A19", "F16")
    def test_slow_frame(self) -> None:
        """A message of which a byte comes now and then is not waited for."""
        large = frame(bytes(60_000), masked=True)
        payload = [large[:20], *(b"\0" for _ in range(14))]
        head = [large[at : at + 1] for at in range(8)] + [b""] * 7
        fragments = [frame(b"a", masked=True, first=0)] + [frame(b"a", opcode=0, masked=True, first=0)] * 14
        for drips in (payload, head, fragments):
            bench, raw = self.stranger()
            self.say(bench, raw, PUBLISH)
            seconds = 0
            for data in drips:
                raw.send(data)
                bench.advance(1)
                if raw.ended:
                    break
                seconds += 1
            self.assertTrue(5 <= seconds < 10, seconds)

    def test_slow_enough(self) -> None:
        """Two KiB a second is a bad line, and no attack."""
        bench, raw = self.stranger()
        self.say(bench, raw, PUBLISH)
        data = frame(bytes(60_000), masked=True)
        for at in range(0, len(data), 2048):
            self.assertFalse(raw.ended)
            raw.send(data[at : at + 2048])
            bench.advance(1)

    @shows("F20", "A27", "I6")
    def test_flood(self) -> None:
        """A hundred thousand bad messages with escapes are a few lines in the log, each on one line."""
        lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        bench = Bench(is_peer=nobody)
        evil = b"\x83\x00\x78\x3f" + b"\x1b]0;\n\x9b2J" * 7 + b"\xa0"
        bad = [append(0)[:-3], evil, b"\x1b[31m\n" * 100, append(1)[:-1] + b"\x1b"]
        packed = b"".join(frame(message, masked=True) for message in bad * 25)
        sent = 0
        for number in range(1000):
            raw = bench.raw_client(f"10.{number // 250}.0.{number % 250}")
            raw.send(REFERENCE_HANDSHAKE + packed)
            for pump in bench.pumps:
                pump.flush()
            bench.pumps.clear()
            sent += 100
            bench.clock.advance(0.06)
        self.assertEqual(sent, 100_000)
        self.assertLessEqual(len(lines), 100)
        self.assertGreater(len(lines), 1)
        for line in lines:
            told = str(line["log_format"]).format(**line)
            self.assertTrue(told.isprintable(), told)
            self.assertLess(len(told.encode()), 600)


class PortTests(SynchronousTestCase):
    """Who gets a place when there are not enough."""

    def enter(self, bench: Bench, ip: str) -> bool:
        """Whether a connection from ``ip`` may stay; it does."""
        raw = bench.raw_client(ip)
        bench.flush()
        return not raw.seen

    @shows("A20", "F17")
    def test_peers_get_in(self) -> None:
        """A cluster must not fall apart because its nodes are flooded with connections."""
        bench = Bench(port_limits=PortLimits(connections=100, for_peers=16), is_peer=lambda host: host.startswith("192.168."))
        entered = sum(self.enter(bench, f"10.0.0.{number}") for number in range(150))
        self.assertEqual(entered, 84)
        self.assertEqual(sum(self.enter(bench, f"192.168.0.{number}") for number in range(30)), 16)

    def test_few_places(self) -> None:
        """What is kept for peers is never most of what there is."""
        bench = Bench(port_limits=PortLimits(connections=8), is_peer=nobody)
        self.assertEqual(sum(self.enter(bench, f"10.0.0.{number}") for number in range(20)), 6)

    @shows("A20")
    def test_blocks(self) -> None:
        """Whoever has a /64 has 2^64 addresses: they count as one. IPv4 written as IPv6 is IPv4."""
        bench = Bench(port_limits=PortLimits(per_address=2), is_peer=nobody)
        self.assertEqual([self.enter(bench, f"2001:db8:0:7::{number:x}") for number in range(4)], [True, True, False, False])
        self.assertTrue(self.enter(bench, "2001:db8:0:8::1"))
        self.assertEqual([self.enter(bench, ip) for ip in ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1")], [True, True, False])
        self.assertEqual(bench.port.refused, 3)

    def test_origins(self) -> None:
        """What is counted together."""
        self.assertEqual(origin("2001:db8::1%eth0", nobody).block, "2001:db8::/64")
        self.assertEqual(origin("::ffff:127.0.0.1", nobody).loopback, True)
        self.assertEqual(origin("::1", lambda host: host == "::1").peer, True)
        self.assertEqual(origin(None, nobody).block, "")

    @shows("A27")
    def test_pages_in_the_log(self) -> None:
        """Who looks at a page again and again is told once a minute, however long its name is."""
        lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        bench = Bench()
        for _ in range(20):
            raw = bench.raw_client()
            raw.send(b"GET /" + b"%1b" * 3000 + b" HTTP/1.1\r\nHost: n\r\nUser-Agent: \x1b[31m\r\n\r\n")
            bench.flush()
        (line,) = lines
        told = str(line["log_format"]).format(**line)
        self.assertTrue(told.isprintable() and len(told) < 300, told)


class PatienceTests(SynchronousTestCase):
    """Time is counted in pulses."""

    @shows("F42")
    def test_our_own_stall(self) -> None:
        """After a minute in which this process did nothing at all, one pulse has passed: no connection is given up for it."""
        patience = Patience(Limits(), 3.0)
        patience.heard(10)
        self.assertIsNone(patience.beat(held=False, partly=True, silent_so_far=True))

    def test_not_while_we_do_not_read(self) -> None:
        """Who sends more than we take in is not slow; then what counts is only whether he is there at all."""
        patience = Patience(Limits(), 3.0)
        for _ in range(19):
            self.assertIsNone(patience.beat(held=True, partly=True, silent_so_far=False))
        self.assertEqual(patience.beat(held=True, partly=True, silent_so_far=False), "nothing was heard for 60 s")

    def test_index_limit(self) -> None:
        """``max-index-bytes`` bounds what a source can make us keep in memory, and leaves room for the list of a base dir."""
        self.assertEqual(limits_for(1 << 40).large_bytes, LARGE_BYTES)
        self.assertEqual(limits_for(32 << 20).large_bytes, (32 << 20) + 65536)
        self.assertEqual(limits_for(65536).large_bytes, (16 << 20) + 65536)
