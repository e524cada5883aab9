"""Files that a node keeps or reads besides states: tombstones, the identity of a base, keep lists."""

from __future__ import annotations

from ciruela.disk import bases, burials, keeplist
from ciruela.model.errors import FormatError
from ciruela.model.ids import HASH_BYTES, ImageId
from ciruela.model.state import Burials, Tombstone, Version
from ciruela.model.vpath import check_component
from tests.fuzz.wire import refusal

_LATEST_MS = 1 << 64


def check_tombstones(data: bytes) -> bool:
    """What is read has true versions in it, and is written the same again."""
    try:
        found = burials.decode(data)
    except FormatError as fault:
        return refusal(fault)
    for entry, tombstone in found.tombstones.items():
        assert type(entry) is str
        assert len(tombstone.version.image) == HASH_BYTES
        for time_ms in (found.floor_ms, tombstone.version.timestamp_ms, tombstone.buried_ms):
            assert type(time_ms) is int, time_ms
            assert 0 <= time_ms < _LATEST_MS, time_ms
    assert burials.decode(burials.encode(found)) == found
    return True


def tombstone_samples() -> tuple[bytes, ...]:
    """None, some, and some that were folded."""
    stones = {f"v{number}": Tombstone(Version(number, ImageId(bytes([number]) * 32)), 9 * number) for number in range(4)}
    return tuple(burials.encode(one) for one in (Burials(), Burials(0, stones), Burials(1_700_000_000_000, {"": stones["v1"]})))


def check_base(data: bytes) -> bool:
    """A path and two numbers, or nothing."""
    try:
        directory, identity = bases.decode(data)
    except FormatError as fault:
        return refusal(fault)
    assert type(directory) is str
    assert [type(number) for number in identity] == [int, int]
    assert bases.decode(bases.encode(directory, identity)) == (directory, identity)
    return True


def base_samples() -> tuple[bytes, ...]:
    """Two of them."""
    return bases.encode("/srv/images", (64768, 131073)), bases.encode("/", (0, 2))


def check_keep_list(data: bytes) -> bool:
    """Whatever is named could be an image of two levels, and nothing is ever half understood."""
    try:
        found = keeplist.parse(data, 2)
    except FormatError as fault:
        return refusal(fault)
    for parts in found:
        assert len(parts) == 2, parts
        for part in parts:
            check_component(part)
    assert found or keeplist.EMPTY_MARK.encode() in data
    again = "".join(f"/{'/'.join(parts)}/\n" for parts in found)
    assert keeplist.parse((again or "# empty\n").encode(), 2) == found, found
    return True


def keep_list_samples() -> tuple[bytes, ...]:
    """Lists as operators write them."""
    return (b"web/v1\n/web/v2/\n# old\n\n shop/2024-01-01 \n", b"# empty\n", "\ufeffapp/ü\r\n".encode(), b"app/../x\n", b"app/v1")
