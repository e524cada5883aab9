"""Which images a directory takes."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index, Symlink, check, stays_inside
from ciruela.model.config import DirConfig, Symlinks
from ciruela.model.errors import DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from tests.proof import shows

ANY = DirConfig("app", "/srv/app", append_only=False, num_levels=1)
ONE_BLOCK = bytes(32)


def index(*entries: File | Symlink, below: tuple[str, ...] = ()) -> Index:
    """An image with ``entries`` in its root, and empty directories."""
    return Index(ImageId(bytes(32)), HashKind.BLAKE2B, (Directory("/", entries), *(Directory(path, ()) for path in below)))


class QuotaTests(SynchronousTestCase):
    """One upload must not fill a directory that others need."""

    def refused(self, image: Index, config: DirConfig) -> DownloadFailed:
        return self.assertRaises(DownloadFailed, check, image, config)

    @shows("A5", "A8", "F7")
    def test_bytes(self) -> None:
        """What counts is what is written: a short index can name one block a million times."""
        image = index(File("/a", False, 1000 * BLOCK_BYTES, ONE_BLOCK * 1000))
        check(image, ANY)
        check(image, replace(ANY, max_image_bytes=1000 * BLOCK_BYTES))
        fault = self.refused(image, replace(ANY, max_image_bytes=1000 * BLOCK_BYTES - 1))
        self.assertEqual(
            (fault.reason, fault.detail), (AbortReason.IMAGE_TOO_LARGE, "it has 32768000 bytes, max-image-bytes is 32767999 here")
        )

    @shows("A5", "F7")
    def test_files(self) -> None:
        """Files, links and directories alike take an inode; the root of the image is not counted."""
        image = index(File("/a", False, 0, b""), Symlink("/b", "a"), below=("/c",))
        check(image, replace(ANY, max_image_files=3))
        fault = self.refused(image, replace(ANY, max_image_files=2))
        self.assertEqual(fault.reason, AbortReason.IMAGE_TOO_LARGE)
        self.assertIn("3 files, links and directories, max-image-files is 2", fault.detail)

    @shows("A3")
    def test_symlinks(self) -> None:
        """An operator who serves a directory can rule out that a link leads to his other files."""
        inside, outside = index(Symlink("/b", "a")), index(Symlink("/b", "a"), Symlink("/c\n", "/etc/passwd"))
        for config in (ANY, replace(ANY, symlinks=Symlinks.INSIDE)):
            check(inside, config)
        check(outside, ANY)
        fault = self.refused(outside, replace(ANY, symlinks=Symlinks.INSIDE))
        self.assertEqual(fault.reason, AbortReason.BAD_SYMLINK)
        self.assertEqual(fault.detail, "'/c\\n' -> '/etc/passwd': it may lead out of the image, symlinks is inside here")
        self.assertEqual(self.refused(inside, replace(ANY, symlinks=Symlinks.NONE)).reason, AbortReason.BAD_SYMLINK)
        check(index(File("/a", False, 0, b"")), replace(ANY, symlinks=Symlinks.NONE))


class InsideTests(SynchronousTestCase):
    """Where a link leads is decided without a file system, and never too kindly."""

    DIRECTORIES = frozenset({"/", "/a", "/a/b", "/c"})

    def inside(self, path: str, target: str) -> bool:
        return stays_inside(Symlink(path, target), set(self.DIRECTORIES))

    @shows("A3")
    def test_inside(self) -> None:
        """Ordinary links of packages pass."""
        for path, target in (
            ("/x", "y"),
            ("/x", "./a//b/"),
            ("/x", "."),
            ("/a/b/x", "../../c/y"),
            ("/a/b/x", "../.."),
            ("/a/x", "b/../y"),
            ("/x", "nowhere/at/all"),
        ):
            self.assertTrue(self.inside(path, target), (path, target))

    @shows("A3", "F2")
    def test_outside(self) -> None:
        """Out of the image by name, or by way of a name that may itself be a link."""
        for path, target in (
            ("/x", "/"),
            ("/x", "/a"),
            ("/x", ".."),
            ("/x", "a/../.."),
            ("/a/b/x", "../../.."),
            ("/x", "link/../y"),
            ("/a/x", "../link/.."),
            ("/x", "a/b/../../../etc"),
        ):
            self.assertFalse(self.inside(path, target), (path, target))
