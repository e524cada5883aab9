"""Telling other nodes at once what has come: a GetPieces is answered when a piece that it wants is here.

:mod:`ciruela.download.availability` is the other side.

Hearing at once what other nodes have by now: one GetPieces to each of them is always under way, and answered when there is news.

Gossip tells the same some tenths of a second later, and to those to whom no connection is open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.sources import PeerCandidate
from ciruela.model.bitfield import Pieces
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPieces, PiecesData, Response
from ciruela.runtime import within

T = TypeVar("T")

HELD_S = 5.0
"""A node keeps a GetPieces for so long when there is nothing to tell."""

ANSWER_S = 2 * HELD_S
NOTHING_S = 0.5
"""After an answer with nothing the same node is asked again so much later: it may have answered at once."""

AGAIN_S = 3.0
"""After a failure the same node is asked again so much later."""


class AvailabilitySubscription:
    """Question of one download to the peers that may give it something. ``news`` is called when one of them has told something new."""

    _log = Logger()

    def __init__(self, vpath: str, image: ImageId, pieces: Pieces, clock: IReactorTime, news: Callable[[], None]) -> None:
        self._vpath = vpath
        self._image = image
        self._pieces = pieces
        self._clock = clock
        self._news = news
        self._stopped = False

    def look(self, wanted: Iterable[tuple[PeerCandidate, int]]) -> None:
        """Ask each source that is not being asked yet about its pieces, of which some are worth waiting for."""
        now_s = self._clock.seconds()
        for source, pieces in wanted:
            unknown = pieces & ~source.claimed
            if unknown and not source.awaited and now_s >= source.await_from_s:
                self._ask(source, unknown)

    def stop(self) -> None:
        """Nothing is of interest any more; what is still answered, soon, is not looked at."""
        self._stopped = True

    def _ask(self, source: PeerCandidate, pieces: int) -> None:
        source.awaited = True
        asked = within(source.candidate.ask(GetPieces(self._vpath, self._image, self._pieces.to_bytes(pieces))), ANSWER_S, self._clock)
        asked.addBoth(self._ended, source)
        asked.addCallback(self._told, source).addErrback(self._failed, source)

    def _ended(self, result: T, source: PeerCandidate) -> T:
        source.awaited = False
        return result

    def _told(self, response: Response, source: PeerCandidate) -> None:
        if not isinstance(response, PiecesData):
            raise RemoteError("the answer to GetPieces is something else")
        try:
            pieces = self._pieces.from_bytes(response.pieces)
        except ValueError as error:
            raise RemoteError(str(error)) from None
        if not pieces:
            source.await_from_s = self._clock.seconds() + NOTHING_S
            return
        source.told(pieces)
        if not self._stopped:
            self._news()  # also when gossip was faster: this is where it is asked again

    def _failed(self, failure: Failure, source: PeerCandidate) -> None:
        """It may be gone, too old, or have given the image up; gossip and the requests for blocks tell."""
        source.await_from_s = self._clock.seconds() + AGAIN_S
        if not failure.check(RemoteError, LinkLost):
            self._log.failure(
                "news of {image} from {source} were not taken in", failure, image=self._image.hex(), source=source.candidate.name
            )


NEWS_S = 0.04
"""Time in which further news are gathered, to be told together: fewer messages, and larger answers to what they lead to."""

MOST_HELD = 16
"""Requests of one connection that wait here; others are answered at once, so that enough room is left for requests for blocks."""


@dataclass(eq=False)
class _Waiting:
    """One request of ``asker``. ``wanted`` is a mask of ``size`` bytes."""

    asker: object
    image: ImageId
    wanted: int
    size: int
    done: Deferred[PiecesData] = field(default_factory=Deferred)
    expiry: IDelayedCall | None = None

    def told(self, here: int) -> PiecesData:
        """The answer when the pieces ``here`` are here."""
        return PiecesData((here & self.wanted).to_bytes(self.size, "little"))


class AvailabilityRequests:
    """The requests that wait. ``here`` gives the mask of an image's pieces at a path; None when nothing of it is or will be here."""

    def __init__(self, here: Callable[[VPath, ImageId], int | None], clock: IReactorTime) -> None:
        self._here = here
        self._clock = clock
        self._waiting: dict[VPath, list[_Waiting]] = {}
        self._due: dict[VPath, IDelayedCall] = {}
        self._told_s: dict[VPath, float] = {}
        self._held: Counter[object] = Counter()

    def give(self, request: GetPieces, asker: object) -> Deferred[PiecesData]:
        """Fires when some of the wanted pieces are here, or after HELD_S with none; fails with RemoteError for an image that is not.

        ``asker`` is who asks; when MOST_HELD of its requests wait already, this one does not.
        """
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            return fail(RemoteError(f"not a virtual path: {error}"))
        here = self._here(vpath, request.image)
        if here is None:
            return fail(RemoteError("image not found"))
        waiting = _Waiting(asker, request.image, int.from_bytes(request.wanted, "little"), len(request.wanted))
        if self._held[asker] >= MOST_HELD:
            return succeed(waiting.told(here))
        self._held[asker] += 1
        self._waiting.setdefault(vpath, []).append(waiting)
        waiting.expiry = self._clock.callLater(HELD_S, self._expired, vpath, waiting)
        self.progressed(vpath)
        return waiting.done

    def progressed(self, vpath: VPath) -> None:
        """More is here at ``vpath``, or the download there has ended."""
        if vpath not in self._waiting or vpath in self._due:
            return
        next_s = self._told_s.get(vpath, -math.inf) + NEWS_S
        now_s = self._clock.seconds()
        if now_s >= next_s:
            self._look(vpath, now_s)
        elif any(self._tells(vpath, waiting) for waiting in self._waiting[vpath]):
            self._due[vpath] = self._clock.callLater(next_s - now_s, self._tell, vpath)

    def stop(self) -> None:
        """Nobody is told anything any more."""
        for call in self._due.values():
            call.cancel()
        self._due.clear()
        for requests in self._waiting.values():
            for waiting in requests:
                assert waiting.expiry is not None
                waiting.expiry.cancel()
        self._waiting.clear()
        self._told_s.clear()
        self._held.clear()

    def _tell(self, vpath: VPath) -> None:
        del self._due[vpath]
        self._look(vpath, self._clock.seconds())

    def _tells(self, vpath: VPath, waiting: _Waiting) -> bool:
        here = self._here(vpath, waiting.image)
        return here is None or bool(here & waiting.wanted)

    def _look(self, vpath: VPath, now_s: float) -> None:
        for waiting in list(self._waiting.get(vpath, ())):
            if self._tells(vpath, waiting):
                self._told_s[vpath] = now_s
                self._answer(vpath, waiting, self._here(vpath, waiting.image))

    def _forget(self) -> None:
        """Forgets what was told longer ago than NEWS_S."""
        before_s = self._clock.seconds() - NEWS_S
        self._told_s = {vpath: told_s for vpath, told_s in self._told_s.items() if told_s > before_s}

    def _expired(self, vpath: VPath, waiting: _Waiting) -> None:
        waiting.expiry = None
        self._answer(vpath, waiting, 0)

    def _answer(self, vpath: VPath, waiting: _Waiting, here: int | None) -> None:
        requests = self._waiting[vpath]
        requests.remove(waiting)
        self._held[waiting.asker] -= 1
        if not self._held[waiting.asker]:
            del self._held[waiting.asker]
        if not requests:
            del self._waiting[vpath]
            self._forget()
        if waiting.expiry is not None:
            waiting.expiry.cancel()
        if here is None:
            waiting.done.errback(RemoteError("image not found"))
        else:
            waiting.done.callback(waiting.told(here))
