"""Bitfields: how far a download is, in forms that mean the same on every node.

The blocks of an image, numbered in index order, are cut into 256 slices of equal size; a mask is an int with bit i set when
every block of slice i is here. That fits into a datagram. Unlike the reference's (protocol section 4.2), which counts only blocks that had
to be fetched, these slices are comparable between nodes. An image of fewer than 256 blocks leaves some slices empty; those are always set.

Over connections nodes speak of pieces: each slice of a larger image is cut again, so that a piece can be passed on soon.

On a node itself the blocks of an image that are here are a set of their numbers, one byte for each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import lru_cache
from itertools import compress, count

from ciruela.model.values import dataclass

SLICES = 256
FULL = (1 << SLICES) - 1
MASK_BYTES = SLICES // 8

PIECE_BYTES = 256 * 1024
"""Slices are cut until a piece has about so many bytes. Smaller ones would go on sooner, and cost more messages."""

MOST_CUTS = 8
"""Into so many pieces at most: what a node keeps of each of its peers stays small."""

MOST_PIECES = SLICES * MOST_CUTS


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of one image of ``block_count`` blocks. ``cuts``: pieces in each slice."""

    block_count: int
    cuts: int

    @classmethod
    def of_image(cls, block_count: int, total_bytes: int) -> Pieces:
        """Every node cuts the same image alike."""
        return cls(block_count, max(1, min(MOST_CUTS, round(total_bytes / (SLICES * PIECE_BYTES)))))

    @property
    def count(self) -> int:
        """Number of pieces, empty ones included."""
        return SLICES * self.cuts

    @property
    def full(self) -> int:
        """The mask of all pieces."""
        return (1 << self.count) - 1

    def piece_of(self, block: int) -> int:
        """The piece that ``block`` belongs to."""
        return block * self.count // self.block_count

    def blocks(self, piece: int) -> range:
        """The blocks of a piece."""
        return range(-(-piece * self.block_count // self.count), -(-(piece + 1) * self.block_count // self.count))

    def of_blocks(self, numbers: Iterable[int]) -> int:
        """The mask of the pieces that these blocks belong to, as far as the image has them."""
        mask = 0
        for number in numbers:
            if number < self.block_count:
                mask |= 1 << self.piece_of(number)
        return mask

    def groups(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        """Ascending block numbers, those of each piece by themselves."""
        found: list[tuple[int, ...]] = []
        count, begin = self.count, 0
        while begin < len(numbers):
            piece = numbers[begin] * count // self.block_count
            end = bisect_left(numbers, -(-(piece + 1) * self.block_count // count), begin)
            found.append(tuple(numbers[begin:end]))
            begin = end
        return found

    def of_slices(self, mask: int) -> int:
        """The pieces of the slices in ``mask``."""
        return mask if self.cuts == 1 else _cut(mask, self.cuts)

    def slices(self, mask: int) -> int:
        """The slices of which all pieces are in ``mask``."""
        if self.cuts == 1 or mask in (0, self.full):
            return mask & FULL
        whole = mask
        for shift in range(1, self.cuts):
            whole &= mask >> shift
        return sum(1 << number for number in range(SLICES) if whole >> number * self.cuts & 1)

    def to_bytes(self, mask: int) -> bytes:
        """A mask as it is sent."""
        return mask.to_bytes(self.count // 8, "little")

    def from_bytes(self, data: bytes) -> int:
        """A mask as it came. Raises ValueError when it is not one of this image."""
        if len(data) != self.count // 8:  # guard: A24
            raise ValueError(f"a mask of {len(data)} bytes; {self.count // 8} are right for this image")
        return int.from_bytes(data, "little")


class BlockSet(Set[int]):
    """Set of block numbers: a view of ``here``, which has a byte for each block of an image, 1 for those in the set.

    It changes with ``here``. A set of ints would take some sixty times the memory.
    """

    __slots__ = ("_here",)

    def __init__(self, here: bytearray) -> None:
        self._here = here

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._here) and self._here[number] == 1

    def __iter__(self) -> Iterator[int]:
        return compress(count(), self._here)

    def __len__(self) -> int:
        return self._here.count(1)

    @classmethod
    def _from_iterable(cls, it: Iterable[int]) -> frozenset[int]:  # type: ignore[override]
        return frozenset(it)


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


@lru_cache(maxsize=256)
def _cut(mask: int, cuts: int) -> int:
    each = (1 << cuts) - 1
    return sum(each << number * cuts for number in range(SLICES) if mask >> number & 1)
