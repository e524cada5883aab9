"""Tests of ``ciruela.index.emit``."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from twisted.trial.unittest import SynchronousTestCase

from ciruela.index import emit as emit_module
from ciruela.index import names
from ciruela.index.digest import HashKind
from ciruela.index.emit import emit
from ciruela.index.names import MAX_DEPTH
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File, Symlink
from ciruela.model.errors import BadIndex
from tests.index.examples import BIG, FEATURES, FEATURES_TREE, KIND, LIBRARY, SMALLEST, block, file, footer_of, trees
from tests.proof import shows


class EmitTests(SynchronousTestCase):
    """The bytes of an index."""

    def test_worked_example(self) -> None:
        """One differing byte and no reference client or daemon agrees with us on what an image is."""
        image, data = emit(KIND, FEATURES_TREE)
        self.assertEqual(data, FEATURES)
        self.assertEqual(len(data), 749)
        self.assertEqual(image.hex(), "a1ba01ceea5ef43ea1eed20989eafdff9a4b13f7efd2df5947c758d1055936fa")

    def test_library_example(self) -> None:
        """The id of this tree was computed by somebody else's program."""
        tree = parse(LIBRARY, footer_of(LIBRARY)).directories
        self.assertEqual([directory.path for directory in tree], ["/", "/sub2", "/subdir"])
        self.assertEqual(emit(KIND, tree), (footer_of(LIBRARY), LIBRARY))

    def test_smallest(self) -> None:
        """An empty directory is an image too."""
        self.assertEqual(emit(KIND, [Directory("/", ())]), (footer_of(SMALLEST), SMALLEST))

    def test_kinds(self) -> None:
        """Header and footer must name and use the same function."""
        for kind in HashKind:
            image, data = emit(kind, [Directory("/", (file("/x", b"x", kind=kind),))])
            self.assertTrue(data.startswith(f"DIRSIGNATURE.v1 {kind.value} block_size=32768\n/\n  x f 1 ".encode()))
            self.assertEqual(parse(data, image).kind, kind)
        image, _ = emit(HashKind.SHA512_256, [Directory("/", ())])
        self.assertEqual(image, hashlib.new("sha512_256", b"/\n").digest())

    @settings(derandomize=True, deadline=None, database=None, max_examples=150)
    @given(trees())
    def test_round_trip(self, tree: tuple[HashKind, tuple[Directory, ...]]) -> None:
        """A tree that reads back differently would be another tree on the servers than on the client."""
        kind, directories = tree
        image, data = emit(kind, directories)
        index = parse(data, image)
        self.assertEqual((index.image, index.kind, index.directories), (image, kind, directories))

    def test_many_blocks(self) -> None:
        """Files of gigabytes have lines of megabytes."""
        hashes = b"".join(KIND.hash(number.to_bytes(4, "big")) for number in range(3000))
        tree = (Directory("/", (File("/huge", True, 3000 * 32768 - 5, hashes),)),)
        image, data = emit(KIND, tree)
        self.assertEqual(parse(data, image).directories, tree)


class RefusalTests(SynchronousTestCase):
    """What must not be written because nobody could read it."""

    def refused(self, *directories: Directory) -> str:
        error = self.assertRaises(BadIndex, emit, KIND, directories)
        return str(error)

    def test_directories_out_of_order(self) -> None:
        """The order decides the image id: a scan in another order would give the same tree another id."""
        root, a, b = Directory("/", ()), Directory("/a", ()), Directory("/b", ())
        self.refused()
        self.refused(a)
        self.refused(root, b, a)
        self.refused(root, a, a)
        self.refused(root, root)
        self.refused(root, Directory("/a/b", ()))
        self.refused(root, Directory("/a-b", ()), a)
        self.refused(root, Directory("/a/", ()))
        emit(KIND, [root, a, Directory("/a/b", ()), Directory("/a-b", ()), b])

    @shows("A1")
    def test_entries(self) -> None:
        """Each of these would be refused by every server, after the whole directory was hashed and signed."""
        bad: list[tuple[File | Symlink, ...]] = [
            (file("/b", b""), file("/a", b"")),
            (file("/a", b""), Symlink("/a", "x")),
            (file("/x/y", b""),),
            (file("/..", b""),),
            (file("x", b""),),
            (file("/", b""),),
            (File("/a", False, 2, b""),),
            (File("/a", False, 0, block(b"x")),),
            (File("/a", False, 32769, block(b"x")),),
            (File("/a", False, -1, b""),),
            (Symlink("/a", ""),),
            (Symlink("/a", "x" * 4096),),
        ]
        for entries in bad:
            self.refused(Directory("/", entries))
        self.refused(Directory("/", ()), Directory("/d", (file("/e/x", b""),)))
        self.assertIn("'/sub'", self.refused(Directory("/", ()), Directory("/sub", (file("/sub/..", b""),))))

    @shows("A2")
    def test_directory_and_file_of_one_name(self) -> None:
        """Two things cannot stand at one name."""
        self.refused(Directory("/", (file("/a", b""),)), Directory("/a", ()))

    @shows("A1")
    def test_depth_and_length(self) -> None:
        """Paths that no server can create."""

        def chain(depth: int, name: str) -> list[Directory]:
            return [Directory(f"/{name}" * level or "/", ()) for level in range(depth + 1)]

        emit(KIND, chain(MAX_DEPTH, "d"))
        self.refused(*chain(MAX_DEPTH + 1, "d"))
        deep = chain(MAX_DEPTH, "d")
        self.refused(*deep[:-1], Directory(deep[-1].path, (file(deep[-1].path + "/x", b""),)))
        long = chain(15, "x" * 255)
        end = Directory(long[-1].path, (file(long[-1].path + "/" + "y" * 255, b""),))
        emit(KIND, [*long[:-1], end])
        self.refused(*long, Directory(long[-1].path + "/z", (file(long[-1].path + "/z/" + "y" * 254, b""),)))

    def test_size(self) -> None:
        """An index above the limit cannot be sent to anybody."""
        self.patch(emit_module, "MAX_INDEX_BYTES", len(FEATURES))
        emit(KIND, FEATURES_TREE)
        for size in (len(FEATURES) - 1, 100):
            self.patch(emit_module, "MAX_INDEX_BYTES", size)
            self.assertIn("split", self.refused(*FEATURES_TREE))

    def test_listing(self) -> None:
        """An index that a server refuses because of its memory must be refused here already."""
        many = Directory("/", tuple(file(f"/{number:02}", b"") for number in range(20)))
        self.patch(names, "MAX_LISTING_BYTES", 21 * 201)
        emit(KIND, [many])
        self.patch(names, "MAX_LISTING_BYTES", 21 * 201 - 1)
        self.assertIn("split", self.refused(many))

    def test_big_example_is_cut_into_blocks(self) -> None:
        """The last block of a file is hashed without padding; another way gives other hashes than the reference's."""
        self.assertEqual(block(BIG)[32:], hashlib.blake2b(BIG[32768:], digest_size=32).digest())
