"""Plan of a download: which block to ask for next. Values only, no I/O and no clock.

Blocks are numbered in index order. A hash that stands in an image more than once is fetched once, under the number of its first place.
Blocks are handed out piece by piece (``model.bitfield``), in their order: neighboring pieces have different relays (``fetch_blocks``).
Where nobody shares out who fetches what, the order is random and differs between nodes, so that they soon have something to exchange.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from math import inf

from ciruela.index.tree import Index
from ciruela.model.ids import HASH_BYTES

MOST_ASKERS = 2
"""A block is asked from at most so many sources at a time: the second one when the first is late."""


MOST_AT_ONCE = 512
"""Blocks that are asked for at once, at most: of tiny files thousands would fit, and dealing with them would take long at a time."""


@dataclass(slots=True)
class _Flight:
    """A block that was asked for: from whom, and when each of them was asked (seconds)."""

    askers: dict[object, float] = field(default_factory=dict)


class BlockPlan:
    """Plan of the blocks of one image that are not in ``have``: missing, or asked for. Staging knows which are here."""

    def __init__(self, index: Index, have: Collection[int], rng: random.Random) -> None:
        self.pieces = index.pieces
        count = self.pieces.count
        self._copies: dict[int, list[int]] = {}
        self._sizes = array("H")
        self._left = [0] * count
        self._queues: list[array[int]] = [array("Q") for _ in range(count)]
        self._queued_bytes = [0] * count
        self._flights: dict[int, _Flight] = {}
        self._order = list(range(count))
        rng.shuffle(self._order)
        self.missing = 0
        self._fill(index, have)
        self.mask = self._of(number for number, left in enumerate(self._left) if not left)
        self._open = self._of(number for number, queue in enumerate(self._queues) if queue)

    def _of(self, pieces: Iterable[int]) -> int:
        bits = bytearray(self.pieces.count // 8)
        for piece in pieces:
            bits[piece >> 3] |= 1 << (piece & 7)
        return int.from_bytes(bits, "little")

    def _fill(self, index: Index, have: Collection[int]) -> None:
        here = bytearray(index.block_count)
        for number in have:
            here[number] = 1
        first: dict[bytes, int] = {}
        number = 0
        piece_of = self.pieces.piece_of
        for file in index.files:
            for at in range(0, len(file.hashes), HASH_BYTES):
                self._sizes.append(file.block_size(at // HASH_BYTES))
                if not here[number]:
                    part = piece_of(number)
                    self._left[part] += 1
                    self.missing += 1
                    leader = first.setdefault(file.hashes[at : at + HASH_BYTES], number)
                    # Equal blocks are fetched once, and written wherever they stand.
                    if leader == number:  # guard: A8, -> True
                        self._queues[part].append(number)
                        self._queued_bytes[part] += self._sizes[number]
                    else:
                        self._copies.setdefault(leader, []).append(number)
                number += 1
        for queue in self._queues:
            queue.reverse()

    def choose(
        self,
        asker: object,
        mask: int,
        preferred: int,
        current: int | None,
        now_s: float,
        late_s: float,
        most_bytes: int = 1,
        *,
        at_random: bool = False,
    ) -> list[int]:
        """The next blocks to ask from ``asker``, which can give the pieces of ``mask``: ``most_bytes``, or one block of any size.

        Several pieces are whole, as far as they are missing; of one that is larger as much as fits. Those of ``preferred`` go first.
        Pieces are taken in their order or ``at_random``; ``current``, the piece that the asker gave last, is then finished first.
        When nothing is left to ask for, a block that another source has owed for ``late_s`` seconds is asked for again. Empty when there is
        nothing to do.
        """
        wanted = self._open & mask
        if wanted:
            wanted = (wanted & preferred) or wanted
            if at_random:
                going_on = current is not None and wanted >> current & 1
                part = current if going_on and current is not None else self._first(wanted)
                numbers = self._take(part, most_bytes)
            else:
                numbers = self._take_in_order(wanted, most_bytes)
        else:
            late = None if late_s == inf else self._late(asker, mask, now_s - late_s)
            numbers = [] if late is None else [late]
        for number in numbers:
            self._flights.setdefault(number, _Flight()).askers[asker] = now_s
        return numbers

    def claim(self, pieces: int, asker: object, now_s: float) -> list[int]:
        """All blocks of ``pieces`` that are neither here nor asked for, to be asked from ``asker``; in their order."""
        wanted = self._open & pieces
        self._open ^= wanted
        numbers: list[int] = []
        while wanted:
            lowest = wanted & -wanted
            wanted ^= lowest
            part = lowest.bit_length() - 1
            numbers.extend(reversed(self._queues[part]))
            self._queues[part] = array("Q")
            self._queued_bytes[part] = 0
        for number in numbers:
            self._flights.setdefault(number, _Flight()).askers[asker] = now_s
        return numbers

    def _first(self, wanted: int) -> int:
        """The first of the pieces ``wanted``, in the order of this plan. What is complete is left out of that for ever."""
        while self.mask >> self._order[-1] & 1:
            self._order.pop()
        return next(one for one in reversed(self._order) if wanted >> one & 1)

    def _take_in_order(self, wanted: int, most_bytes: int) -> list[int]:
        numbers: list[int] = []
        while wanted:
            lowest = wanted & -wanted
            wanted ^= lowest
            part = lowest.bit_length() - 1
            size = self._queued_bytes[part]
            if not numbers:
                numbers = self._take(part, most_bytes)
            elif size <= most_bytes and len(numbers) + len(self._queues[part]) <= MOST_AT_ONCE:  # guard: I6, without 2
                numbers += self._take(part, size)
            else:
                break
            most_bytes -= size
            if most_bytes <= 0:
                break
        return numbers

    def _take(self, part: int, most_bytes: int) -> list[int]:
        queue = self._queues[part]
        numbers = [queue.pop()]
        size = self._sizes[numbers[0]]
        while queue and len(numbers) < MOST_AT_ONCE and size + self._sizes[queue[-1]] <= most_bytes:  # guard: I6, without 2
            numbers.append(queue.pop())
            size += self._sizes[numbers[-1]]
        self._queued_bytes[part] -= size
        if not queue:
            self._open &= ~(1 << part)
        return numbers

    def _late(self, asker: object, mask: int, before_s: float) -> int | None:
        for number, flight in self._flights.items():
            # guard: A58 F52
            if (
                len(flight.askers) < MOST_ASKERS
                and asker not in flight.askers
                and max(flight.askers.values()) <= before_s
                and mask >> self.pieces.piece_of(number) & 1
            ):
                return number
        return None

    @property
    def wanted(self) -> int:
        """The pieces of which some block is neither here nor asked for."""
        return self._open

    def unasked(self, mask: int) -> int:
        """Counts the bytes of the pieces of ``mask`` that are neither here nor asked for."""
        wanted = self._open & mask
        size = 0
        while wanted:
            lowest = wanted & -wanted
            wanted ^= lowest
            size += self._queued_bytes[lowest.bit_length() - 1]
        return size

    def size_of(self, number: int) -> int:
        """The size of a block."""
        return self._sizes[number]

    def bytes_of(self, numbers: Iterable[int]) -> int:
        """The size of these blocks together."""
        return sum(map(self._sizes.__getitem__, numbers))

    def failed(self, number: int, asker: object) -> None:
        """``asker`` did not give the block; it is asked for again unless somebody else still owes it."""
        flight = self._flights.get(number)
        if flight is None:
            return
        flight.askers.pop(asker, None)
        if not flight.askers:
            del self._flights[number]
            self._put_back(number)

    def release(self, pieces: int) -> None:
        """Lets others give what was asked for of ``pieces``, too: it is late. Whichever copy comes first counts."""
        for number in [number for number in self._flights if pieces >> self.pieces.piece_of(number) & 1]:
            del self._flights[number]
            self._put_back(number)

    def _put_back(self, number: int) -> None:
        part = self.pieces.piece_of(number)
        self._queues[part].append(number)
        self._queued_bytes[part] += self._sizes[number]
        self._open |= 1 << part

    def _withdrawn(self, number: int) -> bool:
        """Takes a block off the list of those to be asked for. False when it does not stand there."""
        part = self.pieces.piece_of(number)
        queue = self._queues[part]
        if number not in queue:
            return False
        queue.remove(number)
        self._queued_bytes[part] -= self._sizes[number]
        if not queue:
            self._open &= ~(1 << part)
        return True

    def arrived(self, number: int) -> bool:
        """A block that was asked for is on disk. True when that completed a piece. A second copy of the same block changes nothing."""
        if self._flights.pop(number, None) is None and not self._withdrawn(number):  # guard: I1, without 2
            return False
        completed = False
        for place in (number, *self._copies.pop(number, ())):
            self.missing -= 1
            part = self.pieces.piece_of(place)
            self._left[part] -= 1
            if not self._left[part]:
                self.mask |= 1 << part
                completed = True
        return completed

    @property
    def in_flight(self) -> int:
        """Blocks asked for and not answered yet."""
        return len(self._flights)

    @property
    def done(self) -> bool:
        """Tells whether every block is here."""
        return not self.missing
