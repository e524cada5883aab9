"""The next version of a directory: what travels, and what does not."""

import random
from dataclasses import replace

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.tree import Directory, File
from ciruela.model.bitfield import Pieces
from ciruela.model.config import Reuse
from tests.doubles.memdisk import MemStaging
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import APP, Client, Cluster, Image

KIND = HashKind.BLAKE2B


class Written(Image):
    """An image with these contents by name; a name that ends in ``*`` is an executable file."""

    def __init__(self, contents):
        files = []
        self.blocks = {}
        for name in sorted(contents, key=str.encode):
            content = contents[name]
            parts = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
            self.blocks.update({KIND.block(part): part for part in parts})
            hashes = b"".join(KIND.hash(part) for part in parts)
            files.append(File(f"/{name.removesuffix('*')}", name.endswith("*"), len(content), hashes))
        self.id, self.data = emit(KIND, [Directory("/", tuple(files))])
        self.order = [file.block_hash(number) for file in files for number in range(file.block_count)]
        self.size = sum(file.size for file in files)
        self.pieces = Pieces.of_image(len(self.order), self.size)


BIG = random.Random(8).randbytes(20 * BLOCK_BYTES + 1000)
CHANGED = BIG[: 7 * BLOCK_BYTES] + b"!" + BIG[7 * BLOCK_BYTES + 1 :]
FIRST = {"big": BIG, "script": b"#!/bin/sh\n", "text": b"text" * 9000, "zero": b""}


class NextVersionTests(UnmeasuredTestCase):
    """Two versions in one base dir, on three nodes."""

    def travelled(self, second, reuse=Reuse.HARDLINK, rotten=()):
        """Upload ``FIRST``, then ``second``: which blocks of that the client gave, and how many times any was sent by anybody."""
        cluster = Cluster(3, configs={"app": replace(APP, reuse=reuse)})
        cluster.run(5.0)
        for path, contents in (("/app/v1", FIRST), ("/app/v2", second)):
            image = Written(contents)
            client = Client(cluster, image)
            sent = sum(node.blocks.sent_blocks for node in cluster.nodes.values())
            client.upload(path, cluster.addresses(1, 2, 3))
            cluster.run(60.0, until=lambda path=path, image=image: len(cluster.holders(path, image)) == 3)
            self.assertEqual(len(cluster.holders(path, image)), 3)
            client.leave()
            for disk in cluster.disks.values():
                disk.rotten.update(rotten)
        self.assertEqual({node.downloads.totals.committed for node in cluster.nodes.values()}, {2})
        between = sum(node.blocks.sent_blocks for node in cluster.nodes.values()) - sent
        return set(client.given), len(client.given) + between, image

    def test_one_block_changed(self):
        """A change of one byte in a large file would have all of it sent again."""
        given, sent, _ = self.travelled({**FIRST, "big": CHANGED})
        self.assertEqual(given, {KIND.block(CHANGED[7 * BLOCK_BYTES : 8 * BLOCK_BYTES])})
        self.assertEqual(sent, 3)

    def test_moved(self):
        """A directory that was renamed, or a file that became executable, would be sent again."""
        given, sent, _ = self.travelled({"a-big.bin": BIG, "script*": FIRST["script"], "also": FIRST["text"] + b"more"})
        self.assertEqual(given, {KIND.block((FIRST["text"] + b"more")[BLOCK_BYTES:])})
        self.assertEqual(sent, 3)

    def test_every_way(self):
        """A directory with another setting would fetch what is here already."""
        for reuse in (Reuse.REFLINK, Reuse.COPY):
            given, _, _ = self.travelled({**FIRST, "big": CHANGED}, reuse)
            self.assertEqual(len(given), 1)

    @shows("A50")
    def test_none(self):
        """An operator who wants no two images to share anything would have them share it."""
        self.patch(MemStaging, "reuse", self.fail)
        given, sent, image = self.travelled({**FIRST, "big": CHANGED}, Reuse.NONE)
        self.assertEqual(given, set(image.order))
        self.assertGreaterEqual(sent, 3 * len(given))

    @shows("A50")
    def test_damaged(self):
        """A block that is damaged in the version before would become part of the next."""
        bad = KIND.block(BIG[3 * BLOCK_BYTES : 4 * BLOCK_BYTES])
        given, _, _ = self.travelled({**FIRST, "big": CHANGED}, rotten=[bad])
        self.assertEqual(given, {bad, KIND.block(CHANGED[7 * BLOCK_BYTES : 8 * BLOCK_BYTES])})
