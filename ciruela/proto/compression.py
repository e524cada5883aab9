"""The blocks of one piece, compressed together with zstd where that pays.

Answers are unpacked only up to the size that the index says, so that a small frame cannot fill the memory (threats A21).
"""

from __future__ import annotations

from threading import local

import zstandard

from ciruela.model.errors import FormatError
from ciruela.model.ids import Block
from ciruela.proto.messages import BlockPart, IndexData

LEVEL = 3
SAMPLE_BYTES = 16 * 1024
"""The middle of what is to be packed is tried first: of data that is compressed already not even a tenth can be saved."""

WORTH = 0.9
"""Packed bytes have to be less than this share of the plain ones."""

LEAST_BYTES = 256
"""Less than this is not tried."""


class _Contexts(local):
    """zstd contexts of one thread; making them takes longer than packing a small piece. No two threads may share them."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_own = _Contexts()


def part(data: bytes, may_pack: bool) -> BlockPart:
    """A part of an answer, packed where it may be and that pays."""
    packed = pack(data) if may_pack else None
    return BlockPart(data) if packed is None else BlockPart(packed, packed=True)


def pack(data: bytes) -> bytes | None:
    """One frame of zstd, which names its size; None where it would not be clearly smaller than ``data``."""
    if len(data) < LEAST_BYTES:
        return None
    compressor = _own.compressor
    if len(data) > 4 * SAMPLE_BYTES:
        middle = len(data) // 2
        sample = memoryview(data)[middle : middle + SAMPLE_BYTES]
        if len(compressor.compress(sample)) > WORTH * SAMPLE_BYTES:
            return None
    packed = compressor.compress(data)
    return packed if len(packed) < WORTH * len(data) else None


def index(data: bytes, may_pack: bool) -> IndexData:
    """The answer with an index, packed where it may be and that pays."""
    packed = pack(data) if may_pack else None
    return IndexData(data) if packed is None else IndexData(packed, packed=True)


def unpack(packed: Block, size: int) -> bytes:
    """The ``size`` bytes in a frame of zstd. Raises FormatError for one that is damaged, or holds more, less, or something behind it."""
    if _says(packed) != size:
        raise FormatError(f"a packed answer does not hold {size} bytes")
    return _unpacked(packed, size)


def unpack_index(packed: bytes, most: int) -> bytes:
    """The index in a frame of zstd. Raises FormatError for one that is damaged, or holds more than ``most`` bytes."""
    size = _says(packed)
    if not 0 <= size <= most:
        raise FormatError(f"a packed index does not say its size, or has more than {most} bytes")
    return _unpacked(packed, size)


def _says(packed: Block) -> int:
    """Reads the size that a frame says it holds, in bytes; -1 when it does not say so. Raises FormatError."""
    try:
        return zstandard.frame_content_size(packed)
    except zstandard.ZstdError as error:
        raise FormatError(f"a packed answer cannot be unpacked: {error}") from None


def _unpacked(packed: Block, size: int) -> bytes:
    try:
        return _own.decompressor.decompress(packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"a packed answer cannot be unpacked: {error}") from None
