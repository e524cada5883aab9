"""What differs between two images."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.diff import Change, lines, new_bytes
from tests.disk.trees import Spec, index_bytes

TREE: Spec = {"/a/deep/file": b"deep", "/a/b": b"x" * 100_000, "/run*": b"#!", "/link": "a/b", "/void": None, "/none": b""}


class LinesTests(SynchronousTestCase):
    """Every change is one line, and says what it is."""

    def lines(self, other: Spec) -> list[str]:
        return [line.text() for line in lines(index_bytes(TREE)[0], index_bytes(other)[0])]

    def test_same(self) -> None:
        """A release without changes would seem to have some."""
        self.assertEqual(self.lines(dict(TREE)), [])

    def test_each_kind(self) -> None:
        """A change of one kind would not be seen."""
        without = {path: content for path, content in TREE.items() if path not in ("/run*", "/void")}
        self.assertEqual(
            self.lines(
                {
                    **without,
                    "/run": b"#!",
                    "/a/b": b"x" * 99_999 + b"y",
                    "/link": "a",
                    "/none": b"12",
                    "/new/x": b"1",
                    "/new/y": "z",
                    "/void": b"",
                }
            ),
            [
                "~ /a/b  97.7 KiB",
                "~ /link  -> a/b, now -> a",
                "+ /new/",
                "+ /new/x  1 B",
                "+ /new/y  -> z",
                "~ /none  0 B, now 2 B",
                "m /run  not executable any more",
                "~ /void  directory, now file",
            ],
        )
        self.assertEqual(self.lines(without), ["- /run  2 B", "- /void/"])

    def test_mode_and_sizes(self) -> None:
        """A program would be told to be executable when it is not any more."""
        without = {path: content for path, content in TREE.items() if path != "/none"}
        (line,) = lines(index_bytes(TREE)[0], index_bytes({**without, "/none*": b""})[0])
        self.assertEqual((line.change, line.text(), line.sizes), (Change.MODE, "m /none  executable now", (0, 0)))

    def test_new_bytes(self) -> None:
        """What would travel would be told wrong."""
        left = index_bytes(TREE)[0]
        self.assertEqual(new_bytes(left, index_bytes({"/moved": b"x" * 100_000})[0]), 0)
        self.assertEqual(
            new_bytes(left, index_bytes({**TREE, "/a/b": b"x" * 99_999 + b"y", "/again": b"1234", "/twice": b"1234"})[0]), 1700
        )
