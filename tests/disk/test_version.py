"""The version of a db directory."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela import __version__
from ciruela.disk import version
from ciruela.model.errors import DiskError
from tests.proof import shows


class VersionTests(SynchronousTestCase):
    """An older program must not misread what a newer one wrote."""

    def setUp(self) -> None:
        self.db = Path(self.mktemp()).absolute()
        self.db.mkdir()
        self.file = self.db / version.NAME

    def test_first_start(self) -> None:
        """A directory of the reference, or of an earlier version of ours, is taken as it is, and marked."""
        version.check(str(self.db))
        self.assertEqual(list(self.db.iterdir()), [])
        version.mark(str(self.db))
        self.assertEqual(self.file.read_text(), f"format 1, written by ciruela {__version__}\n")
        stamp = self.file.stat().st_mtime_ns
        version.mark(str(self.db))
        version.check(str(self.db))
        self.assertEqual(self.file.stat().st_mtime_ns, stamp)

    def test_older(self) -> None:
        """The next start of a newer program keeps the older one out."""
        self.file.write_text("format 0, written by ciruela 0.0.1\n")
        version.check(str(self.db))
        version.mark(str(self.db))
        self.assertIn("format 1", self.file.read_text())

    @shows("A59")
    def test_newer(self) -> None:
        """Refused, with who wrote it and what to do; nothing is touched."""
        self.file.write_text("format 2, written by ciruela 9.9\n")
        told = str(self.assertRaises(DiskError, version.check, str(self.db)))
        for part in (str(self.db), "format 2, written by ciruela 9.9", "--db-dir", "nothing was changed"):
            self.assertIn(part, told)
        self.assertEqual([path.name for path in self.db.iterdir()], [version.NAME])

    def test_not_understood(self) -> None:
        """A file that says nothing is no permission."""
        for data in (b"", b"format x\n", b"\xff" * 2000, b"format 1, written by ciruela 1\nmore\n"):
            self.file.write_bytes(data)
            self.assertIn("is not understood", str(self.assertRaises(DiskError, version.check, str(self.db))))
            self.assertRaises(DiskError, version.mark, str(self.db))
        self.assertIn("must exist", str(self.assertRaises(DiskError, version.check, str(self.db / "nowhere"))))
