"""Durations."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.units import LONGEST_MS, format_duration, parse_duration_ms
from tests.proof import shows

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

UNITS = {
    "ms msec millis": 1,
    "s sec secs second seconds": 1000,
    "m min mins minute minutes": MINUTE,
    "h hr hrs hour hours": HOUR,
    "d day days": DAY,
    "w week weeks": 7 * DAY,
    "M month months": 2_630_016_000,
    "y year years": 31_557_600_000,
}


class ParseTests(SynchronousTestCase):
    """A user's ``2 days`` means two days, and nothing is guessed."""

    def test_every_unit(self) -> None:
        """Configurations written for the reference keep their meaning, for every spelling of every unit."""
        for names, size_ms in UNITS.items():
            for name in names.split():
                self.assertEqual(parse_duration_ms(f"3{name}"), 3 * size_ms, name)
                self.assertEqual(parse_duration_ms(f" 3  {name} "), 3 * size_ms, name)

    def test_tiny_units_round_up(self) -> None:
        """A limit that was asked for never becomes none at all."""
        for text, expected in {"1ns": 1, "1 nsec": 1, "1000000nanos": 1, "1500us": 2, "2000 usec": 2, "0s": 0, "999999ns 1ns": 1}.items():
            self.assertEqual(parse_duration_ms(text), expected, text)

    def test_sums(self) -> None:
        """``1h 30min`` is an hour and a half, with or without the space."""
        for text in ("1h 30min", "1h30min", "30min 1h", "1 hour 29 minutes 60s"):
            self.assertEqual(parse_duration_ms(text), 90 * MINUTE, text)

    def test_month_is_not_minute(self) -> None:
        """A capital M keeps images for a month, not for a minute."""
        self.assertEqual(parse_duration_ms("1M"), 2_630_016_000)
        self.assertEqual(parse_duration_ms("1m"), MINUTE)

    def refused(self, text: str, said: str) -> None:
        """``text`` is no duration, and the message contains ``said``."""
        error = self.assertRaises(ValueError, parse_duration_ms, text)
        self.assertIn(said, str(error))

    def test_bare_number(self) -> None:
        """A number without a unit is refused with what to write, instead of being taken for seconds by one and days by another."""
        self.refused("30", '"30" is not a duration (a unit is missing: try "30s")')
        self.refused("1h 30", 'try "1h 30s"')

    def test_proposals(self) -> None:
        """A misspelt unit comes back corrected."""
        self.refused("2 dayz", '"2 dayz" is not a duration (try "2 days")')
        self.refused("1h 5 minuts", 'try "1h 5 minutes"')
        self.refused("3 parsecfoos", "units are ms, s, min")

    @shows("W2")
    def test_half_an_hour(self) -> None:
        """``1.5h`` was answered with a proposal that is no duration either."""
        self.refused("1.5h", 'numbers are whole: try "1h 30min"')
        self.refused("2 d 0.5 hours", 'try "2 d 30min"')
        self.refused("1.5 weeks", 'try "10d 12h"')
        self.refused("1.5", "write whole numbers with units")

    def test_other_text(self) -> None:
        """What is no duration at all is refused."""
        for text in ("", "  ", "abc", "-1s", "1.5h", "1h,30m", "s", "1s!", "٣s", "1 0s", "1s" * 200):
            self.assertRaises(ValueError, parse_duration_ms, text)

    def test_too_long(self) -> None:
        """A number with a zero too many, and another twenty, ends in a message and not in a crash later."""
        self.assertEqual(parse_duration_ms(f"{LONGEST_MS}ms"), LONGEST_MS)
        self.refused(f"{LONGEST_MS + 1}ms", "years")


class FormatTests(SynchronousTestCase):
    """Durations that the program prints can be pasted into a configuration."""

    def test_examples(self) -> None:
        """A reader sees units, largest first."""
        for ms, text in {0: "0s", 1: "1ms", 90 * MINUTE: "1h 30min", 2 * DAY: "2d", DAY + 1001: "1d 1s 1ms"}.items():
            self.assertEqual(format_duration(ms), text)

    def test_negative(self) -> None:
        """A bug elsewhere is not printed as a strange duration."""
        self.assertRaises(ValueError, format_duration, -1)

    @settings(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(st.integers(0, 10**15))
    def test_there_and_back(self, ms: int) -> None:
        """What is printed means what it was made from."""
        self.assertEqual(parse_duration_ms(format_duration(ms)), ms)
