"""Giving blocks and indexes to others, of images that are here and of those still coming.

Only what a verified index names is read, by image and block number; a path from the wire is looked up, never opened (threats 6.6).
What is read is hashed before it is sent; a block that does not match is answered as absent, and if its image is committed here it should be
there: somebody is told.

Upload slots limit who may fetch blocks here at the same time: some are served well, instead of all of them slowly.

A node that is told to come later asks somebody else meanwhile, and finds there what those who are served have passed on. In a large cluster
that is what turns the few that have an image into many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.relaycache import BlockRelayCache
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.interfaces import Disk, InThread
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import Block, ImageId
from ciruela.model.vpath import VPath
from ciruela.proto import compression
from ciruela.proto.messages import MOST_BULK_BYTES, BlockData, BlocksData, GetBlock, GetBlocks, GetIndex, IndexData
from ciruela.runtime import Batcher, in_place
from ciruela.tracking.ledger import Ledger

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
READS_PER_JOB = 32

LARGE_BLOCKS = 20_000
"""With so many blocks, what goes over all of them is done in a thread: on the reactor it would take some tens of milliseconds and more."""


def _mapped(index: Index) -> BlockMap:
    """The block map of an index, ready for everything."""
    blocks = BlockMap(index)
    if index.block_count:
        blocks.numbers(blocks.hash_of(0))
    return blocks


class Catalog:
    """The parsed indexes in use, with their block maps: the last few, verified when they were loaded."""

    def __init__(self, disk: Disk, in_thread: InThread = in_place) -> None:
        self._disk = disk
        self._in_thread = in_thread
        self._kept: OrderedDict[ImageId, tuple[Index, BlockMap]] = OrderedDict()
        self._loading: dict[ImageId, list[Deferred[tuple[Index, BlockMap] | None]]] = {}

    def add(self, index: Index) -> Deferred[tuple[Index, BlockMap]]:
        """Keep an index that was just verified. Fires with the entry; the map of a large one is made in a thread."""
        kept = self._kept.get(index.image)
        if kept is not None or index.block_count < LARGE_BLOCKS:
            return succeed(self._keep(kept or (index, BlockMap(index))))
        return self._in_thread(_mapped, index).addCallback(lambda blocks: self._keep((index, blocks)))

    def _keep(self, entry: tuple[Index, BlockMap]) -> tuple[Index, BlockMap]:
        image = entry[0].image
        self._kept[image] = entry
        self._kept.move_to_end(image)
        while len(self._kept) > KEPT_INDEXES:
            self._kept.popitem(last=False)
        return entry

    def kept(self, image: ImageId) -> tuple[Index, BlockMap] | None:
        """The entry if it is in memory."""
        return self._kept.get(image)

    def images(self) -> list[ImageId]:
        """The images whose indexes are in use."""
        return [*self._kept, *self._loading]

    def index(self, image: ImageId) -> Deferred[Index | None]:
        """As :meth:`get`, the index alone."""
        return self.get(image).addCallback(lambda entry: entry[0] if entry else None)

    def get(self, image: ImageId) -> Deferred[tuple[Index, BlockMap] | None]:
        """The entry, from memory or the disk; None when the disk does not have it."""
        waiting: Deferred[tuple[Index, BlockMap] | None] = Deferred()
        kept = self._kept.get(image)
        if kept is not None:
            waiting.callback(kept)
            return waiting
        others = self._loading.setdefault(image, [])
        others.append(waiting)
        if len(others) == 1:
            self._disk.read_index(image).addCallback(lambda index: self.add(index) if index else None).addBoth(self._loaded, image)
        return waiting

    def _loaded(self, result: tuple[Index, BlockMap] | Failure | None, image: ImageId) -> None:
        for waiting in self._loading.pop(image):
            if isinstance(result, Failure):
                waiting.errback(result)
            else:
                waiting.callback(result)


def _nobody(_vpath: VPath, _image: ImageId) -> None:
    """Nobody wants to know."""


class BlockService:
    """Answers GetBlock and GetBlocks. Single blocks of one image are read together, in batches."""

    _log = Logger()

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
        self._readers: OrderedDict[tuple[VPath, ImageId], Batcher[int, Block | None]] = OrderedDict()
        self._indexes: dict[tuple[ImageId, bool], list[Deferred[IndexData]]] = {}
        self._served: set[VPath] = set()
        self.sent_blocks = 0
        self.sent_bytes = 0

    def served(self) -> set[VPath]:
        """The paths of which blocks were given since the last call."""
        served, self._served = self._served, set()
        return served

    def give_index(self, request: GetIndex) -> Deferred[IndexData]:
        """Fires with the index of an image, or fails with RemoteError when it is not here. Those who ask at the same time share it."""

        def answer(data: bytes | None) -> IndexData | Deferred[IndexData]:
            if data is None:
                raise RemoteError("index not found")
            return self._in_thread(compression.index, data, True) if request.packed else IndexData(data)

        key = request.image, request.packed
        waiting: Deferred[IndexData] = Deferred()
        others = self._indexes.setdefault(key, [])
        others.append(waiting)
        if len(others) == 1:
            reading: Deferred[IndexData] = self._disk.read_index_bytes(request.image).addCallback(answer)
            reading.addBoth(self._index_read, key)
        return waiting

    def _index_read(self, result: IndexData | Failure, key: tuple[ImageId, bool]) -> None:
        for waiting in self._indexes.pop(key):
            waiting.callback(result)

    def give(self, request: GetBlock) -> Deferred[BlockData]:
        """Fires with the block, or fails with RemoteError when it is not here."""
        if request.hint is None:
            return fail(RemoteError("Hint is required for fetching blocks from server"))
        try:
            vpath = VPath.parse(request.hint.vpath)
        except ValueError as error:
            return fail(RemoteError(f"the hint is not a virtual path: {error}"))
        return self._first(request, vpath, self._images(vpath))

    def give_many(self, request: GetBlocks) -> Deferred[BlocksData]:
        """Fires with the blocks that are here; fails with RemoteError for an image that is not, or more than an answer may hold."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            return fail(RemoteError(f"not a virtual path: {error}"))
        if request.image not in self._images(vpath):
            return fail(RemoteError("image not found"))

        def look(entry: tuple[Index, BlockMap] | None) -> Deferred[BlocksData]:
            if entry is None:
                self._missed(None, vpath, request.image)
                raise RemoteError("its index is not here")
            index, blocks = entry
            if request.numbers and request.numbers[-1] >= len(blocks):
                raise RemoteError(f"there is no block {request.numbers[-1]}")
            if blocks.bytes_of(request.numbers) > MOST_BULK_BYTES:
                raise RemoteError(f"at most {MOST_BULK_BYTES} bytes are given at once")
            return self._parts(request, vpath, index)

        return self._catalog.get(request.image).addCallback(look)

    def _parts(self, request: GetBlocks, vpath: VPath, index: Index) -> Deferred[BlocksData]:
        """The parts that came in lately as they came, the others from the disk."""
        groups = index.pieces.groups(request.numbers)
        passed = [self._passing.get(request.image, group, request.packed) for group in groups]
        rest = [number for group, known in zip(groups, passed, strict=True) if known is None for number in group]

        def join(found: list[Block | None]) -> BlocksData:
            data = dict(zip(rest, found, strict=True))
            parts = []
            for group, known in zip(groups, passed, strict=True):
                here = () if known is not None else [block for number in group if (block := data[number]) is not None]
                if known is not None:
                    parts.append(known)
                elif here:
                    parts.append(compression.part(b"".join(here), request.packed))
            return BlocksData(tuple(parts), tuple(number for number in rest if data[number] is None))

        def count(answer: BlocksData) -> BlocksData:
            if answer.lacks:
                self._missed(None, vpath, request.image)
            self._count(vpath, len(request.numbers) - len(answer.lacks), sum(len(one.data) for one in answer.parts))
            return answer

        if not rest:
            return succeed(count(join([])))
        reading = self._disk.read_blocks(vpath, index, rest)
        return reading.addCallback(lambda found: self._in_thread(join, found)).addCallback(count)

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

    def _first(self, request: GetBlock, vpath: VPath, images: list[ImageId]) -> Deferred[BlockData]:
        if not images:
            return fail(RemoteError("block not found"))

        def look(entry: tuple[Index, BlockMap] | None) -> Deferred[Block | None]:
            if entry is None:
                self._missed(None, vpath, images[0])
                return succeed(None)
            number = self._number(request, entry[1])
            if number is None:
                return succeed(None)
            return self._reader(vpath, entry[0]).submit(number).addCallback(self._missed, vpath, images[0])

        def answer(data: Block | None) -> BlockData | Deferred[BlockData]:
            if data is None:
                return self._first(request, vpath, images[1:])
            self._count(vpath, 1, len(data))
            return BlockData(bytes(data))

        return self._catalog.get(images[0]).addCallback(look).addCallback(answer)

    def _missed(self, data: Block | None, vpath: VPath, image: ImageId) -> Block | None:
        """Reports damage when a block of a committed image that is not on its way as well is missing. Passes ``data`` on."""
        committed, pending = self._ledger.committed(vpath), self._ledger.pending(vpath)
        if data is None and committed is not None and committed.image == image and (pending is None or pending.state.image != image):
            self._damaged(vpath, image)
        return data

    def _number(self, request: GetBlock, blocks: BlockMap) -> int | None:
        assert request.hint is not None
        if request.hint.offset % BLOCK_BYTES == 0:
            number = blocks.locate(request.hint.path, request.hint.offset)
            if number is not None:
                file, block = blocks.by_number(number)
                if file.block_hash(block) == request.hash:
                    return number
        return next(iter(blocks.numbers(request.hash)), None)

    def _reader(self, vpath: VPath, index: Index) -> Batcher[int, Block | None]:
        key = (vpath, index.image)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = Batcher(lambda numbers: self._disk.read_blocks(vpath, index, numbers), READS_PER_JOB)
            while len(self._readers) > KEPT_INDEXES:
                self._readers.popitem(last=False)
        self._readers.move_to_end(key)
        return reader
