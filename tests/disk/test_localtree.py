"""Tests of ``ciruela.disk.localtree``, on real temporary directories."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import localtree, syscalls
from ciruela.disk.hashcache import HashCache
from ciruela.disk.localtree import LocalTree
from ciruela.disk.openfile import OpenFile
from ciruela.disk.scan import Scan, scan
from ciruela.disk.verify import blocks_in
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import File, Index
from ciruela.model.errors import DiskError
from ciruela.model.ids import Block, BlockHash
from tests.disk.test_scan import Clock, at_once, open_fds
from tests.index.examples import BIG, KIND
from tests.proof import shows


def hashes_of(file: File) -> list[BlockHash]:
    """All block hashes of ``file``."""
    return [file.block_hash(number) for number in range(file.block_count)]


def one_block(number: int) -> bytes:
    return str(number).encode().ljust(BLOCK_BYTES)


def two_blocks(number: int) -> bytes:
    """The content of a file that is kept open: those of one block are not."""
    return one_block(number) + b"the end of %d" % number


def read(tree: LocalTree, wanted: Sequence[BlockHash]) -> list[Block | None]:
    """The blocks by their hashes; None for what the index does not name, or that is nowhere any more."""
    numbers = [next(iter(tree._blocks.numbers(one)), None) for one in wanted]
    found = iter(tree.blocks([number for number in numbers if number is not None]))
    return [None if number is None else next(found) for number in numbers]


class LocalTreeTests(SynchronousTestCase):
    """What nodes get from a client."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)
        self.fds = open_fds()

    def tearDown(self) -> None:
        self.assertEqual(open_fds(), self.fds)

    def put(self, path: str, data: bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target

    def index(self) -> Index:
        return self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock())).index

    def test_all_blocks(self) -> None:
        """Every block of the image must come, also from names that are hard to type."""
        self.put("a/big", BIG)
        self.put("new\nline/ü/ ", b"odd")
        self.put("top", b"t" * BLOCK_BYTES)
        self.put("empty", b"")
        tree = LocalTree(str(self.root), self.index())
        wanted = [KIND.block(BIG[:BLOCK_BYTES]), KIND.block(b"odd"), KIND.block(b"t" * BLOCK_BYTES), KIND.block(BIG[BLOCK_BYTES:])]
        self.assertEqual(read(tree, wanted), [BIG[:BLOCK_BYTES], b"odd", b"t" * BLOCK_BYTES, BIG[BLOCK_BYTES:]])
        self.assertEqual(read(tree, []), [])
        self.assertEqual(tree.changed, frozenset())
        tree.close()

    def test_by_number(self) -> None:
        """Blocks asked for by number must be the same, of small files in any order, of large ones, and of what was moved or changed."""
        self.put("a/big", BIG)
        for number in range(6):
            self.put(f"{'ab'[number % 2]}/small{number}", b"%d" % number * 100)
        self.put("c/changed", b"before")
        self.put("c/copy", b"twice")
        self.put("d/copy", b"twice")
        index = self.index()
        self.put("c/changed", b"behind")
        self.put("c/copy", b"once?")
        hashes = [block for file in index.files for block in hashes_of(file)]
        with closing(LocalTree(str(self.root), index)) as tree:
            numbers = [*range(len(hashes)), *range(len(hashes) - 1, -1, -1)]
            found = tree.blocks(numbers)
            for number, data in zip(numbers, found, strict=True):
                missing = hashes[number] == KIND.block(b"before")
                self.assertEqual(None if data is None else KIND.block(data), None if missing else hashes[number])
            self.assertEqual(tree.changed, {"/c/changed", "/c/copy"})
            (self.root / "b").rename(self.root / "away")
            gone = [
                number for number, (data, wanted) in enumerate(zip(tree.blocks(range(len(hashes))), hashes, strict=True)) if data is None
            ]
            self.assertEqual(len(gone), 3 + 1)

    def test_only_what_the_index_names(self) -> None:
        """A node must not be able to get a file that the user added later, or one that only lies beside."""
        self.put("a", b"known")
        tree = LocalTree(str(self.root), self.index())
        self.put("b", b"later")
        (self.root.parent / "beside").write_bytes(b"beside")
        wanted = [KIND.block(b"later"), KIND.block(b"beside"), KIND.block(b""), BlockHash(bytes(32)), KIND.block(b"known")]
        self.assertEqual(read(tree, wanted), [None, None, None, None, b"known"])
        self.assertEqual(tree.changed, frozenset())
        tree.close()

    @shows("F54")
    def test_changed_file(self) -> None:
        """Bytes that nobody signed for must not leave the client, and the user has to learn which file it was."""
        path = self.put("sub/a", BIG)
        self.put("b", b"b")
        tree = LocalTree(str(self.root), self.index())
        path.write_bytes(BIG[:BLOCK_BYTES] + b"x" * (len(BIG) - BLOCK_BYTES))
        first, last, other = KIND.block(BIG[:BLOCK_BYTES]), KIND.block(BIG[BLOCK_BYTES:]), KIND.block(b"b")
        self.assertEqual(read(tree, [first, last, other]), [BIG[:BLOCK_BYTES], None, b"b"])
        self.assertEqual(tree.changed, {"/sub/a"})
        tree.close()

    @shows("F54")
    def test_shortened_and_grown(self) -> None:
        """A last block with more or fewer bytes has another hash; a file that only grew still has the old blocks."""
        short, grown = self.put("short", b"s" * 100), self.put("grown", b"g" * 100)
        tree = LocalTree(str(self.root), self.index())
        os.truncate(short, 50)
        grown.write_bytes(b"g" * 100 + b"more")
        self.assertEqual(read(tree, [KIND.block(b"s" * 100), KIND.block(b"g" * 100)]), [None, b"g" * 100])
        self.assertEqual(tree.changed, {"/short"})
        tree.close()

    def test_changed_back(self) -> None:
        """A file that is what it was again can be given again."""
        path = self.put("a", b"good")
        tree = LocalTree(str(self.root), self.index())
        path.write_bytes(b"evil")
        self.assertEqual(read(tree, [KIND.block(b"good")]), [None])
        path.unlink()
        path.write_bytes(b"good")
        self.assertEqual(read(tree, [KIND.block(b"good")]), [b"good"])
        self.assertEqual(tree.changed, {"/a"})
        tree.close()

    def test_replaced_while_open(self) -> None:
        """A file that was replaced by another goes on to be given from the one that was indexed, as long as it is open."""
        path = self.put("a", BIG)
        tree = LocalTree(str(self.root), self.index())
        read(tree, [KIND.block(BIG[:BLOCK_BYTES])])
        path.unlink()
        path.write_bytes(b"new")
        self.assertEqual(read(tree, [KIND.block(BIG[BLOCK_BYTES:])]), [BIG[BLOCK_BYTES:]])
        tree.close()

    @shows("F54")
    def test_gone_and_unreadable(self) -> None:
        """Whatever stands at the name now, it is no reason to stop serving the rest, and never to wait."""
        names = ["gone", "link", "dir", "fifo", "sub/below", "moved/below"]
        paths = {name: self.put(name, name.encode()) for name in names}
        self.put("there", b"there")
        tree = LocalTree(str(self.root), self.index())
        for path in paths.values():
            path.unlink()
        paths["link"].symlink_to("there")
        paths["dir"].mkdir()
        os.mkfifo(paths["fifo"])
        paths["sub/below"].parent.rmdir()
        paths["sub/below"].parent.write_bytes(b"a file now")
        self.assertEqual(read(tree, [KIND.block(name.encode()) for name in [*names, "there"]]), [None] * len(names) + [b"there"])
        self.assertEqual(tree.changed, {"/" + name for name in names})
        tree.close()

    def test_symlinks_are_not_followed(self) -> None:
        """Even the right bytes do not come from outside of the directory: a link would tell a node what other files contain."""
        self.put("sub/a", b"content")
        tree = LocalTree(str(self.root), self.index())
        elsewhere = Path(self.mktemp())
        (self.root / "sub").rename(elsewhere)
        (self.root / "sub").symlink_to(elsewhere.absolute())
        self.assertEqual(read(tree, [KIND.block(b"content")]), [None])
        self.assertEqual(tree.changed, {"/sub/a"})
        tree.close()

    def test_many_by_number(self) -> None:
        """Very many small files would be given one by one, in the time that a search for each takes; or under the numbers of others."""
        self.put("a/big", BIG)
        for number in range(40):
            self.put(f"d{number // 10}/{number:02}", b"small %d" % number)
        self.put("same/1", b"same")
        self.put("same/2", b"same")
        self.put("top", b"t" * BLOCK_BYTES)
        index = self.index()
        tree = LocalTree(str(self.root), index)
        expected = []
        for file in index.files:
            content = (self.root / file.path[1:]).read_bytes()
            expected += [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
        self.assertEqual(tree.blocks(range(index.block_count)), expected)
        self.assertEqual(tree.blocks([30, 2, 17]), [expected[30], expected[2], expected[17]])
        self.assertEqual(tree.blocks([]), [])
        self.assertEqual(tree.changed, frozenset())
        self.assertLessEqual(open_fds() - self.fds, 2, "small files, or their directories, stay open")
        tree.close()
        self.assertEqual(tree.blocks([0, 1, 20]), [None] * 3)

    @shows("F54")
    def test_changed_by_number(self) -> None:
        """Bytes that nobody signed for would leave the client; or what stands in the way of one file would keep others from coming."""
        names = ["d/changed", "d/fifo", "d/gone", "d/link", "d/short", "e/below", "moved/a"]
        paths = {name: self.put(name, name.encode()) for name in names}
        self.put("d/there", b"there")
        self.put("d/twin", b"twin")
        self.put("f/twin", b"twin")
        self.put("z", b"z")
        index = self.index()
        tree = LocalTree(str(self.root), index)
        paths["d/changed"].write_bytes(b"d/CHANGED")
        (self.root / "d" / "twin").write_bytes(b"else")
        os.truncate(paths["d/short"], 3)
        for name in ("d/fifo", "d/gone", "d/link", "e/below"):
            paths[name].unlink()
        os.mkfifo(paths["d/fifo"])
        paths["d/link"].symlink_to("there")
        paths["e/below"].parent.rmdir()
        paths["e/below"].parent.write_bytes(b"a file now")
        elsewhere = Path(self.mktemp())
        (self.root / "moved").rename(elsewhere)
        (self.root / "moved").symlink_to(elsewhere.absolute())
        found = dict(zip([file.path[1:] for file in index.files], tree.blocks(range(index.block_count)), strict=True))
        good = {"d/there": b"there", "d/twin": b"twin", "f/twin": b"twin", "z": b"z"}
        self.assertEqual(found, {**dict.fromkeys(names), **good})
        self.assertEqual(tree.changed, {"/d/twin", *("/" + name for name in names)})
        tree.close()

    def test_another_copy(self) -> None:
        """When one of two equal files changed, the other still has the block."""
        path = self.put("a", b"same")
        self.put("b", b"same")
        tree = LocalTree(str(self.root), self.index())
        path.write_bytes(b"else")
        self.assertEqual(read(tree, [KIND.block(b"same")]), [b"same"])
        self.assertEqual(tree.changed, {"/a"})
        tree.close()

    def test_places_are_not_tried_for_ever(self) -> None:
        """One request for a block that stood at thousands of places must not cost thousands of reads."""
        for number in range(localtree.PLACES_TRIED + 5):
            self.put(f"{number:03}", b"same")
        tree = LocalTree(str(self.root), self.index())
        for number in range(localtree.PLACES_TRIED + 4):
            self.put(f"{number:03}", b"else")
        self.assertEqual(read(tree, [KIND.block(b"same")]), [None])
        self.assertEqual(len(tree.changed), localtree.PLACES_TRIED)
        tree.close()

    def test_few_files_are_open(self) -> None:
        """Serving thousands of files must not use up the descriptors that connections need."""
        for number in range(3 * localtree.OPEN_FILES):
            self.put(f"d/{number}", two_blocks(number))
        tree = LocalTree(str(self.root), self.index())
        for number in range(3 * localtree.OPEN_FILES):
            self.assertEqual(read(tree, [KIND.block(one_block(number))]), [one_block(number)])
            self.assertLessEqual(open_fds() - self.fds, localtree.OPEN_FILES + 1)
        self.assertEqual(open_fds() - self.fds, localtree.OPEN_FILES + 1)
        tree.close()

    def test_recently_used_files_stay_open(self) -> None:
        """A file whose blocks are asked for all the time must not be opened for each of them."""
        for number in range(localtree.OPEN_FILES + 1):
            self.put(f"{number:02}", two_blocks(number))
        tree = LocalTree(str(self.root), self.index())
        for number in [*range(localtree.OPEN_FILES), 0, localtree.OPEN_FILES]:
            read(tree, [KIND.block(one_block(number))])
        (self.root / "00").unlink()
        (self.root / "01").unlink()
        self.assertEqual(read(tree, [KIND.block(one_block(0)), KIND.block(one_block(1))]), [one_block(0), None])
        tree.close()

    def test_closed(self) -> None:
        """A request that comes while the client ends is answered, not an accident, and blames no file."""
        self.put("a", b"a")
        tree = LocalTree(str(self.root), self.index())
        tree.close()
        tree.close()
        self.assertEqual(read(tree, [KIND.block(b"a")]), [None])
        self.assertEqual(tree.changed, frozenset())

    def test_no_directory(self) -> None:
        """The message must name the directory."""
        index = self.index()
        error = self.assertRaises(DiskError, LocalTree, str(self.root / "nothing"), index)
        self.assertIn(str(self.root / "nothing"), str(error))


class Unchanged(SynchronousTestCase):
    """Files of several blocks that are what was scanned are given without being hashed again."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)
        self.big = self.root / "big"
        self.big.write_bytes(BIG)
        (self.root / "small").write_bytes(b"small")
        self.later_ns = 10**9

    def scanned(self, caches: HashCache | None = None) -> Scan:
        wall_ns = lambda: time.time_ns() + self.later_ns  # noqa: E731
        return self.successResultOf(scan(str(self.root), KIND, at_once, lambda _: None, Clock(), caches, wall_ns=wall_ns))

    def given(self, found: Scan, tree: LocalTree) -> tuple[list[Block | None], int]:
        """All blocks, and how many of them were hashed."""
        hashed = 0

        def counted(data: bytes, wanted: File, kind: HashKind, first: int, count: int) -> list[Block | None]:
            nonlocal hashed
            hashed += count
            return blocks_in(data, wanted, kind, first, count)

        self.patch(localtree, "blocks_in", counted)
        return tree.blocks(range(found.index.block_count)), hashed

    def blocks(self) -> list[bytes]:
        return [BIG[at : at + BLOCK_BYTES] for at in range(0, len(BIG), BLOCK_BYTES)]

    def test_not_hashed(self) -> None:
        """Each byte would be hashed twice by the client, and once more by whoever gets it."""
        found = self.scanned()
        with closing(LocalTree(str(self.root), found.index, found.seen)) as tree:
            self.assertEqual(self.given(found, tree), ([*self.blocks(), b"small"], 1))
            self.assertEqual(tree.changed, frozenset())

    def test_from_the_cache(self) -> None:
        """With a hash cache nothing would be read for the index, and then everything be hashed."""
        home = Path(self.mktemp()).absolute()
        home.mkdir(parents=True)
        caches = HashCache(str(home), lambda: time.time_ns() + 10**10)
        first = self.scanned(caches)
        self.assertEqual((dict(self.scanned(caches).seen), set(first.seen)), (dict(first.seen), {"/big"}))
        (self.root / "other").write_bytes(b"makes the directory another one")
        self.assertEqual(self.scanned(caches).seen, first.seen)

    @shows("F54")
    def test_asked_again(self) -> None:
        """Who was given a wrong block, because the memory of this host fails, would get it again and again."""
        found = self.scanned()
        with closing(LocalTree(str(self.root), found.index, found.seen)) as tree:
            self.assertEqual(self.given(found, tree)[1], 1)
            self.assertEqual(self.given(found, tree)[1], found.index.block_count)

    @shows("F54")
    def test_edited(self) -> None:
        """Bytes that nobody signed for would leave the client: of a file that keeps its size and its mtime."""
        found = self.scanned()
        before = self.big.stat()
        with closing(LocalTree(str(self.root), found.index, found.seen)) as tree:
            with self.big.open("r+b") as file:
                file.write(b"X")
            os.utime(self.big, ns=(before.st_atime_ns, before.st_mtime_ns))
            data, hashed = self.given(found, tree)
            self.assertEqual((data, hashed), ([None, *self.blocks()[1:], b"small"], found.index.block_count))
            self.assertEqual(tree.changed, {"/big"})

    @shows("F54")
    def test_edited_while_it_is_read(self) -> None:
        """The same between the first look and the reading."""
        found = self.scanned()
        read_at = OpenFile.read_at

        def edit(opened: OpenFile, size: int, offset: int) -> bytes:
            with self.big.open("r+b") as file:
                file.write(b"X")
            return read_at(opened, size, offset)

        with closing(LocalTree(str(self.root), found.index, found.seen)) as tree:
            self.patch(OpenFile, "read_at", edit)
            self.assertEqual(tree.blocks([0]), [None])

    @shows("F54")
    def test_replaced(self) -> None:
        """A new file at the same name would be taken for the one that was scanned."""
        found = self.scanned()
        (self.root / "new").write_bytes(b"Y" * len(BIG))
        os.rename(self.root / "new", self.big)
        with closing(LocalTree(str(self.root), found.index, found.seen)) as tree:
            self.assertEqual(set(tree.blocks(range(found.index.block_count - 1))), {None})

    @shows("F54")
    def test_just_written(self) -> None:
        """A file that was written in the tick of the clock in which it was scanned may change without a sign."""
        self.later_ns = 0
        self.big.write_bytes(BIG)
        self.assertEqual(self.scanned().seen, {})

    @shows("F54")
    def test_elsewhere(self) -> None:
        """A file system on a network may tell old times."""
        self.patch(syscalls, "file_system_type", lambda _: 0x6969)
        self.assertEqual(self.scanned().seen, {})

    @shows("F54")
    def test_gone(self) -> None:
        """A file that cannot be read any more is named, as without the shortcut."""
        found = self.scanned()
        self.big.unlink()
        with closing(LocalTree(str(self.root), found.index, found.seen)) as tree:
            self.assertEqual(self.given(found, tree)[0][0], None)
            self.assertEqual(tree.changed, {"/big"})
