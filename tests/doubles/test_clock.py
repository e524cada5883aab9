"""The fake clock behaves as Twisted's."""

import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.doubles.clock import HeapClock


class HeapClockTests(SynchronousTestCase):
    """Scenario tests are only worth something if their time is right."""

    def play(self, clock):
        """A random game of timers that start, cancel, delay and reset each other; returns what happened when."""
        rng = random.Random(4)
        seen, timers = [], []

        def fire(name):
            seen.append((round(clock.seconds(), 6), name))
            if len(timers) < 400:
                for _ in range(rng.randrange(3)):
                    name = len(timers)
                    timers.append(clock.callLater(rng.randrange(1, 2**22) / 2**20, fire, name))
            for timer in rng.sample(timers, min(2, len(timers))):
                if timer.active():
                    change = rng.randrange(4)
                    if change == 0:
                        timer.cancel()
                    elif change == 1:
                        timer.reset(rng.randrange(1, 2**22) / 2**20)
                    elif change == 2:
                        timer.delay(1.0)

        timers.extend(clock.callLater(rng.randrange(1, 2**22) / 2**20, fire, number) for number in range(20))
        while clock.getDelayedCalls():
            clock.advance(min(timer.getTime() for timer in clock.getDelayedCalls()) - clock.seconds())
        self.assertEqual(clock.getDelayedCalls(), [])
        return seen

    def test_as_twisteds(self):
        """The same timers fire at the same times."""
        ours, theirs = self.play(HeapClock()), self.play(Clock())
        self.assertGreater(len(ours), 100)
        self.assertEqual(ours, theirs)

    def test_next(self):
        """The time of the next event, past cancelled ones."""
        clock = HeapClock()
        self.assertIsNone(clock.next_s())
        first = clock.callLater(1, lambda: None)
        clock.callLater(2, lambda: None)
        first.cancel()
        self.assertEqual(clock.next_s(), 2)
