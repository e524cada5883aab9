"""Who may fetch blocks here at the same time: some are served well, instead of all of them slowly.

Who is told to come later asks somebody else meanwhile, and finds there what those who are served have passed on. In a large cluster that is
what turns the few that have an image into many.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from ciruela.model.errors import SLOW_DOWN, Busy

MOST_READERS = 16
HELD_S = 3.0
"""Who has asked for nothing for so long gives its slot to the next."""


class Slots:
    """At most ``most`` readers at a time."""

    def __init__(self, clock: IReactorTime, most: int = MOST_READERS) -> None:
        self._clock = clock
        self._most = most
        self._asked_s: dict[object, float] = {}
        self.refused = 0

    def enter(self, reader: object) -> None:
        """``reader`` asks for blocks. Raises Busy when others have all slots."""
        now_s = self._clock.seconds()
        if reader not in self._asked_s and len(self._asked_s) >= self._most:
            self._asked_s = {other: asked_s for other, asked_s in self._asked_s.items() if asked_s + HELD_S > now_s}
            if len(self._asked_s) >= self._most:
                self.refused += 1
                raise Busy(f"{SLOW_DOWN}: {len(self._asked_s)} others are served here")
        self._asked_s[reader] = now_s

    def left(self, reader: object) -> None:
        """``reader`` is gone."""
        self._asked_s.pop(reader, None)
