"""Small images that come with the order, at real nodes in memory."""

from __future__ import annotations

from unittest.mock import patch

from nacl.signing import SigningKey
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import DiskError
from ciruela.proto.codec import BadMessage, RequestIn, decode, encode_request
from ciruela.proto.messages import MOST_BROUGHT_BYTES as MOST
from ciruela.proto.messages import AppendDir, ImageContent, UploadAck
from tests.proof import shows
from tests.scenarios import cluster as scenery
from tests.scenarios.cluster import Client, Cluster, Image

PATH = "/logs/v1"


class BroughtTests(SynchronousTestCase):
    """Three nodes; the client answers only where a test says so."""

    def setUp(self) -> None:
        self.cluster = Cluster(3)
        self.cluster.run(5.0)
        self.image = Image(1, {"a": 40_000, "b": 3, "empty": 0})
        self.blocks = b"".join(self.image.blocks[one] for one in self.image.order)
        self.client = Client(self.cluster, self.image)
        self.client.serving = False

    def upload(self, index: bytes, blocks: bytes, seconds: float = 3.0) -> int:
        """The number of nodes that have the image so many seconds later."""
        self.client.upload(PATH, self.cluster.addresses(1, 2, 3), content=ImageContent(index, blocks))
        self.cluster.run(seconds, until=lambda: len(self.cluster.holders(PATH, self.image)) == 3)
        return len(self.cluster.holders(PATH, self.image))

    def test_nobody_asks(self) -> None:
        """A tiny upload would take two more round trips, and two more turns of each program."""
        self.assertEqual(self.upload(self.image.data, self.blocks), 3)
        totals = [node.downloads.totals for node in self.cluster.nodes.values()]
        self.assertLessEqual({one.received_bytes for one in totals}, {len(self.blocks)})

    @shows("A2", "A7")
    def test_wrong(self) -> None:
        """Who may upload could show another image than the one that is signed, or keep the right one from arriving."""
        other = Image(2, {"a": 40_000, "b": 3, "empty": 0})
        others = b"".join(other.blocks[one] for one in other.order)
        for index, blocks in (
            (other.data, others),
            (self.image.data, others),
            (self.image.data, self.blocks[:-1] + b"x"),
            (self.image.data, self.blocks[:-1]),
            (self.image.data, self.blocks + b"x"),
            (b"", b""),
            (self.image.data[:-1], self.blocks),
        ):
            with self.subTest(index=index[-20:], blocks=blocks[-20:]):
                self.setUp()
                self.assertEqual(self.upload(index, blocks, 1.0), 0)
                self.setUp()
                self.client.serving = True
                self.assertEqual(self.upload(index, blocks), 3)

    @shows("A11", "I2")
    def test_of_a_stranger(self) -> None:
        """Anybody could fill the disk with indexes and blocks."""
        with patch.object(scenery, "KEY", SigningKey(bytes(32))):
            self.client.upload(PATH, self.cluster.addresses(1), content=ImageContent(self.image.data, self.blocks))
        self.cluster.run(2.0)
        [(_, answer)] = self.client.answers
        assert isinstance(answer, UploadAck)
        self.assertEqual(answer.reject_reason, "signature_mismatch")
        self.assertIsNone(self.successResultOf(self.cluster.disks[1].read_index_bytes(self.image.id)))

    @shows("A24")
    def test_too_much(self) -> None:
        """More than a small image would be kept in memory while keys are looked up."""
        for index, blocks, good in ((MOST, 0, True), (0, MOST, True), (MOST + 1, 0, False), (0, MOST + 1, False)):
            request = AppendDir(PATH, self.image.id, 1, (), ImageContent(bytes(index), bytes(blocks)))
            if good:
                self.assertEqual(decode(encode_request(1, request)), RequestIn(1, request))
            else:
                self.assertRaises(BadMessage, decode, encode_request(1, request))

    @shows("F28")
    def test_full_disk(self) -> None:
        """A disk that is full when what was brought is written would leave an upload that never ends."""

        def full() -> None:
            raise DiskError("no space left on device")

        with patch.object(type(self.cluster.disks[1]), "write_index", lambda *_: deferLater(self.cluster.clock, 0.01, full)):
            self.assertEqual(self.upload(self.image.data, self.blocks), 0)
        self.assertEqual({note.reason.partition(":")[0] for note in self.client.aborted}, {"cant_fetch_index"})
