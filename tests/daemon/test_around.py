"""What cleanup sees of the node it belongs to."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.cleanup.service import LOOK_S
from ciruela.daemon.node import NodeActivity
from ciruela.interfaces import Address
from ciruela.model.vpath import VPath
from tests.proof import shows
from tests.scenarios.cluster import PORT, Client, Cluster, Image

BASE = VPath.parse("/app")
SITE = Image(6, {"a": 300_000})


class AroundTests(SynchronousTestCase):
    """The first of three nodes."""

    def setUp(self) -> None:
        self.cluster = Cluster(3)
        self.cluster.run(10.0)
        self.node = self.cluster.nodes[1]
        node = self.node
        self.around = NodeActivity(node.cluster, node.downloads, node.blocks, node.catalog, node.uploads)

    @shows("A54", "I9")
    def test_peers(self) -> None:
        """A node that is silent would count as heard; or one with two addresses, of which it uses one, would count as half silent."""
        self.assertEqual(self.around.peers(), {"n2": True, "n3": True})
        self.cluster.kill(3)
        self.cluster.run(LOOK_S + 1)
        self.assertEqual(self.around.peers(), {"n2": True, "n3": False})
        names = {self.cluster.address(number): f"n{number}" for number in (1, 2, 3)}
        self.node.gossip.configured(names | {Address(f"2001:db8::{number}", PORT): f"n{number}" for number in (1, 2, 3)})
        self.assertEqual(self.around.peers(), {"n2": True, "n3": False})

    @shows("A42", "F44")
    def test_clocks(self) -> None:
        """A node whose own clock is wrong could not find out from the others."""
        self.cluster.run(200.0)
        clocks = self.around.clocks_ms()
        self.assertEqual(len(clocks), 2)
        for clock_ms in clocks:
            self.assertLess(abs(clock_ms - self.cluster.now_ms()), 2000)

    @shows("F58", "I9")
    def test_in_use(self) -> None:
        """An image would be deleted while another node fetches it from here."""
        client = Client(self.cluster, SITE)
        client.upload("/app/v1", self.cluster.addresses(1))
        self.cluster.run(30.0, until=lambda: self.cluster.holders("/app/v1", SITE) == {1, 2, 3})
        client.leave()
        self.assertEqual(set(self.around.served()), {VPath.parse("/app/v1")})
        self.assertEqual(set(self.around.served()), set())
        self.cluster.run(130.0)
        self.assertEqual(set(self.around.wanted(BASE)), set())
        self.assertIn(SITE.id, self.around.indexes())
        self.cluster.hub.latency_s = 2.0
        other = Image(7, {"a": 3_000_000})
        client = Client(self.cluster, other)
        client.upload("/app/v2", self.cluster.addresses(2))
        self.cluster.run(60.0, until=lambda: self.around.wanted(BASE))
        self.assertEqual(set(self.around.wanted(BASE)), {VPath.parse("/app/v2")})
        self.assertEqual(set(self.around.wanted(VPath.parse("/logs"))), set())
        self.assertEqual(self.around.given_up(), 0)

    @shows("A51", "F58", "I9")
    def test_alone(self) -> None:
        """An upload would be judged while the image at its path is being deleted, and reported as received."""
        work: Deferred[None] = Deferred()
        done = self.around.alone(VPath.parse("/app/v1"), lambda: work)
        client = Client(self.cluster, SITE)
        client.upload("/app/v1", self.cluster.addresses(1))
        self.cluster.run(5.0)
        self.assertEqual((client.answers, self.node.ledger.pendings()), ([], []))
        work.callback(None)
        self.assertIsNone(self.successResultOf(done))
        self.cluster.run(10.0, until=lambda: client.received)
        self.assertIn(self.cluster.machine(1), client.machines("/app/v1"))
        failed = self.around.alone(VPath.parse("/app/v1"), lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        self.failureResultOf(failed, ZeroDivisionError)
        self.assertEqual(self.successResultOf(self.around.alone(VPath.parse("/app/v1"), lambda: done)), None)
