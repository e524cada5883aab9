"""Files that this process has written from their first byte to their last: a commit sees that nobody else has touched one since.

Each block was hashed in the very buffer that was written, and written in full. Somebody else's write in between, or after it, changes what
the system says of the file. So the file is looked at before each write and at the commit, and whatever is not exactly as this process left
it counts as unknown: the commit reads it. Nothing is kept beyond the life of the process.

The kernel stamps a ctime with a clock that ticks every few milliseconds (those before 6.13 do even when somebody looks), so two changes may
have the same one. Each write is therefore followed by setting the mtime: a write in the same tick gives itself away by its mtime, unless it
puts that back in the same tick as well, as no program does that does not mean to, and it would have to run as the daemon's user.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Iterator
from functools import cached_property
from random import Random

from ciruela.disk.hashrecord import content_hash
from ciruela.disk.openfile import STAMP_NS, TICK_NS, OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.disk.verify import READ_BYTES, as_it_should, good_in
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.model.config import Modes

SAMPLED = 256
"""One block of so many is read at the commit all the same, and the last one of each file of several: a guard against mistakes of ours."""

MOST_YOUNG = 16
"""Small files that a commit reads because their ctime is of this moment; for more it waits until the ctime is old."""

Mark = tuple[int, int]
"""Inode and ctime of a file (ns) after our own last call; two zeros if it has other names, or another mtime than we set."""

_CREATED: Mark = (-1, 0)


def _mark(status: os.stat_result) -> Mark:
    return (status.st_ino, status.st_ctime_ns) if status.st_nlink == 1 and status.st_mtime_ns == STAMP_NS else (0, 0)


class FinishedFiles:
    """The files of ``index`` that this process puts together in the directory ``root``. They get ``modes``. For one thread at a time.

    The image and the inode of ``root`` say which blocks are the sample: another one on each node, the same when it is done again.
    """

    def __init__(self, index: Index, modes: Modes, root: SafeDir) -> None:
        self._index = index
        self._modes = modes
        self._inodes = array("Q", bytes(8 * len(index.files)))  # 0: not finished, or not by us alone
        self._ctimes = array("q", bytes(8 * len(index.files)))
        self._shared = bytearray(len(index.files))  # 1: has other names, too
        self._growing: dict[int, Mark] = {}
        self._root = root
        self._just_finished = 0

    def begin(self, number: int) -> None:
        """The file ``number`` was created just now, and has nothing in it."""
        self._growing[number] = _CREATED

    def look(self, number: int, opened: OpenFile) -> None:
        """The file is written to in a moment: it counts as unknown from now on unless it is as it was left. Raises OSError."""
        left = self._growing.get(number, _CREATED)
        if left != _CREATED and (left == (0, 0) or _mark(opened.stat()) != left):  # guard: I1 A50
            del self._growing[number]

    def wrote(self, number: int, opened: OpenFile) -> None:
        """A part of the file was written. Raises OSError."""
        if number in self._growing:
            opened.stamp()
            self._growing[number] = _mark(opened.stat())

    def finish(self, number: int, opened: OpenFile) -> None:
        """All of the file is written: give it its group, mode and times. Raises OSError."""
        modes = self._modes
        if modes.gid is not None:
            opened.chgrp(modes.gid)
        opened.chmod(modes.of_file(self._index.files[number].executable))
        opened.stamp()
        if self._growing.pop(number, None) is not None:  # guard: I1, -> True
            self._inodes[number], self._ctimes[number] = _mark(opened.stat())

    def linked(self, number: int, status: os.stat_result) -> None:
        """The file is one of another image, whose content is known for sure; ``status`` is what it is since it has a name here."""
        if status.st_mtime_ns == STAMP_NS:
            self._inodes[number], self._ctimes[number], self._shared[number] = status.st_ino, status.st_ctime_ns, 1

    def contents(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields inode, ctime (ns) and ``hashrecord.content_hash`` of each file that counts as known."""
        for number, file in enumerate(self._index.files):
            if self._inodes[number]:
                yield self._inodes[number], self._ctimes[number], content_hash(file, self._index.kind)

    def forget(self, number: int) -> None:
        """The file counts as unknown: something else than its blocks was written to it, or it is gone."""
        self._growing.pop(number, None)
        self._inodes[number] = self._shared[number] = 0

    def as_left(self, number: int, here: SafeDir, name: str, device: int) -> bool:
        """Tells whether the file, ``name`` in the directory ``here``, is what this process finished, on ``device``. Raises OSError."""
        inode = self._inodes[number]
        status = here.stat(name) if inode else None
        if status is None:
            return False
        wanted, modes = self._index.files[number], self._modes
        return bool(
            # guard: I1 A50, without 1
            (inode, self._ctimes[number]) == (status.st_ino, status.st_ctime_ns)
            and status.st_mtime_ns == STAMP_NS
            and (status.st_nlink == 1 or self._shared[number])
            and stat.S_ISREG(status.st_mode)
            and (status.st_dev, status.st_size) == (device, wanted.size)
            and as_it_should(status, modes.of_file(wanted.executable), modes.gid)
        )

    def spared(self, number: int, here: SafeDir, name: str, device: int) -> bool:
        """Tells whether a commit need not read the file: it is as it was left, and rests. Reads what is in the sample. Raises OSError.

        A large file that was finished just now is waited for, and so are more than a few small ones: that is sooner done than reading them.
        """
        if not self.as_left(number, here, name, device):
            return False
        wanted = self._index.files[number]
        age_ns = time.time_ns() - self._ctimes[number]
        if 0 <= age_ns < TICK_NS and wanted.size <= READ_BYTES and self._just_finished < MOST_YOUNG:
            self._just_finished += 1
        elif 0 <= age_ns < TICK_NS:
            time.sleep((TICK_NS - age_ns) / 1e9)
            age_ns = TICK_NS if self.as_left(number, here, name, device) else 0
        # A ctime that is ahead of the clock says that the clock was set back, and nothing else.
        return age_ns >= TICK_NS and self._sample_is_good(number, here, name)  # guard: I1 A50, without 1; I1, without 2

    @cached_property
    def _picks(self) -> list[int]:
        """For each :data:`SAMPLED` blocks of the image the number of the one that is read."""
        chance = Random(self._index.image + self._root.status().st_ino.to_bytes(8))  # noqa: S311  a sample against mistakes, not against people
        return [begin + chance.randrange(SAMPLED) for begin in range(0, self._index.block_count, SAMPLED)]

    def _sample_is_good(self, number: int, here: SafeDir, name: str) -> bool:
        if self._shared[number]:
            return True
        numbers, file = self._index.blocks.numbers_of(number), self._index.files[number]
        sample = set(self._picks[numbers.start // SAMPLED : (numbers.stop - 1) // SAMPLED + 1])
        if len(numbers) > 1:
            sample.add(numbers[-1])
        sample.intersection_update(numbers)
        if not sample:
            return True
        with here.open_read(name) as opened:
            for one in sorted(sample):
                block = one - numbers.start
                data = opened.read_at(file.block_size(block), block * BLOCK_BYTES)
                if not good_in(data, file, self._index.kind, block):  # guard: I1
                    return False
        return True
