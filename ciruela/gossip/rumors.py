"""In which order facts are said: what changed last and was said least comes first (after memberlist's transmit-limited queue).

A fact is *hot* until it was said often enough to have reached everybody with high probability; then it is *cold* and takes its turn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

HEAT = 3
MOST_HEAT = 48


def heat_for(nodes: int) -> int:
    """How often each node says a fact while it is hot: ``3 * log2(nodes + 2)`` times.

    A rumor that every node passes on k times misses a node with probability ``e**-k``; the logarithm pays for loss and growth.
    """
    return min(MOST_HEAT, math.ceil(HEAT * math.log2(nodes + 2)))


class Rumors(Generic[K]):
    """The facts of one kind, by key. ``fading``: a fact that is no longer hot is dropped instead of taking turns."""

    def __init__(self, limit: int = 16384, fading: bool = False) -> None:
        self._limit = limit
        self._fading = fading
        self._said: dict[K, int] = {}
        self._hot: dict[int, dict[K, None]] = {}
        self._cold: dict[K, None] = {}

    def __len__(self) -> int:
        return len(self._said)

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self._said))

    def __contains__(self, key: K) -> bool:
        return key in self._said

    def put(self, key: K) -> None:
        """``key`` is new or has changed: it is as hot as can be. Beyond the limit the oldest of the coldest is dropped."""
        self.drop(key)
        if len(self._said) >= self._limit:
            self.drop(next(iter(self._cold or self._hot[max(self._hot)])))
        self._add(key, 0)

    def drop(self, key: K) -> None:
        """``key`` is no fact any more."""
        count = self._said.pop(key, None)
        if count == MOST_HEAT:
            del self._cold[key]
        elif count is not None:
            del self._hot[count][key]
            if not self._hot[count]:
                del self._hot[count]

    def _add(self, key: K, count: int) -> None:
        self._said[key] = count
        level = self._cold if count == MOST_HEAT else self._hot.setdefault(count, {})
        level[key] = None

    def said(self, key: K, heat: int) -> None:
        """``key`` was said once more; with ``heat`` times it is cold."""
        count = self._said.get(key)
        if count is None:
            return
        self.drop(key)
        count = count + 1 if count + 1 < heat else MOST_HEAT
        if count < MOST_HEAT or not self._fading:
            self._add(key, count)

    @property
    def any_hot(self) -> bool:
        """Whether a key is hot."""
        return bool(self._hot)

    def hot(self) -> Iterator[K]:
        """Keys that are hot, least said first, then longest waiting."""
        for count in sorted(self._hot):
            yield from tuple(self._hot.get(count, ()))

    def cold(self) -> Iterator[K]:
        """Keys that take their turn, longest waiting first."""
        yield from tuple(self._cold)
