"""A parsed index as values: directories, files with their block hashes, symlinks; and the numbering of its blocks.

Three numbers name a block. Its **hash**, which several blocks may share; its **block number**, counted over all files in index order from 0
(``Index.block_count`` of them); and its **place**: the number of its file in ``Index.files`` and the number of the block in that file.

A check tells whether a directory of this node may take an image: size, number of files, symbolic links (threats A3, A5, A8 and 6.12). Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.model.bitfield import Pieces
from ciruela.model.config import DirConfig, Symlinks
from ciruela.model.errors import DownloadFailed
from ciruela.model.ids import HASH_BYTES, BlockHash, ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.values import dataclass


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. ``path`` is absolute inside the image (``/sub/name``), ``hashes`` the block hashes one after the other."""

    path: str
    executable: bool
    size: int
    hashes: bytes

    @property
    def block_count(self) -> int:
        """Number of blocks; 0 for an empty file."""
        return len(self.hashes) // HASH_BYTES

    def block_hash(self, number: int) -> BlockHash:
        """The hash of block ``number`` of this file."""
        return BlockHash(self.hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES])

    def bytes_of(self, first: int, count: int) -> int:
        """Bytes in ``count`` blocks of this file, from block ``first`` on."""
        return min(count * BLOCK_BYTES, self.size - first * BLOCK_BYTES)

    def block_size(self, number: int) -> int:
        """Bytes in block ``number`` of this file."""
        return min(BLOCK_BYTES, self.size - number * BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link. ``target`` is exactly what readlink gave; it is never followed."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory with its files and symlinks in order of their names' bytes. ``path`` is ``/`` or ``/a/b``."""

    path: str
    entries: tuple[File | Symlink, ...]


class BlockRun(NamedTuple):
    """Blocks of one file that follow each other: the file's number in ``Index.files``, the number of the first one in it, how many."""

    file_number: int
    first: int
    blocks: int


class BlockMap:
    """Finds the blocks of one index by number, by hash and by path; ``files`` are those of the index.

    Costs 8 bytes for each file, and once something is looked up by hash, 40 bytes for each block; for a million blocks that first look
    takes a second or two, so make it in a thread when the index is large. Reading from several threads is safe.
    """

    def __init__(self, files: tuple[File, ...]) -> None:
        self.files = files
        self._starts = array("Q", accumulate((file.block_count for file in self.files), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def numbers_of(self, file_number: int) -> range:
        """The block numbers of a file, by its number in ``Index.files``."""
        return range(self._starts[file_number], self._starts[file_number + 1])

    def place(self, number: int) -> tuple[int, int]:
        """The place of block ``number``: (file number, block in that file). Raises IndexError for a number that the index does not have."""
        if not 0 <= number < self._starts[-1]:
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
        return sum([self.files[run.file_number].bytes_of(run.first, run.blocks) for run in self.runs(numbers)])

    def size_of(self, number: int) -> int:
        """The size of a block. Raises IndexError."""
        file, block = self.by_number(number)
        return file.block_size(block)

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


@dataclass(frozen=True)
class Index:
    """A whole image, verified against ``image`` when it was parsed. Directories come in pre-order, the root first."""

    image: ImageId
    kind: HashKind
    directories: tuple[Directory, ...]

    def entries(self) -> Iterator[File | Symlink]:
        """All files and symlinks in index order."""
        for directory in self.directories:
            yield from directory.entries

    @cached_property
    def files(self) -> tuple[File, ...]:
        """All files in index order."""
        return tuple(entry for entry in self.entries() if isinstance(entry, File))

    @cached_property
    def symlinks(self) -> tuple[Symlink, ...]:
        """All symlinks in index order."""
        return tuple(entry for entry in self.entries() if isinstance(entry, Symlink))

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def block_count(self) -> int:
        """Number of blocks of all files. Blocks are numbered in index order, from 0."""
        return sum(file.block_count for file in self.files)

    @cached_property
    def blocks(self) -> BlockMap:
        """The blocks by number, by hash and by path: one map for all who have this index."""
        return BlockMap(self.files)

    @cached_property
    def pieces(self) -> Pieces:
        """Division of the image into the pieces that nodes exchange."""
        return Pieces.of_image(self.block_count, self.total_bytes)


def check(index: Index, config: DirConfig) -> None:
    """Raise DownloadFailed, with the numbers or the link, unless ``config`` allows the image. Equal blocks count each time."""
    most_bytes, most_files = config.max_image_bytes, config.max_image_files
    if most_bytes is not None and index.total_bytes > most_bytes:  # guard: A5 A8 F7
        raise DownloadFailed(AbortReason.IMAGE_TOO_LARGE, f"it has {index.total_bytes} bytes, max-image-bytes is {most_bytes} here")
    count = len(index.files) + len(index.symlinks) + len(index.directories) - 1
    if most_files is not None and count > most_files:  # guard: A5 F7
        raise DownloadFailed(
            AbortReason.IMAGE_TOO_LARGE, f"it has {count} files, links and directories, max-image-files is {most_files} here"
        )
    if config.symlinks is Symlinks.NONE and index.symlinks:  # guard: A3
        raise _refused(index.symlinks[0], "symlinks is none here")
    if config.symlinks is Symlinks.INSIDE:  # guard: A3
        directories = {directory.path for directory in index.directories}
        for link in index.symlinks:
            if not stays_inside(link, directories):
                raise _refused(link, "it may lead out of the image, symlinks is inside here")


def _refused(link: Symlink, why: str) -> DownloadFailed:
    return DownloadFailed(AbortReason.BAD_SYMLINK, f"{link.path[:200]!r} -> {link.target[:200]!r}: {why}")


def stays_inside(link: Symlink, directories: set[str]) -> bool:
    """Tells whether following ``link``, and whatever links of the same kind it meets, ends inside the image.

    ``..`` leads up from a directory of the image only: behind a name that may be a link nobody knows where "up" is.
    """
    if link.target.startswith("/"):  # guard: A3
        return False
    here = link.path.rpartition("/")[0]
    for part in link.target.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            here = f"{here}/{part}"
        elif here == "" or here not in directories:  # guard: A3, without 2; A3, -> here not in directories | {''}
            return False
        else:
            here = here.rpartition("/")[0]
    return True
