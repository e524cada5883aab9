"""Reading one field of a message: every function raises FormatError unless the value has exactly the form it should have.

The limits are those of threats 6.3; protocol section 3.4 has the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ciruela.model.errors import FormatError
from ciruela.model.ids import HASH_BYTES, MACHINE_ID_BYTES, ImageId, MachineId
from ciruela.model.mask import MASK_BYTES, MOST_CUTS
from ciruela.model.state import SIGNATURE_BYTES, SigEntry, State, bounded
from ciruela.model.vpath import MAX_PATH_BYTES
from ciruela.proto.messages import Hosts

MAX_HOSTS = 1000
MAX_BULK = 1024
"""Blocks that one GetBlocks may ask for."""

MAX_NAME_BYTES = 255
MAX_SIGNATURES = 16
MAX_OFFERED = 1000
"""Signatures that an upload may have; only the first :data:`MAX_SIGNATURES` of them are looked at."""

MAX_KEPT_SIGNATURES = 10_000
"""Signatures of one image that a list of an earlier version may have."""

MAX_TEXT_BYTES = 4096
ALGORITHM = "ssh-ed25519"

_MAX_UINT = (1 << 64) - 1

Fields = dict[str, Any]

_MISSING = object()


def fields_of(value: object) -> Fields:
    """The fields of a map by name; names may have come as byte strings."""
    if not isinstance(value, dict):
        raise FormatError("the fields are not a map")
    if all(isinstance(key, str) for key in value):
        return value
    fields: Fields = {}
    for key, content in value.items():
        name = key if isinstance(key, str) else key.decode("latin-1")
        if name in fields:
            raise FormatError("a field appears twice")
        fields[name] = content
    return fields


def required(fields: Fields, name: str) -> object:
    """The content of field ``name``."""
    value = fields.get(name, _MISSING)
    if value is _MISSING:
        raise FormatError(f"field {name} is missing")
    return value


def text(value: object, name: str, limit: int) -> str:
    """``value`` as a text of at most ``limit`` bytes."""
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a text")
    if len(value) > limit or len(value.encode("utf-8")) > limit:
        raise FormatError(f"{name} is longer than {limit} bytes")
    return value


def path(value: object, name: str = "path") -> str:
    """``value`` as the text of a virtual path, which may have come as a byte string."""
    if isinstance(value, bytes):
        if len(value) > MAX_PATH_BYTES:
            raise FormatError(f"{name} is longer than {MAX_PATH_BYTES} bytes")
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{name} is not UTF-8") from None
    return text(value, name, MAX_PATH_BYTES)


def fixed(value: object, name: str, length: int) -> bytes:
    """``value`` as exactly ``length`` bytes."""
    if not isinstance(value, bytes) or len(value) != length:
        raise FormatError(f"{name} is not {length} bytes")
    return value


def image_id(value: object, name: str) -> ImageId:
    """``value`` as an image id."""
    return ImageId(fixed(value, name, HASH_BYTES))


def machine_id(value: object) -> MachineId:
    """``value`` as a machine id."""
    return MachineId(fixed(value, "a machine id", MACHINE_ID_BYTES))


def plain_data(value: object) -> bytes:
    """``value`` as bytes."""
    if not isinstance(value, bytes):
        raise FormatError("data is not bytes")
    return value


def data(fields: Fields) -> bytes:
    """The field ``data``."""
    return plain_data(required(fields, "data"))


def uint(value: object, name: str) -> int:
    """``value`` as an unsigned integer of 64 bits."""
    if type(value) is not int or not 0 <= value <= _MAX_UINT:
        raise FormatError(f"{name} is not an unsigned integer of 64 bits")
    return value


def flag(value: object, name: str) -> bool:
    """``value`` as a boolean."""
    if not isinstance(value, bool):
        raise FormatError(f"{name} is neither true nor false")
    return value


def packed(fields: Fields) -> bool:
    """The field ``packed``, which may be missing."""
    return flag(fields.get("packed", False), "packed")


def signature(value: object) -> bytes:
    """The 64 bytes of a signature."""
    if not isinstance(value, list) or len(value) != 2 or value[0] != ALGORITHM:
        raise FormatError(f"a signature is not of the form [{ALGORITHM}, bytes]")
    return fixed(value[1], "a signature", SIGNATURE_BYTES)


def listed(value: object, name: str, limit: int) -> list[object]:
    """``value`` as a list of at most ``limit``."""
    if not isinstance(value, list) or len(value) > limit:
        raise FormatError(f"{name} is not a list of at most {limit}")
    return value


def runs_of(ascending: Sequence[int]) -> list[int]:
    """Ascending numbers as runs: first, count, first, count..."""
    runs: list[int] = []
    for number in ascending:
        if runs and number == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += (number, 1)
    return runs


def numbers(value: object, name: str) -> tuple[int, ...]:
    """``value`` as block numbers, written as runs; ascending, at most MAX_BULK of them."""
    runs = listed(value, name, 2 * MAX_BULK)
    if len(runs) % 2:
        raise FormatError(f"{name} has a run without a count")
    found: list[int] = []
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        begin, length = uint(first, name), uint(count, name)
        if length == 0 or len(found) + length > MAX_BULK or (found and begin <= found[-1]):
            raise FormatError(f"{name} is not ascending, or has an empty run, or more than {MAX_BULK} numbers")
        found.extend(range(begin, begin + length))
    return tuple(found)


def pieces(fields: Fields, name: str) -> bytes:
    """A mask of pieces."""
    mask = plain_data(required(fields, name))
    if not mask or len(mask) % MASK_BYTES or len(mask) > MASK_BYTES * MOST_CUTS:
        raise FormatError(f"{name} is not a mask of pieces")
    return mask


def signatures(fields: Fields) -> tuple[bytes, ...]:
    """The field ``signatures`` of an upload: the first :data:`MAX_SIGNATURES`. A client with more keys than that is not refused for it."""
    offered = listed(required(fields, "signatures"), "signatures", MAX_OFFERED)
    return tuple(signature(value) for value in offered[:MAX_SIGNATURES])


def hosts(fields: Fields) -> Hosts:
    """The field ``hosts``, which may be missing."""
    known = fields.get("hosts", {})
    if not isinstance(known, dict) or len(known) > MAX_HOSTS:
        raise FormatError(f"hosts is not a map of at most {MAX_HOSTS}")
    return {machine_id(machine): text(name, "a host name", MAX_NAME_BYTES) for machine, name in known.items()}


def state(value: object) -> State:
    """``value`` as a state, its signatures in order and without doubles, the newest of too many: earlier versions kept all there were."""
    fields = fields_of(value)
    entries = set()
    for pair in listed(required(fields, "signatures"), "signatures", MAX_KEPT_SIGNATURES):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FormatError("a signature entry is not a pair")
        entries.add(SigEntry(uint(pair[0], "a signature's time"), signature(pair[1])))
    return State(image_id(required(fields, "image"), "image"), bounded(entries))
