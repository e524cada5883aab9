"""How much one connection may send and ask, and how long we wait for it (threats 6.3, A19 to A25)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ORDINARY_BYTES = 256 * 1024
"""Largest message that may come at any time (threats A21)."""

BULK_BYTES = 1024 * 1024 + 64 * 1024
"""Largest message while an answer with many blocks is due."""

STRANGER_BYTES = 64 * 1024
"""The same from one who has not shown a valid signature yet and is no configured peer (threats 6.3)."""

AHEAD_BYTES = STRANGER_BYTES
"""Room is made for a message of so many bytes before they are here, whoever sends it; for a longer one only when it was asked for."""

STRANGER_QUEUE_BYTES = 256 * 1024
"""What may be queued for such a one before no further request of it is begun."""

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
"""Whether a numeric address is one of a configured peer."""


def nobody(host: str) -> bool:  # noqa: ARG001  an IsPeer
    """No address is a peer's."""
    return False


class Patience:
    """When to give up one connection. Time is counted in pulses, so that a stall of this process is nobody's fault."""

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
        if self._silent_s >= patience_s:
            return f"nothing was heard for {patience_s:g} s"
        self._open_s += self._pulse_s
        if silent_so_far and self._open_s >= limits.speak_s:
            return f"it said nothing for {limits.speak_s:g} s"
        self._useless_s += self._pulse_s
        if self._useless_s >= limits.stranger_s:
            return f"nobody knows it, and it asked for nothing that is granted for {limits.stranger_s:g} s"
        self._due_s = self._due_s + self._pulse_s if large_due and not (coming_bytes or held) else 0.0
        if self._due_s >= limits.large_s:
            return f"an index or a list that it was asked for did not come for {limits.large_s:g} s"
        return None if held else self._slow(coming_bytes)

    def _slow(self, coming_bytes: int) -> str | None:
        if not coming_bytes:
            self.whole()
            return None
        least = self._limits.large_bytes_s if coming_bytes > BULK_BYTES else self._limits.part_bytes_s
        surely_s = self._part_s  # a part of the first pulse may have passed before the message began
        self._part_s += self._pulse_s
        if surely_s >= self._limits.part_s and self._part_bytes < surely_s * least:
            return f"its message came with less than {least} bytes a second"
        return None
