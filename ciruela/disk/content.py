"""What of an image is here: block by block, and the tree in which it is put together."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from itertools import groupby

from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.tree import Tree, split
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.merge import BlockMap
from ciruela.index.tree import File, Index

FRESH_MODE = 0o600
"""Mode of a file that is still being written."""

_ZEROS = bytes(BLOCK_BYTES)


def writable(opened: OpenFile) -> bool:
    """Whether a file was created here and nobody else can have it: a file of an image has another mode."""
    status = opened.first
    return status.st_nlink == 1 and stat.S_IMODE(status.st_mode) == FRESH_MODE


def open_target(directory: SafeDir, name: str) -> tuple[OpenFile, bool]:
    """Open a file of ours to write, or create it: then True. Any other is replaced, for it must not change."""
    try:
        return directory.create(name, FRESH_MODE), True
    except FileExistsError:
        pass
    opened = directory.open_write(name)
    if writable(opened):
        return opened, False
    opened.close()
    directory.unlink(name)
    return directory.create(name, FRESH_MODE), True


def is_zero(data: bytes | memoryview) -> bool:
    """Whether a block has zeros alone. Most others show that by their first byte."""
    return not data[0] and not data[-1] and data == _ZEROS[: len(data)]


class Content:
    """The blocks of ``index`` in ``tree``. Whoever puts one there has checked its hash before. Not for two threads at once.

    A block of zeros is not written into a file that was created here: it stays a hole, which takes no space and reads the same.
    """

    def __init__(self, index: Index, tree: Tree) -> None:
        self.index = index
        self.tree = tree
        self.blocks = BlockMap(index)
        self._here = bytearray(index.block_count)
        self._fresh: dict[str, bool] = {}  # large files, created here, nothing but blocks in them: whether one has its full size

    def has(self, number: int) -> bool:
        """Whether a block is here."""
        return bool(self._here[number])

    def whole(self, file_number: int) -> bool:
        """Whether all blocks of a file are here."""
        numbers = self.blocks.numbers_of(file_number)
        return self._here.find(0, numbers.start, numbers.stop) < 0

    def missing(self, file_number: int) -> list[int]:
        """The numbers, within the file, of its blocks that are not here."""
        numbers = self.blocks.numbers_of(file_number)
        return [block for block, here in enumerate(self._here[numbers.start : numbers.stop]) if not here]

    def missing_bytes(self) -> int:
        """The size of all that is not here."""
        files, missing = self.blocks.files, 0
        for file_number in range(len(files)):
            if not self.whole(file_number):
                missing += sum(files[file_number].block_size(block) for block in self.missing(file_number))
        return missing

    def numbers(self) -> frozenset[int]:
        """The numbers of the blocks that are here."""
        return frozenset(number for number, here in enumerate(self._here) if here)

    def add(self, file_number: int, blocks: Iterable[int]) -> None:
        """These blocks of a file are here."""
        first = self.blocks.numbers_of(file_number).start
        for block in blocks:
            self._here[first + block] = 1

    def add_file(self, file_number: int) -> None:
        """A whole file is here."""
        numbers = self.blocks.numbers_of(file_number)
        self._here[numbers.start : numbers.stop] = b"\1" * len(numbers)

    def drop_file(self, file_number: int) -> None:
        """What was here of a file is gone."""
        numbers = self.blocks.numbers_of(file_number)
        self._here[numbers.start : numbers.stop] = bytes(len(numbers))

    def put(self, file_number: int, block: int, *data: bytes | memoryview) -> None:
        """Write blocks of a file to their places, from ``block`` on. Raises OSError."""
        file = self.blocks.files[file_number]
        if file.block_count == 1:
            above, name = split(file.path)
            opened, fresh = open_target(self.tree.directory(above, create=True), name)
            with opened:
                if fresh and is_zero(data[0]):
                    opened.resize(file.size)
                else:
                    opened.write_at(data[0], 0)
        else:
            self._write(self._target(file), file, block, data)
        first = self.blocks.numbers_of(file_number).start + block
        self._here[first : first + len(data)] = b"\1" * len(data)

    def _write(self, opened: OpenFile, file: File, block: int, data: Sequence[bytes | memoryview]) -> None:
        """Write a run of blocks, and leave holes for those that are zero, where nothing else can have been written before."""
        if file.path not in self._fresh or not any(map(is_zero, data)):
            opened.write_run(data, block * BLOCK_BYTES)
            return
        if not self._fresh[file.path]:
            opened.resize(file.size)
            self._fresh[file.path] = True
        for zero, run in groupby(enumerate(data, block), lambda one: is_zero(one[1])):
            if not zero:
                blocks = list(run)
                opened.write_run([one for _, one in blocks], blocks[0][0] * BLOCK_BYTES)

    def target(self, file: File) -> OpenFile:
        """The open file of ours at the path of ``file``, for whoever writes more to it than its blocks; open until the next call.

        Raises OSError.
        """
        found = self._target(file)
        self._fresh.pop(file.path, None)
        return found

    def _target(self, file: File) -> OpenFile:
        return self.tree.file(file.path, lambda directory, name: self._opened(directory, name, file.path), create=True)

    def _opened(self, directory: SafeDir, name: str, path: str) -> OpenFile:
        opened, fresh = open_target(directory, name)
        if fresh:
            self._fresh[path] = False
        return opened
