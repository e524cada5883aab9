"""A user's copy of an image on a real file system."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.checkout import Checkout, DestinationKind
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.ids import Block
from tests.disk.trees import CHANGED, SMALL, Spec, in_place, index_bytes, plant
from tests.proof import shows


def blocks_of(spec: Spec) -> list[tuple[int, Block]]:
    """All blocks of an image by number."""
    index = index_bytes(spec)[0]
    blocks = index.blocks
    files = {path.removesuffix("*"): content for path, content in spec.items() if isinstance(content, bytes)}
    found = []
    for number in range(len(blocks)):
        file, block = blocks.by_number(number)
        found.append((number, files[file.path][block * 32768 : (block + 1) * 32768]))
    return found


class LandingTests(SynchronousTestCase):
    """A copy appears when it is whole and right, and takes the place of nothing that it must not."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.top.mkdir()

    def landing(self, spec: Spec = SMALL, name: str = "copy", link: bool = False) -> Checkout:
        found = Checkout(str(self.top), name, index_bytes(spec)[0], in_place, link=link)
        self.addCleanup(found.close)
        return found

    def put(self, landing: Checkout, spec: Spec = SMALL, replacing: bool = False) -> None:
        have = self.successResultOf(landing.open())
        self.assertTrue(all(self.successResultOf(landing.write([one for one in blocks_of(spec) if one[0] not in have]))))
        self.successResultOf(landing.show(replacing=replacing))

    def names(self) -> list[str]:
        return sorted(one.name for one in self.top.iterdir())

    def test_whole(self) -> None:
        """Links, modes, empty files and directories would be missing from a copy."""
        landing = self.landing()
        self.assertIs(self.successResultOf(landing.look()), DestinationKind.NOTHING)
        self.put(landing)
        self.assertIs(self.successResultOf(self.landing().look()), DestinationKind.SAME)
        self.assertEqual(self.names(), ["copy"])
        copy = self.top / "copy"
        self.assertEqual((copy.stat().st_mode & 0o777, (copy / "run.sh").stat().st_mode & 0o777), (0o755, 0o755))
        self.assertEqual(os.readlink(copy / "dangling"), "no such target")
        self.assertGreater((copy / "README").stat().st_mtime, 1_000_000_000)

    def test_standing(self) -> None:
        """What is there would be taken for the image, or the image for something else."""
        plant(self.top / "copy", SMALL)
        (self.top / "copy" / "README").chmod(0o664)
        self.assertIs(self.successResultOf(self.landing().look()), DestinationKind.SAME)
        (self.top / "copy" / "README").chmod(0o775)
        self.assertIs(self.successResultOf(self.landing().look()), DestinationKind.OTHER)
        self.assertIs(self.successResultOf(self.landing(CHANGED).look()), DestinationKind.OTHER)
        (self.top / "file").write_text("x")
        self.assertIs(self.successResultOf(self.landing(name="file").look()), DestinationKind.NO_DIRECTORY)
        (self.top / "link").symlink_to("copy")
        self.assertIs(self.successResultOf(self.landing(name="link").look()), DestinationKind.NO_DIRECTORY)

    def test_missing_blocks(self) -> None:
        """Half a copy would be shown."""
        landing = self.landing()
        self.successResultOf(landing.open())
        self.successResultOf(landing.write(blocks_of(SMALL)[1:]))
        self.failureResultOf(landing.show(replacing=False), DownloadFailed)
        self.assertFalse((self.top / "copy").exists())
        self.put(self.landing())
        self.assertEqual(self.names(), ["copy"])

    @shows("A7")
    def test_wrong_block(self) -> None:
        """A block that a node made up would be written."""
        landing = self.landing()
        self.successResultOf(landing.open())
        number, data = blocks_of(SMALL)[0]
        self.assertEqual(self.successResultOf(landing.write([(number, bytes(len(data)))])), [False])

    def test_appears_meanwhile(self) -> None:
        """What somebody else puts there in the last moment would be lost."""
        landing = self.landing()
        self.successResultOf(landing.open())
        self.successResultOf(landing.write(blocks_of(SMALL)))
        (self.top / "copy").mkdir()
        (self.top / "copy" / "mine").write_text("x")
        failure = self.failureResultOf(landing.show(replacing=False), DownloadFailed)
        self.assertIn("appeared meanwhile", failure.getErrorMessage())
        self.assertEqual((self.top / "copy" / "mine").read_text(), "x")

    def test_replace(self) -> None:
        """The old copy would stay, or lie around."""
        plant(self.top / "copy", SMALL)
        self.put(self.landing(CHANGED), CHANGED, replacing=True)
        self.assertIs(self.successResultOf(self.landing(CHANGED).look()), DestinationKind.SAME)
        self.assertEqual(self.names(), ["copy"])

    def test_reuse(self) -> None:
        """What is here would be fetched, or the directory it is taken from would change."""
        plant(self.top / "old", SMALL)
        before = (self.top / "old" / "a" / "big.bin").stat()
        for link, links in ((False, 1), (True, 2)):
            landing = self.landing(name=f"copy{link}", link=link)
            self.successResultOf(landing.open())
            reused = self.successResultOf(landing.reuse([(str(self.top / "old"), index_bytes(SMALL)[0])]))
            self.assertEqual(len(reused.blocks), index_bytes(SMALL)[0].block_count)
            self.successResultOf(landing.show(replacing=False))
            self.assertEqual((self.top / f"copy{link}" / "a" / "big.bin").stat().st_nlink, links)
        after = (self.top / "old" / "a" / "big.bin").stat()
        self.assertEqual((before.st_mtime_ns, before.st_mode), (after.st_mtime_ns, after.st_mode))

    def test_reuse_of_what_is_not_there(self) -> None:
        """A directory that is gone would end the copy."""
        landing = self.landing()
        self.successResultOf(landing.open())
        self.assertEqual(self.successResultOf(landing.reuse([("/nowhere", index_bytes(SMALL)[0])])).blocks, frozenset())

    def test_goes_on(self) -> None:
        """What an interrupted run got would be fetched again; what it got wrong would be kept."""
        landing = self.landing()
        self.successResultOf(landing.open())
        self.successResultOf(landing.write(blocks_of(SMALL)[:2]))
        landing.close()
        self.assertEqual(len(self.successResultOf(self.landing().open())), 2)

    def test_two_at_once(self) -> None:
        """Two runs for one destination would write into each other's files."""
        first = self.landing()
        self.successResultOf(first.open())
        failure = self.failureResultOf(self.landing().open(), DiskError)
        self.assertIn("another run is putting the same image together there", failure.getErrorMessage())
        first.close()
        self.successResultOf(self.landing().open())

    def test_no_parent(self) -> None:
        """A missing directory would end in a traceback."""
        landing = Checkout(str(self.top / "none"), "copy", index_bytes(SMALL)[0], in_place)
        self.failureResultOf(landing.look(), DiskError)
        self.failureResultOf(landing.open(), DiskError)
