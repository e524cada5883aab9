"""Answers with blocks, to bytes and back without cbor copying every one of them."""

from __future__ import annotations

import cbor2

from ciruela.model.ids import Block
from ciruela.proto import fields
from ciruela.proto.messages import BlockData, BlocksData

DATA_FIELD = b"\xa1\x64data"
"""A map with nothing but ``data``, up to its content."""

_BLOCK = b"\x84\x02\x68GetBlock"
_BLOCKS = b"\x84\x02\x69GetBlocks"
_BYTES, _ARRAY = 0x40, 0x80


def block(number: int, answer: BlockData) -> bytes:
    """The answer to GetBlock ``number``."""
    return b"".join((_BLOCK, cbor2.dumps(number), DATA_FIELD, _head(_BYTES, len(answer.data)), answer.data))


def many(number: int, answer: BlocksData) -> bytes:
    """The answer to GetBlocks ``number``."""
    packed = [at for at, part in enumerate(answer.parts) if part.packed]
    small = cbor2.dumps({"lacks": fields.runs_of(answer.lacks), "packed": fields.runs_of(packed), "parts": []})
    pieces: list[Block] = [_BLOCKS, cbor2.dumps(number), small[:-1], _head(_ARRAY, len(answer.parts))]
    for part in answer.parts:
        pieces += (_head(_BYTES, len(part.data)), part.data)
    return b"".join(pieces)


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


def bytes_head(length: int) -> bytes:
    """What stands before a byte string of ``length`` bytes."""
    return _head(_BYTES, length)


def _head(major: int, length: int) -> bytes:
    if length < 24:
        return bytes((major | length,))
    if length < 0x100:
        return bytes((major | 24, length))
    if length < 0x10000:
        return bytes((major | 25,)) + length.to_bytes(2, "big")
    return bytes((major | 26,)) + length.to_bytes(4, "big") if length < 1 << 32 else bytes((major | 27,)) + length.to_bytes(8, "big")
