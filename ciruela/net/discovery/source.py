"""Port to places that know peers, and the base of those that are asked again and again (threats A60)."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.model.errors import FormatError, LinkLost
from ciruela.model.units import logged
from ciruela.runtime import RateLimitedLog

AFTER_FAILURE_S = 10.0
LONGEST_AFTER_FAILURE_S = 300.0
"""Longest delay until a place that failed is asked again: twice as late after each failure in a row, up to the longer one."""

SPREAD = 0.25
"""Each pause is up to a quarter longer or shorter, so that nodes do not all ask at once."""

ANSWER_S = 30.0
"""Time that a place may take to answer."""

Names = tuple[str, ...]


class PeerSource(Protocol):
    """A place that knows who the other nodes are. ``text`` is how the operator wrote it; two with the same ``identity`` are the same."""

    text: str
    identity: Hashable

    @property
    def names(self) -> Names | None:
        """Names that it gave last, as ``host``, ``host:port`` or addresses; None while nothing is known of it at all."""

    @property
    def failure(self) -> str:
        """Reason why it says nothing now; empty when all is well. What it said before still counts."""

    @property
    def doubtful(self) -> bool:
        """Tells whether there may be nodes that nobody knows of: it fails now, or has not answered since the start."""

    def remember(self, names: Sequence[str]) -> None:
        """Take what it said in an earlier run for its word until it answers."""

    def label(self, name: str) -> str:
        """Says where it gives ``name``, for the log."""

    def start(self, changed: Callable[[], object]) -> Deferred[None]:
        """Begin to ask; ``changed`` is called after ``names`` or ``failure`` changed. Fires after the first answer, good or bad."""

    def stop(self) -> None:
        """End."""


class Repeated:
    """A :class:`PeerSource` that is asked, waits, and is asked again.

    ``ask`` gives names; ``pause_s`` is the time between an answer and the next question, ``answer_s`` how long an answer may take. An
    answer that names nobody is a failure: this node, at least, should be known there.
    """

    _log = Logger(namespace="ciruela.net.discovery")

    def __init__(
        self,
        text: str,
        identity: Hashable,
        ask: Callable[[], Deferred[Sequence[str]]],
        pause_s: float,
        clock: IReactorTime,
        rng: random.Random,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.text = text
        self.identity = identity
        self._ask = ask
        self._pause_s = pause_s
        self._answer_s = answer_s
        self._clock = clock
        self._rng = rng
        self._hush = RateLimitedLog(clock, interval_s=600.0)
        self._names: Names | None = None
        self._failure = ""
        self._failures = 0
        self._answered = False
        self._changed: Callable[[], object] = int
        self._question: Deferred[None] | None = None
        self._next: IDelayedCall | None = None
        self._running = False

    @property
    def names(self) -> Names | None:
        """As :attr:`PeerSource.names`."""
        return self._names

    @property
    def failure(self) -> str:
        """As :attr:`PeerSource.failure`."""
        return self._failure

    @property
    def doubtful(self) -> bool:
        """As :attr:`PeerSource.doubtful`."""
        return bool(self._failure) or not self._answered

    def remember(self, names: Sequence[str]) -> None:
        """As :meth:`PeerSource.remember`."""
        if self._names is None and names:
            self._names = tuple(names)

    def label(self, name: str) -> str:  # noqa: ARG002  one place for all of them
        """As :meth:`PeerSource.label`."""
        return self.text

    def start(self, changed: Callable[[], object]) -> Deferred[None]:
        """As :meth:`PeerSource.start`."""
        self._running = True
        self._changed = changed
        asked: Deferred[None] = Deferred()
        self._go().addBoth(lambda _: asked.callback(None))
        return asked

    def stop(self) -> None:
        """As :meth:`PeerSource.stop`."""
        self._running = False
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._question is not None:
            self._question.cancel()

    def _go(self) -> Deferred[None]:
        self._next = None
        question = (
            maybeDeferred(self._ask)
            .addTimeout(self._answer_s, self._clock)
            .addCallback(self._told)
            .addErrback(self._failed)
            .addErrback(self._broken)
            .addBoth(self._later)
        )
        if not question.called:
            self._question = question
        return question

    def _told(self, names: Sequence[str]) -> None:
        if not names:
            raise LinkLost("it knows nobody, not even this node")
        if not self._running:
            return
        new = tuple(sorted(dict.fromkeys(names)))
        # The end of a doubt is news as well, though the names are the same: only what is not in doubt is written down.
        news = new != self._names or self.doubtful
        if self._failure:
            self._log.info("{source}: it answers again", source=self.text)
        self._names, self._failure, self._failures, self._answered = new, "", 0, True
        if news:
            self._changed()

    def _failed(self, failure: Failure) -> None:
        if not self._running:
            return
        if failure.check(DeferredTimeout, CancelledError):
            reason = f"no answer within {self._answer_s:.0f} s"
        elif failure.check(LinkLost, FormatError, OSError, ConnectError):
            reason = failure.getErrorMessage()
        else:
            failure.raiseException()
        self._note(reason)

    def _broken(self, failure: Failure) -> None:
        """Something that nobody thought of: the place is asked again all the same."""
        self._log.failure("{source} could not be asked", failure, source=self.text)
        self._note(failure.getErrorMessage())

    def _note(self, reason: str) -> None:
        self._failures += 1
        self._failure = logged(reason) or "unknown"
        kept = "the nodes that it named before are kept" if self._names else "no nodes are known from there"
        self._hush.warn(
            self._log, self._failure, self.text, "peers: {source}: {reason}; {kept}", source=self.text, reason=self._failure, kept=kept
        )
        if self._running:
            self._changed()

    def _later(self, _: object) -> None:
        self._question = None
        if not self._running:
            return
        pause_s = self._pause_s
        if self._failures:
            pause_s = min(AFTER_FAILURE_S * 2 ** min(self._failures - 1, 10), LONGEST_AFTER_FAILURE_S)
        self._next = self._clock.callLater(pause_s * self._rng.uniform(1 - SPREAD, 1 + SPREAD), self._go)
