"""What an upload's signature is made over (protocol section 3.4, "Signed data")."""

from __future__ import annotations

import cbor2

from ciruela.model.ids import ImageId

_LAST_TIMESTAMP_MS = 2**64 - 1


def signed_bytes(path: str, image: ImageId, timestamp_ms: int) -> bytes:
    """The shortest CBOR of ``[path, image, timestamp]``; ``path`` is the canonical text of the virtual path.

    Raises ValueError for a time that is not an unsigned 64 bit number and for text that is not Unicode.
    """
    if not 0 <= timestamp_ms <= _LAST_TIMESTAMP_MS:
        raise ValueError(f"a timestamp of {timestamp_ms} ms cannot be signed")
    return cbor2.dumps([path, bytes(image), int(timestamp_ms)])
