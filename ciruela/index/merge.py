"""Comparison of two indexes, and the numbering of the blocks of one (protocol sections 5.8 and 5.9).

Three numbers name a block. Its **hash**, which several blocks may share; its **block number**, counted over all files in index order from 0
(``Index.block_count`` of them); and its **place**: the number of its file in ``Index.files`` and the number of the block in that file.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import File, Index
from ciruela.model.ids import HASH_BYTES, BlockHash


class BlockRun(NamedTuple):
    """Blocks of one file that follow each other: the file's number in ``Index.files``, the number of the first one in it, how many."""

    file_number: int
    first: int
    blocks: int


Content = tuple[bool, int, bytes]
"""Identity of a file's content, whatever its path: executable bit, size, hashes."""


def same_files(wanted: Index, theirs: Index) -> list[File | None]:
    """For each of ``wanted.files`` a file of ``theirs`` with the same mode and content, or None.

    A file at the same path is preferred, else it is the first in order: moved and renamed files are found, and one file of ``theirs`` may
    serve several. Empty files are left out. Between indexes of different hash kinds files of the same path and size are paired: whoever
    uses one has to hash it anyway. (No pairs: a hundred thousand new objects would have the garbage collector look through all others.)
    """
    alike = wanted.kind is theirs.kind
    here = {file.path: file for file in theirs.files}
    found: list[File | None] = []
    elsewhere: dict[Content, File | None] = {}
    for file in wanted.files:
        other = here.get(file.path)
        if not file.size or (other is not None and not _same(file, other, alike)):
            other = None
        if other is None and file.size and alike:
            elsewhere[file.executable, file.size, file.hashes] = None
        found.append(other)
    if elsewhere:
        for other in theirs.files:
            content = other.executable, other.size, other.hashes
            # ``other`` as the default: only content that is looked for and has no file yet gives None.
            if elsewhere.get(content, other) is None:
                elsewhere[content] = other
        for number, file in enumerate(wanted.files):
            if found[number] is None:
                found[number] = elsewhere.get((file.executable, file.size, file.hashes))
    return found


def _same(file: File, other: File, alike: bool) -> bool:
    return file.size == other.size and file.executable is other.executable and (not alike or file.hashes == other.hashes)


class BlockMap:
    """Finds the blocks of one index by number, by hash and by path.

    Costs 8 bytes for each file, and once something is looked up by hash, 40 bytes for each block; for a million blocks that first look
    takes a second or two, so make it in a thread when the index is large. Reading from several threads is safe.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.files: tuple[File, ...] = index.files
        self._starts = array("Q", accumulate((file.block_count for file in self.files), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def numbers_of(self, file_number: int) -> range:
        """The block numbers of a file, by its number in ``Index.files``."""
        return range(self._starts[file_number], self._starts[file_number + 1])

    def place(self, number: int) -> tuple[int, int]:
        """The place of block ``number``: (file number, block in that file). Raises IndexError for a number that the index does not have."""
        if not 0 <= number < len(self):
            raise IndexError(f"there is no block {number}, the index has {len(self)}")
        file_number = bisect_right(self._starts, number) - 1
        return file_number, number - self._starts[file_number]

    def by_number(self, number: int) -> tuple[File, int]:
        """The file that block ``number`` belongs to, and the block's number in it. Raises IndexError."""
        file_number, block = self.place(number)
        return self.files[file_number], block

    def runs(self, numbers: Iterable[int]) -> list[BlockRun]:
        """Blocks in this order, those that follow each other in a file put together. Raises IndexError."""
        found: list[BlockRun] = []
        file_number = first = last = end = -1
        for number in numbers:
            if number == last + 1 and number < end:
                last = number
                continue
            if last >= 0:
                found.append(BlockRun(file_number, first, last - self._starts[file_number] - first + 1))
            file_number, first = self.place(number)
            last, end = number, self._starts[file_number + 1]
        if last >= 0:
            found.append(BlockRun(file_number, first, last - self._starts[file_number] - first + 1))
        return found

    def bytes_of(self, numbers: Iterable[int]) -> int:
        """The size of these blocks together. Raises IndexError."""
        places = map(self.by_number, numbers)
        return sum(file.block_size(block) for file, block in places)

    def hash_of(self, number: int) -> BlockHash:
        """The hash of block ``number``. Raises IndexError."""
        file, block = self.by_number(number)
        return file.block_hash(block)

    def numbers(self, wanted: BlockHash) -> Sequence[int]:
        """All block numbers that have this hash, ascending; empty when there is none. An index may name one hash a million times."""
        first = bisect_left(self._by_hash, wanted, key=self._hash_at)
        return self._by_hash[first : bisect_right(self._by_hash, wanted, lo=first, key=self._hash_at)]

    def places(self, wanted: BlockHash) -> list[tuple[int, int]]:
        """As :meth:`numbers`, as places: (file number, block in that file)."""
        return [self.place(number) for number in self.numbers(wanted)]

    def locate(self, path: str, offset: int) -> int | None:
        """The number of the block that begins at byte ``offset`` of the file ``path``; None when no block of a file begins there."""
        key = _order(path)
        file_number = bisect_left(self.files, key, key=lambda file: _order(file.path))
        if file_number == len(self.files) or self.files[file_number].path != path:
            return None
        if offset % BLOCK_BYTES or not 0 <= offset < self.files[file_number].size:
            return None
        return self._starts[file_number] + offset // BLOCK_BYTES

    @cached_property
    def _hashes(self) -> bytes:
        return b"".join([file.hashes for file in self.files])

    def _hash_at(self, number: int) -> BlockHash:
        return BlockHash(self._hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES])

    @cached_property
    def _by_hash(self) -> array[int]:
        """Block numbers in order of hash, then number. No dict: a bytes key for each block would take five times the memory.

        Sorted in parts, by the first byte: sorting a million at once would let no other thread run for as long as that takes.
        """
        hashes = self._hashes
        parts: list[list[int]] = [[] for _ in range(256)]
        for number, first in enumerate(hashes[::HASH_BYTES]):
            parts[first].append(number)
        found = array("I")
        for part in parts:
            part.sort(key=lambda number: hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES])
            found.extend(part)
        return found

    @cached_property
    def twins(self) -> bytearray:
        """For each block number 1 if some other block has the same hash, else 0: what needs no search by hash."""
        hashes = self._hashes
        found = bytearray(len(self))
        before, last = b"", 0
        for number in self._by_hash:
            this = hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]
            if this == before:
                found[number] = found[last] = 1
            before, last = this, number
        return found


def _order(path: str) -> tuple[list[str], str]:
    """Sort key of a file in an index: the directory by its components, then the name."""
    *directory, name = path.split("/")
    return directory, name
