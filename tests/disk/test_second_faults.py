"""Some points of :mod:`tests.disk.second_faults`: those around what is synced and renamed, where it matters."""

from __future__ import annotations

import gc

from tests.disk.faulty import Killed
from tests.disk.plans import PLANS
from tests.disk.second_faults import COURSES, calls_of, check_course, check_second
from tests.measure import UnmeasuredTestCase
from tests.proof import shows

TELLING = frozenset({"mkdir", "fsync", "syncfs", "rename", "renameat2"})


class SecondFaults(UnmeasuredTestCase):
    """A fault, then a power cut."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.forget_kills)

    def forget_kills(self) -> None:
        gc.collect()
        self.flushLoggedErrors(Killed)

    def cut(self, name: str, course: str, calls: frozenset[str] = TELLING, step: int = 1) -> None:
        ats = [at for at, call in enumerate(calls_of(name), 1) if call in calls][::step]
        count, different = check_course(name, course, ats, most=16, sample=3)
        self.assertGreaterEqual(count, different)
        self.assertGreaterEqual(different, len(ats) > 3)

    @shows("A43", "A44", "F36", "F38", "I1", "I2", "I10")
    def test_finished_by_a_start(self) -> None:
        """A start would tell of an image that it found shown, and after a power cut the one before stands there with the new record."""
        for name in ("replace", "replace without exchange"):
            self.cut(name, "kill, start", frozenset({"fsync", "renameat2", "rename"}))

    @shows("A43", "A44", "F37", "I1")
    def test_deleted_by_a_start(self) -> None:
        """A deletion that a start finished would leave, after a power cut, a tree that nobody knows and that blocks its name."""
        self.cut("remove", "kill, start")
        self.cut("remove", "kill, start, again")

    @shows("A43", "A44", "F35", "F38", "I2")
    def test_directories_of_a_killed_process(self) -> None:
        """Records would be written into a directory that a killed process had made, and go with it in a power cut."""
        self.cut("first", "kill, start, again", frozenset({"fsync"}))

    @shows("A39", "A44", "F29", "I2")
    def test_directories_that_failed(self) -> None:
        """The same for a directory that could not be made durable."""
        self.cut("first", "error, again", frozenset({"fsync", "fchmod"}))

    @shows("A39", "A44", "F29", "I2")
    def test_failed_sync(self) -> None:
        """What a failed sync lost would be hashed in memory, found good, and acknowledged without ever reaching the disk."""
        self.cut("append", "error, again", frozenset({"fsync"}), 2)
        self.cut("append many", "error, again", frozenset({"syncfs"}))

    @shows("A39", "A44", "F29", "I1")
    def test_undone(self) -> None:
        """An upload that failed after its image was shown would come back with a power cut, with the record of the one before."""
        for course in ("error", "error, dropped"):
            self.cut("replace", course, frozenset({"fsync", "renameat2", "rename"}), 1)

    @shows("F51", "A44")
    def test_repaired(self) -> None:
        """An image that was put together again would be worse than before after a power cut."""
        self.cut("restore", "kill, start", step=3)
        self.cut("restore", "error", step=3)

    def test_all(self) -> None:
        """The campaign would leave something out, or could not be replayed."""
        self.assertEqual(len(COURSES), 5)
        for name in PLANS:
            self.assertLess({"mkdir", "fsync"} if name != "remove" else {"rename", "fsync"}, set(calls_of(name)))
        check_second("replace", "error, again", 3, [0, 1])
