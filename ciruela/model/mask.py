"""How far a download is, in a form that fits into a datagram and means the same on every node.

The blocks of an image, numbered in index order, are cut into 256 slices of equal size; a mask is an int with bit i set when
every block of slice i is here. Unlike the reference's (protocol section 4.2), which counts only blocks that had to be fetched,
these slices are comparable between nodes. An image of fewer than 256 blocks leaves some slices empty; those are always set.
"""

from __future__ import annotations

SLICES = 256
FULL = (1 << SLICES) - 1
MASK_BYTES = SLICES // 8


def slice_of(block: int, block_count: int) -> int:
    """The slice that ``block`` belongs to, of an image of ``block_count`` blocks."""
    return block * SLICES // block_count


def blocks_of(number: int, block_count: int) -> range:
    """The blocks of slice ``number``."""
    return range(-(-number * block_count // SLICES), -(-(number + 1) * block_count // SLICES))


def empty_mask(block_count: int) -> int:
    """The mask of a node that has the index and no block: only the empty slices are set."""
    return sum(1 << number for number in range(SLICES) if not blocks_of(number, block_count))
