"""Getting the index of an image from whoever has it (protocol section 5.7)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.sources import Candidate
from ciruela.index.tree import Index
from ciruela.model.errors import BadIndex, DiskError, DownloadFailed, UnfitIndex
from ciruela.model.ids import ImageId
from ciruela.model.units import logged
from ciruela.model.upload import AbortReason
from ciruela.proto.messages import GetIndex, IndexData, Response
from ciruela.runtime import Backoff, RateLimitedLog

GIVE_UP_S = 90.0
POLL_S = 1.0

QUIET_S = 2.0
"""A source that sent nothing of its answer for so long does not keep the others from being asked as well."""

SILENT_S = 20.0
"""A source that sent nothing of its answer for so long is given up, and its link closed if it is a client's: nothing large is due there."""

ANSWER_S = 60.0
"""An answer that is on its way may take so long; an index of 100 MiB takes 10 s on a 100 Mbit/s link."""


@dataclass(eq=False, slots=True)
class _Attempt:
    """One candidate that was asked at ``began_s``. ``seen`` bytes of its answer had come at ``heard_s``; ``here`` once all of it came."""

    candidate: Candidate
    began_s: float
    heard_s: float = field(init=False)
    seen: int = field(init=False)
    here: bool = field(init=False, default=False)
    asked: Deferred[Response] | None = field(init=False, default=None)
    chain: Deferred[None] | None = field(init=False, default=None)
    overdue: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Starts counting."""
        self.heard_s, self.seen = self.began_s, self.candidate.incoming()

    def look(self, now_s: float) -> None:
        """Notice whether more has come."""
        incoming = self.candidate.incoming()
        if incoming != self.seen:
            self.seen, self.heard_s = incoming, now_s

    def quiet(self, now_s: float) -> bool:
        """Tells whether another candidate should be asked as well."""
        return not self.here and now_s - self.heard_s >= QUIET_S  # guard: S3, -> False

    def late(self, now_s: float) -> str:
        """Says why nobody should wait for it any more, for people; empty while it may go on."""
        if self.here:
            return ""
        if now_s - self.heard_s >= SILENT_S:  # guard: A58 F52
            return f"nothing of an answer within {SILENT_S:g} s"
        return f"no whole answer within {ANSWER_S:g} s" if now_s - self.began_s >= ANSWER_S else ""


def _unknown() -> None:
    """Nobody else fetches it."""


class IndexFetch:
    """Asks candidates in random order, clients first, until one gives bytes that hash to the id.

    One after the other, as long as each of them answers: while those that were asked are quiet, the next one is asked as well.
    """

    _log = Logger()

    def __init__(
        self,
        question: GetIndex,
        candidates: Callable[[], list[Candidate]],
        store: Callable[[ImageId, bytes], Deferred[Index]],
        clock: IReactorTime,
        rng: random.Random,
        unpack: Callable[[bytes], Deferred[bytes]],
        known: Callable[[], Index | None] = _unknown,
    ) -> None:
        """``question``: as it is asked. ``known``: the index, once another download of the same image has got it."""
        self._known = known
        self._question = question
        self._image = question.image
        self._candidates = candidates
        self._store = store
        self._unpack = unpack
        self._clock = clock
        self._rng = rng
        self._failures: Backoff[object] = Backoff(clock)
        self._began_s = 0.0
        self._attempts: dict[object, _Attempt] = {}
        self._poll: IDelayedCall | None = None
        self._ended = False
        self._last = ""
        self._hush = RateLimitedLog(clock, 10)
        self._done: Deferred[Index] = Deferred(self._cancelled)

    def run(self) -> Deferred[Index]:
        """Fires with the verified, stored index. Cancellable.

        Fails with DownloadFailed (CANT_FETCH_INDEX after GIVE_UP_S, BAD_INDEX or IMAGE_TOO_LARGE at once) or DiskError.
        """
        self._began_s = self._clock.seconds()
        self._next()
        return self._done

    def nudge(self) -> None:
        """There is news of a source: do not wait for the poll."""
        if self._poll is not None:
            self._poll.reset(0)

    def _cancelled(self, _: Deferred[Index]) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self._ended = True
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        for attempt in list(self._attempts.values()):
            if attempt.chain is not None:
                attempt.chain.cancel()

    def _end(self, result: Index | Failure) -> None:
        if not self._ended:
            self._let_go()
            self._done.callback(result)

    def _next(self) -> None:
        self._poll = None
        try:
            self._step()
        except Exception:  # noqa: BLE001  a download that nobody drives would hang for ever
            self._broken(Failure())

    def _broken(self, failure: Failure) -> None:
        self._log.failure("fetching the index of {image} failed", failure, image=self._image.hex())
        self._end(failure)

    def _step(self) -> None:
        now_s = self._clock.seconds()
        known = self._known()
        if known is not None:
            self._end(known)
            return
        for attempt in list(self._attempts.values()):
            attempt.look(now_s)
            attempt.overdue = attempt.late(now_s)
            if attempt.overdue and attempt.asked is not None:
                attempt.asked.cancel()
        if not self._ended and all(attempt.quiet(now_s) for attempt in self._attempts.values()):
            self._ask_another(now_s)
        if not self._ended and self._poll is None:
            self._poll = self._clock.callLater(POLL_S, self._next)

    def _ask_another(self, now_s: float) -> None:
        ready = [one for one in self._candidates() if one.key not in self._attempts and not self._failures.blocked(one.key)]
        if ready:
            self._try(min(ready, key=lambda one: (not one.seed, one.hearsay, self._rng.random())), now_s)
        elif not self._attempts and now_s - self._began_s >= GIVE_UP_S:  # guard: A56
            why = f"nobody gave the index within {GIVE_UP_S:.0f} s{self._last}"
            self._end(Failure(DownloadFailed(AbortReason.CANT_FETCH_INDEX, why)))

    def _try(self, candidate: Candidate, now_s: float) -> None:
        attempt = self._attempts[candidate.key] = _Attempt(candidate, now_s)
        attempt.asked = candidate.ask(replace(self._question, packed=candidate.bulk))
        attempt.chain = (
            attempt.asked.addCallback(self._keep, attempt)
            .addCallbacks(self._end, self._failed, errbackArgs=(attempt,))
            .addErrback(self._broken)
        )

    def _keep(self, response: Response, attempt: _Attempt) -> Deferred[Index]:
        attempt.here = True
        if not isinstance(response, IndexData):
            raise BadIndex("the answer to GetIndex is something else")
        if response.packed:
            return self._unpack(response.data).addCallback(lambda data: self._store(self._image, data))
        return self._store(self._image, response.data)

    def _failed(self, failure: Failure, attempt: _Attempt) -> None:
        """One candidate did not give it, which costs that candidate alone; a disk that fails and an index nobody can take end it all."""
        candidate = attempt.candidate
        self._attempts.pop(candidate.key, None)
        if self._ended:
            return
        if failure.check(DiskError, DownloadFailed):  # guard: A38 A39
            self._end(failure)
            return
        reason = failure.getErrorMessage()
        if failure.check(UnfitIndex):  # guard: K7.3
            self._end(Failure(DownloadFailed(AbortReason.BAD_INDEX, reason)))
            return
        if attempt.overdue and failure.check(CancelledError):
            reason = attempt.overdue
            candidate.close(f"closed because it gave {reason}")  # guard: S3 S10
        self._failures.failed(candidate.key)  # guard: A4 A7 F4
        self._last = f"; the last attempt: {logged(reason)}"
        self._hush.info(
            self._log,
            "no index",
            candidate.name,
            "{source} did not give the index of {image}: {reason}",
            source=candidate.name,
            image=self._image.hex(),
            reason=reason,
        )
        if self._poll is None:
            self._poll = self._clock.callLater(0, self._next)
        else:
            self._poll.reset(0)
