"""Gives the nodes an image of which this client has only one file: that file from the disk, everything else from the cluster.

A node that has the image before takes all but the new file from there, and one that lacks it takes it from the others. What they
cannot have so they ask of the client, and it asks the cluster: the blocks are verified, and pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ciruela.client.editor import LocalFile
from ciruela.client.fetch import Place, Reading, Seen
from ciruela.client.source import Shares
from ciruela.index.merge import BlockMap
from ciruela.index.tree import File, Index
from ciruela.model.errors import RemoteError
from ciruela.model.ids import BlockHash, ImageId
from ciruela.proto.messages import MOST_BULK_BYTES, BlockData, BlocksData, GetBlock, GetBlocks, GetIndex, Request, Response
from ciruela.proto.packing import index, part
from ciruela.seams import InThread

TRIES = 3
TRY_AGAIN_S = 1.0
"""A block that no node gives now one may give soon: the reference's nodes give nothing of an image that is being replaced."""

PLACES_TRIED = 16
"""A block that stands at many places is looked for at this many."""


class Relay:
    """The image ``new``, made of what was ``seen`` by putting ``file`` into it, for the nodes of one cluster."""

    def __init__(
        self,
        seen: Seen,
        new: Index,
        data: bytes,
        file: File,
        local: LocalFile,
        reading: Reading,
        in_thread: InThread,
        clock: IReactorTime,
        changed: Callable[[ImageId, str], None],
    ) -> None:
        """``data`` are the bytes of the index. ``changed`` is told when ``local`` is not any more what it was."""
        self._old = seen.place
        self._new = Place(seen.place.path, new, BlockMap(new))
        self._data = data
        self._file = file
        self._local = local
        self._reading = reading
        self._in_thread = in_thread
        self._clock = clock
        self._changed = changed
        self._own = _numbers_of(self._new.blocks, file.path)
        self._before = _numbers_of(self._old.blocks, file.path)
        self.passed_bytes = 0
        """What came from the cluster, to be given to another node."""

    def shares(self) -> dict[ImageId, Shares]:
        """The pieces with blocks of the new file are shared out; for the others the nodes should ask each other first."""
        new = self._new.index
        own = sum(1 << piece for piece in {new.pieces.piece_of(number) for number in self._own})
        return {new.image: Shares(new.pieces, new.total_bytes, own)}

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """As ``Source.answer``."""
        return Deferred.fromCoroutine(self._answer(request, published, sent))

    async def _answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Response:
        image = self._new.index.image
        match request:
            case GetIndex(image=asked) if asked == image and image in published:
                found = await self._in_thread(index, self._data, request.packed)
                sent(image, len(found.data))
                return found
            case GetBlock(hash=wanted) if image in published:
                data = await self._block(wanted)
                sent(image, len(data))
                return BlockData(data)
            case GetBlocks(image=asked, numbers=numbers) if asked == image and image in published:
                answer = await self._blocks(numbers, request.packed)
                if answer.parts:
                    sent(image, sum(len(one.data) for one in answer.parts))
                return answer
            case GetIndex() | GetBlock() | GetBlocks():
                raise RemoteError("this client has not published that image")
        raise RemoteError(f"a client does not answer {type(request).__name__}")

    async def _blocks(self, numbers: Sequence[int], packed: bool) -> BlocksData:
        blocks = self._new.blocks
        if not numbers or numbers[-1] >= len(blocks) or blocks.bytes_of(numbers) > MOST_BULK_BYTES:
            raise RemoteError("that image does not have these blocks, or they are too much for one answer")
        found = await self._read(numbers)

        def join() -> BlocksData:
            parts = []
            for group in self._new.index.pieces.groups(numbers):
                here = [found[number] for number in group if number in found]
                if here:
                    parts.append(part(b"".join(here), packed))
            return BlocksData(tuple(parts), tuple(number for number in numbers if number not in found))

        return await self._in_thread(join)

    async def _block(self, wanted: BlockHash) -> bytes:
        places = await self._in_thread(lambda: list(self._new.blocks.numbers(wanted)[:PLACES_TRIED]))
        own = [number for number in places if number in self._own]
        if not places:
            raise RemoteError("this client does not have that block")
        number = (own or places)[0]
        for again in range(TRIES):
            if again:
                await deferLater(self._clock, TRY_AGAIN_S)
            found = await self._read([number])
            if number in found:
                return found[number]
            if own:
                break
        raise RemoteError("this client does not have that block, and nobody gives it now")

    async def _read(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Those of the blocks ``numbers`` of the new image that can be had, each verified."""
        own = [number - self._own.start for number in numbers if number in self._own]
        found: dict[int, bytes] = {}
        if own:
            here = await self._in_thread(self._local.blocks, self._new.index.kind, self._file, own)
            found = {self._own.start + number: data for number, data in here.items()}
            if len(here) < len(own):
                self._changed(self._new.index.image, f"{self._local.name} changed since it was read; run the command again")
        others = {self._as_before(number): number for number in numbers if number not in self._own}
        if others:
            given = await self._reading.blocks(self._old, sorted(others))
            found.update((others[number], data) for number, data in given.items())
            missing = [number for number in others.values() if number not in found]
            if missing:  # of a node that replaced its image meanwhile
                found.update(await self._reading.blocks(self._new, missing))
            self.passed_bytes += sum(len(found[number]) for number in others.values() if number in found)
        return found

    def _as_before(self, number: int) -> int:
        """The number that a block which is not of the new file had in the image before."""
        return number if number < self._own.start else number - len(self._own) + len(self._before)


def _numbers_of(blocks: BlockMap, path: str) -> range:
    """The numbers of the blocks of the file at ``path``; empty, and of no meaning, where there is none."""
    for number, file in enumerate(blocks.files):
        if file.path == path:
            return blocks.numbers_of(number)
    return range(0)
