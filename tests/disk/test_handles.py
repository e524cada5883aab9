"""Descriptors: one budget for what is kept open, turns for what is put together, patience when there are none."""

from __future__ import annotations

import errno
import os

from ciruela.disk import openfile
from ciruela.disk.openfile import Handles, kept_of, trees_of
from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.disk.tree import Tree
from ciruela.model.vpath import VPath
from tests.disk.real import V1, Real
from tests.disk.trees import SMALL, Spec, blocks_of, flat, in_place, index_bytes, on_disk, plant, state_of
from tests.proof import shows

WIDE: Spec = {f"/d{number}/e/f": b"%d" % number for number in range(60)}


class HandleTests(Real):
    def open_now(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    @shows("K8.3", "A41")
    def test_few(self) -> None:
        """Several uploads of many directories would fail for want of descriptors that they only keep in case."""
        self.patch(openfile.KEPT, "_most", openfile.KEPT.taken + 3)
        before, most = self.open_now(), 0
        opened = []
        for number in range(6):
            vpath = VPath(("app", "web", f"n{number}"))
            index, _ = index_bytes(WIDE)
            opened.append((vpath, index, self.staged(vpath, index)))
        for _, index, staging in opened:
            self.successResultOf(staging.write(blocks_of(WIDE, index)))
            most = max(most, self.open_now())
        self.assertLessEqual(most - before, 6 * (1 + 2 + 1) + 3)
        for vpath, index, staging in opened:
            self.successResultOf(staging.commit(state_of(index)))
            self.assertEqual(on_disk(self.node.image(vpath)), flat(WIDE))
        self.assertEqual(self.open_now(), before)

    def test_given_back(self) -> None:
        """The budget would shrink with each upload until nothing is kept any more."""
        budget = Handles(4)
        plant(self.node.srv / "t", WIDE)
        for most in (0, 4):
            budget.resize(most)
            with SafeDir.at(str(self.node.srv)) as above:
                tree = Tree(above.open_dir("t"), budget=budget)
            for path in WIDE:
                self.assertEqual(tree.file(path, SafeDir.open_read).read_at(9, 0), WIDE[path])
            self.assertLessEqual(budget.taken, most)
            tree.close()
            self.assertEqual(budget.taken, 0)

    @shows("K8.3")
    def test_turns(self) -> None:
        """More uploads at a time than there are descriptors for would all fail, instead of one waiting for the other."""
        store = self.store = Store(str(self.node.db), self.node.configs, in_place, trees=1)
        index, _ = index_bytes(SMALL)
        first = self.successResultOf(store.stage(V1, index))
        second = store.stage(VPath(("app", "web", "v2")), index)
        self.assertNoResult(second)
        dropped = store.stage(VPath(("app", "web", "v3")), index)
        dropped.cancel()
        self.failureResultOf(dropped)
        first.close()
        self.successResultOf(second).close()
        first.close()
        third = self.successResultOf(store.stage(V1, index))
        self.assertNoResult(store.stage(VPath(("app", "web", "v4")), index))
        third.close()

    @shows("K8.3", "A41")
    def test_patience(self) -> None:
        """An upload would fail because for one moment no descriptor was left."""
        slept: list[float] = []
        self.patch(openfile.time, "sleep", slept.append)
        answers = [errno.EMFILE, errno.ENFILE, 0]

        def call() -> int:
            code = answers.pop(0)
            if code:
                raise OSError(code, os.strerror(code))
            return 7

        self.assertEqual(openfile.patiently(call), 7)
        self.assertEqual(slept, list(openfile.PAUSES_S[:2]))
        answers[:] = [errno.ENOENT]
        self.assertRaises(FileNotFoundError, openfile.patiently, call)
        answers[:] = [errno.EMFILE] * 9
        self.assertRaises(OSError, openfile.patiently, call)

    def test_shares(self) -> None:
        """A process with few descriptors would keep nothing open, or leave none to its connections."""
        for limit in (64, 128, 256, 1024, 65_536):
            self.assertGreaterEqual(kept_of(limit), 8)
            self.assertGreaterEqual(trees_of(limit), 4)
            if limit > 128:
                self.assertLess(kept_of(limit) + trees_of(limit) * openfile.EACH, limit)


class LitterTests(Real):
    @shows("W2", "I11")
    def test_again(self) -> None:
        """What could not be deleted once would take its space until the daemon is restarted."""
        self.upload(V1, SMALL)
        real, broken = SafeDir.unlink, True

        def unlink(here: SafeDir, name: str) -> None:
            if broken and ".ciruela~" in here.where:
                raise OSError(errno.EIO, os.strerror(errno.EIO), name)
            real(here, name)

        self.patch(SafeDir, "unlink", unlink)
        self.upload(V1, {"/other": b"other"})
        self.assertEqual(len([name for name in self.node.debris() if name.startswith(".ciruela~x")]), 1)
        self.assertGreater(self.successResultOf(self.store.tidy(delete=True)), 0)
        broken = False
        self.assertEqual(self.successResultOf(self.store.tidy(delete=True)), 0)
        self.assertEqual(self.node.debris(), [])

    @shows("W2", "I11")
    def test_of_a_start(self) -> None:
        """The same of what a start finds."""
        (self.node.srv / "web" / ".ciruela~old" / "x").mkdir(parents=True)
        self.upload(V1, SMALL)
        real, broken = SafeDir.rmdir, True

        def rmdir(here: SafeDir, name: str) -> None:
            if broken:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
            real(here, name)

        self.patch(SafeDir, "rmdir", rmdir)
        self.successResultOf(self.store.load())
        self.assertNotEqual(self.node.debris(), [])
        broken = False
        self.assertEqual(self.successResultOf(self.store.tidy(delete=True)), 0)
        self.assertEqual(self.node.debris(), [])
