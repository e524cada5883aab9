"""The hash kinds an index can name, and their functions (protocol section 1.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import blake3

from ciruela.model.ids import BlockHash

BLOCK_BYTES = 32768
"""The only block size that can be exchanged (protocol section 1.1)."""


class Hasher(Protocol):
    """Hash object, as those of ``hashlib`` and ``blake3`` are."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """The 32 bytes of the hash so far."""


class HashKind(Enum):
    """A hash function of 32 bytes, by its name in the index header."""

    BLAKE2B = "blake2b/256"
    SHA512_256 = "sha512/256"
    BLAKE3 = "blake3/256"

    def new(self) -> Hasher:
        """A fresh hash object."""
        match self:
            case HashKind.BLAKE2B:
                return hashlib.blake2b(digest_size=32)
            case HashKind.SHA512_256:
                return hashlib.new("sha512_256")
            case HashKind.BLAKE3:
                return blake3.blake3()

    def hash(self, data: bytes | memoryview) -> bytes:
        """The hash of ``data``."""
        match self:
            case HashKind.BLAKE2B:
                return hashlib.blake2b(data, digest_size=32).digest()
            case HashKind.SHA512_256:
                return hashlib.new("sha512_256", data).digest()
            case HashKind.BLAKE3:
                return blake3.blake3(data).digest()

    def function(self) -> Callable[[bytes | memoryview], bytes]:
        """Gives :meth:`hash` as a plain function, for loops over very many small blocks."""
        match self:
            case HashKind.BLAKE2B:
                return lambda data: hashlib.blake2b(data, digest_size=32).digest()
            case HashKind.SHA512_256:
                return lambda data: hashlib.new("sha512_256", data).digest()
            case HashKind.BLAKE3:
                return lambda data: blake3.blake3(data).digest()

    def block(self, data: bytes | memoryview) -> BlockHash:
        """The hash of one block."""
        return BlockHash(self.hash(data))
