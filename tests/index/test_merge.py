"""Tests of ``ciruela.index.merge``."""

from __future__ import annotations

from hypothesis import given, settings
from twisted.trial.unittest import SynchronousTestCase

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.merge import same_files
from ciruela.index.tree import BlockMap, BlockRun, Directory, File, Index
from ciruela.model.ids import BlockHash
from tests.index.examples import BIG, FEATURES_TREE, KIND, file, trees


def index(*directories: Directory, kind: HashKind = KIND) -> Index:
    """The index of ``directories``."""
    return Index(emit(kind, directories)[0], kind, directories)


def flat(*files: File, kind: HashKind = KIND) -> Index:
    """An index of files in the root."""
    return index(Directory("/", files), kind=kind)


class SameFilesTests(SynchronousTestCase):
    """Files that need not be downloaded again."""

    def pairs(self, wanted: Index, theirs: Index) -> list[tuple[str, str]]:
        found = [(ours, other) for ours, other in zip(wanted.files, same_files(wanted, theirs), strict=True) if other is not None]
        for ours, other in found:
            self.assertEqual((ours.executable, ours.size, ours.hashes), (other.executable, other.size, other.hashes))
        return [(ours.path, other.path) for ours, other in found]

    def test_same_tree(self) -> None:
        """A new version with few changes would be fetched whole."""
        tree = index(*FEATURES_TREE)
        expected = [(file.path, file.path) for file in tree.files if file.size]
        self.assertEqual(self.pairs(tree, tree), expected)
        self.assertEqual(len(expected), 6)

    def test_same_path_is_preferred(self) -> None:
        """Of two equal files the one at the same path is the one that stays equal."""
        wanted = flat(file("/b", b"1"))
        theirs = flat(file("/a", b"1"), file("/b", b"1"))
        self.assertEqual(self.pairs(wanted, theirs), [("/b", "/b")])

    def test_moved(self) -> None:
        """Directories with a version in their name would be fetched whole at each version."""
        wanted = index(Directory("/", ()), Directory("/v2", (file("/v2/x", BIG), file("/v2/y", b"new"), file("/v2/z", BIG))))
        theirs = index(Directory("/", (file("/late", BIG),)), Directory("/v1", (file("/v1/x", BIG), file("/v1/y", b"old"))))
        self.assertEqual(self.pairs(wanted, theirs), [("/v2/x", "/late"), ("/v2/z", "/late")])

    def test_changed_in_place_but_elsewhere(self) -> None:
        """A file that swapped its name with another is still here."""
        wanted = flat(file("/a", b"1"), file("/b", b"2"))
        theirs = flat(file("/a", b"2"), file("/b", b"1"))
        self.assertEqual(self.pairs(wanted, theirs), [("/a", "/b"), ("/b", "/a")])

    def test_mode_counts(self) -> None:
        """A hardlink shares the mode: a script would lose, or a data file get, its executable bit."""
        wanted = flat(file("/a", b"1", executable=True))
        self.assertEqual(self.pairs(wanted, flat(file("/a", b"1"), file("/b", b"1"))), [])
        self.assertEqual(self.pairs(wanted, flat(file("/a", b"1"), file("/b", b"1", executable=True))), [("/a", "/b")])

    def test_size_counts(self) -> None:
        """An index may lie about a size; a link to a file of another length is not the file that was signed."""
        honest = file("/a", b"1")
        self.assertEqual(self.pairs(flat(honest), flat(File("/a", False, 2, honest.hashes))), [])

    def test_empty_files(self) -> None:
        """They cost nothing to make, and a link for each would only use up link counts."""
        self.assertEqual(self.pairs(flat(file("/a", b"")), flat(file("/a", b""))), [])

    def test_other_kind(self) -> None:
        """The first version with another hash would travel whole; or a file of another size, name or mode would be hashed in vain."""
        wanted = flat(file("/a", b"1"), file("/b", b"22"), file("/c", b"333"), file("/d", b"4"))
        theirs = flat(file("/a", b"x"), file("/b", b"2"), file("/c", b"333", executable=True), file("/e", b"4"))
        pairs = same_files(wanted, Index(wanted.image, HashKind.BLAKE3, theirs.directories))
        self.assertEqual([other and other.path for other in pairs], ["/a", None, None, None])


def numbers_in(blocks: BlockMap, run: BlockRun) -> range:
    """The block numbers of a run."""
    first = blocks.numbers_of(run.file_number).start + run.first
    return range(first, first + run.blocks)


class BlockMapTests(SynchronousTestCase):
    """Where blocks are."""

    def test_numbers(self) -> None:
        """A block written at a neighbor's place makes two files wrong."""
        tree = flat(file("/a", b""), file("/b", BIG), file("/c", b""), file("/d", b""), file("/e", b"x"), file("/f", b""))
        blocks = tree.blocks
        self.assertEqual(len(blocks), tree.block_count)
        self.assertEqual([blocks.place(number) for number in range(3)], [(1, 0), (1, 1), (4, 0)])
        self.assertEqual([blocks.by_number(number)[0].path for number in range(3)], ["/b", "/b", "/e"])
        self.assertEqual([list(blocks.numbers_of(number)) for number in range(6)], [[], [0, 1], [], [], [2], []])
        for number in (-1, 3):
            self.assertRaises(IndexError, blocks.by_number, number)

    def test_runs(self) -> None:
        """Blocks of two files would be read in one go, or written behind the end of the first."""
        tree = flat(file("/a", b""), file("/b", BIG), file("/c", b""), file("/d", b"x"), file("/e", bytes(3 * BLOCK_BYTES)))
        blocks = tree.blocks
        self.assertEqual(blocks.runs(()), [])
        self.assertEqual(blocks.runs(range(6)), [(1, 0, 2), (3, 0, 1), (4, 0, 3)])
        self.assertEqual(blocks.runs((1, 2, 3, 5)), [(1, 1, 1), (3, 0, 1), (4, 0, 1), (4, 2, 1)])
        self.assertEqual(blocks.runs((5, 4, 3, 0, 0)), [(4, 2, 1), (4, 1, 1), (4, 0, 1), (1, 0, 1), (1, 0, 1)])
        self.assertEqual(
            [number for number in range(6) for _ in (0,)], [at for run in blocks.runs(range(6)) for at in numbers_in(blocks, run)]
        )
        for wrong in (6, -1):
            self.assertRaises(IndexError, blocks.runs, (0, wrong))
        big = blocks.files[1]
        self.assertEqual([big.bytes_of(0, 1), big.bytes_of(0, 2), big.bytes_of(1, 1)], [BLOCK_BYTES, len(BIG), len(BIG) - BLOCK_BYTES])

    def test_places(self) -> None:
        """A block that stands in several files must be written to all of them, though it is fetched once."""
        zeros = bytes(3 * BLOCK_BYTES)
        tree = flat(file("/a", zeros + b"1"), file("/b", b"1"), file("/c", zeros))
        blocks = tree.blocks
        self.assertEqual(blocks.places(KIND.block(bytes(BLOCK_BYTES))), [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)])
        self.assertEqual(list(blocks.numbers(KIND.block(b"1"))), [3, 4])
        self.assertEqual(blocks.places(KIND.block(b"absent")), [])
        for absent in (bytes(32), b"\xff" * 32):
            self.assertEqual(list(blocks.numbers(BlockHash(absent))), [])

    def test_locate(self) -> None:
        """Reference nodes ask by path and offset; an answer from another place would be refused by them."""
        blocks = index(*FEATURES_TREE).blocks
        self.assertEqual(blocks.locate("/README", 0), 0)
        self.assertEqual(blocks.locate("/a/big.bin", 0), 2)
        self.assertEqual(blocks.locate("/a/big.bin", BLOCK_BYTES), 3)
        self.assertEqual(blocks.locate("/a-b/üml", 0), 6)
        for path, offset in (
            ("/README", BLOCK_BYTES),
            ("/README", 1),
            ("/README", -BLOCK_BYTES),
            ("/a/big.bin", 2 * BLOCK_BYTES),
            ("/a/big.bin", 100),
            ("/zero", 0),
            ("/a/link", 0),
            ("/a", 0),
            ("/", 0),
            ("", 0),
            ("README", 0),
            ("/zzz", 0),
            ("/a/b/../big.bin", 0),
        ):
            self.assertIsNone(blocks.locate(path, offset))

    def test_nothing(self) -> None:
        """An image without files is legal."""
        blocks = index(Directory("/", ())).blocks
        self.assertEqual(len(blocks), 0)
        self.assertEqual(blocks.places(KIND.block(b"")), [])
        self.assertIsNone(blocks.locate("/x", 0))
        self.assertRaises(IndexError, blocks.hash_of, 0)

    @settings(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(trees())
    def test_all_ways_agree(self, tree: tuple[HashKind, tuple[Directory, ...]]) -> None:
        """Number, hash, place and path must name the same block, or what is served is not what was asked for."""
        kind, directories = tree
        whole = index(*directories, kind=kind)
        blocks = whole.blocks
        number = 0
        for file_number, one in enumerate(whole.files):
            for block in range(one.block_count):
                self.assertEqual(blocks.place(number), (file_number, block))
                self.assertEqual(blocks.by_number(number), (one, block))
                self.assertEqual(blocks.hash_of(number), one.block_hash(block))
                self.assertIn(number, blocks.numbers(one.block_hash(block)))
                self.assertEqual(blocks.locate(one.path, block * BLOCK_BYTES), number)
                number += 1
        self.assertEqual(len(blocks), number)
        for wanted in {blocks.hash_of(number) for number in range(len(blocks))}:
            same = [number for number in range(len(blocks)) if blocks.hash_of(number) == wanted]
            self.assertEqual(list(blocks.numbers(wanted)), same)
            self.assertEqual([blocks.twins[number] for number in same], [int(len(same) > 1)] * len(same))
