"""The commit step by step, as ``docs/reference/files.rst`` has it: a kill after each step of a replacement, then a start."""

from __future__ import annotations

import gc
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import states
from ciruela.disk.layout import place
from ciruela.disk.removal import DOOMED
from ciruela.disk.states import CommitPhase, Journal
from ciruela.interfaces import Held, Pending
from ciruela.model.upload import Command
from ciruela.model.versions import State
from tests.disk.bench import CONFIGS, NEW, OLD, OTHER, V1, V2, Bench, indexed, kill_after, succeed
from tests.disk.faulty import Killed
from tests.disk.trees import flat, state_of
from tests.proof import shows

IMAGE = indexed(NEW)[0].image
BEFORE, AFTER = state_of(indexed(OLD)[0], 1), state_of(indexed(NEW)[0], 5)
STAGING = place(CONFIGS, V1).staging(IMAGE)

TREE_FSYNCS = len(indexed(NEW)[0].files) + len(indexed(NEW)[0].directories)


async def commit(bench: Bench) -> None:
    """Go on with what is staged. Nothing is written, all blocks are here."""
    index = indexed(NEW)[0]
    staging = await bench.store.stage(V1, index)
    assert len(await staging.keep()) == index.block_count
    await staging.commit(AFTER)


@shows("A43", "F36", "I1", "I11")
class Steps(SynchronousTestCase):
    """One test for each row."""

    def setUp(self) -> None:
        self.addCleanup(self.forget_kills)
        self.bench = Bench()
        self.bench.sim.install(self)
        succeed(self.bench, lambda bench: bench.upload(V2, OTHER, 1))
        succeed(self.bench, lambda bench: bench.upload(V1, OLD, 1))
        self.assertEqual(self.stands(), (flat(OLD), BEFORE, None, None))

    def forget_kills(self) -> None:
        gc.collect()
        self.flushLoggedErrors(Killed)

    def kill_in_commit(self, call: str, which: int) -> None:
        """All was downloaded; the process is killed after a call of the commit."""
        succeed(self.bench, lambda bench: bench.upload(V1, NEW, 5, upto="write"))
        kill_after(self.bench, call, which, commit)

    def stands(self) -> tuple[dict[str, bytes] | None, State, Journal | None, dict[str, bytes] | None]:
        """What stands at the name, what is recorded, the journal, and what stands at the name of the staging directory."""
        records = self.bench.records()
        above = "/signatures/app/web"
        journal = records.get(f"{above}/v1.new.state")
        return (
            self.bench.tree(V1),
            states.decode_state(records[f"{above}/v1.state"]),
            None if journal is None else states.decode_journal(journal),
            self.bench.sim.tree(f"/n/srv/web/{STAGING}"),
        )

    def waiting(self) -> dict[str, bytes] | None:
        """What stands now, when it is the old image and the journal of a download; returns the staging directory."""
        tree, state, journal, staging = self.stands()
        self.assertEqual((tree, state, journal), (flat(OLD), BEFORE, Journal(AFTER, Command.REPLACE)))
        return staging

    def goes_on(self, *, blocks: int) -> None:
        """A start keeps the old image and the upload; of the download so many blocks are here. Then it can be finished."""
        self.bench.restart()
        held = {each.vpath: each for each in self.bench.loaded().held}
        self.assertEqual(held[V1], Held(V1, BEFORE, Pending(V1, AFTER, Command.REPLACE)))
        self.assertEqual(self.bench.tree(V1), flat(OLD))
        self.assertEqual(succeed(self.bench, self.kept), blocks)
        succeed(self.bench, lambda bench: bench.upload(V1, NEW, 5))
        self.finished()

    @staticmethod
    async def kept(bench: Bench) -> int:
        staging = await bench.store.stage(V1, indexed(NEW)[0])
        try:
            return len(await staging.keep())
        finally:
            staging.close()

    def finished(self) -> None:
        """A start shows and records the new image, and nothing else is left."""
        self.bench.restart()
        held = {each.vpath: each for each in self.bench.loaded().held}
        self.assertEqual(held, {V1: Held(V1, AFTER, None), V2: Held(V2, state_of(indexed(OTHER)[0], 1), None)})
        self.assertEqual(self.stands(), (flat(NEW), AFTER, None, None))
        self.assertEqual(self.bench.debris(), set())

    def test_step_0(self) -> None:
        """An accepted upload would be forgotten."""
        succeed(self.bench, lambda bench: bench.wait(bench.store.write_pending(Pending(V1, AFTER, Command.REPLACE))))
        self.assertIsNone(self.waiting())
        self.goes_on(blocks=0)

    def test_step_1(self) -> None:
        """An empty staging directory would stop the next try."""
        succeed(self.bench, lambda bench: bench.upload(V1, NEW, 5, upto="stage"))
        self.assertEqual(self.waiting(), {"/": b""})
        inode = self.bench.sim.inodes(f"/n/srv/web/{STAGING}")[0][1]
        self.assertEqual(inode.mode & 0o777, 0o700)
        self.goes_on(blocks=0)

    def test_step_2(self) -> None:
        """What was downloaded would be fetched again, or a file that is not in the image would be shown."""
        succeed(self.bench, lambda bench: bench.upload(V1, NEW, 5, upto="write"))
        self.bench.sim.write(f"/n/srv/web/{STAGING}/stranger", b"stranger")
        self.bench.sim.bit_flip(f"/n/srv/web/{STAGING}/new", 7)
        staging = self.waiting()
        assert staging is not None
        self.assertEqual(set(staging), {"/", "/keep", "/new", "/sub", "/sub/x", "/stranger"})
        self.assertEqual(self.bench.sim.inodes(f"/n/srv/web/{STAGING}/keep")[0][1].names, 3)
        self.goes_on(blocks=2)

    def test_step_3(self) -> None:
        """A tree that is whole would be fetched again."""
        self.kill_in_commit("utime", 1)
        self.assertEqual(self.waiting(), flat(NEW))
        self.goes_on(blocks=indexed(NEW)[0].block_count)

    def test_step_4(self) -> None:
        """The same after the barrier."""
        self.kill_in_commit("fsync", TREE_FSYNCS)
        self.assertEqual(self.waiting(), flat(NEW))
        self.goes_on(blocks=indexed(NEW)[0].block_count)

    @shows("A44", "F38")
    def test_power_cut_after_step_4(self) -> None:
        """The name of the staging directory is not durable yet; without it a start would not know what to do."""
        self.kill_in_commit("fsync", TREE_FSYNCS)
        self.bench.sim.power_cut(lambda count: count - 1, "/n")
        self.assertIsNone(self.waiting())
        self.goes_on(blocks=0)

    def test_step_5(self) -> None:
        """A start would take an image for shown that is not, or leave the prepared record for ever."""
        self.kill_in_commit("rename", 1)
        ready = self.bench.sim.inodes(f"/n/srv/web/{STAGING}")[0][1].number
        tree, state, journal, staging = self.stands()
        assert journal is not None and journal.staging is not None
        self.assertEqual((tree, state, staging), (flat(OLD), BEFORE, flat(NEW)))
        self.assertEqual((journal.phase, journal.staging[1], journal.state), (CommitPhase.READY, ready, AFTER))
        self.assertEqual(self.bench.debris(), {STAGING, ".tmp.v1.state"})
        self.goes_on(blocks=indexed(NEW)[0].block_count)

    def test_step_6(self) -> None:
        """The new image would stand there with the record of the old one."""
        self.kill_in_commit("renameat2", 1)
        tree, state, journal, staging = self.stands()
        assert journal is not None
        self.assertEqual((tree, state, staging, journal.phase), (flat(NEW), BEFORE, flat(OLD), CommitPhase.READY))
        self.finished()

    @shows("F38", "A44")
    def test_step_6_and_another_device(self) -> None:
        """A disk that has another number after a reboot would show the new image, and the node would speak of the old one."""
        self.kill_in_commit("renameat2", 1)
        journal = self.stands()[2]
        assert journal is not None and journal.staging is not None
        device, inode = journal.staging
        moved = replace(journal, staging=(device + 1, inode))
        self.bench.sim.write("/n/db/signatures/app/web/v1.new.state", states.encode_journal(moved))
        self.assertEqual(self.stands()[2], moved)
        self.finished()

    def test_step_7(self) -> None:
        """A journal of what is committed would start a download."""
        self.kill_in_commit("rename", 2)
        tree, state, journal, staging = self.stands()
        assert journal is not None
        self.assertEqual((tree, state, staging, journal.phase), (flat(NEW), AFTER, flat(OLD), CommitPhase.READY))
        self.finished()

    def test_step_8(self) -> None:
        """The old tree would be left for ever."""
        self.kill_in_commit("unlink", 1)
        self.assertEqual(self.stands(), (flat(NEW), AFTER, None, flat(OLD)))
        self.finished()

    def test_step_9(self) -> None:
        """A rest of the old tree would be left for ever."""
        self.kill_in_commit("unlink", 2)
        self.assertEqual(self.stands(), (flat(NEW), AFTER, None, None))
        (rest,) = self.bench.debris()
        self.assertTrue(rest.startswith(DOOMED))
        self.assertLess(len(self.bench.sim.tree(f"/n/srv/web/{rest}") or ()), len(flat(OLD)))
        self.finished()
