"""When compressed answers are asked for."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.sources import FAST_BYTES_S, KEPT_TRIALS, TRIAL_BYTES, CompressionChoice

ANSWER = 256 * 1024
FAST = 4 * FAST_BYTES_S


class PackingTests(SynchronousTestCase):
    """One source, whose speed differs by what it is asked for."""

    def setUp(self) -> None:
        self.packing = CompressionChoice()
        self.now_s = 100.0

    def trial(self, packed: float, plain: float) -> bool:
        """Take as much as a trial needs, at these rates in bytes a second. How it was asked for."""
        wanted = self.packing.wanted
        rate = packed if wanted else plain
        for _ in range(TRIAL_BYTES // ANSWER + 1):
            self.packing.gave(ANSWER, self.now_s)
            self.now_s += ANSWER / rate
        return wanted

    def trials(self, count: int, packed: float, plain: float) -> list[bool]:
        return [self.trial(packed, plain) for _ in range(count)]

    def test_slow_link(self) -> None:
        """On a slow link text would travel in its full length, if only now and then."""
        self.assertEqual(set(self.trials(40, FAST_BYTES_S / 2, FAST)), {True})

    def test_fast_link(self) -> None:
        """Where compressing is what holds everything up, it would go on for ever."""
        ways = self.trials(30, 1.5 * FAST_BYTES_S, FAST)
        self.assertEqual(ways[:2], [True, False])
        self.assertGreater(ways.count(False), 20)
        self.assertGreater(ways[5:].count(True), 1, "the other way is never tried again")

    def test_fast_source(self) -> None:
        """The better way would not be kept, because the other one was tried last."""
        ways = self.trials(30, FAST, 1.5 * FAST_BYTES_S)
        self.assertEqual(ways[:3], [True, False, True])
        self.assertGreater(ways.count(True), 24)

    def test_kept(self) -> None:
        """Half of all trials would go the worse way."""
        ways = self.trials(2 + 2 * (KEPT_TRIALS + 1), 2 * FAST_BYTES_S, FAST)
        self.assertEqual(ways, [True] + (KEPT_TRIALS + 1) * [False] + [True] + KEPT_TRIALS * [False] + [True])

    def test_link_becomes_slow(self) -> None:
        """After a fast time, a link that has become slow would stay without compression."""
        self.trials(6, 1.5 * FAST_BYTES_S, FAST)
        self.assertFalse(self.packing.wanted)
        self.trials(1, FAST_BYTES_S / 10, FAST_BYTES_S / 10)
        self.assertEqual(set(self.trials(5, FAST_BYTES_S / 3, FAST_BYTES_S / 10)), {True})

    def test_pauses_do_not_count(self) -> None:
        """A source that waited for the disk, or for others, would look slow."""
        for _ in range(TRIAL_BYTES // ANSWER + 5):
            self.packing.gave(ANSWER, self.now_s)
            self.packing.gave(ANSWER, self.now_s + ANSWER / FAST)
            self.packing.paused()
            self.now_s += 60.0
        self.assertTrue(self.packing.wanted, "too little came in one go to tell")
        self.packing.paused()
        self.assertEqual(self.trials(2, FAST, FAST / 2), [True, False])

    def test_no_time(self) -> None:
        """Answers that come within one tick of the clock would end the download."""
        for _ in range(3 * TRIAL_BYTES // ANSWER):
            self.packing.gave(ANSWER, self.now_s)
        self.assertIn(self.packing.wanted, (True, False))
