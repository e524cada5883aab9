"""What the signatures of uploads (protocol section 3.4, "Signed data") and removals are made over."""

from __future__ import annotations

import cbor2

from ciruela.model.ids import ImageId

_LAST_TIMESTAMP_MS = 2**64 - 1

REMOVE = "ciruela/remove"
"""What the signed bytes of a removal begin with: no signature of an upload passes for one of a removal, or the other way round."""


def signed_bytes(path: str, image: ImageId, timestamp_ms: int) -> bytes:
    """The shortest CBOR of ``[path, image, timestamp]``; ``path`` is the canonical text of the virtual path.

    Raises ValueError for a time that is not an unsigned 64 bit number and for text that is not Unicode.
    """
    _check_time(timestamp_ms)
    return cbor2.dumps([path, bytes(image), int(timestamp_ms)])


def removal_bytes(path: str, image: ImageId, timestamp_ms: int) -> bytes:
    """The shortest CBOR of ``["ciruela/remove", path, image, timestamp]``: that ``image`` is to go from ``path``. Raises ValueError."""
    _check_time(timestamp_ms)
    return cbor2.dumps([REMOVE, path, bytes(image), timestamp_ms])


def _check_time(timestamp_ms: int) -> None:
    if not 0 <= timestamp_ms <= _LAST_TIMESTAMP_MS:
        raise ValueError(f"a timestamp of {timestamp_ms} ms cannot be signed")
