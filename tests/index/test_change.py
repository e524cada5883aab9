"""One file put into an index."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.index.digest import HashKind
from ciruela.index.emit import NoPlace, emit, find, put
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File, Index
from tests.index.examples import FEATURES_TREE, KIND, file, names, trees

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def index(directories: tuple[Directory, ...], kind: HashKind = KIND) -> Index:
    """The index of ``directories``, as it is read."""
    image, data = emit(kind, directories)
    return parse(data, image)


class FindTests(SynchronousTestCase):
    """What stands where a file should be."""

    def setUp(self) -> None:
        self.index = index(FEATURES_TREE)

    def test_found(self) -> None:
        """The file that is edited would be another one."""
        self.assertEqual(find(self.index, "/a/big.bin"), FEATURES_TREE[1].entries[0])
        for path in ("/new", "/a/new", "/empty/new", "/x/y/z", "/a/bi", "/a/big.bin2"):
            self.assertIsNone(find(self.index, path))

    def test_no_place(self) -> None:
        """A file would take the place of a directory with all that is in it, or be written through a link."""
        for path, words in (
            ("/", "/ is a directory"),
            ("/a", "/a is a directory"),
            ("/empty", "/empty is a directory"),
            ("/dangling", "/dangling is a symbolic link to no such target"),
            ("/a/link", "a symbolic link to ../README"),
            ("/a/link/x", "/a/link is a symbolic link"),
            ("/README/x/y", "/README is a file"),
        ):
            for refused in (lambda path=path: find(self.index, path), lambda path=path: put(self.index, File(path, False, 0, b""))):
                self.assertIn(words, str(self.assertRaises(NoPlace, refused)))

    def test_bad_paths(self) -> None:
        """A path that no image can have would be signed."""
        for path in ("a", "/a/../b", "/a//b", "/a/", "/" + "n" * 256, "/x" * 65):
            self.assertRaises(ValueError, find, self.index, path)


class PutTests(SynchronousTestCase):
    """Everything else stays as it is."""

    def test_replaced(self) -> None:
        """The rest of the directory would be lost with an edit."""
        new = file("/run.sh", b"other")
        changed = put(index(FEATURES_TREE), new)
        self.assertEqual(changed[1:], FEATURES_TREE[1:])
        self.assertEqual(changed[0].entries, (*FEATURES_TREE[0].entries[:2], new, FEATURES_TREE[0].entries[3]))

    def test_directories_are_made(self) -> None:
        """A new file in a new directory would make an index that nobody takes."""
        changed = put(index(FEATURES_TREE), file("/a/b-c/d/e", b"x"))
        self.assertEqual([one.path for one in changed], ["/", "/a", "/a/b", "/a/b-c", "/a/b-c/d", "/a-b", "/empty"])
        emit(KIND, changed)

    @PROPERTY
    @given(trees(), st.lists(names, min_size=1, max_size=4), st.booleans(), st.binary(max_size=40))
    def test_anything_anywhere(self, tree: tuple[HashKind, tuple[Directory, ...]], parts: list[str], executable: bool, data: bytes) -> None:
        """Some directory would be refused, or come back changed, after a file was put into it."""
        kind, directories = tree
        before = index(directories, kind)
        new = file("/" + "/".join(parts), data, executable=executable, kind=kind)
        try:
            old = find(before, new.path)
        except NoPlace:
            self.assertRaises(NoPlace, put, before, new)
            return
        after = index(put(before, new), kind)
        self.assertEqual(find(after, new.path), new)
        self.assertEqual({one for one in after.entries() if one != new}, {one for one in before.entries() if one != old})
        above = {new.path.rsplit("/", count)[0] for count in range(1, len(parts))}
        self.assertEqual({one.path for one in after.directories}, {one.path for one in before.directories} | above)

    @PROPERTY
    @given(trees(), st.data())
    def test_there_and_back(self, tree: tuple[HashKind, tuple[Directory, ...]], draw: st.DataObject) -> None:
        """Who takes a change back would not get the image that was there."""
        kind, directories = tree
        before = index(directories, kind)
        assume(before.files)
        old = draw.draw(st.sampled_from(before.files))
        changed = index(put(before, file(old.path, b"something else", kind=kind)), kind)
        self.assertEqual(index(put(changed, old), kind), before)
