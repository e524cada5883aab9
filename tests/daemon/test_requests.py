"""What a node answers on a connection, through the real codec."""

import hashlib

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.listings import FRESH_S, LONG_ENTRIES, MOST_KEPT_SIGNATURES, Listings, config_hash, kept_signed
from ciruela.download.availability import HELD_S
from ciruela.download.serving import UploadSlots
from ciruela.keys.signed import signed_bytes
from ciruela.membership.cluster import Cluster as HeardCluster
from ciruela.model.config import DirConfig
from ciruela.model.errors import Busy, DiskError, LinkLost, RemoteError
from ciruela.model.ids import BlockHash, ImageId
from ciruela.model.versions import RetainedVersion, SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.codec import encode_answer, encode_response
from ciruela.proto.messages import (
    AppendDir,
    BaseDirData,
    BlockHint,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetIndexAt,
    GetPieces,
    GetShare,
    IndexAtData,
    PiecesData,
    PublishImage,
)
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.subscriptions import Subscriptions
from tests.doubles.context import node_context
from tests.proof import shows
from tests.scenarios.cluster import APP, KEY, Client, Cluster, Image

SITE = Image(5, {"a": 100_000, "b": 7})
BASE = VPath.parse("/app")


class RequestsTests(SynchronousTestCase):
    """One node, one client."""

    def setUp(self):
        self.cluster = Cluster(1, configs={"app": APP, "deep": DirConfig("deep", "/srv/deep", False, 2)})
        self.client = Client(self.cluster, SITE)
        self.node = self.cluster.nodes[1]
        links = []
        self.cluster.hub.link(self.client, self.cluster.address(1)).addCallback(links.append)
        self.cluster.run(1.0)
        self.link = links[0]

    def ask(self, request):
        answers = []
        self.link.ask(request).addBoth(answers.append)
        self.cluster.run(2.0)
        return answers[0]

    def refused(self, request):
        answer = self.ask(request)
        answer.trap(RemoteError)
        return answer.getErrorMessage()

    def uploaded(self):
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(5.0)
        self.assertEqual(self.cluster.holders("/app/v1", SITE), {1})

    def hold(self, kind):
        """From now on the client answers requests of this kind when what is in the list fires."""
        held, give = [], self.client.requested

        def requested(link, request):
            if not isinstance(request, kind):
                return give(link, request)
            held.append(Deferred())
            return held[-1].addCallback(lambda _: give(link, request))

        self.client.requested = requested
        return held

    @shows("A17", "F1", "F3")
    def test_bad_path(self):
        """A path that is not canonical is refused with a word, not left unanswered."""
        for path in ("/app//v1", "/app/../v1", "/app/v1/", "app", "/", "", "/app/.v1", "/app/v.new", "/app/" + "x" * 300, "/a\0b/c"):
            answer = self.ask(AppendDir(path, SITE.id, 1, (bytes(64),)))
            self.assertEqual((answer.accepted, answer.reject_reason, answer.hosts), (False, "bad_path", {}), path)
            self.assertTrue(answer.detail, path)

    def test_one_component(self):
        """The packet that ends the reference's process (protocol section 11) is answered."""
        answer = self.ask(AppendDir("/app", SITE.id, 1, (bytes(64),)))
        self.assertEqual(answer.reject_reason, "config_level_mismatch")
        self.assertEqual(self.ask(GetIndexAt("/app")).data, None)
        self.assertIn("block not found", self.refused(GetBlock(BlockHash(bytes(32)), BlockHint("/app", "/x", 0))))

    @shows("F28", "F29", "I7")
    def test_disk_fails(self):
        """A user would read "internal error" instead of being told that the disk of that node is full."""
        self.patch(self.node.context.disk, "write_pending", lambda _: fail(DiskError("/app/v1: fsync: No space left on device")))
        stamp = self.cluster.now_ms()
        signature = KEY.sign(signed_bytes("/app/v1", SITE.id, stamp)).signature
        said = self.refused(AppendDir("/app/v1", SITE.id, stamp, (signature,)))
        self.assertEqual(said, "/app/v1: fsync: No space left on device")
        self.assertEqual(self.flushLoggedErrors(), [])

    @shows("I6")
    def test_gone_while_its_order_was_judged(self):
        """Each connection that ends before its upload is answered would be remembered for ever."""
        writing = Deferred()
        self.patch(self.node.context.disk, "write_pending", lambda _: writing)
        stamp = self.cluster.now_ms()
        self.link.tell(PublishImage(SITE.id))
        self.link.ask(AppendDir("/app/v1", SITE.id, stamp, (KEY.sign(signed_bytes("/app/v1", SITE.id, stamp)).signature,))).addErrback(
            lambda failure: failure.trap(LinkLost)
        )
        self.cluster.run(5.0)
        self.link.close()
        self.cluster.run(1.0)
        writing.callback(None)
        self.cluster.run(1.0)
        self.assertIsNotNone(self.node.ledger.pending(VPath.parse("/app/v1")))
        self.assertEqual((self.node.watches._of_link, self.node.watches.sources(SITE.id)), ({}, []))

    @shows("A18", "I4")
    def test_unsigned(self):
        """A bad signature is refused, and the connection does not become a watcher."""
        answer = self.ask(AppendDir("/app/v1", SITE.id, self.cluster.now_ms(), (bytes(64),)))
        self.assertEqual(answer.reject_reason, "signature_mismatch")
        self.assertEqual(list(self.node.watches.paths()), [])

    def test_index(self):
        """An index that is here is given by id and by path; others are refused."""
        self.assertEqual(self.refused(GetIndex(SITE.id, None)), "index not found")
        self.assertEqual(self.ask(GetIndexAt("/app/v1")), IndexAtData(None, {}))
        self.uploaded()
        self.assertEqual(self.ask(GetIndex(SITE.id, None)).data, SITE.data)
        self.assertEqual(self.ask(GetIndexAt("/app/v1")).data, SITE.data)
        for path in ("/app/v2", "/nothing/v1", "bad"):
            self.assertIsNone(self.ask(GetIndexAt(path)).data)

    def test_block(self):
        """A block of a committed image."""
        self.uploaded()
        wanted = next(iter(SITE.blocks))
        self.assertEqual(self.ask(GetBlock(BlockHash(wanted), BlockHint("/app/v1", "/a", 0))).data, SITE.blocks[wanted])

    @shows("A26")
    def test_slots(self):
        """A node with blocks for a thousand others would serve none of them well."""
        self.uploaded()
        request = GetBlocks("/app/v1", SITE.id, (0,))
        self.assertEqual(self.ask(request).lacks, ())
        self.node.counterpart._slots = UploadSlots(self.cluster.clock, 1)
        self.node.counterpart._slots.enter("another")
        busy = self.ask(request)
        busy.trap(Busy)
        self.cluster.run(3.0)
        self.assertEqual(self.ask(request).lacks, ())

    def test_pieces(self):
        """Others would not hear what is here until gossip tells it, or wait for what is not."""
        full = b"\xff" * 32
        self.assertEqual(self.refused(GetPieces("/app/v1", SITE.id, full)), "image not found")
        self.uploaded()
        self.assertEqual(self.ask(GetPieces("/app/v1", SITE.id, full)), PiecesData(full))
        self.assertEqual(self.ask(GetPieces("/app/v1", SITE.id, b"\5" * 64)), PiecesData(b"\5" * 64))
        self.assertEqual(self.refused(GetPieces("/app/v1", Image(6, {"a": 1}).id, full)), "image not found")
        self.assertEqual(self.refused(GetPieces("/app/v2", SITE.id, full)), "image not found")
        self.assertIn("not a virtual path", self.refused(GetPieces("/app//v1", SITE.id, full)))
        self.assertEqual(self.refused(GetShare(SITE.id, full)), "only clients share an image out")

    def test_pieces_on_their_way(self):
        """Those that wait for a piece would be told that the image is not here, or never that it has come."""
        held = self.hold(GetBlocks)
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(1.0)
        wanted = sum(1 << SITE.pieces.piece_of(number) for number in range(len(SITE.order)))
        answers = []
        self.link.ask(GetPieces("/app/v1", SITE.id, SITE.pieces.to_bytes(wanted))).addBoth(answers.append)
        self.cluster.run(1.0)
        self.assertEqual(answers, [])
        self.assertEqual(self.refused(GetPieces("/app/v1", Image(6, {"a": 1}).id, b"\xff" * 32)), "image not found")
        for _ in range(100):
            while held:
                held.pop().callback(None)
            self.cluster.run(0.1)
        (answer,) = answers
        told = SITE.pieces.from_bytes(answer.pieces)
        self.assertTrue(told and not told & ~wanted, "some of what was wanted, as soon as it is there")
        self.assertEqual(self.cluster.holders("/app/v1", SITE), {1})

    def test_pieces_of_what_was_given_up(self):
        """Those that wait for a node whose disk is full would wait until they lose patience, over and over."""
        held = self.hold(GetIndex)
        self.cluster.disks[1].free_bytes = 1000
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(1.0)
        answers = []
        self.link.ask(GetPieces("/app/v1", SITE.id, b"\xff" * 32)).addErrback(answers.append)
        self.cluster.run(0.5)
        self.assertEqual(answers, [])
        for one in held:
            one.callback(None)
        self.cluster.run(0.5)
        self.assertEqual([answer.getErrorMessage() for answer in answers], ["image not found"])

    def test_stopped_with_pieces_awaited(self):
        """A node that is stopped would answer, from what is gone, seconds later."""
        self.client.serving = False
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(1.0)
        answers = []
        self.node.counterpart.requested(self.link, GetPieces("/app/v1", SITE.id, b"\xff" * 32)).addBoth(answers.append)
        self.node.stop()
        self.cluster.run(2 * HELD_S)
        self.assertEqual(answers, [])

    @shows("F3")
    def test_base_dir(self):
        """A base dir with its states; anything else is refused with a reason."""
        self.uploaded()
        answer = self.ask(GetBaseDir("/app"))
        self.assertEqual(set(answer.dirs), {"v1"})
        self.assertEqual(answer.dirs["v1"].image, SITE.id)
        self.assertEqual(answer.watches, {"v1": (self.cluster.machine(1),)})
        self.assertEqual(answer.pending, ())
        self.assertEqual(answer.config_hash, config_hash(APP))
        self.assertEqual(self.refused(GetBaseDir("/nothing")), "No such config")
        self.assertIn("no base dir", self.refused(GetBaseDir("/app/v1")))
        self.assertIn("no base dir", self.refused(GetBaseDir("/deep")))
        self.assertIn("bad path", self.refused(GetBaseDir("app")))
        self.assertEqual(self.ask(GetBaseDir("/deep/x")).dirs, {})

    def test_base_dir_while_fetching(self):
        """A peer is told which entries are only on their way."""
        self.client.serving = False
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(5.0)
        self.assertEqual(self.ask(GetBaseDir("/app")).pending, ("v1",))

    def test_config_hash(self):
        """The hash of the example in protocol section 4.4."""
        config = DirConfig("x", "/x", False, 2, auto_clean=True, keep_min_directories=1, keep_recent_ms=3_600_000)
        self.assertEqual(config_hash(config).hex(), "9e1949f43e7b816daa30ccb54334521124363e7704404f9136b643c3f217573d")

    def test_keep_list_hash(self):
        """Without a keep list: the hash of an empty array."""
        self.assertEqual(self.ask(GetBaseDir("/app")).keep_list_hash, hashlib.blake2b(b"\x80", digest_size=32).digest())

    def test_answer_waits_for_acquaintance(self):
        """A client that asks a node which has just started is told of the other nodes, or it would call one node a whole cluster."""
        cluster = Cluster(3)
        client = Client(cluster, SITE)
        client.upload("/app/v1", cluster.addresses(1))
        cluster.run(10.0, until=lambda: client.answers)
        [(_, answer)] = client.answers
        self.assertEqual(set(answer.hosts), {cluster.machine(2), cluster.machine(3)})

    def test_answer_does_not_wait_for_the_dead(self):
        """A peer that is down delays the first orders by three seconds, later ones not at all."""
        cluster = Cluster(2)
        cluster.kill(2)
        cluster.kill(1)
        cluster.run(1.0)
        cluster.start(1)
        client = Client(cluster, SITE)
        client.upload("/app/v1", cluster.addresses(1))
        took = cluster.run(10.0, until=lambda: client.answers)
        self.assertTrue(2.5 < took < 3.5, took)
        cluster.run(5.0, until=lambda: cluster.holders("/app/v1", SITE))
        self.assertEqual(cluster.holders("/app/v1", SITE), {1})
        client.upload("/app/v1", cluster.addresses(1))
        self.assertLess(cluster.run(10.0, until=lambda: len(client.answers) > 1), 0.5)

    def test_publish_and_leave(self):
        """A source counts while its connection lasts."""
        self.uploaded()
        self.assertEqual(len(self.node.watches.sources(SITE.id)), 1)
        self.client.leave()
        self.cluster.run(1.0)
        self.assertEqual(self.node.watches.sources(SITE.id), [])

    @shows("S3")
    def test_strangers_are_no_sources(self):
        """Twenty connections that publish an image, and answer nothing, would keep it from the client that has it: 0/3 nodes after 78 s."""
        silent = Client(self.cluster, SITE)
        silent.requested = lambda link, request: Deferred()
        links = []
        for _ in range(20):
            self.cluster.hub.link(silent, self.cluster.address(1)).addCallback(links.append)
        self.cluster.run(1.0)
        for link in links:
            link.tell(PublishImage(SITE.id))
        self.cluster.run(1.0)
        self.assertEqual(self.node.watches.sources(SITE.id), [])
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(0.2)
        for link in links:
            link.tell(PublishImage(SITE.id))
        self.assertLess(self.cluster.run(10.0, until=lambda: self.cluster.holders("/app/v1", SITE) == {1}), 2.0)

    def test_notices(self):
        """The client hears of the arrival, of that image at that path, by this machine."""
        self.uploaded()
        self.assertEqual(self.client.received, {(SITE.id, "/app/v1", self.cluster.machine(1))})

    def test_abort_notice(self):
        """The client hears why an image did not come: a full disk is no secret."""
        self.cluster.disks[1].free_bytes = 1000
        self.client.upload("/app/v1", [self.cluster.address(1)])
        self.cluster.run(5.0)
        [notice] = self.client.aborted
        self.assertEqual((notice.path, notice.image, notice.machine_id), ("/app/v1", SITE.id, self.cluster.machine(1)))
        self.assertTrue(notice.reason.startswith("no_space: needs "), notice.reason)
        self.assertIsNone(self.node.ledger.pending(next(iter(self.node.watches.paths()))))


class ListingTests(SynchronousTestCase):
    """The lists of base dirs."""

    def setUp(self):
        self.ledger, self.clock = Ledger(Clock()), Clock()
        self.jobs = []

        def in_thread(job, *args, **kwargs):
            self.jobs.append(done := Deferred())
            return done.addCallback(lambda _: job(*args, **kwargs))

        context = node_context(clock=self.clock, in_thread=in_thread)
        self.listings = Listings(context, self.ledger, Subscriptions(), HeardCluster(context.me, 1, context.now_ms))
        self.made = 0

    def fill(self, count):
        for number in range(count):
            self.ledger.commit(VPath.parse(f"/app/v{number}"), State(SITE.id, (SigEntry(number, bytes(64)),)))

    def make(self):
        self.made += 1
        return BaseDirData(bytes(32), bytes(32), self.ledger.entries(BASE))

    def ask(self):
        return self.listings.answer(BASE, True, self.make)

    @shows("S12")
    def test_long_list(self):
        """Each of many who ask for a list of 20,000 entries would hold the node up for a tenth of a second."""
        self.fill(LONG_ENTRIES + 1)
        asked = [self.ask() for _ in range(50)]
        self.assertEqual((self.made, len(self.jobs)), (1, 1))
        self.assertNoResult(asked[0])
        self.jobs[0].callback(None)
        bodies = {id(self.successResultOf(one).body) for one in (*asked, self.ask())}
        self.assertEqual((len(bodies), self.made), (1, 1))
        head, shared = encode_answer(7, "GetBaseDir", self.successResultOf(self.ask()))
        self.assertEqual(head + shared, encode_response(7, "GetBaseDir", self.make()))

    @shows("S12")
    def test_news(self):
        """A list that is kept would hide what came since, or who waits for what."""
        self.fill(LONG_ENTRIES + 1)
        for number, change in enumerate((lambda: None, lambda: self.fill(1), lambda: self.clock.advance(FRESH_S))):
            change()
            self.ask()
            self.assertEqual(len(self.jobs), number + 1)
            self.jobs[number].callback(None)
        self.ledger.keep(VPath.parse("/app/v0"), (Version(1, SITE.id),))
        self.ask()
        self.assertEqual(len(self.jobs), 4, "which images are kept is no part of the hash")

    @shows("S12")
    def test_failure(self):
        """After one that failed everybody who asks would wait for ever."""
        self.fill(LONG_ENTRIES + 1)
        asked = self.ask()
        self.jobs[0].errback(DiskError("no thread"))
        self.failureResultOf(asked, DiskError)
        again = self.ask()
        self.jobs[1].callback(None)
        self.successResultOf(again)

    def test_short_list(self):
        """A list of a few images would wait for a thread."""
        self.fill(LONG_ENTRIES)
        self.assertEqual(len(self.successResultOf(self.ask()).dirs), LONG_ENTRIES)
        self.assertEqual(self.jobs, [])


class ConflictTests(SynchronousTestCase):
    """Three nodes that have one image, and a client that comes with another one for the same path."""

    def test_clients_hear_what_is_there(self):
        """The reference's client waits until its deadline, 30 minutes, until all nodes told what they have at that path."""
        cluster = Cluster(3, configs={"app": APP})
        first = Client(cluster, SITE)
        cluster.run(2.0)
        first.upload("/app/v1", [cluster.address(1)])
        cluster.run(20.0)
        self.assertEqual(cluster.holders("/app/v1", SITE), {1, 2, 3})
        first.leave()
        cluster.run(20.0)
        second = Client(cluster, Image(6, {"b": 9}))
        second.upload("/app/v1", [cluster.address(1), cluster.address(2)])
        cluster.run(10.0)
        self.assertEqual({answer.reject_reason for _, answer in second.answers}, {"already_exists"})
        self.assertEqual(second.received, {(SITE.id, "/app/v1", cluster.machine(number)) for number in (1, 2, 3)})


class KeptSignedTests(SynchronousTestCase):
    """Signatures of kept images in the answer to GetBaseDir."""

    def test_bounded(self) -> None:
        """A directory with many kept images could not be listed at all, and a node that joins would never get it."""
        signed = tuple(SigEntry(at, bytes([at]) * 64) for at in range(1, 5))
        kept = tuple(RetainedVersion(Version(5, ImageId(bytes([number]) * 32)), signed) for number in range(3))
        found = kept_signed({f"v{number}": kept for number in range(2000)} | {"old": (RetainedVersion(Version(1, ImageId(bytes(32)))),)})
        self.assertEqual(sum(len(state.signatures) for states in found.values() for state in states), MOST_KEPT_SIGNATURES)
        self.assertEqual({states[0] for states in found.values()}, {State(kept[0].image, signed)})
        self.assertNotIn("old", found)
