"""What is known of a directory tree from an earlier scan, and the bytes of a hash cache (docs/reference/files.rst).

A file or link is known by its inode, device, size, mtime and ctime, its :data:`key <KEY_BYTES>`. While all of them are the same its
content is too, because the system sets the ctime of whatever is written to, and nobody can set it otherwise. That holds only
for a file that had rested when it was read: see :data:`REST_NS`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from os import stat_result

import blake3

from ciruela.index.digest import HashKind
from ciruela.model.errors import FormatError

REST_NS = 2_000_000_000
"""A file is kept when it was last changed at least so long before it was read.

A write within one tick of the clock leaves the times as they are ("racy"). The coarsest clocks of file systems tick every two seconds.
"""

KEY_BYTES = 5 * 8
"""Inode, device, size, mtime and ctime in ns, 8 bytes each."""

NEVER = bytes(KEY_BYTES)
"""The key of what is not known: no file has inode 0."""

MOST_CACHE_BYTES = 1 << 30
"""Largest cache of one directory; four million files."""

_KEY = attrgetter("st_ino", "st_dev", "st_size", "st_mtime_ns", "st_ctime_ns")
_DIGEST_BYTES = 32
_HEAD = struct.Struct("<QI")
_RECORD = struct.Struct("<QQIQQQIQ")
_pack = struct.Struct("=5q").pack

DirKey = tuple[int, int]
"""Device and inode of a directory."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was in one directory.

    ``names`` of all that was in it, in the order in which the system lists them, and of its sub-directories ``below``: UTF-8, joined by
    NUL. ``keys`` of its files and links in the order of ``names``, and their ``lines`` of an index, in the order of the index. ``bytes`` of
    all ``files``.
    """

    names: bytes
    below: bytes
    keys: bytes
    lines: bytes
    files: int
    bytes: int

    @property
    def count(self) -> int:
        """Files and links."""
        return len(self.keys) // KEY_BYTES


def keys_of(found: Iterable[stat_result]) -> bytes:
    """The keys of files, one after the other. Empty for numbers that do not fit, which no usual file system has."""
    try:
        return array("q", chain.from_iterable(map(_KEY, found))).tobytes()
    except OverflowError:
        return b""


def key_of(found: stat_result) -> bytes:
    """The key of one file, faster; empty for numbers that do not fit."""
    try:
        return _pack(*_KEY(found))
    except struct.error:
        return b""


def rested_key(found: stat_result, before_ns: int) -> bytes:
    """The key to keep: :data:`NEVER` unless the file was last changed before ``before_ns``, by both its times."""
    if found.st_mtime_ns >= before_ns or found.st_ctime_ns >= before_ns:
        return NEVER
    return key_of(found) or NEVER


def split_names(names: bytes) -> list[str]:
    """The names in one string."""
    return names.decode("utf-8").split("\0") if names else []


def join_names(names: Sequence[str]) -> bytes:
    """The other way. Raises UnicodeEncodeError for a name that is not UTF-8 on the disk."""
    return "\0".join(names).encode("utf-8")


def by_name(known: Known) -> dict[str, tuple[bytes, str]]:
    """The key and the line of each file and link."""
    names = _files(known)
    order = sorted(range(len(names)), key=names.__getitem__)
    lines = known.lines.decode("ascii").split("\n")
    return {names[at]: (known.keys[at * KEY_BYTES : (at + 1) * KEY_BYTES], line) for at, line in zip(order, lines[:-1], strict=True)}


def _files(known: Known) -> list[str]:
    """The names of files and links, in the order of their keys."""
    below = set(split_names(known.below))
    return [name for name in split_names(known.names) if name not in below]


def without(known: Known, name: str) -> Known:
    """The same, but the file or link ``name`` will not be taken for unchanged."""
    names = _files(known)
    if name not in names:
        return known
    at = names.index(name) * KEY_BYTES
    return replace(known, keys=known.keys[:at] + NEVER + known.keys[at + KEY_BYTES :])


def _magic(kind: HashKind) -> bytes:
    return f"ciruela hash cache 1 {sys.byteorder} {kind.value}\n".encode()


def encode(kind: HashKind, scanned_ns: int, known: Mapping[DirKey, Known]) -> bytes:
    """The bytes of a cache. ``scanned_ns`` is the wall time of the scan."""
    parts = [_HEAD.pack(scanned_ns, len(known))]
    for (device, inode), one in known.items():
        sizes = len(one.names), len(one.below), one.count, len(one.lines)
        parts += (_RECORD.pack(device, inode, one.files, one.bytes, *sizes), one.names, one.below, one.keys, one.lines)
    body = b"".join(parts)
    return b"".join((_magic(kind), blake3.blake3(body).digest(), body))


def decode(data: bytes, kind: HashKind) -> tuple[int, dict[DirKey, Known]]:
    """When the scan was, in wall time, and what it found. Raises FormatError for what :func:`encode` would not write for this kind."""
    magic = _magic(kind)
    if not data.startswith(magic):
        raise FormatError("not a hash cache of this version, hash and machine")
    at = len(magic) + _DIGEST_BYTES
    if blake3.blake3(memoryview(data)[at:]).digest() != data[len(magic) : at]:
        raise FormatError("the checksum of the hash cache is wrong")
    if len(data) < at + _HEAD.size:
        raise FormatError("the hash cache is too short")
    scanned_ns, number = _HEAD.unpack_from(data, at)
    at += _HEAD.size
    known: dict[DirKey, Known] = {}
    while at < len(data):
        if len(data) - at < _RECORD.size:
            raise FormatError("a record of the hash cache is cut off")
        device, inode, files, total, names_size, below_size, count, lines_size = _RECORD.unpack_from(data, at)
        names_at = at + _RECORD.size
        below_at = names_at + names_size
        keys_at = below_at + below_size
        lines_at = keys_at + count * KEY_BYTES
        at = lines_at + lines_size
        if at > len(data):
            raise FormatError("a record of the hash cache is cut off")
        one = Known(data[names_at:below_at], data[below_at:keys_at], data[keys_at:lines_at], data[lines_at:at], files, total)
        if _number(one.names) != count + _number(one.below) or one.lines.count(b"\n") != count or files > count or (device, inode) in known:
            raise FormatError("a record of the hash cache contradicts itself")
        if not (one.lines.isascii() and _is_utf8(one.names) and _is_utf8(one.below)):
            raise FormatError("a record of the hash cache has names that are not UTF-8, or lines that are not ASCII")
        if one.below and len(_files(one)) != count:
            raise FormatError("a record of the hash cache has a sub-directory that is not one of its names")
        known[device, inode] = one
    if len(known) != number:
        raise FormatError("the hash cache has other records than it says")
    return scanned_ns, known


def _number(names: bytes) -> int:
    return names.count(b"\0") + 1 if names else 0


def _is_utf8(names: bytes) -> bool:
    try:
        names.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
