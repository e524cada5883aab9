"""A disk that is not mounted, or another one at its place."""

from __future__ import annotations

import shutil
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ciruela.disk.bases import NAME, decode, encode
from ciruela.disk.layout import BaseUnavailable
from ciruela.interfaces import Held, NamesFound
from ciruela.model.errors import DownloadFailed, FormatError
from ciruela.model.upload import AbortReason
from ciruela.model.vpath import VPath
from tests.disk.bench import OLD, Bench, done, succeed
from tests.disk.real import V1, V2, Real
from tests.disk.trees import SMALL, flat, index_bytes, on_disk, state_of
from tests.proof import shows

SINGLE = VPath(("one",))


class Bases(Real):
    def setUp(self) -> None:
        super().setUp()
        self.base = Path(self.node.configs["app"].directory)
        self.record = self.node.db / "signatures" / f".app{NAME}"

    def unmount(self) -> Path:
        """What was the base is elsewhere, and an empty directory stands in its place, as after a boot without the disk."""
        away = self.base.with_name("away")
        self.base.rename(away)
        self.base.mkdir()
        return away

    def mount(self, away: Path) -> None:
        shutil.rmtree(self.base)
        away.rename(self.base)

    def restart(self) -> list[Held]:
        self.store.close()
        self.store = self.node.restarted()
        return list(self.successResultOf(self.store.load()).held)

    @shows("A40", "F30", "I9")
    def test_not_mounted_at_a_start(self) -> None:
        """Everything would be fetched again, onto the disk of the system."""
        index = self.upload(V1, SMALL)
        self.restart()
        before = on_disk(self.node.db)
        away = self.unmount()
        self.assertEqual(self.restart(), [Held(V1, state_of(index), None)])
        self.assertEqual((on_disk(self.node.db), list(self.base.iterdir())), (before, []))
        other, _ = index_bytes(SMALL)
        failed = self.failureResultOf(self.store.stage(V2, other), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.CANT_CREATE_DIRECTORY)
        self.assertIn("is the disk mounted?", str(failed))
        self.assertIn(f"delete .app{NAME}", str(failed).replace("signatures/", ""))
        self.mount(away)
        self.upload(V2, SMALL)
        self.assertEqual(on_disk(self.node.image(V2)), flat(SMALL))

    @shows("A40", "F30")
    def test_unmounted_while_running(self) -> None:
        """New images would go below the mount point, and be hidden when the disk comes back."""
        index = self.upload(V1, SMALL)
        away = self.unmount()
        self.failureResultOf(self.store.stage(V2, index), DownloadFailed)
        self.assertEqual(self.store.read_blocks(V1, index, [0]), [None])
        self.failureResultOf(self.store.present(V1), BaseUnavailable)
        self.assertEqual(list(self.base.iterdir()), [])
        self.mount(away)
        self.assertTrue(self.successResultOf(self.store.present(V1)))

    @shows("K3.5", "A40")
    def test_mounted_over(self) -> None:
        """A file system that is mounted over images of a running node would get them all again, and new ones as well."""
        for where in ("/n/srv", "/n/srv/web"):
            bench = Bench()
            with bench.sim.installed():
                succeed(bench, lambda bench: bench.upload(V1, OLD, 5))
                self.assertEqual(done(bench.store.look([V1])), NamesFound((), {}))
                bench.sim.mount(where)
                sight = done(bench.store.look([V1]))
                self.assertEqual((sight.gone, list(sight.unseen)), ((), ["app"]))
                self.assertIn("none of the recorded images is there", sight.unseen["app"])
                self.assertRaises(DownloadFailed, succeed, bench, lambda bench: bench.upload(V2, OLD, 6))
                self.assertEqual(bench.sim.tree(where), {"/": b""})
                bench.sim.volume("/n").mounts.clear()
                self.assertEqual(done(bench.store.look([V1])), NamesFound((), {}))
                succeed(bench, lambda bench: bench.upload(V2, OLD, 6))
                self.assertEqual(bench.tree(V2), flat(OLD))

    def test_moved_to_another_disk(self) -> None:
        """An operator who copies the images to a larger disk would have to tell the daemon."""
        index = self.upload(V1, SMALL)
        away = self.unmount()
        shutil.rmtree(self.base)
        shutil.copytree(away, self.base, symlinks=True)
        self.assertEqual(self.restart(), [Held(V1, state_of(index), None)])
        shutil.rmtree(away)
        self.assertTrue(self.successResultOf(self.store.present(V1)))

    def test_new_on_purpose(self) -> None:
        """What the message says to do works: the images are fetched again."""
        self.upload(V1, SMALL)
        self.unmount()
        self.record.unlink()
        [held] = self.restart()
        self.assertIsNone(held.committed)
        self.assertIsNotNone(held.pending)

    def test_emptied_by_hand(self) -> None:
        """Images that an operator removed are fetched again: the directory is the same."""
        self.upload(V1, SMALL)
        shutil.rmtree(self.node.image(V1))
        [held] = self.restart()
        self.assertIsNotNone(held.pending)

    def test_nothing_recorded(self) -> None:
        """Nothing is at stake where there is no image yet."""
        self.assertEqual(self.restart(), [])
        self.unmount()
        self.restart()
        self.upload(V1, SMALL)
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    def test_bad_record(self) -> None:
        """A damaged file costs a warning, and is kept."""
        index = self.upload(V1, SMALL)
        self.record.write_bytes(b"\xa0")
        self.assertEqual(self.restart(), [Held(V1, state_of(index), None)])
        self.assertTrue(self.record.with_name(f"..app{NAME}.backup").exists())
        self.assertEqual(decode(self.record.read_bytes())[0], str(self.base))

    def test_level_zero(self) -> None:
        """With num-levels 0 the directory above is the one that may be a mount point."""
        index = self.upload(SINGLE, SMALL)
        above = self.node.image(SINGLE).parent
        away = above.with_name("away-single")
        above.rename(away)
        above.mkdir()
        self.assertEqual(self.restart(), [Held(SINGLE, state_of(index), None)])
        shutil.rmtree(above)
        away.rename(above)


class Format(Real):
    @given(st.text(max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
    @settings(derandomize=True, deadline=None, database=None, max_examples=20)
    def test_round_trip(self, directory: str, device: int, inode: int) -> None:
        """What is written is read again."""
        self.assertEqual(decode(encode(directory, (device, inode))), (directory, (device, inode)))

    def test_bad(self) -> None:
        """Nothing else is taken for it."""
        numbers = (encode("x", (True, 2)), encode("x", (1, False)), encode("x", (-1, 2)), encode("x", (1, -2)))
        for data in (b"", b"\xa0", encode("x", (1, 2)) + b"x", b"\xa1\x69directory\x61x", *numbers):
            self.assertRaises(FormatError, decode, data)
