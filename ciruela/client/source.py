"""Serves the scanned directories to the nodes: indexes from memory, blocks from the disk, nothing else (protocol section 6.2).

A node gets only what was published on its own connection. Anything else that it asks for is answered with an error and costs it nothing
more; it never ends the client (threats U18).

``--limit-rate``: when bytes may go out, so that all connections together stay below a rate.

:class:`Shares` assigns the parts of an image to nodes: every part once, before any of them twice. Values only, no I/O.

The nodes give each other the rest, so the client sends little more than one copy, whatever the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred, fail

from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.interfaces import InThread
from ciruela.model.bitfield import Pieces
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import Block, BlockHash, ImageId
from ciruela.proto.compression import index, part
from ciruela.proto.messages import MOST_BULK_BYTES, BlockData, BlocksData, GetBlock, GetBlocks, GetIndex, IndexData, Request, Response
from ciruela.runtime import Batcher, TokenBucket

BytesOf = Callable[[Sequence[int]], int]

BYTES_AT_ONCE = 2 * 1024 * 1024
"""A node is promised about so much at a time: faster nodes come back sooner, and get more."""


class Shares:
    """The pieces of one image of ``total_bytes``, and to whom each is promised.

    ``own``: the pieces that are promised at all; of an edited image, what the client itself has. The nodes have the others.
    ``bytes_of`` gives the size of some blocks, where somebody wants to know :attr:`given_bytes`.
    """

    def __init__(self, pieces: Pieces, total_bytes: int, own: int | None = None, bytes_of: BytesOf | None = None) -> None:
        self._pieces = pieces
        self._bytes_of = bytes_of
        self._seen = bytearray(pieces.block_count if bytes_of is not None else 0)
        self._given_bytes = 0
        self._own = pieces.full if own is None else own
        self._at_once = max(1, min(pieces.count, BYTES_AT_ONCE * pieces.count // max(1, total_bytes)))
        self._promised: dict[Hashable, int] = {}
        self._lacked = self._given = 0

    def take(self, taker: Hashable, missing: bytes) -> bytes:
        """Promise the first of the pieces ``missing`` to ``taker``. Gives them as a mask; 0 when the others have all of them.

        Raises RemoteError for a mask that is not one of this image.
        """
        try:
            free = self._pieces.from_bytes(missing) & self._own
        except ValueError as error:
            raise RemoteError(str(error)) from None
        if taker not in self._promised:
            self._lacked |= free  # the first time a node names everything that it has not found on its own disk
        for other, mask in self._promised.items():
            if other != taker:
                free &= ~mask
        chosen = 0
        for _ in range(self._at_once):
            lowest = free & -free
            chosen |= lowest
            free ^= lowest
        self._promised[taker] = self._promised.get(taker, 0) | chosen
        self._given |= chosen
        return self._pieces.to_bytes(chosen)

    @property
    def given(self) -> float | None:
        """Part of what nodes lack that was promised to any of them, 0.0 to 1.0; None while no node has said what it lacks."""
        return (self._given & self._lacked).bit_count() / self._lacked.bit_count() if self._lacked else None

    def gave(self, numbers: Sequence[int]) -> None:
        """Some blocks went out, perhaps not for the first time."""
        fresh = [number for number in numbers if number < len(self._seen) and not self._seen[number]]
        if self._bytes_of is not None and fresh:
            self._given_bytes += self._bytes_of(fresh)
            for number in fresh:
                self._seen[number] = 1

    @property
    def given_bytes(self) -> int | None:
        """The size of all blocks that went out, each counted once, as they are in the image; None where that is not counted."""
        return None if self._bytes_of is None else self._given_bytes

    def left(self, taker: Hashable) -> None:
        """``taker`` is gone; what it did not pass on others may take."""
        self._promised.pop(taker, None)


PATIENCE_S = 2.0
"""Blocks that would wait for longer are refused as busy. A node waits three seconds at least before it gives up an answer, which would
then be sent for nothing; one that hears "busy" asks others meanwhile, and comes back."""

SHARED_BYTES_S = 20_000_000
"""Below this rate everything goes to one node, which passes it on just as soon. Three would each hear so little of the client that they
ask for what the others were promised, and it would be sent twice."""


BLOCKS_PER_HOP = 32
"""Blocks that one job in a thread reads: 1 MiB, so that a hop to a thread costs little and no request waits for long."""


class ScannedTree(Protocol):
    """The files of one scanned directory. Blocking: only called in a thread."""

    @property
    def changed(self) -> Collection[str]:
        """Paths of files that are no longer as they were scanned."""

    def read(self, hashes: Sequence[BlockHash]) -> list[bytes | None]:
        """The blocks, each verified; None where the file changed or cannot be read."""

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        """As :meth:`read`, by their numbers in the index."""


@dataclass(frozen=True, slots=True)
class SharedImage:
    """One image that this client can give. ``source`` is the directory as the user named it."""

    index: Index
    data: bytes
    tree: ScannedTree
    source: str


class BlockProvider(Protocol):
    """Source of what a run gives to the nodes: a :class:`ImageSource`, or ``fetch.Relay``."""

    def shares(self) -> dict[ImageId, Shares]:
        """For each image who takes which part of it, on one cluster."""

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """Answer a node to which ``published`` were published; ``sent`` is told how many bytes of which image that takes."""


class _SharedImages:
    """One offer with its queue of reads."""

    def __init__(self, offer: SharedImage, in_thread: InThread) -> None:
        self.offer = offer
        self.blocks = BlockMap(offer.index)
        self.reads: Batcher[BlockHash, bytes | None] = Batcher(lambda hashes: in_thread(offer.tree.read, hashes), BLOCKS_PER_HOP)


class ImageSource:
    """All images of one run. ``changed`` is called with an image and a sentence when a block can no longer be given.

    With ``pace``, what is given to all nodes together keeps to it.
    """

    def __init__(
        self, offers: Iterable[SharedImage], in_thread: InThread, changed: Callable[[ImageId, str], None], pace: TokenBucket | None = None
    ) -> None:
        self._pace = pace
        self._shelves: dict[ImageId, _SharedImages] = {}
        self._changed = changed
        self._in_thread = in_thread
        self._latest: ImageId | None = None
        for offer in offers:
            if offer.index.image not in self._shelves:
                self._shelves[offer.index.image] = _SharedImages(offer, in_thread)

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

    def _blocks(self, shelf: _SharedImages, request: GetBlocks, sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
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

    def _tell_changed(self, shelf: _SharedImages) -> None:
        paths = sorted(shelf.offer.tree.changed)
        if paths:
            shown = shelf.offer.source.rstrip("/") + paths[0]  # only one: what follows must not be cut off
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self._changed(shelf.offer.index.image, f"{shown}{more}: changed or vanished since it was indexed; run the command again")
