"""Blocks of zeros: they take no space in a new file, and are as good as others."""

from __future__ import annotations

from ciruela.index.digest import BLOCK_BYTES
from tests.disk.real import V1, V2, Real
from tests.disk.trees import Spec, blocks_of, flat, index_bytes, on_disk, state_of
from tests.proof import shows

ZERO = bytes(BLOCK_BYTES)
SPARSE: Spec = {
    "/all": ZERO * 40,
    "/begin": ZERO * 20 + b"end",
    "/end": b"begin" * BLOCK_BYTES + ZERO * 20,
    "/middle": b"x" * BLOCK_BYTES + ZERO * 30 + b"y" * BLOCK_BYTES,
    "/small": bytes(100),
}


class HoleTests(Real):
    def blocks(self, name: str) -> int:
        """Bytes that a file takes."""
        return (self.node.image(V1) / name).stat().st_blocks * 512

    @shows("W4")
    def test_sparse(self) -> None:
        """An image of a disk that is mostly empty would take its full size on each node."""
        probe = self.node.root / "probe"
        with probe.open("wb") as file:
            file.truncate(1 << 20)
        if probe.stat().st_blocks:
            self.skipTest("this file system has no holes")
        index = self.upload(V1, SPARSE)
        self.assertEqual(on_disk(self.node.image(V1)), flat(SPARSE))
        self.assertEqual((self.blocks("all"), self.blocks("small")), (0, 0))
        self.assertLess(self.blocks("begin"), 2 * BLOCK_BYTES)
        self.assertLess(self.blocks("end"), 8 * BLOCK_BYTES)
        self.assertLess(self.blocks("middle"), 4 * BLOCK_BYTES)
        again = self.staged(V2, index)
        reused = self.successResultOf(again.reuse([(V1, index)]))
        self.assertEqual(len(reused.blocks), index.block_count)
        self.successResultOf(again.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V2)), flat(SPARSE))

    @shows("I1", "W4")
    def test_over_other_data(self) -> None:
        """Where an interrupted run left other data, a block of zeros would be left out, and the data stand in the image."""
        index, _ = index_bytes(SPARSE)
        self.staged(V1, index)
        left = self.staging_path(V1, index) / "middle"
        left.write_bytes(b"x" * BLOCK_BYTES + b"z" * (31 * BLOCK_BYTES))
        left.chmod(0o600)
        opened = self.staged(V1, index)
        here = self.successResultOf(opened.keep())
        self.assertEqual(len(here), 1)
        self.successResultOf(opened.write([block for block in blocks_of(SPARSE, index) if block[0] not in here]))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SPARSE))
