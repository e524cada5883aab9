"""The answer of version 1 with one block, to bytes and back without cbor going over every item: there is one for each 32 KiB."""

from __future__ import annotations

import cbor2

from ciruela.proto.messages import BlockData

DATA_FIELD = b"\xa1\x64data"
"""A map with nothing but ``data``, up to its content."""

_BLOCK = b"\x84\x02\x68GetBlock"


def block(number: int, answer: BlockData) -> bytes:
    """The answer to GetBlock ``number``."""
    return b"".join((_BLOCK, cbor2.dumps(number), DATA_FIELD, _head(len(answer.data)), answer.data))


def only_data(data: bytes | bytearray, at: int) -> bytes | None:
    """The byte string that begins at ``at`` and ends with the message, without another look at each item; None for other forms."""
    if at >= len(data):
        return None
    head = data[at]
    at += 1
    if 0x58 <= head <= 0x5B:
        width = 1 << (head - 0x58)
        length = int.from_bytes(data[at : at + width], "big")
        at += width
    else:
        length = head & 31
        if head >> 5 != 2 or length > 23:
            return None
    return bytes(data[at:]) if length == len(data) - at else None


def _head(length: int) -> bytes:
    if length < 24:
        return bytes((0x40 | length,))
    if length < 0x100:
        return bytes((0x58, length))
    if length < 0x10000:
        return b"\x59" + length.to_bytes(2, "big")
    return (b"\x5a" + length.to_bytes(4, "big")) if length < 1 << 32 else (b"\x5b" + length.to_bytes(8, "big"))
