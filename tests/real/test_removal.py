"""``ciruela remove`` with real daemons."""

from __future__ import annotations

import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.real.daemons import APPS, CFG, RealCluster, make_key, program
from tests.real.trees import small_tree


class Commands(SynchronousTestCase):
    """A cluster, and programs that are not ``ciruela-sync``."""

    no_key = Path("no key")

    def tree(self, **files: str) -> Path:
        """A small directory."""
        return small_tree(Path(self.mktemp()).absolute(), files)

    def ciruela(self, cluster: RealCluster, command: str, *args: object, key: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``ciruela COMMAND`` with the key of the cluster (``key``, or none at all) and its port."""
        keys = () if key is self.no_key else ("-i", str(key or cluster.key))
        return cluster.run([program("ciruela"), "--port", str(cluster.port), command, *keys, *map(str, args)])


class RemovalTests(Commands):
    """What an operator does with an image that should not be there."""

    def test_remove(self) -> None:
        """A secret that was uploaded by mistake would stay somewhere, or come back with a node that was down."""
        source, other = self.tree(secret="secret"), self.tree(good="good")
        cluster = RealCluster(self, 3, {"apps": APPS})
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "--append", f"{other}:/apps/v2", "127.0.0.1"), 0, "3/3 nodes")
        image = cluster.nodes[0].has("/apps/v1")
        cluster.kill(2)
        done = self.ciruela(cluster, "remove", "--yes", "-e", "1s", "--early-hosts", "1", "--early-fraction", "0.5", "127.0.0.1:/apps/v1")
        said = cluster.expect(done, 0, f"Removing /apps/v1: {image}, signed 20", "127.0.0.1 /apps/v1", "2/3 nodes")
        self.assertNotIn("have it", said)
        cluster.start(2)
        for node in cluster.nodes:
            cluster.until(lambda node=node: not node.path("/apps/v1").exists(), f"{node.name} removes it")  # type: ignore[misc]
        cluster.same(other, "/apps/v2")
        cluster.expect(self.ciruela(cluster, "remove", "127.0.0.2:/apps/v1"), 0, "127.0.0.2 /apps/v1  nothing is there")
        again = self.ciruela(cluster, "remove", "--yes", "--image", image, "127.0.0.2:/apps/v1")
        cluster.expect(again, 0, "none of the nodes", "DONE", "3/3 nodes")
        cluster.stop(0)
        cluster.start(0)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "3/3 nodes")
        cluster.same(source, "/apps/v1")

    def test_refused(self) -> None:
        """A mistake in a command that deletes would delete something, or would not be told."""
        source, other = self.tree(a="1"), self.tree(b="2")
        cluster = RealCluster(self, 2, {"cfg": CFG})
        cluster.expect(cluster.sync("--replace", f"{source}:/cfg/main", "127.0.0.1"), 0, "2/2 nodes")
        first = cluster.nodes[0].has("/cfg/main")
        stranger = cluster.top / "stranger"
        make_key(stranger)
        done = self.ciruela(cluster, "remove", "--yes", "--image", first, "127.0.0.1:/cfg/main", key=stranger)
        cluster.expect(done, 5, "signature_mismatch: none of your keys may upload there")
        cluster.expect(self.ciruela(cluster, "remove", "127.0.0.1:/cfg/main"), 2, "there is no terminal to ask on: give --yes")
        cluster.expect(self.ciruela(cluster, "remove", "127.0.0.1"), 2, "'127.0.0.1' is not CLUSTER:/PATH")
        cluster.expect(self.ciruela(cluster, "remove", "--image", "abc", "127.0.0.1:/cfg/main"), 2, "an image id is 64 hexadecimal digits")
        cluster.expect(self.ciruela(cluster, "remove", "--yes", "127.0.0.1:/nothing/main"), 3, "No such config")
        cluster.expect(self.ciruela(cluster, "remove", "--yes", "127.0.0.9:/cfg/main"), 3, "127.0.0.9")
        cluster.same(source, "/cfg/main")
        cluster.expect(cluster.sync("--replace", f"{other}:/cfg/main", "127.0.0.1"), 0, "2/2 nodes")
        done = self.ciruela(cluster, "remove", "--yes", "--image", first, "127.0.0.1:/cfg/main")
        cluster.expect(done, 6, "replace_doesnt_match_index")
        cluster.same(other, "/cfg/main")
