"""Which node takes which part of an image from the client: every part once, before any of them twice. Values only, no I/O.

The nodes give each other the rest, so the client sends little more than one copy, whatever the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ciruela.model.errors import RemoteError
from ciruela.model.mask import Pieces

BytesOf = Callable[[Sequence[int]], int]

BYTES_AT_ONCE = 2 * 1024 * 1024
"""A node is promised about so much at a time: faster nodes come back sooner, and get more."""


class Shares:
    """The pieces of one image of ``total_bytes``, and to whom each is promised.

    ``own``: the pieces that are promised at all; of an edited image, what the client itself has. The nodes have the others.
    ``bytes_of`` gives the size of some blocks, where somebody wants to know :attr:`given_bytes`.
    """

    def __init__(self, pieces: Pieces, total_bytes: int, own: int | None = None, bytes_of: BytesOf | None = None) -> None:
        self._pieces = pieces
        self._bytes_of = bytes_of
        self._seen = bytearray(pieces.block_count if bytes_of is not None else 0)
        self._given_bytes = 0
        self._own = pieces.full if own is None else own
        self._at_once = max(1, min(pieces.count, BYTES_AT_ONCE * pieces.count // max(1, total_bytes)))
        self._promised: dict[Hashable, int] = {}
        self._lacked = self._given = 0

    def take(self, taker: Hashable, missing: bytes) -> bytes:
        """Promise the first of the pieces ``missing`` to ``taker``. Gives them as a mask; 0 when the others have all of them.

        Raises RemoteError for a mask that is not one of this image.
        """
        try:
            free = self._pieces.from_bytes(missing) & self._own
        except ValueError as error:
            raise RemoteError(str(error)) from None
        if taker not in self._promised:
            self._lacked |= free  # the first time a node names everything that it has not found on its own disk
        for other, mask in self._promised.items():
            if other != taker:
                free &= ~mask
        chosen = 0
        for _ in range(self._at_once):
            lowest = free & -free
            chosen |= lowest
            free ^= lowest
        self._promised[taker] = self._promised.get(taker, 0) | chosen
        self._given |= chosen
        return self._pieces.to_bytes(chosen)

    @property
    def given(self) -> float | None:
        """How much of what nodes lack was promised to any of them, 0.0 to 1.0; None while no node has said what it lacks."""
        return (self._given & self._lacked).bit_count() / self._lacked.bit_count() if self._lacked else None

    def gave(self, numbers: Sequence[int]) -> None:
        """Some blocks went out, perhaps not for the first time."""
        fresh = [number for number in numbers if number < len(self._seen) and not self._seen[number]]
        if self._bytes_of is not None and fresh:
            self._given_bytes += self._bytes_of(fresh)
            for number in fresh:
                self._seen[number] = 1

    @property
    def given_bytes(self) -> int | None:
        """The size of all blocks that went out, each counted once, as they are in the image; None where that is not counted."""
        return None if self._bytes_of is None else self._given_bytes

    def left(self, taker: Hashable) -> None:
        """``taker`` is gone; what it did not pass on others may take."""
        self._promised.pop(taker, None)
