"""What the reference left, what file systems lack, and who else uses the db directory."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import cbor2

from ciruela.disk import staging, syscalls
from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.disk.version import lock
from ciruela.interfaces import Held, Pending
from ciruela.model.config import STANDARD, Fsync
from ciruela.model.errors import DiskError
from ciruela.model.upload import Command
from ciruela.model.vpath import VPath
from tests.disk.real import V1, V2, Real
from tests.disk.trees import CHANGED, SMALL, flat, in_place, index_bytes, on_disk, plant, state_of
from tests.proof import shows


class Fallbacks(Real):
    """File systems and kernels that lack something."""

    def lack(self, code: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        self.patch(syscalls, "renameat2", refuse)
        self.patch(syscalls, "_warned", set())

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
                self.assertEqual(staging.room(here, STANDARD), expected)


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

    @shows("A59")
    def test_committed(self) -> None:
        """Changing from the reference to this program would mean to upload everything again."""
        self.assertEqual(self.successResultOf(self.store.load()).held, [Held(V1, state_of(self.index), None)])
        self.assertEqual(self.successResultOf(self.store.read_index(self.index.image)), self.index)
        numbers = list(range(self.index.block_count))
        self.assertNotIn(None, self.store.read_blocks(V1, self.index, numbers))

    @shows("A59")
    def test_pending(self) -> None:
        """A download that was under way would be forgotten, as the reference forgets it (C9)."""
        self.write("v2.new.state")
        new, _ = index_bytes(CHANGED)
        self.index = new
        self.write("v1.new.state")
        old, _ = index_bytes(SMALL)
        self.assertEqual(
            self.successResultOf(self.store.load()).held,
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
        self.assertEqual(self.successResultOf(self.store.load()).held, [Held(V1, state_of(self.index), None)])
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

    @shows("A45", "F39")
    def test_bad_index(self) -> None:
        """A damaged index would be served for ever, or the evidence be destroyed (A45)."""
        text = self.index.image.hex()
        path = self.node.db / "indexes" / text[:2] / f"{text}.ds1"
        path.write_bytes(path.read_bytes().replace(b"README", b"README2"))
        self.assertIsNone(self.successResultOf(self.store.read_index(self.index.image)))
        self.assertEqual([found.name for found in path.parent.iterdir()], [f".{text}.ds1.backup"])

    @shows("I11")
    def test_temporary_index(self) -> None:
        """Half-written indexes would pile up."""
        text = self.index.image.hex()
        path = self.node.db / "indexes" / text[:2] / f".tmp.{text}.ds1"
        path.write_bytes(b"half")
        self.successResultOf(self.store.load())
        self.assertFalse(path.exists())

    @shows("A45", "I9")
    def test_one_bad_path(self) -> None:
        """One state that cannot be read for a fault of the disk would keep the whole node from starting."""
        self.write("v2.state")
        plant(self.node.image(V2), SMALL)
        debris = self.node.srv / "web" / ".ciruela~0123"
        debris.mkdir()
        real = SafeDir.open_read

        def failing(here: SafeDir, name: str) -> OpenFile:
            if name == "v1.state":
                raise OSError(errno.EIO, "open: Input/output error", name)
            return real(here, name)

        self.patch(SafeDir, "open_read", failing)
        self.assertEqual(self.successResultOf(self.store.load()).held, [Held(V2, state_of(self.index), None)])
        self.assertTrue((self.states / "v1.state").exists())
        self.assertTrue(debris.exists(), "nothing is swept where it is not known what is pending")

    @shows("I9")
    def test_added(self) -> None:
        """A reload would hide what is in a directory that was configured before, or disturb uploads to others that run."""
        half = self.node.db / "signatures" / ".tmp.other.state"
        half.write_bytes(b"half")
        one = self.states / ".tmp.v9.state"
        one.write_bytes(b"half")
        configs = dict(self.node.configs)
        added = {"app": configs.pop("app")}
        store = Store(str(self.node.db), configs, in_place)
        self.addCleanup(store.close)
        self.assertEqual(self.successResultOf(store.load_added(added)).held, [Held(V1, state_of(self.index), None)])
        self.assertTrue(half.exists())
        self.assertTrue(one.exists())
        store.forget([V1])
        self.failureResultOf(store.present(V1), DiskError)

    def test_limits(self) -> None:
        """Of new limits those count that can; durability stays as it was promised."""
        self.store.tune(replace(STANDARD, disk_reserve_bytes=5, fsync=Fsync.NONE, max_index_bytes=1))
        self.assertEqual(self.store._tuning, replace(STANDARD, disk_reserve_bytes=5))


class Locked(Real):
    @shows("A49", "F43")
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
