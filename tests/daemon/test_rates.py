"""How much one connection and one key may ask of a node, seen from a client."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.requests import READS, SAME_INDEX
from ciruela.daemon.status import NodeStatus
from ciruela.keys.signed import signed_bytes
from ciruela.model.config import Symlinks
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import BlockHash, ImageId
from ciruela.proto.messages import AppendDir, GetBlock, GetBlocks, GetIndex, GetPieces, PublishImage, UploadAck
from ciruela.tracking.subscriptions import MAX_PER_LINK
from tests.proof import shows
from tests.scenarios.cluster import APP, KEY, Client, Cluster, Image

SITE = Image(7, {"a": 100_000, "b": 7})


class RatesTests(SynchronousTestCase):
    """One client that asks for everything must leave something for the others."""

    def setUp(self) -> None:
        self.cluster = Cluster(1)
        self.node = self.cluster.nodes[1]
        self.links = [self.connected(), self.connected()]

    def connected(self):
        links = []
        self.cluster.hub.link(Client(self.cluster, SITE), self.cluster.address(1)).addCallback(links.append)
        self.cluster.run(1.0)
        return links[0]

    def ask(self, requests, at=0):
        answers = []
        for request in requests:
            self.links[at].ask(request).addBoth(answers.append)
            self.cluster.run(0.02)
        self.cluster.run(0.2)
        return answers

    def slowed(self, answers):
        return [answer for answer in answers if not isinstance(answer, UploadAck) and answer.check(Busy)]

    def bad(self, number):
        """Requests whose signature is wrong."""
        return [AppendDir(f"/app/v{at}", SITE.id, 1, (bytes(64),)) for at in range(number)]

    @shows("A18", "F13")
    def test_uploads(self) -> None:
        """After a burst 20 requests a second are looked at; the others leave no trace, and other connections do not notice."""
        answers = self.ask(self.bad(400))
        self.assertEqual(len(answers), 400)
        slowed = self.slowed(answers)
        looked_at = 400 - len(slowed)
        self.assertTrue(64 + 150 <= looked_at <= 64 + 170, looked_at)
        self.assertEqual(slowed[0].getErrorMessage(), SLOW_DOWN)
        self.assertEqual(self.slowed(self.ask(self.bad(10), at=1)), [])
        self.assertEqual((len(self.node.ledger.pendings()), list(self.node.watches.paths())), (0, []))
        metrics = {(key["group"], key["metric"]): value for key, (_, value) in NodeStatus(self.node, list).status()["metrics"]}
        self.assertEqual(metrics["requests", "slowed"], len(slowed))
        self.cluster.run(5.0)
        self.assertEqual(self.slowed(self.ask(self.bad(10))), [])

    @shows("A18")
    def test_reads(self) -> None:
        """Indexes have a rate of their own, ten times as high; blocks have none."""
        answers = []
        for turn in range(20):
            for number in range(50):
                self.links[0].ask(GetIndex(ImageId((turn * 50 + number).to_bytes(32, "big")), None)).addBoth(answers.append)
            self.cluster.run(0.01)
        refused = [answer.getErrorMessage() for answer in answers]
        self.assertEqual(len(refused), 1000)
        looked_at = refused.count("index not found")
        self.assertTrue(2 * 20 * READS <= looked_at <= 2 * 20 * READS + 50, looked_at)
        self.assertEqual(refused.count(SLOW_DOWN), 1000 - looked_at)
        many = (GetBlock(BlockHash(bytes(32)), None), GetBlocks("/app/v1", SITE.id, (0,)), GetPieces("/app/v1", SITE.id, bytes(32)))
        for request in many:
            self.assertFalse(any(answer.check(Busy) for answer in self.ask([request] * 100)), request)

    @shows("K6.2")
    def test_the_same_index(self) -> None:
        """A reference daemon that cannot read an index asks for it as fast as it is answered: 57 MiB of one of 1 KB in 20 s."""
        answers: list[object] = []

        def ask() -> None:
            self.links[0].ask(GetIndex(SITE.id, None)).addErrback(lambda failure: failure.value).addBoth(again)

        def again(answer: object) -> None:
            answers.append(answer)
            ask()

        ask()
        self.cluster.run(20.0)
        self.assertTrue(SAME_INDEX <= len(answers) <= SAME_INDEX + 20 + 10, len(answers))
        self.assertIsInstance(answers[-1], RemoteError)

    @shows("A26", "I6")
    def test_published(self) -> None:
        """The 65th image that a connection can give is not noted, and counted."""
        for number in range(MAX_PER_LINK + 36):
            self.links[0].tell(PublishImage(ImageId(number.to_bytes(32, "big"))))
        self.cluster.run(1.0)
        self.assertEqual(self.node.clients.published_refused, 36)

    def test_forgotten(self) -> None:
        """What is remembered of a connection goes with it."""
        self.cluster.run(1.0)
        before = set(self.node.counterpart._buckets)
        self.ask(self.bad(3))
        self.assertEqual(len(self.node.counterpart._buckets.keys() - before), 1)
        self.links[0].close()
        self.cluster.run(1.0)
        self.assertEqual(self.node.counterpart._buckets.keys() - before, set())


class KeyTests(SynchronousTestCase):
    """One key that uploads everything at once."""

    @shows("I6")
    def test_uploads_in_progress(self) -> None:
        """The ninth upload has to wait until one of the eight has ended; nothing of it is on the disk before."""
        cluster = Cluster(1)
        client = Client(cluster, SITE)
        give = client.requested
        client.requested = lambda link, request: give(link, request) if isinstance(request, GetIndex) else Deferred()
        client.upload("/app/v0", [cluster.address(1)])
        cluster.run(2.0)
        (link,) = client.links
        answers = []
        for number in range(1, 9):
            path, stamp = f"/app/v{number}", cluster.now_ms()
            signature = KEY.sign(signed_bytes(path, SITE.id, stamp)).signature
            link.ask(AppendDir(path, SITE.id, stamp, (signature,))).addBoth(answers.append)
        cluster.run(2.0)
        self.assertEqual([isinstance(answer, UploadAck) for answer in answers], [True] * 7 + [False])
        self.assertIn("8 uploads of this key are in progress", answers[-1].getErrorMessage())
        self.assertEqual(len(cluster.nodes[1].ledger.pendings()), 8)
        client.requested = give
        cluster.run(60.0, until=lambda: not cluster.nodes[1].ledger.pendings())
        link.ask(AppendDir(path, SITE.id, stamp, (signature,))).addBoth(answers.append)
        cluster.run(10.0)
        self.assertTrue(answers[-1].accepted)


class DirectoryTests(SynchronousTestCase):
    """What an operator allows in one directory."""

    def abort(self, config, image=SITE) -> str:
        cluster = Cluster(1, configs={"app": config})
        client = Client(cluster, image)
        client.upload("/app/v1", [cluster.address(1)])
        cluster.run(10.0)
        self.assertEqual(cluster.holders("/app/v1", image), set())
        self.assertEqual(client.given, [])
        (notice,) = client.aborted
        return notice.reason

    @shows("A5", "F7", "I7")
    def test_too_large(self) -> None:
        """The client hears the numbers before it has given a block."""
        self.assertEqual(
            self.abort(replace(APP, max_image_bytes=100_000)), "image_too_large: it has 100007 bytes, max-image-bytes is 100000 here"
        )
        self.assertIn("max-image-files is 1", self.abort(replace(APP, max_image_files=1)))

    def test_links(self) -> None:
        """An image without links passes where links are not allowed."""
        cluster = Cluster(1, configs={"app": replace(APP, symlinks=Symlinks.NONE, max_image_bytes=100_007, max_image_files=2)})
        Client(cluster, SITE).upload("/app/v1", [cluster.address(1)])
        cluster.run(10.0)
        self.assertEqual(cluster.holders("/app/v1", SITE), {1})

    def test_number(self) -> None:
        """One image more than max-images is refused with a word of its own."""
        cluster = Cluster(1, configs={"app": replace(APP, max_images=1)})
        client = Client(cluster, SITE)
        client.upload("/app/v1", [cluster.address(1)])
        cluster.run(10.0)
        client.upload("/app/v2", [cluster.address(1)])
        client.upload("/app/v1", [cluster.address(1)], replace=True)
        cluster.run(5.0)
        self.assertEqual([answer.reject_reason for _, answer in client.answers], [None, "quota_exceeded", None])


class TypedTests(SynchronousTestCase):
    """The client has to know that it may ask again, or it would take a busy node for one that refuses."""

    def test_busy_on_both_ends(self) -> None:
        """The kind of the error survives the wire; any other error is not taken for it."""
        cluster = Cluster(1)
        links = []
        cluster.hub.link(Client(cluster, SITE), cluster.address(1)).addCallback(links.append)
        cluster.run(1.0)
        answers = []
        links[0].ask(GetIndex(SITE.id, None)).addErrback(answers.append)
        cluster.run(1.0)
        cluster.nodes[1].counterpart._bucket = lambda *_: _Empty()
        links[0].ask(GetIndex(SITE.id, None)).addErrback(answers.append)
        cluster.run(1.0)
        self.assertEqual([answer.type for answer in answers], [RemoteError, Busy])


class _Empty:
    def take(self) -> bool:
        return False
