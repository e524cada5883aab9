"""The machines of a download and of a repair: what follows each step, and what an end reaches."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download import machine
from ciruela.download.plan import BlockPlan
from ciruela.model.bitfield import FULL
from ciruela.model.upload import AbortReason
from tests.download.test_fetch_blocks import INDEX

DOCS = Path(__file__).parent.parent.parent / "docs"
STATE: Any = object()
WORK = ("find_index", "open_staging", "fill", "fetch_blocks", "admit", "commit")
"""The steps in their order."""


class Directory:
    """A staging directory that counts what happens to it."""

    def __init__(self) -> None:
        self.closed = self.discarded = 0

    def close(self) -> None:
        self.closed += 1

    def discard(self) -> Deferred[None]:
        self.discarded += 1
        return succeed(None)


class Fetch:
    """A fetch that counts how often it hears of news."""

    last_good_s = 7.0
    stalled = True

    def __init__(self) -> None:
        self.nudged = 0

    def nudge(self) -> None:
        self.nudged += 1


class Work:
    """Steps whose ends are up to the test; with ``at_once`` each has ended when it begins."""

    began_s = 5.0

    def __init__(self, built: Any, *, at_once: bool = False) -> None:
        self.step = machine.Step()
        self.directory, self.fetch = Directory(), Fetch()
        self.plan = BlockPlan(INDEX, (), random.Random(1))
        self.results: dict[str, Any] = {
            "find_index": INDEX,
            "open_staging": self.directory,
            "fill": self.plan,
            "fetch_blocks": None,
            "admit": None,
            "commit": STATE,
        }
        self.at_once = at_once
        self.begun: list[str] = []
        self.seen: list[type[machine.Step]] = []
        self.cancelled: list[str] = []
        self.deferreds: dict[str, Deferred[Any]] = {}
        self.told: list[tuple[Any, ...]] = []
        self.raising = self.stopping = ""
        self.after: Deferred[None] = succeed(None)
        self.events = built(self)

    def work(self, name: str) -> Deferred[Any]:
        self.begun.append(name)
        self.seen.append(type(self.step))
        if name == self.stopping:
            self.events.stop(AbortReason.SUPERSEDED)
        if name == self.raising:
            raise ValueError(name)
        if self.at_once:
            return succeed(self.results[name])
        self.deferreds[name] = Deferred(lambda _: self.cancelled.append(name))
        return self.deferreds[name]

    def end(self, name: str) -> None:
        """The step ends well."""
        self.deferreds[name].callback(self.results[name])

    def go_to(self, name: str) -> None:
        """Begin, and end all steps before ``name``."""
        self.events.begin()
        while self.begun[-1] != name:
            self.end(self.begun[-1])

    def now_s(self) -> float:
        return 9.0

    def index_fetch(self) -> Any:
        return self.fetch

    def block_fetch(self, image: object, plan: object) -> Any:
        return self.fetch

    def find_index(self, fetch: object) -> Deferred[Any]:
        return self.work("find_index")

    def open_staging(self, index: object) -> Deferred[Any]:
        return self.work("open_staging")

    def fill(self, image: object) -> Deferred[Any]:
        return self.work("fill")

    def fetch_blocks(self, fetch: object) -> Deferred[Any]:
        return self.work("fetch_blocks")

    def admit(self, image: object) -> Deferred[Any]:
        return self.work("admit")

    def commit(self, image: object) -> Deferred[Any]:
        return self.work("commit")

    def arrived(self, step: object, state: object) -> Deferred[None]:
        self.told.append(("arrived", state))
        return self.after

    def failed(self, step: Any, failure: Failure) -> Deferred[None]:
        self.told.append(("failed", step.fault, failure.type))
        return self.after

    def stopped(self, step: object, reason: AbortReason) -> Deferred[None]:
        self.told.append(("stopped", reason))
        return self.after


class WayTests(SynchronousTestCase):
    """From one step to the next."""

    def test_download(self) -> None:
        """A step that is left out, or comes too early, shows an image that is not whole, or was not looked at."""
        work = Work(machine.DownloadMachine)
        work.go_to("commit")
        self.assertEqual((work.begun, work.told), (list(WORK), []))
        work.end("commit")
        self.assertEqual(work.told, [("arrived", STATE)])

    def test_repair(self) -> None:
        """An image that was shown long ago would be checked, and its hooks run, whenever a disk loses a bit."""
        work = Work(machine.RepairMachine)
        work.go_to("commit")
        work.end("commit")
        self.assertEqual((work.begun, work.told), ([name for name in WORK if name != "admit"], [("arrived", STATE)]))

    def test_all_at_once(self) -> None:
        """Everything in memory: a step that ends while it is entered must not be lost, and be seen by then."""
        work = Work(machine.DownloadMachine, at_once=True)
        work.events.begin()
        self.assertEqual((work.begun, work.told), (list(WORK), [("arrived", STATE)]))
        steps = "FetchingIndex OpeningStaging FillingStaging FetchingBlocks CheckingImage Committing"
        self.assertEqual([step.__name__ for step in work.seen], steps.split())

    def test_readers(self) -> None:
        """Peers would be told of blocks that are not here, or that a download waits which does not."""
        work = Work(machine.DownloadMachine)
        work.events.begin()
        seen = []
        for name in WORK:
            step = work.step
            step.nudge()
            waits = step.waits_since(4.9), step.waits_since(5.0), step.waits_since(7.0), step.waits_since(9.0)
            seen.append((step.phase.value, step.block_count, step.mask, step.pieces, step.missing, step.stalled, sum(waits)))
            work.end(name)
        plan = work.plan
        whole = INDEX.block_count, FULL, plan.mask, plan.missing, False
        self.assertEqual(
            seen,
            [
                ("index", None, None, None, None, False, 3),
                ("staging", INDEX.block_count, None, None, None, False, 0),
                ("staging", INDEX.block_count, None, None, None, False, 0),
                ("blocks", INDEX.block_count, plan.pieces.slices(plan.mask), plan.mask, plan.missing, True, 2),
                ("check", *whole, 1),
                ("commit", *whole, 0),
            ],
        )
        self.assertEqual(work.fetch.nudged, 2)


class EndTests(SynchronousTestCase):
    """An end at any step."""

    def test_stopped(self) -> None:
        """What is not wanted any more would go on, and show itself over what took its place."""
        for name in WORK:
            work = Work(machine.DownloadMachine)
            work.go_to(name)
            work.events.stop(AbortReason.SUPERSEDED)
            self.assertEqual((work.cancelled, work.told), ([name], [("stopped", AbortReason.SUPERSEDED)]))
            work.events.stop(AbortReason.SUPERSEDED)
            work.events.let_go()
            self.assertEqual((len(work.told), work.begun[-1], work.directory.closed), (1, name, 0))

    def test_let_go(self) -> None:
        """A daemon that ends would tell clients that their upload failed, or keep directories open."""
        for name in WORK:
            work = Work(machine.DownloadMachine)
            work.go_to(name)
            work.events.let_go()
            opened = name not in ("find_index", "open_staging")
            self.assertEqual((work.cancelled, work.told, work.directory.closed), ([name], [], int(opened)))
            self.assertEqual(work.directory.discarded, 0)

    def test_failed(self) -> None:
        """The client would be told a wrong reason."""
        words = [
            AbortReason.CANT_FETCH_INDEX,
            AbortReason.CANT_CREATE_DIRECTORY,
            AbortReason.HARDLINKING,
            AbortReason.COMMIT_ERROR,
            AbortReason.COMMIT_ERROR,
            AbortReason.COMMIT_ERROR,
        ]
        for name, word in zip(WORK, words, strict=True):
            work = Work(machine.DownloadMachine)
            work.go_to(name)
            work.deferreds[name].errback(ValueError())
            self.assertEqual(work.told, [("failed", word, ValueError)])

    def test_raised(self) -> None:
        """A fault of the program in a step would leave the path taken for ever."""
        for name in WORK:
            work = Work(machine.DownloadMachine, at_once=True)
            work.raising = name
            work.events.begin()
            self.assertEqual([(one[0], one[2]) for one in work.told], [("failed", ValueError)])

    def test_cancelled_below(self) -> None:
        """Jobs that the end of the daemon cancels would be told as failures, and the record of the upload dropped."""
        for name in WORK:
            work = Work(machine.DownloadMachine)
            work.go_to(name)
            work.deferreds[name].errback(CancelledError())
            opened = name not in ("find_index", "open_staging")
            self.assertEqual((work.told, work.directory.closed, work.directory.discarded), ([], int(opened), 0))

    def test_stopped_by_a_listener(self) -> None:
        """Whoever hears of a step may end the download then: that must not be forgotten, nor a directory stay open."""
        for name in WORK:
            work = Work(machine.DownloadMachine, at_once=True)
            work.stopping = name
            work.events.begin()
            self.assertEqual((work.told, work.begun[-1]), ([("stopped", AbortReason.SUPERSEDED)], name))
            self.assertEqual(work.directory.closed, int(name == "open_staging"))

    def test_waiting(self) -> None:
        """Who waits for a commit begins the next upload: not before all that follows from the commit is on the disk, and not never."""
        ends = {
            "arrived": lambda work: work.end("commit"),
            "failed": lambda work: work.deferreds["commit"].errback(ValueError()),
            "stopped": lambda work: work.events.stop(AbortReason.SUPERSEDED),
        }
        for name, end in ends.items():
            work = Work(machine.DownloadMachine)
            work.after = Deferred()
            work.go_to("commit")
            assert isinstance(work.step, machine.Committing)
            work.step.waiting.append(waiting := Deferred[None]())
            end(work)
            self.assertEqual(work.told[0][0], name)
            self.assertNoResult(waiting)
            work.after.callback(None)
            self.successResultOf(waiting)
        work = Work(machine.DownloadMachine)
        work.go_to("commit")
        assert isinstance(work.step, machine.Committing)
        work.step.waiting.append(waiting := Deferred[None]())
        work.events.let_go()
        self.successResultOf(waiting)


class DrawingTests(SynchronousTestCase):
    """The picture in the documentation."""

    def test_drawn(self) -> None:
        """Whoever reads it would look for steps that are not there. Run ``python docs/machines.py`` and commit what it writes."""
        drawing = runpy.run_path(str(DOCS / "machines.py"))
        self.assertEqual((DOCS / "explanation" / "machines.txt").read_text(encoding="utf-8"), drawing["text"]())
