"""Serves the scanned directories to the nodes: indexes from memory, blocks from the disk, nothing else (protocol section 6.2).

A node gets only what was published on its own connection. Anything else that it asks for is answered with an error and costs it nothing
more; it never ends the client (threats U18).

``--limit-rate``: when bytes may go out, so that all connections together stay below a rate.

:class:`Shares` assigns the parts of an image to nodes: every part once, before any of them twice. Values only, no I/O.

The nodes give each other the rest, so the client sends little more than one copy, whatever the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import partial
from typing import Protocol

from twisted.internet.defer import Deferred, fail

from ciruela.download.serving import BlockServer
from ciruela.index.tree import Index
from ciruela.interfaces import BlockGiving, InThread
from ciruela.model.bitfield import Pieces
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import Block, ImageId
from ciruela.model.values import dataclass
from ciruela.proto.compression import index
from ciruela.proto.messages import MOST_BROUGHT_BYTES, BlockData, BlocksData, GetBlock, GetBlocks, GetIndex, ImageContent, Request, Response
from ciruela.runtime import TokenBucket

BytesOf = Callable[[Sequence[int]], int]

BYTES_AT_ONCE = 2 * 1024 * 1024
"""A node is promised about so much at a time: faster nodes come back sooner, and get more."""


class Shares:
    """The pieces of one image of ``total_bytes``, and to whom each is promised.

    ``own``: the pieces that are promised at all; of an edited image, what the client itself has. The nodes have the others.
    ``bytes_of`` gives the size of some blocks, where somebody wants to know :attr:`given_bytes`.
    """

    def __init__(self, pieces: Pieces, total_bytes: int, own: int | None = None, bytes_of: BytesOf | None = None) -> None:
        self.pieces = pieces
        self.total_bytes = total_bytes
        self._bytes_of = bytes_of
        self._seen = bytearray(pieces.block_count if bytes_of is not None else 0)
        self._given_bytes = 0
        self.own = pieces.full if own is None else own
        self._at_once = max(1, min(pieces.count, BYTES_AT_ONCE * pieces.count // max(1, total_bytes)))
        self._promised: dict[Hashable, int] = {}
        self._lacked = self._given = 0

    def take(self, taker: Hashable, missing: bytes) -> bytes:
        """Promise the first of the pieces ``missing`` to ``taker``. Gives them as a mask; 0 when the others have all of them.

        Raises RemoteError for a mask that is not one of this image.
        """
        try:
            free = self.pieces.from_bytes(missing) & self.own
        except ValueError as error:  # guard: A24
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
        return self.pieces.to_bytes(chosen)

    def lacked(self, pieces: int) -> None:
        """A node lacks ``pieces`` (a mask)."""
        self._lacked |= pieces & self.own

    def promised(self, pieces: int) -> None:
        """``pieces`` (a mask) were given to a node."""
        self._given |= pieces

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


class ScannedTree(Protocol):
    """The files of one scanned directory. Blocking: only called in a thread."""

    @property
    def changed(self) -> Collection[str]:
        """Paths of files that are no longer as they were scanned."""

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        """The blocks by their numbers in the index, each verified; None where the file changed or cannot be read."""


@dataclass(frozen=True, slots=True)
class SharedImage:
    """One image that this client can give. ``source`` is the directory as the user named it, ``content`` a small image itself."""

    index: Index
    data: bytes
    tree: ScannedTree
    source: str
    content: ImageContent | None = None


def small_content(index: Index, data: bytes, tree: ScannedTree) -> ImageContent | None:
    """Reads an image that is small enough to come with an order; None for a larger one, or one that has changed. Blocking."""
    if len(data) + index.total_bytes > MOST_BROUGHT_BYTES:
        return None
    blocks = [block for block in tree.blocks(range(index.block_count)) if block is not None]
    return ImageContent(data, b"".join(blocks)) if len(blocks) == index.block_count else None


class BlockProvider(Protocol):
    """Source of what a run gives to the nodes: a :class:`ImageSource`, or ``fetch.Relay``."""

    def shares(self) -> dict[ImageId, Shares]:
        """For each image who takes which part of it, on one cluster."""

    def content(self, image: ImageId) -> ImageContent | None:
        """A small image itself, to come with the order."""

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """Answer a node to which ``published`` were published; ``sent`` is told how many bytes of which image that takes."""

    @property
    def wide(self) -> bool:
        """Tells whether blocks may be given over bulk connections."""

    def giving(self, request: GetBlocks, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> BlockGiving:
        """As :meth:`answer`, for blocks over a bulk connection. Raises RemoteError."""


class ImageSource:
    """All images of one run. ``changed`` is called with an image and a sentence when a block can no longer be given.

    With ``pace``, what is given to all nodes together keeps to it.
    """

    def __init__(
        self, offers: Iterable[SharedImage], in_thread: InThread, changed: Callable[[ImageId, str], None], pace: TokenBucket | None = None
    ) -> None:
        self._pace = pace
        self._shared: dict[ImageId, tuple[SharedImage, BlockServer]] = {}
        self._changed = changed
        self._in_thread = in_thread
        self._latest: ImageId | None = None
        for offer in offers:
            if offer.index.image not in self._shared:
                self._shared[offer.index.image] = offer, BlockServer(offer.index, offer.tree.blocks, in_thread)

    def shares(self) -> dict[ImageId, Shares]:
        """For each image who takes which part of it, on one cluster."""
        indexes = [offer.index for offer, _ in self._shared.values()]
        return {index.image: Shares(index.pieces, index.total_bytes, bytes_of=index.blocks.bytes_of) for index in indexes}

    def content(self, image: ImageId) -> ImageContent | None:
        """A small image itself, to come with the order; None where a rate is kept to."""
        shared = self._shared.get(image)
        return None if shared is None or self._pace is not None else shared[0].content

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """Answer a node to which the images ``published`` were offered; ``sent`` is told which image how many bytes went out for.

        Fails with RemoteError for what this client does not serve, with Busy for blocks that would have to wait for long.
        """
        pace = self._pace
        if pace is not None and isinstance(request, GetBlocks) and pace.wait_s > PATIENCE_S:  # guard: F54
            return fail(Busy(f"{SLOW_DOWN}: this client sends no faster"))

        def paced(answer: tuple[ImageId, int, Response]) -> Deferred[Response] | Response:
            return gone(None, *answer) if pace is None else pace.turn(answer[1]).addCallback(gone, *answer)

        def gone(_: None, image: ImageId, size: int, response: Response) -> Response:
            if size:
                sent(image, size)
            return response

        return Deferred.fromCoroutine(self._give(request, published)).addCallback(paced)

    async def _give(self, request: Request, published: Collection[ImageId]) -> tuple[ImageId, int, Response]:
        """The answer, of which image it is, and the bytes that count as sent."""
        match request:
            case GetIndex(image=image):
                offer, _ = self._published(image, published)
                answer = await self._in_thread(index, offer.data, request.packed)
                return image, len(answer.data), answer
            case GetBlock():
                image, data = await self._block(request, published)
                return image, len(data), BlockData(data)
            case GetBlocks(image=image, numbers=numbers) if numbers:
                offer, server = self._published(image, published)
                blocks = await self._in_thread(server.many(request, partial(self._given, offer)).make)
                return image, self._given(offer, blocks), blocks
            case _:
                raise RemoteError(f"a client does not answer {type(request).__name__}")

    def _given(self, offer: SharedImage, blocks: BlocksData) -> int:
        if blocks.lacks:
            self._tell_changed(offer)
        return sum([len(one.data) for one in blocks.parts])

    def giving(self, request: GetBlocks, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> BlockGiving:
        """As :meth:`answer`, for blocks over a bulk connection. Raises RemoteError."""
        if not self.wide:
            raise RemoteError("this client sends at a limited rate")
        offer, server = self._published(request.image, published)
        return server.many(request, lambda blocks: sent(request.image, self._given(offer, blocks)))

    @property
    def wide(self) -> bool:
        """As :meth:`BlockProvider.wide`."""
        return self._pace is None

    def _published(self, image: ImageId, published: Collection[ImageId]) -> tuple[SharedImage, BlockServer]:
        shared = self._shared.get(image) if image in published else None  # guard: A29 F54 I13, -> self._shared.get(image)
        if shared is None:
            raise RemoteError("this client has not published that image")
        return shared

    async def _block(self, request: GetBlock, published: Collection[ImageId]) -> tuple[ImageId, bytes]:
        """Look in every published image, first in the one that gave the last block: nodes fetch one image after the other."""
        images = sorted(published, key=lambda image: image != self._latest)
        for image in images:
            data = await self._shared[image][1].one(request)
            if data is not None:
                self._latest = image
                return image, bytes(data)
        for image in images:
            self._tell_changed(self._shared[image][0])
        raise RemoteError("this client does not have that block, or its file changed")

    def _tell_changed(self, offer: SharedImage) -> None:
        paths = sorted(offer.tree.changed)
        if paths:
            shown = offer.source.rstrip("/") + paths[0]  # only one: what follows must not be cut off
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self._changed(offer.index.image, f"{shown}{more}: changed or vanished since it was indexed; run the command again")
