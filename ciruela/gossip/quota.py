"""Memory with a bound for each who fills it: whoever says too much loses what it said first, not what others said (threats A34)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741  owner
K = TypeVar("K", bound=Hashable)

PER_OWNER = 4096
"""Entries that one peer may fill in one table."""


class Quota(Generic[O, K]):
    """Which keys belong to which owner, oldest first. It holds no values: it says what to forget.

    A key belongs to whoever spoke of it last.
    """

    def __init__(self, limit: int = PER_OWNER) -> None:
        self._limit = limit
        self._owned: dict[O, dict[K, float]] = {}
        self._owners: dict[K, O] = {}

    def touch(self, owner: O, key: K, now_s: float) -> K | None:
        """``owner`` spoke of ``key`` at ``now_s``; it is now its newest. Returns the key that gives way, if one must."""
        if self._owners.get(key, owner) != owner:
            self.drop(key)
        keys = self._owned.setdefault(owner, {})
        gone = None
        if keys.pop(key, None) is None and len(keys) >= self._limit:
            gone = next(iter(keys))
            del keys[gone]
            del self._owners[gone]
        keys[key] = now_s
        self._owners[key] = owner
        return gone

    def drop(self, key: K) -> None:
        """``key`` belongs to nobody any more."""
        if key in self._owners:
            owner = self._owners.pop(key)
            del self._owned[owner][key]
            if not self._owned[owner]:
                del self._owned[owner]

    def expired(self, before_s: float) -> list[tuple[O, K]]:
        """Remove and return all that was not touched since ``before_s``."""
        found: list[tuple[O, K]] = []
        for owner in list(self._owned):
            keys = self._owned[owner]
            while keys:
                key = next(iter(keys))
                if keys[key] >= before_s:
                    break
                del keys[key]
                del self._owners[key]
                found.append((owner, key))
            if not keys:
                del self._owned[owner]
        return found

    def __len__(self) -> int:
        return len(self._owners)
