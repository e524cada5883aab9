"""Periodic duties, retry times and rates, all driven by a clock that is handed in."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Never, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.model.errors import SLOW_DOWN, Busy, NoAnswer
from ciruela.model.units import count, logged

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")


class PeriodicTask:
    """A LoopingCall that starts after a random part of its interval, logs an error of its duty and goes on.

    A bare LoopingCall stops for good at the first exception; nodes that start together would all beat together.
    """

    _log = Logger()

    failures = 0
    """Count of failures of duties in the whole process; each is in the log, too."""

    def __init__(self, clock: IReactorTime, rng: random.Random, interval_s: float, duty: Callable[[], object], name: str) -> None:
        self._clock = clock
        self._rng = rng
        self._interval_s = interval_s
        self._duty = duty
        self._name = name
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock
        self._first: IDelayedCall | None = None

    def _run(self) -> object:
        try:
            result = self._duty()
        # guard: I8 F42
        except Exception:  # noqa: BLE001  whatever a duty raises is logged and the beat goes on
            self._failed(Failure())
            return None
        if isinstance(result, Deferred):
            result.addErrback(self._failed)  # guard: I8 F42
        return result

    def _failed(self, failure: Failure) -> None:
        PeriodicTask.failures += 1
        self._log.failure("{duty} failed; it runs again in {interval_s} s", failure, duty=self._name, interval_s=self._interval_s)

    def start(self) -> None:
        """Begin, after a random delay below one interval."""
        delay = self._rng.random() * self._interval_s
        self._first = self._clock.callLater(delay, self._begin)

    def _begin(self) -> None:
        self._first = None
        self._loop.start(self._interval_s, now=True)

    def stop(self) -> None:
        """End; a duty that is under way is not interrupted."""
        if self._first is not None:
            self._first.cancel()
            self._first = None
        if self._loop.running:
            self._loop.stop()


def later(clock: IReactorTime, delay_s: float, name: str, duty: Callable[[], object]) -> IDelayedCall:
    """``clock.callLater`` for a duty whose error is logged and counted like that of a PeriodicTask; ``name`` says what failed."""

    def run() -> None:
        try:
            duty()
        except Exception:  # noqa: BLE001  whatever it raises, the reactor goes on; the log says so
            PeriodicTask.failures += 1
            PeriodicTask._log.failure("{duty} failed", duty=name)

    return clock.callLater(delay_s, run)


class Alarm:
    """Calls ``duty`` at the moment that was set last, as :func:`later` does."""

    def __init__(self, clock: IReactorTime, duty: Callable[[], object], name: str) -> None:
        self._clock = clock
        self._duty = duty
        self._name = name
        self._at_s: float | None = None
        self._call: IDelayedCall | None = None

    def set(self, at_s: float | None) -> None:
        """Sets the moment, in seconds of the clock; None is never."""
        if self._call is not None and self._call.active():
            if at_s == self._at_s:
                return
            self._call.cancel()
        self._at_s = at_s
        self._call = None if at_s is None else later(self._clock, max(0.0, at_s - self._clock.seconds()), self._name, self._duty)


class BoundedMap(dict[A, B]):
    """Map of at most ``most`` entries in the order in which they were put in: the oldest gives way."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def put(self, key: A, value: B) -> None:
        """Sets the value of ``key``, which is the newest entry now."""
        self.pop(key, None)
        while len(self) >= self._most:  # guard: I6 A34 F25 A26
            del self[next(iter(self))]
        self[key] = value

    def expire(self, over: Callable[[B], bool]) -> None:
        """Drops the oldest entries, as long as they are ``over``."""
        while self and over(next(iter(self.values()))):
            del self[next(iter(self))]


class Backoff(Generic[A]):
    """Remembers failures per key: the n-th failure in a row blocks the key for ``n * step_s`` seconds, at most ``longest_s``.

    The rule of protocol section 2.4. Keys that were not heard of for ``2 * longest_s`` are forgotten, at most ``limit`` are kept.
    """

    def __init__(self, clock: IReactorTime, step_s: float = 1.0, longest_s: float = 60.0, limit: int = 10_000) -> None:
        self._clock = clock
        self._step_s = step_s
        self._longest_s = longest_s
        self._failures: BoundedMap[A, tuple[int, float]] = BoundedMap(limit)

    def failed(self, key: A) -> None:
        """Count a failure of ``key``."""
        count = self._failures.get(key, (0, 0.0))[0] + 1
        self._failures.put(key, (count, self._clock.seconds() + min(count * self._step_s, self._longest_s)))

    def succeeded(self, key: A) -> None:
        """Forget the failures of ``key``."""
        self._failures.pop(key, None)

    def blocked(self, key: A) -> bool:
        """Tells whether ``key`` should be left alone now."""
        entry = self._failures.get(key)
        if entry is None:
            return False
        if self._clock.seconds() >= entry[1] + 2 * self._longest_s:
            del self._failures[key]
            return False
        return self._clock.seconds() < entry[1]


def _nothing(_item: object) -> int:
    """Items are counted only."""
    return 0


class Batcher(Generic[A, B]):
    """Gathers items while a job runs and hands them over together: a thread hop per batch instead of one per item.

    ``run`` gets up to ``most`` items, of no more than ``most_weight`` together if there are several, and fires with one result for each, in
    order. One job runs at a time. When ``run`` fails, every item of that batch fails with the same failure.
    """

    def __init__(
        self, run: Callable[[list[A]], Deferred[list[B]]], most: int = 64, weigh: Callable[[A], int] = _nothing, most_weight: int = 0
    ) -> None:
        self._run = run
        self._most = most
        self._weigh = weigh
        self._most_weight = most_weight
        self._waiting: deque[tuple[A, Deferred[B]]] = deque()
        self._busy = False

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, item: A) -> Deferred[B]:
        """Fires with the result for ``item``. Cancelling forgets the item if its job has not begun."""
        done: Deferred[B] = Deferred(self._cancelled)
        self._waiting.append((item, done))
        if not self._busy:
            self._next()
        return done

    def _cancelled(self, done: Deferred[B]) -> None:
        for entry in self._waiting:
            if entry[1] is done:
                self._waiting.remove(entry)
                return

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if not self._busy:
            return
        jobs: list[tuple[A, Deferred[B]]] = []
        weight = 0
        while self._waiting and len(jobs) < self._most:
            weight += self._weigh(self._waiting[0][0])
            if jobs and weight > self._most_weight:
                break
            jobs.append(self._waiting.popleft())
        results = self._run([item for item, _ in jobs])
        results.addCallbacks(self._deliver, self._fail, callbackArgs=(jobs,), errbackArgs=(jobs,))

    def _deliver(self, results: list[B], jobs: list[tuple[A, Deferred[B]]]) -> None:
        # First, so that the thread works while the callbacks of this batch run.
        self._next()
        for (_, done), result in zip(jobs, results, strict=True):
            if not done.called:
                done.callback(result)

    def _fail(self, failure: Failure, jobs: list[tuple[A, Deferred[B]]]) -> None:
        self._next()
        for _, done in jobs:
            if not done.called:
                done.errback(failure)


class TokenBucket:
    """A token bucket: ``rate`` tokens a second on average, at most ``burst`` at once; with ``empty`` the burst has to be saved up first.

    A token is whatever its user counts: requests, complaints, bytes. What is spent beyond what is there is a debt that time pays.
    """

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_since_s")

    def __init__(self, clock: IReactorTime, rate: float, burst: float, *, empty: bool = False) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._left = 0.0 if empty else burst
        self._since_s = clock.seconds()

    @property
    def left(self) -> float:
        """Tokens that are there now; below zero it is a debt."""
        now_s = self._clock.seconds()
        # guard: A42, -> min(self._burst, self._left + (now_s - self._since_s) * self._rate)
        self._left = min(self._burst, self._left + max(0.0, now_s - self._since_s) * self._rate)
        self._since_s = now_s
        return self._left

    @property
    def wait_s(self) -> float:
        """Seconds until nothing is owed any more."""
        return max(0.0, -self.left / self._rate)

    def take(self) -> bool:
        """Take one token. False, and nothing is taken, when there is none."""
        if self.left < 1.0:  # guard: A18
            return False
        self._left -= 1.0
        return True

    def spend(self, count: float) -> None:
        """Take ``count`` tokens, also those that are not there."""
        self._left = self.left - count

    def turn(self, count: float) -> Deferred[None]:
        """Spend ``count`` tokens. Fires when what was owed before is paid: who asks first has the first turn."""
        wait_s = self.wait_s  # guard: F54, -> 0.0
        self.spend(count)
        done: Deferred[None] = Deferred()
        self._clock.callLater(wait_s, done.callback, None)
        return done


class RepeatLimiter:
    """Counts how often the same thing was had on one link: some times at once, and once more after each ``again_s``.

    Whoever asks again all the same waits for ``held_s`` before he is refused: some programs ask as fast as they are answered.
    """

    def __init__(self, clock: IReactorTime, again_s: float, held_s: float = 2.0, limit: int = 256) -> None:
        """At most ``limit`` things are remembered of each link."""
        self._clock = clock
        self._again_s = again_s
        self._held_s = held_s
        self._limit = limit
        self._buckets: dict[object, BoundedMap[object, TokenBucket]] = {}

    def refused(self, link: object, thing: object, most: int) -> Deferred[Any] | None:
        """None while ``thing`` may be had, ``most`` times at once, which counts as once more; else what fails with Busy, later."""
        buckets = self._buckets.setdefault(link, BoundedMap(self._limit))
        bucket = buckets.get(thing)
        if bucket is None:
            bucket = TokenBucket(self._clock, 1.0 / self._again_s, float(most))
            buckets.put(thing, bucket)
        return None if bucket.take() else deferLater(self._clock, self._held_s, _same_again)

    def left(self, link: object) -> None:
        """The link is gone."""
        self._buckets.pop(link, None)


def _same_again() -> Never:
    raise Busy(f"{SLOW_DOWN}: the same was sent on this connection a moment ago, more than once")


HUSH_S = 60.0
"""Time for which the same kind of line about the same source is held back."""


class RateLimitedLog:
    """Keeps the log short, whoever talks to us: one line a minute for each kind and source, and ``most`` lines a minute in all (A27).

    What is held back is counted. The next line for the same kind and source says how many there were; those that never got a line are
    told as a number, with the first line of a later minute. At most ``limit`` pairs are remembered.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, most: int = 25, interval_s: float = HUSH_S, limit: int = 4096) -> None:
        self._clock = clock
        self._most = most
        self._interval_s = interval_s
        self._limit = limit
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        self._lines = 0
        self._until_s = clock.seconds() + interval_s
        self._unsaid = 0
        self.held_back = 0

    def warn(self, log: Logger, kind: str, source: object, text: str, /, **fields: object) -> None:
        """Log a warning, or hold it back. Fields that are texts are made harmless, whatever they are."""
        self._say(log.warn, kind, str(source), text, fields)

    def error(self, log: Logger, kind: str, source: object, text: str, /, **fields: object) -> None:
        """As :meth:`warn`, for what somebody has to do something about."""
        self._say(log.error, kind, str(source), text, fields)

    def failure(self, log: Logger, kind: str, source: object, text: str, /, **fields: object) -> None:
        """As :meth:`warn`, with the exception that is being dealt with."""
        self._say(log.failure, kind, str(source), text, fields)

    def info(self, log: Logger, kind: str, source: object, text: str, /, **fields: object) -> None:
        """As :meth:`warn`, for what is no mishap."""
        self._say(log.info, kind, str(source), text, fields)

    def _say(self, emit: Callable[..., None], kind: str, source: str, text: str, fields: dict[str, object]) -> None:
        now_s = self._clock.seconds()
        if now_s >= self._until_s:
            self._begin(now_s)
        before_s, count = self._said.pop((kind, source), (-self._interval_s, 0))
        if now_s - before_s < self._interval_s:  # guard: A27 F20 I6
            self._said[kind, source] = (before_s, count + 1)
            self.held_back += 1
        elif self._lines >= self._most:  # guard: A27 F20 I6
            self._unsaid += 1
            self.held_back += 1
        else:
            self._lines += 1
            while len(self._said) >= self._limit:  # guard: I6 A27
                self._unsaid += self._said.pop(next(iter(self._said)))[1]
            self._said[kind, source] = (now_s, 0)
            # guard: A27 F20, -> {name: value for name, value in fields.items()}
            harmless = {name: logged(value) if isinstance(value, str) else value for name, value in fields.items()}
            emit(f"{text} ({{more}} more of these were not logged)" if count else text, more=count, **harmless)

    def _begin(self, now_s: float) -> None:
        """A new interval."""
        self._lines = 0
        self._until_s = now_s + self._interval_s
        for what in [what for what, (before_s, _) in self._said.items() if now_s - before_s >= 2 * self._interval_s]:
            self._unsaid += self._said.pop(what)[1]
        if self._unsaid:
            self._lines = 1
            self._log.warn(
                "not logged, so that the log stays readable: {messages} about what others sent", messages=count(self._unsaid, "message")
            )
            self._unsaid = 0


def within(answer: Deferred[A], timeout_s: float, clock: IReactorTime) -> Deferred[A]:
    """``answer`` itself; cancelled after ``timeout_s`` it fails with NoAnswer, in words for people."""

    def expired(result: A | Failure, _: float) -> A:
        if isinstance(result, Failure):
            raise NoAnswer(f"no answer within {timeout_s:.3g} s") from None
        return result

    return answer.addTimeout(timeout_s, clock, expired)


def in_place(f: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[A]:
    """Implements ``interfaces.InThread`` without threads: for what is small, and for tests."""
    return maybeDeferred(f, *args, **kwargs)
