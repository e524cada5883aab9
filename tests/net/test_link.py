"""Websockets in both roles."""

from __future__ import annotations

from typing import Any
from unittest import mock

import cbor2
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import LinkLost, NoImages, RemoteError
from ciruela.model.ids import BlockHash
from ciruela.net.limits import BULK_BYTES, LARGE_BYTES, ORDINARY_BYTES, Limits
from ciruela.net.outgoing import connect
from ciruela.net.server import origin_allowed
from ciruela.net.session import Session
from ciruela.proto import codec
from ciruela.proto import messages as m
from ciruela.proto.table import NEWER
from tests.net.bench import NODE, REFERENCE_ACCEPT, REFERENCE_HANDSHAKE, Bench, Counterpart, Raw, accept_key, frame, frames
from tests.proof import shows
from tests.proto import samples as s

BLOCK = m.GetBlock(s.BLOCK, None)
INDEX = m.GetIndex(s.image(1), None)
ACK = m.UploadAck(True, None, s.HOSTS)

OFFER = b"Sec-WebSocket-Protocol: ciruela.v3, ciruela.v2, ciruela.v1"


class Handshake(SynchronousTestCase):
    def test_reference_client(self) -> None:
        """A client of the reference could not upload to our servers."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        head, _, rest = raw.seen.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertIn(b"Sec-WebSocket-Accept: " + REFERENCE_ACCEPT, head)
        self.assertNotIn(b"Sec-WebSocket-Protocol", head)
        self.assertNotIn(b"Sec-WebSocket-Extensions", head)
        self.assertEqual(rest, b"")
        raw.send(frame(codec.encode_notification(s.NOTIFICATIONS["PublishImage"]), masked=True))
        bench.flush()
        self.assertEqual(bench.node.told, [s.NOTIFICATIONS["PublishImage"]])

    def test_what_we_send_and_the_reference_answers(self) -> None:
        """Our client could not upload to a server of the reference."""
        bench = Bench()
        opened: list[Any] = []
        connect(bench.clock, NODE, bench.client, "ciruela").addCallback(opened.append)
        raw = Raw()
        bench.accept(raw)
        lines = raw.seen.split(b"\r\n")
        self.assertEqual(lines[:3], [b"GET / HTTP/1.1", b"Host: ciruela", b"Origin: http://ciruela/"])
        for line in (
            b"Connection: upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            OFFER,
        ):
            self.assertIn(line, lines)
        self.assertNotIn(b"extensions", raw.seen.lower())
        raw.send(
            b"HTTP/1.1 101 Switching Protocol\r\nDate: Mon, 23 Nov 2026 06:00:00 +0000\r\nServer: ciruela/0.6.12\r\n"
            b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: " + accept_key(raw.seen) + b"\r\n\r\n"
        )
        bench.flush()
        self.assertEqual(opened[0].subprotocol, None)
        self.assertEqual(opened[0].name, "10.0.0.1:24783")
        raw.seen = b""
        opened[0].ask(INDEX)
        bench.flush()
        self.assertEqual(frames(raw.seen), [(True, 2, codec.encode_request(1, INDEX))])

    def test_ours_to_ours(self) -> None:
        """Both sides have to know that both are ours, to use what the reference lacks."""
        bench = Bench()
        link = bench.link()
        for end in (link, bench.served()):
            self.assertEqual((end.subprotocol, end.bulk, end.exchanges), ("ciruela.v3", True, True))
        self.assertEqual(bench.served().name, "10.0.0.9:40000")

    def test_earlier_version(self) -> None:
        """A peer of ours that knows no offers of pieces still gives and gets many blocks in one message."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: ciruela.v2, ciruela.v1\r\n\r\n"))
        bench.flush()
        self.assertIn(b"Sec-WebSocket-Protocol: ciruela.v2\r\n", raw.seen)
        self.assertEqual((bench.served().bulk, bench.served().exchanges), (True, False))

    def test_newer_client(self) -> None:
        """A client that also offers a second version must still be served."""
        bench = Bench()
        raw = bench.raw_client()
        offer = b"\r\nSec-WebSocket-Protocol: ciruela.v4, ciruela.v1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        raw.send(REFERENCE_HANDSHAKE.replace(b"\r\n\r\n", offer))
        bench.flush()
        self.assertIn(b"Sec-WebSocket-Protocol: ciruela.v1\r\n", raw.seen)
        self.assertNotIn(b"Extensions", raw.seen)
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: ciruela.v4\r\n\r\n"))
        bench.flush()
        self.assertTrue(raw.seen.startswith(b"HTTP/1.1 101 "))
        self.assertNotIn(b"Sec-WebSocket-Protocol", raw.seen)

    @shows("A28", "F14")
    def test_origins(self) -> None:
        """A page in an administrator's browser could upload and read everything (cross-site, DNS rebinding)."""
        for origin, host in (
            (None, "x"),
            ("http://ciruela/", "ciruela"),
            ("http://ciruela_internal/", "x"),
            ("http://n1:24783/", "n1:24783"),
        ):
            self.assertTrue(origin_allowed(origin, host), origin)
        for origin, host in (
            ("http://evil.example", "n1:24783"),
            ("http://n1:24783", "n1:24783"),
            ("http://evil.example/", "n1"),
            ("null", "null"),
            ("", ""),
            ("http:///", ""),
            ("https://ciruela/", "ciruela"),
        ):
            self.assertFalse(origin_allowed(origin, host), origin)

    @shows("A28", "F14")
    def test_origin_is_refused_at_the_door(self) -> None:
        """The rule must be applied to real handshakes."""
        for origin in (b"http://evil.example", b"null", b"http://ciruela"):
            bench = Bench()
            raw = bench.raw_client()
            raw.send(REFERENCE_HANDSHAKE.replace(b"http://ciruela/", origin))
            bench.flush()
            self.assertTrue(raw.seen.startswith(b"HTTP/1.1 403 "), raw.seen)
            self.assertTrue(raw.ended)

    def test_first_frame_with_the_handshake(self) -> None:
        """An eager client's first message must not get lost between two parsers."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE + frame(codec.encode_notification(s.NOTIFICATIONS["PublishImage"]), masked=True))
        bench.flush()
        self.assertEqual(len(bench.node.told), 1)


class Messages(SynchronousTestCase):
    def test_nothing_deadly(self) -> None:
        """A daemon of the first version ends, all of it, when it is asked for what is above a path with one component."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        image, hint = s.image(1), m.BlockHint("/www", "/a", 0)
        for path in ("/www", "/www/"):
            deadly = (m.AppendDir(path, image, 1, ()), m.ReplaceDir(path, image, None, 1, ()), m.GetIndexAt(path))
            for request in (*deadly, m.GetBlock(BlockHash(bytes(32)), hint)):
                refused = self.failureResultOf(bench.served().ask(request), NoImages).getErrorMessage()
                self.assertTrue(refused.startswith("it is a server of the first implementation, which has no images at /www"), refused)
        bench.flush()
        self.assertEqual(raw.seen, b"")
        bench.served().ask(m.GetIndexAt("/www/v1"))
        bench.served().ask(m.GetBlock(BlockHash(bytes(32)), None))
        bench.flush()
        self.assertNotEqual(raw.seen, b"")

    def test_only_what_is_understood(self) -> None:
        """A node of the first version would drop the connection because of a request that it does not know."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        newer = (
            m.GetBlocks("/a/b", s.image(1), (1,)),
            m.GetShare(s.image(1), bytes(32)),
            m.GetPieces("/a/b", s.image(1), bytes(32)),
            m.RemoveDir("/a/b", s.image(1), 1, ()),
            m.CheckUpload("/a/b", False, s.image(1), None, 1, ()),
            m.GetPathState("/a/b"),
            m.WithdrawUpload("/a/b", s.image(1)),
            m.PushPull(1, None, ()),
            m.OpenBulk(True),
        )
        self.assertEqual([type(one) for one in newer], list(NEWER))
        for request in newer:
            refused = self.failureResultOf(bench.served().ask(request), RemoteError).getErrorMessage()
            self.assertEqual(refused, f"{type(request).__name__} is understood where ciruela.v{NEWER[type(request)]} was agreed upon")
        bench.flush()
        self.assertEqual(raw.seen, b"")
        bench.served().ask(BLOCK)
        bench.flush()
        self.assertEqual(frames(raw.seen), [(True, 2, codec.encode_request(1, BLOCK))])

    def test_both_directions(self) -> None:
        """Client and server ask each other on one connection; ids of the two directions must not be mixed up."""
        bench = Bench()
        link = bench.link()
        wish = s.REQUESTS["AppendDir"][1]
        answer = link.ask(wish)
        link.tell(s.NOTIFICATIONS["PublishImage"])
        bench.flush()
        self.assertEqual(bench.node.asked, [wish])
        back = bench.served().ask(BLOCK)
        bench.served().tell(s.NOTIFICATIONS["ReceivedImage"])
        bench.flush()
        self.assertEqual(self.successResultOf(back), m.BlockData(b"b" * 32768))
        self.assertEqual(bench.client.told, [s.NOTIFICATIONS["ReceivedImage"]])
        self.assertNoResult(answer)
        bench.node.waiting[0].callback(ACK)
        bench.flush()
        self.assertEqual(self.successResultOf(answer), ACK)

    @shows("I8")
    def test_refusals_and_faults(self) -> None:
        """People need the reason; nobody else needs the inside of our program."""
        bench = Bench()
        link = bench.link()
        bench.node.fault = RemoteError("No such config")
        answer = link.ask(BLOCK)
        bench.flush()
        self.assertEqual(str(self.failureResultOf(answer, RemoteError).value), "No such config")
        bench.node.fault = KeyError("secret")
        answer = link.ask(BLOCK)
        bench.flush()
        self.assertEqual(str(self.failureResultOf(answer, RemoteError).value), "internal error")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_answer_that_does_not_fit(self) -> None:
        """A slip of ours must answer the request, not leave it hanging."""
        bench = Bench()
        link = bench.link()
        answer = link.ask(m.GetBaseDir("/a"))
        bench.flush()
        bench.node.waiting[0].callback(m.BlockData(b""))
        bench.flush()
        self.failureResultOf(answer, RemoteError)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_fault_after_an_answer(self) -> None:
        """Whoever is told that an answer was sent has a fault: the answer is there all the same, and the connection."""
        bench = Bench()
        link = bench.link()
        bench.node.answered = lambda *_: {}["no such thing"]  # type: ignore[method-assign, index]
        for _ in range(2):
            answer = link.ask(BLOCK)
            bench.flush()
            self.successResultOf(answer)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)
        self.assertTrue(link.alive)

    def test_fault_in_a_notification(self) -> None:
        """One bad notification would cost a client its upload."""
        bench = Bench()
        link = bench.link()
        with mock.patch.object(bench.node, "notified", side_effect=KeyError):
            link.tell(s.NOTIFICATIONS["PublishImage"])
            bench.flush()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertTrue(link.alive)

    def test_cancelled_requests(self) -> None:
        """Who gives up must be able to; the late answer must harm nobody."""
        bench = Bench()
        link = bench.link()
        answer = link.ask(m.GetBaseDir("/a"))
        bench.flush()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        bench.node.waiting[0].callback(m.BaseDirData(b"\1" * 32, b"\2" * 32, {}))
        bench.flush()
        answer = link.ask(BLOCK)
        bench.flush()
        self.successResultOf(answer)

    def test_too_many_requests_of_ours(self) -> None:
        """The limit is the dialogue's, and it is told to the caller as any fault is."""
        bench = Bench()
        link = bench.link()
        answers = [link.ask(m.GetPathState("/a")) for _ in range(65)]
        self.failureResultOf(answers[64], RemoteError)
        bench.flush()
        self.assertEqual(len(bench.node.asked), 64)

    @shows("A26")
    def test_only_so_many_are_at_work(self) -> None:
        """A reference daemon with many downloads asks for more than 64 blocks at once: they wait, nobody is thrown out."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        raw.send(b"".join(frame(codec.encode_request(number, m.GetPathState("/a")), masked=True) for number in range(200)))
        bench.flush()
        self.assertEqual(len(bench.node.asked), 64)
        self.assertTrue(bench.served()._held)
        for _ in range(200):
            bench.node.waiting.pop(0).callback(m.PathStateData(s.machine(0x21), "n1", 0, taken=False))
        bench.flush()
        self.assertEqual(len(bench.node.asked), 200)
        self.assertFalse(bench.served()._held)
        self.assertFalse(raw.ended)

    def test_text_frames_are_ignored(self) -> None:
        """As the reference does; a diagnostic text must not end a connection."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE + frame(b"hello", opcode=1, masked=True))
        bench.flush()
        self.assertEqual(bench.served().ignored_texts, 1)
        self.assertFalse(raw.ended)

    def test_no_fragments(self) -> None:
        """The reference drops the connection at the first fragment."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        bench.node.index = b"i" * 3_000_000
        raw.send(frame(codec.encode_request(1, INDEX), masked=True))
        bench.flush()
        self.assertEqual(frames(raw.seen), [(True, 2, codec.encode_response(1, "GetIndex", m.IndexData(b"i" * 3_000_000)))])

    def test_no_fragments_from_a_client(self) -> None:
        """The same in the other role: the client serves its index to a reference daemon."""
        bench = Bench()
        opened: list[Any] = []
        bench.client.index = b"i" * 600_000
        connect(bench.clock, NODE, bench.client, "ciruela").addCallback(opened.append)
        raw = Raw()
        bench.accept(raw)
        answer = (
            b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: " + accept_key(raw.seen) + b"\r\n\r\n"
        )
        raw.seen = b""
        raw.send(answer + frame(codec.encode_request(1, INDEX)))
        bench.flush()
        self.assertEqual(frames(raw.seen), [(True, 2, codec.encode_response(1, "GetIndex", m.IndexData(b"i" * 600_000)))])

    def test_own_fragments_are_read(self) -> None:
        """RFC 6455 allows them to everybody."""
        bench = Bench()
        raw = bench.raw_client()
        data = codec.encode_notification(s.NOTIFICATIONS["PublishImage"])
        raw.send(REFERENCE_HANDSHAKE + frame(data[:9], masked=True, first=0) + frame(data[9:], opcode=0, masked=True))
        bench.flush()
        self.assertEqual(len(bench.node.told), 1)


class Hostile(SynchronousTestCase):
    def served_raw(self, bench: Bench) -> Raw:
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        return raw

    def assert_dropped(self, data: bytes) -> None:
        bench = Bench()
        raw = self.served_raw(bench)
        raw.send(data)
        bench.flush()
        bench.advance(1)
        self.assertTrue(raw.ended)
        self.assertEqual(bench.node.told, [])
        self.assertEqual(len(bench.node.lost_links), 1)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_frames_that_break_the_rules(self) -> None:
        """Each of these confuses some program that stands between."""
        note = codec.encode_notification(s.NOTIFICATIONS["PublishImage"])
        self.assert_dropped(frame(note))
        self.assert_dropped(frame(note, masked=True, first=0xC0))
        self.assert_dropped(frame(note, opcode=3, masked=True))
        self.assert_dropped(frame(b"x" * 126, opcode=9, masked=True))
        self.assert_dropped(frame(b"\xff\xfe", opcode=1, masked=True))

    @shows("A22")
    def test_masked_frame_of_a_server(self) -> None:
        """The same for the other role."""
        bench = Bench()
        link = bench.link()
        bench.pumps[-1].serverIO.write(frame(b"x", masked=True))
        bench.flush()
        self.assertFalse(link.alive)

    @shows("A21", "F15")
    def test_large_frames(self) -> None:
        """One header would otherwise reserve a hundred megabytes."""
        self.assert_dropped(b"\x82\xff" + (ORDINARY_BYTES + 1).to_bytes(8, "big") + b"\1\2\3\4")
        self.assert_dropped(b"\x82\xff" + (2**62).to_bytes(8, "big") + b"\1\2\3\4")

    @shows("A21", "F15")
    def test_large_message_in_fragments(self) -> None:
        """The limit must hold for the whole message."""
        part = frame(b"x" * 200_000, masked=True, first=0)
        self.assert_dropped(part + frame(b"x" * 200_000, opcode=0, masked=True))

    @shows("A21")
    def test_limit_rises_for_an_index(self) -> None:
        """An index of some megabytes must arrive, from a client as from a node, and only when we asked for it."""
        for request, answer in (
            (INDEX, m.IndexData(b"i" * 2_000_000)),
            (m.GetIndexAt("/a/b"), m.IndexAtData(b"i" * 2_000_000)),
            (m.GetBaseDir("/a"), m.BaseDirData(b"\1" * 32, b"\2" * 32, {f"{number}": s.V1 for number in range(3000)})),
        ):
            bench = Bench()
            link = bench.link()
            served = bench.served()
            self.assertEqual(served.maxMessagePayloadSize, ORDINARY_BYTES)
            bench.client.index = b"i" * 2_000_000
            reply = served.ask(request)
            self.assertEqual((served.maxFramePayloadSize, served.maxMessagePayloadSize), (LARGE_BYTES, LARGE_BYTES))
            bench.flush()
            if bench.client.waiting:
                bench.client.waiting[0].callback(answer)
                bench.flush()
            self.assertEqual(self.successResultOf(reply), answer)
            self.assertEqual((served.maxFramePayloadSize, served.maxMessagePayloadSize), (ORDINARY_BYTES, ORDINARY_BYTES))
            self.assertTrue(link.alive)

    @shows("A21")
    def test_limit_rises_for_many_blocks(self) -> None:
        """Blocks would travel one by one; or a megabyte could come unasked."""
        bench = Bench()
        bench.link()
        served = bench.served()
        reply = served.ask(m.GetBlocks("/a/b", s.image(1), tuple(range(32))))
        self.assertEqual((served.maxFramePayloadSize, served.maxMessagePayloadSize), (BULK_BYTES, BULK_BYTES))
        bench.flush()
        bench.client.waiting[0].callback(m.BlocksData((m.BlockPart(b"x" * m.MOST_BULK_BYTES),)))
        bench.flush()
        self.assertEqual(len(self.successResultOf(reply).parts[0].data), m.MOST_BULK_BYTES)
        self.assertEqual((served.maxFramePayloadSize, served.maxMessagePayloadSize), (ORDINARY_BYTES, ORDINARY_BYTES))

    def test_large_answer_to_a_small_question(self) -> None:
        """A block cannot be larger than a block."""
        bench = Bench()
        raw = self.served_raw(bench)
        reply = bench.served().ask(BLOCK)
        raw.send(frame(codec.encode_response(1, "GetBlock", m.BlockData(b"x" * 300_000)), masked=True))
        bench.flush()
        self.assertIn("at most", str(self.failureResultOf(reply, LinkLost).value))

    @shows("A24", "F18")
    def test_violations_close(self) -> None:
        """What the dialogue finds must have consequences."""
        request = frame(codec.encode_request(1, m.GetBaseDir("/a")), masked=True)
        self.assert_dropped(request + request)
        self.assert_dropped(frame(b"garbage", masked=True) * 16)

    @shows("A24", "F18")
    def test_wrong_answer(self) -> None:
        """The request fails with the reason, and the link is gone."""
        bench = Bench()
        raw = self.served_raw(bench)
        reply = bench.served().ask(INDEX)
        raw.send(frame(codec.encode_response(1, "GetBlock", m.BlockData(b"x")), masked=True))
        bench.flush()
        self.failureResultOf(reply, RemoteError)
        self.assertTrue(raw.ended)


class Life(SynchronousTestCase):
    def half_open(self) -> tuple[Bench, Any, Raw]:
        bench = Bench()
        opened: list[Any] = []
        connect(bench.clock, NODE, bench.client, "ciruela").addCallback(opened.append)
        raw = Raw()
        bench.accept(raw)
        raw.send(
            b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: " + accept_key(raw.seen) + b"\r\n\r\n"
        )
        bench.flush()
        raw.seen = b""
        return bench, opened[0], raw

    def test_pings(self) -> None:
        """A reference daemon closes a connection that is silent for five seconds, in the middle of its download."""
        bench, _, raw = self.half_open()
        bench.advance(4)
        self.assertEqual(frames(raw.seen), [(True, 9, b"ciruela")] * 4)

    def test_late_pongs(self) -> None:
        """The reference sends its pongs late; pings must go on, and any byte is a sign of life."""
        bench, link, raw = self.half_open()
        for _ in range(6):
            bench.advance(10)
            raw.send(frame(b"ciruela", opcode=10))
            bench.flush()
        self.assertEqual(len(frames(raw.seen)), 60)
        bench.advance(10)
        raw.send(b"\x82")
        bench.advance(5)
        self.assertTrue(link.alive)

    @shows("A58")
    def test_half_dead_server(self) -> None:
        """A client would wait for its deadline of half an hour."""
        bench, link, raw = self.half_open()
        answer = link.ask(INDEX)
        bench.advance(14)
        self.assertNoResult(answer)
        bench.advance(2)
        fault = self.failureResultOf(answer, LinkLost)
        self.assertEqual(str(fault.value), "the connection to 10.0.0.1:24783 was lost: nothing was heard for 15 s")
        self.assertEqual(bench.client.lost_links, [link])
        self.assertTrue(raw.ended)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_half_dead_client(self) -> None:
        """Connections of vanished clients would pile up at the server."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.advance(12)
        self.assertFalse(raw.ended)
        bench.advance(7)
        self.assertTrue(raw.ended)
        self.assertEqual(raw.seen.count(b"\x89"), 0)

    def test_pings_keep_a_server_link(self) -> None:
        """A quiet client of ours must stay connected."""
        bench = Bench()
        link = bench.link()
        bench.advance(60)
        self.assertTrue(link.alive)

    def test_close(self) -> None:
        """A close frame, then TCP."""
        bench = Bench()
        link = bench.link()
        answer = link.ask(m.GetBaseDir("/a"))
        bench.flush()
        link.close()
        self.failureResultOf(answer, LinkLost)
        bench.flush()
        self.assertEqual((len(bench.client.lost_links), len(bench.node.lost_links)), (1, 1))
        self.assertEqual(bench.clock.getDelayedCalls(), [])
        link.close()
        link.tell(s.NOTIFICATIONS["PublishImage"])
        self.failureResultOf(link.ask(BLOCK), LinkLost)

    def test_close_that_is_not_answered(self) -> None:
        """The reference neither answers a close frame nor closes TCP: the connection would stay."""
        bench, link, raw = self.half_open()
        link.close()
        bench.flush()
        self.assertEqual([kind for _, kind, _ in frames(raw.seen)], [8])
        self.assertFalse(raw.ended)
        bench.advance(1)
        self.assertTrue(raw.ended)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_close_frame_without_the_end_of_tcp(self) -> None:
        """A peer that says goodbye and stays would hold the connection."""
        bench, link, raw = self.half_open()
        raw.send(frame(b"\x03\xe8", opcode=8))
        bench.flush()
        bench.advance(1)
        self.assertTrue(raw.ended)
        self.assertEqual(bench.client.lost_links, [link])
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_answer_after_the_end(self) -> None:
        """A disk that answers late must not raise into the reactor."""
        bench = Bench()
        link = bench.link()
        link.ask(m.GetBaseDir("/a")).addErrback(lambda _: None)
        bench.flush()
        link.close()
        bench.flush()
        bench.node.waiting[0].callback(m.BaseDirData(b"\1" * 32, b"\2" * 32, {}))
        bench.flush()


class SlowReader(SynchronousTestCase):
    @shows("A25", "F19", "I6")
    def test_who_does_not_read(self) -> None:
        """One client that asks for blocks and never reads would fill the server's memory."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        served = bench.served()
        transport = bench.pumps[-1].serverIO
        reading: list[bool] = []
        with (
            mock.patch.object(transport, "pauseProducing", lambda: reading.append(False)),
            mock.patch.object(transport, "resumeProducing", lambda: reading.append(True)),
        ):
            served._outbox.pauseProducing()
            raw.send(b"".join(frame(codec.encode_request(number, BLOCK), masked=True) for number in range(300)))
            bench.flush()
            self.assertEqual(reading, [False])
            self.assertEqual(len(bench.node.asked), 128)
            self.assertLess(served._outbox.bytes, Limits().queue_bytes + 40_000)
            bench.advance(50)
            raw.seen = b""
            served._outbox.resumeProducing()
            bench.flush()
            self.assertEqual(reading, [False, True])
            self.assertEqual(len(bench.node.asked), 300)
            self.assertEqual(len(frames(raw.seen)), 300)
            self.assertEqual(served._outbox.bytes, 0)

    def test_transport_tells_us(self) -> None:
        """Without this nobody would ever notice a reader that does not read."""
        bench = Bench()
        link = bench.link()
        pump = bench.pumps[-1]
        self.assertIs(pump.serverIO.producer, bench.served()._outbox)
        self.assertIs(pump.clientIO.producer, link._outbox)

    def test_full_without_more_requests(self) -> None:
        """Four megabytes are the limit, whether or not another request is here already."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        bench.served()._outbox.pauseProducing()
        raw.send(b"".join(frame(codec.encode_request(n, BLOCK), masked=True) for n in range(128)))
        bench.flush()
        self.assertTrue(bench.served()._held)
        bench.served()._outbox.resumeProducing()
        self.assertFalse(bench.served()._held)

    def test_goodbye_of_one_who_does_not_read(self) -> None:
        """TCP that cannot flush must be cut, or the connection stays for ever."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        with mock.patch.object(bench.pumps[-1].serverIO, "loseConnection"):
            raw.send(frame(b"\x03\xe8", opcode=8, masked=True))
            bench.flush()
            self.assertFalse(raw.ended)
            bench.advance(1)
        self.assertTrue(raw.ended)

    @shows("A26")
    def test_many_at_once(self) -> None:
        """Requests that waited are answered one after the other, not one inside the other."""
        sent: list[bytes] = []

        def send(data: bytes) -> None:
            sent.append(data)
            talk.clog(False)

        talk = Session(mock.Mock(send_message=send, break_off=self.fail), Counterpart())
        talk.clog(True)
        for number in range(2000):
            talk.received(codec.encode_request(number, BLOCK))
        self.assertEqual(sent, [])
        talk.clog(False)
        self.assertEqual(len(sent), 2000)

    def test_work_that_stands_still(self) -> None:
        """While we do not read, silence is our own doing; but not for ever."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE + b"".join(frame(codec.encode_request(n, m.GetBaseDir("/a")), masked=True) for n in range(65)))
        bench.flush()
        self.assertTrue(bench.served()._held)
        bench.advance(50)
        self.assertFalse(raw.ended)
        bench.served().tell(s.NOTIFICATIONS["ReceivedImage"])
        bench.advance(50)
        self.assertFalse(raw.ended)
        bench.advance(20)
        self.assertTrue(raw.ended)

    @shows("A25", "F19")
    def test_stall(self) -> None:
        """A reader that has stopped for good gives its place to somebody else."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        bench.served()._outbox.pauseProducing()
        for _ in range(59):
            raw.send(frame(b"", opcode=10, masked=True))
            bench.advance(1)
        self.assertFalse(raw.ended)
        bench.advance(1)
        self.assertTrue(raw.ended)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_order_is_kept(self) -> None:
        """A ping in the middle of a large frame would destroy it."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        served = bench.served()
        bench.node.index = b"i" * 1_000_000
        transport = bench.pumps[-1].serverIO
        plain = transport.write

        def full(data: bytes) -> None:
            plain(data)
            served._outbox.pauseProducing()

        with mock.patch.object(transport, "write", full):
            raw.send(frame(codec.encode_request(1, INDEX), masked=True) + frame(b"x", opcode=9, masked=True))
            bench.flush()
            for _ in range(6):
                served._outbox.resumeProducing()
                bench.flush()
        self.assertEqual([kind for _, kind, _ in frames(raw.seen)], [2, 10])


class Connecting(SynchronousTestCase):
    def attempt(self, timeout_s: float = 3.0) -> tuple[Bench, Any]:
        bench = Bench()
        return bench, connect(bench.clock, NODE, Counterpart(), "ciruela", timeout_s)

    def test_not_a_websocket(self) -> None:
        """The commonest mistake is the wrong port; the message has to say so."""
        bench, done = self.attempt()
        raw = Raw()
        bench.accept(raw)
        raw.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        bench.flush()
        self.assertEqual(str(self.failureResultOf(done, LinkLost).value), "cannot connect to 10.0.0.1:24783: no websocket there: HTTP 404")
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    @shows("A22", "I8")
    def test_garbage(self) -> None:
        """Any other server on that port."""
        for garbage in (b"\xff\xfe\r\n\r\n", b"220 mail\r\n\r\n", b"SSH-2.0-x\r\n" + b"x" * 20_000, b"HTTP/1.0 101 X\r\n\r\n", b"\r\n\r\n"):
            bench, done = self.attempt()
            raw = Raw()
            bench.accept(raw)
            raw.send(garbage)
            bench.flush()
            self.assertIn("websocket", str(self.failureResultOf(done, LinkLost).value))
            self.assertTrue(raw.ended)
            self.assertEqual(bench.clock.getDelayedCalls(), [])
        self.flushLoggedErrors()

    @shows("A19")
    def test_silence(self) -> None:
        """A port that accepts and says nothing."""
        bench, done = self.attempt()
        raw = Raw()
        bench.accept(raw)
        bench.advance(3)
        self.assertEqual(str(self.failureResultOf(done, LinkLost).value), "no answer from 10.0.0.1:24783 within 3 s")
        self.assertTrue(raw.ended)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_cancel(self) -> None:
        """Who gives up leaves nothing behind."""
        bench, done = self.attempt()
        raw = Raw()
        bench.accept(raw)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        bench.flush()
        self.assertTrue(raw.ended)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_unknown_request_over_the_wire(self) -> None:
        """A newer peer is told at once."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(REFERENCE_HANDSHAKE)
        bench.flush()
        raw.seen = b""
        raw.send(frame(cbor2.dumps([1, "GetNews", 3, {}]), masked=True))
        bench.flush()
        self.assertEqual(cbor2.loads(frames(raw.seen)[0][2])[:3], [2, "Error", 3])
