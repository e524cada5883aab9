"""Daemons and clients of the reference beside ours; and a client of ours that knows the first version of the protocol only, as they do."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.loopback import OLD_CLIENT
from ciruela.index.digest import HashKind
from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode
from tests.real.mounts import needs
from tests.real.reference import missing, start_server, sync_command
from tests.real.trees import noise_file, odd_tree, small_tree

MIB = 1024 * 1024

LARGE_MIB = 128
PAUSE_S = 10.0
"""Longer than the nodes wait for a block on a fast network, shorter than they keep a connection on which nothing is heard."""

BACK_S = 12.0
"""So soon a client must be asked again that goes on. It takes half a second; 64 failures in a row would have meant 25 s."""

MOST_LINES = 1000
"""In the log of a server of the reference. It writes a line each time it cannot read an index, which were 49,000 in 20 s."""


class PausedClientTests(SynchronousTestCase):
    """A client that gives single blocks stands still for a moment: all that the nodes have asked it for is late at once."""

    def pause(self, cluster: RealCluster, command: Sequence[str]) -> None:
        """Run a client that uploads ``self.source`` and pause it once: it must be asked again soon after."""
        client = cluster.begin(command)
        cluster.until(lambda: min(node.received() for node in cluster.nodes) >= 8 * MIB, "all nodes receive", poll_s=0.02)
        client.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        before = {node.name: node.received() for node in cluster.nodes}
        self.assertLess(max(before.values()), (LARGE_MIB - 4) * MIB, "it was paused too late")
        client.send_signal(signal.SIGCONT)
        began_s = time.monotonic()
        for node in cluster.nodes:
            cluster.until(lambda node=node: node.received() > before[node.name] + MIB, f"{node.name} goes on")
        took_s = time.monotonic() - began_s
        self.assertLess(took_s, BACK_S, f"{took_s:.1f} s until all went on\n{cluster.tails()}")
        cluster.expect(cluster.finish(client), 0)
        cluster.same(self.source, "/apps/v1")

    def cluster(self) -> RealCluster:
        """Three nodes whose names every client can resolve, and a large file to send."""
        cluster = RealCluster(self, 3, down=[0, 1, 2])
        for node in cluster.nodes:
            node.options = ["--override-hostname", node.host]
        cluster.start(0, 1, 2)
        self.source = small_tree(cluster.top / "source", {"small": "small"})
        noise_file(self.source / "large", 1, LARGE_MIB * MIB)
        return cluster

    @shows("K7.5")
    def test_first_version(self) -> None:
        """Ten seconds in which a laptop sleeps would cost half a minute more."""
        cluster = self.cluster()
        where = ["--port", cluster.port, "-i", cluster.key, "--hash", HashKind.BLAKE2B.value]
        hosts = [node.host for node in cluster.nodes]
        self.pause(cluster, [*OLD_CLIENT, *map(str, where), "--append", f"{self.source}:/apps/v1", "-m", *hosts])

    @shows("K7.5")
    @needs(missing)
    def test_reference(self) -> None:
        """The same with the reference's own client."""
        cluster = self.cluster()
        self.pause(cluster, sync_command(cluster, ["--append", f"{self.source}:/apps/v1"], cluster.nodes))


class MixedSetTests(SynchronousTestCase):
    """One server of ours and two of the reference, in one set: a cluster that is moved to this program node by node."""

    def mixed(self) -> RealCluster:
        """The set. They do not know each other: their datagrams are different."""
        cluster = RealCluster(self, 3, down=[1, 2], groups=[[0], [1, 2]])
        for number in (1, 2):
            start_server(cluster, number)
        return cluster

    def lines(self, node: RealNode) -> int:
        """The length of its log."""
        return len(node.log.read_text(errors="replace").splitlines())

    @shows("K6.2")
    @needs(missing)
    def test_mixed_set(self) -> None:
        """The servers of the reference would be given an index that they cannot read, and ask for it without end."""
        cluster = self.mixed()
        source = Path(self.mktemp()).absolute()
        source.mkdir(parents=True)
        odd_tree(source)
        hosts = [node.host for node in cluster.nodes]
        done = cluster.sync("--append", f"{source}:/apps/v1", "--require", "all", "-t", "60s", "-m", *hosts)
        cluster.expect(done, 0, "DONE", "3/3 nodes")
        cluster.same(source, "/apps/v1")
        for node in cluster.nodes:
            (index,) = node.db.rglob("*.ds1")
            self.assertIn(HashKind.BLAKE2B.value, index.read_bytes()[:64].decode("ascii", "replace"))
        for node in cluster.nodes[1:]:
            self.assertLess(self.lines(node), MOST_LINES)

    @shows("K6.2")
    @needs(missing)
    def test_unreadable(self) -> None:
        """A hash that the user insists on would fill the disks of the servers of the reference with log."""
        cluster = self.mixed()
        source = small_tree(Path(self.mktemp()).absolute(), {"a": "1"})
        hosts = [node.host for node in cluster.nodes]
        done = cluster.sync("--hash", "blake3/256", "--append", f"{source}:/apps/v1", "--require", "all", "-t", "20s", "-m", *hosts)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        cluster.same(source, "/apps/v1", 0)
        for node in cluster.nodes[1:]:
            self.assertFalse(node.path("/apps/v1").exists())
            self.assertLess(self.lines(node), MOST_LINES)
