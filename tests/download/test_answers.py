"""The blocks in an answer: nothing in it is believed."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.relaycache import BlockAnswer, read
from ciruela.model.bitfield import Pieces
from ciruela.model.errors import RemoteError
from ciruela.proto.compression import part
from ciruela.proto.messages import BlockData, BlockPart, BlocksData, Response, ShareData
from tests.proof import shows

PIECES = Pieces(1024, 1)
DATA = {number: (b"%d " % number) * (100 + number) for number in range(1024)}
ASKED = (2, 3, 4, 5, 6, 100)
GROUPS = [(2, 3), (4, 5, 6), (100,)]
GOOD = [(number, DATA[number]) for number in ASKED]


def size_of(number: int) -> int:
    return len(DATA[number])


def whole(group: Sequence[int], packed: bool = False) -> BlockPart:
    return part(b"".join(DATA[number] for number in group), packed)


def answer(response: Response, numbers: Sequence[int] = ASKED) -> BlockAnswer:
    return read(response, numbers, PIECES, size_of)


class ReadTests(SynchronousTestCase):
    """Answers of many kinds to one request."""

    def test_whole(self) -> None:
        """A block would get the number of another."""
        for packed in (False, True):
            parts = tuple(whole(group, packed) for group in GROUPS)
            self.assertEqual({one.packed for one in parts}, {packed})
            self.assertEqual(answer(BlocksData(parts)), BlockAnswer(GOOD, list(zip(GROUPS, parts, strict=True))))

    def test_one(self) -> None:
        """What speaks ciruela.v1 could give nothing."""
        self.assertEqual(answer(BlockData(b"data"), [7]), BlockAnswer([(7, b"data")], []))

    @shows("A36", "F27")
    def test_lacks(self) -> None:
        """What is left out would shift all that follows; or a part would be passed on under the numbers of more than is in it."""
        parts = (whole((3,)), whole((100,)))
        found = answer(BlocksData(parts, (2, 4, 5, 6)))
        self.assertEqual(found, BlockAnswer([(3, DATA[3]), (100, DATA[100])], [((3,), parts[0]), ((100,), parts[1])]))
        self.assertEqual(answer(BlocksData((), ASKED)), BlockAnswer([], []))
        self.assertEqual(answer(BlocksData(tuple(map(whole, GROUPS)), (0, 7, 1 << 60))).blocks, GOOD, "it lacks what nobody asked for")

    @shows("A7", "A24")
    def test_wrong_count(self) -> None:
        """With a part too many or too few, the others would be taken for other blocks."""
        parts = tuple(map(whole, GROUPS))
        for wrong in (parts[:2], parts[1:], (*parts, BlockPart(b"more")), (), (BlockPart(b""), *parts)):
            self.assertEqual(answer(BlocksData(wrong)), BlockAnswer([(number, b"") for number in ASKED], []))
        self.assertEqual(answer(BlocksData(parts, (100,))).blocks, [(number, b"") for number in ASKED[:-1]])

    @shows("A7", "A24", "A21")
    def test_wrong_size(self) -> None:
        """A part that is shorter, longer or damaged would put bytes where they do not belong; the others are as good as they are."""
        good = whole(GROUPS[1])
        packed = whole(GROUPS[1], packed=True)
        for wrong in (
            BlockPart(good.data[:-1]),
            BlockPart(good.data + b"x"),
            BlockPart(b""),
            BlockPart(good.data, packed=True),
            BlockPart(packed.data),
            BlockPart(packed.data[:-1], packed=True),
            BlockPart(packed.data + b"\0", packed=True),
            whole((4, 5), packed=True),
        ):
            found = answer(BlocksData((whole(GROUPS[0]), wrong, whole(GROUPS[2]))))
            self.assertEqual([number for number, _ in found.blocks], list(ASKED))
            self.assertEqual([number for number, data in found.blocks if data == DATA[number]], [2, 3, 100])
            self.assertEqual({data for number, data in found.blocks if number in GROUPS[1]}, {b""})

    @shows("A24")
    def test_something_else(self) -> None:
        """An answer to another question would be taken for blocks."""
        with self.assertRaisesRegex(RemoteError, "something else"):
            answer(ShareData(bytes(32)))
