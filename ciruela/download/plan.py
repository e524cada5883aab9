"""Which block to ask for next: bookkeeping over values, no I/O and no clock of its own.

Blocks are numbered in index order. A hash that stands in an image more than once is fetched once, under the number of its first place.
Blocks are handed out slice by slice (``model.mask``), the slices in a random order that differs between nodes, so that nodes which download
at the same time soon have something to exchange.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

from ciruela.index.tree import Index
from ciruela.model.ids import HASH_BYTES
from ciruela.model.mask import FULL, SLICES, blocks_of, slice_of

MOST_ASKERS = 2
"""A block is asked from at most so many sources at a time: the second one when the first is late."""


@dataclass(slots=True)
class _Flight:
    """A block that was asked for: from whom, and when each of them was asked (seconds)."""

    askers: dict[object, float] = field(default_factory=dict)


class Plan:
    """What is missing of one image, what is asked for, what is here."""

    def __init__(self, index: Index, have: Collection[int], rng: random.Random) -> None:
        count = index.block_count
        self._count = count
        self._copies: dict[int, list[int]] = {}
        self._here = bytearray(count)
        for number in have:
            self._here[number] = 1
        self._left = [0] * SLICES
        self._queues: list[array[int]] = [array("Q") for _ in range(SLICES)]
        self._flights: dict[int, _Flight] = {}
        self._order = list(range(SLICES))
        rng.shuffle(self._order)
        self.missing = 0
        self._fill(index)
        self.mask = sum(1 << number for number in range(SLICES) if not self._left[number])
        self._open = sum(1 << number for number in range(SLICES) if self._queues[number])

    def _fill(self, index: Index) -> None:
        first: dict[bytes, int] = {}
        number = 0
        for file in index.files:
            for at in range(0, len(file.hashes), HASH_BYTES):
                if not self._here[number]:
                    part = slice_of(number, self._count)
                    self._left[part] += 1
                    self.missing += 1
                    leader = first.setdefault(file.hashes[at : at + HASH_BYTES], number)
                    if leader == number:
                        self._queues[part].append(number)
                    else:
                        self._copies.setdefault(leader, []).append(number)
                number += 1
        for queue in self._queues:
            queue.reverse()

    def choose(self, asker: object, mask: int, preferred: int, current: int | None, now_s: float, late_s: float) -> int | None:
        """The next block to ask from ``asker``, which can give the slices of ``mask``.

        Slices of ``preferred`` go first; ``current`` is the slice the asker gave last, and is finished first. When nothing is left to
        ask for, a block that another source has owed for ``late_s`` seconds is asked for again. None when there is nothing to do.
        """
        wanted = self._open & mask
        if wanted:
            wanted = (wanted & preferred) or wanted
            part = current if current is not None and wanted >> current & 1 else next(one for one in self._order if wanted >> one & 1)
            number = self._queues[part].pop()
            if not self._queues[part]:
                self._open &= ~(1 << part)
        else:
            late = None if late_s == inf else self._late(asker, mask, now_s - late_s)
            if late is None:
                return None
            number = late
        flight = self._flights.setdefault(number, _Flight())
        flight.askers[asker] = now_s
        return number

    def _late(self, asker: object, mask: int, before_s: float) -> int | None:
        for number, flight in self._flights.items():
            if (
                len(flight.askers) < MOST_ASKERS
                and asker not in flight.askers
                and max(flight.askers.values()) <= before_s
                and mask >> slice_of(number, self._count) & 1
            ):
                return number
        return None

    @property
    def wanted(self) -> int:
        """The slices of which some block is neither here nor asked for."""
        return self._open

    def unasked(self, mask: int) -> int:
        """How many blocks of the slices of ``mask`` are neither here nor asked for."""
        wanted = self._open & mask
        return sum(len(queue) for number, queue in enumerate(self._queues) if wanted >> number & 1)

    def failed(self, number: int, asker: object) -> None:
        """``asker`` did not give the block; it is asked for again unless somebody else still owes it."""
        flight = self._flights.get(number)
        if flight is None:
            return
        flight.askers.pop(asker, None)
        if not flight.askers:
            del self._flights[number]
            part = slice_of(number, self._count)
            self._queues[part].append(number)
            self._open |= 1 << part

    def arrived(self, number: int) -> bool:
        """The block is on disk. True when that completed a slice. A second copy of the same block changes nothing."""
        if self._here[number]:
            return False
        self._flights.pop(number, None)
        completed = False
        for place in (number, *self._copies.pop(number, ())):
            self._here[place] = 1
            self.missing -= 1
            part = slice_of(place, self._count)
            self._left[part] -= 1
            if not self._left[part]:
                self.mask |= 1 << part
                completed = True
        return completed

    def has(self, number: int) -> bool:
        """Whether the block is on disk."""
        return bool(self._here[number])

    def has_slice(self, number: int) -> bool:
        """Whether all blocks of slice ``number`` are here."""
        return all(self._here[block] for block in blocks_of(number, self._count))

    @property
    def in_flight(self) -> int:
        """Blocks asked for and not answered yet."""
        return len(self._flights)

    @property
    def done(self) -> bool:
        """Whether every block is here."""
        return self.mask == FULL
