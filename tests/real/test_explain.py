"""``ciruela explain-cleanup`` with real daemons."""

from __future__ import annotations

import json

from tests.real.daemons import RealCluster
from tests.real.test_removal import Commands

CLEANED = "append-only: true\nnum-levels: 2\nauto-clean: true\nkeep-min-directories: 1\nkeep-max-directories: 1\n"
OTHER = CLEANED.replace("max-directories: 1", "max-directories: 3")


class ExplainTests(Commands):
    """An operator who wonders whether a release will be there tomorrow."""

    def test_explained(self) -> None:
        """Nobody could tell in advance what a daemon will remove, or that the nodes do not agree."""
        cluster = RealCluster(self, 3, [{"apps": CLEANED}, {"apps": CLEANED}, {"apps": OTHER}], measured=True)
        (cluster.nodes[0].data / "current").symlink_to(cluster.nodes[0].data / "apps/web/v1")
        config = cluster.nodes[0].config / "configs/apps.yaml"
        config.write_text(config.read_text() + f"protect: [{cluster.nodes[0].data}/current]\n")
        cluster.stop(0)
        cluster.start(0)
        for number in (1, 2):
            source = self.tree(file=str(number))
            cluster.expect(cluster.sync("--append", f"{source}:/apps/web/v{number}", "127.0.0.1"), 0, "3/3 nodes")
        done = self.ciruela(cluster, "explain-cleanup", "127.0.0.1:/apps/web", key=self.no_key)
        said = cluster.expect(done, 0, "NAME", "RULE", "the nodes have different settings", "node1: nothing is removed at present:")
        self.assertIn("starting", said)
        rows = [line.split() for line in said.splitlines() if line.startswith(("v1 ", "v2 "))]
        image = cluster.nodes[0].has("/apps/web/v1")
        assert image is not None
        self.assertEqual([row[0] for row in rows], ["v2", "v1", "v1", "v1"])
        whys = {" ".join(row[3:]) for row in rows if row[0] == "v1" and row[1] == image[:12]}
        self.assertTrue(any(why.startswith("keeps a protected link leads to it on node1") for why in whys), whys)
        self.assertTrue(any(why.startswith("drops beyond keep-max-directories 20") and "on node2" in why for why in whys), whys)
        self.assertTrue(any(why.startswith("keeps signed within keep-recent 20") and "on node3" in why for why in whys), whys)
        found = json.loads(self.ciruela(cluster, "explain-cleanup", "--json", "127.0.0.2:/apps/web", key=self.no_key).stdout)
        self.assertEqual(len(found["nodes"]), 3)
        self.assertEqual({page["base_dir"] for page in found["nodes"].values()}, {"/apps/web"})

    def test_mistakes(self) -> None:
        """A typing error would look like a directory in which nothing is."""
        cluster = RealCluster(self, 2, {"apps": CLEANED})
        none = self.ciruela(cluster, "explain-cleanup", "127.0.0.1:/apps", key=self.no_key)
        cluster.expect(none, 5, "no node has a directory /apps with images in it")
        cluster.expect(self.ciruela(cluster, "explain-cleanup", "127.0.0.1", key=self.no_key), 2, "is not CLUSTER:/PATH")
        cluster.expect(self.ciruela(cluster, "explain-cleanup", "127.0.0.9:/apps/web", key=self.no_key), 3, "127.0.0.9")
