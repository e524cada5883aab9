"""Rounds of cleanup over a ledger, with everything around it in the hand of the test."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.cleanup.health import QUIET_S
from ciruela.cleanup.service import (
    ANSWER_S,
    COLLECT_ABOVE,
    COLLECT_AGAIN_S,
    COLLECT_BELOW,
    COLLECT_FIRST_S,
    COLLECT_S,
    FORGET_MS,
    MOST_FAULTS,
    PAUSE_S,
    Cleanup,
    Safeguards,
    words,
)
from ciruela.interfaces import NodeContext, Pending
from ciruela.model.config import DirConfig
from ciruela.model.errors import ConfigError, DiskError
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import Ledger
from tests.doubles.context import node_context
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
        self.set_ms = 0
        self.ledger = Ledger(self.clock)
        for number in range(10):
            self.ledger.commit(BASE.child(f"v{number}"), state(number, 20.0 - 2 * number if number < 9 else 0.01))
        self.listed: Any = frozenset({("v8",)})
        self.configs = {"app": CONFIG}
        self.heard = {"n2": True, "n3": True}
        self.removed: list[str] = []
        self.fault: Exception | None = None
        self.stands: tuple[int, int] | Exception = (1, 2)
        self.others_ms: list[int] = []
        self.given: set[VPath] = set()
        self.fetched: set[VPath] = set()
        self.running = self.failed = self.unknown = self.reads = 0
        self.kept_indexes: list[set[ImageId]] = []
        self.folded: list[int] = []
        self.before_remove: Callable[[VPath], None] = lambda _: None
        guards = Safeguards(lambda: self.clock.seconds() + self.stopped_s, self, lambda: self.reread(), lambda: self.unknown)
        self.live = dict(self.configs)
        self.cleanup = Cleanup(self.context(self.live), self.ledger, guards, self)  # type: ignore[arg-type]
        self.cleanup.start()
        self.addCleanup(self.cleanup.stop)

    def context(self, configs: Mapping[str, DirConfig]) -> NodeContext:
        return node_context(configs=configs, disk=self, clock=self.clock, now_ms=self.now_ms)

    def reread(self) -> Deferred[Mapping[str, DirConfig]]:
        return succeed(self.configs)

    def now_ms(self) -> int:
        return START_MS + self.set_ms + round((self.clock.seconds() + self.stopped_s) * 1000)

    # the keep list, the disk, the surroundings
    def read(self, config: DirConfig) -> Deferred[Any]:
        self.reads += 1
        if isinstance(self.listed, Exception):
            return fail(self.listed)
        return Deferred() if self.listed is None else succeed(self.listed)

    def identity(self, key: str) -> Deferred[tuple[int, int]]:
        return fail(self.stands) if isinstance(self.stands, Exception) else succeed(self.stands)

    def remove(self, vpath: VPath, tombstone: Tombstone) -> Deferred[Tombstones]:
        if self.fault is not None:
            return fail(self.fault)
        self.removed.append(vpath.name)
        return succeed(self.ledger.burials(BASE).with_one(vpath.entry, tombstone))

    def fold_burials(self, vpath: VPath, before_ms: int) -> Deferred[Tombstones]:
        if self.fault is not None:
            return fail(self.fault)
        self.folded.append(before_ms)
        return succeed(self.ledger.burials(vpath.base).folded(before_ms, 100))

    def collect_indexes(self, keep: Collection[ImageId]) -> Deferred[int]:
        if self.fault is not None:
            return fail(self.fault)
        self.kept_indexes.append(set(keep))
        return succeed(3)

    def peers(self) -> Mapping[str, bool]:
        return self.heard

    def clocks_ms(self) -> Sequence[int]:
        return [self.now_ms() - self.set_ms + off_ms for off_ms in self.others_ms]

    def served(self) -> Collection[VPath]:
        given, self.given = self.given, set()
        return given

    def wanted(self, base: VPath) -> Collection[VPath]:
        return self.fetched

    def downloads(self) -> int:
        return self.running

    def given_up(self) -> int:
        return self.failed

    def indexes(self) -> Collection[ImageId]:
        return (ImageId(bytes([200]) * 32),)

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

    @shows("A47", "I9")
    def test_reload(self) -> None:
        """After a reload the new rules would not count; or those of a directory that is configured no more still would."""
        self.configs["app"] = replace(CONFIG, keep_min_directories=8)
        self.pass_(2000)
        self.assertEqual((self.removed, self.blocked()), ([], {"config"}))
        self.live.update(self.configs)
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])
        del self.live["app"]
        self.pass_(3 * 4000)
        self.assertEqual((self.removed, self.cleanup.reports), (["v0", "v1"], {}))

    @shows("A47", "I9")
    def test_reload_at_the_last_moment(self) -> None:
        """Images would be deleted by rules that were given up while somebody looked whether that is safe."""
        real = self.read

        def read(config: DirConfig) -> Deferred[Any]:
            self.live.pop("app", None)
            return real(config)

        self.read = read  # type: ignore[method-assign]
        self.pass_(2000)
        self.assertEqual(self.removed, [])
        self.assertEqual(self.flushLoggedErrors(), [])

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

    @shows("A42", "F44", "I9")
    def test_clock_is_set(self) -> None:
        """A clock that jumps by a year would make every image old; afterwards nothing is deleted until the node starts anew."""
        for off_ms in (365 * DAY_S * 1000, -365 * DAY_S * 1000, 3_600_000, -3_600_000):
            for at_s in (0, QUIET_S - 300, 3000):
                self.cleanup.stop()
                self.setUp()
                self.others_ms = [0, 0]
                self.pass_(at_s)
                before = list(self.removed)
                self.set_ms = off_ms
                self.pass_(6000 - at_s)
                self.assertEqual((self.removed, self.blocked()), (before, {"clock"}))
                self.assertEqual(before, [] if at_s < QUIET_S else ["v0", "v1"])

    @shows("A42", "F44", "I9")
    def test_clock_is_wrong_from_the_start(self) -> None:
        """A node that starts with a clock of next year would delete by it, although the others know better."""
        self.others_ms = [-365 * DAY_S * 1000, -365 * DAY_S * 1000 + 1000, 0]
        self.pass_(6000)
        self.assertEqual((self.removed, self.blocked()), ([], {"clock"}))
        self.others_ms = [-2000, 1000, 365 * DAY_S * 1000]
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])

    @shows("A42", "I9")
    def test_clock_behind_the_records(self) -> None:
        """A node would clean with a clock that is behind what it recorded itself: it cannot be right."""
        self.ledger.commit(BASE.child("v9"), state(9, -0.1))
        self.pass_(1900)
        self.assertEqual((self.removed, self.blocked()), ([], {"clock"}))
        self.ledger.commit(BASE.child("v9"), state(9, 0.01))
        self.ledger.bury(BASE.child("gone"), Tombstones(0, {"gone": Tombstone(state(50, 3).version, START_MS + DAY_S * 1000)}))
        self.pass_(4100)
        self.assertEqual((self.removed, self.blocked()), ([], {"clock"}))
        self.ledger.fold(BASE, Tombstones())
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])

    @shows("A54", "F56", "I9")
    def test_nobody_was_found(self) -> None:
        """A node whose peers have no address yet would take itself for the only one, and delete what nobody else has."""
        self.heard, self.unknown = {}, 2
        self.pass_(6000)
        self.assertEqual((self.removed, self.blocked()), ([], {"peers"}))
        self.heard, self.unknown = {"n2": True, "n3": True, "n4": False}, 0
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])

    @shows("A40", "F30", "I9")
    def test_another_directory(self) -> None:
        """Images would be deleted on a disk that was mounted meanwhile, or recorded as deleted where none is mounted."""
        for wrong in ((1, 3), DiskError("not there")):
            self.stands = wrong
            self.pass_(4100)
            self.assertEqual((self.removed, self.blocked()), ([], {"directory"}))
        self.stands = (1, 2)
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])

    @shows("A47", "I9")
    def test_rules_cannot_be_read(self) -> None:
        """Images would be deleted by rules that the operator is just changing, with a mistake in them."""
        for wrong in (lambda: fail(ConfigError("app.yaml:3: wrong")), lambda: succeed({}), lambda: fail(DiskError("EIO"))):
            self.reread = wrong  # type: ignore[method-assign, assignment]
            self.pass_(4100)
            self.assertEqual((self.removed, self.blocked()), ([], {"config"}))

    @shows("F57", "I6", "I8")
    def test_a_list_that_hangs_is_asked_for_once(self) -> None:
        """Each hour another thread would be lost in a network file system that does not answer."""
        self.listed = None
        self.pass_(5 * 4000)
        self.assertEqual((self.reads, self.blocked()), (1, {"keep_list"}))

    @shows("F57", "I9")
    def test_named_at_the_last_moment(self) -> None:
        """An image that is put into use, and on the keep list, while others are deleted would be deleted as well."""

        def name(vpath: VPath) -> None:
            self.listed = frozenset({("v8",), ("v1",)})

        self.before_remove = name
        self.pass_(2000)
        self.assertEqual(self.removed, ["v0", "v2"])

    @shows("F58", "I9")
    def test_in_use(self) -> None:
        """An image would be deleted while somebody fetches it from here."""
        self.given = {BASE.child("v0")}
        self.fetched = {BASE.child("v1")}
        self.ledger.begin(Pending(BASE.child("v2"), state(70, 0.0), Command.REPLACE))
        for _ in range(3):
            self.given = {BASE.child("v0")}
            self.pass_(500)
        self.assertEqual((self.removed, self.cleanup.reports[BASE].faults), (["v3", "v4"], 0))
        self.fetched = set()
        self.pass_(4100)
        self.assertEqual(self.removed, ["v3", "v4", "v0", "v1"])

    @shows("I9")
    def test_flood(self) -> None:
        """Who may upload here could evict everything else within an hour, by uploading more than keep-max-directories."""
        rules = {"app": replace(CONFIG, keep_max_directories=20, keep_recent_ms=30 * DAY_S * 1000)}
        self.cleanup.stop()
        self.configs = rules
        guards = Safeguards(self.clock.seconds, self, lambda: succeed(rules), lambda: 0)
        self.cleanup = Cleanup(self.context(rules), self.ledger, guards, self)  # type: ignore[arg-type]
        self.cleanup.start()
        for number in range(90):
            self.ledger.commit(BASE.child(f"flood{number}"), state(100 + number, -0.0001))
        self.pass_(1900)
        self.assertEqual(self.removed, [f"v{number}" for number in range(8)] + ["v9"] + [f"flood{number}" for number in range(11)])

    def test_what_is_told(self) -> None:
        """An operator could not see why nothing is deleted, or which rule deleted what; or the log would repeat it each hour."""
        told: list[tuple[str, str]] = []

        class Log:
            def info(self, text: str, **fields: object) -> None:
                told.append(("info", text.format(**fields)))

            def error(self, text: str, **fields: object) -> None:
                told.append(("error", text.format(**fields)))

        self.patch(Cleanup, "_log", Log())
        self.listed = DiskError("the keep list /keep: it names nothing")
        self.pass_(2 * 4100)
        self.assertEqual(told, [("error", "/app: nothing is deleted: the keep list /keep: it names nothing")])
        report = self.cleanup.reports[BASE]
        self.assertEqual((words(report), report.deleted), (["keep_list"], 0))
        self.listed = frozenset({("v8",)})
        self.heard = {"n2": False, "n3": False}
        self.stopped_s = 8 * 3600.0
        self.pass_(4100)
        self.assertEqual(told[-1][0], "info")
        self.assertIn("0 of 2 other nodes were heard", told[-1][1])
        self.heard = {"n2": True}
        self.pass_(4100)
        image = bytes([0]).hex() * 32
        self.assertIn(("info", f"/app/v0: {image} was deleted: older than keep-recent"), told)
        self.assertEqual(told[-1], ("info", "/app: cleaning goes on"))
        self.assertEqual((words(report), report.deleted, self.cleanup.deleted), ([], 2, 2))
        self.assertGreaterEqual(report.ended_ms, START_MS)

    def test_other_directories(self) -> None:
        """A directory without auto-clean, or the single image of level 0, would be cleaned too."""
        self.cleanup.stop()
        rules = {"app": replace(CONFIG, auto_clean=False), "one": replace(CONFIG, key="one", num_levels=0)}
        self.ledger.commit(VPath.parse("/one"), state(1, 99.0))
        guards = Safeguards(self.clock.seconds, self, lambda: succeed(rules), lambda: 0)
        self.cleanup = Cleanup(self.context(rules), self.ledger, guards, self)  # type: ignore[arg-type]
        self.cleanup.start()
        self.pass_(2 * 4100)
        self.assertEqual((self.removed, self.cleanup.reports), ([], {}))

    @shows("I8")
    def test_a_fault_of_our_own(self) -> None:
        """One error that nobody foresaw would end all cleaning, or be repeated each minute."""
        self.reread = lambda: fail(ZeroDivisionError())  # type: ignore[method-assign, assignment]
        self.pass_(2000)
        self.assertEqual((self.removed, len(self.flushLoggedErrors(ZeroDivisionError))), ([], 1))
        del self.reread
        self.pass_(4100)
        self.assertEqual(self.removed, ["v0", "v1"])

    def test_stop(self) -> None:
        """A node that was stopped would go on deleting, or leave timers behind that keep the process alive."""
        self.listed = None
        self.clock.pump([5.0] * 120)
        while not self.reads:
            self.clock.advance(5.0)
        self.cleanup.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pass_(4100)
        self.assertEqual((self.reads, self.removed), (1, []))

    # -- in the long run

    @shows("I9")
    def test_indexes(self) -> None:
        """Indexes would never be collected, or while they are needed; those of all images that are here or on their way are named."""
        self.configs["app"] = DirConfig("app", "/srv/app", False, 1)
        self.ledger.begin(Pending(BASE.child("v2"), state(70, 0.0), Command.REPLACE))
        self.running = COLLECT_BELOW
        self.clock.pump([300.0] * round(COLLECT_FIRST_S[0] / 300))
        self.assertEqual(self.kept_indexes, [])
        self.clock.pump([60.0] * round(COLLECT_FIRST_S[1] / 60))
        self.assertEqual(self.kept_indexes, [])
        self.running = COLLECT_BELOW - 1
        self.pass_(120)
        self.assertEqual(self.kept_indexes, [{ImageId(bytes([number]) * 32) for number in (*range(10), 70, 200)}])
        self.assertEqual(self.cleanup.collected, 3)
        self.clock.pump([60.0] * round(COLLECT_S / 60 - 2))
        self.assertEqual(len(self.kept_indexes), 1)
        self.clock.pump([60.0] * 4)
        self.assertEqual(len(self.kept_indexes), 2)
        self.failed = COLLECT_ABOVE
        self.pass_(240)
        self.assertEqual(len(self.kept_indexes), 2)
        self.failed = COLLECT_ABOVE + 1
        self.pass_(240)
        self.assertEqual(len(self.kept_indexes), 3)

    @shows("A45", "I9")
    def test_indexes_cannot_be_collected(self) -> None:
        """After a fault, indexes would never be collected again, or each minute."""
        self.configs["app"] = DirConfig("app", "/srv/app", False, 1)
        self.failed = COLLECT_ABOVE + 1
        self.fault = DiskError("x.state cannot be understood")
        self.pass_(1000)
        self.fault = None
        self.pass_(COLLECT_AGAIN_S - 1000)
        self.assertEqual(self.kept_indexes, [])
        self.pass_(1000)
        self.assertEqual(len(self.kept_indexes), 1)

    @shows("I6", "I10", "A42")
    def test_fold(self) -> None:
        """Tombstones would pile up; or a wrong clock would make all of them old, and the node forget what was deleted yesterday."""
        self.configs["app"] = DirConfig("app", "/srv/app", False, 1)
        old = Tombstone(state(60, 100.0).version, START_MS - FORGET_MS - 1000)
        young = Tombstone(state(61, 1.0).version, START_MS - DAY_S * 1000)
        self.ledger.bury(BASE.child("x"), Tombstones(0, {"x": old, "y": young}))
        self.others_ms = [-365 * DAY_S * 1000]
        self.pass_(1900)
        self.assertEqual(self.folded, [])
        self.others_ms = []
        self.fault = DiskError("EIO")
        self.pass_(200)
        self.assertEqual(self.ledger.burials(BASE).tombstones, {"x": old, "y": young})
        self.fault = None
        self.clock.pump([60.0] * (24 * 60 + 2))
        self.assertEqual(len(self.folded), 1)
        self.assertEqual(self.ledger.burials(BASE), Tombstones(old.version.timestamp_ms, {"y": young}))
        self.clock.pump([60.0] * (24 * 60 + 2))
        self.assertEqual(len(self.folded), 1)
