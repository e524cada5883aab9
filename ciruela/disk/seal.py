"""The checksum of a record: a bit that flipped on the disk must not become a fact (threats A45, finding K3).

A record is one CBOR map. Its last field is ``ciruela``, a map of our own whose last entry is ``sum``: 16 bytes of BLAKE2b over all bytes of
the file before them. The reference and earlier versions of this program ignore the field, and their records have no checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import cbor2

from ciruela.model.errors import FormatError

FIELD = "ciruela"
SUM = "sum"
SUM_BYTES = 16


def sealed(fields: Mapping[str, object], own: Mapping[str, object] | None = None) -> bytes:
    """The bytes of a record with ``fields``, ``own`` in the field of ours, and its checksum."""
    data = cbor2.dumps({**fields, FIELD: {**(own or {}), SUM: bytes(SUM_BYTES)}})
    return data[:-SUM_BYTES] + _sum(data)


def is_sealed(fields: object, data: bytes) -> bool:
    """Whether the record ``fields``, decoded from ``data``, has a checksum. Raises FormatError when that is wrong."""
    own = fields.get(FIELD) if isinstance(fields, dict) else None
    if own is None:
        return False
    if not isinstance(own, dict):
        raise FormatError(f"the field {FIELD} is not a map")
    if SUM not in own:
        return False
    if own[SUM] != _sum(data) or not data.endswith(own[SUM]):
        raise FormatError("its checksum is wrong: it was changed, or the disk lost a bit")
    return True


def _sum(data: bytes) -> bytes:
    return blake2b(memoryview(data)[:-SUM_BYTES], digest_size=SUM_BYTES).digest()
