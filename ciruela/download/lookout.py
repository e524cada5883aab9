"""Hearing at once what other nodes have by now: one GetPieces to each of them is always under way, and answered when there is news.

Gossip tells the same some tenths of a second later, and to those to whom no connection is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.clockwork import within
from ciruela.download.sources import Source
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.mask import Pieces
from ciruela.proto.messages import GetPieces, PiecesData, Response

T = TypeVar("T")

HELD_S = 5.0
"""A node keeps a GetPieces for so long when there is nothing to tell."""

ANSWER_S = 2 * HELD_S
NOTHING_S = 0.5
"""After an answer with nothing the same node is asked again so much later: it may have answered at once."""

AGAIN_S = 3.0
"""After a failure the same node is asked again so much later."""


class Lookout:
    """What one download asks the peers that it may get something from. ``news`` is called when one of them has told something new."""

    _log = Logger()

    def __init__(self, vpath: str, image: ImageId, pieces: Pieces, clock: IReactorTime, news: Callable[[], None]) -> None:
        self._vpath = vpath
        self._image = image
        self._pieces = pieces
        self._clock = clock
        self._news = news
        self._stopped = False

    def look(self, wanted: Iterable[tuple[Source, int]]) -> None:
        """Ask each source that is not being asked yet about its pieces, of which some are worth waiting for."""
        now_s = self._clock.seconds()
        for source, pieces in wanted:
            unknown = pieces & ~source.claimed
            if unknown and not source.awaited and now_s >= source.await_from_s:
                self._ask(source, unknown)

    def stop(self) -> None:
        """Nothing is of interest any more; what is still answered, soon, is not looked at."""
        self._stopped = True

    def _ask(self, source: Source, pieces: int) -> None:
        source.awaited = True
        asked = within(source.candidate.ask(GetPieces(self._vpath, self._image, self._pieces.to_bytes(pieces))), ANSWER_S, self._clock)
        asked.addBoth(self._ended, source)
        asked.addCallback(self._told, source).addErrback(self._failed, source)

    def _ended(self, result: T, source: Source) -> T:
        source.awaited = False
        return result

    def _told(self, response: Response, source: Source) -> None:
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

    def _failed(self, failure: Failure, source: Source) -> None:
        """It may be gone, too old, or have given the image up; gossip and the requests for blocks tell."""
        source.await_from_s = self._clock.seconds() + AGAIN_S
        if not failure.check(RemoteError, LinkLost):
            self._log.failure(
                "news of {image} from {source} were not taken in", failure, image=self._image.hex(), source=source.candidate.name
            )
