"""Bytes that change on the disk of one of three daemons: never given to anybody, and mended."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.proto.messages import BlockData, BlockHint, GetBlock
from tests.proof import shows
from tests.real.asking import ask
from tests.real.daemons import RealCluster
from tests.real.trees import noise_file, small_tree

MIB = 1024 * 1024


def flip(path: Path, every: int) -> int:
    """Change one bit in each stretch of ``every`` bytes. Gives how many."""
    before = path.stat()
    with path.open("r+b") as file:
        places = range(0, before.st_size, every)
        for at in places:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return len(places)


class HealTests(SynchronousTestCase):
    """Real disks, real daemons, real damage."""

    @shows("A10", "F51")
    def test_flipped_bits(self) -> None:
        """A disk that forgets bits would spread them to every new server, and nobody would notice on its own one."""
        source = small_tree(Path(self.mktemp()).absolute(), {"small": "small", "sub/other": "other"})
        noise_file(source / "large", 7, 16 * MIB)
        noise_file(source / "good", 8, 8 * MIB)
        damaged = ["is missing or wrong, it is looked through", "is damaged, it is mended"]
        cluster = RealCluster(self, 3, down=[2], expect_errors=damaged)
        victim, newcomer = cluster.nodes[0], cluster.nodes[2]
        cluster.expect(cluster.sync("--early-timeout", "1s", "--append", f"{source}:/apps/v1", "127.0.0.1"), 4, "PARTIAL", "2/3 nodes")
        cluster.same(source, "/apps/v1", 0, 1)
        good = victim.path("/apps/v1") / "good"
        inode, received = good.stat().st_ino, victim.received()
        bad = flip(victim.path("/apps/v1") / "large", 100 * 32 * 1024)
        (victim.path("/apps/v1") / "small").write_bytes(b"Small")
        self.assertGreater(bad, 4)

        cluster.start(2)
        cluster.until(lambda: newcomer.has("/apps/v1"), "the new node gets the image")
        cluster.same(source, "/apps/v1", 1, 2)
        self.assertEqual(newcomer.metric("tracking.images", "blocks_failed"), 0, "a wrong block was given away")

        whole = HashKind.BLAKE3.block((source / "large").read_bytes()[:BLOCK_BYTES])  # the new node may have had all from the other one
        self.assertNotIsInstance(ask(victim, GetBlock(whole, BlockHint("/apps/v1", "/large", 0))), BlockData)
        cluster.until(lambda: victim.metric("scrub", "healed") == 1, "the damaged node heals")
        cluster.same(source, "/apps/v1")
        self.assertEqual(victim.get("/status/")["scrub"]["damaged"], {})
        self.assertEqual(good.stat().st_ino, inode, "a good file was fetched again")
        self.assertLess(victim.received() - received, 17 * MIB)
        self.assertEqual([path.name for path in (victim.data / "apps").iterdir()], ["v1"])
