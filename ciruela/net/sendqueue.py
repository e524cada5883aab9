# ruff: noqa: N802  half of the names here are Twisted's
"""Send queue of one connection: bytes for which the transport has no room yet, in chunks that can be counted (threats A25)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from ciruela.net import frames

CHUNK_BYTES = 256 * 1024
"""So much is handed to the transport at a time."""


_Chunk = tuple[memoryview, bytes]
"""Bytes, and the mask under which they are sent."""


@implementer(IPushProducer)
class SendQueue:
    """Stands before ``transport``, which tells it when it is full and when it has room.

    ``changed`` is called when what waits has changed, ``stalled`` when the transport was full for ``stall_s``. ``sent_bytes`` are those
    that the transport has taken.
    """

    def __init__(
        self, transport: Any, clock: IReactorTime, stall_s: float, changed: Callable[[], None], stalled: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._stall_s = stall_s
        self._changed = changed
        self._stalled = stalled
        self._going: deque[_Chunk] = deque()
        self._urgent: deque[deque[_Chunk]] = deque()
        self._waiting: deque[deque[_Chunk] | Callable[[], None]] = deque()
        self._full = False
        self._stall: IDelayedCall | None = None
        self._ended = False
        self.bytes = 0
        self.sent_bytes = 0
        transport.SEND_LIMIT = CHUNK_BYTES  # of Twisted's own transports: what one call of the kernel is given

    def put(self, *parts: bytes, mask: bytes = b"", urgent: bool = False) -> None:
        """Send ``parts`` as one message, the last two under ``mask`` if there is one, behind all that waits.

        What is ``urgent`` goes before whole messages that wait: it is small, and others wait for it.
        """
        masks = (b"", mask, mask)
        if not self._full and not self._busy and sum(map(len, parts)) <= CHUNK_BYTES:
            for part, own in zip(parts, masks, strict=False):
                self.sent_bytes += len(part)
                self._transport.write(frames.masked(part, own))
            return
        chunks: deque[_Chunk] = deque()
        for part, own in zip(parts, masks, strict=False):
            view = memoryview(part)
            chunks += [(view[at : at + CHUNK_BYTES], own) for at in range(0, len(part), CHUNK_BYTES)]
            self.bytes += len(part)
        (self._urgent if urgent else self._waiting).append(chunks)
        self._flush()

    @property
    def _busy(self) -> bool:
        return bool(self._going or self._urgent or self._waiting)

    def when_sent(self, call: Callable[[], None]) -> None:
        """Calls ``call`` when the transport has taken, and is not full of, all that was put here so far."""
        self._waiting.append(call)
        self._flush()

    def _flush(self) -> None:
        while self._busy and not self._full:
            if self._going:
                chunk, mask = self._going.popleft()
                self.bytes -= len(chunk)
                self.sent_bytes += len(chunk)
                self._transport.write(frames.masked(chunk, mask))
            elif self._urgent:
                self._going = self._urgent.popleft()
            elif callable(following := self._waiting.popleft()):
                following()
            else:
                self._going = following
        self._changed()

    def pauseProducing(self) -> None:
        """Twisted: the transport is full."""
        self._full = True
        if self._stall is None and not self._ended:
            self._stall = self._clock.callLater(self._stall_s, self._too_late)  # guard: A25 F19

    def resumeProducing(self) -> None:
        """Twisted: the transport has room."""
        self._full = False
        self._cancel_stall()
        self._flush()

    def stopProducing(self) -> None:
        """Twisted: the transport is gone; connectionLost says more."""

    def end(self) -> None:
        """Let go of everything: the connection is gone."""
        self._ended = True
        self._cancel_stall()
        self._waiting.clear()
        self._urgent.clear()
        self._going.clear()
        self.bytes = 0

    def _too_late(self) -> None:
        self._stall = None
        self._stalled()

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
