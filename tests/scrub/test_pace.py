"""How much may be read."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.scrub.service import BURST_S, reading


class PaceTests(SynchronousTestCase):
    """The disk belongs to those who use it; the scrub takes its share and no more."""

    def setUp(self):
        self.clock = Clock()

    def test_average(self):
        """A job that reads more than it was allowed is paid for by those after it."""
        pace, read = reading(1000, self.clock), 0
        for _ in range(1000):
            self.clock.advance(1.0)
            if int(pace.left) > 0:
                pace.spend(7000)
                read += 7000
        self.assertLessEqual(read, 1_000_000 + 7000)
        self.assertGreaterEqual(read, 1_000_000 - 7000)

    def test_no_hoard(self):
        """After a night without work it would read for an hour at full speed."""
        pace = reading(1000, self.clock)
        self.assertEqual(pace.left, 0.0)
        self.clock.advance(36_000.0)
        self.assertEqual(pace.left, BURST_S * 1000)

    def test_off(self):
        """With 0 nothing is read, ever."""
        pace = reading(0, self.clock)
        self.clock.advance(1e9)
        self.assertEqual(pace.left, 0)
