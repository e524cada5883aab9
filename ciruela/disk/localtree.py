"""Block source of the client: the directory that it scanned (protocol section 6.2, threats 6.9)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from threading import Lock

from ciruela.disk.hashcache import Keys, key_of
from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.tree import split
from ciruela.disk.verify import blocks_in
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import BlockRun, File, Index
from ciruela.model.errors import DiskError
from ciruela.model.ids import Block, BlockHash

OPEN_FILES = 16
"""Files kept open: nodes ask for the blocks of a few files at a time."""

PLACES_TRIED = 16
"""A block that stands at many places is looked for at this many; more would let one request cost thousands of reads."""


class LocalTree:
    """The files of ``index`` below the directory ``root``. Blocking: make it and use it in threads; several may use it at once.

    Only files that the index names are opened, by directory fds, and nothing is followed. Whatever is given was hashed just before, or is
    of a file that has the key (``seen``, by path) with which it was scanned, both before and after it is read. Who gets a block hashes it
    anyway; a block that is asked for again was perhaps refused, and is hashed. Raises DiskError when ``root`` cannot be opened.
    """

    def __init__(self, root: str, index: Index, seen: Keys | None = None) -> None:
        self._seen = seen or {}
        self._given = bytearray(index.block_count)  # 1: was given without being hashed
        self._kind = index.kind
        self._blocks = index.blocks
        self._lock = Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._changed: set[str] = set()
        self._closed = False
        try:
            self._root = SafeDir.at(root)
        except OSError as error:
            raise DiskError(f"cannot open the directory {root}: {error.strerror}; name a directory that you may read") from error

    @property
    def changed(self) -> frozenset[str]:
        """Paths inside the image of files that were found changed, gone or unreadable since the scan."""
        with self._lock:
            return frozenset(self._changed)

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        """The blocks by number, from wherever their content stands; None for one that no file has any more.

        Quick for blocks that follow each other, and for files of one directory that do.
        """
        found: list[Block | None] = []
        with _Directories(self._root) as directories:
            for run in self._blocks.runs(numbers):
                file = self._blocks.files[run.file_number]
                if file.block_count == 1:
                    data = self._small(directories, file)
                elif (unchanged := self._unchanged(run, file)) is not None:
                    view = memoryview(unchanged)
                    found += [view[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] for at in range(run.blocks)]
                    continue
                else:
                    data = self._read(file, run.first, run.blocks)
                # guard: F54, -> [(data or b'')[at * BLOCK_BYTES:(at + 1) * BLOCK_BYTES] for at in range(run.blocks)]
                here = blocks_in(data or b"", file, self._kind, run.first, run.blocks)
                found += [self._block(file.block_hash(run.first + at)) if one is None else one for at, one in enumerate(here)]
        return found

    def close(self) -> None:
        """Let go of all open files; later reads give None."""
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close()
            self._root.close()

    def _small(self, directories: _Directories, file: File) -> bytes | None:
        """Reads a file of one block without keeping it open; None when it cannot be read."""
        above, name = split(file.path)
        try:
            with directories.open(above).open_read(name) as opened:
                return opened.read_at(file.size, 0)
        except OSError:
            return None

    def _unchanged(self, run: BlockRun, file: File) -> bytes | None:
        """Reads blocks of a file that is what was scanned; None when that cannot be told, or one of them was given so before."""
        key = self._seen.get(file.path)
        first = self._blocks.numbers_of(run.file_number).start + run.first
        if key is None or self._given.find(1, first, first + run.blocks) >= 0:  # guard: F54, without 2
            return None
        with self._lock:
            try:
                opened = self._opened(file.path)
                if key_of(opened.stat()) != key:  # it would be read for nothing
                    return None
                data = opened.read_at(file.bytes_of(run.first, run.blocks), run.first * BLOCK_BYTES)
                if key_of(opened.stat()) != key:  # guard: F54
                    return None
            except OSError:
                return None
            self._given[first : first + run.blocks] = b"\1" * run.blocks
        return data

    def _block(self, wanted: BlockHash) -> bytes | None:
        for number in islice(self._blocks.numbers(wanted), PLACES_TRIED):
            file, block = self._blocks.by_number(number)
            data = self._read(file, block, 1)
            if data is not None and self._kind.hash(data) == wanted:
                return data
            with self._lock:
                if self._closed:
                    return None
                self._changed.add(file.path)
                opened = self._open.pop(file.path, None)
                if opened is not None:
                    opened.close()
        return None

    def _read(self, file: File, first: int, count: int) -> bytes | None:
        with self._lock:
            try:
                return self._opened(file.path).read_at(file.bytes_of(first, count), first * BLOCK_BYTES)
            except OSError:
                return None

    def _opened(self, path: str) -> OpenFile:
        opened = self._open.get(path)
        if opened is not None:
            self._open.move_to_end(path)
            return opened
        *directories, name = path[1:].split("/")
        with self._root.descend(tuple(directories)) as directory:
            opened = directory.open_read(name)
        self._open[path] = opened
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return opened


class _Directories:
    """The directory below ``root`` that was used last, open. For one thread."""

    def __init__(self, root: SafeDir) -> None:
        self._root = root
        self._path: str | None = None
        self._open: SafeDir | None = None

    def __enter__(self) -> _Directories:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()

    def open(self, path: str) -> SafeDir:
        """The directory ``path``. Raises OSError."""
        if self._open is None or path != self._path:
            found = self._root.descend(tuple(path[1:].split("/")) if path != "/" else ())
            if self._open is not None:
                self._open.close()
            self._path, self._open = path, found
        return self._open
