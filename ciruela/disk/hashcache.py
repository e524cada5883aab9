"""The hash caches of a user: what is known of scanned directories, so that an unchanged one is not read again.

A cache is only ever an advantage. One that is damaged, of another version or too large counts as none; nothing that is wrong with it is an
error. It is trusted like the user's own keys, though: lines from it get into an index that the user signs. So it must be the user's, and
writable by nobody else. Blocking: used in threads. Runs at the same time replace each other's files as a whole.

It holds what is known of a directory tree from an earlier scan; docs/reference/files.rst has its bytes.

A file or link is known by its inode, device, size, mtime and ctime, its :data:`key <KEY_BYTES>`. While all of them are the same its
content is too, because the system sets the ctime of whatever is written to, and nobody can set it otherwise. That holds only
for a file that had rested when it was read: see :data:`REST_NS`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from os import stat_result

import blake3
from twisted.logger import Logger

from ciruela.disk import syscalls
from ciruela.disk.safedir import SafeDir
from ciruela.disk.syscalls import warn_once
from ciruela.index.digest import HashKind
from ciruela.model.errors import FormatError
from ciruela.model.values import dataclass

REST_NS = 2_000_000_000
"""A file is kept when it was last changed at least so long before it was read.

A write within one tick of the clock leaves the times as they are ("racy"). The coarsest clocks of file systems tick every two seconds.
"""

KEY_BYTES = 5 * 8
"""Inode, device, size, mtime and ctime in ns, 8 bytes each."""

Keys = Mapping[str, bytes]
"""Keys of files by their paths inside a tree."""

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
class CachedDirectory:
    """Cached content of one directory.

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
    if found.st_mtime_ns >= before_ns or found.st_ctime_ns >= before_ns:  # guard: I7; I7, without 1; I7, without 2
        return NEVER
    return key_of(found) or NEVER


def split_names(names: bytes) -> list[str]:
    """The names in one string."""
    return names.decode("utf-8").split("\0") if names else []


def join_names(names: Sequence[str]) -> bytes:
    """The other way. Raises UnicodeEncodeError for a name that is not UTF-8 on the disk."""
    return "\0".join(names).encode("utf-8")


def by_name(known: CachedDirectory) -> dict[str, tuple[bytes, str]]:
    """The key and the line of each file and link."""
    names = _files(known)
    order = sorted(range(len(names)), key=names.__getitem__)
    lines = known.lines.decode("ascii").split("\n")
    return {names[at]: (known.keys[at * KEY_BYTES : (at + 1) * KEY_BYTES], line) for at, line in zip(order, lines[:-1], strict=True)}


def _files(known: CachedDirectory) -> list[str]:
    """The names of files and links, in the order of their keys."""
    below = set(split_names(known.below))
    return [name for name in split_names(known.names) if name not in below]


def without(known: CachedDirectory, name: str) -> CachedDirectory:
    """The same, but the file or link ``name`` will not be taken for unchanged."""
    names = _files(known)
    if name not in names:
        return known
    at = names.index(name) * KEY_BYTES
    return replace(known, keys=known.keys[:at] + NEVER + known.keys[at + KEY_BYTES :])


def _magic(kind: HashKind) -> bytes:
    return f"ciruela hash cache 1 {sys.byteorder} {kind.value}\n".encode()


def encode(kind: HashKind, scanned_ns: int, known: Mapping[DirKey, CachedDirectory]) -> bytes:
    """The bytes of a cache. ``scanned_ns`` is the wall time of the scan."""
    parts = [_HEAD.pack(scanned_ns, len(known))]
    for (device, inode), one in known.items():
        sizes = len(one.names), len(one.below), one.count, len(one.lines)
        parts += (_RECORD.pack(device, inode, one.files, one.bytes, *sizes), one.names, one.below, one.keys, one.lines)
    body = b"".join(parts)
    return b"".join((_magic(kind), blake3.blake3(body).digest(), body))


def decode(data: bytes, kind: HashKind) -> tuple[int, dict[DirKey, CachedDirectory]]:
    """Gives the wall time of the scan in ns and what it found. Raises FormatError for what :func:`encode` would not write for this kind."""
    magic = _magic(kind)
    if not data.startswith(magic):
        raise FormatError("not a hash cache of this version, hash and machine")
    at = len(magic) + _DIGEST_BYTES
    if blake3.blake3(memoryview(data)[at:]).digest() != data[len(magic) : at]:  # guard: I8
        raise FormatError("the checksum of the hash cache is wrong")
    if len(data) < at + _HEAD.size:
        raise FormatError("the hash cache is too short")
    scanned_ns, number = _HEAD.unpack_from(data, at)
    at += _HEAD.size
    known: dict[DirKey, CachedDirectory] = {}
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
        one = CachedDirectory(data[names_at:below_at], data[below_at:keys_at], data[keys_at:lines_at], data[lines_at:at], files, total)
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


MOST_AGE_S = 30 * 86_400
"""A cache that was not used for so long is removed."""

MOST_CACHES = 64
"""So many are kept, those that were used last; our own choice."""

MOST_BYTES = 2 * MOST_CACHE_BYTES
"""And so much in all; our own choice."""

TOUCH_S = 86_400
"""A cache that is used is marked so once a day."""

LEFTOVER_S = 3600
"""A temporary file of this age was left by a run that was killed."""


class LocalDevices:
    """Devices of which it is known whether their file systems are among :data:`syscalls.LOCAL`."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def has(self, directory: SafeDir, device: int) -> bool:
        """Tells whether the file system of ``directory``, which has the number ``device``, is one of them."""
        local = self._known.get(device)
        if local is None:
            local = self._known[device] = directory.file_system_type() in syscalls.LOCAL
        return local


_NAME = re.compile(r"[0-9a-f]{1,16}-[0-9a-f]{1,16}\.[0-9a-z-]{1,20}")
_TEMPORARY = re.compile(r"\.new-[0-9a-f]{16}")

_log = Logger()


def cache_home(environ: Mapping[str, str]) -> str | None:
    """The directory for caches of this user, by the XDG base directory specification; None when there is none."""
    named = environ.get("XDG_CACHE_HOME", "")
    if named.startswith("/"):
        return named
    home = environ.get("HOME", "")
    return f"{home.rstrip('/')}/.cache" if home.startswith("/") else None


class HashCache:
    """The caches below ``home``. ``now_ns`` gives wall time."""

    def __init__(self, home: str, now_ns: Callable[[], int]) -> None:
        self._home = home
        self._now_ns = now_ns

    def begin(self, root: SafeDir, kind: HashKind) -> OneCache:
        """Loads what is known of the directory ``root``. Never raises for what is wrong with the cache. Raises OSError for ``root``."""
        found = root.status()
        name = f"{found.st_dev:x}-{found.st_ino:x}.{kind.value.replace('/', '-')}"
        now_ns = self._now_ns()
        scanned_ns, known = self._load(name, kind, now_ns)
        # With a clock that was set back, a file changed since may have times from before the scan.
        if scanned_ns > now_ns:  # guard: I7
            _log.debug("the clock was set back: the hash cache {name} is not used", name=name)
            known = {}
        return OneCache(self, kind, name, now_ns, known)

    def drop(self, root: str, kind: HashKind, paths: Iterable[str]) -> None:
        """Forget the files at ``paths`` inside ``root``: they were found to be otherwise than known."""
        try:
            with SafeDir.at(root) as top:
                cache = self.begin(top, kind)
                cache.forget(top, paths)
        except OSError as error:
            _log.debug("nothing to forget in {root}: {error}", root=root, error=error)

    # -- files --------------------------------------------------------------------------------------------------------------------

    def _directory(self, *, create: bool) -> SafeDir:
        """The directory of our caches. Raises OSError, also when it is not the user's alone."""
        if create:
            above, _, name = self._home.rstrip("/").rpartition("/")
            _make(above or "/", name)
            _make(self._home, "ciruela")
        with SafeDir.at(self._home, durable=False) as home:
            directory = home.open_dir("ciruela")
        try:
            _check_ours(directory.status(), "ciruela")  # guard: I4
        except OSError:
            directory.close()
            raise
        return directory

    def _load(self, name: str, kind: HashKind, now_ns: int) -> tuple[int, dict[DirKey, CachedDirectory]]:
        try:
            with self._directory(create=False) as directory, directory.open_read(name) as file:
                found = file.stat()
                _check_ours(found, name)  # guard: I4
                if found.st_size > MOST_CACHE_BYTES:  # guard: I6
                    raise FormatError("the hash cache is too large")
                scanned_ns, known = decode(file.read_at(found.st_size, 0), kind)
                if now_ns - found.st_mtime_ns > TOUCH_S * 1_000_000_000:
                    file.touch()
        except FileNotFoundError:
            return 0, {}
        except (OSError, FormatError) as error:
            _log.debug("the hash cache {name} is not used: {error}", name=name, error=error)
            return 0, {}
        return scanned_ns, known

    def save(self, name: str, data: bytes) -> None:
        """Replace the cache ``name``, and remove old ones. What goes wrong is logged once."""
        try:
            if len(data) > MOST_CACHE_BYTES:
                raise OSError(errno.EFBIG, "the hash cache would be too large", name)
            with self._directory(create=True) as directory:
                _replace(directory, name, data)
                self._tidy(directory)
        except OSError as error:
            reason = error
            warn_once("hash cache", lambda: _log.warn("no hash cache was written below {home}: {reason}", home=self._home, reason=reason))

    def _tidy(self, directory: SafeDir) -> None:
        """Remove caches that were not used for long, or are too many, and what killed runs left."""
        now_s = self._now_ns() / 1e9
        caches = []
        for name in directory.names():
            if _TEMPORARY.fullmatch(name) and (found := directory.stat(name)) is not None and found.st_mtime < now_s - LEFTOVER_S:
                _remove(directory, name)
            elif _NAME.fullmatch(name) and (found := directory.stat(name)) is not None:
                caches.append((found.st_mtime, name, found.st_size))
        total = 0
        for number, (used_s, name, size) in enumerate(sorted(caches, reverse=True)):
            total += size
            if number >= MOST_CACHES or total > MOST_BYTES or used_s < now_s - MOST_AGE_S:  # guard: I6
                _remove(directory, name)


class OneCache:
    """Cached knowledge of one directory tree, for one scan. ``rested_ns``: what changed before that wall time may be kept."""

    def __init__(self, caches: HashCache, kind: HashKind, name: str, now_ns: int, known: dict[DirKey, CachedDirectory]) -> None:
        self._caches = caches
        self._kind = kind
        self._name = name
        self._now_ns = now_ns
        self.known = known
        self.rested_ns = now_ns - REST_NS

    def save(self, seen: dict[DirKey, CachedDirectory]) -> None:
        """Keep ``seen`` in place of what was known, if that is something else."""
        if seen != self.known:
            self._caches.save(self._name, encode(self._kind, self._now_ns, seen))

    def forget(self, root: SafeDir, paths: Iterable[str]) -> None:
        """Take the keys of the files at ``paths`` away. Raises OSError for ``root``."""
        kept = dict(self.known)
        for path in paths:
            *above, name = path[1:].split("/")
            try:
                with root.descend(tuple(above)) as directory:
                    found = directory.status()
            except OSError:
                continue
            one = kept.get((found.st_dev, found.st_ino))
            if one is not None:
                kept[found.st_dev, found.st_ino] = without(one, name)
        self.save(kept)


def _make(path: str, name: str) -> None:
    with SafeDir.at(path, durable=False) as above:
        try:
            above.make_dir(name, 0o700).close()
        except FileExistsError:
            return


def _check_ours(found: os.stat_result, name: str) -> None:
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # guard: I4, without 1
        raise OSError(errno.EPERM, "it must belong to the user, and nobody else may write to it", name)


def _replace(directory: SafeDir, name: str, data: bytes) -> None:
    temporary = f".new-{secrets.token_hex(8)}"
    with directory.create(temporary) as file:
        try:
            file.write_at(data, 0)
            directory.rename(temporary, name)
        except OSError:
            _remove(directory, temporary)
            raise


def _remove(directory: SafeDir, name: str) -> None:
    """Another run may have been faster."""
    try:
        directory.unlink(name)
    except FileNotFoundError:
        return
