"""Serves the scanned directories to the nodes: indexes from memory, blocks from the disk, nothing else (protocol section 6.2).

A node gets only what was published on its own connection. Anything else that it asks for is answered with an error and costs it nothing
more; it never ends the client (threats U18).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred, fail

from ciruela.client.pace import PATIENCE_S, Pace
from ciruela.client.shares import Shares
from ciruela.clockwork import Batch
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import Block, BlockHash, ImageId
from ciruela.proto.messages import MOST_BULK_BYTES, BlockData, BlocksData, GetBlock, GetBlocks, GetIndex, IndexData, Request, Response
from ciruela.proto.packing import index, part
from ciruela.seams import InThread

BLOCKS_PER_HOP = 32
"""Blocks that one job in a thread reads: 1 MiB, so that a hop to a thread costs little and no request waits for long."""


class Tree(Protocol):
    """The files of one scanned directory. Blocking: only called in a thread."""

    @property
    def changed(self) -> Collection[str]:
        """Paths of files that are no longer as they were scanned."""

    def read(self, hashes: Sequence[BlockHash]) -> list[bytes | None]:
        """The blocks, each verified; None where the file changed or cannot be read."""

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        """As :meth:`read`, by their numbers in the index."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One image that this client can give. ``source`` is the directory as the user named it."""

    index: Index
    data: bytes
    tree: Tree
    source: str


class Giver(Protocol):
    """What a run gives to the nodes: a :class:`Source`, or ``relay.Relay``."""

    def shares(self) -> dict[ImageId, Shares]:
        """For each image who takes which part of it, on one cluster."""

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """Answer a node to which ``published`` were published; ``sent`` is told how many bytes of which image that takes."""


class _Shelf:
    """One offer with its queue of reads."""

    def __init__(self, offer: Offer, in_thread: InThread) -> None:
        self.offer = offer
        self.blocks = BlockMap(offer.index)
        self.reads: Batch[BlockHash, bytes | None] = Batch(lambda hashes: in_thread(offer.tree.read, hashes), BLOCKS_PER_HOP)


class Source:
    """All images of one run. ``changed`` is called with an image and a sentence when a block can no longer be given.

    With ``pace``, what is given to all nodes together keeps to it.
    """

    def __init__(
        self, offers: Iterable[Offer], in_thread: InThread, changed: Callable[[ImageId, str], None], pace: Pace | None = None
    ) -> None:
        self._pace = pace
        self._shelves: dict[ImageId, _Shelf] = {}
        self._changed = changed
        self._in_thread = in_thread
        self._latest: ImageId | None = None
        for offer in offers:
            if offer.index.image not in self._shelves:
                self._shelves[offer.index.image] = _Shelf(offer, in_thread)

    def shares(self) -> dict[ImageId, Shares]:
        """For each image who takes which part of it, on one cluster."""
        shelves = [(shelf.offer.index, shelf.blocks.bytes_of) for shelf in self._shelves.values()]
        return {index.image: Shares(index.pieces, index.total_bytes, bytes_of=bytes_of) for index, bytes_of in shelves}

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """Answer a node to which the images ``published`` were offered; ``sent`` is told which image how many bytes went out for.

        Fails with RemoteError for what this client does not serve, with Busy for blocks that would have to wait for long.
        """
        pace = self._pace
        if pace is None:
            return self._give(request, published, sent)
        if isinstance(request, GetBlocks) and pace.wait_s > PATIENCE_S:
            return fail(Busy(f"{SLOW_DOWN}: this client sends no faster"))
        sizes: list[tuple[ImageId, int]] = []

        def paced(response: Response) -> Deferred[Response]:
            return pace.turn(sum(size for _, size in sizes)).addCallback(gone, response)

        def gone(_: None, response: Response) -> Response:
            for image, size in sizes:
                sent(image, size)
            return response

        return self._give(request, published, lambda image, size: sizes.append((image, size))).addCallback(paced)

    def _give(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        match request:
            case GetIndex(image=image):
                shelf = self._shelves.get(image) if image in published else None
                if shelf is None:
                    return fail(RemoteError("this client has not published that image"))
                return self._in_thread(index, shelf.offer.data, request.packed).addCallback(self._index_read, image, sent)
            case GetBlock(hash=block):
                return Deferred.fromCoroutine(self._block(block, published, sent))
            case GetBlocks(image=image):
                shelf = self._shelves.get(image) if image in published else None
                if shelf is None:
                    return fail(RemoteError("this client has not published that image"))
                return self._blocks(shelf, request, sent)
            case _:
                return fail(RemoteError(f"a client does not answer {type(request).__name__}"))

    def _index_read(self, answer: IndexData, image: ImageId, sent: Callable[[ImageId, int], None]) -> Response:
        sent(image, len(answer.data))
        return answer

    def _blocks(self, shelf: _Shelf, request: GetBlocks, sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """All blocks of one answer are read, and packed, by one job in a thread."""
        numbers = request.numbers
        if not numbers or numbers[-1] >= len(shelf.blocks) or shelf.blocks.bytes_of(numbers) > MOST_BULK_BYTES:
            return fail(RemoteError("that image does not have these blocks, or they are too much for one answer"))

        def read() -> BlocksData:
            parts = []
            lacks: list[int] = []
            for group in shelf.offer.index.pieces.groups(numbers):
                found = shelf.offer.tree.blocks(group)
                here = [one for one in found if one is not None]
                lacks.extend(number for number, one in zip(group, found, strict=True) if one is None)
                if here:
                    parts.append(part(b"".join(here), request.packed))
            return BlocksData(tuple(parts), tuple(lacks))

        def counted(answer: BlocksData) -> Response:
            if answer.lacks:
                self._tell_changed(shelf)
            if answer.parts:
                sent(shelf.offer.index.image, sum(len(one.data) for one in answer.parts))
            return answer

        return self._in_thread(read).addCallback(counted)

    async def _block(self, block: BlockHash, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Response:
        """Look in every published image, first in the one that gave the last block: nodes fetch one image after the other."""
        shelves = [self._shelves[image] for image in sorted(published, key=lambda image: image != self._latest)]
        for shelf in shelves:
            data = await shelf.reads.submit(block)
            if data is not None:
                self._latest = shelf.offer.index.image
                sent(self._latest, len(data))
                return BlockData(data)
        for shelf in shelves:
            self._tell_changed(shelf)
        raise RemoteError("this client does not have that block, or its file changed")

    def _tell_changed(self, shelf: _Shelf) -> None:
        paths = sorted(shelf.offer.tree.changed)
        if paths:
            shown = shelf.offer.source.rstrip("/") + paths[0]  # only one: what follows must not be cut off
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self._changed(shelf.offer.index.image, f"{shown}{more}: changed or vanished since it was indexed; run the command again")
