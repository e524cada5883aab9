"""Serving blocks: read by directory descriptors that are kept open for a while, verified each time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from ciruela.disk.layout import Place
from ciruela.disk.openfile import KEPT
from ciruela.disk.safedir import SafeDir
from ciruela.disk.tree import Tree, split
from ciruela.disk.verify import blocks_in
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.model.ids import HASH_BYTES, Block, ImageId
from ciruela.model.vpath import VPath

TREES = 16
"""Images that are kept open between requests, as far as the budget of the process goes (``openfile.Handles``); our own choice."""

DIRS_EACH = 4
FILES_EACH = 4

Key = tuple[VPath, ImageId]


class Readers:
    """Open images. Called from several threads: a thread has a tree for itself while it reads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: OrderedDict[Key, Tree] = OrderedDict()
        self._age = 0

    def forget(self, vpath: VPath) -> None:
        """Close what is open at ``vpath``; what a thread is reading is closed when it is done."""
        with self._lock:
            self._age += 1
            gone = [self._idle.pop(key) for key in list(self._idle) if key[0] == vpath]
        for tree in gone:
            self._let_go(tree)

    @staticmethod
    def _let_go(tree: Tree) -> None:
        """Close what was idle."""
        tree.close()
        KEPT.give_back()

    def close(self) -> None:
        """Close everything that is idle."""
        with self._lock:
            gone = list(self._idle.values())
            self._idle.clear()
        for tree in gone:
            self._let_go(tree)

    def read(self, place: Place, index: Index, numbers: Sequence[int], open_root: Callable[[], SafeDir]) -> list[Block | None]:
        """The blocks ``numbers`` of ``index``; None where one is not here or wrong. ``open_root`` opens the image. Raises OSError."""
        key = (place.vpath, index.image)
        with self._lock:
            age = self._age
            tree = self._idle.pop(key, None)
        if tree is None:
            tree = Tree(open_root(), DIRS_EACH, FILES_EACH)
        else:
            KEPT.give_back()
        kept = False
        try:
            result = _read(tree, index, numbers)
            with self._lock:
                if self._age == age and key not in self._idle and KEPT.take():
                    self._idle[key] = tree
                    kept = True
                # guard: A41 I6, len(self._idle) > TREES -> False
                oldest = self._idle.popitem(last=False)[1] if len(self._idle) > TREES else None
        finally:
            if not kept:
                tree.close()
        if oldest is not None:
            self._let_go(oldest)
        return result


def _read(tree: Tree, index: Index, numbers: Sequence[int]) -> list[Block | None]:
    """The blocks, each verified. A fault of the disk is None, like a block that never came: the asker goes elsewhere (threats A39).

    A file of one block is closed at once: keeping it open would only push out another.
    """
    result: list[Block | None] = []
    for run in index.blocks.runs(numbers):
        file = index.files[run.file_number]
        path = file.path
        try:
            if len(file.hashes) == HASH_BYTES:
                above, name = split(path)
                with tree.directory(above).open_read(name) as opened:
                    data = opened.read_at(file.size, 0)
            else:
                data = tree.file(path, SafeDir.open_read).read_at(file.bytes_of(run.first, run.blocks), run.first * BLOCK_BYTES)
        except OSError:  # guard: A39 F29
            tree.close_file(path)
            result += [None] * run.blocks
            continue
        # guard: A10 F51 I1, -> [data[at * BLOCK_BYTES:(at + 1) * BLOCK_BYTES] for at in range(run.blocks)]
        result += blocks_in(data, file, index.kind, run.first, run.blocks)
    return result
