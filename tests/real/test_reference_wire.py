"""Sessions with the reference 0.6.12, recorded by ``benchmarks.interop --record``, played back to our two ends of the wire."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.index.parse import parse
from ciruela.keys.public import parse_public, verify
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import LinkLost
from ciruela.net import connection as link_module
from ciruela.net.connection import ClientLink
from ciruela.net.outgoing import connect
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.net.bench import NODE, Bench, Raw, frame, frames

VECTORS = Path(__file__).parent.parent / "vectors" / "reference"
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
PATH = "/app/a/v1"
FILES = {"/hello.txt": b"hello\n", "/run.sh": b"#!/bin/sh\necho hi\n"}


class Recording:
    """One recorded connection: head and frames of each side."""

    def __init__(self, name: str) -> None:
        document = json.loads((VECTORS / f"{name}.json").read_text())
        self.pieces: list[tuple[str, bytes]] = [(each["from"], bytes.fromhex(each["hex"])) for each in document["pieces"]]
        self.head: dict[str, bytes] = {}
        self.frames: dict[str, list[tuple[bool, int, bytes]]] = {}
        for side in ("client", "server"):
            head, end, rest = b"".join(data for who, data in self.pieces if who == side).partition(b"\r\n\r\n")
            self.head[side] = head + end
            self.frames[side] = frames(rest)

    def messages(self, side: str) -> list[Any]:
        """Everything that one side said, decoded; raises FormatError where it is not understood."""
        return [codec.decode(payload) for _, opcode, payload in self.frames[side] if opcode == 2]

    def later(self, side: str) -> list[bytes]:
        """The pieces of one side after the piece that has its head, as they came."""
        pieces = [data for who, data in self.pieces if who == side]
        return [pieces[0].partition(b"\r\n\r\n")[2], *pieces[1:]]


def of_kind(found: list[Any], kind: type) -> list[Any]:
    """Those of one class."""
    return [each for each in found if isinstance(each, kind)]


class EveryMessage(SynchronousTestCase):
    """What both programs really send, frame by frame."""

    def test_frames(self) -> None:
        """Fragments, texts or compression would be lost on one of the two sides."""
        for name in ("reference_client", "reference_server"):
            recording = Recording(name)
            for side in ("client", "server"):
                self.assertTrue(all(final and opcode in (2, 9, 10) for final, opcode, _ in recording.frames[side]), (name, side))
                self.assertNotIn(b"xtensions", recording.head[side])

    def test_all_decode_and_encode_to_the_same_bytes(self) -> None:
        """One message of the reference that we read or write otherwise ends an upload."""
        for name in ("reference_client", "reference_server"):
            recording = Recording(name)
            asked: dict[tuple[str, int], str] = {}
            count = 0
            for side, other in (("client", "server"), ("server", "client")):
                for message in recording.messages(side):
                    if isinstance(message, codec.RequestIn):
                        asked[other, message.id] = type(message.request).__name__
            for side in ("client", "server"):
                for _, opcode, payload in recording.frames[side]:
                    if opcode != 2:
                        continue
                    count += 1
                    match codec.decode(payload):
                        case codec.RequestIn(number, request):
                            self.assertEqual(codec.encode_request(number, request), payload)
                        case codec.ResponseIn(number, said, response):
                            self.assertEqual(said, asked[side, number])
                            self.assertEqual(codec.encode_response(number, said, response), payload)
                        case codec.NotificationIn(notification):
                            self.assertEqual(codec.encode_notification(notification), payload)
                        case unknown:
                            self.fail(f"{name}, {side}: {unknown}")
            self.assertEqual(count, 10, name)

    def test_both_clients_say_the_same(self) -> None:
        """The two clients are interchangeable: same index, same image id, signatures that verify."""
        indexes = set()
        for name in ("reference_client", "reference_server"):
            recording = Recording(name)
            [wish] = [each.request for each in of_kind(recording.messages("client"), codec.RequestIn)]
            self.assertIsInstance(wish, m.AppendDir)
            self.assertEqual(wish.path, PATH)
            [signature] = wish.signatures
            self.assertTrue(verify(parse_public(PUBLIC), signed_bytes(wish.path, wish.image, wish.timestamp_ms), signature))
            answers = [each.response for each in of_kind(recording.messages("client"), codec.ResponseIn)]
            [data] = [each.data for each in answers if isinstance(each, m.IndexData)]
            indexes.add(data)
            self.assertEqual(parse(data, wish.image).image, wish.image)
            self.assertEqual({each.data for each in answers if isinstance(each, m.BlockData)}, set(FILES.values()))
        self.assertEqual(len(indexes), 1)


class ReferenceClient(SynchronousTestCase):
    """The bytes of the reference's client, into our port."""

    def test_replay(self) -> None:
        """Nobody could upload to our daemons with the reference's client."""
        recording = Recording("reference_client")
        bench = Bench()
        raw = bench.raw_client()
        pieces = recording.later("client")
        raw.send(recording.head["client"] + pieces.pop(0))
        bench.flush()
        head, _, _ = raw.seen.partition(b"\r\n\r\n")
        self.assertEqual(head + b"\r\n\r\n", recording.head["server"])
        raw.seen = raw.seen[len(head) + 4 :]
        while not bench.node.asked:
            raw.send(pieces.pop(0))
            bench.flush()
        [wish] = bench.node.asked
        self.assertEqual(bench.node.told, [m.PublishImage(wish.image)])
        server = recording.messages("server")
        answer: Deferred[m.Response] = bench.node.waiting.pop()
        [ack] = [each.response for each in of_kind(server, codec.ResponseIn)]
        answer.callback(ack)
        requests = [each.request for each in of_kind(server, codec.RequestIn)]
        answers = [bench.served().ask(request) for request in requests]
        for piece in pieces:
            raw.send(piece)
        [done] = [each.notification for each in of_kind(server, codec.NotificationIn)]
        bench.served().tell(done)
        bench.flush()
        given = [self.successResultOf(each) for each in answers]
        self.assertEqual(parse(given[0].data, wish.image).image, wish.image)
        self.assertEqual(sorted(each.data for each in given[1:]), sorted(FILES.values()))
        self.assertEqual(frames(raw.seen), recording.frames["server"])
        self.assertFalse(raw.ended)

    def test_pings_while_idle(self) -> None:
        """It pings each second and leaves after 5 s without a byte: each ping has to be answered, at once."""
        bench = Bench()
        raw = bench.raw_client()
        raw.send(Recording("reference_client").head["client"])
        bench.flush()
        for _ in range(30):
            raw.seen = b""
            raw.send(frame(b"tk-http-ping", opcode=9, masked=True))
            bench.flush()
            self.assertEqual(frames(raw.seen), [(True, 10, b"tk-http-ping")])
            bench.advance(1)
        self.assertFalse(raw.ended)


class ReferenceServer(SynchronousTestCase):
    """The bytes of the reference's daemon, into our client's end."""

    def connected(self, recording: Recording) -> tuple[Bench, Raw, ClientLink]:
        """Our client after the recorded answer to the recorded handshake."""
        key = next(line for line in recording.head["client"].split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))[19:]
        bench = Bench()
        opened: list[ClientLink] = []
        connect(bench.clock, NODE, bench.client, "ciruela").addCallback(opened.append)
        raw = Raw()
        with mock.patch.object(link_module.os, "urandom", return_value=base64.b64decode(key)):
            bench.accept(raw)
        offered = raw.seen.replace(b"ciruela.v3, ciruela.v2, ", b"")  # no version 2 was known when this was recorded
        self.assertEqual(offered, recording.head["client"])
        raw.seen = b""
        raw.send(recording.head["server"])
        bench.flush()
        self.assertEqual(len(opened), 1)
        return bench, raw, opened[0]

    def test_handshake(self) -> None:
        """Its status line has another phrase than RFC 6455 shows, and there is no subprotocol."""
        recording = Recording("reference_server")
        lines = recording.head["server"].split(b"\r\n")
        self.assertEqual(lines[0], b"HTTP/1.1 101 Switching Protocol")
        names = [line.split(b":")[0] for line in lines[1:-2]]
        self.assertEqual(names, [b"Date", b"Server", b"Connection", b"Upgrade", b"Sec-Websocket-Accept"])
        _, _, link = self.connected(recording)
        self.assertIsNone(link.subprotocol)
        self.assertTrue(link.alive)

    def test_wrong_accept(self) -> None:
        """The recorded answer fits the recorded key only; the replay proves that it was checked."""
        bench = Bench()
        failed = connect(bench.clock, NODE, bench.client, "ciruela")
        raw = Raw()
        bench.accept(raw)
        raw.send(Recording("reference_server").head["server"])
        bench.flush()
        self.failureResultOf(failed, LinkLost)

    def test_replay(self) -> None:
        """Our client could not upload to the reference's daemons."""
        recording = Recording("reference_server")
        bench, raw, link = self.connected(recording)
        client = recording.messages("client")
        [wish] = [each.request for each in of_kind(client, codec.RequestIn)]
        link.tell(m.PublishImage(wish.image))
        answer = link.ask(wish)
        given = [each.response for each in of_kind(client, codec.ResponseIn)]
        bench.client.index = given[0].data
        for piece in recording.later("server"):
            raw.send(piece)
        bench.flush()
        self.assertEqual(self.successResultOf(answer), m.UploadAck(True, None, {}))
        server = recording.messages("server")
        self.assertEqual(bench.client.asked, [each.request for each in of_kind(server, codec.RequestIn)])
        self.assertEqual([type(each) for each in bench.client.asked], [m.GetIndex, m.GetBlock, m.GetBlock])
        [told] = bench.client.told
        self.assertIsInstance(told, m.ReceivedImage)
        self.assertEqual((told.path, told.image, told.forwarded, told.hostname), (PATH, wish.image, False, "127.0.0.32"))
        said = [payload for _, opcode, payload in frames(raw.seen) if opcode == 2]
        self.assertEqual(said[:3], [payload for _, opcode, payload in recording.frames["client"] if opcode == 2][:3])
        self.assertTrue(link.alive)

    def test_pongs_that_come_late(self) -> None:
        """It sends a pong only when our next frame wakes it up: we must go on pinging, or it leaves after 5 s."""
        recording = Recording("reference_server")
        bench, raw, link = self.connected(recording)
        owed: list[bytes] = []
        for second in range(30):
            raw.seen = b""
            bench.advance(1)
            pings = [payload for _, opcode, payload in frames(raw.seen) if opcode == 9]
            self.assertEqual(len(pings), 1, second)
            for payload in owed:
                raw.send(frame(payload, opcode=10))
            owed = pings
        self.assertTrue(link.alive)
