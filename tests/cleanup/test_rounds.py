"""Rounds of cleanup over a ledger, with everything around it in the hand of the test."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.cleanup.health import QUIET_S
from ciruela.cleanup.service import ANSWER_S, MOST_FAULTS, PAUSE_S, Cleanup, Safeguards
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.ids import ImageId
from ciruela.model.order import Command
from ciruela.model.state import Burials, SigEntry, State, Tombstone
from ciruela.model.vpath import VPath
from ciruela.seams import Pending
from ciruela.tracking.ledger import Ledger
from tests.proof import shows

BASE = VPath.parse("/app")
DAY_S = 24 * 3600
START_MS = 1_800_000_000_000
CONFIG = DirConfig(
    "app", "/srv/app", False, 1, auto_clean=True, keep_list_file="/keep", keep_min_directories=1, keep_recent_ms=DAY_S * 1000
)


def state(number: int, days: float) -> State:
    return State(ImageId(bytes([number]) * 32), (SigEntry(START_MS - round(days * DAY_S * 1000), bytes(64)),))


class RoundTests(SynchronousTestCase):
    """A node with ten images, of which nine are old."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.stopped_s = 0.0
        self.ledger = Ledger(self.clock)
        for number in range(10):
            self.ledger.commit(BASE.child(f"v{number}"), state(number, 20.0 - 2 * number if number < 9 else 0.01))
        self.listed: Any = frozenset({("v8",)})
        self.configs = {"app": CONFIG}
        self.heard = {"n2": True, "n3": True}
        self.removed: list[str] = []
        self.fault: Exception | None = None
        self.before_remove: Callable[[VPath], None] = lambda _: None
        guards = Safeguards(lambda: self.clock.seconds() + self.stopped_s, self, lambda: succeed(self.configs), lambda: 0)
        self.cleanup = Cleanup(dict(self.configs), self.ledger, self, guards, self, self.clock, random.Random(1), self.now_ms)  # type: ignore[arg-type]
        self.cleanup.start()
        self.addCleanup(self.cleanup.stop)

    def now_ms(self) -> int:
        return START_MS + round((self.clock.seconds() + self.stopped_s) * 1000)

    # the keep list, the disk, the surroundings
    def read(self, config: DirConfig) -> Deferred[Any]:
        if isinstance(self.listed, Exception):
            return fail(self.listed)
        return Deferred() if self.listed is None else succeed(self.listed)

    def identity(self, key: str) -> Deferred[tuple[int, int]]:
        return succeed((1, 2))

    def remove(self, vpath: VPath, tombstone: Tombstone) -> Deferred[Burials]:
        if self.fault is not None:
            return fail(self.fault)
        self.removed.append(vpath.name)
        return succeed(self.ledger.burials(BASE).with_one(vpath.entry, tombstone))

    def collect_indexes(self, keep: Collection[ImageId]) -> Deferred[int]:
        return succeed(0)

    def peers(self) -> Mapping[str, bool]:
        return self.heard

    def clocks_ms(self) -> Sequence[int]:
        return ()

    def served(self) -> Collection[VPath]:
        return ()

    def wanted(self, base: VPath) -> Collection[VPath]:
        return ()

    def downloads(self) -> int:
        return 0

    def given_up(self) -> int:
        return 0

    def indexes(self) -> Collection[ImageId]:
        return ()

    def alone(self, vpath: VPath, work: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        self.before_remove(vpath)
        return work()

    def pass_(self, seconds: float) -> None:
        self.clock.pump([5.0] * round(seconds / 5))

    def blocked(self) -> set[str]:
        return {one.cause.value for one in self.cleanup.reports[BASE].blocked}

    @shows("I9", "A54")
    def test_oldest_first_and_few(self) -> None:
        """Nothing happens in the first ten minutes; then a fifth of what is there goes in a round, the oldest first."""
        self.pass_(QUIET_S - 10)
        self.assertEqual(self.removed, [])
        self.pass_(1300)
        self.assertEqual(self.removed, ["v0", "v1"])
        self.assertEqual(self.blocked(), set())
        self.pass_(6 * 4000)
        self.assertEqual(self.removed, [f"v{number}" for number in range(8)])
        self.assertEqual([vpath.name for vpath, _ in self.ledger.committed_in(BASE)], ["v8", "v9"])

    @shows("F45", "A42", "I9")
    def test_stopped_for_hours(self) -> None:
        """A process that was stopped would delete by what it knew of the others eight hours ago."""
        self.pass_(QUIET_S - 300)
        self.heard = {"n2": False, "n3": False}
        self.stopped_s = 8 * 3600.0
        self.pass_(QUIET_S - 60)
        self.assertEqual(self.removed, [])
        self.pass_(4000)
        self.assertEqual((self.removed, self.blocked()), ([], {"peers"}))
        self.heard = {"n2": True, "n3": True}
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])
        self.assertGreater(8 * 3600, PAUSE_S)

    @shows("A46", "F57", "I8", "I9")
    def test_keep_list_in_doubt(self) -> None:
        """A list that hangs, fails or is being written would count as empty, or stop everything else."""
        for listed in (None, DiskError("half written")):
            self.setUp()
            self.listed = listed
            self.pass_(2 * 4000)
            self.assertEqual((self.removed, self.blocked()), ([], {"keep_list"}))
            self.cleanup.stop()
        self.setUp()
        real, count = self.read, iter(range(10_000))
        self.read = lambda config: real(config).addCallback(lambda _: frozenset({(f"v{next(count) % 7}",)}))  # type: ignore[method-assign]
        self.pass_(2000)
        self.assertEqual((self.removed, self.blocked()), ([], {"keep_list"}))
        self.assertGreater(2000, 2 * ANSWER_S)

    @shows("A47", "I9")
    def test_rules_change(self) -> None:
        """Images would be deleted by rules that the operator has changed since."""
        self.configs["app"] = DirConfig("app", "/srv/app", False, 1)
        self.pass_(2000)
        self.assertEqual((self.removed, self.blocked()), ([], {"config"}))

    @shows("A51", "F58", "I9")
    def test_changed_at_the_last_moment(self) -> None:
        """What was uploaded while the old image waited for its deletion would be deleted."""

        def upload(vpath: VPath) -> None:
            if vpath.name == "v0":
                self.ledger.commit(vpath, state(77, 0.0))
            if vpath.name == "v1":
                self.ledger.begin(Pending(vpath, state(78, 0.0), Command.REPLACE))

        self.before_remove = upload
        self.pass_(2000)
        self.assertEqual(self.removed, ["v2", "v3"])

    @shows("A39", "I9")
    def test_disk_fails(self) -> None:
        """A disk that fails would be asked for ever, or what still stands would be forgotten."""
        self.fault = DiskError("EIO")
        self.pass_(2000)
        self.assertEqual((self.cleanup.reports[BASE].faults, len(self.ledger)), (MOST_FAULTS, 10))
        self.fault = None
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])
