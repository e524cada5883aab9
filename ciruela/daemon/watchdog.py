"""Watches the reactor: how long it was away from its duties, and what kept it (threats I8, 6.13).

Everything here runs on one thread. A stall of a quarter of a second is a fault of the program, or of a machine that is overloaded; a
client of the reference gives up after five seconds without a byte (protocol section 2.3).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ciruela.clockwork import Hush

BEAT_S = 0.25
STALL_S = 0.25
"""Being later than this counts (threats I8)."""

LOOK_S = 0.1
"""How often the other thread looks whether the reactor is stuck."""

MOST_FRAMES = 8
"""Innermost calls that are told."""


class Watchdog:
    """Beats on the reactor, and looks from a thread of its own at what the reactor does while no beat comes.

    ``stalls`` counts, ``longest_ms`` is the longest; each is logged with the place, at most once a minute.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._hush = Hush(clock)
        self._beat_s = 0.0
        self._stuck: tuple[float | None, str] = (None, "")
        self._reactor_thread = 0
        self._call: IDelayedCall | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.stalls = 0
        self.longest_ms = 0

    def start(self) -> None:
        """Begin, on the thread of the reactor."""
        self._reactor_thread = threading.get_ident()
        self._beat_s = self._monotonic()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)
        self._thread.start()
        self._call = self._clock.callLater(BEAT_S, self._beat)

    def stop(self) -> None:
        """End, and wait for the thread."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _beat(self) -> None:
        self._call = self._clock.callLater(BEAT_S, self._beat)
        now_s = self._monotonic()
        before_s, self._beat_s = self._beat_s, now_s
        late_s = now_s - before_s - BEAT_S
        if late_s <= STALL_S:
            return
        self.stalls += 1
        late_ms = round(late_s * 1000)
        self.longest_ms = max(self.longest_ms, late_ms)
        since_s, where = self._stuck
        if since_s != before_s:
            where = "a place that was left before it could be looked at"
        text = "nothing else could be done for {late_ms} ms, because of: {where}"
        self._hush.warn(self._log, "stall", "", text, late_ms=late_ms, where=where)

    # -- on the other thread -----------------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._stopping.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Note where the reactor's thread is, if its beat is overdue; once for each stall."""
        beat_s = self._beat_s
        if self._monotonic() - beat_s <= BEAT_S + STALL_S or self._stuck[0] == beat_s:
            return
        frame = sys._current_frames().get(self._reactor_thread)
        if frame is not None:
            self._stuck = (beat_s, where_is(frame))


def where_is(frame: FrameType | None) -> str:
    """The innermost calls, the innermost first."""
    calls: list[str] = []
    while frame is not None and len(calls) < MOST_FRAMES:
        calls.append(f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(calls)
