"""Deleting trees, and what else is done with directory descriptors."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.layout import Place
from ciruela.disk.openfile import OpenFile
from ciruela.disk.reader import TREES, Readers
from ciruela.disk.removal import MAX_DEPTH, remove_tree
from ciruela.disk.safedir import SafeDir
from ciruela.disk.tree import Tree
from ciruela.model.vpath import VPath
from tests.disk.trees import SMALL, Node, Spec, blocks_of, index_bytes, plant, state_of
from tests.proof import shows


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Removal(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()
        self.here = SafeDir.at(str(self.path))
        self.addCleanup(self.here.close)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())

    def remove(self, name: str) -> None:
        for _ in remove_tree(self.here, name):
            pass

    def test_all_kinds(self) -> None:
        """Old versions would pile up; what their symlinks point at would go with them."""
        plant(self.path / "outside", {"/x": b"x"})
        plant(self.path / "tree", {**SMALL, "/out": str(self.path / "outside"), "/a/out": "../../outside"})
        os.mkfifo(self.path / "tree" / "fifo")
        self.remove("tree")
        self.assertEqual(self.names(), ["outside"])
        self.assertEqual((self.path / "outside" / "x").read_bytes(), b"x")

    def test_not_a_tree(self) -> None:
        """A file or a symlink could not be removed, or its target would be."""
        (self.path / "file").write_bytes(b"x")
        (self.path / "link").symlink_to("file")
        self.remove("link")
        self.assertEqual(self.names(), ["file"])
        self.remove("file")
        self.remove("nothing")
        self.assertEqual(self.names(), [])

    @shows("I1")
    def test_out_of_sight_at_once(self) -> None:
        """Others would see a tree with half its files, and a kill would leave it under its name."""
        plant(self.path / "tree", SMALL)
        work = remove_tree(self.here, "tree")
        next(work)
        self.assertNotIn("tree", self.names())
        plant(self.path / "tree", {"/new": b"new"})
        for _ in work:
            pass
        self.assertEqual([path.name for path in (self.path / "tree").iterdir()], ["new"])

    def test_two_at_once(self) -> None:
        """Two that delete the same rest of a tree would fail over each other."""
        plant(self.path / ".ciruela~x1", SMALL)
        one, two = remove_tree(self.here, ".ciruela~x1"), remove_tree(self.here, ".ciruela~x1")
        for _ in one:
            next(two, None)
        for _ in two:
            pass
        self.assertEqual(self.names(), [])

    def test_rest_of_an_earlier_run(self) -> None:
        """The rest of a removal that was killed would block the next."""
        plant(self.path / "tree", SMALL)
        plant(self.path / f".ciruela~x{(self.path / 'tree').stat().st_ino}", SMALL)
        self.remove("tree")
        self.assertEqual(self.names(), [])

    def test_very_deep(self) -> None:
        """A very deep tree would use up all descriptors or the stack, and stay for ever."""
        deepest = self.here.make_dir("tree")
        for _ in range(20 * MAX_DEPTH):
            deeper = deepest.make_dir("d")
            deeper.create("file").close()
            deepest.close()
            deepest = deeper
        deepest.close()
        before, most = descriptors(), 0
        for _ in remove_tree(self.here, "tree"):
            most = max(most, descriptors())
        self.assertEqual(self.names(), [])
        self.assertLessEqual(most - before, MAX_DEPTH + 1)

    @shows("I9", "I3")
    def test_mounted(self) -> None:
        """A file system that is mounted inside would be emptied."""
        plant(self.path / "tree", {"/mounted/x": b"x"})
        real = SafeDir.status

        def status(directory: SafeDir) -> object:
            return SimpleNamespace(st_dev=-1) if directory.where.endswith("mounted") else real(directory)

        self.patch(SafeDir, "status", status)
        failed = self.assertRaises(OSError, self.remove, "tree")
        self.assertIn("another file system", str(failed))
        self.assertEqual(len(list(self.path.rglob("x"))), 1)


class Descriptors(SynchronousTestCase):
    @shows("A41", "I6")
    def test_tree_is_bounded(self) -> None:
        """A large image would use up all descriptors."""
        path = Path(self.mktemp()).absolute()
        spec: Spec = {f"/d{number}/e/f{number}": b"x" for number in range(50)}
        plant(path, spec)
        before = descriptors()
        tree = Tree(SafeDir.at(str(path)), dirs=4, files=3)
        for number in range(50):
            self.assertEqual(tree.file(f"/d{number}/e/f{number}", SafeDir.open_read).read_at(9, 0), b"x")
            self.assertLessEqual(descriptors() - before, 1 + 4 + 3)
        tree.close()
        self.assertEqual(descriptors(), before)

    def test_deeper_than_the_tree_keeps(self) -> None:
        """A deep path would be read from a closed descriptor, which may by then be another file."""
        path = Path(self.mktemp()).absolute()
        deep = "/d" * 20
        plant(path, {f"{deep}/f": b"deep", "/d/f": b"flat"})
        tree = Tree(SafeDir.at(str(path)), dirs=2, files=1)
        for _ in range(3):
            self.assertEqual(tree.file(f"{deep}/f", SafeDir.open_read).read_at(9, 0), b"deep")
            self.assertEqual(tree.file("/d/f", SafeDir.open_read).read_at(9, 0), b"flat")
        tree.close()

    @shows("A41", "I6")
    def test_store_leaks_nothing(self) -> None:
        """A daemon would stop after some thousand uploads."""
        before = descriptors()
        node = Node(Path(self.mktemp()).absolute())
        index, data = index_bytes(SMALL)
        store = node.store
        for number in range(TREES + 5):
            vpath = VPath(("app", "web", f"v{number}"))
            self.successResultOf(store.write_index(index.image, data))
            staging = self.successResultOf(store.stage(vpath, index))
            self.successResultOf(staging.keep())
            self.successResultOf(staging.reuse([(VPath(("app", "web", "v0")), index)]))
            self.successResultOf(staging.write(blocks_of(SMALL, index)))
            if number % 3 == 2:
                self.successResultOf(staging.discard())
                continue
            self.successResultOf(staging.commit(state_of(index)))
            self.assertNotIn(None, store.read_blocks(vpath, index, range(index.block_count)))
        self.successResultOf(store.load())
        self.assertLessEqual(descriptors() - before, TREES * 9)
        store.close()
        self.assertEqual(descriptors(), before)

    @shows("A41", "I6")
    def test_failed_opens_leak_nothing(self) -> None:
        """Whoever plants a fifo or a symlink could use up the descriptors of the daemon."""
        path = Path(self.mktemp()).absolute()
        plant(path, {"/link": "file", "/dir/x": b"", "/file": b"x"})
        os.mkfifo(path / "fifo")
        with SafeDir.at(str(path)) as here:
            before = descriptors()
            for name in ("link", "dir", "fifo"):
                self.assertRaises(OSError, here.open_read, name)
                self.assertRaises(OSError, here.open_write, name)
            for names in (("dir", "x"), ("dir", "no"), ("link",)):
                self.assertRaises(OSError, here.descend, names)
            self.assertEqual(descriptors(), before)

    def test_link_is_what_was_hashed(self) -> None:
        """Whoever swaps a file between hashing and linking would bring another file into an image."""
        path = Path(self.mktemp()).absolute()
        plant(path, {"/good": b"good", "/evil": b"evil"})
        with SafeDir.at(str(path)) as here, here.open_read("good") as opened:
            os.rename(path / "evil", path / "good")
            self.assertRaises(OSError, here.link, opened, "linked")
            self.assertFalse((path / "linked").exists())
        plant(path / "second", {"/good": b"good", "/evil": b"evil"})
        with SafeDir.at(str(path / "second")) as here, here.open_read("good") as opened:
            os.rename(path / "second" / "good", path / "second" / "moved")
            os.rename(path / "second" / "evil", path / "second" / "good")
            here.link(opened, "linked")
            self.assertEqual((path / "second" / "linked").read_bytes(), b"good")

    @shows("A50", "F59")
    def test_link_is_checked(self) -> None:
        """Where /proc lies, as in some sandboxes, another file would become part of an image."""
        path = Path(self.mktemp()).absolute()
        plant(path, {"/good": b"good", "/evil": b"evil"})
        real = os.link
        self.patch(os, "link", lambda source, name, **_: real(path / "evil", path / os.fsdecode(name)))
        with SafeDir.at(str(path)) as here, here.open_read("good") as opened:
            self.assertRaises(OSError, here.link, opened, "linked")
        self.assertFalse((path / "linked").exists())

    def test_reader_of_what_changes_meanwhile(self) -> None:
        """A tree that was replaced while a thread read from it would stay open, and be read from later."""
        path = Path(self.mktemp()).absolute()
        plant(path / "v1", SMALL)
        index, _ = index_bytes(SMALL)
        readers, vpath = Readers(), VPath(("app", "web", "v1"))
        place = Place(vpath, str(path), (), "v1")
        before = descriptors()

        def open_root() -> SafeDir:
            readers.forget(vpath)
            return SafeDir.at(str(path / "v1"))

        self.assertNotIn(None, readers.read(place, index, [0, 1], open_root))
        self.assertEqual(descriptors(), before)

    def test_short_reads_and_writes(self) -> None:
        """A call that does less than it was asked for would leave a hole in a file."""
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        real_write, real_read = os.pwrite, os.pread
        self.patch(os, "pwrite", lambda fd, data, offset: real_write(fd, bytes(data)[:3], offset))
        self.patch(os, "pread", lambda fd, size, offset: real_read(fd, min(size, 3), offset))
        with SafeDir.at(str(path)) as here, here.create("file") as opened:
            assert isinstance(opened, OpenFile)
            opened.write_at(b"more than three", 2)
            self.assertEqual(opened.read_at(100, 0), b"\0\0more than three")
