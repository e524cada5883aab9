"""``--limit-rate``: when bytes may go out, so that all connections together stay below a rate."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

PATIENCE_S = 2.0
"""Blocks that would wait for longer are refused as busy. A node waits three seconds at least before it gives up an answer, which would
then be sent for nothing; one that hears "busy" asks others meanwhile, and comes back."""

SHARED_BYTES_S = 20_000_000
"""Below this rate everything goes to one node, which passes it on just as soon. Three would each hear so little of the client that they
ask for what the others were promised, and it would be sent twice."""


class Pace:
    """A line that takes ``bytes_s`` bytes a second: what is sent is on it for a while, and the next answer waits until it is free.

    An answer goes out as a whole, so the rate is kept on average, and never more than one answer goes out ahead of it.
    """

    def __init__(self, clock: IReactorTime, bytes_s: int) -> None:
        self._clock = clock
        self._bytes_s = bytes_s
        self._free_s = 0.0

    @property
    def wait_s(self) -> float:
        """How long the next answer has to wait."""
        return max(0.0, self._free_s - self._clock.seconds())

    def turn(self, size: int) -> Deferred[None]:
        """Fires when ``size`` bytes may go out; those who ask first go first."""
        wait_s = self.wait_s
        self._free_s = self._clock.seconds() + wait_s + size / self._bytes_s
        done: Deferred[None] = Deferred()
        self._clock.callLater(wait_s, done.callback, None)
        return done
