"""Makes the index of a directory: walks it, hashes every block, says what was left out (protocol section 1.2, threats A1).

A few threads. One walks and hashes small files, in long runs, because handing the interpreter back and forth for each small read
costs more than a second thread gains; files above ``walk.LARGE_BYTES`` are cut into pieces, which all threads hash. The reactor only hands
out the work. What is known from an earlier scan and has not changed is not read (``hashcache``).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import field
from functools import cached_property
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ciruela.disk.excludes import Excludes
from ciruela.disk.hashcache import HashCache, Keys
from ciruela.disk.walk import BACKLOG_FILES, PIECE_BYTES, SLICE_S, Large, Piece, Walk, piece_size
from ciruela.index.digest import HashKind
from ciruela.index.parse import parse
from ciruela.index.tree import Index
from ciruela.interfaces import InThread
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass

T = TypeVar("T")

THREADS = min(4, max(2, os.cpu_count() or 2))
"""One for each core, since the interpreter is let go of while a block is read and hashed; two on a single core, so that a slow disk is not
waited for; no more than the client's threads, and than memory can feed."""


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """Counts of what is in the index by now."""

    dirs: int
    files: int
    symlinks: int
    bytes: int


@dataclass(frozen=True)
class Scan:
    """A scanned directory: its index, one sentence for each thing that does not fit into one, and what it took.

    ``excluded``: how many files and directories were left out by patterns, not counting what is in these directories; ``excluded_paths``
    names the first of them. ``unkept``: what of the files no image keeps, as :meth:`Unkept.told` says it.
    ``seen``: by path, the keys (``hashcache.key_of``) of files of several blocks that can be told to be unchanged by them.
    """

    image: ImageId
    data: bytes
    warnings: tuple[str, ...]
    dirs: int
    files: int
    symlinks: int
    bytes: int
    seconds: float
    excluded: int = 0
    excluded_paths: tuple[str, ...] = ()
    unkept: tuple[str, ...] = ()
    seen: Keys = field(default_factory=dict)

    @cached_property
    def index(self) -> Index:
        """The index as values. The first use takes as long as ``parse``, so it should be in a thread."""
        return parse(self.data, self.image)


def scan(
    root: str,
    kind: HashKind,
    in_thread: InThread,
    progress: Callable[[ScanProgress], None],
    now_s: Callable[[], float] = time.monotonic,
    caches: HashCache | None = None,
    excludes: Excludes | None = None,
    wall_ns: Callable[[], int] = time.time_ns,
) -> Deferred[Scan]:
    """Index the directory ``root``. Symlinks may lead to it; none is followed below it.

    What ``excludes`` leaves out is neither read nor entered. With ``caches``, files that are known and unchanged are not read.
    ``progress`` is called on the reactor, at most once in ``walk.SLICE_S`` seconds of ``now_s`` and at the end. Fails with DiskError,
    which names the path and what to do, for what cannot be read, has no UTF-8 name, or changed meanwhile. Cancel to stop within one
    file.
    """
    return _Scanner(Walk(root, kind, now_s, caches, excludes, wall_ns), in_thread, progress, now_s).start()


class _Scanner:
    """Hands out the work, on the reactor. ``_walk`` walks in one thread at a time; what pieces need of it does not change."""

    def __init__(self, walk: Walk, in_thread: InThread, progress: Callable[[ScanProgress], None], now_s: Callable[[], float]) -> None:
        self._walk = walk
        self._in_thread = in_thread
        self._progress = progress
        self._now_s = now_s
        self._began_s = self._reported_s = now_s()
        self._done: Deferred[Scan] = Deferred(self._cancelled)
        self._failure: Failure | None = None
        self._walking = False
        self._busy = 0
        self._pumping = False
        self._open: set[Large] = set()
        self._pieces: deque[Piece] = deque()
        self._large_files = 0
        self._large_bytes = 0

    def start(self) -> Deferred[Scan]:
        self._pump()
        return self._done

    def _cancelled(self, _done: Deferred[Scan]) -> None:
        self._walk.stopped = True

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._hand_out():
                pass
        finally:
            self._pumping = False
        if self._busy == 0:
            self._conclude()

    def _hand_out(self) -> bool:
        """Start one job if there is one to start."""
        if self._walk.stopped or self._busy == THREADS:
            return False
        if not self._walking and not self._walk.ended and len(self._open) < BACKLOG_FILES:
            self._walking = True
            self._run(self._in_thread(self._walk.slice), self._walked)
            return True
        if self._pieces:
            pieces = self._some_pieces()
            self._run(self._in_thread(self._walk.hash_pieces, pieces), lambda hashes: self._hashed(pieces, hashes))
            return True
        return False

    def _some_pieces(self) -> list[Piece]:
        """The next pieces, about :data:`PIECE_BYTES` together: a hop to a thread for each file of a megabyte would cost too much."""
        pieces: list[Piece] = []
        amount = 0
        while self._pieces and amount < PIECE_BYTES:
            pieces.append(self._pieces.popleft())
            amount += piece_size(pieces[-1])
        return pieces

    def _run(self, job: Deferred[T], landed: Callable[[T], None]) -> None:
        self._busy += 1
        job.addCallback(landed)
        job.addCallback(self._report)
        job.addErrback(self._failed)
        job.addBoth(self._next)

    def _walked(self, found: list[Large]) -> None:
        self._walking = False
        for large in found:
            self._open.add(large)
            self._pieces.extend((large, offset) for offset in large.offsets)

    def _hashed(self, pieces: list[Piece], hashes: list[bytes]) -> None:
        for piece, digests in zip(pieces, hashes, strict=True):
            large, offset = piece
            large.hashed[offset] = digests
            self._large_bytes += piece_size(piece)
            if large.whole:
                large.file.close()
                self._open.remove(large)
                self._large_files += 1

    def _report(self, _: object) -> None:
        now_s = self._now_s()
        if now_s - self._reported_s >= SLICE_S and not self._walk.stopped:
            self._reported_s = now_s
            self._progress(self._so_far())

    def _so_far(self) -> ScanProgress:
        walk = self._walk
        return ScanProgress(walk.dirs, walk.files + self._large_files, walk.symlinks, walk.bytes + self._large_bytes)

    def _failed(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure
        self._walk.stopped = True

    def _next(self, _: object) -> None:
        self._busy -= 1
        self._pump()

    def _conclude(self) -> None:
        """Nothing runs in a thread any more."""
        self._walk.close()
        for large in self._open:
            large.file.close()
        if self._done.called:
            return
        if self._failure is not None:
            self._done.errback(self._failure)
            return
        self._in_thread(self._walk.build).addCallback(self._built).addErrback(self._not_built)

    def _built(self, built: tuple[ImageId, bytes]) -> None:
        if self._done.called:
            return
        image, data = built
        total = self._so_far()
        self._progress(total)
        seconds = self._now_s() - self._began_s
        warnings = tuple(self._walk.warnings)
        excluded, paths = self._walk.excluded, tuple(self._walk.excluded_paths)
        unkept = self._walk.unkept.told()
        numbers = total.dirs, total.files, total.symlinks, total.bytes
        self._done.callback(Scan(image, data, warnings, *numbers, seconds, excluded, paths, unkept, self._walk.seen))

    def _not_built(self, failure: Failure) -> None:
        if not self._done.called:
            self._done.errback(failure)
