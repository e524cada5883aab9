"""Sharing space between images on file systems that can: btrfs and xfs, each in a file; and on ext4, which cannot."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.store import Store
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.interfaces import Pending, Reused
from ciruela.model.config import Reuse, Tuning
from ciruela.model.upload import Command
from ciruela.model.vpath import VPath
from tests.disk.trees import Node, Spec, blocks_of, flat, in_place, index_bytes, on_disk, state_of
from tests.real.mounts import Mounts, may_make, needs

V1, V2 = VPath(("app", "web", "v1")), VPath(("app", "web", "v2"))
BLOCKS = 600
BIG = random.Random(3).randbytes(BLOCKS * BLOCK_BYTES + 321)
CHANGED = BIG[: 300 * BLOCK_BYTES + 9] + b"!" + BIG[300 * BLOCK_BYTES + 10 :]
OLD: Spec = {"/big": BIG, "/small": b"small", "/middle": BIG[:50_000]}
NEW: Spec = {"/big": CHANGED, "/small*": b"small", "/sub/middle": BIG[:50_000]}
SIZE_MIB = 400
"""Above what mkfs.xfs takes for too small."""


def used(path: Path) -> int:
    """Bytes in use on a file system."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.sync()
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


class Sharing(SynchronousTestCase):
    """A version and the next one, on a disk of its own."""

    def disk(self, kind: str) -> Path:
        mounts = Mounts(self)
        where: Path = mounts.make(kind, mounts.top / "image", "disk", SIZE_MIB)
        return where

    def next_version(self, where: Path, how: Reuse) -> tuple[Reused, int, Node]:
        """What the second version took from the first, and how much less free the disk was after it."""
        node = Node(where / how.value)
        self.addCleanup(lambda: node.store.close())
        node.configs["app"] = replace(node.configs["app"], reuse=how)
        node.store = Store(str(node.db), node.configs, in_place, Tuning(disk_reserve_bytes=0))
        old = self.upload(node, V1, OLD, [])[0]
        before = used(where)
        _, reused = self.upload(node, V2, NEW, [(V1, old)])
        self.assertEqual(on_disk(node.image(V1)), flat(OLD))
        self.assertEqual(on_disk(node.image(V2)), flat(NEW))
        return reused, used(where) - before, node

    def upload(self, node: Node, vpath: VPath, spec: Spec, siblings: list[tuple[VPath, Index]]) -> tuple[Index, Reused]:
        index, data = index_bytes(spec)
        done = self.successResultOf
        done(node.store.write_pending(Pending(vpath, state_of(index), Command.APPEND)))
        done(node.store.write_index(index.image, data))
        staging = done(node.store.stage(vpath, index))
        reused = done(staging.reuse(siblings))
        done(staging.write([block for block in blocks_of(spec, index) if block[0] not in reused.blocks]))
        done(staging.commit(state_of(index)))
        return index, reused

    def shared(self, kind: str) -> None:
        where = self.disk(kind)
        reused, taken, node = self.next_version(where, Reuse.REFLINK)
        self.assertEqual(len(reused.blocks), len(blocks_of(NEW, index_bytes(NEW)[0])) - 1)
        self.assertLess(taken, len(BIG) // 8)
        self.assertEqual({path.stat().st_nlink for path in node.image(V2).rglob("*") if path.is_file()}, {1})
        with (node.image(V2) / "big").open("r+b") as file:
            file.write(b"edited by hand")
        self.assertEqual((node.image(V1) / "big").read_bytes(), BIG)
        reused, taken, node = self.next_version(where, Reuse.HARDLINK)
        self.assertLess(taken, len(BIG) // 8)
        self.assertEqual((node.image(V2) / "sub" / "middle").stat().st_nlink, 2)
        _, taken, _ = self.next_version(where, Reuse.COPY)
        self.assertGreater(taken, len(BIG) // 2)

    @needs(may_make("btrfs"))
    def test_btrfs(self) -> None:
        """On btrfs each version would take the space of all its data, and a copy would share it with others after all."""
        self.shared("btrfs")

    @needs(may_make("xfs"))
    def test_xfs(self) -> None:
        """The same on xfs."""
        self.shared("xfs")

    @needs(may_make("ext4"))
    def test_ext4(self) -> None:
        """Where nothing can be shared, a download would fail instead of copying."""
        where = self.disk("ext4")
        for how in (Reuse.REFLINK, Reuse.HARDLINK, Reuse.COPY):
            reused, taken, node = self.next_version(where, how)
            self.assertEqual(len(reused.blocks), len(blocks_of(NEW, index_bytes(NEW)[0])) - 1)
            self.assertGreater(taken, len(BIG) // 2)
            self.assertEqual((node.image(V2) / "sub" / "middle").stat().st_nlink, 2 if how is Reuse.HARDLINK else 1)

    def test_reasons(self) -> None:
        """A test that cannot run would say that it did."""
        self.assertEqual(may_make("nofs")(), "there is no mkfs.nofs")
