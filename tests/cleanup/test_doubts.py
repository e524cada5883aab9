"""Every reason for which a node deletes nothing, and what the rules spare: one at a time, all else being well."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.cleanup.health import QUIET_S, SKEW_MS, STEP_MS, Cause, DirSight, Moment, NodeSight, dir_faults, node_faults
from ciruela.cleanup.rules import LEAST_CAP, RetentionRule, most_deletions, rulings
from ciruela.disk import keeplist
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError, FormatError
from ciruela.model.ids import ImageId
from ciruela.model.versions import Version
from tests.proof import shows

NOW_MS = 1_800_000_000_000
DAY_MS = 24 * 3_600_000
CONFIG = DirConfig("app", "/srv/app", False, 1, auto_clean=True, keep_min_directories=2, keep_max_directories=5, keep_recent_ms=10 * DAY_MS)
GOOD = NodeSight(
    began=Moment(NOW_MS - 7_200_000, 100.0),
    awake_s=100.0,
    now=Moment(NOW_MS, 7300.0),
    recorded_ms=NOW_MS - 1000,
    clocks_ms=(NOW_MS - 5, NOW_MS + 5, NOW_MS),
    peers=4,
    heard=3,
)
WELL = DirSight(CONFIG, CONFIG, (1, 2), (1, 2), frozenset())


class NodeTests(SynchronousTestCase):
    """What the node knows of itself, its clock and the others."""

    def causes(self, **changes: object) -> list[Cause]:
        return [one.cause for one in node_faults(replace(GOOD, **changes))]  # type: ignore[arg-type]

    @shows("A54", "F50", "I9")
    def test_beginning(self) -> None:
        """A node that comes back after a week would delete before it has heard what the others kept."""
        self.assertEqual(self.causes(), [])
        self.assertEqual(self.causes(awake_s=GOOD.now.steady_s - QUIET_S + 1), [Cause.STARTING])
        self.assertEqual(self.causes(heard=2), [Cause.PEERS])
        self.assertEqual(self.causes(heard=0), [Cause.PEERS])
        self.assertEqual(self.causes(heard=0, peers=0, clocks_ms=()), [])

    @shows("A42", "F44", "I9")
    def test_clock(self) -> None:
        """With a clock that is a year ahead every image would be old."""
        year_ms = 365 * DAY_MS
        for off_ms in (year_ms, -year_ms, 3_600_000, -3_600_000, STEP_MS + 1, -STEP_MS - 1):
            moved = replace(GOOD, now=replace(GOOD.now, wall_ms=NOW_MS + off_ms), clocks_ms=(), recorded_ms=0)
            self.assertEqual([one.cause for one in node_faults(moved)], [Cause.CLOCK], off_ms)
        self.assertEqual(self.causes(recorded_ms=NOW_MS + SKEW_MS + 1), [Cause.CLOCK])
        self.assertEqual(self.causes(recorded_ms=NOW_MS + SKEW_MS), [])
        for off_ms in (year_ms, -year_ms, SKEW_MS + 1):
            self.assertEqual(self.causes(clocks_ms=(NOW_MS, NOW_MS + off_ms, NOW_MS + off_ms)), [Cause.CLOCK])
            self.assertEqual(self.causes(clocks_ms=(NOW_MS, NOW_MS, NOW_MS + off_ms)), [])


class DirectoryTests(SynchronousTestCase):
    """What the node knows of one directory."""

    def causes(self, **changes: object) -> list[Cause]:
        return [one.cause for one in dir_faults(replace(WELL, **changes))]  # type: ignore[arg-type]

    @shows("A40", "A46", "A47", "F30", "F57", "I9")
    def test_each(self) -> None:
        """Images would be deleted by a rule that nobody has read again, or in a directory that is not the one that was meant."""
        self.assertEqual(self.causes(), [])
        self.assertEqual(self.causes(config_now="gone"), [Cause.CONFIG])
        self.assertEqual(self.causes(config_now=replace(CONFIG, keep_min_directories=1)), [Cause.CONFIG])
        self.assertEqual(self.causes(identity="not there"), [Cause.DIRECTORY])
        self.assertEqual(self.causes(identity_now="not there"), [Cause.DIRECTORY])
        self.assertEqual(self.causes(identity_now=(1, 3)), [Cause.DIRECTORY])
        self.assertEqual(self.causes(keep_list="unreadable"), [Cause.KEEP_LIST])


class RuleTests(SynchronousTestCase):
    """What is spared."""

    def kept(
        self, ages: dict[str, int], config: DirConfig = CONFIG, listed: tuple[str, ...] = (), in_use: tuple[str, ...] = ()
    ) -> list[str]:
        entries = {name: Version(NOW_MS - days * DAY_MS, ImageId(bytes(32))) for name, days in ages.items()}
        found = rulings(entries, config, listed, in_use, NOW_MS)
        self.assertEqual(sorted(ruling.entry for ruling in found), sorted(ages))
        return sorted(ruling.entry for ruling in found if ruling.keeps)

    @shows("I9")
    def test_each(self) -> None:
        """An image that a rule keeps would be deleted."""
        old = {f"v{number}": 20 + number for number in range(6)}
        self.assertEqual(self.kept(old), ["v0", "v1"])
        self.assertEqual(self.kept({"v0": 20, "v1": 21}), ["v0", "v1"])
        self.assertEqual(self.kept({**old, "new": 9, "newer": 1}), ["new", "newer"])
        self.assertEqual(self.kept(old, listed=("v4", "v5")), ["v0", "v4", "v5"])
        self.assertEqual(self.kept(old, in_use=("v3",)), ["v0", "v1", "v3"])
        recent = {f"r{number}": number for number in range(8)}
        self.assertEqual(self.kept(recent), [f"r{number}" for number in range(5)])
        self.assertEqual(self.kept(recent, listed=("r7",)), [*(f"r{number}" for number in range(5)), "r7"])
        self.assertEqual(self.kept(old, replace(CONFIG, keep_min_directories=0)), ["v0"])

    @shows("I9")
    def test_few_at_a_time(self) -> None:
        """One wrong rule would empty a directory in one round."""
        self.assertEqual([most_deletions(count) for count in (0, 9, 10, 15, 1000)], [LEAST_CAP, LEAST_CAP, 2, 3, 200])
        self.assertEqual({rule for rule in RetentionRule if not rule.keeps}, {RetentionRule.OLD, RetentionRule.SURPLUS})


class KeepListTests(SynchronousTestCase):
    """The list of what must stay."""

    @shows("A46", "F57", "I9")
    def test_not_understood(self) -> None:
        """Half a list, or something else in its place, would let the rest be deleted."""
        self.assertEqual(keeplist.parse(b"# what runs\nv1\n/v2/\n\n", 1), {("v1",), ("v2",)})
        self.assertEqual(keeplist.parse(b"a/v1\n", 2), {("a", "v1")})
        self.assertEqual(keeplist.parse(b"# empty\n", 1), frozenset())
        for data in (
            b"",
            b"\n# comment\n",
            b"v1\nv2",
            b"v1\n\xff\n",
            b"v1\n../v2\n",
            b"v1\n.hidden\n",
            b"a/v1\n",
            b"v1\n" + bytes(1),
            b"v1\n" * (keeplist.MAX_BYTES // 3 + 1),
        ):
            self.assertRaises(FormatError, keeplist.parse, data, 1)

    @shows("A46", "F57", "I3", "I9")
    def test_not_readable(self) -> None:
        """A list that is missing, a symlink, a pipe, or that changes while it is read, would be taken for an empty one."""
        path = Path(self.mktemp()).absolute()
        self.assertRaises(DiskError, keeplist.read, str(path), 1)
        path.write_bytes(b"v1\n")
        self.assertEqual(keeplist.read(str(path), 1), {("v1",)})
        link, pipe = path.with_name("link"), path.with_name("pipe")
        link.symlink_to(path)
        os.mkfifo(pipe)
        for wrong in (link, pipe, path.parent):
            self.assertRaises(DiskError, keeplist.read, str(wrong), 1)
        real = keeplist.SafeDir.open_read

        def replaced(directory: keeplist.SafeDir, name: str) -> object:
            opened = real(directory, name)
            path.with_name("new").write_bytes(b"v1\nv2\n")
            path.with_name("new").rename(path)
            return opened

        self.patch(keeplist.SafeDir, "open_read", replaced)
        failed = self.assertRaises(DiskError, keeplist.read, str(path), 1)
        self.assertIn("changed while it was read", str(failed))
