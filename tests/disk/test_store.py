"""What only real files can show: modes, links, what an earlier run left."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.interfaces import Pending
from ciruela.model.config import STANDARD
from ciruela.model.errors import DownloadFailed
from ciruela.model.upload import AbortReason, Command
from ciruela.model.vpath import VPath
from tests.disk.real import V1, V2, Real
from tests.disk.trees import CHANGED, SMALL, Spec, blocks_of, flat, in_place, index_bytes, on_disk, plant, state_of
from tests.proof import shows


class Attributes(Real):
    @shows("A9")
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

    @shows("I1")
    def test_hidden_until_whole(self) -> None:
        """Others on the machine could read or use half an image."""
        index, _ = index_bytes(SMALL)
        opened = self.staged(V1, index)
        blocks = [block for block in blocks_of(SMALL, index) if len(block[1]) == 32768]
        self.successResultOf(opened.write(blocks[:1]))
        self.assertEqual((self.staging_path(V1, index) / "a" / "big.bin").stat().st_mode & 0o7777, 0o600)
        opened, index = self.filled(V1, SMALL)
        self.assertEqual(self.staging_path(V1, index).stat().st_mode & 0o7777, 0o700)
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
        """Upload ``spec`` as v2 with v1 as sibling; returns how many files have an inode with the other."""
        old, _ = index_bytes(SMALL)
        index, _ = index_bytes(spec)
        opened = self.staged(V2, index)
        self.reused = self.successResultOf(opened.reuse([(V1, old)]))
        self.successResultOf(opened.write([block for block in blocks_of(spec, index) if block[0] not in self.reused.blocks]))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V2)), flat(spec))
        return sum(path.stat().st_nlink > 1 for path in self.node.image(V2).rglob("*") if path.is_file() and not path.is_symlink())

    def test_same_inode(self) -> None:
        """Each version would take the whole space again."""
        self.upload(V1, SMALL)
        self.assertEqual(self.next_version(CHANGED), 4)
        self.assertEqual(self.inode(V1, "run.sh"), self.inode(V2, "run.sh"))
        self.assertEqual(self.inode(V1, "a-b/sp ace"), self.inode(V2, "a-b/sp ace"))
        self.assertNotEqual(self.inode(V1, "README"), self.inode(V2, "README"))
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))

    @shows("A50", "F59")
    def test_edited_source(self) -> None:
        """A file that somebody edited in one image would spread to the next (A50)."""
        self.upload(V1, SMALL)
        (self.node.image(V1) / "run.sh").write_bytes(b"#!/bin/sh\necho no\n")
        self.assertEqual(self.next_version(SMALL), 5)

    @shows("A9", "A50", "F59")
    def test_wrong_mode(self) -> None:
        """A file that somebody made writable for all would be part of the next image."""
        self.upload(V1, SMALL)
        (self.node.image(V1) / "README").chmod(0o666)
        (self.node.image(V1) / "run.sh").chmod(0o4755)
        self.assertEqual(self.next_version(SMALL), 4)
        self.assertEqual(self.reused.files, 6)
        self.assertEqual((self.node.image(V2) / "README").stat().st_mode & 0o7777, 0o644)
        self.assertEqual((self.node.image(V1) / "README").stat().st_mode & 0o7777, 0o666)

    @shows("A50", "F59")
    def test_longer_source(self) -> None:
        """A file to which something was appended would be linked, its blocks being right."""
        self.upload(V1, SMALL)
        with (self.node.image(V1) / "README").open("ab") as file:
            file.write(b"more")
        self.assertEqual(self.next_version(SMALL), 5)

    @shows("A3", "F2", "I3")
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

    @shows("F33")
    def test_links_refused(self) -> None:
        """A file system that cannot link, or not to this file, would end the download, or have everything fetched again."""
        self.upload(V1, SMALL)
        for number, code in enumerate((errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOENT, errno.EIO)):

            def refuse(_: SafeDir, *names: object, code: int = code) -> None:
                raise OSError(code, os.strerror(code), names[-1])

            self.patch(SafeDir, "link", refuse)
            self.patch(SafeDir, "link_as_it_is", refuse)
            index, _ = index_bytes(SMALL)
            vpath = VPath(("app", "web", f"n{number}"))
            opened = self.staged(vpath, index)
            self.assertEqual(self.successResultOf(opened.reuse([(V1, index)])).bytes, index.total_bytes)
            self.assertEqual({path.stat().st_nlink for path in self.staging_path(vpath, index).rglob("*") if path.is_file()}, {1})
            self.successResultOf(opened.commit(state_of(index)))
            self.assertEqual(on_disk(self.node.image(vpath)), flat(SMALL))

    @shows("A38", "F7")
    def test_only_an_image_can_be_linked(self) -> None:
        """The journal of an upload would pass for an image: no upload would be refused before its staging directory and first block."""
        index, _ = index_bytes(SMALL)
        self.successResultOf(self.store.write_pending(Pending(V1, state_of(index), Command.APPEND)))
        self.patch(SafeDir, "free_bytes", lambda _: (index.total_bytes - 1, index.total_bytes - 1))
        failed = self.failureResultOf(self.store.stage(V1, index), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.NO_SPACE)
        self.assertEqual([path.name for path in self.node.image(V1).parent.iterdir()], [])

    @shows("A38", "F28")
    def test_full_disk_and_nothing_to_write(self) -> None:
        """An image whose files are all here would be refused for want of room that it does not take."""
        self.upload(V1, SMALL)
        index, _ = index_bytes(SMALL)
        self.patch(SafeDir, "free_bytes", lambda _: (0, 1 << 30))
        opened = self.staged(V2, index)
        self.successResultOf(opened.reuse([(V1, index)]))
        self.assertEqual(self.successResultOf(opened.write(())), [])
        self.successResultOf(opened.commit(state_of(index)))

    @shows("A38", "F28")
    def test_full_while_linking(self) -> None:
        """A full disk would be hidden behind "cannot be linked"."""
        self.upload(V1, SMALL)

        def refuse(_: SafeDir, *names: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", names[-1])

        self.patch(SafeDir, "link", refuse)
        self.patch(SafeDir, "link_as_it_is", refuse)
        index, _ = index_bytes(SMALL)
        for trusting in (True, False):
            self.store.tune(replace(STANDARD, trust_ctime=trusting))
            opened = self.staged(V2, index)
            failed = self.failureResultOf(opened.reuse([(V1, index)]), DownloadFailed).value
            self.assertEqual(failed.reason, AbortReason.NO_SPACE)
            opened.close()

    @shows("A50", "F59")
    def test_changed_while_linking(self) -> None:
        """A file that changes between hashing and linking would be taken for what it was."""
        self.upload(V1, SMALL)
        real = SafeDir.link

        def edit(here: SafeDir, source: OpenFile, name: str) -> os.stat_result:
            os.utime(source.fd, ns=(5, 5))
            return real(here, source, name)

        self.patch(SafeDir, "link", edit)
        self.store.tune(replace(STANDARD, trust_ctime=False))
        index, _ = index_bytes(SMALL)
        opened = self.staged(V2, index)
        self.successResultOf(opened.reuse([(V1, index)]))
        staged = [path for path in self.staging_path(V2, index).rglob("*") if path.is_file()]
        self.assertEqual([path.stat().st_nlink for path in staged], [1] * 6)
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V2)), flat(SMALL))

    @shows("A50", "F59")
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
    @shows("A57", "I1")
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

    @shows("I3")
    def test_mounted_inside(self) -> None:
        """What somebody mounted inside a staging directory would be taken for a part of the image."""
        opened, index = self.filled(V1, SMALL)
        real = SafeDir.status

        def status(directory: SafeDir) -> object:
            return SimpleNamespace(st_dev=-1, st_mode=0o755) if directory.where.endswith("/a") else real(directory)

        self.patch(SafeDir, "status", status)
        failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
        self.assertIn("another file system", failed.detail)

    @shows("I1")
    def test_extra_entries_at_commit(self) -> None:
        """A file that no key signed would be shown."""
        for path in ("extra", "a/extra"):
            opened, index = self.filled(V1, SMALL)
            (self.staging_path(V1, index) / path).write_bytes(b"x")
            failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
            self.assertEqual(failed.reason, AbortReason.COMMIT_ERROR)
            self.assertIn("'extra' is not in the index", failed.detail)
            self.successResultOf(opened.discard())

    @shows("I1")
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
            self.assertEqual(failed.reason, AbortReason.COMMIT_ERROR, path)
            self.assertFalse(self.node.image(V1).exists())
            self.successResultOf(opened.discard())

    @shows("I1")
    def test_large_file_changed_before_commit(self) -> None:
        """Of a file that is too large to be read at once only the beginning would be looked at."""
        spec: Spec = {"/large": bytes(range(256)) * 10_000}
        opened, index = self.filled(V1, spec)
        with (self.staging_path(V1, index) / "large").open("r+b") as file:
            file.seek(2_000_000)
            file.write(b"changed")
        failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
        self.assertEqual((failed.reason, failed.detail), (AbortReason.COMMIT_ERROR, "/large: block 61 is missing or wrong"))
        self.successResultOf(opened.discard())
        self.upload(V1, spec)
        self.assertEqual(on_disk(self.node.image(V1)), flat(spec))
