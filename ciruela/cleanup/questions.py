"""Questions that may never be answered: a keep list, a directory or a link on a network file system that hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ciruela.model.errors import DiskError

T = TypeVar("T")

ANSWER_S = 30.0
"""For so long a keep list, a directory or the configuration may take to be read; then the base dir has to wait for its next cycle."""


class Questions:
    """Asks each question once at a time, and waits for so long."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._asking: set[tuple[str, str]] = set()

    def ask(self, what: str, key: str, ask: Callable[[], Deferred[T]]) -> Deferred[T]:
        """What ``ask`` finds out; fails with DiskError when that takes too long, and at once while the last such question is unanswered."""
        question = (what, key)
        if question in self._asking:
            raise DiskError(f"{what} of /{key} cannot be read: an earlier attempt has still not ended")
        self._asking.add(question)
        found: Deferred[T] = Deferred()

        def ended(result: T | Failure) -> None:
            self._asking.discard(question)
            if not found.called:
                found.callback(result)

        def late(failure: Failure) -> Failure:
            if failure.check(defer.TimeoutError):
                return Failure(DiskError(f"{what} of /{key} cannot be read: no answer within {ANSWER_S:.0f} s"))
            return failure

        ask().addBoth(ended)
        return found.addTimeout(ANSWER_S, self._clock).addErrback(late)
