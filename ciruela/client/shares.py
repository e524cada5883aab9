"""Which node takes which part of an image from the client: every part once, before any of them twice. Values only, no I/O.

The nodes give each other the rest, so the client sends little more than one copy, whatever the size of the cluster.
"""

from __future__ import annotations

import random
from collections.abc import Hashable

from ciruela.model.mask import FULL, SLICES

BLOCKS_AT_ONCE = 128
"""A node is promised about so many blocks at a time (2 MiB): faster nodes come back sooner, and get more."""


class Shares:
    """The slices of one image of ``block_count`` blocks, and to whom each is promised."""

    def __init__(self, block_count: int, rng: random.Random) -> None:
        self._at_once = max(1, BLOCKS_AT_ONCE * SLICES // max(1, block_count))
        self._order = list(range(SLICES))
        rng.shuffle(self._order)
        self._promised: dict[Hashable, int] = {}

    def take(self, taker: Hashable, missing: int) -> int:
        """Promise some of the slices ``missing`` to ``taker``. Gives them as a mask; 0 when the others have all of them."""
        free = missing & FULL
        for other, mask in self._promised.items():
            if other != taker:
                free &= ~mask
        chosen = 0
        for number in self._order:
            if free >> number & 1:
                chosen |= 1 << number
                if chosen.bit_count() == self._at_once:
                    break
        self._promised[taker] = self._promised.get(taker, 0) | chosen
        return chosen

    def left(self, taker: Hashable) -> None:
        """``taker`` is gone; what it did not pass on others may take."""
        self._promised.pop(taker, None)
