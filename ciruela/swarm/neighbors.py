"""Choice of the neighbors with which a node exchanges the pieces of one image.

All others while they are few. Of many, those that are near by a hash of the pair, which both ends compute alike: so most that a node asks
would ask it as well, whatever else each of them knows, and nobody has more than MOST.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

MOST = 12
"""Neighbors of a node, at most: each costs a connection and a message for each piece of news."""

ASKED = 8
"""Neighbors that a node looks for. The others up to MOST are those that found it."""


def distance(image: bytes, one: bytes, other: bytes) -> bytes:
    """Computes how far two machines are from each other for ``image``: as far one way as the other, and different for each image."""
    return blake2b(min(one, other) + max(one, other), digest_size=8, key=image[:32]).digest()


def in_order(image: bytes, me: bytes, known: Iterable[bytes]) -> list[bytes]:
    """Sorts the machines ``known``, without ``me``, by distance: whom to ask first."""
    return sorted((other for other in known if other != me), key=lambda other: distance(image, me, other))


def wanted(machines: int) -> int:
    """Computes how many neighbors to look for among ``machines`` others: all, while nobody can have too many by that."""
    return machines if machines <= MOST else ASKED
