"""Bytes over which uploads (protocol section 3.4, "Signed data"), removals and dry runs are signed."""

from __future__ import annotations

from collections.abc import Callable

import cbor2

from ciruela.model.ids import ImageId

CHECK_DOMAIN = "ciruela/check"
"""First item of the signed bytes of a dry run, which have one item more than those of an upload."""

Statement = Callable[[str, ImageId, int], bytes]
"""Function that makes the bytes to sign of path, image and time in ms."""

_LAST_TIMESTAMP_MS = 2**64 - 1

REMOVE = "ciruela/remove"
"""First item of the signed bytes of a removal: no signature of an upload passes for one of a removal, or the other way round."""


def signed_bytes(path: str, image: ImageId, timestamp_ms: int) -> bytes:
    """The shortest CBOR of ``[path, image, timestamp]``; ``path`` is the canonical text of the virtual path.

    Raises ValueError for a time that is not an unsigned 64 bit number and for text that is not Unicode.
    """
    return cbor2.dumps([path, bytes(image), _time(timestamp_ms)])


def removal_bytes(path: str, image: ImageId, timestamp_ms: int) -> bytes:
    """The shortest CBOR of ``["ciruela/remove", path, image, timestamp]``: that ``image`` is to go from ``path``. Raises ValueError."""
    return cbor2.dumps([REMOVE, path, bytes(image), _time(timestamp_ms)])


def signed_check_bytes(path: str, image: ImageId, timestamp_ms: int) -> bytes:
    """The shortest CBOR of ``["ciruela/check", path, image, timestamp]``: a question, which no node takes for an upload.

    Raises ValueError as :func:`signed_bytes`.
    """
    return cbor2.dumps([CHECK_DOMAIN, path, bytes(image), _time(timestamp_ms)])


def _time(timestamp_ms: int) -> int:
    if not 0 <= timestamp_ms <= _LAST_TIMESTAMP_MS:
        raise ValueError(f"a timestamp of {timestamp_ms} ms cannot be signed")
    return int(timestamp_ms)
