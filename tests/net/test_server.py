"""The port: handshakes, pages, and patience."""

from __future__ import annotations

from unittest import mock

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.net import frames as frames_module
from ciruela.net.server import PortLimits
from tests.net.bench import REFERENCE_HANDSHAKE, Bench, Raw
from tests.proof import shows


def status(raw: Raw) -> int:
    return int(raw.seen.split(b" ")[1])


class Pages(SynchronousTestCase):
    def ask(self, data: bytes) -> tuple[Bench, Raw]:
        bench = Bench()
        raw = bench.raw_client()
        raw.send(data)
        bench.flush()
        return bench, raw

    def test_pages(self) -> None:
        """Status pages and metrics are on the same port."""
        for path in (b"/", b"/status/", b"/a/b?c"):
            bench, raw = self.ask(b"GET " + path + b" HTTP/1.1\r\nHost: n1\r\n\r\n")
            self.assertEqual(status(raw), 200)
            self.assertTrue(raw.seen.endswith(b"\r\n\r\npage " + path.partition(b"?")[0]), raw.seen)
            self.assertIn(b"\r\nConnection: close\r\n", raw.seen)
            self.assertTrue(raw.ended)
            self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_upgrade_elsewhere_is_a_page(self) -> None:
        """As at the reference: the websocket is at / and nowhere else."""
        handshake = REFERENCE_HANDSHAKE.replace(b"Host: ciruela", b"Host: n1")
        _, raw = self.ask(handshake.replace(b"GET / ", b"GET /status/ "))
        self.assertTrue(raw.seen.endswith(b"page /status/"))
        _, raw = self.ask(handshake.replace(b"GET / ", b"GET /?x "))
        self.assertTrue(raw.seen.endswith(b"page /"))

    @shows("A22")
    def test_read_only(self) -> None:
        """Nothing on these pages changes anything, so nothing else than reading is even looked at."""
        for start in (b"POST / HTTP/1.1", b"DELETE /status/ HTTP/1.1"):
            _, raw = self.ask(start + b"\r\nHost: n1\r\n\r\n")
            self.assertEqual(status(raw), 405)
        for field in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Content-Length: 0\r\nContent-Length: 0"):
            _, raw = self.ask(b"GET / HTTP/1.1\r\nHost: n1\r\n" + field + b"\r\n\r\n")
            self.assertEqual(status(raw), 413)
        _, raw = self.ask(b"HEAD /a HTTP/1.1\r\nHost: n1\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(status(raw), 200)
        self.assertTrue(raw.seen.endswith(b"\r\n\r\n"))

    @shows("A22", "I8")
    def test_nonsense(self) -> None:
        """Nonsense gets an answer and costs one connection."""
        for data in (b"\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\xff\xfe\r\n\r\n"):
            _, raw = self.ask(data)
            self.assertEqual(status(raw), 400, data)
            self.assertTrue(raw.ended)

    @shows("A28", "F14")
    def test_key(self) -> None:
        """A handshake without the key that RFC 6455 asks for would be answered by something that its sender did not mean."""
        for key in (b"", b"dGhlIHNhbXBsZSBub25jZQ=", b"dGhlIHNhbXBsZSBub25j", b"?" * 24):
            _, raw = self.ask(REFERENCE_HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", key))
            self.assertEqual(status(raw), 400, key)
            self.assertIn(b"Sec-WebSocket-Key is missing or wrong", raw.seen)
        _, raw = self.ask(REFERENCE_HANDSHAKE)
        self.assertEqual(status(raw), 101)

    @shows("S13")
    def test_foreign_host(self) -> None:
        """A web page whose name leads here (DNS rebinding) would read signatures in an administrator's browser."""
        for host in (b"evil.example", b"evil.example:24783", b"n1.evil.example", b"127.0.0.1.evil.example", b"n2", b"ciruela"):
            _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            self.assertEqual(status(raw), 421, host)
            self.assertIn(b"page-hosts", raw.seen)
            self.assertNotIn(b"page /", raw.seen)
        for host in (b"n1", b"N1.", b"n1:24783", b"localhost:1", b"10.0.0.1", b"10.0.0.1:24783", b"[::1]:24783", b"[2001:db8::1]"):
            _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            self.assertEqual(status(raw), 200, host)
        _, raw = self.ask(b"GET http://evil.example/status/ HTTP/1.1\r\nHost: n1\r\n\r\n")
        self.assertEqual(status(raw), 421, "what stands in the target counts")
        _, raw = self.ask(REFERENCE_HANDSHAKE.replace(b"Host: ciruela", b"Host: ciruela_internal"))
        self.assertEqual(status(raw), 101, "a websocket has its rule for Origin")

    @shows("W6")
    def test_absolute_target(self) -> None:
        """RFC 9112 3.2.2: a server has to take what a proxy sends, and its host counts."""
        for target in (b"http://n1:24783/status/?x", b"HTTP://n1/status/", b"http://10.0.0.1/status/"):
            _, raw = self.ask(b"GET " + target + b" HTTP/1.1\r\nHost: other\r\n\r\n")
            self.assertTrue(raw.seen.endswith(b"page /status/"), target)
        _, raw = self.ask(b"GET http://n1 HTTP/1.1\r\nHost: n1\r\n\r\n")
        self.assertTrue(raw.seen.endswith(b"page /"))
        for target in (b"https://n1/", b"http:///x", b"http://u@n1/", b"http://n1 /", b"n1:80", b"*", b"status/"):
            _, raw = self.ask(b"GET " + target + b" HTTP/1.1\r\nHost: n1\r\n\r\n")
            self.assertEqual(status(raw), 400, target)
        _, raw = self.ask(REFERENCE_HANDSHAKE.replace(b"GET / ", b"GET http://ciruela/ "))
        self.assertEqual(status(raw), 101)

    @shows("W6")
    def test_host(self) -> None:
        """RFC 9112 3.2: a request without Host, or with two, is of somebody who means something else."""
        for fields in (b"", b"Host: n1\r\nHost: n1\r\n", b"Host: n1/x\r\n", b"Host: n 1\r\n", b"Host: n1:x\r\n"):
            _, raw = self.ask(b"GET /status/ HTTP/1.1\r\n" + fields + b"\r\n")
            self.assertEqual(status(raw), 400, fields)
        _, raw = self.ask(b"GET /status/ HTTP/1.0\r\n\r\n")
        self.assertEqual(status(raw), 200)

    @shows("W6", "A22")
    def test_control_characters(self) -> None:
        """What one program takes for the end of a line and another does not smuggles a header past one of them (RFC 9110 5.5)."""
        for value in (b"a\rb", b"a\nb", b"a\0b", b"\x1b[2J", b"a\x7f", b"\r", b"a\r\n b", b"a\x0bb"):
            _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: n1\r\nX: " + value + b"\r\n\r\n")
            self.assertEqual(status(raw), 400, value)
        for head in (
            b"GET /\0 HTTP/1.1",
            b"GET /\xc3\xbc HTTP/1.1",
            b"GET  / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b"G{T / HTTP/1.1",
            b"GET / HTTP/1.11",
        ):
            _, raw = self.ask(head + b"\r\nHost: n1\r\n\r\n")
            self.assertEqual(status(raw), 400, head)
        for name in (b"X Y", b"X\t", b"", b"X\0", b"\xfc"):
            _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: n1\r\n" + name + b": y\r\n\r\n")
            self.assertEqual(status(raw), 400, name)
        _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: n1\r\nX: \tM\xfcller (ok)\r\n\r\n")
        self.assertEqual(status(raw), 200)

    @shows("W6", "A22")
    def test_smuggling(self) -> None:
        """A second request would be hidden in what another program takes for the body of the first one."""
        hidden = b"GET /hidden/ HTTP/1.1\r\nHost: n1\r\n\r\n"
        for field in (
            b"Content-Length: 40\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding : chunked",
            b"Content-Length: 0, 40",
            b"Content-Length: +0",
            b"Content-Length: 00",
            b"Content-Length: 0x0",
            b"Content-Length: 0\r\nContent-Length: 40",
        ):
            _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: n1\r\n" + field + b"\r\n\r\n" + hidden)
            self.assertIn(status(raw), (400, 413), field)
            self.assertEqual(raw.seen.count(b"HTTP/1.1"), 1)
            self.assertTrue(raw.ended)
        _, raw = self.ask(b"GET /status/ HTTP/1.1\r\nHost: n1\r\n\r\n" + hidden)
        self.assertNotIn(b"/hidden/", raw.seen)

    @shows("A22", "F14")
    def test_malformed_handshakes(self) -> None:
        """A half-understood handshake would end in frames that nobody reads."""
        for old, new in (
            (b"GET", b"POST"),
            (b"HTTP/1.1", b"HTTP/1.0"),
            (b"Connection: upgrade", b"Connection: close"),
            (b"Upgrade: websocket", b"Upgrade: h2c"),
            (b"Host: ciruela\r\n", b"Host: ciruela\r\nX : y\r\n"),
            (b"Version: 13", b"Version: 8"),
            (b"Sec-WebSocket-Version: 13\r\n", b""),
            (b"Host: ciruela\r\n", b""),
            (b"Host: ciruela\r\n", b"Host: ciruela\r\nHost: ciruela\r\n"),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZ!=="),
            (b"Sec-WebSocket-Version", b"Content-Length: 3\r\nSec-WebSocket-Version"),
        ):
            self.assertIn(old, REFERENCE_HANDSHAKE)
            bench, raw = self.ask(REFERENCE_HANDSHAKE.replace(old, new))
            self.assertEqual(status(raw), 400, new)
            self.assertTrue(raw.ended)
            self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_forms_that_are_fine(self) -> None:
        """Proxies and other programs spell it otherwise."""
        head = REFERENCE_HANDSHAKE.replace(b"Connection: upgrade", b"Connection: keep-alive, Upgrade").replace(b"websocket", b"WebSocket")
        _, raw = self.ask(head.replace(b"Origin: http://ciruela/\r\n", b""))
        self.assertEqual(status(raw), 101)

    def test_handshake_in_pieces(self) -> None:
        """TCP may cut anywhere."""
        bench = Bench()
        raw = bench.raw_client()
        for byte in REFERENCE_HANDSHAKE:
            raw.send(bytes([byte]))
            bench.flush()
        self.assertEqual(status(raw), 101)


class Patience(SynchronousTestCase):
    @shows("A19", "F16")
    def test_first_byte(self) -> None:
        """Connections that say nothing would use up the limit."""
        bench = Bench()
        raw = bench.raw_client()
        bench.advance(4.5)
        self.assertFalse(raw.ended)
        bench.advance(0.5)
        self.assertTrue(raw.ended)

    @shows("A19", "F16")
    def test_head(self) -> None:
        """A byte each second must not keep a connection (slowloris)."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(b"GET / HTTP/1.1\r\n")
        bench.flush()
        for _ in range(9):
            raw.send(b"x")
            bench.advance(1)
        self.assertFalse(raw.ended)
        raw.send(b"x")
        bench.advance(1)
        self.assertTrue(raw.ended)
        self.assertEqual(raw.seen, b"")
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    @shows("A19", "A21")
    def test_long_head(self) -> None:
        """A head without an end would fill the memory."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(b"GET / HTTP/1.1\r\n" + b"x" * 17_000)
        bench.flush()
        self.assertEqual(status(raw), 413)
        self.assertTrue(raw.ended)
        raw = bench.raw_client()
        raw.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000 + b"\r\n\r\n")
        bench.flush()
        self.assertEqual(status(raw), 413)

    def test_only_one_answer(self) -> None:
        """Who is refused and goes on sending gets no second answer."""
        bench = Bench()
        door = bench.port.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
        transport = StringTransport()
        door.makeConnection(transport)
        door.dataReceived(b"nonsense\r\n\r\n")
        door.dataReceived(b"nonsense\r\n\r\n")
        self.assertEqual(transport.value().count(b"HTTP/1.1 400 "), 1)

    def test_slow_build_is_announced(self) -> None:
        """Somebody would wonder for days why uploads crawl."""
        logged: list[str] = []
        observer = lambda event: logged.append(event["log_format"])  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        with mock.patch.object(frames_module, "NATIVE", False):
            Bench()
        self.assertTrue(any("forty times slower" in text for text in logged))


class Limits(SynchronousTestCase):
    @shows("A20", "F17")
    def test_total(self) -> None:
        """File descriptors run out, and with them the disk."""
        bench = Bench(port_limits=PortLimits(connections=2))
        kept = [bench.raw_client("127.0.0.1"), bench.raw_client("10.0.0.1")]
        third = bench.raw_client("10.0.0.2")
        bench.flush()
        self.assertEqual(status(third), 503)
        self.assertTrue(third.ended)
        self.assertFalse(any(raw.ended for raw in kept))
        kept[0].send(b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
        bench.flush()
        fourth = bench.raw_client("10.0.0.2")
        fourth.send(REFERENCE_HANDSHAKE)
        bench.flush()
        self.assertEqual(status(fourth), 101)

    @shows("A20", "F17")
    def test_each_address(self) -> None:
        """One host must not take all places; a host's own programs may."""
        bench = Bench(port_limits=PortLimits(per_address=1))
        bench.raw_client("10.0.0.1")
        second = bench.raw_client("10.0.0.1")
        other = bench.raw_client("10.0.0.2")
        own = [bench.raw_client(ip) for ip in ("127.0.0.1", "127.0.0.1", "::1", "::1", "::ffff:127.0.0.1", "::ffff:127.0.0.1")]
        bench.flush()
        self.assertEqual(status(second), 503)
        self.assertFalse(other.ended)
        self.assertFalse(any(raw.ended for raw in own))

    @shows("A20", "I6")
    def test_counts_come_back(self) -> None:
        """A counter that only grows closes the port for good."""
        bench = Bench()
        for data in (REFERENCE_HANDSHAKE, b"GET / HTTP/1.1\r\nHost: n\r\n\r\n", b"nonsense\r\n\r\n", b""):
            raw = bench.raw_client()
            raw.send(data)
            bench.flush()
        for pump in bench.pumps:
            pump.clientIO.loseConnection()
        bench.advance(6)
        self.assertEqual((bench.port.open, dict(bench.port.by_address)), (0, {}))  # type: ignore[attr-defined]

    def test_refused_peer_that_stays(self) -> None:
        """Who is refused and does not close would still hold a place."""
        bench = Bench(port_limits=PortLimits(connections=0))
        door = bench.port.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
        aborted: list[bool] = []

        class Stuck:
            def write(self, data: bytes) -> None:
                self.seen = data

            def loseConnection(self) -> None:
                """Waits for the other side to read."""

            def abortConnection(self) -> None:
                aborted.append(True)

        assert isinstance(door, Protocol)
        door.makeConnection(Stuck())  # type: ignore[arg-type]
        bench.clock.advance(1)
        self.assertEqual(aborted, [True])
