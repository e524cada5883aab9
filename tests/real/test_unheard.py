"""Real daemons behind a real firewall that drops UDP, and on a dual stack socket."""

from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, RealCluster, RealNode
from tests.real.mounts import needs
from tests.real.netns import Network, forbidden

MOST_S = 60.0
"""So long a cluster may take to agree without any UDP; a few seconds is what it takes."""


class FirewallTests(SynchronousTestCase):
    """The commonest mistake with firewalls: TCP is open, UDP is not."""

    def spread(self, cluster: RealCluster, version: str, entry: RealNode) -> None:
        """An upload through one node is on all of them, and the client hears of all."""
        tree = cluster.top / version
        tree.mkdir()
        (tree / "file").write_text(version)
        began_s = time.monotonic()
        done = cluster.sync("--append", f"{tree}:/apps/{version}", "--require", "all", "-t", "60s", entry.host)
        self.assertEqual(done.returncode, 0, f"{done.stdout}{done.stderr}\n{cluster.tails()}")
        self.assertLess(time.monotonic() - began_s, MOST_S)
        missing = [node.name for node in cluster.nodes if not node.path(f"/apps/{version}").is_dir()]
        self.assertEqual(missing, [], done.stdout)
        self.assertIn("5/5", done.stdout)

    @shows("K4", "K1.2")
    @needs(forbidden)
    def test_udp_closed(self) -> None:
        """All UDP dropped, then the UDP to one node, then that of one node: each time only a part of the cluster would get the image."""
        network = Network(self)
        network.drop("meta l4proto udp")
        cluster = RealCluster(self, 5, {"apps": APPS})
        first, third = cluster.nodes[0], cluster.nodes[2]
        self.spread(cluster, "v1", first)
        said = "is configured, not heard by UDP for"
        cluster.until(lambda: first.log.read_text().count(said) == 4, "the log names the four peers that are not heard")
        rows = first.get("/api/v1/peers")["peers"]
        self.assertEqual([(row["reached"], row["udp_heard_s"], row["configured"]) for row in rows], [("tcp", None, True)] * 4)
        self.assertIn(f"open UDP port {cluster.port} here", first.log.read_text())
        network.drop(f"ip daddr {third.host} meta l4proto udp")
        self.spread(cluster, "v2", first)
        network.drop(f"ip saddr {third.host} meta l4proto udp")
        self.spread(cluster, "v3", first)
        self.assertEqual(first.log.read_text().count(said), 4, "said again")


class DualStackTests(SynchronousTestCase):
    """A node that listens on all addresses of both families."""

    @shows("K1.3")
    def test_ipv6_wildcard(self) -> None:
        """A node on ``::`` whose peers are named by IPv4 would be deaf and mute."""
        cluster = RealCluster(self, 3, {"apps": APPS}, down=[0, 1, 2])
        first, *others = cluster.nodes
        first.port = cluster.port + 1
        first.options = ["--host", "::", "--port", str(first.port)]
        for node in others:
            with open(node.config / "peers.txt", "a") as peers:
                peers.write(f"[::ffff:{first.host}]:{first.port}\n")
        (first.config / "peers.txt").write_text("".join(f"{node.host}:{node.port}\n" for node in others))
        cluster.start(0, 1, 2)
        for node, count in ((first, 2), (others[0], 2)):
            cluster.until(
                lambda node=node, count=count: [row["reached"] for row in node.get("/api/v1/peers")["peers"]].count("udp") == count,
                f"{node.name} hears the others by UDP",
            )
        self.assertNotIn("could not be sent", first.log.read_text())
