"""How much may be read now. Pure."""

from __future__ import annotations

BURST_S = 4.0
"""What was not read for a while may be made up for, so many seconds' worth at most."""


class Pace:
    """Lets ``rate`` bytes pass in a second, on average; with a rate of 0 none at all."""

    def __init__(self, rate: int, now_s: float) -> None:
        self._rate = rate
        self._allowance = 0.0
        self._at_s = now_s

    def allowance(self, now_s: float) -> int:
        """Bytes that may be read at ``now_s``."""
        self._allowance = min(self._allowance + (now_s - self._at_s) * self._rate, BURST_S * self._rate)
        self._at_s = now_s
        return max(0, int(self._allowance))

    def spent(self, count: int) -> None:
        """``count`` bytes were read, perhaps more than were allowed: then the next ones have to wait."""
        self._allowance -= count
