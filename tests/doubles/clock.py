"""A fake clock for many timers: as ``twisted.internet.task.Clock``, with a heap where that one sorts a list at each call."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer


@implementer(IReactorTime)
class HeapClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._heap: list[tuple[float, int, DelayedCall]] = []

    def seconds(self) -> float:
        return self._now

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **kwargs: object) -> DelayedCall:
        timer = DelayedCall(self._now + delay, call, args, kwargs, lambda _: None, self._push, self.seconds)
        self._push(timer)
        return timer

    def _push(self, timer: DelayedCall) -> None:
        heapq.heappush(self._heap, (timer.time, next(self._order), timer))

    def _settle(self) -> None:
        """Bring a live, due-dated timer to the top: drop cancelled and outdated entries, put back what was delayed."""
        while self._heap:
            time, _, timer = self._heap[0]
            process: Timers | None = getattr(timer, "process", None)
            if timer.called or timer.cancelled or time != timer.time or (process is not None and process.dead):
                heapq.heappop(self._heap)
            elif process is not None and process.paused:
                process.held.append(heapq.heappop(self._heap)[2])
            elif timer.delayed_time > 0:
                heapq.heappop(self._heap)
                timer.activate_delay()
                self._push(timer)
            else:
                return

    def getDelayedCalls(self) -> list[DelayedCall]:
        return list({id(timer): timer for _, _, timer in self._heap if timer.active()}.values())

    def next_s(self) -> float | None:
        """When the next timer is due; None without timers."""
        self._settle()
        return self._heap[0][0] if self._heap else None

    def advance(self, seconds: float) -> None:
        """Let time pass, running what falls due in its order."""
        end = self._now + seconds
        while True:
            due = self.next_s()
            if due is None or due > end:
                break
            self._now = max(self._now, due)
            timer = heapq.heappop(self._heap)[2]
            timer.called = 1
            timer.func(*timer.args, **timer.kw)
        self._now = end


@implementer(IReactorTime)
class Timers:
    """The timers of one process: what falls due while it is ``paused`` (SIGSTOP) runs afterwards, and nothing runs once it is ``dead``."""

    def __init__(self, clock: HeapClock) -> None:
        self._clock = clock
        self.dead = False
        self.paused = False
        self.held: list[DelayedCall] = []

    def seconds(self) -> float:
        return self._clock.seconds()

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **kwargs: object) -> DelayedCall:
        timer = self._clock.callLater(delay, call, *args, **kwargs)
        timer.process = self
        return timer

    def getDelayedCalls(self) -> list[DelayedCall]:
        """The live timers of this process; none that wait for the end of a pause."""
        return [timer for timer in self._clock.getDelayedCalls() if getattr(timer, "process", None) is self and not self.dead]

    def resume(self) -> None:
        """End a pause."""
        self.paused = False
        held, self.held = self.held, []
        for timer in held:
            self._clock._push(timer)
