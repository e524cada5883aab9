"""One file of the user, of any size: hashed in blocks, and given to the nodes from the disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

from ciruela.client.orders import LocalProblem
from ciruela.disk.openfile import OpenFile
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import File
from ciruela.seams import InThread

HASHED_AT_ONCE = 8 * 1024 * 1024
"""Bytes that one job in a thread reads and hashes: between two of them it can be interrupted, and tells how far it is."""


class LocalFile:
    """A file that is open. It is read by position, so several threads may do it at once."""

    def __init__(self, name: str) -> None:
        """Blocking. Raises LocalProblem, with what to do, for what cannot be read or is no regular file."""
        self.name = name
        try:
            self._file = OpenFile(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), name)
            status = self._file.stat()
            if stat.S_ISDIR(status.st_mode):
                self.close()
                raise LocalProblem(f"{name} is a directory; name a file, or put a whole directory with ciruela sync --replace")
            if not stat.S_ISREG(status.st_mode):
                self.close()
                raise OSError(errno.EINVAL, "it is not a regular file")
        except (OSError, ValueError) as error:
            raise LocalProblem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        self.size = status.st_size
        self.executable = bool(status.st_mode & stat.S_IXUSR)
        self._hashes: dict[HashKind, bytes] = {}

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    async def hashes(self, kind: HashKind, in_thread: InThread, progressed: Callable[[int], None]) -> bytes:
        """The hashes of all blocks, one after the other. ``progressed`` is told how many bytes are hashed.

        Raises LocalProblem when it cannot be read, or has not the size any more that it had when it was opened.
        """
        if kind not in self._hashes:
            parts: list[bytes] = []
            for offset in range(0, self.size, HASHED_AT_ONCE):
                parts.append(await in_thread(self._hash, kind, offset))
                progressed(min(offset + HASHED_AT_ONCE, self.size))
            if await in_thread(self._read, 1, self.size):
                raise self._changed()
            self._hashes[kind] = b"".join(parts)
        return self._hashes[kind]

    def _hash(self, kind: HashKind, offset: int) -> bytes:
        data = memoryview(self._read(min(HASHED_AT_ONCE, self.size - offset), offset))
        if len(data) < min(HASHED_AT_ONCE, self.size - offset):
            raise self._changed()
        return b"".join(kind.hash(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES))

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return self._file.read_at(size, offset)
        except OSError as error:
            raise LocalProblem(f"{self.name} cannot be read: {error.strerror}") from None

    def _changed(self) -> LocalProblem:
        return LocalProblem(f"{self.name} changed while it was read; run the command again")

    def blocks(self, kind: HashKind, file: File, numbers: Sequence[int]) -> dict[int, bytes]:
        """Those of its blocks ``numbers`` that are still what ``file``, in an index, says. Blocking."""
        found: dict[int, bytes] = {}
        for number in numbers:
            try:
                data = self._file.read_at(file.block_size(number), number * BLOCK_BYTES)
            except OSError:
                continue
            if kind.hash(data) == file.block_hash(number):
                found[number] = data
        return found
