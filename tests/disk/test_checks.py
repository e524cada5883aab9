"""Single checks of the store, each of which is the only one that stands between a fault and an image."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cbor2

from ciruela.disk.examine import MOST_DAMAGES
from ciruela.disk.reader import TREES
from ciruela.disk.reuse import FRESH_MODE
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import MAX_STATE_BYTES, decode_state, encode_state
from ciruela.index.tree import Index
from ciruela.interfaces import Findings, Pending
from ciruela.model.errors import DiskError, DownloadFailed, FormatError
from ciruela.model.upload import AbortReason, Command
from ciruela.model.vpath import VPath
from tests.disk.faulty import Faults
from tests.disk.real import V1, V2, Real
from tests.disk.trees import CHANGED, SMALL, Spec, blocks_of, flat, index_bytes, on_disk, state_of
from tests.proof import shows


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Opening(Real):
    """What is opened as a file is a file."""

    @shows("F2", "I3")
    def test_only_files(self) -> None:
        """A pipe, a socket or a directory in place of a file would be read, written or waited for."""
        top = self.node.root / "odd"
        (top / "directory").mkdir(parents=True)
        os.mkfifo(top / "pipe")
        (top / "link").symlink_to(self.outside / "precious")
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        before = Path.cwd()
        os.chdir(top)  # the path of a socket may have 107 bytes
        self.addCleanup(os.chdir, before)
        listening.bind("socket")
        with SafeDir.at(str(top)) as directory:
            descriptors = open_files()
            for name in ("directory", "pipe", "link", "socket"):
                self.assertRaises(OSError, directory.open_read, name)
                self.assertRaises(OSError, directory.open_write, name)
            self.assertEqual(open_files(), descriptors)


class Arriving(Real):
    """Blocks that arrive, files that are kept."""

    @shows("A7", "F5", "I1")
    def test_wrong_bytes(self) -> None:
        """A block of the right length with one wrong bit would be written."""
        spec: Spec = {"/f": b"right"}
        index, _ = index_bytes(spec)
        staging = self.staged(V1, index)
        for data in (b"wrong", b"righ", b"right ", b""):
            self.assertEqual(self.successResultOf(staging.write([(0, data)])), [False])
        self.assertEqual(list(self.staging_path(V1, index).iterdir()), [])
        self.assertEqual(self.successResultOf(staging.write([(0, b"right")])), [True])

    @shows("A7", "F5", "I1")
    def test_wrong_bytes_among_good_ones(self) -> None:
        """Blocks that follow each other are written together: a wrong one would go along, or put the others out of place."""
        data = [bytes([letter]) * 32768 for letter in b"abcdefg"] + [b"h"]
        spec: Spec = {"/f": b"".join(data), "/g": b"g", "/h": b"".join(data[:2])}
        index, _ = index_bytes(spec)
        staging = self.staged(V1, index)
        sent = [(0, data[0]), (1, data[1]), (2, b"x" * 32768), (3, data[3]), (5, data[5]), (6, data[6]), (7, b"h"), (8, b"g")]
        good = [number != 2 for number, _ in sent]
        self.assertEqual(self.successResultOf(staging.write(sent)), good)
        staged = self.staging_path(V1, index)
        empty = bytes(32768)
        there = [*data[:2], empty, data[3], empty, *data[5:]]
        self.assertEqual((staged / "f").read_bytes(), b"".join(there))
        self.assertEqual((staged / "h").read_bytes(), b"".join(data[:2]), "the same blocks elsewhere")
        again = [(number, data[number]) for number in range(8)]
        self.assertEqual(self.successResultOf(staging.write(again)), [True] * 8)
        self.assertEqual((staged / "f").read_bytes(), b"".join(data))
        self.assertEqual((staged / "g").read_bytes(), b"g")

    def test_disk_takes_less(self) -> None:
        """The rest of a run that the kernel did not take at once would be missing."""
        spec: Spec = {"/f": b"a" * 32768 + b"b" * 32768 + b"c" * 100}
        index, _ = index_bytes(spec)
        staging = self.staged(V1, index)
        with mock.patch.object(os, "pwritev", lambda fd, parts, offset: os.pwrite(fd, b"".join(parts)[:40_000], offset)):
            self.assertEqual(self.successResultOf(staging.write(blocks_of(spec, index))), [True] * 3)
        self.assertEqual((self.staging_path(V1, index) / "f").read_bytes(), spec["/f"])

    @shows("A50", "F59")
    def test_other_names(self) -> None:
        """A file that has a second name somewhere would be written through both, or get another mode under the other one."""
        spec: Spec = {"/f": b"a" * 32768 + b"b"}
        index, _ = index_bytes(spec)
        for size in (32768, 0):
            staging = self.staged(V1, index)
            staged, other = self.staging_path(V1, index) / "f", self.node.root / f"other{size}"
            other.write_bytes(b"a" * size)
            other.chmod(FRESH_MODE)
            os.link(other, staged)
            if size:
                self.assertEqual(self.successResultOf(staging.keep()), frozenset())
            self.successResultOf(staging.write(blocks_of(spec, index)))
            self.assertEqual(other.read_bytes(), b"a" * size)
            self.successResultOf(staging.discard())

    @shows("A50", "I1")
    def test_shared_at_the_commit(self) -> None:
        """The commit would change the mode of a file that others see under another name."""
        staging, index = self.filled(V1, SMALL)
        other = self.node.root / "other"
        os.link(self.staging_path(V1, index) / "README", other)
        other.chmod(FRESH_MODE)
        failed = self.failureResultOf(staging.commit(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.COMMIT_ERROR)
        self.assertEqual(other.stat().st_mode & 0o777, FRESH_MODE)

    @shows("A57", "F40")
    def test_incomplete_is_not_whole(self) -> None:
        """A file that has its size and not all its blocks would be taken for whole after a restart."""
        spec: Spec = {"/f": b"a" * 32768 + b"b" * 32768 + b"c"}
        index, _ = index_bytes(spec)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write([(0, b"a" * 32768), (2, b"c")]))
        staged = self.staging_path(V1, index) / "f"
        staged.chmod(0o644)
        self.assertEqual(self.successResultOf(self.staged(V1, index).keep()), frozenset())
        self.assertFalse(staged.exists())

    @shows("I3")
    def test_mounted_over_staging(self) -> None:
        """Blocks would be written to, and files removed from, whatever was mounted there."""
        index, _ = index_bytes(SMALL)
        self.staged(V1, index)
        name = self.staging_path(V1, index).name
        real = SafeDir.status

        def status(directory: SafeDir) -> object:
            return SimpleNamespace(st_dev=-1, st_mode=0o700) if directory.where.endswith(name) else real(directory)

        self.patch(SafeDir, "status", status)
        failed = self.failureResultOf(self.store.stage(V1, index), DiskError).value
        self.assertIn("another file system is mounted", str(failed))


class Healing(Real):
    """An image that is put in place of its own damaged copy."""

    def healed(self, *, superseded: bool) -> None:
        index = self.upload(V1, SMALL)
        (self.node.image(V1) / "README").write_bytes(b"rotten")
        staging = self.staged(V1, index)
        self.successResultOf(staging.keep())
        self.successResultOf(staging.write(blocks_of(SMALL, index)))
        if superseded:
            newer, _ = index_bytes(CHANGED)
            self.successResultOf(self.store.write_pending(Pending(V1, state_of(newer, 1_700_000_009_000), Command.REPLACE)))
            failed = self.failureResultOf(staging.restore(state_of(index)), DownloadFailed).value
            self.assertEqual(failed.reason, AbortReason.SUPERSEDED)
        else:
            self.successResultOf(staging.restore(state_of(index)))

    @shows("A10", "F51", "I1")
    def test_whole_again(self) -> None:
        """A damaged file would stay damaged although others have it whole."""
        self.healed(superseded=False)
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))
        self.assertEqual(self.node.debris(), [])

    @shows("A51", "I10")
    def test_not_wanted_any_more(self) -> None:
        """The image of before would be recorded over an upload that was accepted meanwhile."""
        self.healed(superseded=True)
        (held,) = self.successResultOf(self.node.restarted().load()).held
        self.assertIsNotNone(held.pending)


class Examining(Real):
    """``Store.examine``: what differs between an image and its index."""

    def found(self, index: Index, most_bytes: int = 1 << 40) -> Findings:
        examination = self.store.examine(V1, index)
        while True:
            findings = self.successResultOf(examination.go_on(most_bytes))
            if findings is not None:
                examination.close()
                return findings

    @shows("A10", "F51", "I1")
    def test_each_damage(self) -> None:
        """A kind of damage that is not seen is healed by nobody."""
        index = self.upload(V1, SMALL)
        top = self.node.image(V1)
        self.assertEqual(self.found(index), Findings((), 0, True))

        def rot(path: Path) -> None:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)

        for path, damage, word in (
            ("README", lambda path: path.unlink(), "is missing"),
            ("README", lambda path: path.write_bytes(b"hello\n\n"), "has 7 bytes, not 6"),
            ("a/big.bin", rot, "1 of 4 blocks are wrong"),
            ("run.sh", lambda path: path.chmod(0o4755), "has mode 4755, not 0755"),
            ("a", lambda path: path.chmod(0o777), "has mode 0777, not 0755"),
            ("link", lambda path: path.symlink_to("/etc/passwd"), "is not in the index"),
            ("dangling", lambda path: (path.unlink(), path.symlink_to("elsewhere")), "leads elsewhere"),
            ("dangling", lambda path: (path.unlink(), path.write_bytes(b"")), "is not a symbolic link"),
            ("README", lambda path: (path.unlink(), path.symlink_to(self.outside / "precious")), "is not a regular file"),
            ("a-b", lambda path: (path.rename(top.parent / "elsewhere"), path.write_bytes(b"")), "is not a directory"),
        ):
            damage(top / path)
            findings = self.found(index, most_bytes=1)
            self.assertEqual([(one.path, one.what) for one in findings.damages], [(f"/{path}", word)])
            shutil.rmtree(top.parent)
            (self.node.db / "signatures" / "app" / "web" / "v1.state").unlink()
            self.upload(V1, SMALL)
        shutil.rmtree(top)
        self.assertEqual([(one.path, one.what) for one in self.found(index).damages], [("/", "is missing")])

    @shows("A10", "I6")
    def test_many(self) -> None:
        """A million rotten files would fill the memory with what is wrong; what was replaced meanwhile would be healed."""
        index = self.upload(V1, {f"/f{number:03}": b"x" for number in range(MOST_DAMAGES + 20)})
        for path in self.node.image(V1).iterdir():
            path.write_bytes(b"y")
        findings = self.found(index)
        self.assertEqual((len(findings.damages), findings.count), (MOST_DAMAGES, MOST_DAMAGES + 20))
        examination = self.store.examine(V1, index)
        self.assertIsNone(self.successResultOf(examination.go_on(1)))
        self.upload(V1, SMALL)
        findings = self.successResultOf(examination.go_on(1 << 40))
        assert findings is not None
        self.assertFalse(findings.current)


class Durable(Real):
    """What is synced before the new image is shown."""

    @shows("A44", "F38", "I2")
    def test_every_file_and_directory(self) -> None:
        """After a power cut an acknowledged image would hold empty files, or lack some."""
        spec: Spec = {"/f": b"f", "/a/g": b"g", "/a/b/h": b"h", "/zero": b""}
        staging, index = self.filled(V1, spec)
        synced: list[str] = []
        real_file, real_dir = SafeDir.fsync, SafeDir.open_read
        faults = Faults()
        faults.install(self)
        opened: list[str] = []

        def open_read(directory: SafeDir, name: str) -> object:
            opened.append(name)
            return real_dir(directory, name)

        def fsync(directory: SafeDir) -> None:
            synced.append(directory.where)
            real_file(directory)

        self.patch(SafeDir, "open_read", open_read)
        self.patch(SafeDir, "fsync", fsync)
        self.successResultOf(staging.commit(state_of(index)))
        Faults.remove(self)
        before = faults.calls[: faults.calls.index("renameat2")]
        files, directories, root, state, journal = 4, 3, 1, 1, 2
        self.assertEqual(before.count("fsync"), files + directories + root + state + journal)
        for path in ("a", "a/b"):
            self.assertTrue(any(where.endswith(f"/{path}") for where in synced), path)


class Serving(Real):
    """What is given to others."""

    @shows("A10", "F51", "I1")
    def test_rotten(self) -> None:
        """Bytes that have rotted would be given out for a block."""
        index = self.upload(V1, SMALL)
        everything = range(index.block_count)
        self.assertNotIn(None, self.store.read_blocks(V1, index, everything))
        big = self.node.image(V1) / "a" / "big.bin"
        data = bytearray(big.read_bytes())
        data[40_000] ^= 1
        big.write_bytes(data)
        found = self.store.read_blocks(V1, index, everything)
        self.assertEqual(found.count(None), 1)
        (self.node.image(V1) / "README").unlink()
        self.store.close()
        self.assertEqual(self.store.read_blocks(V1, index, everything).count(None), 2)

    @shows("A41", "F32", "I6")
    def test_open_trees(self) -> None:
        """A node with many images would run out of descriptors by serving them."""
        index = self.upload(V1, {"/f": b"f"})
        vpaths = [VPath(("app", "web", f"n{number}")) for number in range(TREES + 20)]
        for vpath in vpaths:
            self.upload(vpath, {"/f": b"f"})
        before = open_files()
        for vpath in vpaths:
            self.assertEqual(self.store.read_blocks(vpath, index, [0]), [b"f"])
        self.assertLessEqual(open_files() - before, 2 * TREES)


class Records(Real):
    """Files of the db directory."""

    @shows("A45", "F39", "I1")
    def test_index_under_another_name(self) -> None:
        """A copied or restored index file would be given out for another image."""
        one, two = self.upload(V1, SMALL), self.upload(V2, {"/f": b"f"})
        paths = [self.node.db / "indexes" / index.image.hex()[:2] / f"{index.image.hex()}.ds1" for index in (one, two)]
        paths[0].write_bytes(paths[1].read_bytes())
        self.assertIsNone(self.successResultOf(self.store.read_index_bytes(one.image)))
        self.assertFalse(paths[0].exists())
        self.assertIsNotNone(self.successResultOf(self.store.read_index(two.image)))

    @shows("A45", "I6")
    def test_large_state(self) -> None:
        """A state file of any size would be read and kept in memory."""
        index, _ = index_bytes(SMALL)
        data = cbor2.dumps({key: one for key, one in cbor2.loads(encode_state(state_of(index))).items() if key != "ciruela"})
        head, rest = data[:1], data[1:]
        self.assertEqual(head, b"\xa2")
        padded = b"\xa3\x61x\x5a" + MAX_STATE_BYTES.to_bytes(4, "big") + bytes(MAX_STATE_BYTES) + rest
        self.assertEqual(decode_state(b"\xa3\x61x\x41x" + rest), state_of(index))
        self.assertRaises(FormatError, decode_state, padded)

    @shows("I11", "A43")
    def test_debris(self) -> None:
        """What a crash left would fill the disk bit by bit."""
        index = self.upload(V1, SMALL)
        base, states = self.node.image(V1).parent, self.node.db / "signatures" / "app" / "web"
        debris = [base / ".ciruela~0123456789abcdef" / "f", base / ".ciruela~x99" / "g", states / ".tmp.v9.state"]
        for path in debris:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"left")
        (base / ".hidden").mkdir()
        (base / "mine").mkdir()
        held = self.successResultOf(self.node.restarted().load()).held
        self.assertEqual([found.vpath for found in held], [V1])
        self.assertEqual([path for path in debris if path.exists()], [])
        self.assertEqual(sorted(path.name for path in base.iterdir()), [".hidden", "mine", "v1"])
        self.assertEqual(on_disk(self.node.image(V1)), flat(SMALL))
        self.assertIsNotNone(index)
