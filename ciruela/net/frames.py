"""Whole messages in single frames, past Autobahn: built here, and taken here as they come (RFC 6455 5.2).

Autobahn does the handshake, control frames, fragments, and everything that is wrong. What it takes for each frame and each piece of one is
more than all else that is done with a block, so messages go around it: measured in ``docs/explanation/benchmarks.rst``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from socket import socket
from typing import Any, NamedTuple

from autobahn.websocket.xormasker import create_xor_masker  # type: ignore[attr-defined]

BINARY = 0x82
"""First byte of the only frame of a binary message."""

CLOSE = 0x88
"""First byte of a close frame."""

MASKED = 0x80
MASK_BYTES = 4
MASKS = 256

_SHORT, _LONG = 126, 127


def _in_place() -> Callable[[bytearray, bytes], None]:
    """Autobahn's native masking without its three copies where it is there, Autobahn's own elsewhere."""

    def slowly(data: bytearray, mask: bytes) -> None:
        data[:] = create_xor_masker(mask, len(data)).process(bytes(data))

    try:
        from _nvx_xormasker import ffi, lib  # type: ignore[import-not-found]
    except ImportError:
        return slowly
    sse2 = 2

    def natively(data: bytearray, mask: bytes) -> None:
        key = ffi.new("uint8_t[4]", mask)
        masker: Any = ffi.gc(lib.nvx_xormask_new(key), lib.nvx_xormask_free)
        lib.nvx_xormask_set_impl(masker, sse2)
        lib.nvx_xormask_process(masker, ffi.from_buffer("uint8_t[]", data), len(data))

    return natively


NATIVE = importlib.util.find_spec("_nvx_xormasker") is not None
"""Tells whether Autobahn's native code is there; without it an upload runs at a fortieth of the speed."""

apply_mask = _in_place()
"""Mask, or unmask, all of a buffer with a key of four bytes."""


class FrameHead(NamedTuple):
    """The head of a frame: where its payload starts, the bytes of that, and the key it is masked with."""

    start: int
    length: int
    mask: bytes


def head_of(data: bytes, masked: bool) -> FrameHead | None:
    """The head at the start of ``data``, if all of it is there and it is that of a whole binary message; None for everything else.

    ``masked``: whether the other side has to mask. A length that is not written in the shortest way is not for us.
    """
    if len(data) < 2 or data[0] != BINARY or (data[1] >= MASKED) != masked:
        return None
    length, start = data[1] & ~MASKED, 2
    if length >= _SHORT:
        least, start = (_SHORT, 4) if length == _SHORT else (1 << 16, 10)
        length = int.from_bytes(data[2:start], "big")
        if length < least:
            return None
    mask_end = start + MASK_BYTES if masked else start
    return FrameHead(mask_end, length, data[start:mask_end]) if len(data) >= mask_end else None


def head_for(length: int, mask: bytes) -> bytes:
    """The head of a frame with a whole binary message of ``length`` bytes, masked with ``mask`` unless that is empty."""
    flag = MASKED if mask else 0
    if length < _SHORT:
        return bytes((BINARY, flag | length)) + mask
    if length < 1 << 16:
        return bytes((BINARY, flag | _SHORT)) + length.to_bytes(2, "big") + mask
    return bytes((BINARY, flag | _LONG)) + length.to_bytes(8, "big") + mask


class Masks:
    """Keys that nobody can foresee (RFC 6455 5.3)."""

    def __init__(self) -> None:
        self._random = b""
        self._at = 0

    def next(self) -> bytes:
        """A new key. The system is asked for many at a time."""
        if self._at == len(self._random):
            self._random, self._at = os.urandom(MASKS * MASK_BYTES), 0
        self._at += MASK_BYTES
        return self._random[self._at - MASK_BYTES : self._at]


def masked(data: bytes | memoryview, mask: bytes) -> bytes:
    """``data`` under ``mask``; as it is where that is empty."""
    if not mask:
        return bytes(data)
    hidden = bytearray(data)
    apply_mask(hidden, mask)
    return bytes(hidden)


class Inbound:
    """A message that is on its way, in one buffer of its size."""

    def __init__(self, head: FrameHead) -> None:
        self._mask = head.mask
        self._buffer = bytearray(head.length)
        self._got = 0

    @property
    def length(self) -> int:
        """Bytes of all of it."""
        return len(self._buffer)

    @property
    def got(self) -> int:
        """Bytes that are here."""
        return self._got

    @property
    def rest(self) -> int:
        """Bytes that have not come yet."""
        return len(self._buffer) - self._got

    def take(self, data: bytes, at: int = 0) -> int:
        """Take what belongs to it, from ``at`` on. Where in ``data`` that ends."""
        end = min(len(data), at + self.rest)
        until = self._got + end - at
        self._buffer[self._got : until] = memoryview(data)[at:end]
        self._got = until
        return end

    def fill(self, source: socket) -> int:
        """Take what the kernel has of it already; how many bytes. A fault is the transport's: it will find it."""
        try:
            size = source.recv_into(memoryview(self._buffer)[self._got :])
        except OSError:
            return 0
        self._got += size
        return size

    def message(self) -> bytearray:
        """All of it, once nothing is missing."""
        if self._mask:
            apply_mask(self._buffer, self._mask)
            self._mask = b""
        return self._buffer
