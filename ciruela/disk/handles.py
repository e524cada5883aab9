"""How many directories and files the whole process keeps open between uses, and how many trees are put together at a time (finding K8.3).

Each open tree may keep a few handles whatever else is open (``tree``); what it keeps beyond that comes from one budget. With an empty
budget it opens again what it closed, which is slower and always works.
"""

from __future__ import annotations

from threading import Lock

OTHERS = 96
"""Descriptors that are left to sockets, logs, and what threads open for a moment."""

MOST_KEPT = 4096
LEAST_KEPT = 8

EACH = 6
"""Descriptors that one tree which is being put together holds at least, and a commit beside it."""

LEAST_TREES = 4


class Handles:
    """A number of handles that may be kept open. Used from several threads."""

    def __init__(self, most: int) -> None:
        self._lock = Lock()
        self._most = most
        self._taken = 0

    def resize(self, most: int) -> None:
        """So many may be kept from now on; what is kept already stays."""
        with self._lock:
            self._most = most

    def take(self) -> bool:
        """Take one. False, and nothing is taken, when there is none."""
        with self._lock:
            if self._taken >= self._most:
                return False
            self._taken += 1
            return True

    def give_back(self, count: int = 1) -> None:
        """These are closed."""
        with self._lock:
            self._taken -= count

    @property
    def taken(self) -> int:
        """How many are kept now."""
        return self._taken


KEPT = Handles(MOST_KEPT)
"""The budget of this process."""


def kept_of(limit: int) -> int:
    """How many handles are kept by a process that may have ``limit`` descriptors."""
    return max(LEAST_KEPT, min(MOST_KEPT, (limit - OTHERS) // 2))


def trees_of(limit: int) -> int:
    """How many trees are put together at a time by a process that may have ``limit`` descriptors."""
    return max(LEAST_TREES, (limit - OTHERS) // 2 // EACH)
