"""What the status pages show."""

import json

from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.status import NodeStatus, memory, rfc3339
from tests.scenarios.cluster import Client, Cluster, Image

SITE = Image(6, {"a": 300_000})


class StatusTests(SynchronousTestCase):
    """An operator sees what the node has, gets and knows."""

    def setUp(self):
        self.cluster = Cluster(3)
        self.cluster.run(10.0)
        self.client = Client(self.cluster, SITE)
        self.client.upload("/app/v1", self.cluster.addresses(1))
        self.cluster.run(10.0)
        self.status = NodeStatus(self.cluster.nodes[1], lambda: [("disk", "queue", "level", 3)])

    def test_all_pages_are_json(self):
        """Every page can be written as JSON."""
        for page in ("status", "downloading", "base_dirs", "configs", "deleted", "watching", "watched", "peers"):
            json.dumps(getattr(self.status, page)())
        for topic in ("downloading", "complete", "deleted", "watching", "dirs", "configs"):
            json.dumps(self.status.cluster(topic))
        self.assertIsNone(self.status.cluster("other"))

    def test_status(self):
        """Who this is, and counts that count."""
        page = self.status.status()
        self.assertEqual((page["machine_id"], page["hostname"]), (self.cluster.machine(1).hex(), "n1"))
        metrics = {(key["group"], key["metric"]): tuple(value) for key, value in page["metrics"]}
        self.assertEqual(metrics["disk.committed", "images"], ("counter", 1))
        self.assertEqual(metrics["disk.committed", "bytes"], ("counter", 300_000))
        self.assertEqual(metrics["blocks", "received_bytes"], ("counter", 300_000))
        self.assertEqual(metrics["gossip", "known_peers"], ("level", 2))
        self.assertEqual(metrics["disk", "queue"], ("level", 3))
        self.assertGreater(page["process"]["memory_rss"], 1_000_000)

    def test_lists(self):
        """The images with their signatures, the watches, the hashes."""
        page = self.status.list_dir("/app")
        self.assertEqual(page["v1"]["image"], SITE.id.hex())
        self.assertTrue(page["v1"]["signatures"][0]["signature"].startswith("ssh-ed25519 "))
        self.assertTrue(page["v1"]["committed"])
        self.assertEqual(self.status.list_dir("/nothing"), {})
        self.assertEqual(self.status.list_dir("/../etc"), {})
        self.assertEqual(self.status.watching(), ["/app/v1"])
        self.assertEqual(self.status.watched(), {"/app/v1": SITE.id.hex()})
        self.assertEqual(set(self.status.base_dirs()), {"/app"})
        self.assertEqual(self.status.configs()["logs"], {"append_only": True, "num_levels": 1, "auto_clean": False})

    def test_peers(self):
        """Each peer with its address and name, and what it takes."""
        page = self.status.peers()
        self.assertEqual(set(page), {self.cluster.machine(2).hex(), self.cluster.machine(3).hex()})
        self.assertEqual(page[self.cluster.machine(2).hex()]["configs"], ["/app", "/logs"])
        machines = sorted([self.cluster.machine(2).hex(), self.cluster.machine(3).hex()])
        self.assertEqual(self.status.cluster("dirs"), {"/app": machines, "/logs": machines})
        self.assertEqual(self.status.cluster("complete")[self.cluster.machine(2).hex()], [["/app/v1", SITE.id.hex()]])

    def test_downloading(self):
        """A download in progress, here and at others, with how far it is."""
        self.cluster.hub.latency_s = 0.2
        other = Image(7, {"a": 20_000_000})
        client = Client(self.cluster, other)
        client.upload("/app/v2", self.cluster.addresses(1))
        self.cluster.run(30.0, until=lambda: len(client.given) > 60)
        page = self.status.downloading()["/app/v2"]
        self.assertEqual((page["image_id"], page["blocks"], page["source"], page["phase"]), (other.id.hex(), 611, True, "blocks"))
        self.assertLess(page["missing_blocks"], 611)
        self.assertEqual(len(page["mask"]), 64)
        self.assertFalse(self.status.list_dir("/app")["v2"]["committed"])

    def test_health(self):
        """A node that serves says so; one that has stopped does not."""
        self.assertTrue(self.status.health()[0])
        self.cluster.nodes[1].stop()
        self.assertFalse(self.status.health()[0])
        self.cluster.nodes[1].broken = "the db directory could not be read"
        self.assertEqual(self.status.health()[1]["reason"], "the db directory could not be read")

    def test_rfc3339(self):
        """Times as the reference writes them; an absurd one is still shown."""
        self.assertEqual(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123000000Z")
        self.assertEqual(rfc3339(1_700_000_000_000), "2023-11-14T22:13:20Z")
        self.assertEqual(rfc3339(2**64), f"{2**64} ms")

    def test_memory(self):
        """The kernel's figures are bytes."""
        self.assertGreater(memory()["memory_virtual"], memory()["memory_rss"])
