"""The blocks in an answer, by number. Nothing in it is believed: what has not the size that it should have becomes blocks without bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ciruela.model.errors import FormatError, RemoteError
from ciruela.model.ids import Block
from ciruela.model.mask import Pieces
from ciruela.proto.messages import BlockData, BlocksData, Part, Response
from ciruela.proto.packing import unpack


@dataclass(frozen=True, slots=True)
class Answer:
    """``blocks``: number and data of each. ``parts``: the parts as they came, by their blocks."""

    blocks: list[tuple[int, Block]]
    parts: list[tuple[tuple[int, ...], Part]]


def read(response: Response, numbers: Sequence[int], pieces: Pieces, bytes_of: Callable[[Sequence[int]], int]) -> Answer:
    """What ``response`` gives of the blocks ``numbers``, which were asked for. ``bytes_of`` tells the size of blocks together.

    Raises RemoteError for an answer to something else.
    """
    match response:
        case BlockData(data):
            return Answer([(numbers[0], data)], [])
        case BlocksData(parts, lacks):
            absent = set(lacks)
            groups = pieces.groups([number for number in numbers if number not in absent])
            if len(groups) != len(parts):
                return Answer([(number, b"") for group in groups for number in group], [])
            blocks: list[tuple[int, Block]] = []
            for group, part in zip(groups, parts, strict=True):
                plain = memoryview(_plain(part, bytes_of(group)))
                at = 0
                for number in group:
                    end = at + bytes_of((number,))
                    blocks.append((number, plain[at:end]))
                    at = end
            return Answer(blocks, list(zip(groups, parts, strict=True)))
    raise RemoteError("the answer to a request for blocks is something else")


def _plain(part: Part, size: int) -> Block:
    if part.packed:
        try:
            return unpack(part.data, size)
        except FormatError:
            return b""
    return part.data if len(part.data) == size else b""
