"""Sets of pieces as integers: bit i stands for piece i. The numbers in them, the lowest of them, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterator


def bits(mask: int) -> Iterator[int]:
    """Lists the numbers of the pieces in ``mask``, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def lowest(mask: int, most: int) -> int:
    """Gives the first ``most`` pieces of ``mask``, as a mask."""
    chosen = 0
    while mask and most > 0:
        low = mask & -mask
        chosen |= low
        mask ^= low
        most -= 1
    return chosen


def chosen(mask: int, most: int, count: int, rng: random.Random) -> int:
    """Gives ``most`` pieces of ``mask``, each the next one from a random place among ``count``, as a mask."""
    found = 0
    while mask and most > 0:
        turn = int(rng.random() * count)
        high = mask >> turn << turn or mask
        low = high & -high
        found |= low
        mask ^= low
        most -= 1
    return found
