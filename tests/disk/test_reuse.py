"""What a new image takes from those beside it, block by block."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path

from twisted.logger import LogLevel, globalLogPublisher

from ciruela.disk import reuse as reuse_module
from ciruela.disk import syscalls
from ciruela.disk.openfile import OpenFile
from ciruela.disk.reuse import FRESH_MODE
from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.disk.verify import READ_BLOCKS
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Index
from ciruela.interfaces import Reused, Staging
from ciruela.model.config import Reuse
from ciruela.model.errors import DownloadFailed
from ciruela.model.upload import AbortReason
from ciruela.model.vpath import VPath
from tests.disk.real import V1, V2, Real
from tests.disk.trees import Spec, blocks_of, in_place, index_bytes, on_disk, state_of
from tests.proof import shows

BIG = random.Random(5).randbytes(5 * BLOCK_BYTES + 777)
V0 = VPath(("app", "web", "v0"))
OLD: Spec = {"/big": BIG, "/small": b"small", "/sub/other": b"other" * 9000}


def edited(content: bytes, block: int) -> bytes:
    """The same with one byte of a block changed."""
    at = block * BLOCK_BYTES + 100
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


class ReuseCase(Real):
    """V1 has ``OLD``; V2 is put together beside it."""

    how = Reuse.HARDLINK

    def setUp(self) -> None:
        super().setUp()
        self.configure(self.how)
        self.before = self.upload(V1, OLD)

    def configure(self, how: Reuse) -> None:
        self.node.configs["app"] = replace(self.node.configs["app"], reuse=how)
        self.store = Store(str(self.node.db), self.node.configs, in_place)

    def begun(self, spec: Spec, before: Index | None = None, kind: HashKind = HashKind.BLAKE2B) -> tuple[Staging, Index, Reused]:
        index, _ = index_bytes(spec, kind)
        opened = self.staged(V2, index)
        return opened, index, self.successResultOf(opened.reuse([(V1, before or self.before)]))

    def ended(self, spec: Spec, begun: tuple[Staging, Index, Reused]) -> list[int]:
        """Write what is missing, commit, and tell what was missing."""
        opened, index, reused = begun
        missing = [block for block in blocks_of(spec, index) if block[0] not in reused.blocks]
        self.assertTrue(all(self.successResultOf(opened.write(missing))))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual(on_disk(self.node.image(V2)), {"/": b"", **_expected(spec)})
        self.assertEqual(on_disk(self.node.image(V1)), {"/": b"", **_expected(OLD)})
        self.assertEqual(self.node.debris(), [])
        return [number for number, _ in missing]

    def links(self, name: str) -> int:
        return (self.node.image(V2) / name).stat().st_nlink


def _expected(spec: Spec) -> dict[str, bytes]:
    found = {path.removesuffix("*"): content for path, content in spec.items() if isinstance(content, bytes)}
    return {**{path.rpartition("/")[0]: b"" for path in found if path.count("/") > 1}, **found}


class Blocks(ReuseCase):
    def test_one_changed(self) -> None:
        """One changed byte would cost a whole file over the network."""
        spec: Spec = {**OLD, "/big": edited(BIG, 2)}
        begun = self.begun(spec)
        self.assertEqual((begun[2].files, begun[2].bytes), (2, sum(len(one) for one in (b"small", b"other" * 9000, BIG)) - BLOCK_BYTES))
        self.assertEqual(self.ended(spec, begun), [2])
        self.assertEqual([self.links(name) for name in ("big", "small", "sub/other")], [1, 2, 2])

    def test_end_changed(self) -> None:
        """A log that grows, or a file that was cut off, would be fetched whole."""
        for grown in (BIG + b"more", BIG[:-1], BIG[: 2 * BLOCK_BYTES]):
            spec: Spec = {"/big": grown}
            begun = self.begun(spec)
            self.assertEqual(len(begun[2].blocks), len(grown) // BLOCK_BYTES)
            self.successResultOf(begun[0].discard())

    def test_mode(self) -> None:
        """A file that became executable would be fetched, or the old one become executable as well."""
        spec: Spec = {"/big*": BIG, "/small*": b"small"}
        begun = self.begun(spec)
        self.assertEqual((begun[2].files, begun[2].bytes), (2, len(BIG) + 5))
        self.assertEqual(self.ended(spec, begun), [])
        self.assertEqual((self.node.image(V1) / "big").stat().st_mode & 0o777, 0o644)
        self.assertEqual((self.node.image(V2) / "big").stat().st_mode & 0o777, 0o755)

    def test_put_together(self) -> None:
        """Blocks that moved within a file, to another file, or into a longer one, would travel; or come to the wrong place."""
        part = [BIG[at : at + BLOCK_BYTES] for at in range(0, len(BIG), BLOCK_BYTES)]
        spec: Spec = {
            "/big": part[4] + part[0] + part[1] + b"new" * 9000,
            "/long": b"".join(part[:5]) * (READ_BLOCKS // 4),
            "/tail": part[5],
            "/sub/small": b"other" * 9000,
        }
        begun = self.begun(spec)
        blocks = dict(blocks_of(spec, begun[1]))
        self.assertEqual({blocks[number] for number in blocks if number not in begun[2].blocks}, {b"new" * 9000})
        self.ended(spec, begun)

    def test_several_siblings(self) -> None:
        """What no single version has, but two have together, would be fetched."""
        mixed = {"/big": edited(BIG, 0)[: 3 * BLOCK_BYTES] + BIG[3 * BLOCK_BYTES :]}
        other = self.upload(V0, mixed)
        spec: Spec = {"/new": edited(BIG, 0)[:BLOCK_BYTES] + BIG[:BLOCK_BYTES]}
        index, _ = index_bytes(spec)
        opened = self.staged(V2, index)
        reused = self.successResultOf(opened.reuse([(V1, self.before), (V0, other)]))
        self.assertEqual((reused.blocks, reused.files), ({0, 1}, 1))

    @shows("A50", "F59")
    def test_damaged(self) -> None:
        """A block that somebody changed, or that rotted, would spread to the next version; or take its good neighbors with it."""
        spec: Spec = {"/big": edited(BIG, 5)}
        (self.node.image(V1) / "big").write_bytes(edited(BIG, 3))
        begun = self.begun(spec)
        self.assertEqual(begun[2].blocks, {0, 1, 2, 4})
        missing = [block for block in blocks_of(spec, begun[1]) if block[0] not in begun[2].blocks]
        self.successResultOf(begun[0].write(missing))
        self.successResultOf(begun[0].commit(state_of(begun[1])))
        self.assertEqual((self.node.image(V2) / "big").read_bytes(), edited(BIG, 5))

    @shows("A50", "A3", "I3")
    def test_gone(self) -> None:
        """A version that was changed by hand would end the download, or lead it elsewhere."""
        image = self.node.image(V1)
        for name, change in (
            ("cut off", lambda: (image / "big").write_bytes(BIG[: BLOCK_BYTES + 5])),
            ("a symlink", lambda: ((image / "big").unlink(), (image / "big").symlink_to(self.outside / "precious"))),
            ("a directory", lambda: ((image / "big").unlink(), (image / "big").mkdir())),
            ("nothing", lambda: (image / "big").rmdir()),
        ):
            change()
            spec: Spec = {"/big": edited(BIG, 5)}
            opened, _, reused = self.begun(spec)
            self.assertEqual(reused.blocks, {0} if name == "cut off" else set(), name)
            self.successResultOf(opened.discard())

    def test_other_kind(self) -> None:
        """With another hash, everything that changed a little would travel again."""
        spec: Spec = {"/big": edited(BIG, 2), "/small*": b"small", "/sub/other": b"other" * 9000}
        begun = self.begun(spec, kind=HashKind.BLAKE3)
        self.assertEqual(self.ended(spec, begun), [2])
        self.assertEqual([self.links(name) for name in ("big", "small", "sub/other")], [1, 1, 2])

    def test_resumed(self) -> None:
        """After a kill, what was copied would be copied or fetched again; or a half copy taken for a whole one."""
        spec: Spec = {"/big": edited(BIG, 2), "/new*": b"other" * 9000}
        _, index, reused = self.begun(spec)
        self.assertEqual(len(reused.blocks), 7)
        self.assertEqual((self.staging_path(V2, index) / "big").stat().st_mode & 0o777, FRESH_MODE)
        self.store = Store(str(self.node.db), self.node.configs, in_place)
        opened = self.staged(V2, index)
        self.assertEqual(self.successResultOf(opened.keep()), reused.blocks)
        again = self.successResultOf(opened.reuse([(V1, self.before)]))
        self.assertEqual((again.blocks, again.files, again.bytes), (frozenset(), 0, 0))
        self.successResultOf(opened.write([(2, edited(BIG, 2)[2 * BLOCK_BYTES : 3 * BLOCK_BYTES])]))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual((self.node.image(V2) / "big").read_bytes(), edited(BIG, 2))

    @shows("A50")
    def test_linked_over_a_part(self) -> None:
        """A part of a file that was fetched before would keep the whole file from being linked, or stay open and be written to."""
        index, _ = index_bytes(OLD)
        opened = self.staged(V2, index)
        self.successResultOf(opened.write(blocks_of(OLD, index)[:1]))
        reused = self.successResultOf(opened.reuse([(V1, self.before)]))
        self.assertEqual((reused.files, len(reused.blocks)), (3, index.block_count))
        self.assertEqual(self.ended(OLD, (opened, index, reused)), [])
        self.assertEqual(self.links("big"), 2)

    @shows("A38", "F28")
    def test_no_room(self) -> None:
        """Copying would fill up the disk, though it is known from the start that the rest does not fit."""
        spec: Spec = {"/big": edited(BIG, 2), "/small": b"small"}
        self.patch(SafeDir, "free_bytes", lambda _: (len(BIG) - 1, len(BIG) - 1))
        self.store = Store(str(self.node.db), self.node.configs, in_place, replace(self.store._tuning, disk_reserve_bytes=0))
        opened, _, reused = self.begun(spec)
        self.assertEqual((reused.files, reused.bytes), (1, 5))
        failed = self.failureResultOf(opened.write(()), DownloadFailed).value
        self.assertEqual((failed.reason, failed.detail.partition(" bytes")[0]), (AbortReason.NO_SPACE, f"needs {len(BIG)}"))
        self.patch(SafeDir, "free_bytes", lambda _: (len(BIG), len(BIG)))
        self.successResultOf(opened.discard())
        self.assertEqual(self.begun(spec)[2].bytes, 5 + len(BIG) - BLOCK_BYTES)

    @shows("A38", "F28")
    def test_full_while_copying(self) -> None:
        """A full disk would be hidden behind "cannot be reused"."""

        def refuse(_: OpenFile, data: bytes, offset: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(OpenFile, "write_at", refuse)
        index, _ = index_bytes({"/big": edited(BIG, 2)})
        failed = self.failureResultOf(self.staged(V2, index).reuse([(V1, self.before)]), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.NO_SPACE)

    def test_in_small_steps(self) -> None:
        """Copying a large file would keep a thread, and a cancel, busy until its end."""
        spec: Spec = {"/new*": BIG * 40}
        old: Spec = {"/new": BIG * 40}
        self.before = self.upload(V1, old)
        index, _ = index_bytes(spec)
        costs: list[int] = []
        real = reuse_module.Reusing._take

        def counted(*args: object) -> object:
            for cost in real(*args):
                costs.append(cost)
                yield cost

        self.patch(reuse_module.Reusing, "_take", counted)
        self.successResultOf(self.staged(V2, index).reuse([(V1, self.before)]))
        self.assertGreater(len(costs), 4)
        self.assertLessEqual(max(costs), READ_BLOCKS * BLOCK_BYTES)


class Copying(ReuseCase):
    how = Reuse.COPY

    def test_own_inodes(self) -> None:
        """Editing one version by hand would change the others, which ``reuse: copy`` is there to prevent."""
        self.patch(OpenFile, "clone_from", self.fail)
        begun = self.begun(OLD)
        self.assertEqual((begun[2].files, begun[2].bytes), (3, self.before.total_bytes))
        self.assertEqual(self.ended(OLD, begun), [])
        self.assertEqual([self.links(name) for name in ("big", "small", "sub/other")], [1, 1, 1])

    @shows("A39")
    def test_unreadable(self) -> None:
        """A disk that cannot read an old version any more would keep all new ones from arriving."""

        def refuse(_: OpenFile, size: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(OpenFile, "read_at", refuse)
        opened, _, reused = self.begun(OLD)
        self.assertEqual((reused.blocks, reused.files), (frozenset(), 0))
        self.successResultOf(opened.discard())

    @shows("A38", "F7")
    def test_room(self) -> None:
        """A copy that cannot fit would be begun."""
        self.patch(SafeDir, "free_bytes", lambda _: (len(BIG), 1 << 40))
        index, _ = index_bytes({**OLD, "/new": b"new"})
        failed = self.failureResultOf(self.store.stage(V2, index), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.NO_SPACE)
        self.configure(Reuse.REFLINK)
        self.staged(V2, index).close()


class Cloning(ReuseCase):
    """Where the file system can clone; btrfs and xfs themselves are in tests.real.test_reflink."""

    how = Reuse.REFLINK

    def setUp(self) -> None:
        super().setUp()
        self.cloned: list[tuple[int, int, int]] = []
        self.patch(syscalls, "_warned", set())
        self.warnings: list[str] = []
        observer = lambda event: self.warnings.append(event["log_format"]) if event["log_level"] is LogLevel.warn else None  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def use(self, code: int | None = None, spoil: bool = False) -> None:
        """Clone by copying, or refuse with an error; ``spoil`` the first block."""

        def clone(target: OpenFile, source: OpenFile, begin: int, offset: int, size: int) -> None:
            self.cloned.append((begin, offset, size))
            if code is not None:
                raise OSError(code, os.strerror(code))
            data = os.pread(source.fd, size, begin)
            os.pwrite(target.fd, b"?" + data[1:] if spoil else data, offset)

        self.patch(OpenFile, "clone_from", clone)

    def test_whole_files(self) -> None:
        """The space of each version would be taken again on a file system that could share it."""
        self.use()
        self.patch(SafeDir, "free_bytes", lambda _: (0, 1 << 30))
        begun = self.begun(OLD)
        self.assertEqual(self.cloned, [(0, 0, len(BIG)), (0, 0, 5), (0, 0, 45000)])
        self.assertEqual((begun[2].files, begun[2].bytes), (3, self.before.total_bytes))
        self.assertEqual(self.ended(OLD, begun), [])
        self.assertEqual([self.links(name) for name in ("big", "small", "sub/other")], [1, 1, 1])
        self.assertEqual(self.warnings, [])

    @shows("A50", "F59")
    def test_hashed_afterwards(self) -> None:
        """What the file system gives for a clone would be believed."""
        self.use(spoil=True)
        begun = self.begun({"/big": BIG})
        self.assertEqual(begun[2].blocks, {1, 2, 3, 4, 5})
        missing = [block for block in blocks_of({"/big": BIG}, begun[1]) if block[0] not in begun[2].blocks]
        self.successResultOf(begun[0].write(missing))
        self.successResultOf(begun[0].commit(state_of(begun[1])))
        self.assertEqual((self.node.image(V2) / "big").read_bytes(), BIG)

    def test_not_possible(self) -> None:
        """On ext4 nothing would be reused, or nobody be told that each version takes its whole space; or be told each time."""
        for code in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS):
            self.cloned.clear()
            self.use(code)
            opened, _, reused = self.begun(OLD)
            self.assertEqual(reused.bytes, self.before.total_bytes)
            self.assertEqual(len(self.cloned), 1)
            self.successResultOf(opened.discard())
        self.assertEqual(len(self.warnings), 1)
        self.assertIn("cannot share space", self.warnings[0])

    def test_not_this_one(self) -> None:
        """One file that cannot be cloned would have all others copied."""
        self.use(errno.EINVAL)
        opened, _, reused = self.begun(OLD)
        self.assertEqual((reused.bytes, len(self.cloned)), (self.before.total_bytes, 3))
        self.assertEqual(self.warnings, [])
        self.successResultOf(opened.discard())

    @shows("A38", "F28")
    def test_full(self) -> None:
        """A full disk would be taken for one that cannot clone."""
        self.use(errno.ENOSPC)
        index, _ = index_bytes(OLD)
        failed = self.failureResultOf(self.staged(V2, index).reuse([(V1, self.before)]), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.NO_SPACE)


class Nothing(ReuseCase):
    how = Reuse.NONE

    def test_nothing(self) -> None:
        """An operator who wants every byte to come over the network would get what stands here."""
        for kind in (HashKind.BLAKE2B, HashKind.BLAKE3):
            opened, _, reused = self.begun(OLD, kind=kind)
            self.assertEqual((reused.blocks, reused.files, reused.bytes), (frozenset(), 0, 0))
            self.assertEqual(self.node.debris(), [Path(self.staging_path(V2, index_bytes(OLD, kind)[0])).name])
            self.successResultOf(opened.discard())
