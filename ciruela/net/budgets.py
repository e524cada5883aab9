"""Memory that all connections of a node share: messages that are not whole yet, and answers that are not read (threats A21, A25)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MIB = 1024 * 1024

PARTIAL_BYTES = 128 * MIB
"""What may be here of large messages that are not whole; more than the largest of them."""

QUEUED_BYTES = 64 * MIB
"""With so much queued for others no further large answer is begun."""

STRANGER_QUEUED_BYTES = QUEUED_BYTES // 4
"""The same for those who are not known, all together: they cannot take the answers of the others away."""

MOST_AT_WORK = 8
"""Large answers that are being made for others at a time, and as many for those who are not known."""


class Holder(Protocol):
    """A link with a part of a large message."""

    def overfull(self) -> None:
        """Give up: all links together hold too much, and the message of this one is under way for longest."""


class Partials:
    """The parts of large messages that are here, by link, in the order in which the messages began."""

    def __init__(self, most_bytes: int = PARTIAL_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held: dict[Holder, int] = {}
        self.bytes = 0

    def hold(self, link: Holder, size: int) -> None:
        """``link`` has ``size`` bytes of its message by now. When that is too much the link goes whose message began first."""
        self.bytes += size - self._held.get(link, 0)
        self._held[link] = size
        while self.bytes > self._most_bytes:
            oldest = next(iter(self._held))
            self.release(oldest)
            oldest.overfull()

    def release(self, link: Holder) -> None:
        """The message of ``link`` is whole, or the link is gone."""
        self.bytes -= self._held.pop(link, 0)


@dataclass(slots=True)
class _Side:
    """What known links, or those that are not known, take up. ``waiting``: who is told when there is room, in the order of asking."""

    most_bytes: int
    queued_bytes: int
    at_work: int
    waiting: dict[Callable[[], None], None]

    @property
    def room(self) -> bool:
        """Whether a large answer may be begun."""
        return self.at_work < MOST_AT_WORK and self.queued_bytes < self.most_bytes


class Answers:
    """Large answers of all links: how many are being made, and the bytes that are queued for who does not read them."""

    def __init__(self, most_bytes: int = QUEUED_BYTES, stranger_bytes: int = STRANGER_QUEUED_BYTES) -> None:
        self._sides = {True: _Side(most_bytes, 0, 0, {}), False: _Side(stranger_bytes, 0, 0, {})}

    @property
    def queued_bytes(self) -> int:
        """All that is queued."""
        return sum(side.queued_bytes for side in self._sides.values())

    def begin(self, known: bool, again: Callable[[], None]) -> bool:
        """Whether a large answer may be begun now for a link that is ``known`` or not; else ``again`` is called once there may be room."""
        side = self._sides[known]
        if side.room:
            side.waiting.pop(again, None)
            side.at_work += 1
            return True
        side.waiting[again] = None
        return False

    def made(self, known: bool) -> None:
        """An answer that was begun has been made, or will not be."""
        self._sides[known].at_work -= 1
        self._tell(known)

    def queued(self, known: bool, more_bytes: int) -> None:
        """So much more, or less, is queued for a link."""
        self._sides[known].queued_bytes += more_bytes
        if more_bytes < 0:
            self._tell(known)

    def forget(self, again: Callable[[], None]) -> None:
        """Nobody waits with ``again`` any more."""
        for side in self._sides.values():
            side.waiting.pop(again, None)

    def _tell(self, known: bool) -> None:
        side = self._sides[known]
        for again in list(side.waiting):
            if not side.room:
                return
            if side.waiting.pop(again, again) is None:
                again()


class Budgets:
    """What accepted and made connections of one node share."""

    def __init__(self, partials: Partials | None = None, answers: Answers | None = None) -> None:
        self.partials = partials or Partials()
        self.answers = answers or Answers()
