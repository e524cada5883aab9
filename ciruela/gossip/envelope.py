"""What stands around the body of a datagram: magic, version, key id (``docs/reference/gossip.rst``, "Envelope").

Only the null keyring exists: key id zero, body in the clear. A keyring that encrypts will be another :class:`Envelope`; the room for its
nonce and tag is already kept free.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

DATAGRAM_BYTES = 1400
"""Largest datagram: fits into one Ethernet frame with IPv6 and a tunnel around it, so IP never fragments (threats A35)."""

MAGIC = b"CG"
VERSION = 1
NO_KEY = bytes(4)
HEADER_BYTES = len(MAGIC) + 1 + len(NO_KEY)

SEAL_BYTES = 40
"""Kept free for an authenticated envelope: a nonce of 24 bytes and a tag of 16."""

BODY_BYTES = DATAGRAM_BYTES - HEADER_BYTES - SEAL_BYTES
"""Largest body: 1,353 bytes."""


class Unopened(Enum):
    """Why a datagram was not opened; the words are those of the counters."""

    MALFORMED = "malformed"
    OTHER_VERSION = "other_version"
    UNKNOWN_KEY = "unknown_key"


class Envelope(Protocol):
    """Seals bodies and opens datagrams."""

    def seal(self, body: bytes) -> bytes:
        """The datagram that carries ``body``, at most :data:`DATAGRAM_BYTES` long for a body within :data:`BODY_BYTES`."""

    def open(self, data: bytes) -> bytes | Unopened:
        """The body of a datagram, or why it cannot be had. Never raises."""


class NullKeyring:
    """The envelope of a cluster without gossip keys: anybody who can send from a configured address is believed."""

    def seal(self, body: bytes) -> bytes:
        """As :meth:`Envelope.seal`."""
        return MAGIC + bytes((VERSION,)) + NO_KEY + body

    def open(self, data: bytes) -> bytes | Unopened:
        """As :meth:`Envelope.open`."""
        if not HEADER_BYTES < len(data) <= DATAGRAM_BYTES or not data.startswith(MAGIC):
            return Unopened.MALFORMED
        if data[len(MAGIC)] != VERSION:
            return Unopened.OTHER_VERSION
        if data[len(MAGIC) + 1 : HEADER_BYTES] != NO_KEY:
            return Unopened.UNKNOWN_KEY
        return data[HEADER_BYTES:]
