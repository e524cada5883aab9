"""Turns in threads, with threads that a test ends by hand."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from ciruela.disk.executor import SLICE_COST, SerialExecutor
from ciruela.disk.store import Store
from ciruela.interfaces import Pending
from ciruela.model.upload import Command
from ciruela.model.vpath import VPath
from tests.disk.trees import Node, Spec, blocks_of, flat, index_bytes, on_disk, state_of
from tests.measure import UnmeasuredTestCase

V1 = VPath(("app", "web", "v1"))


class Pool:
    """A pool whose jobs run when the test says so, and end when it says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.jobs.append((lambda: f(*args, **kwargs), done))
        return done

    def begin_one(self) -> Callable[[], None]:
        """Do the work of the next job; call the result when its thread is to end."""
        f, done = self.jobs.pop(0)
        outcome = maybeDeferred(f)

        def end() -> None:
            outcome.addBoth(done.callback)

        return end

    def run_one(self) -> None:
        self.begin_one()()

    def run_all(self) -> None:
        while self.jobs:
            self.run_one()


class Turns(UnmeasuredTestCase):
    def setUp(self) -> None:
        self.pool = Pool()
        self.lane = SerialExecutor(self.pool, "something")
        self.seen: list[object] = []

    def work(self, name: str, slices: int, cost: int = SLICE_COST) -> Generator[int, None, str]:
        try:
            for number in range(slices):
                self.seen.append((name, number))
                yield cost
        finally:
            self.seen.append((name, "closed"))
        return name

    def test_order(self) -> None:
        """Two writes of one state would race, and the older one could win."""
        first = self.lane.do(self.seen.append, 1)
        second = self.lane.do(self.seen.append, 2)
        self.assertEqual(len(self.pool.jobs), 1)
        self.pool.run_one()
        self.successResultOf(first)
        self.assertNoResult(second)
        self.pool.run_all()
        self.successResultOf(second)
        self.assertEqual(self.seen, [1, 2])

    def test_slices(self) -> None:
        """The commit of a large image would keep everybody else waiting."""
        long = self.lane.steps(self.work("long", 3))
        short = self.lane.do(self.seen.append, "short")
        self.pool.run_one()
        self.pool.run_one()
        self.successResultOf(short)
        self.assertNoResult(long)
        self.pool.run_all()
        self.assertEqual(self.successResultOf(long), "long")
        self.assertEqual(self.seen, [("long", 0), "short", ("long", 1), ("long", 2), ("long", "closed")])

    def test_small_steps_share_a_slice(self) -> None:
        """Every small file would cost a thread hop."""
        self.lane.steps(self.work("many", 1000, SLICE_COST // 1000))
        self.pool.run_one()
        self.assertEqual(len([item for item in self.seen if item != ("many", "closed")]), 1000)

    def test_failure(self) -> None:
        """One failure would stop all later work on a path."""
        failed = self.lane.do(int, "x")
        fine = self.lane.do(int, "1")
        self.pool.run_all()
        self.failureResultOf(failed, ValueError)
        self.assertEqual(self.successResultOf(fine), 1)

    def test_failing_steps(self) -> None:
        """A failure in the middle of long work would be lost."""

        def work() -> Generator[int, None, None]:
            yield SLICE_COST
            raise ValueError("x")

        failed = self.lane.steps(work())
        self.pool.run_all()
        self.failureResultOf(failed, ValueError)

    def test_cancel_waiting(self) -> None:
        """Work that nobody wants any more would be done all the same."""
        self.lane.do(self.seen.append, 1)
        second = self.lane.do(self.seen.append, 2)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.pool.run_all()
        self.assertEqual(self.seen, [1])

    def test_cancel_between_slices(self) -> None:
        """A cancelled commit would go on to the end, or leave descriptors open."""
        long = self.lane.steps(self.work("long", 3))
        self.pool.run_one()
        long.cancel()
        self.failureResultOf(long, CancelledError)
        self.pool.run_all()
        self.assertEqual(self.seen, [("long", 0), ("long", "closed")])

    def test_next_waits_for_a_cancelled_thread(self) -> None:
        """Discarding a directory would race with the thread that still writes into it."""
        running = self.lane.do(self.seen.append, 1)
        self.lane.do(self.seen.append, 2)
        end = self.pool.begin_one()
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertEqual((self.seen, len(self.pool.jobs)), ([1], 0))
        end()
        self.pool.run_all()
        self.assertEqual(self.seen, [1, 2])

    def test_failure_of_cancelled_work(self) -> None:
        """An error of a thread whose work was cancelled would end up in the log as an unhandled one."""
        running = self.lane.do(int, "x")
        end = self.pool.begin_one()
        running.cancel()
        self.failureResultOf(running, CancelledError)
        end()


class CommitInSlices(UnmeasuredTestCase):
    """A commit of more than one slice, with a store whose threads the test runs."""

    SPEC: ClassVar[Spec] = {f"/f{number:04}": b"%d" % (number % 7) for number in range(1500)}

    def setUp(self) -> None:
        self.pool = Pool()
        self.node = Node(Path(self.mktemp()).absolute())
        self.store = Store(str(self.node.db), self.node.configs, self.pool)
        self.index, _ = index_bytes(self.SPEC)
        self.did(self.store.write_pending(Pending(V1, state_of(self.index), Command.APPEND)))
        self.staging = self.did(self.store.stage(V1, self.index))
        self.did(self.staging.write(blocks_of(self.SPEC, self.index)))

    def did(self, result: Deferred[Any]) -> Any:
        self.pool.run_all()
        return self.successResultOf(result)

    def test_signatures_come_in_between(self) -> None:
        """An upload with a second key would wait for a large commit, or its signature be lost."""
        commit = self.staging.commit(state_of(self.index))
        both = state_of(self.index).merged(state_of(self.index, 5).signatures)
        pending = self.store.write_pending(Pending(V1, both, Command.APPEND))
        self.pool.run_one()
        self.pool.run_one()
        self.successResultOf(pending)
        self.assertNoResult(commit)
        self.pool.run_all()
        self.successResultOf(commit)
        held = self.did(self.store.load()).held
        self.assertEqual([(found.committed, found.pending) for found in held], [(both, None)])

    def test_one_image_for_two_paths(self) -> None:
        """Two downloads of one image that store its index at the same time would take the half-written file away from each other."""
        index, data = index_bytes({"/a": b"a"})
        both = [self.store.write_index(index.image, data) for _ in range(2)]
        self.assertEqual(len(self.pool.jobs), 1)
        self.pool.run_all()
        self.assertEqual([self.successResultOf(one) for one in both], [index, index])

    def test_upload_while_the_last_one_is_dropped(self) -> None:
        """An upload that is accepted while a large failed one is being removed would be forgotten by the next start."""
        dropped = self.store.drop_pending(V1)
        again = Pending(V1, state_of(self.index, 9), Command.APPEND)
        recorded = self.store.write_pending(again)
        self.pool.run_one()
        self.assertNoResult(dropped)
        self.pool.run_one()
        self.successResultOf(recorded)
        staging = self.did(self.store.stage(V1, self.index))
        self.successResultOf(dropped)
        self.did(staging.write(blocks_of(self.SPEC, self.index)[:5]))
        staging.close()
        self.assertEqual([found.pending for found in self.did(self.store.load()).held], [again])
        kept = self.did(self.did(self.store.stage(V1, self.index)).keep())
        self.assertGreater(len(kept), 5)

    def test_cancel(self) -> None:
        """An upload that was superseded would be shown all the same."""
        commit = self.staging.commit(state_of(self.index))
        self.pool.run_one()
        commit.cancel()
        self.failureResultOf(commit, CancelledError)
        self.pool.run_all()
        self.assertFalse(self.node.image(V1).exists())
        self.did(self.staging.discard())
        self.did(self.store.drop_pending(V1))
        self.assertEqual(self.node.debris(), [])

    def test_shown_before_the_old_tree_is_gone(self) -> None:
        """Clients would wait until a large old version is deleted."""
        self.did(self.staging.commit(state_of(self.index)))
        small: Spec = {"/one": b"1"}
        index, _ = index_bytes(small)
        self.did(self.store.write_pending(Pending(V1, state_of(index, 9), Command.REPLACE)))
        staging = self.did(self.store.stage(V1, index))
        self.did(staging.write(blocks_of(small, index)))
        commit = staging.commit(state_of(index, 9))
        self.pool.run_one()
        self.successResultOf(commit)
        self.assertEqual(on_disk(self.node.image(V1)), flat(small))
        self.assertNotEqual(self.node.debris(), [])
        again = self.store.stage(V1, index)
        self.pool.run_all()
        self.successResultOf(again).close()
        self.pool.run_all()
        self.assertTrue(all(not name.startswith(".ciruela~x") for name in self.node.debris()))
