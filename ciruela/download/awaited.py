"""Telling other nodes at once what has come: a GetPieces is answered when a piece that it wants is here.

:mod:`ciruela.download.lookout` is the other side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ciruela.download.lookout import HELD_S
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPieces, PiecesData

NEWS_S = 0.04
"""What comes so soon after the last news is told together: fewer messages, and larger answers to what they lead to."""

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


class Awaited:
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
        """What was told long ago does not matter any more."""
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
