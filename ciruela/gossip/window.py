"""Which sequence numbers of a sender were seen: replays and doubles are refused (threats A31)."""

from __future__ import annotations

WINDOW = 1024
"""Numbers that a datagram may be late: a second of news at full speed."""


class Window:
    """The last :data:`WINDOW` sequence numbers of one sender in one epoch."""

    __slots__ = ("_bits", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._bits = 0

    def forged(self, seq: int) -> bool:
        """Whether ``seq``, which is certainly a number of now, is so far behind that a forged number must have come before it."""
        return self._newest - seq >= WINDOW

    def fresh(self, seq: int) -> bool:
        """Whether ``seq`` is seen for the first time; notes it. A number too old to tell is not fresh."""
        ahead = seq - self._newest
        if ahead > 0:
            self._bits = 1 if ahead >= WINDOW else ((self._bits << ahead) | 1) & ((1 << WINDOW) - 1)
            self._newest = seq
            return True
        if -ahead >= WINDOW or self._bits >> -ahead & 1:  # in this order: as a bit, a forged number far behind fills the memory
            return False
        self._bits |= 1 << -ahead
        return True
