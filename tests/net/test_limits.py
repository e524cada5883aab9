"""What strangers may do before they have shown a signature, and how long slow ones are waited for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.net.limits import LARGE_BYTES, ORDINARY_BYTES, STRANGER_BYTES, IdleTimeout, Limits, limits_for, nobody
from ciruela.net.server import MOST_PAGES, PortLimits, origin
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
        self.say(bench, raw, append(1))
        bench.node.waiting[0].callback(ACK)
        for _ in range(120):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.advance(1)
        self.assertFalse(raw.ended)

    @shows("S9")
    def test_a_minute(self) -> None:
        """Anybody could hold a place for ever with one word and a ping a second."""
        bench, raw = self.stranger()
        self.say(bench, raw, PUBLISH, append(1))
        bench.node.waiting[0].callback(NO_ACK)
        seconds = 0
        while not raw.ended and seconds < 100:
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.advance(1)
            seconds += 1
        self.assertTrue(55 <= seconds <= 65, seconds)

    @shows("S9")
    def test_who_waits_for_what_is_there(self) -> None:
        """A reference client whose append was refused for what is there hears of all nodes before it ends, however long that takes."""
        bench, raw = self.stranger()
        self.say(bench, raw, append(1))
        bench.node.waiting[0].callback(m.UploadAck(False, "already_exists", {}))
        for _ in range(120):
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.advance(1)
        self.assertFalse(raw.ended)

    @shows("S9")
    def test_reading_goes_on(self) -> None:
        """Who gets what he asks for, as ``ciruela get`` does, would be thrown out in the middle."""
        bench, raw = self.stranger()
        for number in range(13):
            self.say(bench, raw, codec.encode_request(number, m.GetBlock(s.BLOCK, None)))
            for _ in range(10):
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
        """Whether a connection from ``ip`` may stay."""
        raw = bench.raw_client(ip)
        bench.flush()
        return not raw.seen

    def left(self, bench: Bench, addresses: Iterable[str]) -> list[str]:
        """The addresses whose connections are still there after all of them have come."""
        raws = {ip: bench.raw_client(ip) for ip in addresses}
        bench.flush()
        return [ip for ip, raw in raws.items() if not (raw.seen or raw.ended)]

    @shows("A20", "F17")
    def test_peers_get_in(self) -> None:
        """A cluster must not fall apart because its nodes are flooded with connections."""
        bench = Bench(port_limits=PortLimits(connections=100, for_peers=16), is_peer=lambda host: host.startswith("192.168."))
        self.assertEqual(len(self.left(bench, [f"10.0.0.{number}" for number in range(150)])), 84)
        self.assertEqual(sum(self.enter(bench, f"192.168.0.{number}") for number in range(30)), 30)

    @shows("S9")
    def test_oldest_stranger_goes(self) -> None:
        """Connections that only speak would take all places, and clients with keys would be refused for as long as they like."""
        bench = Bench(port_limits=PortLimits(connections=16, for_peers=0), is_peer=nobody)
        known = bench.raw_client("10.9.9.9")
        known.send(REFERENCE_HANDSHAKE + frame(append(1), masked=True))
        bench.flush()
        bench.node.waiting[0].callback(ACK)
        bench.flush()
        crowd = [bench.raw_client(f"10.0.0.{number}") for number in range(15)]
        for raw in crowd:
            raw.send(REFERENCE_HANDSHAKE + frame(PUBLISH, masked=True))
        bench.flush()
        self.assertFalse(any(raw.ended for raw in crowd))
        client = bench.raw_client("10.1.1.1")
        client.send(REFERENCE_HANDSHAKE)
        bench.flush()
        self.assertTrue(client.seen.startswith(b"HTTP/1.1 101 "))
        self.assertEqual([number for number, raw in enumerate(crowd) if raw.ended], [0])
        self.assertFalse(known.ended)
        self.assertEqual((bench.port.open, bench.port.evicted), (16, 1))

    @shows("S9")
    def test_all_known(self) -> None:
        """Clients that have shown a signature would make room for whoever comes."""
        bench = Bench(port_limits=PortLimits(connections=2, for_peers=0), is_peer=nobody)
        for number in range(2):
            raw = bench.raw_client(f"10.0.0.{number}")
            raw.send(REFERENCE_HANDSHAKE + frame(append(1), masked=True))
            bench.flush()
            bench.node.waiting[-1].callback(ACK)
        self.assertFalse(self.enter(bench, "10.0.0.9"))

    @shows("S9")
    def test_shares(self) -> None:
        """One host's own programs, or a site with 65,536 blocks of addresses, would take all places."""
        for addresses in (["127.0.0.1"] * 10, [f"2001:db8:7:{number:x}::1" for number in range(10)]):
            bench = Bench(port_limits=PortLimits(connections=8, per_address=4), is_peer=nobody)
            self.assertEqual([self.enter(bench, ip) for ip in addresses], [True] * 4 + [False] * 6)

    def test_few_places(self) -> None:
        """What is kept for peers is never most of what there is."""
        bench = Bench(port_limits=PortLimits(connections=8), is_peer=nobody)
        self.assertEqual(len(self.left(bench, [f"10.0.0.{number}" for number in range(20)])), 6)

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

    @shows("A27", "W2")
    def test_pages_in_the_log(self) -> None:
        """A monitor that looks each second would fill the log for ever, or one long name of a page."""
        lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        bench = Bench()
        for page in (b"/" + b"%1b" * 3000, b"/api/v1/status"):
            for _ in range(20):
                raw = bench.raw_client()
                raw.send(b"GET " + page + b" HTTP/1.1\r\nHost: n\r\n\r\n")
                bench.advance(61)
        seen = [line for line in lines if line["log_level"] is LogLevel.info]
        self.assertEqual(len(seen), 2)
        self.assertEqual(len(lines), 40)
        for line in lines:
            told = str(line["log_format"]).format(**line)
            self.assertTrue(told.isprintable() and len(told) < 300, told)

    @shows("W2")
    def test_lookers_are_bounded(self) -> None:
        """Whoever asks for a million pages, from a million addresses, would make the node remember all of them."""
        bench = Bench()
        lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        for number in range(30):
            raw = bench.raw_client()
            raw.send(b"GET /%d HTTP/1.1\r\nHost: n\r\n\r\n" % number)
            bench.flush()
        self.assertEqual(sum(line["log_level"] is LogLevel.info for line in lines), MOST_PAGES)


class PatienceTests(SynchronousTestCase):
    """Time is counted in pulses."""

    @shows("F42")
    def test_our_own_stall(self) -> None:
        """After a minute in which this process did nothing at all, one pulse has passed: no connection is given up for it."""
        patience = IdleTimeout(Limits(), 3.0)
        patience.heard(10)
        self.assertIsNone(patience.beat(held=False, coming_bytes=1, silent_so_far=True, large_due=True))

    def test_not_while_we_do_not_read(self) -> None:
        """Who sends more than we take in is not slow; then what counts is only whether he is there at all."""
        patience = IdleTimeout(Limits(), 3.0)
        for _ in range(19):
            patience.useful()
            self.assertIsNone(patience.beat(held=True, coming_bytes=1, silent_so_far=False, large_due=True))
        self.assertEqual(patience.beat(held=True, coming_bytes=1, silent_so_far=False, large_due=True), "nothing was heard for 60 s")

    def test_index_limit(self) -> None:
        """``max-index-bytes`` bounds what a source can make us keep in memory, and leaves room for the list of a base dir."""
        self.assertEqual(limits_for(1 << 40).large_bytes, LARGE_BYTES)
        self.assertEqual(limits_for(32 << 20).large_bytes, (32 << 20) + 65536)
        self.assertEqual(limits_for(65536).large_bytes, (16 << 20) + 65536)
