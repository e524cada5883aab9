"""Every part of a daemon that goes on by itself, with a fault of its own put into it: it goes on, or ends what it cannot drive."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.acquaintance import MOST_S, WarmUpBarrier
from ciruela.download.fetch_blocks import BlockFetch, FetchContext
from ciruela.download.fetch_index import IndexFetch
from ciruela.download.plan import BlockPlan
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.sources import Totals
from ciruela.interfaces import Address
from ciruela.membership.cluster import Cluster as Heard
from ciruela.model.config import DirConfig
from ciruela.model.errors import LinkLost
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import Accepted, Command, Origin, Progress, UploadRequest
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.net.connection import ClientLink
from ciruela.net.discovery.files import PeersFile
from ciruela.net.discovery.spec import Means
from ciruela.net.outgoing import Pool
from ciruela.net.peers import LOOK_S, PeerList
from ciruela.proto.messages import BaseDirData, GetIndex
from ciruela.reconcile.service import Reconciler
from ciruela.runtime import PeriodicTask
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.service import Uploads
from tests.doubles.context import node_context
from tests.download.test_fetch_blocks import INDEX, Disk
from tests.net.bench import NODE, Bench
from tests.net.test_outgoing import BLOCK
from tests.proof import shows
from tests.scenarios.cluster import APP, Client, Cluster, Image

V1 = VPath.parse("/app/v1")
IMAGE = ImageId(bytes(32))
NOW_MS = 1_700_000_000_000


class OnPurposeError(Exception):
    """A fault of the program."""


def raising(*_args: object, **_fields: object) -> Any:
    """What has a fault."""
    raise OnPurposeError


class Supervised(SynchronousTestCase):
    def faults(self) -> int:
        """How often the fault was logged; each has to be, or nobody would ever mend it."""
        return len(self.flushLoggedErrors(OnPurposeError))


class NetTests(Supervised):
    """Connections."""

    @shows("I8")
    def test_pulse(self) -> None:
        """A connection without a pulse would stay for ever, and a reference daemon would close it: it is closed, and made anew."""
        bench = Bench()
        link = bench.link()
        self.patch(link._patience, "beat", raising)
        bench.advance(2)
        self.assertFalse(link.alive)
        self.assertEqual(self.faults(), 1)
        self.assertEqual(bench.client.lost_links, [link])

    @shows("I8")
    def test_new_connection(self) -> None:
        """Requests that wait for a connection fail, when it cannot be taken in; they must not wait for ever."""
        bench = Bench()
        pool = Pool(bench.clock)
        answer = pool.ask(NODE, BLOCK)
        waits = pool.ask(NODE, BLOCK)
        self.patch(ClientLink, "ask", raising)
        bench.accept()
        bench.advance(6)
        for one in (answer, waits):
            self.failureResultOf(one, LinkLost)
        self.assertGreater(self.faults(), 0)

    @shows("I8", "F56")
    def test_peers(self) -> None:
        """Who cannot deal with a change of the peers must not keep the list from being read again."""
        path, clock, seen = Path(self.mktemp()), Clock(), []
        path.write_text("n1\n")

        def changed(peers: object) -> None:
            seen.append(dict(peers))  # type: ignore[call-overload]
            raise OnPurposeError

        def resolve(name: str, port: int) -> Deferred[list[Address]]:
            if name == "n2":
                raise OnPurposeError("which is told as the reason why the name has no address")
            return succeed([Address("10.0.0.1", port)])

        means = Means(clock, clock, random.Random(1), maybeDeferred, resolve, 1)
        peers = PeerList([PeersFile(path, clock, means.rng, maybeDeferred)], means, changed)
        self.successResultOf(peers.start())
        self.addCleanup(peers.stop)
        self.assertEqual(self.faults(), 1)
        path.write_text("n2\nn1\n# more\n")
        clock.pump([LOOK_S / 2] * 4)
        self.assertEqual(peers.peers, {Address("10.0.0.1", 1): "n1"})
        path.write_text("# nobody\n")
        clock.pump([LOOK_S / 2] * 4)
        self.assertEqual(seen[-1], {})
        self.assertEqual(self.faults(), 1)


class DownloadTests(Supervised):
    """A download that nobody drives would hold its path for ever."""

    @shows("I8")
    def test_blocks(self) -> None:
        """It fails, and can be begun again."""
        plan = BlockPlan(INDEX, (), random.Random(1))
        candidates: list[Any] = [[]]
        fetch = BlockFetch(
            "/app/v1",
            INDEX,
            plan,
            Disk(),
            lambda: candidates[0] if candidates else raising(),
            lambda: None,
            FetchContext(clock := Clock(), Totals(), BlockRelayCache(clock)),
        )
        done = fetch.run()
        clock.advance(1.0)
        self.assertNoResult(done)
        candidates.clear()
        clock.advance(1.0)
        self.failureResultOf(done, OnPurposeError)
        self.assertEqual((self.faults(), clock.getDelayedCalls()), (1, []))

    @shows("I8")
    def test_index(self) -> None:
        """The same for the index."""
        candidates: list[Any] = [[]]
        clock = Clock()
        fetch = IndexFetch(
            GetIndex(IMAGE, "/app/v1"),
            lambda: candidates[0] if candidates else raising(),
            lambda *_: succeed(INDEX),
            clock,
            random.Random(1),
            succeed,
        )
        done = fetch.run()
        candidates.clear()
        clock.advance(1.0)
        self.failureResultOf(done, OnPurposeError)
        self.assertEqual((self.faults(), clock.getDelayedCalls()), (1, []))

    @shows("I8")
    def test_end(self) -> None:
        """Who cannot be told that a download was given up does not keep the path from being free again."""
        cluster = Cluster(1, configs={"app": APP})
        node = cluster.nodes[1]
        cluster.disks[1].free_bytes = 1000
        node.gossip.news_download = raising
        image = Image(9, {"a": 100_000})
        client = Client(cluster, image)
        client.upload("/app/v1", [cluster.address(1)])
        cluster.run(5.0)
        self.assertGreater(self.faults(), 0)
        self.assertEqual((node.downloads.running(), node.ledger.pendings()), ([], []))


class DaemonTests(Supervised):
    """What wires the rooms together."""

    @shows("I8")
    def test_acquaintance(self) -> None:
        """Clients get their answers even if nobody can say who else is there."""
        clock = Clock()
        peers = [lambda: [_Silent()]]
        heard = Heard(MachineId(bytes(16)), 1, lambda: 0)
        self.patch(heard, "peers", lambda: peers[0]())
        acquaintance = WarmUpBarrier(clock, heard)
        acquaintance.begin()
        acquaintance.listed()
        waiting = acquaintance.wait()
        clock.advance(0.5)
        self.assertNoResult(waiting)
        peers[0] = raising
        clock.advance(0.5)
        self.successResultOf(waiting)
        self.assertEqual(self.faults(), 1)
        peers[0] = lambda: [_Silent()]
        again = acquaintance.wait()
        clock.pump([0.1] * int(MOST_S * 10))
        self.successResultOf(again)

    @shows("I8")
    def test_gossip(self) -> None:
        """A node whose gossip fails once goes on to speak."""
        before = PeriodicTask.failures
        cluster = Cluster(2)
        cluster.run(5.0)
        gossip = cluster.nodes[1].gossip
        refresh = gossip._composer.refresh
        gossip._composer.refresh = raising
        gossip.news_base(VPath.parse("/app"))
        cluster.run(3.0)
        self.assertGreater(self.faults(), 2)
        self.assertGreater(PeriodicTask.failures - before, 2)
        gossip._composer.refresh = refresh
        sent = gossip.counts.sent
        gossip.news_base(VPath.parse("/app"))
        cluster.run(0.1)
        self.assertGreater(gossip.counts.sent, sent)

    @shows("I8")
    def test_uploads(self) -> None:
        """An error while an order is judged is the answer to that order; the next one for the same path is judged."""
        world = _World()
        ledger = Ledger(Clock())
        configs = {"app": DirConfig("app", "/srv/app", append_only=False, num_levels=1)}
        context = node_context(configs=configs, disk=world, authority=world, now_ms=lambda: NOW_MS)
        uploads = Uploads(context, ledger, world, lambda *_: None)
        order = UploadRequest(Command.APPEND, V1, IMAGE, None, (SigEntry(NOW_MS, bytes(64)),), Origin.CLIENT)
        self.failureResultOf(uploads.order(order), OnPurposeError)
        world.good = True
        self.assertEqual(self.successResultOf(uploads.order(order)).progress, Progress.NEW)
        self.assertEqual(uploads._turns, {})

    @shows("I8")
    def test_reconcile(self) -> None:
        """An error in the middle of catching up costs that base dir a round, not the others, and not for good."""
        clock = Clock()
        world = _World()
        reconciler = Reconciler(
            node_context(configs={"app": DirConfig("app", "/a", False, 1)}, wire=world, clock=clock),
            Ledger(clock),
            world,
            world,
            lambda *_: None,
            lambda *_: None,
            lambda _: False,
        )
        address = Address("10.0.0.2", 1)
        reconciler.differs(VPath.parse("/app"), bytes(32), address)
        reconciler.differs(VPath.parse("/app"), b"\1" * 32, address)
        self.assertEqual(world.asked, 1)
        world.broken_wire = True
        world.answer.callback(BaseDirData(bytes(32), bytes(32), {"v1": State(IMAGE, (SigEntry(1, bytes(64)),))}, {}, ()))
        self.assertGreater(self.faults(), 0)
        world.broken_wire = False
        reconciler.differs(VPath.parse("/app"), b"\2" * 32, address)
        self.assertEqual(world.asked, 2)


class _Silent:
    own = False
    keys = ()


class _World:
    """Disk, keys, wire and downloads, which fail at first."""

    def __init__(self) -> None:
        self.good = False
        self.broken_wire = False
        self.asked = 0
        self.answer: Deferred[Any] = Deferred()

    def verified(self, config: object, vpath: object, image: object, entries: Any) -> Any:
        return succeed(dict.fromkeys(entries, "a key")) if self.good else raising()

    def ask(self, address: object, request: object) -> Any:
        if self.broken_wire:
            raising()
        self.asked += 1
        self.answer = Deferred()
        return self.answer

    def order(self, order: Any, hints: object) -> Any:
        return succeed(Accepted(Progress.ALREADY_DONE, State(order.image, order.signatures)))

    def remove(self, removal: object) -> Any:
        raising()

    def write_pending(self, pending: object) -> Any:
        return succeed(None)

    def start(self, pending: object, hints: object, content=None) -> None:
        pass

    def stop(self, vpath: object, reason: object) -> None:
        pass

    def stalled(self, vpath: object) -> bool:
        return False

    def settled(self, vpath: object) -> None:
        return None
