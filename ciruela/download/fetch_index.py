"""Getting the index of an image from whoever has it (protocol section 5.7)."""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.clockwork import Backoff, Hush
from ciruela.download.sources import Candidate
from ciruela.index.tree import Index
from ciruela.model.errors import BadIndex, DiskError, DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.order import Abort
from ciruela.model.printable import logged
from ciruela.proto.messages import GetIndex, IndexData, Response

GIVE_UP_S = 90.0
POLL_S = 1.0
ANSWER_S = 60.0
"""Silence that ends one attempt; an index of 100 MiB takes 10 s on a 100 Mbit/s link."""


class IndexFetch:
    """Asks one candidate after another, in random order, clients first, until one gives bytes that hash to the id."""

    _log = Logger()

    def __init__(
        self,
        image: ImageId,
        hint: str,
        candidates: Callable[[], list[Candidate]],
        store: Callable[[ImageId, bytes], Deferred[Index]],
        clock: IReactorTime,
        rng: random.Random,
        unpack: Callable[[bytes], Deferred[bytes]],
    ) -> None:
        self._image = image
        self._hint = hint
        self._candidates = candidates
        self._store = store
        self._unpack = unpack
        self._clock = clock
        self._rng = rng
        self._failures: Backoff[object] = Backoff(clock)
        self._began_s = clock.seconds()
        self._attempt: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._ended = False
        self._last = ""
        self._hush = Hush(clock, 10)
        self._done: Deferred[Index] = Deferred(self._cancelled)

    def run(self) -> Deferred[Index]:
        """Fires with the verified, stored index. Cancellable.

        Fails with DownloadFailed (CANT_FETCH_INDEX after GIVE_UP_S, IMAGE_TOO_LARGE) or DiskError.
        """
        self._next()
        return self._done

    def nudge(self) -> None:
        """There is news of a source: do not wait for the poll."""
        if self._retry is not None and self._retry.active():
            self._retry.reset(0)

    def _cancelled(self, _: Deferred[Index]) -> None:
        self._ended = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._attempt is not None:
            self._attempt.cancel()

    def _next(self) -> None:
        try:
            self._step()
        except Exception:  # noqa: BLE001  a download that nobody drives would hang for ever
            self._broken(Failure())

    def _broken(self, failure: Failure) -> None:
        self._log.failure("fetching the index of {image} failed", failure, image=self._image.hex())
        if not self._ended:
            self._ended = True
            self._done.errback(failure)

    def _step(self) -> None:
        self._retry = None
        ready = [one for one in self._candidates() if not self._failures.blocked(one.key)]
        if ready:
            self._try(min(ready, key=lambda one: (not one.seed, one.hearsay, self._rng.random())))
        elif self._clock.seconds() - self._began_s >= GIVE_UP_S:
            self._ended = True
            self._done.errback(
                Failure(DownloadFailed(Abort.CANT_FETCH_INDEX, f"nobody gave the index within {GIVE_UP_S:.0f} s{self._last}"))
            )
        else:
            self._retry = self._clock.callLater(POLL_S, self._next)

    def _try(self, candidate: Candidate) -> None:
        asked = candidate.ask(GetIndex(self._image, self._hint, packed=candidate.bulk))
        self._attempt = (
            asked.addTimeout(ANSWER_S, self._clock)
            .addCallback(self._keep)
            .addCallbacks(self._finish, self._failed, errbackArgs=(candidate,))
            .addErrback(self._broken)
        )

    def _keep(self, response: Response) -> Deferred[Index]:
        if not isinstance(response, IndexData):
            raise BadIndex("the answer to GetIndex is something else")
        if response.packed:
            return self._unpack(response.data).addCallback(lambda data: self._store(self._image, data))
        return self._store(self._image, response.data)

    def _finish(self, index: Index) -> None:
        self._ended = True
        self._done.callback(index)

    def _failed(self, failure: Failure, candidate: Candidate) -> None:
        self._attempt = None
        if self._ended:
            return
        if failure.check(DiskError, DownloadFailed):
            self._ended = True
            self._done.errback(failure)
            return
        self._failures.failed(candidate.key)
        self._last = f"; the last attempt: {logged(failure.getErrorMessage())}"
        self._hush.info(
            self._log,
            "no index",
            candidate.name,
            "{source} did not give the index of {image}: {reason}",
            source=candidate.name,
            image=self._image.hex(),
            reason=failure.getErrorMessage(),
        )
        self._retry = self._clock.callLater(0, self._next)
