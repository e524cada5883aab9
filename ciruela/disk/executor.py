"""Turns in threads: what belongs to one path happens one after the other, in slices that leave the threads to others in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import InThread

P = ParamSpec("P")
T = TypeVar("T")

Steps = Generator[int, None, T]
"""Long work in small steps. Each ``yield`` tells what the step cost, in bytes read, written or hashed (:data:`ENTRY_COST` for a name)."""

SLICE_COST = 64 * 1024 * 1024
"""Cost of the steps that run in one thread job: some 100 ms of hashing, so that a cancel or another image waits no longer."""

ENTRY_COST = SLICE_COST // 1000
"""Least cost of touching one file or name: 1,000 of them fill a time slice."""


class _Task(Generic[T]):
    """Work that waits or runs. ``more`` tells after a run that it wants another turn."""

    def __init__(self, work: Callable[[], T], close: Callable[[], object]) -> None:
        self._work = work
        self.close = close
        self.done: Deferred[T] = Deferred(lambda _: self._cancel())
        self.cancelled = False
        self.more = False

    def _cancel(self) -> None:
        self.cancelled = True

    def run(self) -> T | None:
        """In a thread. What was cancelled while the pool was busy is not begun."""
        if self.cancelled:
            self.more = False
            self.close()
            return None
        return self._work()


class SerialExecutor:
    """A queue of thread jobs of which one runs at a time, in order.

    Cancelling a result takes a job out of the queue, or ends stepwise work after the slice that is under way; a job that runs in a thread
    cannot be stopped, but the next one waits for its end all the same. ``what`` names the work in the log. ``records`` counts the uploads
    that were recorded: stepwise work sees by it that one came in between.
    """

    _log = Logger()

    def __init__(self, in_thread: InThread, what: str) -> None:
        self._in_thread = in_thread
        self._what = what
        self.records = 0
        self._waiting: deque[_Task[Any]] = deque()
        self._busy = False
        self._pumping = False

    def do(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call ``f`` in a thread when its turn has come."""
        return self._add(_Task(lambda: f(*args, **kwargs), lambda: None))

    def steps(self, work: Steps[T]) -> Deferred[T]:
        """Go through ``work`` in slices of :data:`SLICE_COST`; jobs that came meanwhile get their turn between two slices."""

        def one_slice() -> T | None:
            cost = 0
            job.more = True
            try:
                while cost < SLICE_COST:
                    cost += next(work)
            except StopIteration as end:
                job.more = False
                result: T = end.value
                return result
            except BaseException:
                job.more = False
                raise
            return None

        job: _Task[Any] = _Task(one_slice, work.close)
        return self._add(job)

    def _add(self, job: _Task[T]) -> Deferred[T]:
        self._waiting.append(job)
        self._pump()
        return job.done

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._waiting and not self._busy:
                job = self._waiting.popleft()
                if job.cancelled:
                    job.close()
                    continue
                self._busy = True
                self._in_thread(job.run).addBoth(self._ended, job)
        finally:
            self._pumping = False

    def _ended(self, result: object, job: _Task[Any]) -> None:
        self._busy = False
        if job.more:
            self._waiting.append(job)
        elif job.cancelled:
            if isinstance(result, Failure):
                self._log.info("cancelled work on {what} ended with {error}", what=self._what, error=result.value)
        else:
            if isinstance(result, Failure):
                job.done.errback(result)
            else:
                job.done.callback(result)
        self._pump()
