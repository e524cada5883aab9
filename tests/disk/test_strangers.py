"""Planted symlinks, and directories that are not ours."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ciruela.disk.safedir import SafeDir
from ciruela.interfaces import Held, Pending
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.upload import AbortReason, Command
from ciruela.model.vpath import VPath
from tests.disk.real import V1, Real
from tests.disk.trees import CHANGED, SMALL, Spec, blocks_of, flat, index_bytes, on_disk, plant, state_of
from tests.proof import shows


@shows("F2", "I3")
class Planted(Real):
    """Symlinks in the way. ``tearDown`` looks that nothing outside was touched."""

    def test_in_the_parents(self) -> None:
        """A symlink below the base would lead uploads anywhere."""
        (self.node.srv / "web").symlink_to(self.outside)
        index, _ = index_bytes(SMALL)
        failed = self.failureResultOf(self.store.stage(V1, index), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.CANT_CREATE_DIRECTORY)
        self.assertIn("web is not a directory", failed.detail)
        self.assertEqual(self.store.read_blocks(V1, index, [0]), [None])
        self.failureResultOf(self.store.present(V1), DiskError)

    def test_at_the_name(self) -> None:
        """A symlink at the name of an image would be followed, or replaced without asking."""
        (self.node.srv / "web").mkdir()
        self.node.image(V1).symlink_to(self.outside / "v1")
        self.assertFalse(self.successResultOf(self.store.present(V1)))
        self.assertIn("is not a directory", self.refused(V1, SMALL, AbortReason.ALREADY_EXISTS))
        self.assertTrue(self.node.image(V1).is_symlink())

    def test_at_the_single_name(self) -> None:
        """The same for a configured directory that is itself the image."""
        single = VPath(("one",))
        self.node.image(single).symlink_to(self.outside)
        self.refused(single, SMALL, AbortReason.ALREADY_EXISTS)
        self.assertTrue(self.node.image(single).is_symlink())

    def test_in_place_of_our_image(self) -> None:
        """What somebody put in place of an image would be followed and deleted."""
        self.upload(V1, SMALL)
        self.node.image(V1).rename(self.node.root / "kept")
        self.node.image(V1).symlink_to(self.outside)
        self.refused(V1, CHANGED, AbortReason.ALREADY_EXISTS)

    def test_at_the_staging_name(self) -> None:
        """A symlink planted where the staging directory will be would be filled with the image."""
        index, _ = index_bytes(SMALL)
        (self.node.srv / "web").mkdir()
        self.staging_path(V1, index).symlink_to(self.outside)
        self.upload(V1, SMALL)
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    def test_in_the_staging_directory(self) -> None:
        """A symlink planted during a download would be written through."""
        for name, target in (("a", self.outside), ("README", self.outside / "precious")):
            index, _ = index_bytes(SMALL)
            opened = self.staged(V1, index)
            (self.staging_path(V1, index) / name).symlink_to(target)
            self.failureResultOf(opened.write(blocks_of(SMALL, index)), DiskError)
            self.successResultOf(opened.discard())

    def test_in_the_image_that_is_served(self) -> None:
        """A symlink in an image would let anybody read any file."""
        spec: Spec = {"/README": b"precious", "/sub/precious": b"precious"}
        index = self.upload(V1, spec)
        self.store.close()
        for name, target in (("README", self.outside / "precious"), ("sub", self.outside)):
            path = self.node.image(V1) / name
            path.rename(self.node.root / f"was-{name}")
            path.symlink_to(target)
        self.assertEqual(self.store.read_blocks(V1, index, [0, 1]), [None, None])

    def test_in_the_old_tree(self) -> None:
        """Deleting the old version would delete what its symlinks point at."""
        self.upload(V1, {**SMALL, "/out": str(self.outside)})
        self.upload(V1, CHANGED)
        self.assertEqual(self.node.debris(), [])

    def test_in_the_db(self) -> None:
        """A symlink in the db directory would let states be written elsewhere."""
        (self.node.db / "signatures").symlink_to(self.outside)
        (self.node.db / "indexes").symlink_to(self.outside)
        index, data = index_bytes(SMALL)
        self.failureResultOf(self.store.write_pending(Pending(V1, state_of(index), Command.APPEND)), DiskError)
        self.failureResultOf(self.store.write_index(index.image, data), DiskError)

    def test_a_state_that_is_a_symlink(self) -> None:
        """A state would be read from anywhere."""
        self.upload(V1, SMALL)
        state = self.node.db / "signatures" / "app" / "web" / "v1.state"
        state.rename(self.node.root / "state")
        state.symlink_to(self.node.root / "state")
        self.assertEqual(self.successResultOf(self.store.load()).held, [])
        self.assertTrue((state.parent / ".v1.state.backup").is_symlink())
        self.assertTrue(self.node.image(V1).is_dir())

    @shows("F3")
    @settings(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(st.text(max_size=12) | st.sampled_from(["", ".", "..", "a/b", "/etc", "a\0b", "/"]))
    def test_names(self, name: str) -> None:
        """A name with a slash or dots would lead out of its directory."""
        bad = name in ("", ".", "..") or "/" in name or "\0" in name
        with SafeDir.at(str(self.node.srv)) as directory:
            if not bad:
                self.assertIsNone(directory.stat(name))
                return
            calls: list[Any] = [directory.stat, directory.open_dir, directory.make_dir, directory.open_read, directory.create]
            for call in [*calls, directory.unlink, directory.rmdir, directory.readlink]:
                self.assertRaises(OSError, call, name)
            for call in (directory.rename, directory.rename_new):
                self.assertRaises(OSError, call, "x", name)
                self.assertRaises(OSError, call, name, "x")
            self.assertRaises(OSError, directory.symlink, "target", name)


@shows("I9")
class Unmanaged(Real):
    """Directories that stand at a path of which we have no record, where only new names are taken."""

    def setUp(self) -> None:
        super().setUp()
        self.node.configs["app"] = replace(self.node.configs["app"], append_only=True)

    def test_another_content(self) -> None:
        """Somebody's directory would be replaced and deleted."""
        extras: list[Spec] = [{"/other": b"x"}, {"/README": b"hellO\n"}, {"/more/x": b"x"}]
        for number, extra in enumerate(extras):
            vpath = VPath(("app", "web", f"n{number}"))
            plant(self.node.image(vpath), {**SMALL, **extra})
            before = on_disk(self.node.image(vpath))
            self.assertIn(str(self.node.image(vpath)), self.refused(vpath, SMALL, AbortReason.ALREADY_EXISTS))
            self.assertEqual(on_disk(self.node.image(vpath)), before)

    def test_a_file(self) -> None:
        """Somebody's file would be replaced."""
        (self.node.srv / "web").mkdir()
        self.node.image(V1).write_bytes(b"mine")
        self.refused(V1, SMALL, AbortReason.ALREADY_EXISTS)
        self.assertEqual(self.node.image(V1).read_bytes(), b"mine")

    def test_same_content(self) -> None:
        """A directory that was copied by hand before could never be taken over."""
        plant(self.node.image(V1), SMALL)
        (self.node.image(V1) / "README").chmod(0o600)
        (self.node.image(V1) / "a").chmod(0o700)
        before = self.node.image(V1).stat().st_ino
        index = self.upload(V1, SMALL)
        self.assertEqual(self.node.image(V1).stat().st_ino, before)
        self.assertEqual((self.node.image(V1) / "README").stat().st_mode & 0o7777, 0o644)
        self.assertEqual((self.node.image(V1) / "a").stat().st_mode & 0o7777, 0o755)
        self.assertEqual(self.successResultOf(self.store.load()).held, [Held(V1, state_of(index), None)])
        self.assertEqual(self.node.debris(), [])

    def test_same_content_with_other_names(self) -> None:
        """Taking a directory over would change the mode of files elsewhere that share an inode."""
        self.strict = True
        precious = self.outside / "precious"
        precious.chmod(0o600)
        self.node.image(V1).mkdir(parents=True)
        os.link(precious, self.node.image(V1) / "precious")
        self.assertIn("other names", self.refused(V1, {"/precious": b"precious"}, AbortReason.ALREADY_EXISTS))

    def test_empty(self) -> None:
        """An empty directory that an admin made in advance would block the upload for ever."""
        for vpath in (V1, VPath(("one",))):
            self.node.image(vpath).mkdir(parents=True)
            self.upload(vpath, SMALL)
            self.assertEqual(on_disk(self.node.image(vpath)), flat(SMALL))

    def test_it_appears_at_the_last_moment(self) -> None:
        """What somebody creates during the commit would be overwritten."""
        real = SafeDir.rename_new

        def appear(here: SafeDir, old: str, new: str) -> None:
            plant(self.node.image(V1), {"/mine": b"mine"})
            real(here, old, new)

        self.patch(SafeDir, "rename_new", appear)
        self.refused(V1, SMALL, AbortReason.ALREADY_EXISTS)
        self.assertEqual(on_disk(self.node.image(V1)), flat({"/mine": b"mine"}))
