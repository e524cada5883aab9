"""The content of files of images by inode and ctime, so that the next version of an image is linked without reading what has not changed.

One file of the db directory for each device; ``docs/reference/files.rst`` has its bytes, and what can and cannot deceive it. An entry says
that the inode had this content when its ctime was this. Whoever changes a file changes its ctime, and nobody can set one. Linking and
unlinking change it as well, so an entry follows what the daemon itself does to other names of the inode.

It is only ever an advantage: an entry that is wrong about the ctime, or missing, costs reading the file once. Used from several threads.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from threading import Lock

import blake3
from twisted.logger import Logger

from ciruela.disk.layout import Records
from ciruela.disk.openfile import STAMP_NS
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import prepare_file
from ciruela.disk.syscalls import LOCAL
from ciruela.index.digest import HashKind
from ciruela.index.tree import File
from ciruela.model.errors import FormatError

MOST_ENTRIES = 200_000
"""Inodes of one device, some 35 MB in memory; of more the oldest entries are left out. Our own choice."""

SAVE_S = 10.0
"""The file is written at most so often: a kill in between costs some reading."""

_MAGIC = b"ciruela inode hashes 1\n"
_SUM_BYTES = 32
_HEAD = struct.Struct("<QqI")
_ENTRY = struct.Struct("<Qq32s")
_MOST_BYTES = len(_MAGIC) + _SUM_BYTES + _HEAD.size + MOST_ENTRIES * _ENTRY.size

_KEYS = {kind: kind.value.encode() for kind in HashKind}

Entries = dict[int, tuple[int, bytes]]
"""By inode: its ctime (ns), and what :func:`content_hash` gives for the file."""

_log = Logger()


def content_hash(file: File, kind: HashKind) -> bytes:
    """Hash of the hashes of all blocks, and of their kind."""
    return blake2b(file.hashes, digest_size=32, key=_KEYS[kind]).digest()


def encode(device: int, newest_ns: int, entries: Entries) -> bytes:
    """The bytes of a record. ``newest_ns``: the latest ctime that was ever noted in it."""
    body = b"".join([_HEAD.pack(device, newest_ns, len(entries)), *[_ENTRY.pack(inode, *entry) for inode, entry in entries.items()]])
    return b"".join((_MAGIC, blake3.blake3(body).digest(), body))


def decode(data: bytes, device: int) -> tuple[int, Entries]:
    """The latest ctime and the entries. Raises FormatError for what :func:`encode` would not write for this device."""
    begin = len(_MAGIC) + _SUM_BYTES
    body = memoryview(data)[begin:]
    if not data.startswith(_MAGIC) or len(body) < _HEAD.size:
        raise FormatError("not a record of hashes of this version")
    if blake3.blake3(body).digest() != data[len(_MAGIC) : begin]:  # guard: I8
        raise FormatError("the checksum of the record of hashes is wrong")
    of_device, newest_ns, count = _HEAD.unpack_from(body)
    if of_device != device or len(body) != _HEAD.size + count * _ENTRY.size:
        raise FormatError("the record of hashes is of another device, or cut off")
    return newest_ns, {inode: (ctime_ns, content) for inode, ctime_ns, content in _ENTRY.iter_unpack(body[_HEAD.size :])}


class _Device:
    """The entries of one device. ``local``: its ctimes can be relied on."""

    def __init__(self, local: bool) -> None:
        self.local = local
        self.newest_ns = 0
        self.entries: Entries = {}
        self.changed = False


class HashRecord:
    """All that is recorded in a db directory."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = Lock()
        self._devices: dict[int, _Device] = {}
        self._saved_s = -SAVE_S

    def trusts(self, directory: SafeDir, found: os.stat_result, content: bytes) -> bool:
        """Tells whether the file ``found``, in ``directory``, has this content (:func:`content_hash`) for sure."""
        with self._lock:
            device = self._device(directory, found.st_dev)
            return device.local and self._known(device, found) == content  # guard: A50 I1, without 2

    def note(self, directory: SafeDir, files: Iterable[tuple[int, int, bytes]]) -> None:
        """Keep that the inodes of ``files`` had a content at a ctime; they are below ``directory``, and on its device. Raises OSError."""
        number = directory.status().st_dev
        with self._lock:
            device = self._device(directory, number)
            if not device.local:
                return
            for inode, ctime_ns, content in files:
                device.entries.pop(inode, None)
                device.entries[inode] = ctime_ns, content
                device.newest_ns = max(device.newest_ns, ctime_ns)
                device.changed = True
            for inode in list(islice(device.entries, max(0, len(device.entries) - MOST_ENTRIES))):  # guard: I6
                del device.entries[inode]

    def knows(self, directory: SafeDir, found: os.stat_result) -> bool:
        """Tells whether there is an entry of the file ``found``, in ``directory``, as it is."""
        with self._lock:
            return self._known(self._device(directory, found.st_dev), found) is not None

    def moved(self, before: os.stat_result, after: os.stat_result) -> None:
        """A name of a file was made or removed by this process, between these two looks at it."""
        with self._lock:
            device = self._devices.get(before.st_dev)
            content = None if device is None else self._known(device, before)
            if device is None or content is None:
                return
            if _signs(before) == _signs(after):  # guard: A50
                device.entries[before.st_ino] = after.st_ctime_ns, content
                device.newest_ns = max(device.newest_ns, after.st_ctime_ns)
            else:
                del device.entries[before.st_ino]
            device.changed = True

    def forget(self, found: os.stat_result) -> None:
        """The file ``found`` is gone."""
        with self._lock:
            device = self._devices.get(found.st_dev)
            if device is not None and device.entries.pop(found.st_ino, None) is not None:
                device.changed = True

    def void(self) -> None:
        """Forget everything: a disk has changed a file without the system's knowledge."""
        with self._lock:
            for device in self._devices.values():
                device.changed = True
                device.entries.clear()
            try:
                with self._records.hashes() as directory:
                    for name in directory.names():
                        directory.unlink(name)
            except FileNotFoundError:
                return
            except OSError as error:
                _log.error("{error}: the record of hashes cannot be removed; remove the directory hashes in the db directory", error=error)

    def save(self, *, now: bool = False) -> None:
        """Write what has changed, unless that was done just before; ``now``: in any case. What goes wrong is logged."""
        with self._lock:
            now_s = time.monotonic()
            if not now and now_s < self._saved_s + SAVE_S:
                return
            for number, device in self._devices.items():
                if device.changed:
                    device.changed = False
                    self._saved_s = now_s
                    self._write(f"{number:x}", encode(number, device.newest_ns, device.entries))

    def _write(self, name: str, data: bytes) -> None:
        try:
            with self._records.hashes(create=True) as directory:
                directory.rename(prepare_file(directory, name, data), name)
        except OSError as error:
            _log.warn("the record of hashes {name} is not written: {error}", name=name, error=error)

    def _known(self, device: _Device, found: os.stat_result) -> bytes | None:
        """The content of a file by its entry. It has the mtime of an image, so a change that leaves the ctime as it was shows by it."""
        self._check_clock(device)
        entry = device.entries.get(found.st_ino)
        if entry is None or entry[0] != found.st_ctime_ns or found.st_mtime_ns != STAMP_NS:  # guard: A50 I1, without 2; A50 I1, without 3
            return None
        return entry[1]

    @staticmethod
    def _check_clock(device: _Device) -> None:
        """With a clock that was set back, a file changed since may have the ctime of an entry."""
        if device.newest_ns > time.time_ns():  # guard: A50 F40
            device.changed = True
            device.newest_ns = 0
            device.entries.clear()

    def _device(self, directory: SafeDir, number: int) -> _Device:
        device = self._devices.get(number)
        if device is None:
            if directory.status().st_dev != number:  # something is mounted over a file
                return _Device(local=False)
            device = self._devices[number] = _Device(directory.file_system_type() in LOCAL)
            if device.local:
                self._read(number, device)
        return device

    def _read(self, number: int, device: _Device) -> None:
        name = f"{number:x}"
        try:
            with self._records.hashes() as directory, directory.open_read(name) as file:
                size = file.stat().st_size
                if size > _MOST_BYTES:  # guard: I6
                    raise FormatError("the record of hashes is too large")
                device.newest_ns, device.entries = decode(file.read_at(size, 0), number)
        except FileNotFoundError:
            return
        except (OSError, FormatError) as error:
            _log.warn("the record of hashes {name} counts as empty: {error}", name=name, error=error)


def _signs(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
