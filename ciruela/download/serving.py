"""Giving blocks and indexes to others, of images that are here and of those still coming; the client gives blocks in the same way.

Only what a verified index names is read, by image and block number; a path from the wire is looked up, never opened (threats 6.6).
What is read is hashed before it is sent; a block that does not match is answered as absent, and if its image is committed here it should be
there: somebody is told.

Upload slots limit who may fetch blocks here at the same time: some are served well, instead of all of them slowly.

A node that is told to come later asks somebody else meanwhile, and finds there what those who are served have passed on. In a large cluster
that is what turns the few that have an image into many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ciruela.download.relaycache import BlockRelayCache
from ciruela.index.tree import Index
from ciruela.interfaces import BlockGiving, Disk, InThread
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import Block, ImageId
from ciruela.model.vpath import VPath
from ciruela.proto import compression
from ciruela.proto.messages import MOST_BULK_BYTES, BlockData, BlockPart, BlocksData, GetBlock, GetBlocks, GetIndex, IndexData, Response
from ciruela.runtime import Batcher, BoundedMap, in_place
from ciruela.tracking.ledger import Ledger

T = TypeVar("T")

MOST_READERS = 16
HELD_S = 3.0
"""Time without a request after which a node gives its slot to the next."""


class UploadSlots:
    """At most ``most`` readers at a time."""

    def __init__(self, clock: IReactorTime, most: int = MOST_READERS) -> None:
        self._clock = clock
        self._most = most
        self._asked_s: dict[object, float] = {}
        self.refused = 0

    def enter(self, reader: object) -> None:
        """``reader`` asks for blocks. Raises Busy when others have all slots."""
        now_s = self._clock.seconds()
        if reader not in self._asked_s and len(self._asked_s) >= self._most:
            self._asked_s = {other: asked_s for other, asked_s in self._asked_s.items() if asked_s + HELD_S > now_s}
            if len(self._asked_s) >= self._most:
                self.refused += 1
                raise Busy(f"{SLOW_DOWN}: {len(self._asked_s)} others are served here")
        self._asked_s[reader] = now_s

    def left(self, reader: object) -> None:
        """``reader`` is gone."""
        self._asked_s.pop(reader, None)


KEPT_INDEXES = 16

LARGE_BLOCKS = 20_000
"""With so many blocks, what goes over all of them is done in a thread: on the reactor it would take some tens of milliseconds and more."""


class Catalog:
    """The parsed indexes in use: the last few, verified when they were loaded, the maps of their blocks made."""

    def __init__(self, disk: Disk, in_thread: InThread = in_place) -> None:
        self._disk = disk
        self._in_thread = in_thread
        self._kept: BoundedMap[ImageId, Index] = BoundedMap(KEPT_INDEXES)
        self._loading: dict[ImageId, list[Deferred[Index | None]]] = {}

    def add(self, index: Index) -> Deferred[Index]:
        """Keep an index that was just verified. Fires with the one that is kept; the map of a large one is made in a thread."""
        kept = self._kept.get(index.image)
        if kept is not None or index.block_count < LARGE_BLOCKS:
            return succeed(self._keep(kept or index))
        return self._in_thread(getattr, index, "blocks").addCallback(lambda _: self._keep(index))

    def _keep(self, index: Index) -> Index:
        self._kept.put(index.image, index)
        return index

    def kept(self, image: ImageId) -> Index | None:
        """The index if it is in memory."""
        return self._kept.get(image)

    def images(self) -> list[ImageId]:
        """The images whose indexes are in use."""
        return [*self._kept, *self._loading]

    def get(self, image: ImageId) -> Deferred[Index | None]:
        """The index, from memory or the disk; None when the disk does not have it."""
        kept = self._kept.get(image)
        if kept is not None:
            return succeed(kept)
        waiting: Deferred[Index | None] = Deferred()
        others = self._loading.setdefault(image, [])
        others.append(waiting)
        if len(others) == 1:
            self._disk.read_index(image).addCallback(lambda index: self.add(index) if index else None).addBoth(self._loaded, image)
        return waiting

    def _loaded(self, result: Index | Failure | None, image: ImageId) -> None:
        for waiting in self._loading.pop(image):
            if isinstance(result, Failure):
                waiting.errback(result)
            else:
                waiting.callback(result)


READS_PER_JOB = 32
"""Single blocks that one job in a thread reads: 1 MiB, so that a hop to a thread costs little and no request waits for long."""


def _nothing() -> None:
    """Nothing follows."""


class TreeReader(Protocol):
    """Port to the tree of one image. Blocking: for threads, of which several may read at once."""

    def __call__(self, numbers: Sequence[int], /) -> list[Block | None]:
        """Reads blocks by their numbers. Each is verified; None stands for one that is not here, or wrong."""


class BlockServer:
    """Gives the blocks of one image out of its tree: of a scanned directory at a client, of what is here and what is coming on a node.

    Whoever owns it says who may ask, counts what was given, and acts when something could not be. Single blocks are read together, in
    batches; of many in one answer, those in ``passing`` are passed on as they came in.
    """

    def __init__(self, index: Index, read: TreeReader, in_thread: InThread, passing: BlockRelayCache | None = None) -> None:
        self.index = index
        self._read = read
        self._in_thread = in_thread
        self._passing = passing
        self._singles: Batcher[int, Block | None] = Batcher(lambda numbers: in_thread(read, numbers), READS_PER_JOB)

    def one(self, request: GetBlock, missed: Callable[[], None] = _nothing) -> Deferred[Block | None]:
        """Fires with the block of that hash, None when it cannot be given; ``missed`` is told when the image has it all the same.

        A hint that is right saves a search by hash, which is for a thread.
        """
        number = None if request.hint is None else self.index.blocks.locate(request.hint.path, request.hint.offset)
        if number is not None and self.index.blocks.hash_of(number) == request.hash:
            return self._single(number, missed)
        return self._in_thread(self.index.blocks.numbers, request.hash).addCallback(
            lambda found: self._single(found[0], missed) if found else None
        )

    def _single(self, number: int, missed: Callable[[], None]) -> Deferred[Block | None]:
        def given(data: Block | None) -> Block | None:
            if data is None:
                missed()
            return data

        return self._singles.submit(number).addCallback(given)

    def many(self, request: GetBlocks, made: Callable[[BlocksData], object]) -> BlockGiving:
        """Prepares to give those of some blocks that are here; ``made`` as in ``interfaces.BlockGiving``.

        Raises RemoteError for what the image has not, or an answer may not hold.
        """
        numbers = request.numbers
        if numbers and numbers[-1] >= self.index.block_count:  # guard: A2 F3 A29 I13
            raise RemoteError(f"there is no block {numbers[-1]}")
        if self.index.blocks.bytes_of(numbers) > MOST_BULK_BYTES:  # guard: A34 I6 F3 A29 I13
            raise RemoteError(f"at most {MOST_BULK_BYTES} bytes are given at once")
        groups = self.index.pieces.groups(numbers)
        passed = [None if self._passing is None else self._passing.get(request.image, group, request.packed) for group in groups]
        rest = [number for group, known in zip(groups, passed, strict=True) if known is None for number in group]

        def make() -> BlocksData:
            found = self._read(rest) if rest else []
            parts: list[BlockPart] = []
            data = iter(found)
            for group, known in zip(groups, passed, strict=True):
                if known is not None:
                    parts.append(known)
                elif here := [block for block in islice(data, len(group)) if block is not None]:
                    parts.append(compression.part(b"".join(here), request.packed))
            return BlocksData(tuple(parts), tuple([number for number, block in zip(rest, found, strict=True) if block is None]))

        return BlockGiving(make, made, bool(rest))


def _nobody(_vpath: VPath, _image: ImageId) -> None:
    """Nobody wants to know."""


class BlockService:
    """Answers GetIndex, GetBlock and GetBlocks on a node: of images that are here, or on their way."""

    def __init__(
        self,
        ledger: Ledger,
        disk: Disk,
        catalog: Catalog,
        passing: BlockRelayCache,
        in_thread: InThread = in_place,
        damaged: Callable[[VPath, ImageId], None] = _nobody,
    ) -> None:
        """``passing`` has what came in lately.

        ``damaged`` is told where a block of a committed image, or its index, could not be read or was wrong.
        """
        self._damaged = damaged
        self._passing = passing
        self._in_thread = in_thread
        self._ledger = ledger
        self._disk = disk
        self._catalog = catalog
        self._servers: BoundedMap[tuple[VPath, ImageId], BlockServer] = BoundedMap(KEPT_INDEXES)
        self._indexes: dict[tuple[ImageId, bool], list[Deferred[Response]]] = {}
        self._served: set[VPath] = set()
        self.sent_blocks = 0
        self.sent_bytes = 0

    def served(self) -> set[VPath]:
        """The paths of which blocks were given since the last call."""
        served, self._served = self._served, set()
        return served

    def give_index(self, request: GetIndex) -> Deferred[Response]:
        """Fires with the index of an image, or fails with RemoteError when it is not here. Those who ask at the same time share it."""

        def answer(data: bytes | None) -> IndexData | Deferred[IndexData]:
            if data is None:
                raise RemoteError("index not found")
            return self._in_thread(compression.index, data, True) if request.packed else IndexData(data)

        key = request.image, request.packed
        waiting: Deferred[Response] = Deferred()
        others = self._indexes.setdefault(key, [])
        others.append(waiting)
        if len(others) == 1:
            reading: Deferred[IndexData] = self._disk.read_index_bytes(request.image).addCallback(answer)
            reading.addBoth(self._index_read, key)
        return waiting

    def _index_read(self, result: IndexData | Failure, key: tuple[ImageId, bool]) -> None:
        for waiting in self._indexes.pop(key):
            waiting.callback(result)

    def give(self, request: GetBlock) -> Deferred[Response]:
        """Fires with the block, or fails with RemoteError when it is not here."""
        if request.hint is None:  # guard: F3 I13
            return fail(RemoteError("Hint is required for fetching blocks from server"))
        try:
            vpath = VPath.parse(request.hint.vpath)
        except ValueError as error:  # guard: F3
            return fail(RemoteError(f"the hint is not a virtual path: {error}"))
        return self._first(request, vpath, self._images(vpath))

    def give_many(self, request: GetBlocks) -> Deferred[Response]:
        """Fires with the blocks that are here; fails as :meth:`giving`."""

        def give(giving: BlockGiving) -> Deferred[Response]:
            def made(answer: BlocksData) -> Response:
                giving.made(answer)
                return answer

            return (self._in_thread(giving.make) if giving.reads else succeed(giving.make())).addCallback(made)

        return self.giving(request).addCallback(give)

    def giving(self, request: GetBlocks) -> Deferred[BlockGiving]:
        """Fires with how to give what is here of some blocks.

        Fails with RemoteError for an image that is not here, or more than an answer may hold.
        """
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            return fail(RemoteError(f"not a virtual path: {error}"))
        if request.image not in self._images(vpath):  # guard: A2 F3 I13
            return fail(RemoteError("image not found"))

        def prepare(server: BlockServer | None) -> BlockGiving:
            if server is None:
                raise RemoteError("its index is not here")
            return server.many(request, count)

        def count(answer: BlocksData) -> None:
            if answer.lacks:  # guard: A10 F51
                self._missed(vpath, request.image)
            self._count(vpath, len(request.numbers) - len(answer.lacks), sum([len(one.data) for one in answer.parts]))

        return self._server(vpath, request.image).addCallback(prepare)

    def _count(self, vpath: VPath, blocks: int, size: int) -> None:
        self._served.add(vpath)
        self.sent_blocks += blocks
        self.sent_bytes += size

    def _images(self, vpath: VPath) -> list[ImageId]:
        """The images at ``vpath`` of which something may be here: on its way, standing there, or kept, in this order."""
        pending, committed = self._ledger.pending(vpath), self._ledger.committed(vpath)
        states = (None if pending is None else pending.state, committed)
        images = [state.image for state in states if state is not None]
        return list(dict.fromkeys((*images, *(version.image for version in self._ledger.kept(vpath)))))

    def _first(self, request: GetBlock, vpath: VPath, images: list[ImageId]) -> Deferred[Response]:
        if not images:
            return fail(RemoteError("block not found"))

        def ask(server: BlockServer | None) -> Deferred[Block | None]:
            return succeed(None) if server is None else server.one(request, partial(self._missed, vpath, images[0]))

        def answer(data: Block | None) -> Response | Deferred[Response]:
            if data is None:
                return self._first(request, vpath, images[1:])
            self._count(vpath, 1, len(data))
            return BlockData(bytes(data))

        return self._server(vpath, images[0]).addCallback(ask).addCallback(answer)

    def _missed(self, vpath: VPath, image: ImageId) -> None:
        """Reports damage when a block of a committed image that is not on its way as well is missing."""
        committed, pending = self._ledger.committed(vpath), self._ledger.pending(vpath)
        if committed is not None and committed.image == image and (pending is None or pending.state.image != image):
            self._damaged(vpath, image)  # guard: A10 F51

    def _server(self, vpath: VPath, image: ImageId) -> Deferred[BlockServer | None]:
        """Fires with what gives the blocks of an image; without its index, which is damage, with None."""

        def found(index: Index | None) -> BlockServer | None:
            if index is None:
                self._missed(vpath, image)
                return None
            server = BlockServer(index, partial(self._disk.read_blocks, vpath, index), self._in_thread, self._passing)
            self._servers.put((vpath, image), server)
            return server

        server = self._servers.get((vpath, image))
        return self._catalog.get(image).addCallback(found) if server is None else succeed(server)
