"""Identifiers: image ids, block hashes and machine ids (protocol section 3.4).

Servers of a cluster as one node knows them: the rows of which every count of "all servers" is made.
"""

from __future__ import annotations

import re
from typing import NewType

from ciruela.model.values import dataclass

ImageId = NewType("ImageId", bytes)
"""32 bytes: the footer hash of an image's index."""

BlockHash = NewType("BlockHash", bytes)

Block = bytes | memoryview
"""The bytes of a block, or of several; a memoryview where they stand in a larger buffer."""

"""32 bytes: the hash of one block, by the hash kind of its index."""

MachineId = NewType("MachineId", bytes)
"""16 bytes: the identity of one node."""

HASH_BYTES = 32
MACHINE_ID_BYTES = 16

_HEX = re.compile(r"[0-9a-fA-F]+\Z")


def _fixed(value: object, length: int, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != length:
        raise ValueError(f"{what} must be {length} bytes")
    return value


def image_id(value: object) -> ImageId:
    """``value`` as an image id. Raises ValueError unless it is 32 bytes."""
    return ImageId(_fixed(value, HASH_BYTES, "an image id"))


def block_hash(value: object) -> BlockHash:
    """``value`` as a block hash. Raises ValueError unless it is 32 bytes."""
    return BlockHash(_fixed(value, HASH_BYTES, "a block hash"))


def machine_id(value: object) -> MachineId:
    """``value`` as a machine id. Raises ValueError unless it is 16 bytes."""
    return MachineId(_fixed(value, MACHINE_ID_BYTES, "a machine id"))


def _unhex(text: str, length: int, what: str) -> bytes:
    if len(text) != 2 * length or not _HEX.match(text):
        raise ValueError(f"{what} must be {2 * length} hexadecimal digits, not {text[:80]!r}")
    return bytes.fromhex(text)


def parse_image_id(text: str) -> ImageId:
    """An image id from its 64 hexadecimal digits. Raises ValueError."""
    return ImageId(_unhex(text, HASH_BYTES, "an image id"))


def parse_machine_id(text: str) -> MachineId:
    """A machine id from its 32 hexadecimal digits, as in ``/etc/machine-id``. Raises ValueError."""
    return MachineId(_unhex(text, MACHINE_ID_BYTES, "a machine id"))


@dataclass(frozen=True, slots=True)
class Server:
    """One server that may take a directory, as the node that tells of it knows it.

    ``name`` is its host name, else the one that the operator configured. ``machine`` is None while nobody has met it. ``addresses`` are
    texts of ``interfaces.Address``. ``heard_ms``: milliseconds since the last sign of life, by datagram or connection, in this run of the
    node or an earlier one; None when there was none. ``configured`` is False for one that speaks to the node although no list of peers
    there names it.
    """

    name: str
    machine: MachineId | None
    addresses: tuple[str, ...]
    heard_ms: int | None
    configured: bool = True


@dataclass(frozen=True, slots=True)
class SharedId:
    """Several servers that speak with one machine id: a disk was cloned. ``addresses`` are at least two, in order."""

    machine: MachineId
    addresses: tuple[str, ...]
