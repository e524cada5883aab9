"""The hash kinds an index can name, and their functions (protocol section 1.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from functools import partial
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

    @property
    def hasher(self) -> Callable[..., Hasher]:
        """The function in C that makes a hash object, of some bytes if they are given: for loops over very many blocks."""
        return _HASHERS[self._value_]

    def hash(self, data: bytes | memoryview) -> bytes:
        """The hash of ``data``."""
        return self.hasher(data).digest()

    def block(self, data: bytes | memoryview) -> BlockHash:
        """The hash of one block."""
        return BlockHash(self.hash(data))


_HASHERS: dict[str, Callable[..., Hasher]] = {
    "blake2b/256": partial(hashlib.blake2b, digest_size=32),
    "sha512/256": partial(hashlib.new, "sha512_256"),
    "blake3/256": blake3.blake3,
}
