"""Sets of pieces as integers: bit i stands for piece i. Lowest bits, random bits, and the pieces of an image of some size."""

from __future__ import annotations

import random
from collections.abc import Iterator

KIB = 1024
MIB = 1024 * KIB

LEAST_PIECE_BYTES = 32 * KIB
MOST_PIECE_BYTES = MIB
LEAST_COUNT = 512
"""With fewer pieces the last hop of each is a noticeable part of the whole: 256 of them cost 0.1 of the bound at 32 nodes."""


def piece_bytes(total_bytes: int) -> int:
    """Computes the size of a piece: a power of two from 32 KiB to 1 MiB, so that there are 1,024 to 2,047 where that is possible.

    Depends on the image alone: everybody has to cut alike.
    """
    size = LEAST_PIECE_BYTES
    while size < MOST_PIECE_BYTES and total_bytes >= 2 * LEAST_COUNT * size:
        size *= 2
    return size


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
