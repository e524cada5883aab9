"""A daemon is killed twice in one download, and fetches almost nothing again."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode
from tests.real.trees import noise_file, small_tree

MIB = 1024 * 1024
BLOCK = 32 * 1024
SIZE = 32 * MIB
FILES = 4
TOTAL = SIZE // BLOCK + 1
"""Blocks of the image: those of the large files, and one of the small file."""

AGAIN = 0.05
"""Share of the blocks that were there that may be fetched again (threats G11)."""


class ResumeTests(SynchronousTestCase):
    """SIGKILL at about a third and about four fifths of a download."""

    def staged(self, node: RealNode) -> int:
        """Bytes on the disk below the staging directory. A busy node that is asked instead may be done before it answers."""
        return sum(path.stat().st_blocks * 512 for path in (node.data / "apps").glob(".ciruela~*/*"))

    def killed_at(self, cluster: RealCluster, client: subprocess.Popen[str], share: float) -> int:
        """Hold the client back once ``share`` of the image is there, and kill the daemon. Gives the number of blocks that it has then."""
        (node,) = cluster.nodes
        cluster.until(lambda: self.staged(node) >= share * SIZE, f"{share:.0%} are there", poll_s=0.002)
        client.send_signal(signal.SIGSTOP)
        missing = int(node.get("/downloading/")["/apps/v1"]["missing_blocks"])
        self.assertGreater(missing, 0, "the download was too fast to be killed in its middle")
        cluster.kill(0)
        self.assertFalse(node.path("/apps/v1").exists(), "half an image is visible")
        return TOTAL - missing

    def kept(self, node: RealNode) -> list[tuple[int, int, int]]:
        """What its log says of each beginning of the download: all blocks, those that were kept, those that are to be fetched."""
        found = re.findall(r"/apps/v1: (\d+) blocks, (\d+) kept, \d+ in \d+ files reused, (\d+) to fetch", node.log.read_text())
        return [(int(total), int(kept), int(wanted)) for total, kept, wanted in found]

    @shows("A57", "F40", "G11", "I5")
    def test_killed_twice(self) -> None:
        """A restart in the middle of a large image would cost its whole traffic again, and one that crashes often would never finish."""
        source = small_tree(Path(self.mktemp()).absolute(), {"small": "small"})
        for number in range(FILES):
            noise_file(source / f"large{number}", number, SIZE // FILES)
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        client = cluster.begin_sync("-t", "100s", "--append", f"{source}:/apps/v1", "127.0.0.1")
        had = []
        for turn, share in enumerate((0.3, 0.8), 1):
            had.append(self.killed_at(cluster, client, share))
            cluster.start(0)
            cluster.until(lambda turn=turn: len(self.kept(node)) > turn, "the download goes on")  # type: ignore[misc]
            client.send_signal(signal.SIGCONT)
        cluster.expect(cluster.finish(client), 0, "DONE", "1/1 nodes")
        cluster.same(source, "/apps/v1")

        first, *later = self.kept(node)
        self.assertEqual(first, (TOTAL, 0, TOTAL))
        self.assertEqual(len(later), len(had), self.kept(node))
        for before, (total, kept, wanted) in zip(had, later, strict=True):
            self.assertEqual((total, kept + wanted), (TOTAL, TOTAL))
            self.assertGreaterEqual(kept, (1 - AGAIN) * before, f"{before} blocks were there, {kept} were kept")
        self.assertGreater(had[0], 0.25 * TOTAL)
        self.assertGreater(had[1], 0.75 * TOTAL)
        self.assertLessEqual(node.received(), later[-1][2] * BLOCK, "blocks that were there were fetched again")
        self.assertEqual([path.name for path in (node.data / "apps").iterdir()], ["v1"])
