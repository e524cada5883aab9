"""Files that a node or a client keeps or reads besides states: tombstones, the identity of a base, keep lists, hash caches."""

from __future__ import annotations

from dataclasses import replace

import blake3

from ciruela.disk import bases, hashcache, keeplist, retained, sidecar, tombstones
from ciruela.index.digest import HashKind
from ciruela.model.config import Modes
from ciruela.model.errors import FormatError
from ciruela.model.hooks import AFTER, Due
from ciruela.model.ids import HASH_BYTES, ImageId
from ciruela.model.versions import SIGNATURE_BYTES, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath, check_component
from tests.fuzz.wire import refusal

_LATEST_MS = 1 << 64


def check_tombstones(data: bytes) -> bool:
    """What is read has true versions in it, and is written the same again."""
    try:
        found = tombstones.decode(data)
    except FormatError as fault:
        return refusal(fault)
    for entry, tombstone in found.tombstones.items():
        assert type(entry) is str
        assert len(tombstone.version.image) == HASH_BYTES
        assert all(type(one) is bytes and len(one) == SIGNATURE_BYTES for one in tombstone.signatures)
        for time_ms in (found.floor_ms, tombstone.version.timestamp_ms, tombstone.buried_ms):
            assert type(time_ms) is int, time_ms
            assert 0 <= time_ms < _LATEST_MS, time_ms
    assert tombstones.decode(tombstones.encode(found)) == found
    return True


def tombstone_samples() -> tuple[bytes, ...]:
    """None, some, and some that were folded."""
    stones = {f"v{number}": Tombstone(Version(number, ImageId(bytes([number]) * 32)), 9 * number) for number in range(4)}
    signed = {"v9": Tombstone(Version(9, ImageId(b"\x09" * 32)), 9, (b"\x01" * 64, b"\x02" * 64))}
    several = (Tombstones(), Tombstones(0, stones), Tombstones(1_700_000_000_000, {"": stones["v1"]}), Tombstones(7, stones | signed))
    return tuple(tombstones.encode(one) for one in several)


def check_kept(data: bytes) -> bool:
    """Rows of a time, an image and an inode."""
    try:
        found = retained.decode(data)
    except FormatError as fault:
        return refusal(fault)
    for row in found:
        assert [type(number) for number in (row.version.timestamp_ms, row.inode)] == [int, int], row
        assert len(row.version.image) == HASH_BYTES
    assert retained.decode(retained.encode(found)) == found
    return True


def kept_samples() -> tuple[bytes, ...]:
    """None, and some."""
    rows = [retained.RetainedRow(Version(number, ImageId(bytes([number]) * 32)), 1 << number) for number in range(3)]
    return retained.encode(()), retained.encode(rows)


def check_due(data: bytes) -> bool:
    """Hooks of one image at a good path, or nothing."""
    try:
        found = sidecar.decode_due(data)
    except FormatError as fault:
        return refusal(fault)
    assert 0 <= found.signed_ms < _LATEST_MS
    assert len(found.image) == HASH_BYTES
    assert VPath.parse(str(found.vpath)) == found.vpath
    assert sidecar.decode_due(sidecar.encode_due(found)) == found
    return True


def due_samples() -> tuple[bytes, ...]:
    """Both hooks, and one."""
    one = Due(VPath(("app", "v1")), ImageId(b"\1" * 32), None, 5, "SHA256:x", AFTER)
    return sidecar.encode_due(one), sidecar.encode_due(replace(one, old_image=ImageId(b"\2" * 32), kinds=AFTER[1:]))


def check_modes(data: bytes) -> bool:
    """Permission bits and a group that the system may have, or nothing."""
    try:
        found = sidecar.decode_modes(data)
    except FormatError as fault:
        return refusal(fault)
    assert not (found.dir_bits | found.file_bits) & ~0o777
    assert found.gid is None or 0 <= found.gid < 1 << 32
    assert sidecar.decode_modes(sidecar.encode_modes(found)) == found
    return True


def modes_samples() -> tuple[bytes, ...]:
    """With a group, and without."""
    return sidecar.encode_modes(Modes(0o750, 0o640, 1000)), sidecar.encode_modes(Modes())


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


_CACHED = {
    (64768, 131073): hashcache.CachedDirectory(b"b\0sub\0a", b"sub", bytes(range(2 * hashcache.KEY_BYTES)), b"  a f 0\n  b s a\n", 1, 0),
    (64768, 131074): hashcache.CachedDirectory(b"", b"", b"", b"", 0, 0),
}
_CACHE_BODY_AT = len(hashcache.encode(HashKind.BLAKE3, 0, {})) - 12
"""Where the content begins that the checksum is of: an empty one has 12 bytes, a time and a number."""


def check_hash_cache(data: bytes) -> bool:
    """Bytes with a wrong checksum are refused; with a right one, records agree with themselves and are written the same again."""
    try:
        hashcache.decode(data, HashKind.BLAKE3)
    except FormatError as fault:
        refusal(fault)
    head = hashcache.encode(HashKind.BLAKE3, 0, {})[: _CACHE_BODY_AT - 32]
    whole = head + blake3.blake3(data).digest() + data
    try:
        scanned_ns, found = hashcache.decode(whole, HashKind.BLAKE3)
    except FormatError as fault:
        return refusal(fault)
    for one in found.values():
        assert one.count == one.lines.count(b"\n") >= one.files
        assert len(hashcache.by_name(one)) <= one.count
    assert hashcache.encode(HashKind.BLAKE3, scanned_ns, found) == whole
    return True


def hash_cache_samples() -> tuple[bytes, ...]:
    """The contents of an empty one, and of one with two directories."""
    return tuple(hashcache.encode(HashKind.BLAKE3, 1_700_000_000_000_000_000, one)[_CACHE_BODY_AT:] for one in ({}, _CACHED))
