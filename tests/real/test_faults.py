"""Daemons and clients are killed at the worst moments; nothing is lost, and what is interrupted goes on."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.bitfield import FULL
from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode
from tests.real.trees import noise_file, odd_tree, small_tree

MIB = 1024 * 1024
BLOCK = 32 * 1024


class KillTests(SynchronousTestCase):
    """SIGKILL, and what is there afterwards."""

    def fresh(self) -> Path:
        """A new directory."""
        top = Path(self.mktemp()).absolute()
        top.mkdir(parents=True)
        return top

    def large(self, seed: int, size: int) -> Path:
        """A directory with one large file and a small one."""
        top = small_tree(self.fresh(), {"small": "small"})
        noise_file(top / "large", seed, size)
        return top

    def freeze_within(self, cluster: RealCluster, client: subprocess.Popen[str], node: RealNode, least: int) -> int:
        """Stop the client once ``least`` bytes of the large file are on the disk of ``node``. Gives the number of blocks it still lacks.

        Looks at the disk: by the time a busy node has answered a request, it may be done.
        """

        def written() -> bool:
            found = list((node.data / "apps").glob(".ciruela~*/large"))
            return bool(found) and found[0].stat().st_blocks * 512 >= least

        cluster.until(written, f"{node.name} fetches", poll_s=0.005)
        client.send_signal(signal.SIGSTOP)
        missing = int(node.get("/downloading/")["/apps/v1"]["missing_blocks"])
        self.assertGreater(missing, 0)
        return missing

    def has_all(self, node: RealNode, vpaths: list[str]) -> bool:
        """Whether an image is visible at each of the paths."""
        return all(node.has(vpath) for vpath in vpaths)

    @shows("A57", "F40", "I11", "G11")
    def test_node_killed_while_it_downloads(self) -> None:
        """One broken server would hold up all others, its absence would go unnoticed, or it would begin anew after each crash."""
        size = 64 * MIB
        source = self.large(1, size)
        cluster = RealCluster(self, 4)
        victim = cluster.nodes[3]
        client = cluster.begin_sync("--early-timeout", "3s", "--append", f"{source}:/apps/v1", "127.0.0.1")
        missing = self.freeze_within(cluster, client, victim, 8 * MIB)
        cluster.kill(3)
        client.send_signal(signal.SIGCONT)
        said = cluster.expect(cluster.finish(client), 0, "/apps/v1  EARLY", "3/4 nodes")
        self.assertIn("missing: node4", said.split("EARLY")[1])
        cluster.same(source, "/apps/v1", 0, 1, 2)
        self.assertFalse(victim.path("/apps/v1").exists(), "an unfinished image is visible")

        late = small_tree(self.fresh(), {"late": "late"})
        strict = cluster.sync("--early-fraction", "1", "--early-timeout", "0s", "-t", "5s", "--append", f"{late}:/apps/v2", "127.0.0.1")
        cluster.expect(strict, 3, "/apps/v2  FAILED", "3/4 nodes", "missing: node4", "out of time")

        cluster.start(3)
        cluster.until(lambda: victim.has("/apps/v1") and victim.has("/apps/v2"), "the killed node catches up")
        cluster.same(source, "/apps/v1")
        cluster.same(late, "/apps/v2")
        self.assertLessEqual(victim.received(), missing * BLOCK + MIB, "blocks that were there were fetched again")

    @shows("A55", "F53")
    def test_client_killed_when_the_nodes_have_all(self) -> None:
        """A closed laptop would leave servers with half an image, although together they have all of it."""
        source = self.large(2, 48 * MIB)
        cluster = RealCluster(self, 4)
        *giving, slow = cluster.nodes
        cluster.signal(3, signal.SIGSTOP)  # the client waits for this node, so it cannot be done before it is killed
        client = cluster.begin_sync("--early-fraction", "1", "--append", f"{source}:/apps/v1", "127.0.0.1")

        def union() -> bool:
            together = 0
            for node in giving:
                if node.has("/apps/v1"):
                    return True
                running = node.get("/downloading/").get("/apps/v1")
                together |= int(running["mask"], 16) if running else 0
            return together == FULL

        cluster.until(union, "the nodes have all blocks together")
        client.kill()
        self.assertEqual(client.wait(), -signal.SIGKILL)
        cluster.signal(3, signal.SIGCONT)
        self.assertFalse(slow.path("/apps/v1").exists())
        for node in cluster.nodes:
            cluster.until(partial(node.has, "/apps/v1"), f"{node.name} finishes without the client")
        cluster.same(source, "/apps/v1")

    @shows("I2", "I11")
    def test_all_nodes_killed_after_done(self) -> None:
        """A power cut right after DONE would lose what was promised, or cost all traffic again."""
        source = self.fresh()
        odd_tree(source)
        noise_file(source / "large", 3, 24 * MIB)
        cluster = RealCluster(self, 3)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "3/3 nodes")
        for number in range(3):
            cluster.kill(number)
        cluster.same(source, "/apps/v1")
        cluster.start(0, 1, 2)
        image = cluster.nodes[0].has("/apps/v1")
        self.assertIsNotNone(image)
        again = cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.2")
        cluster.expect(again, 0, "DONE", "3/3 nodes", "sent 0 B")
        cluster.same(source, "/apps/v1")
        for node in cluster.nodes:
            self.assertEqual(node.has("/apps/v1"), image)
            self.assertEqual(node.received(), 0, f"{node.name} fetched something again")

    @shows("A54", "I5")
    def test_absent_nodes_catch_up(self) -> None:
        """A server that was off, or is new, would serve old directories for good."""
        first, second, third = (small_tree(self.fresh(), {"version": str(number), "same": "same"}) for number in range(3))
        noise_file(third / "large", 4, 4 * MIB)
        cluster = RealCluster(self, 4, down=[3])
        cluster.expect(cluster.sync("--early-timeout", "1s", "--append", f"{first}:/apps/v1", "127.0.0.1"), 0, "EARLY", "3/4 nodes")
        cluster.stop(2)
        for number, source in ((2, second), (3, third)):
            done = cluster.sync(
                "--early-timeout",
                "1s",
                "--early-hosts",
                "2",
                "--early-fraction",
                "0.5",
                "--append",
                f"{source}:/apps/v{number}",
                "127.0.0.1",
            )
            cluster.expect(done, 0, "2/")
        cluster.start(2, 3)
        wanted = {"/apps/v1": first, "/apps/v2": second, "/apps/v3": third}
        for node in cluster.nodes[2:]:
            cluster.until(partial(self.has_all, node, list(wanted)), f"{node.name} catches up")
        for vpath, source in wanted.items():
            cluster.same(source, vpath)

    @shows("A45", "F39")
    def test_damaged_state(self) -> None:
        """A bad sector under one small file would keep a server from starting, or take a directory out of its hands for good."""
        source = small_tree(self.fresh(), {"a": "1"})
        cluster = RealCluster(self, 2, expect_errors=["v1.state is bad"])
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        node = cluster.nodes[1]
        cluster.stop(1)
        (state,) = node.db.rglob("v1.state")
        state.write_bytes(b"\xff" + state.read_bytes()[1:])
        cluster.start(1)
        image = cluster.nodes[0].has("/apps/v1")
        cluster.until(lambda: "v1" in node.get("/list-dir/apps") and node.has("/apps/v1") == image, "the node recovers what its state said")
        cluster.same(source, "/apps/v1")
