"""Parts of answers that have just come in, as they came: other nodes ask for the same blocks a moment later.

Blocks that were verified when they were written are passed on without reading, hashing and compressing them again; the receiver verifies
them anyway.

The blocks in an answer, by number. Nothing in it is believed: what has not the size that it should have becomes blocks without bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ciruela.model.bitfield import Pieces
from ciruela.model.errors import FormatError, RemoteError
from ciruela.model.ids import Block, ImageId
from ciruela.proto.compression import unpack
from ciruela.proto.messages import BlockData, BlockPart, BlocksData, Response


@dataclass(frozen=True, slots=True)
class BlockAnswer:
    """``blocks``: number and data of each. ``parts``: the parts as they came, by their blocks."""

    blocks: list[tuple[int, Block]]
    parts: list[tuple[tuple[int, ...], BlockPart]]


def read(response: Response, numbers: Sequence[int], pieces: Pieces, size_of: Callable[[int], int]) -> BlockAnswer:
    """Reads what ``response`` gives of the blocks ``numbers``, which were asked for. ``size_of`` tells the size of a block.

    Raises RemoteError for an answer to something else.
    """
    match response:
        case BlockData(data):
            return BlockAnswer([(numbers[0], data)], [])
        case BlocksData(parts, lacks):
            absent = set(lacks)
            groups = pieces.groups([number for number in numbers if number not in absent])
            if len(groups) != len(parts):  # guard: A7 A24
                return BlockAnswer([(number, b"") for group in groups for number in group], [])
            blocks: list[tuple[int, Block]] = []
            for group, part in zip(groups, parts, strict=True):
                sizes = list(map(size_of, group))
                plain = memoryview(_plain(part, sum(sizes)))
                at = 0
                for number, size in zip(group, sizes, strict=True):
                    blocks.append((number, plain[at : at + size]))
                    at += size
            return BlockAnswer(blocks, list(zip(groups, parts, strict=True)))
    # guard: A24, raise RemoteError("the answer to a request for blocks is something else" -> return BlockAnswer([], []
    raise RemoteError("the answer to a request for blocks is something else")


def _plain(part: BlockPart, size: int) -> Block:
    if part.packed:
        try:
            return unpack(part.data, size)
        except FormatError:  # guard: A7 A21
            return b""
    return part.data if len(part.data) == size else b""  # guard: A7 A24, -> part.data


MOST_BYTES = 32 * 1024 * 1024
KEPT_S = 10.0

Key = tuple[ImageId, tuple[int, ...]]


class BlockRelayCache:
    """The last parts that this node got: MOST_BYTES of them, each for KEPT_S."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, BlockPart]] = OrderedDict()
        self._expiry: IDelayedCall | None = None
        self.bytes = 0

    def put(self, image: ImageId, numbers: tuple[int, ...], part: BlockPart) -> None:
        """Keep the blocks ``numbers``, of which every one was found good."""
        key = image, numbers
        if key in self._kept:
            return
        self._kept[key] = self._clock.seconds(), part
        self.bytes += len(part.data)
        while self.bytes > MOST_BYTES:  # guard: I6
            self._drop()
        if self._expiry is None and self._kept:
            self._expiry = self._clock.callLater(KEPT_S, self._expire)  # guard: I6

    def get(self, image: ImageId, numbers: tuple[int, ...], packed: bool) -> BlockPart | None:
        """The part with exactly these blocks, if it is here; ``packed`` tells whether it may be a packed one."""
        kept = self._kept.get((image, numbers))
        return None if kept is None or (kept[1].packed and not packed) else kept[1]  # guard: A24, -> None if kept is None else kept[1]

    def stop(self) -> None:
        """Let go of everything."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._kept.clear()
        self.bytes = 0

    def _drop(self) -> None:
        _, (_, part) = self._kept.popitem(last=False)
        self.bytes -= len(part.data)

    def _expire(self) -> None:
        self._expiry = None
        now_s = self._clock.seconds()
        while self._kept:
            since_s = next(iter(self._kept.values()))[0]
            if now_s < since_s + KEPT_S:
                self._expiry = self._clock.callLater(since_s + KEPT_S - now_s, self._expire)
                return
            self._drop()
