"""Images and records that real daemons lost: they come back, or stand aside."""

from __future__ import annotations

import shutil
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster
from tests.real.trees import small_tree


class LostTests(SynchronousTestCase):
    """Three daemons, an ``rm -rf`` and a flipped bit."""

    @shows("K3.1", "K3.3", "K3.5", "I7")
    def test_lost(self) -> None:
        """Nobody would notice that an image is gone until the next restart; a flipped bit would keep all new versions out for ever."""
        expected = [
            "is gone from the disk, it is fetched again",
            "its checksum is wrong",
            "something stood there of which nothing is recorded",
        ]
        cluster = RealCluster(self, 3, {"apps": APPS, "cfg": CFG}, expect_errors=expected)
        victim = cluster.nodes[2]
        top = Path(self.mktemp()).absolute()
        app, old, new = (small_tree(top / name, {"file": name, "sub/file": name}) for name in ("app", "old", "new"))
        cluster.expect(
            cluster.sync("--append", f"{app}:/apps/v1", "--replace", f"{old}:/cfg/main", "--require", "all", "127.0.0.1"), 0, "DONE"
        )
        inode = victim.path("/apps/v1").stat().st_ino
        shutil.rmtree(victim.path("/apps/v1"))
        image = victim.get("/api/v1/images/apps/v1")
        self.assertIsNone(image["committed"], "the page says what is not there")
        cluster.until(lambda: victim.get("/api/v1/images/apps/v1")["committed"], "the image is fetched again")
        cluster.same(app, "/apps/v1", 2)
        self.assertTrue(victim.path("/apps/v1").stat().st_ino != inode or image["pending"])

        cluster.stop(2)
        state = victim.db / "signatures" / "cfg" / "main.state"
        data = bytearray(state.read_bytes())
        at = data.index(b"signatures") + len(b"signatures") + 3 + 2  # the second byte of the time
        data[at] ^= 0x20
        state.write_bytes(data)
        client = cluster.begin_sync("--replace", f"{new}:/cfg/main", "127.0.0.1")
        cluster.until(lambda: (cluster.nodes[1].path("/cfg/main") / "file").read_text() == "new", "the others have the new version")
        cluster.start(2)
        cluster.expect(cluster.finish(client), 0, "3/3 nodes")
        cluster.until(lambda: (victim.path("/cfg/main") / "file").read_text() == "new", "the new version gets there")
        cluster.same(new, "/cfg/main", 0, 1, 2)
        (aside,) = victim.path("/cfg/main").parent.glob(".ciruela-aside~main~*")
        self.assertEqual((aside / "file").read_text(), "old")
        (told,) = victim.get("/api/v1/status")["disk"]["set_aside"]
        self.assertEqual((told["path"], told["name"]), ("/cfg/main", aside.name))
        self.assertEqual(victim.metric("disk", "set_aside"), 1)
