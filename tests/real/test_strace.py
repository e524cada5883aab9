"""A dozen of real kills and a dozen of real errors, at chosen system calls of running daemons; ``campaign_strace`` has many more."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.campaign_strace import CROWD, Crowd
from tests.real.mounts import needs
from tests.real.strace import Fault, calls, forbidden, may_trace

ALL_CONTACTS = 3
"""To so many nodes a client keeps connections; the others only tell what they have, by way of these."""

DISK_FAULTS = ("Input/output error", "No space left on device", "Too many open files", "Read-only file system", "recording failed")
"""What the log of a daemon says when the disk below it fails."""


def kills(*points: tuple[str, int]) -> list[Fault]:
    """SIGKILL at these calls."""
    return [Fault(call, when) for call, when in points]


def errors(*points: tuple[str, int, str]) -> list[Fault]:
    """These calls fail."""
    return [Fault(call, when, f"error={error}") for call, when, error in points]


class KilledTests(SynchronousTestCase):
    """SIGKILL in the middle of an upload."""

    @needs(forbidden)
    @shows("F35", "F36", "A43", "I1", "I2", "I11")
    def test_append_and_replace(self) -> None:
        """A crash would leave a directory that is neither the old nor the new one, or that nobody finishes, or debris for ever."""
        crowd = Crowd(self, CROWD)
        crowd.begin(8)
        hit = crowd.killed(
            kills(("fsync", 2), ("pwrite64", 4), ("renameat2", 1), ("renameat", 4), ("unlinkat", 1), ("mkdirat", 1)), replace=True, files=8
        )
        hit += crowd.killed(
            kills(("fsync", 5), ("syncfs", 1), ("renameat", 3), ("openat", 60), ("utimensat", 9), ("fchmod", 7)), replace=False, files=70
        )
        self.assertGreaterEqual(hit, 11, "the faults were not met")


class FailedTests(SynchronousTestCase):
    """The disk below a daemon fails, and is well again."""

    @needs(forbidden)
    @shows("F28", "F29", "A39", "I2", "I7", "I8")
    def test_errors(self) -> None:
        """One bad write would end a daemon, be acknowledged as if it had worked, or never be told to who uploads."""
        crowd = Crowd(self, ALL_CONTACTS, expect_errors=DISK_FAULTS)
        crowd.begin(8)
        hit = crowd.failed(errors(("fsync", 1, "EIO"), ("fsync", 6, "EIO"), ("renameat2", 1, "EIO")), replace=True, files=8)
        hit += crowd.failed(errors(("fsync", 12, "EIO"), ("pwrite64", 5, "ENOSPC"), ("renameat", 4, "EROFS")), replace=True, files=8)
        hit += crowd.failed(errors(("syncfs", 1, "EIO"), ("fsync", 4, "EIO"), ("openat", 40, "EMFILE")), replace=False, files=70)
        hit += crowd.failed(errors(("mkdirat", 2, "ENOSPC"), ("unlinkat", 1, "EIO"), ("utimensat", 3, "EROFS")), replace=False, files=70)
        self.assertGreaterEqual(hit, 11, "the faults were not met")


class PreconditionTests(SynchronousTestCase):
    """What keeps these tests from running, and what does not."""

    def test_may_trace(self) -> None:
        """A broken strace would look like one that is forbidden, and nothing here would ever run."""
        self.assertIn("this user may not", may_trace(1000, "strace: attach: ptrace(PTRACE_SEIZE, 5): Operation not permitted"))
        self.assertIn("this root may not", may_trace(0, "strace: attach: ptrace(PTRACE_SEIZE, 5): Operation not permitted"))
        with self.assertRaisesRegex(AssertionError, "invalid option"):
            may_trace(0, "strace: invalid option -- 'z'")

    def test_end_not_seen(self) -> None:
        """Ending strace in the middle of a call would be taken for a file that nobody understands."""
        out = Path(self.mktemp())
        out.write_text(
            '7 1.0 unlinkat(3, "a", 0 <unfinished ...>\n'
            "8 1.1 fsync(4) = 0\n"
            "7 1.2 <... unlinkat resumed>) = 0\n"
            "8 1.3 fsync(5 <unfinished ...>\n"
            '7 1.4 unlinkat(3, "b", AT_REMOVEDIR <detached ...>\n'
            "8 1.5 <... fsync resumed> <detached ...>\n"
        )
        self.assertEqual([(call.pid, call.name, call.result) for call in calls(out)], [(8, "fsync", "0"), (7, "unlinkat", "0")])
