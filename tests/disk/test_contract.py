"""What every ``interfaces.Disk`` does: run against real files and against the double that cluster tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.index.digest import HashKind
from ciruela.index.tree import Index
from ciruela.interfaces import Disk, Held, NamesFound, Pending, Staging
from ciruela.model.config import DirConfig
from ciruela.model.errors import BadIndex, DiskError, DownloadFailed, OtherContent
from ciruela.model.upload import AbortReason, Command
from ciruela.model.versions import State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from tests.disk.trees import CHANGED, SMALL, Node, Spec, blocks_of, flat, in_place, index_bytes, on_disk, state_of
from tests.doubles.memdisk import MemDisk
from tests.proof import shows

V1 = VPath(("app", "web", "v1"))
V2 = VPath(("app", "web", "v2"))
SINGLE = VPath(("one",))
ONCE = VPath(("once", "v1"))


class Contract:
    """The suite; subclasses say what a disk is, how it restarts, and what stands at a path."""

    disk: Disk

    restart: Callable[[], None]
    standing: Callable[[VPath], dict[str, bytes]]
    lose: Callable[[VPath], None]
    aside: Callable[[VPath], dict[str, bytes]]
    lose_record: Callable[[VPath], None]
    damage_record: Callable[[VPath], None]
    unmount: Callable[[], None]
    fill_up: Callable[[], None]

    # trial's, for the type checker
    successResultOf: Any
    failureResultOf: Any
    assertEqual: Any
    assertTrue: Any
    assertFalse: Any
    assertIsNone: Any
    assertIn: Any

    def staged(self, vpath: VPath, index: Index) -> Staging:
        staging: Staging = self.successResultOf(self.disk.stage(vpath, index))
        return staging

    def upload(self, vpath: VPath, spec: Spec, command: Command = Command.APPEND, time: int = 1_700_000_000_123) -> Index:
        index, data = index_bytes(spec)
        state = state_of(index, time)
        self.successResultOf(self.disk.write_pending(Pending(vpath, state, command)))
        self.successResultOf(self.disk.write_index(index.image, data))
        staging = self.staged(vpath, index)
        self.assertTrue(all(self.successResultOf(staging.write(blocks_of(spec, index)))))
        self.successResultOf(staging.commit(state))
        return index

    def load(self) -> list[Held]:
        held: list[Held] = list(self.successResultOf(self.disk.load()).held)
        return held

    def test_append(self) -> None:
        """An uploaded image would not appear, or would not be remembered after a restart."""
        index = self.upload(V1, SMALL)
        self.assertEqual(self.standing(V1), flat(SMALL))
        self.assertTrue(self.successResultOf(self.disk.present(V1)))
        self.restart()
        self.assertEqual(self.load(), [Held(V1, state_of(index), None)])

    def test_replace(self) -> None:
        """The old image would stay, or parts of both would be mixed."""
        self.upload(V1, SMALL)
        index = self.upload(V1, CHANGED, Command.REPLACE, 1_700_000_009_000)
        self.assertEqual(self.standing(V1), flat(CHANGED))
        self.restart()
        self.assertEqual(self.load(), [Held(V1, state_of(index, 1_700_000_009_000), None)])

    def test_single(self) -> None:
        """A directory configured with num-levels 0 could not be uploaded, replaced or found again."""
        self.upload(SINGLE, SMALL)
        index = self.upload(SINGLE, CHANGED, Command.REPLACE, 5)
        self.assertEqual(self.standing(SINGLE), flat(CHANGED))
        self.restart()
        self.assertEqual(self.load(), [Held(SINGLE, state_of(index, 5), None)])

    def test_several(self) -> None:
        """Images of one base dir would get into each other's way, or be listed in another order at each start."""
        index = self.upload(V2, SMALL)
        self.upload(V1, SMALL)
        self.assertEqual(self.load(), [Held(V1, state_of(index), None), Held(V2, state_of(index), None)])

    def test_bad_block(self) -> None:
        """A block that a liar sent would be written, or a good one beside it lost."""
        index, _ = index_bytes(SMALL)
        staging = self.staged(V1, index)
        blocks = blocks_of(SMALL, index)
        bad = [(blocks[0][0], b"wrong"), blocks[1], (blocks[2][0], blocks[2][1] + b"!")]
        self.assertEqual(self.successResultOf(staging.write(bad)), [False, True, False])
        read = self.disk.read_blocks(V1, index, [0, 1, 2])
        self.assertEqual(read, [None, blocks[1][1], None])

    def test_written_here(self) -> None:
        """A thread that has received blocks writes them itself, like those that were handed over: good ones, wherever they stand."""
        index, _ = index_bytes(SMALL)
        staging = self.staged(V1, index)
        blocks = blocks_of(SMALL, index)
        self.assertEqual(staging.write_here([(blocks[0][0], b"wrong"), *blocks[1:]]), [False] + [True] * (len(blocks) - 1))
        self.assertEqual(staging.write_here(blocks), [True] * len(blocks))
        self.successResultOf(staging.commit(state_of(index)))
        self.assertEqual(self.standing(V1), flat(SMALL))

    def test_equal_blocks(self) -> None:
        """A block that an image has twice would have to travel twice."""
        spec: Spec = {"/a": b"same", "/sub/b": b"same", "/c": b"other"}
        index, _ = index_bytes(spec)
        staging = self.staged(V1, index)
        blocks = dict(blocks_of(spec, index))
        numbers = [number for number, data in blocks.items() if data == b"same"]
        self.assertEqual(self.successResultOf(staging.write([(numbers[0], b"same")])), [True])
        self.assertEqual(self.disk.read_blocks(V1, index, numbers), [b"same", b"same"])

    def test_incomplete(self) -> None:
        """An image with a block missing would be shown."""
        index, _ = index_bytes(SMALL)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write(blocks_of(SMALL, index)[1:]))
        failed = self.failureResultOf(staging.commit(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.COMMIT_ERROR)
        self.assertFalse(self.successResultOf(self.disk.present(V1)))
        self.assertEqual(self.load(), [])

    def test_resume(self) -> None:
        """A download that a restart interrupted would be forgotten, or begin from nothing."""
        index, _ = index_bytes(SMALL)
        state = state_of(index)
        blocks = blocks_of(SMALL, index)
        self.successResultOf(self.disk.write_pending(Pending(V1, state, Command.REPLACE)))
        self.successResultOf(self.staged(V1, index).write(blocks[:3]))
        self.restart()
        self.assertEqual(self.load(), [Held(V1, None, Pending(V1, state, Command.REPLACE))])
        staging = self.staged(V1, index)
        kept = self.successResultOf(staging.keep())
        self.assertTrue({0, 1, 2} <= kept)
        self.successResultOf(staging.write([block for block in blocks if block[0] not in kept]))
        self.successResultOf(staging.commit(state))
        self.assertEqual(self.standing(V1), flat(SMALL))

    def test_fresh_keep(self) -> None:
        """Blocks would be taken for present that never came."""
        index, _ = index_bytes(SMALL)
        self.assertEqual(self.successResultOf(self.staged(V1, index).keep()), frozenset())

    def test_reuse(self) -> None:
        """What is the same in a sibling would travel again; what differs would be taken for the same."""
        first = self.upload(V1, SMALL)
        index, _ = index_bytes(CHANGED)
        staging = self.staged(V2, index)
        reused = self.successResultOf(staging.reuse([(V1, first)]))
        blocks = blocks_of(CHANGED, index)
        changed = {number for number, data in blocks if data not in [data for _, data in blocks_of(SMALL, first)]}
        self.assertEqual(reused.blocks & changed, frozenset())
        self.assertEqual(reused.bytes, sum(len(data) for number, data in blocks if number in reused.blocks))
        self.assertEqual(reused.files, 4)
        self.successResultOf(staging.write([block for block in blocks if block[0] not in reused.blocks]))
        self.successResultOf(staging.commit(state_of(index)))
        self.assertEqual(self.standing(V2), flat(CHANGED))
        self.assertEqual(self.standing(V1), flat(SMALL))

    def test_reuse_of_what_is_not_there(self) -> None:
        """A sibling that is gone would end the download."""
        index, _ = index_bytes(SMALL)
        reused = self.successResultOf(self.staged(V1, index).reuse([(V2, index)]))
        self.assertEqual((reused.blocks, reused.files, reused.bytes), (frozenset(), 0, 0))

    def test_drop(self) -> None:
        """An aborted upload would come back after a restart, or leave its blocks behind."""
        index, _ = index_bytes(SMALL)
        self.successResultOf(self.disk.write_pending(Pending(V1, state_of(index), Command.APPEND)))
        self.successResultOf(self.staged(V1, index).write(blocks_of(SMALL, index)))
        self.successResultOf(self.disk.drop_pending(V1))
        self.assertEqual(self.disk.read_blocks(V1, index, [0]), [None])
        self.assertEqual(self.load(), [])
        self.assertEqual(self.successResultOf(self.staged(V1, index).keep()), frozenset())

    def test_drop_keeps_committed(self) -> None:
        """An aborted replace would take the present image with it."""
        old = self.upload(V1, SMALL)
        index, _ = index_bytes(CHANGED)
        self.successResultOf(self.disk.write_pending(Pending(V1, state_of(index, 9), Command.REPLACE)))
        self.staged(V1, index)
        self.successResultOf(self.disk.drop_pending(V1))
        self.assertEqual(self.load(), [Held(V1, state_of(old), None)])
        self.assertEqual(self.standing(V1), flat(SMALL))

    def test_drop_of_nothing(self) -> None:
        """Forgetting twice would fail."""
        self.successResultOf(self.disk.drop_pending(V1))

    def test_superseded(self) -> None:
        """A newer upload to a path would leave the older one's blocks behind for ever."""
        old, _ = index_bytes(SMALL)
        new, _ = index_bytes(CHANGED)
        self.successResultOf(self.disk.write_pending(Pending(V1, state_of(old), Command.APPEND)))
        self.successResultOf(self.staged(V1, old).write(blocks_of(SMALL, old)))
        self.successResultOf(self.disk.write_pending(Pending(V1, state_of(new, 9), Command.REPLACE)))
        self.assertEqual(self.disk.read_blocks(V1, old, [0]), [None])
        self.assertEqual(self.load(), [Held(V1, None, Pending(V1, state_of(new, 9), Command.REPLACE))])

    def test_discard(self) -> None:
        """A staging directory that is not wanted would stay."""
        index, _ = index_bytes(SMALL)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write(blocks_of(SMALL, index)))
        self.successResultOf(staging.discard())
        self.assertEqual(self.successResultOf(self.staged(V1, index).keep()), frozenset())

    def test_signatures_that_came_late(self) -> None:
        """Signatures that were merged while an image was being committed would be lost."""
        index, _ = index_bytes(SMALL)
        early, late = state_of(index, 1), state_of(index, 2)
        both = early.merged(late.signatures)
        staging = self.staged(V1, index)
        self.successResultOf(staging.write(blocks_of(SMALL, index)))
        self.successResultOf(self.disk.write_pending(Pending(V1, both, Command.APPEND)))
        self.successResultOf(staging.commit(early))
        self.assertEqual(self.load(), [Held(V1, both, None)])

    def test_pending_of_what_is_committed(self) -> None:
        """A kill between state and journal would leave an upload that is pending for ever, or lose its signatures."""
        index = self.upload(V1, SMALL)
        self.successResultOf(self.disk.write_pending(Pending(V1, state_of(index, 9), Command.APPEND)))
        self.restart()
        both: State = state_of(index).merged(state_of(index, 9).signatures)
        self.assertEqual(self.load(), [Held(V1, both, None)])
        self.assertEqual(self.load(), [Held(V1, both, None)])

    def test_write_state(self) -> None:
        """Signatures of a second upload of the same image would be lost with a restart."""
        index = self.upload(V1, SMALL)
        both = state_of(index).merged(state_of(index, 7).signatures)
        self.successResultOf(self.disk.write_state(V1, both))
        self.restart()
        self.assertEqual(self.load(), [Held(V1, both, None)])

    def test_lost_image(self) -> None:
        """A directory that somebody deleted would never come back."""
        index = self.upload(V1, SMALL)
        self.lose(V1)
        self.restart()
        self.assertEqual(self.load(), [Held(V1, None, Pending(V1, state_of(index), Command.APPEND))])
        self.upload(V1, SMALL)
        self.assertEqual(self.load(), [Held(V1, state_of(index), None)])
        self.assertEqual(self.standing(V1), flat(SMALL))

    def test_unmounted(self) -> None:
        """A disk that is not mounted at start would make the node forget all that is on it (C8)."""
        index = self.upload(V1, SMALL)
        self.successResultOf(self.disk.write_pending(Pending(V2, state_of(index, 9), Command.APPEND)))
        self.restart()
        self.unmount()
        self.assertEqual(self.load(), [Held(V1, state_of(index), None), Held(V2, None, Pending(V2, state_of(index, 9), Command.APPEND))])
        failed = self.failureResultOf(self.disk.stage(V2, index), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.CANT_CREATE_DIRECTORY)
        self.assertEqual(self.disk.read_blocks(V1, index, [0]), [None])
        self.failureResultOf(self.disk.present(V1), DiskError)
        self.assertEqual(len(self.load()), 2)

    def test_no_space(self) -> None:
        """A disk would be filled up before the refusal came."""
        self.fill_up()
        index, _ = index_bytes(SMALL)
        failed = self.failureResultOf(self.disk.stage(V1, index), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.NO_SPACE)
        self.assertIn(f"needs {index.total_bytes}", failed.detail)

    def test_no_space_with_siblings(self) -> None:
        """A new version that shares almost all its content would be refused, or one that shares little would fill the disk."""
        first = self.upload(V1, SMALL)
        self.fill_up()
        staging = self.staged(V2, first)
        self.assertEqual(self.successResultOf(staging.reuse([(V1, first)])).bytes, first.total_bytes)
        self.assertEqual(self.successResultOf(staging.write([])), [])
        self.successResultOf(staging.commit(state_of(first)))
        index, _ = index_bytes(CHANGED)
        staging = self.staged(V1, index)
        self.successResultOf(staging.reuse([(V1, first)]))
        failed = self.failureResultOf(staging.write(blocks_of(CHANGED, index)), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.NO_SPACE)

    def test_serving(self) -> None:
        """Peers and clients would get no blocks, wrong ones, or none of an image that is being replaced (C44)."""
        old = self.upload(V1, SMALL)
        blocks = blocks_of(SMALL, old)
        numbers = [number for number, _ in blocks]
        self.assertEqual(self.disk.read_blocks(V1, old, numbers), [data for _, data in blocks])
        new, _ = index_bytes(CHANGED)
        changed = blocks_of(CHANGED, new)
        self.successResultOf(self.disk.write_pending(Pending(V1, state_of(new, 9), Command.REPLACE)))
        staging = self.staged(V1, new)
        self.successResultOf(staging.write(changed[:1]))
        self.assertEqual(self.disk.read_blocks(V1, old, numbers), [data for _, data in blocks])
        self.assertEqual(self.disk.read_blocks(V1, new, [0]), [changed[0][1]])
        self.successResultOf(staging.write(changed))
        self.successResultOf(staging.commit(state_of(new, 9)))
        everything = self.disk.read_blocks(V1, new, [number for number, _ in changed])
        self.assertEqual(everything, [data for _, data in changed])

    def test_serving_after_a_new_start(self) -> None:
        """Blocks of a download that was thrown away and begun again would not be served to peers."""
        index, _ = index_bytes(SMALL)
        staging = self.staged(V1, index)
        blocks = blocks_of(SMALL, index)
        self.successResultOf(staging.write(blocks))
        self.assertEqual(self.disk.read_blocks(V1, index, [0]), [blocks[0][1]])
        self.successResultOf(staging.discard())
        self.successResultOf(self.staged(V1, index).write(blocks))
        read = self.disk.read_blocks(V1, index, [number for number, _ in blocks])
        self.assertEqual(read, [data for _, data in blocks])

    def test_serving_of_what_was_replaced(self) -> None:
        """Files of old versions would be kept open, and the disk never get their space back."""
        old = self.upload(V1, SMALL)
        new, _ = index_bytes(CHANGED)
        staging = self.staged(V1, new)
        self.assertEqual(self.disk.read_blocks(V1, old, [0]), [blocks_of(SMALL, old)[0][1]])
        self.successResultOf(staging.write(blocks_of(CHANGED, new)))
        self.successResultOf(staging.commit(state_of(new, 9)))
        self.assertEqual(self.disk.read_blocks(V1, old, [0]), [None])

    def test_indexes(self) -> None:
        """An index would be gone after a restart, or a forged one would be kept and handed on (S3)."""
        for kind in HashKind:
            index, data = index_bytes(SMALL, kind)
            self.assertIsNone(self.successResultOf(self.disk.read_index(index.image)))
            self.assertIsNone(self.successResultOf(self.disk.read_index_bytes(index.image)))
            self.failureResultOf(self.disk.write_index(index.image, data.replace(b"README", b"README2")), BadIndex)
            self.assertIsNone(self.successResultOf(self.disk.read_index_bytes(index.image)))
            self.assertEqual(self.successResultOf(self.disk.write_index(index.image, data)), index)
            self.restart()
            self.assertEqual(self.successResultOf(self.disk.read_index(index.image)), index)
            self.assertEqual(self.successResultOf(self.disk.read_index_bytes(index.image)), data)

    @shows("I9", "I10", "A12")
    def test_remove(self) -> None:
        """A deleted image would stay, come back with the next start, or not be remembered as deleted."""
        index = self.upload(V1, SMALL)
        self.upload(V2, CHANGED)
        self.upload(SINGLE, SMALL)
        grave, single = Tombstone(state_of(index).version, 1_700_000_500_000), Tombstone(state_of(index).version, 1_700_000_600_000)
        self.assertEqual(self.successResultOf(self.disk.remove(V1, grave)), Tombstones(0, {"v1": grave}))
        self.assertEqual(self.successResultOf(self.disk.remove(SINGLE, single)), Tombstones(0, {"": single}))
        self.assertFalse(self.successResultOf(self.disk.present(V1)))
        self.assertFalse(self.successResultOf(self.disk.present(SINGLE)))
        self.assertEqual(self.standing(V2), flat(CHANGED))
        self.failureResultOf(self.disk.remove(V1, grave), DiskError)
        self.restart()
        loaded = self.successResultOf(self.disk.load())
        self.assertEqual([one.vpath for one in loaded.held], [V2])
        self.assertEqual(dict(loaded.burials), {V1.base: Tombstones(0, {"v1": grave}), SINGLE: Tombstones(0, {"": single})})

    @shows("I9", "A51")
    def test_remove_something_else(self) -> None:
        """What was uploaded after somebody decided to delete the old image would be deleted, or its upload be lost."""
        index = self.upload(V1, SMALL)
        other, _ = index_bytes(CHANGED)
        grave = Tombstone(state_of(index).version, 5)
        self.failureResultOf(self.disk.remove(V1, Tombstone(state_of(other).version, 5)), DiskError)
        self.failureResultOf(self.disk.remove(V2, grave), DiskError)
        pending = Pending(V1, state_of(other, 1_700_000_009_000), Command.REPLACE)
        self.successResultOf(self.disk.write_pending(pending))
        self.failureResultOf(self.disk.remove(V1, grave), DiskError)
        self.successResultOf(self.disk.drop_pending(V1))
        self.unmount()
        self.failureResultOf(self.disk.remove(V1, grave), DiskError)
        self.restart()
        loaded = self.successResultOf(self.disk.load())
        self.assertEqual((list(loaded.held), dict(loaded.burials)), ([Held(V1, state_of(index), None)], {}))

    @shows("I6", "I10")
    def test_fold(self) -> None:
        """What is remembered of deletions would grow for ever, or be forgotten so that deleted images come back."""
        early, late = self.upload(V1, SMALL, time=1_700_000_000_123), self.upload(V2, CHANGED, time=1_700_000_000_456)
        old = Tombstone(state_of(early).version, 1_700_000_500_000)
        new = Tombstone(state_of(late, 1_700_000_000_456).version, 1_700_000_600_000)
        self.successResultOf(self.disk.remove(V1, old))
        both = self.successResultOf(self.disk.remove(V2, new))
        self.assertEqual(self.successResultOf(self.disk.fold_burials(V1, old.buried_ms)), both)
        folded = Tombstones(old.version.timestamp_ms, {"v2": new})
        self.assertEqual(self.successResultOf(self.disk.fold_burials(V1, old.buried_ms + 1)), folded)
        self.restart()
        self.assertEqual(dict(self.successResultOf(self.disk.load()).burials), {V1.base: folded})

    @shows("I9")
    def test_collect_indexes(self) -> None:
        """Indexes would pile up, or an image lose the one by which it is verified and served."""
        committed = self.upload(V1, SMALL)
        pending, data = index_bytes(CHANGED)
        self.successResultOf(self.disk.write_pending(Pending(V2, state_of(pending), Command.APPEND)))
        self.successResultOf(self.disk.write_index(pending.image, data))
        kept, kept_data = index_bytes({"/kept": b"kept"})
        loose, loose_data = index_bytes({"/loose": b"loose"})
        self.successResultOf(self.disk.write_index(kept.image, kept_data))
        self.successResultOf(self.disk.write_index(loose.image, loose_data))
        self.assertEqual(self.successResultOf(self.disk.collect_indexes({kept.image})), 1)
        self.assertIsNone(self.successResultOf(self.disk.read_index(loose.image)))
        for index in (committed, pending, kept):
            self.assertEqual(self.successResultOf(self.disk.read_index(index.image)), index)
        self.assertEqual(self.successResultOf(self.disk.collect_indexes(())), 1)
        self.successResultOf(self.disk.remove(V1, Tombstone(state_of(committed).version, 5)))
        self.assertEqual(self.successResultOf(self.disk.collect_indexes(())), 1)
        self.assertIsNone(self.successResultOf(self.disk.read_index(committed.image)))
        self.assertEqual(self.successResultOf(self.disk.read_index(pending.image)), pending)

    @shows("A40", "F30", "I9")
    def test_identity(self) -> None:
        """A cleanup could not tell that another disk, or none, is mounted where the images were."""
        app, one = (self.successResultOf(self.disk.identity(key)) for key in ("app", "one"))
        self.assertNotEqual(app, one)
        self.restart()
        self.assertEqual(self.successResultOf(self.disk.identity("app")), app)
        self.failureResultOf(self.disk.identity("nope"), DiskError)
        self.unmount()
        self.failureResultOf(self.disk.identity("app"), DiskError)

    def test_not_configured(self) -> None:
        """Files would be made for a path that no config takes."""
        index, _ = index_bytes(SMALL)
        for vpath in (VPath(("nope", "a", "b")), VPath(("app", "a")), VPath(("app", "a", "b", "c")), VPath(("one", "a"))):
            self.failureResultOf(self.disk.write_pending(Pending(vpath, state_of(index), Command.APPEND)), DiskError)
            self.failureResultOf(self.disk.stage(vpath, index), DiskError)
            self.failureResultOf(self.disk.present(vpath), DiskError)
        self.assertEqual(self.load(), [])

    @shows("K3.1", "I1", "I9")
    def test_record_lost_and_newer(self) -> None:
        """A node that lost a record would refuse all newer versions for ever, or delete what nobody knows."""
        for vpath in (V1, SINGLE):
            self.upload(vpath, SMALL)
            self.lose_record(vpath)
            self.assertNotIn(vpath, [held.vpath for held in self.load()])
            index = self.upload(vpath, CHANGED, Command.REPLACE, 9)
            self.assertEqual(self.standing(vpath), flat(CHANGED))
            self.assertIn(str(vpath), [one.path for one in self.disk.set_aside()])
            self.assertEqual(self.aside(vpath), flat(SMALL))
            self.restart()
            self.assertIn(Held(vpath, state_of(index, 9), None), self.load())
            self.assertEqual(self.aside(vpath), flat(SMALL))
            self.assertIn(str(vpath), [one.path for one in self.disk.set_aside()])

    @shows("K3.1")
    def test_record_lost_and_the_same(self) -> None:
        """A node that lost a record would need twice the room for what it has."""
        self.upload(V1, SMALL)
        self.lose_record(V1)
        index = self.upload(V1, SMALL, Command.REPLACE, 9)
        self.assertEqual(self.load(), [Held(V1, state_of(index, 9), None)])
        self.assertEqual(list(self.disk.set_aside()), [])

    @shows("K3.1", "I9")
    def test_foreign_in_an_append_only_directory(self) -> None:
        """What somebody put where only new names are taken would be moved away; or what was ours would block the path for ever."""
        self.upload(ONCE, SMALL)
        self.lose_record(ONCE)
        index, data = index_bytes(CHANGED)
        self.successResultOf(self.disk.write_index(index.image, data))
        staging = self.staged(ONCE, index)
        self.successResultOf(staging.write(blocks_of(CHANGED, index)))
        failed = self.failureResultOf(staging.commit(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason, AbortReason.ALREADY_EXISTS)
        self.assertIn("move it away", str(failed))
        self.damage_record(ONCE)
        staging = self.staged(ONCE, index)
        self.successResultOf(staging.write(blocks_of(CHANGED, index)))
        self.successResultOf(staging.commit(state_of(index)))
        self.assertEqual(self.standing(ONCE), flat(CHANGED))
        self.assertEqual(self.aside(ONCE), flat(SMALL))

    @shows("K3.2", "I7")
    def test_remove_without_a_record(self) -> None:
        """A removal would be called done while the directory is still there; or would take what somebody else put there."""
        for time, (spec, goes) in enumerate(((SMALL, True), (CHANGED, False)), 20):
            index = self.upload(V1, spec, Command.REPLACE, time)
            self.lose_record(V1)
            named, _ = index_bytes(SMALL)
            tombstone = Tombstone(Version(40 + time, named.image), 50 + time, (bytes(64),))
            self.failureResultOf(self.disk.remove(V1, tombstone), OtherContent)
            self.assertTrue(self.successResultOf(self.disk.present(V1)))
            removed = self.disk.remove(V1, tombstone, named)
            if goes:
                self.assertEqual(self.successResultOf(removed).tombstones["v1"], tombstone)
            else:
                self.failureResultOf(removed, OtherContent)
                self.assertNotEqual(index.image, named.image)
            self.restart()
            self.assertEqual(self.load(), [])
            self.assertIs(self.successResultOf(self.disk.present(V1)), not goes)

    @shows("K3.5")
    def test_look(self) -> None:
        """An image that was removed by hand would count for ever; one on a disk that is not mounted would be fetched again."""
        for vpath in (V1, V2, SINGLE):
            self.upload(vpath, SMALL)
        self.assertEqual(self.successResultOf(self.disk.look([V1, V2, SINGLE])), NamesFound((), {}))
        self.lose(V1)
        self.assertEqual(self.successResultOf(self.disk.look([V1, V2, SINGLE])), NamesFound((V1,), {}))
        self.unmount()
        sight = self.successResultOf(self.disk.look([V1, V2, SINGLE]))
        self.assertEqual((sight.gone, list(sight.unseen)), ((), ["app"]))
        self.assertIn("mounted", sight.unseen["app"])


class RealDisk(Contract, SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(Path(self.mktemp()).absolute())
        (self.node.root / "once").mkdir()
        self.node.configs["once"] = DirConfig("once", str(self.node.root / "once"), append_only=True, num_levels=1)
        self.disk = self.node.store

    def tearDown(self) -> None:
        self.node.store.close()

    def restart(self) -> None:
        self.node.store.close()
        self.disk = self.node.store = Store(str(self.node.db), self.node.configs, in_place)

    def standing(self, vpath: VPath) -> dict[str, bytes]:
        return on_disk(self._image(vpath))

    def _image(self, vpath: VPath) -> Path:
        return self.node.root / "once" / "v1" if vpath == ONCE else self.node.image(vpath)

    def aside(self, vpath: VPath) -> dict[str, bytes]:
        (found,) = self._image(vpath).parent.glob(".ciruela-aside~*")
        return on_disk(found)

    def lose_record(self, vpath: VPath) -> None:
        (self.node.db / "signatures" / f"{str(vpath)[1:]}.state").unlink()

    def damage_record(self, vpath: VPath) -> None:
        (self.node.db / "signatures" / vpath.key / f".{vpath.name}.state.backup").write_bytes(b"bent")

    def lose(self, vpath: VPath) -> None:
        image = self.node.image(vpath)
        image.rename(self.node.root / "lost")

    def unmount(self) -> None:
        self.node.srv.rename(self.node.root / "elsewhere")

    def fill_up(self) -> None:
        self.patch(SafeDir, "free_bytes", lambda _: (1 << 30, 1 << 40))

    def test_nothing_left(self) -> None:
        """Journals, temporary files or staging directories would pile up."""
        self.upload(V1, SMALL)
        self.upload(V1, CHANGED, Command.REPLACE, 9)
        self.upload(SINGLE, SMALL)
        self.assertEqual(self.node.debris(), [])


class Memory(Contract, SynchronousTestCase):
    def setUp(self) -> None:
        self.disk: MemDisk = MemDisk(
            {
                "app": DirConfig("app", "/srv", append_only=False, num_levels=2),
                "one": DirConfig("one", "/one", append_only=False, num_levels=0),
                "once": DirConfig("once", "/once", append_only=True, num_levels=1),
            }
        )

    def restart(self) -> None:
        self.disk.crash()

    def standing(self, vpath: VPath) -> dict[str, bytes]:
        return self.disk.files(vpath)

    def aside(self, vpath: VPath) -> dict[str, bytes]:
        (found,) = [index for path, index in self.disk.aside_trees if path == str(vpath)]
        return self.disk.files_of(found)

    def lose_record(self, vpath: VPath) -> None:
        self.disk.lose_record(vpath)

    def damage_record(self, vpath: VPath) -> None:
        self.disk.damaged.add(vpath)

    def lose(self, vpath: VPath) -> None:
        self.disk.lose(vpath)

    def unmount(self) -> None:
        self.disk.unmounted.add("app")

    def fill_up(self) -> None:
        self.disk.free_bytes = 0

    def test_crash(self) -> None:
        """A simulated node could go on writing after it was killed."""
        index, _ = index_bytes(SMALL)
        staging = self.staged(V1, index)
        self.disk.crash()
        self.failureResultOf(staging.keep(), DiskError)
        self.failureResultOf(staging.write([]), DiskError)
        self.failureResultOf(staging.commit(state_of(index)), DiskError)
