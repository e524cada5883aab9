"""Periodic duties, rates, and a log that stays short."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.runtime import HUSH_S, Alarm, Backoff, BoundedMap, PeriodicTask, RateLimitedLog, TokenBucket, later
from tests.proof import shows


class BeatTests(SynchronousTestCase):
    """A duty that fails once must not be a duty that is never done again."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.runs = 0

    def beat(self, duty: Any) -> PeriodicTask:
        beat = PeriodicTask(self.clock, random.Random(1), 10.0, duty, "counting")
        beat.start()
        return beat

    @shows("I8")
    def test_raises(self) -> None:
        """Each failure is logged and counted, and the next beat comes."""
        before = PeriodicTask.failures

        def duty() -> None:
            self.runs += 1
            raise ValueError("on purpose")

        beat = self.beat(duty)
        self.clock.pump([10.0] * 5)
        self.assertEqual(self.runs, 5)
        self.assertEqual(PeriodicTask.failures - before, 5)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 5)
        beat.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @shows("I8")
    def test_fails_later(self) -> None:
        """The same for a Deferred, and for one that is given up."""

        def duty() -> Deferred[None]:
            self.runs += 1
            return fail(ValueError("on purpose"))

        beat = self.beat(duty)
        self.clock.pump([10.0] * 3)
        self.assertEqual((self.runs, len(self.flushLoggedErrors(ValueError))), (3, 3))
        beat.stop()

    def test_alarm(self) -> None:
        """A moment that is moved rings once, when it was set last; one that is taken back never does."""
        rings: list[float] = []
        alarm = Alarm(self.clock, lambda: rings.append(self.clock.seconds()), "ringing")
        for at_s in (5.0, 2.0, 2.0):
            alarm.set(at_s)
        self.clock.pump([1.0] * 6)
        self.assertEqual(rings, [2.0])
        alarm.set(3.0)  # it is over
        self.clock.advance(0)
        self.assertEqual(rings, [2.0, 6.0])
        alarm.set(9.0)
        alarm.set(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @shows("I8")
    def test_later(self) -> None:
        """One call that fails is logged by its name, and the reactor hears nothing of it."""
        before = PeriodicTask.failures
        later(self.clock, 1.0, "dividing", lambda: 1 / 0)
        self.clock.advance(1.0)
        self.assertEqual(PeriodicTask.failures - before, 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class BucketTests(SynchronousTestCase):
    """So many at once, so many a second, and no credit for a long silence."""

    def take(self, bucket: TokenBucket, tries: int) -> int:
        return sum(bucket.take() for _ in range(tries))

    @shows("A18")
    def test_rate(self) -> None:
        """The burst, then the rate; waiting a year gives the burst again and no more."""
        clock = Clock()
        bucket = TokenBucket(clock, 20.0, 40.0)
        self.assertEqual(self.take(bucket, 100), 40)
        clock.advance(1.0)
        self.assertEqual(self.take(bucket, 100), 20)
        clock.advance(3600.0)
        self.assertEqual(self.take(bucket, 100), 40)

    @shows("A42")
    def test_clock_goes_back(self) -> None:
        """A clock that goes back takes nothing away."""
        clock = Clock()
        clock.advance(100.0)
        bucket = TokenBucket(clock, 1.0, 2.0)
        clock.rightNow = 0.0
        self.assertEqual(self.take(bucket, 5), 2)


class BoundedMapTests(SynchronousTestCase):
    def test_oldest_first(self) -> None:
        """What was heard just now would be forgotten for what is long past."""
        known: BoundedMap[str, int] = BoundedMap(3)
        for at, key in enumerate("abcadd"):
            known.put(key, at)
        self.assertEqual(list(known.items()), [("c", 2), ("a", 3), ("d", 5)])
        known.expire(lambda at: at < 4)
        self.assertEqual(known, {"d": 5})
        known.expire(lambda at: at < 9)
        self.assertEqual(known, {})


class BackoffTests(SynchronousTestCase):
    """Who fails is left alone for a time that grows."""

    def setUp(self) -> None:
        self.clock = Clock()

    @shows("A58")
    def test_grows(self) -> None:
        """A dead peer would be tried for ever at full speed, or one that is back not at all."""
        backoff: Backoff[str] = Backoff(self.clock, step_s=1.0, longest_s=3.0)
        for rest_s in (1, 2, 3, 3):
            backoff.failed("a")
            self.clock.advance(rest_s - 0.1)
            self.assertTrue(backoff.blocked("a"))
            self.clock.advance(0.1)
            self.assertFalse(backoff.blocked("a"))
        backoff.failed("a")
        backoff.succeeded("a")
        self.assertFalse(backoff.blocked("a"))

    @shows("A29", "A34", "I6")
    def test_memory(self) -> None:
        """Names or addresses that somebody makes up would fill the memory."""
        backoff: Backoff[int] = Backoff(self.clock, limit=50)
        for number in range(1000):
            backoff.failed(number)
        self.assertEqual(len(backoff._failures), 50)
        self.assertTrue(backoff.blocked(999))


class HushTests(SynchronousTestCase):
    """Who talks to a node must not be able to fill its log."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)
        self.hush = RateLimitedLog(self.clock, most=3)
        self.log = Logger()

    def say(self, kind: str, source: str, what: str = "x") -> None:
        self.hush.warn(self.log, kind, source, "{source} said {what}", source=source, what=what)

    def text(self, at: int = -1) -> str:
        return str(self.lines[at]["log_format"]).format(**self.lines[at])

    @shows("A27", "F20")
    def test_once_a_minute(self) -> None:
        """The first of a kind is told at once, the others are counted, and the count is told."""
        for _ in range(1000):
            self.say("noise", "a")
        self.say("noise", "b")
        self.assertEqual(len(self.lines), 2)
        self.clock.advance(HUSH_S)
        self.say("noise", "a", "y\n")
        self.assertEqual(self.text(), "a said y\\x0a (999 more of these were not logged)")
        self.assertEqual(self.hush.held_back, 999)

    @shows("A27", "F20", "I6")
    def test_in_all(self) -> None:
        """Many sources, made up or not, get no more lines than few; how much was not told is told."""
        for number in range(10_000):
            self.say("noise", f"10.0.{number // 250}.{number % 250}")
        self.assertEqual(len(self.lines), 3)
        self.clock.advance(HUSH_S)
        self.say("noise", "c")
        self.assertEqual(
            (self.text(3), len(self.lines)), ("not logged, so that the log stays readable: 9,997 messages about what others sent", 5)
        )

    @shows("I6")
    def test_memory(self) -> None:
        """The table of sources does not grow without end."""
        hush = RateLimitedLog(self.clock, most=10_000, limit=50)
        for number in range(1000):
            hush.warn(self.log, "noise", number, "noise")
        self.assertEqual(len(hush._said), 50)
        self.clock.advance(3 * HUSH_S)
        hush.warn(self.log, "noise", 1, "noise")
        self.assertEqual(len(hush._said), 1)

    def test_levels(self) -> None:
        """What somebody has to deal with keeps its level, and an exception its trace."""
        self.hush.info(self.log, "a", "", "a")
        self.hush.error(self.log, "b", "", "b")
        try:
            raise ValueError("on purpose")
        except ValueError:
            self.hush.failure(self.log, "c", "", "c")
        self.assertEqual([line["log_level"] for line in self.lines], [LogLevel.info, LogLevel.error, LogLevel.critical])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
