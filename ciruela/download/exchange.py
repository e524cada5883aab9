"""Who takes which slice from whom, among nodes that fetch the same image at the same time. A pure function over values.

A slice that has just arrived at one node is wanted by all others at once. If all of them took it from there, that node would send
everything and the others nothing. So each slice spreads along a tree of its own, which every node computes alike: it is taken from those
next to oneself in that tree, whoever of them has it first. The trees differ from slice to slice: all nodes give about as much as they take.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

from ciruela.model.mask import SLICES

LAST = 1 << 32
"""Above all ranks."""


@lru_cache(maxsize=1024)
def _ranks(machine: bytes) -> tuple[int, ...]:
    """For each slice where this machine stands in its order."""
    return tuple(crc32(machine + bytes((number,))) for number in range(SLICES))


@lru_cache(maxsize=4096)
def neighbors(number: int, me: bytes, others: tuple[bytes, ...], served: frozenset[bytes]) -> tuple[bytes, ...]:
    """The machines next to this one in the tree of slice ``number``, at most three. ``others`` are all that have, or fetch, the image.

    ``served`` are those that a client gives to. What comes from there they pass on to all their neighbors, anything else to all but one; so
    they have to be leaves more often than others, the fewer they are.
    """
    late = LAST // (2 * len(served)) if served else 0

    def place(machine: bytes) -> tuple[int, bytes]:
        rank = _ranks(machine)[number]
        return (rank + LAST if machine in served and rank < late else rank), machine

    order = sorted((*others, me), key=place)
    at = order.index(me)
    places = (*(((at - 1) // 2,) if at else ()), 2 * at + 1, 2 * at + 2)
    return tuple(order[one] for one in places if one < len(order))
