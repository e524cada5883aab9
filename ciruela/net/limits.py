"""Limits on what one connection may send and ask, and how long we wait for it (threats 6.3, A19 to A25).

The C library is told to keep the memory of large messages and blocks for the next ones, instead of giving it back each time.

Budgets of memory that all connections of a node share: messages that are not whole yet, and answers that are not read (threats A21, A25).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MIB = 1024 * 1024

PARTIAL_BYTES = 128 * MIB
"""Most bytes of large messages that are not whole; more than the largest of them."""

QUEUED_BYTES = 64 * MIB
"""With so much queued for others no further large answer is begun."""

STRANGER_QUEUED_BYTES = QUEUED_BYTES // 4
"""The same for those who are not known, all together: they cannot take the answers of the others away."""

MOST_AT_WORK = 8
"""Large answers that are being made for others at a time, and as many for those who are not known."""


class PartialHolder(Protocol):
    """A link with a part of a large message."""

    def overfull(self) -> None:
        """Give up: all links together hold too much, and the message of this one is under way for longest."""


class Partials:
    """The parts of large messages that are here, by link, in the order in which the messages began."""

    def __init__(self, most_bytes: int = PARTIAL_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held: dict[PartialHolder, int] = {}
        self.bytes = 0

    def hold(self, link: PartialHolder, size: int) -> None:
        """``link`` has ``size`` bytes of its message by now. When that is too much the link goes whose message began first."""
        self.bytes += size - self._held.get(link, 0)
        self._held[link] = size
        while self.bytes > self._most_bytes:
            oldest = next(iter(self._held))
            self.release(oldest)
            oldest.overfull()

    def release(self, link: PartialHolder) -> None:
        """The message of ``link`` is whole, or the link is gone."""
        self.bytes -= self._held.pop(link, 0)


@dataclass(slots=True)
class _Side:
    """Share of the budget of known links, or of unknown ones. ``waiting``: who is told when there is room, in the order of asking."""

    most_bytes: int
    queued_bytes: int
    at_work: int
    waiting: dict[Callable[[], None], None]

    @property
    def room(self) -> bool:
        """Tells whether a large answer may be begun."""
        return self.at_work < MOST_AT_WORK and self.queued_bytes < self.most_bytes  # guard: S7, without 2; S7, without 1


class AnswerBudget:
    """Large answers of all links: how many are being made, and the bytes that are queued for who does not read them."""

    def __init__(self, most_bytes: int = QUEUED_BYTES, stranger_bytes: int = STRANGER_QUEUED_BYTES) -> None:
        self._sides = {True: _Side(most_bytes, 0, 0, {}), False: _Side(stranger_bytes, 0, 0, {})}

    @property
    def queued_bytes(self) -> int:
        """All that is queued."""
        return sum(side.queued_bytes for side in self._sides.values())

    def begin(self, known: bool, again: Callable[[], None]) -> bool:
        """Tells whether a large answer to a ``known`` link, or another, may begin, and counts it; else ``again`` is called when it may."""
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
    """Budgets that the accepted and made connections of one node share."""

    def __init__(self, partials: Partials | None = None, answers: AnswerBudget | None = None) -> None:
        self.partials = partials or Partials()
        self.answers = answers or AnswerBudget()


KEPT_BYTES = 32 * 1024 * 1024
"""So much that is free at the end of the heap is not given back: more than is on its way at one time."""

LARGE_BLOCK_BYTES = 8 * 1024 * 1024
"""Least size of a block with memory of its own, which is given back at once: an index of an image with very many files."""

ARENAS = 2
"""Heaps of the process. By default each thread gets its own, with 64 MiB of addresses, and what one has freed is no use to others."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of mallopt(3)."""


def keep() -> bool:
    """Ask for it, once for the process; False where the C library is another one than glibc, which nothing depends on.

    By default glibc takes new pages for each message of a megabyte, and the kernel has to empty them: a quarter of a client's work.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_TRIM_THRESHOLD, KEPT_BYTES), (_MMAP_THRESHOLD, LARGE_BLOCK_BYTES), (_ARENA_MAX, ARENAS))
    done = [bool(mallopt(what, value)) for what, value in settings]
    return all(done)


ORDINARY_BYTES = 256 * 1024
"""Largest message that may come at any time (threats A21)."""

BULK_BYTES = 1024 * 1024 + 64 * 1024
"""Largest message while an answer with many blocks is due."""

STRANGER_BYTES = 64 * 1024
"""The same from one who has not shown a valid signature yet and is no configured peer (threats 6.3)."""

AHEAD_BYTES = STRANGER_BYTES
"""Room is made for a message of so many bytes before they are here, whoever sends it; for a longer one only when it was asked for."""

STRANGER_QUEUE_BYTES = 256 * 1024
"""Bytes queued for such a one from which on no further request of it is begun."""

ENVELOPE_BYTES = 64 * 1024
"""Room for what stands around an index in its message."""

LARGE_BYTES = 101 * 1024 * 1024 + ENVELOPE_BYTES
"""Largest answer with an index: the reference's frame limit (protocol section 2.2), and room for the envelope."""

NOISE_A_SECOND = 10
NOISE_AT_ONCE = 300
"""Frames that say nothing: pings, pongs, texts, notifications that nobody knows. A client pings once a second, at all times."""

FRAMES_A_TURN = 256
"""Steps that are done with the frames of one connection before others have their turn."""

LEAST_LARGE_BYTES = 16 * 1024 * 1024
"""``max-index-bytes`` does not make such answers smaller than this: the list of a base dir comes in one, too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience with one connection, in seconds, and what may be queued for it, in bytes.

    ``speak_s``: how long after the handshake the first message may take, unless a configured peer is there. ``stranger_s``: how long one
    who is not known may stay without a request that is granted, or taking ``large_bytes_s`` of what is sent. ``part_s`` and
    ``part_bytes_s``: a message that is not whole after so long has to come at this rate; one of more than BULK_BYTES at ``large_bytes_s``.
    ``large_bytes``: the longest answer with an index. ``large_s``: how long such an answer may be due and not begin.
    """

    silence_s: float = 15.0
    handshake_s: float = 5.0
    close_s: float = 1.0
    stall_s: float = 60.0
    queue_bytes: int = 4 * 1024 * 1024
    speak_s: float = 10.0
    part_s: float = 5.0
    part_bytes_s: int = 1024
    large_bytes_s: int = 50 * 1024
    large_bytes: int = LARGE_BYTES
    large_s: float = 75.0
    stranger_s: float = 60.0


LIMITS = Limits()


def limits_for(max_index_bytes: int) -> Limits:
    """The limits of a node that takes indexes of ``max_index_bytes``."""
    return Limits(large_bytes=min(LARGE_BYTES, max(max_index_bytes, LEAST_LARGE_BYTES) + ENVELOPE_BYTES))


IsPeer = Callable[[str], bool]
"""Function that tells whether a numeric address is one of a configured peer."""


def nobody(host: str) -> bool:  # noqa: ARG001  an IsPeer
    """No address is a peer's."""
    return False


class IdleTimeout:
    """Idle timeout of one connection. Time is counted in pulses, so that a stall of this process is nobody's fault."""

    def __init__(self, limits: Limits, pulse_s: float) -> None:
        self._limits = limits
        self._pulse_s = pulse_s
        self._heard = False
        self._open_s = self._silent_s = self._part_s = self._useless_s = self._due_s = 0.0
        self._part_bytes = 0

    def heard(self, count: int) -> None:
        """So many bytes came."""
        self._heard = True
        self._part_bytes += count

    def whole(self) -> None:
        """A message is whole."""
        self._part_s = 0.0
        self._part_bytes = 0

    def useful(self) -> None:
        """The connection is known, or a request that came on it was granted."""
        self._useless_s = 0.0

    def sent(self, count: int) -> None:
        """So many bytes were taken since the last pulse."""
        if count >= self._pulse_s * self._limits.large_bytes_s:
            self.useful()

    def beat(self, *, held: bool, coming_bytes: int, silent_so_far: bool, large_due: bool) -> str | None:
        """One pulse later: why the connection has to go, or None.

        ``held``: we are not reading. ``coming_bytes``: the length of the message that is on its way, or what is known of it; 0 for none.
        ``silent_so_far``: a stranger has not said anything yet. ``large_due``: an answer as large as an index is due.
        """
        limits = self._limits
        self._silent_s = 0.0 if self._heard else self._silent_s + self._pulse_s
        self._heard = False
        patience_s = limits.stall_s if held else limits.silence_s
        if self._silent_s >= patience_s:  # guard: A19
            return f"nothing was heard for {patience_s:g} s"
        self._open_s += self._pulse_s
        if silent_so_far and self._open_s >= limits.speak_s:  # guard: A19 F16
            return f"it said nothing for {limits.speak_s:g} s"
        self._useless_s += self._pulse_s
        if self._useless_s >= limits.stranger_s:  # guard: S9
            return f"nobody knows it, and it asked for nothing that is granted for {limits.stranger_s:g} s"
        self._due_s = self._due_s + self._pulse_s if large_due and not (coming_bytes or held) else 0.0
        if self._due_s >= limits.large_s:  # guard: S10
            return f"an index or a list that it was asked for did not come for {limits.large_s:g} s"
        return None if held else self._slow(coming_bytes)

    def _slow(self, coming_bytes: int) -> str | None:
        if not coming_bytes:
            self.whole()
            return None
        # guard: S10, -> self._limits.part_bytes_s
        least = self._limits.large_bytes_s if coming_bytes > BULK_BYTES else self._limits.part_bytes_s
        surely_s = self._part_s  # a part of the first pulse may have passed before the message began
        self._part_s += self._pulse_s
        if surely_s >= self._limits.part_s and self._part_bytes < surely_s * least:  # guard: A19 F16
            return f"its message came with less than {least} bytes a second"
        return None
