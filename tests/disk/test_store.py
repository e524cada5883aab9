"""What only real files can show: modes, links, planted symlinks, directories that are not ours, what the reference left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import layout, safedir, staging, syscalls
from ciruela.disk.lock import lock
from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.index.tree import Index
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.order import Abort, Command
from ciruela.model.vpath import VPath
from ciruela.seams import Held, Pending, Staging
from tests.disk.trees import CHANGED, SMALL, Node, Spec, blocks_of, flat, in_place, index_bytes, on_disk, plant, state_of

V1 = VPath(("app", "web", "v1"))
V2 = VPath(("app", "web", "v2"))


class Real(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(Path(self.mktemp()).absolute())
        self.store = self.node.store
        self.outside = self.node.root / "outside"
        plant(self.outside, {"/precious": b"precious", "/v1/README": b"not ours"})

    def tearDown(self) -> None:
        self.store.close()
        self.assertEqual(on_disk(self.outside), flat({"/precious": b"precious", "/v1/README": b"not ours"}))
        self.assertEqual((self.outside / "precious").stat().st_mode & 0o777, 0o600 if self.strict else 0o644)

    strict = False

    def staged(self, vpath: VPath, index: Index) -> Staging:
        opened: Staging = self.successResultOf(self.store.stage(vpath, index))
        return opened

    def filled(self, vpath: VPath, spec: Spec) -> tuple[Staging, Index]:
        index, data = index_bytes(spec)
        self.successResultOf(self.store.write_pending(Pending(vpath, state_of(index), Command.REPLACE)))
        self.successResultOf(self.store.write_index(index.image, data))
        opened = self.staged(vpath, index)
        self.successResultOf(opened.write(blocks_of(spec, index)))
        return opened, index

    def upload(self, vpath: VPath, spec: Spec) -> Index:
        opened, index = self.filled(vpath, spec)
        self.successResultOf(opened.commit(state_of(index)))
        return index

    def refused(self, vpath: VPath, spec: Spec, reason: Abort) -> str:
        opened, index = self.filled(vpath, spec)
        failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason, reason)
        return str(failed)

    def staging_path(self, vpath: VPath, index: Index) -> Path:
        return self.node.image(vpath).parent / layout.place(self.node.configs, vpath).staging(index.image)


class Attributes(Real):
    def test_modes_and_times(self) -> None:
        """Files would differ between nodes: by umask, by time of arrival."""
        for number, mask in enumerate((0o000, 0o022, 0o077, 0o027)):
            before = os.umask(mask)
            self.addCleanup(os.umask, before)
            vpath = VPath(("app", f"web{number}", "v1"))
            self.upload(vpath, SMALL)
            root = self.node.image(vpath)
            os.umask(before)
            self.assertEqual(root.parent.stat().st_mode & 0o7777, 0o755)
            self.assertEqual(root.stat().st_mode & 0o7777, 0o755)
            for path in root.rglob("*"):
                if path.is_symlink():
                    continue
                expected = 0o755 if path.is_dir() or path.name in ("run.sh", "zero-run") else 0o644
                self.assertEqual(path.stat().st_mode & 0o7777, expected, path)
                if path.is_file():
                    self.assertEqual((path.stat().st_mtime_ns, path.stat().st_nlink), (10**9, 1))

    def test_hidden_until_whole(self) -> None:
        """Others on the machine could read or use half an image."""
        opened, index = self.filled(V1, SMALL)
        self.assertEqual(self.staging_path(V1, index).stat().st_mode & 0o7777, 0o700)
        self.assertEqual((self.staging_path(V1, index) / "README").stat().st_mode & 0o7777, 0o600)
        self.assertFalse(self.node.image(V1).exists())
        self.successResultOf(opened.commit(state_of(index)))
        self.assertFalse(self.staging_path(V1, index).exists())

    def test_base_may_be_a_symlink(self) -> None:
        """An admin who links the configured directory to another disk could not upload to it."""
        self.node.srv.rename(self.node.root / "big")
        self.node.srv.symlink_to("big")
        self.upload(V1, SMALL)
        self.assertEqual(on_disk(self.node.root / "big" / "web" / "v1"), flat(SMALL))


class Links(Real):
    def inode(self, vpath: VPath, name: str) -> int:
        return (self.node.image(vpath) / name).stat().st_ino

    def next_version(self, spec: Spec) -> int:
        """Upload ``spec`` as v2 with v1 as sibling; returns how many files were linked."""
        old, _ = index_bytes(SMALL)
        index, _ = index_bytes(spec)
        opened = self.staged(V2, index)
        reused = self.successResultOf(opened.reuse([(V1, old)]))
        self.successResultOf(opened.write([block for block in blocks_of(spec, index) if block[0] not in reused.blocks]))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V2)), flat(spec))
        files: int = reused.files
        return files

    def test_same_inode(self) -> None:
        """Each version would take the whole space again."""
        self.upload(V1, SMALL)
        self.assertEqual(self.next_version(CHANGED), 4)
        self.assertEqual(self.inode(V1, "run.sh"), self.inode(V2, "run.sh"))
        self.assertEqual(self.inode(V1, "a-b/sp ace"), self.inode(V2, "a-b/sp ace"))
        self.assertNotEqual(self.inode(V1, "README"), self.inode(V2, "README"))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    def test_edited_source(self) -> None:
        """A file that somebody edited in one image would spread to the next (A50)."""
        self.upload(V1, SMALL)
        (self.node.image(V1) / "run.sh").write_bytes(b"#!/bin/sh\necho no\n")
        self.assertEqual(self.next_version(SMALL), 5)

    def test_wrong_mode(self) -> None:
        """A file that somebody made writable for all would be part of the next image."""
        self.upload(V1, SMALL)
        (self.node.image(V1) / "README").chmod(0o666)
        (self.node.image(V1) / "run.sh").chmod(0o4755)
        self.assertEqual(self.next_version(SMALL), 4)
        self.assertEqual((self.node.image(V2) / "README").stat().st_mode & 0o7777, 0o644)
        self.assertEqual((self.node.image(V1) / "README").stat().st_mode & 0o7777, 0o666)

    def test_longer_source(self) -> None:
        """A file to which something was appended would be linked, its blocks being right."""
        self.upload(V1, SMALL)
        with (self.node.image(V1) / "README").open("ab") as file:
            file.write(b"more")
        self.assertEqual(self.next_version(SMALL), 5)

    def test_symlinked_source(self) -> None:
        """A symlink planted in a sibling would link files from anywhere."""
        self.upload(V1, SMALL)
        readme = self.node.image(V1) / "README"
        readme.unlink()
        (self.node.root / "hello").write_bytes(b"hello\n")
        readme.symlink_to(self.node.root / "hello")
        (self.node.image(V1) / "a").rename(self.node.root / "a-elsewhere")
        (self.node.image(V1) / "a").symlink_to(self.node.root / "a-elsewhere")
        self.assertEqual(self.next_version(SMALL), 3)
        self.assertEqual((self.node.root / "hello").stat().st_nlink, 1)

    def test_links_refused(self) -> None:
        """A file system that cannot link, or not to this file, would end the download."""
        self.upload(V1, SMALL)
        for number, code in enumerate((errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOENT, errno.EIO)):

            def refuse(_: SafeDir, source: object, name: str, code: int = code) -> None:
                raise OSError(code, os.strerror(code), name)

            self.patch(SafeDir, "link", refuse)
            index, _ = index_bytes(SMALL)
            opened = self.staged(VPath(("app", "web", f"n{number}")), index)
            self.assertEqual(self.successResultOf(opened.reuse([(V1, index)])).files, 0)
            self.successResultOf(opened.write(blocks_of(SMALL, index)))
            self.successResultOf(opened.commit(state_of(index)))

    def test_full_while_linking(self) -> None:
        """A full disk would be hidden behind "cannot be linked"."""
        self.upload(V1, SMALL)

        def refuse(_: SafeDir, source: object, name: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", name)

        self.patch(SafeDir, "link", refuse)
        index, _ = index_bytes(SMALL)
        failed = self.failureResultOf(self.staged(V2, index).reuse([(V1, index)]), DownloadFailed).value
        self.assertEqual(failed.reason, Abort.NO_SPACE)

    def test_changed_while_linking(self) -> None:
        """A file that changes between hashing and linking would be taken for what it was."""
        self.upload(V1, SMALL)
        real = SafeDir.link

        def edit(here: SafeDir, source: safedir.OpenFile, name: str) -> None:
            os.utime(source.fd, ns=(5, 5))
            real(here, source, name)

        self.patch(SafeDir, "link", edit)
        index, _ = index_bytes(SMALL)
        opened = self.staged(V2, index)
        self.assertEqual(self.successResultOf(opened.reuse([(V1, index)])).files, 0)
        self.assertEqual([path for path in self.staging_path(V2, index).rglob("*") if path.is_file()], [])

    def test_kept_link_is_not_written(self) -> None:
        """Continuing a download would write into another image through a shared inode."""
        old = self.upload(V1, SMALL)
        opened = self.staged(V2, old)
        self.successResultOf(opened.reuse([(V1, old)]))
        big = self.staging_path(V2, old) / "a" / "big.bin"
        with big.open("r+b") as file:
            file.write(b"damaged")
        damaged = big.read_bytes()
        self.store = Store(str(self.node.db), self.node.configs, in_place)
        opened = self.staged(V2, old)
        kept = self.successResultOf(opened.keep())
        self.assertFalse(big.exists())
        self.successResultOf(opened.write([block for block in blocks_of(SMALL, old) if block[0] not in kept]))
        self.successResultOf(opened.commit(state_of(old)))
        self.assertEqual(on_disk(self.node.image(V2)), flat(SMALL))
        self.assertEqual((self.node.image(V1) / "a" / "big.bin").read_bytes(), damaged)

    def test_block_that_a_linked_file_has_too(self) -> None:
        """A block that arrives for one file would break another that was linked with the same block in it."""
        block = bytes(range(256)) * 128
        old = self.upload(V1, {"/big": block + b"end"})
        spec: Spec = {"/big": block + b"end", "/part": block}
        index, _ = index_bytes(spec)
        opened = self.staged(V2, index)
        reused = self.successResultOf(opened.reuse([(V1, old)]))
        self.successResultOf(opened.write([found for found in blocks_of(spec, index) if found[0] not in reused.blocks]))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(self.inode(V1, "big"), self.inode(V2, "big"))
        self.assertEqual(on_disk(self.node.image(V2)), flat(spec))

    def test_shared_file_in_the_way(self) -> None:
        """Writing without looking first at what an earlier run left would damage another image."""
        self.upload(V1, SMALL)
        index, _ = index_bytes(CHANGED)
        opened = self.staged(V2, index)
        os.link(self.node.image(V1) / "README", self.staging_path(V2, index) / "README")
        self.successResultOf(opened.write(blocks_of(CHANGED, index)))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))
        self.assertEqual(on_disk(self.node.image(V2)), flat(CHANGED))


class Kept(Real):
    def test_everything_else_goes(self) -> None:
        """What was left or planted in a staging directory would become part of the image, or block it."""
        index, _ = index_bytes(SMALL)
        root = self.staging_path(V1, index)
        left: Spec = {
            "/README": b"hello\n",
            "/run.sh*": b"wrong",
            "/zero": b"not empty",
            "/extra": b"x",
            "/more/x": b"x",
            "/empty": b"a file",
            "/deep": str(self.outside),
            "/a/link": "elsewhere",
            "/a/big.bin": b"",
            "/a-b/sp ace/x": b"",
            "/dangling": b"no such target",
        }
        plant(root, left)
        big = root / "a" / "big.bin"
        content = SMALL["/a/big.bin"]
        assert isinstance(content, bytes)
        big.write_bytes(content[: 32768 * 2])
        big.chmod(0o600)
        opened = self.staged(V1, index)
        kept = self.successResultOf(opened.keep())
        blocks = blocks_of(SMALL, index)
        self.assertEqual({data for number, data in blocks if number in kept}, {b"hello\n", content[:32768]})
        self.assertEqual(set(on_disk(root)), {"/", "/README", "/a", "/a/big.bin", "/a-b"})
        self.successResultOf(opened.write(blocks))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    def test_finished_file_is_not_continued(self) -> None:
        """A program that still runs from the old tree would see its files change under it."""
        index, _ = index_bytes(SMALL)
        root = self.staging_path(V1, index)
        plant(root, {"/a/big.bin": b"\0" * 102400})
        before = (root / "a" / "big.bin").open("rb")
        self.addCleanup(before.close)
        content = SMALL["/a/big.bin"]
        assert isinstance(content, bytes)
        (root / "a" / "big.bin").write_bytes(content[:32768])
        opened = self.staged(V1, index)
        self.assertEqual(self.successResultOf(opened.keep()), frozenset())
        self.successResultOf(opened.write(blocks_of(SMALL, index)))
        self.assertEqual(before.read(), content[:32768])

    def test_too_long(self) -> None:
        """A file with bytes behind its end would be kept, and the commit would fail for ever."""
        index, _ = index_bytes(SMALL)
        plant(self.staging_path(V1, index), {"/README": b"hello\nand more"})
        opened = self.staged(V1, index)
        self.assertEqual(self.successResultOf(opened.keep()), frozenset())

    def test_mounted_inside(self) -> None:
        """What somebody mounted inside a staging directory would be taken for a part of the image."""
        opened, index = self.filled(V1, SMALL)
        real = SafeDir.status

        def status(directory: SafeDir) -> object:
            return SimpleNamespace(st_dev=-1, st_mode=0o755) if directory.where.endswith("/a") else real(directory)

        self.patch(SafeDir, "status", status)
        failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
        self.assertIn("another file system", failed.detail)

    def test_extra_entries_at_commit(self) -> None:
        """A file that no key signed would be shown."""
        for path in ("extra", "a/extra"):
            opened, index = self.filled(V1, SMALL)
            (self.staging_path(V1, index) / path).write_bytes(b"x")
            failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
            self.assertEqual(failed.reason, Abort.COMMIT_ERROR)
            self.assertIn("'extra' is not in the index", failed.detail)
            self.successResultOf(opened.discard())

    def test_changed_before_commit(self) -> None:
        """What was damaged after it was written would be shown."""

        def pipe(path: Path) -> None:
            path.unlink()
            os.mkfifo(path)

        for path, change in (
            ("README", lambda path: path.write_bytes(b"hellO\n")),
            ("README", lambda path: path.write_bytes(b"hello\nx")),
            ("README", lambda path: path.unlink()),
            ("README", lambda path: (path.unlink(), path.symlink_to(self.outside / "precious"))),
            ("README", pipe),
            ("zero", lambda path: path.write_bytes(b"x")),
            ("link", lambda path: path.symlink_to("x")),
            ("a/link", lambda path: path.symlink_to("../README2")),
            ("empty", lambda path: path.symlink_to(self.outside)),
            ("dangling", lambda path: path.write_bytes(b"")),
        ):
            opened, index = self.filled(V1, SMALL)
            change(self.staging_path(V1, index) / path)
            failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
            self.assertEqual(failed.reason, Abort.COMMIT_ERROR, path)
            self.assertFalse(self.node.image(V1).exists())
            self.successResultOf(opened.discard())


class Planted(Real):
    """Symlinks in the way. ``tearDown`` looks that nothing outside was touched."""

    def test_in_the_parents(self) -> None:
        """A symlink below the base would lead uploads anywhere."""
        (self.node.srv / "web").symlink_to(self.outside)
        index, _ = index_bytes(SMALL)
        failed = self.failureResultOf(self.store.stage(V1, index), DownloadFailed).value
        self.assertEqual(failed.reason, Abort.CANT_CREATE_DIRECTORY)
        self.assertIn("web is not a directory", failed.detail)
        self.assertEqual(self.successResultOf(self.store.read_blocks(V1, index, [0])), [None])
        self.failureResultOf(self.store.present(V1), DiskError)

    def test_at_the_name(self) -> None:
        """A symlink at the name of an image would be followed, or replaced without asking."""
        (self.node.srv / "web").mkdir()
        self.node.image(V1).symlink_to(self.outside / "v1")
        self.assertFalse(self.successResultOf(self.store.present(V1)))
        self.assertIn("is not a directory", self.refused(V1, SMALL, Abort.ALREADY_EXISTS))
        self.assertTrue(self.node.image(V1).is_symlink())

    def test_at_the_single_name(self) -> None:
        """The same for a configured directory that is itself the image."""
        single = VPath(("one",))
        self.node.image(single).symlink_to(self.outside)
        self.refused(single, SMALL, Abort.ALREADY_EXISTS)
        self.assertTrue(self.node.image(single).is_symlink())

    def test_in_place_of_our_image(self) -> None:
        """What somebody put in place of an image would be followed and deleted."""
        self.upload(V1, SMALL)
        self.node.image(V1).rename(self.node.root / "kept")
        self.node.image(V1).symlink_to(self.outside)
        self.refused(V1, CHANGED, Abort.ALREADY_EXISTS)

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
        self.assertEqual(self.successResultOf(self.store.read_blocks(V1, index, [0, 1])), [None, None])

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
        self.assertEqual(self.successResultOf(self.store.load()), [])
        self.assertTrue((state.parent / ".v1.state.backup").is_symlink())
        self.assertTrue(self.node.image(V1).is_dir())

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


class Unmanaged(Real):
    """Directories that stand at a path of which we have no record."""

    def test_another_content(self) -> None:
        """Somebody's directory would be replaced and deleted."""
        extras: list[Spec] = [{"/other": b"x"}, {"/README": b"hellO\n"}, {"/more/x": b"x"}]
        for number, extra in enumerate(extras):
            vpath = VPath(("app", "web", f"n{number}"))
            plant(self.node.image(vpath), {**SMALL, **extra})
            before = on_disk(self.node.image(vpath))
            self.assertIn(str(self.node.image(vpath)), self.refused(vpath, SMALL, Abort.ALREADY_EXISTS))
            self.assertEqual(on_disk(self.node.image(vpath)), before)

    def test_a_file(self) -> None:
        """Somebody's file would be replaced."""
        (self.node.srv / "web").mkdir()
        self.node.image(V1).write_bytes(b"mine")
        self.refused(V1, SMALL, Abort.ALREADY_EXISTS)
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
        self.assertEqual(self.successResultOf(self.store.load()), [Held(V1, state_of(index), None)])
        self.assertEqual(self.node.debris(), [])

    def test_same_content_with_other_names(self) -> None:
        """Taking a directory over would change the mode of files elsewhere that share an inode."""
        self.strict = True
        precious = self.outside / "precious"
        precious.chmod(0o600)
        self.node.image(V1).mkdir(parents=True)
        os.link(precious, self.node.image(V1) / "precious")
        self.assertIn("other names", self.refused(V1, {"/precious": b"precious"}, Abort.ALREADY_EXISTS))

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
        self.refused(V1, SMALL, Abort.ALREADY_EXISTS)
        self.assertEqual(on_disk(self.node.image(V1)), flat({"/mine": b"mine"}))


class Fallbacks(Real):
    """File systems and kernels that lack something."""

    def lack(self, code: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        self.patch(syscalls, "renameat2", refuse)
        self.patch(safedir, "_warned", set())

    def test_no_renameat2(self) -> None:
        """On NFS or an old kernel nothing could be uploaded or replaced."""
        for number, code in enumerate((errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)):
            self.lack(code)
            vpath = VPath(("app", "web", f"n{number}"))
            self.upload(vpath, SMALL)
            self.upload(vpath, CHANGED)
            self.assertEqual(on_disk(self.node.image(vpath)), flat(CHANGED))
            self.assertEqual(self.node.debris(), [])

    def test_no_overwriting(self) -> None:
        """Without RENAME_NOREPLACE an existing file would be overwritten."""
        self.lack(errno.EINVAL)
        with SafeDir.at(str(self.node.srv)) as here:
            here.create("a").close()
            here.create("b").close()
            self.assertRaises(FileExistsError, here.rename_new, "a", "b")

    def test_other_errors(self) -> None:
        """A failing disk would be taken for one that lacks a call."""
        self.lack(errno.EIO)
        opened, index = self.filled(V1, SMALL)
        self.failureResultOf(opened.commit(state_of(index)), DiskError)
        self.assertFalse(self.node.image(V1).exists())

    def test_space(self) -> None:
        """The reserve would be used up, or a large disk be called full with 3 % of it left."""
        tib = 1 << 40
        for free, size, expected in ((10 << 30, tib, 9 << 30), (1 << 20, 10 << 20, (1 << 20) - (10 << 20) * 3 // 100)):
            self.patch(SafeDir, "free_bytes", lambda _, found=(free, size): found)
            with SafeDir.at(str(self.node.srv)) as here:
                self.assertEqual(staging.room(here), expected)


class TakeOver(Real):
    """A db directory as the reference leaves it (protocol section 5.1)."""

    def setUp(self) -> None:
        super().setUp()
        self.index, data = index_bytes(SMALL)
        text = self.index.image.hex()
        (self.node.db / "indexes" / text[:2]).mkdir(parents=True)
        (self.node.db / "indexes" / text[:2] / f"{text}.ds1").write_bytes(data)
        self.states = self.node.db / "signatures" / "app" / "web"
        self.states.mkdir(parents=True)
        plant(self.node.image(V1), SMALL)
        self.signatures = [[1_700_000_000_123, ["ssh-ed25519", bytes([1_700_000_000_123 % 251]) * 64]]]
        self.write("v1.state")

    def write(self, name: str, **more: object) -> None:
        state = {"image": self.index.image, "signatures": self.signatures, **more}
        (self.states / name).write_bytes(cbor2.dumps(state))

    def test_committed(self) -> None:
        """Changing from the reference to this program would mean to upload everything again."""
        self.assertEqual(self.successResultOf(self.store.load()), [Held(V1, state_of(self.index), None)])
        self.assertEqual(self.successResultOf(self.store.read_index(self.index.image)), self.index)
        numbers = list(range(self.index.block_count))
        self.assertNotIn(None, self.successResultOf(self.store.read_blocks(V1, self.index, numbers)))

    def test_pending(self) -> None:
        """A download that was under way would be forgotten, as the reference forgets it (C9)."""
        self.write("v2.new.state")
        new, _ = index_bytes(CHANGED)
        self.index = new
        self.write("v1.new.state")
        old, _ = index_bytes(SMALL)
        self.assertEqual(
            self.successResultOf(self.store.load()),
            [
                Held(V1, state_of(old), Pending(V1, state_of(new), Command.REPLACE)),
                Held(V2, None, Pending(V2, state_of(old), Command.APPEND)),
            ],
        )

    def test_what_is_left_alone(self) -> None:
        """Files that are not ours would be deleted, or bad ones lost instead of kept."""
        plant(self.node.srv / "web" / ".tmp.v2", {"/x": b"x"})
        plant(self.node.srv / "web" / ".ciruela~0123", {"/x": b"x"})
        self.write(".hidden.state")
        self.write("x.new.new.state")
        (self.states / ".tmp.v3.state").write_bytes(b"half")
        (self.states / "v4.state").write_bytes(b"garbage")
        (self.states / "v5.state").write_bytes(b"")
        (self.states / "v6.state").write_bytes(cbor2.dumps({"image": self.index.image, "signatures": []}))
        (self.states / "v7.state").mkdir()
        (self.states / "notes.txt").write_bytes(b"x")
        self.assertEqual(self.successResultOf(self.store.load()), [Held(V1, state_of(self.index), None)])
        self.assertEqual(
            sorted(path.name for path in self.states.iterdir()),
            [
                ".hidden.state",
                ".v4.state.backup",
                ".v5.state.backup",
                ".v6.state.backup",
                ".v7.state.backup",
                "notes.txt",
                "v1.state",
                "x.new.new.state",
            ],
        )
        self.assertEqual((self.states / ".v4.state.backup").read_bytes(), b"garbage")
        self.assertEqual(sorted(path.name for path in (self.node.srv / "web").iterdir()), [".tmp.v2", "v1"])

    def test_bad_index(self) -> None:
        """A damaged index would be served for ever, or the evidence be destroyed (A45)."""
        text = self.index.image.hex()
        path = self.node.db / "indexes" / text[:2] / f"{text}.ds1"
        path.write_bytes(path.read_bytes().replace(b"README", b"README2"))
        self.assertIsNone(self.successResultOf(self.store.read_index(self.index.image)))
        self.assertEqual([found.name for found in path.parent.iterdir()], [f".{text}.ds1.backup"])

    def test_temporary_index(self) -> None:
        """Half-written indexes would pile up."""
        text = self.index.image.hex()
        path = self.node.db / "indexes" / text[:2] / f".tmp.{text}.ds1"
        path.write_bytes(b"half")
        self.successResultOf(self.store.load())
        self.assertFalse(path.exists())

    def test_one_bad_path(self) -> None:
        """One state that cannot be read for a fault of the disk would keep the whole node from starting."""
        self.write("v2.state")
        plant(self.node.image(V2), SMALL)
        debris = self.node.srv / "web" / ".ciruela~0123"
        debris.mkdir()
        real = SafeDir.open_read

        def failing(here: SafeDir, name: str) -> safedir.OpenFile:
            if name == "v1.state":
                raise OSError(errno.EIO, "open: Input/output error", name)
            return real(here, name)

        self.patch(SafeDir, "open_read", failing)
        self.assertEqual(self.successResultOf(self.store.load()), [Held(V2, state_of(self.index), None)])
        self.assertTrue((self.states / "v1.state").exists())
        self.assertTrue(debris.exists(), "nothing is swept where it is not known what is pending")


class Locked(Real):
    def test_second_daemon(self) -> None:
        """Two daemons on one db directory would destroy each other's work."""
        first = lock(str(self.node.db))
        failed = self.assertRaises(DiskError, lock, str(self.node.db))
        self.assertIn("another daemon", str(failed))
        first.close()
        lock(str(self.node.db)).close()

    def test_no_db(self) -> None:
        """A mistyped db directory would be made, and the node begin from nothing."""
        failed = self.assertRaises(DiskError, lock, str(self.node.root / "nowhere"))
        self.assertIn("must exist", str(failed))
        self.assertFalse((self.node.root / "nowhere").exists())
