"""The keep rules as the reference's own tests state them, and what holds for any directory."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ciruela.cleanup.rules import LEAST_CAP, RetentionRule, Ruling, most_deletions, rulings
from ciruela.model.config import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.versions import SigEntry, State, Version
from tests.measure import UnmeasuredTestCase
from tests.proof import shows

NOW_MS = 1_800_000_000_000
SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
YEAR_MS = 365 * DAY_MS

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def config(least: int, most: int, recent_ms: int) -> DirConfig:
    return DirConfig(
        "app", "/srv/app", False, 1, auto_clean=True, keep_min_directories=least, keep_max_directories=most, keep_recent_ms=recent_ms
    )


def aged(ages: dict[str, int | None]) -> dict[str, Version]:
    """Versions by their age in milliseconds; None for one without a signature."""
    return {name: Version(0 if age is None else NOW_MS - age, ImageId(bytes(32))) for name, age in ages.items()}


class UpstreamTests(UnmeasuredTestCase):
    """The unit tests of the reference (protocol section 5.13)."""

    def check(
        self, rules: DirConfig, ages: dict[str, int | None], kept: list[str], unused: list[str], listed: tuple[str, ...] = ()
    ) -> None:
        found = rulings(aged(ages), rules, listed, (), NOW_MS)
        self.assertEqual([ruling.entry for ruling in found if ruling.keeps], kept)
        self.assertEqual([ruling.entry for ruling in found if not ruling.keeps], unused)

    @shows("I9")
    def test_rows(self) -> None:
        """After a move from the reference, images would be deleted that it kept."""
        self.check(config(1, 2, DAY_MS), {"1": None}, ["1"], [])
        three: dict[str, int | None] = {"1": HOUR_MS, "2": WEEK_MS, "3": SECOND_MS}
        self.check(config(1, 100, DAY_MS), three, ["3", "1"], ["2"])
        self.check(config(2, 100, MINUTE_MS), three, ["3", "1"], ["2"])
        five: dict[str, int | None] = {"1": WEEK_MS, "2": HOUR_MS, "3": 30 * MINUTE_MS, "4": 2 * MINUTE_MS, "5": YEAR_MS}
        self.check(config(1, 2, DAY_MS), five, ["4", "3"], ["2", "1", "5"])
        self.check(config(1, 2, DAY_MS), five, ["4", "3", "5"], ["2", "1"], ("5",))

    @shows("I9")
    def test_age_is_of_the_newest_signature(self) -> None:
        """An image that was signed again yesterday would be deleted for a signature of last year (section 12, C3)."""
        signed_twice = State(ImageId(bytes(32)), (SigEntry(NOW_MS - YEAR_MS, bytes(64)), SigEntry(NOW_MS - HOUR_MS, bytes(64))))
        entries = aged({"a": MINUTE_MS, "b": WEEK_MS}) | {"c": signed_twice.version}
        found = {ruling.entry: ruling.rule for ruling in rulings(entries, config(1, 100, DAY_MS), (), (), NOW_MS)}
        self.assertEqual(found, {"a": RetentionRule.RECENT, "b": RetentionRule.OLD, "c": RetentionRule.RECENT})

    def test_each_rule_is_told(self) -> None:
        """An operator could not find out why an image stays or goes."""
        ages: dict[str, int | None] = {f"r{number}": number * MINUTE_MS for number in range(4)}
        ages |= {"o1": WEEK_MS, "o2": WEEK_MS + 1, "o3": WEEK_MS + 2, "o4": None}
        told = {r.entry: r.rule for r in rulings(aged(ages), config(4, 2, DAY_MS), ("o2",), ("o3",), NOW_MS)}
        expected = {"r0": RetentionRule.RECENT, "r1": RetentionRule.RECENT, "r2": RetentionRule.MINIMUM, "r3": RetentionRule.SURPLUS}
        expected |= {"o1": RetentionRule.OLD, "o2": RetentionRule.LISTED, "o3": RetentionRule.IN_USE, "o4": RetentionRule.OLD}
        self.assertEqual(told, expected)
        two = rulings(aged({"a": WEEK_MS, "b": None}), config(2, 2, DAY_MS), (), (), NOW_MS)
        self.assertEqual([r.rule for r in two], [RetentionRule.FEW, RetentionRule.FEW])
        old = rulings(aged({"a": WEEK_MS, "b": 2 * WEEK_MS, "c": None}), config(1, 2, DAY_MS), ("b",), (), NOW_MS)
        self.assertEqual([r.rule for r in old], [RetentionRule.NEWEST, RetentionRule.LISTED, RetentionRule.OLD])


NAMES = st.text("abcdef", min_size=1, max_size=2)
DIRECTORIES = st.dictionaries(NAMES, st.one_of(st.just(0), st.integers(NOW_MS - 4 * DAY_MS, NOW_MS + 10 * MINUTE_MS)), max_size=25)
RULES = st.builds(config, st.integers(1, 8), st.integers(1, 8), st.integers(0, 5 * DAY_MS))


class PropertyTests(UnmeasuredTestCase):
    """What holds whatever is there and however it is configured."""

    @shows("I9")
    def test_what_must_stay_stays(self) -> None:
        """Some combination of settings would delete the newest image, one on the keep list or in use, or leave fewer than the minimum."""

        @SETTINGS
        @given(DIRECTORIES, RULES, st.sets(NAMES, max_size=6), st.sets(NAMES, max_size=6))
        def check(stamps: dict[str, int], rules: DirConfig, listed: set[str], in_use: set[str]) -> None:
            entries = {name: Version(stamp, ImageId(bytes(32))) for name, stamp in stamps.items()}
            found = rulings(entries, rules, listed, in_use, NOW_MS)
            kept = {ruling.entry for ruling in found if ruling.keeps}
            dropped = [ruling for ruling in found if not ruling.keeps]
            self.assertEqual({ruling.entry: ruling.version for ruling in found}, entries)
            self.assertGreaterEqual(len(kept), min(rules.keep_min_directories, len(entries)))
            self.assertFalse((listed | in_use) & {ruling.entry for ruling in dropped})
            self.assertTrue(not entries or max(entries, key=lambda name: (entries[name], name)) in kept)
            self._nothing_newer_for_an_older_one(found)
            for ruling in dropped:
                recent = ruling.version.timestamp_ms >= NOW_MS - rules.keep_recent_ms
                self.assertIs(ruling.rule, RetentionRule.SURPLUS if recent else RetentionRule.OLD)

        check()

    def _nothing_newer_for_an_older_one(self, found: list[Ruling]) -> None:
        """Except for the keep list and what is in use, nothing is kept that is older than something that is dropped."""
        self.assertEqual([r.version for r in found], sorted((r.version for r in found), reverse=True))
        plain = [ruling.keeps for ruling in found if ruling.rule not in (RetentionRule.LISTED, RetentionRule.IN_USE)]
        self.assertEqual(plain, sorted(plain, reverse=True))

    @shows("I9")
    def test_after_a_deletion(self) -> None:
        """Deleting one image would let a rule drop another one that it had kept: a directory would melt away."""

        @SETTINGS
        @given(DIRECTORIES, RULES, st.sets(NAMES, max_size=6))
        def check(stamps: dict[str, int], rules: DirConfig, listed: set[str]) -> None:
            entries = {name: Version(stamp, ImageId(bytes(32))) for name, stamp in stamps.items()}
            kept = {ruling.entry for ruling in rulings(entries, rules, listed, (), NOW_MS) if ruling.keeps}
            while len(entries) > len(kept):
                oldest = [ruling for ruling in rulings(entries, rules, listed, (), NOW_MS) if not ruling.keeps]
                if not oldest:
                    break
                del entries[oldest[-1].entry]
                again = {ruling.entry for ruling in rulings(entries, rules, listed, (), NOW_MS) if ruling.keeps}
                self.assertLessEqual(kept, again)

        check()

    @shows("I9")
    def test_the_cap(self) -> None:
        """Who may upload could evict all the others' images at once, by uploading many."""

        @SETTINGS
        @given(st.integers(0, 100_000))
        def check(count: int) -> None:
            self.assertLessEqual(most_deletions(count), max(LEAST_CAP, count / 5))

        check()
