"""How much may be read."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.scrub.service import BURST_S, ReadRate


class PaceTests(SynchronousTestCase):
    """The disk belongs to those who use it; the scrub takes its share and no more."""

    def test_average(self):
        """A job that reads more than it was allowed is paid for by those after it."""
        pace, read = ReadRate(1000, 0.0), 0
        for second in range(1, 1001):
            if pace.allowance(float(second)) > 0:
                pace.spent(7000)
                read += 7000
        self.assertLessEqual(read, 1_000_000 + 7000)
        self.assertGreaterEqual(read, 1_000_000 - 7000)

    def test_no_hoard(self):
        """After a night without work it would read for an hour at full speed."""
        pace = ReadRate(1000, 0.0)
        self.assertEqual(pace.allowance(36_000.0), BURST_S * 1000)

    def test_off(self):
        """With 0 nothing is read, ever."""
        self.assertEqual(ReadRate(0, 0.0).allowance(1e9), 0)
