"""Whether to ask a source for compressed answers: yes, unless it is so fast that compressing might be what holds it up. Values only.

Nobody is asked how fast a link is. What counts is how fast blocks come: above FAST_BYTES_S both ways are tried in turn, and the better one
is kept for a while. What does not become smaller is sent as it is anyway (:mod:`ciruela.proto.packing`).
"""

from __future__ import annotations

FAST_BYTES_S = 96 * 1024 * 1024
"""Below that a link, or the disk behind it, is what blocks wait for."""

TRIAL_BYTES = 8 * 1024 * 1024
"""A way is judged by so many bytes of blocks."""

KEPT_TRIALS = 8
"""The better way is kept for so many trials."""


class Packing:
    """What one source gave, each way."""

    def __init__(self) -> None:
        self.wanted = True
        self._rates: dict[bool, float] = {}
        self._since_s: float | None = None
        self._bytes = 0
        self._kept = 0

    def gave(self, size: int, now_s: float) -> None:
        """``size`` bytes of blocks, unpacked, came at ``now_s`` (seconds)."""
        if self._since_s is None:
            self._since_s = now_s
            return
        self._bytes += size
        if self._bytes < TRIAL_BYTES:
            return
        took_s = now_s - self._since_s
        self._rates[self.wanted] = self._bytes / took_s if took_s > 0 else float("inf")
        self._since_s = None
        self._bytes = 0
        self._decide()

    def paused(self) -> None:
        """Nothing is asked of the source any more: a wait that follows says nothing about its speed."""
        self._since_s = None
        self._bytes = 0

    def _decide(self) -> None:
        if self._rates[self.wanted] < FAST_BYTES_S:
            self.wanted = True
            self._rates.clear()
            self._kept = 0
        elif len(self._rates) < 2:
            self.wanted = not self.wanted
        elif self._kept < KEPT_TRIALS:
            self.wanted = self._rates[True] >= self._rates[False]
            self._kept += 1
        else:
            self._kept = 0
            del self._rates[not self.wanted]
            self.wanted = not self.wanted
