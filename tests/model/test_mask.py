"""Slices and pieces: every node must cut the same image alike."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.bitfield import FULL, MASK_BYTES, MOST_CUTS, MOST_PIECES, PIECE_BYTES, SLICES, BlockSet, Pieces

FEW = settings(derandomize=True, deadline=None, database=None, max_examples=60)
IMAGES = st.builds(Pieces, st.integers(1, 20_000), st.integers(1, MOST_CUTS))
SLICE_BYTES = SLICES * PIECE_BYTES


class CutTests(SynchronousTestCase):
    """How many pieces an image has."""

    def test_sizes(self) -> None:
        """Two nodes that cut differently would take each other's masks for nonsense."""
        for size, cuts in (
            (0, 1),
            (1, 1),
            (SLICE_BYTES, 1),
            (SLICE_BYTES * 3 // 2 - 1, 1),
            (SLICE_BYTES * 3 // 2 + 1, 2),
            (3 * SLICE_BYTES, 3),
            (MOST_CUTS * SLICE_BYTES, MOST_CUTS),
            (1 << 50, MOST_CUTS),
        ):
            pieces = Pieces.of_image(max(1, size // 32_768), size)
            self.assertEqual((pieces.cuts, pieces.count), (cuts, SLICES * cuts), size)
            self.assertLessEqual(pieces.count, MOST_PIECES)
            self.assertEqual(pieces.full.bit_count(), pieces.count)

    @FEW
    @given(IMAGES)
    def test_blocks(self, pieces: Pieces) -> None:
        """A block in no piece would never come, one in two would be fetched twice."""
        numbers = [number for piece in range(pieces.count) for number in pieces.blocks(piece)]
        self.assertEqual(numbers, list(range(pieces.block_count)))
        for piece in {0, pieces.count - 1, pieces.count // 3}:
            self.assertEqual({pieces.piece_of(number) for number in pieces.blocks(piece)} - {piece}, set())

    @FEW
    @given(IMAGES, st.data())
    def test_within_slices(self, pieces: Pieces, data: st.DataObject) -> None:
        """What gossip tells of a slice would be wrong for its pieces."""
        number = data.draw(st.integers(0, pieces.block_count - 1))
        self.assertEqual(pieces.piece_of(number) // pieces.cuts, number * SLICES // pieces.block_count)
        one = data.draw(st.integers(0, SLICES - 1))
        cut = [number for piece in range(one * pieces.cuts, (one + 1) * pieces.cuts) for number in pieces.blocks(piece)]
        self.assertEqual(cut, [block for block in range(pieces.block_count) if block * SLICES // pieces.block_count == one])

    @FEW
    @given(IMAGES, st.data())
    def test_groups(self, pieces: Pieces, data: st.DataObject) -> None:
        """The parts of an answer would not be those that were asked for."""
        numbers = sorted(data.draw(st.sets(st.integers(0, pieces.block_count - 1), max_size=60)))
        groups = pieces.groups(numbers)
        self.assertEqual([number for group in groups for number in group], numbers)
        self.assertEqual([len({pieces.piece_of(number) for number in group}) for group in groups], [1] * len(groups))
        self.assertEqual(len({pieces.piece_of(group[0]) for group in groups}), len(groups))


class MaskTests(SynchronousTestCase):
    """From slices to pieces and back."""

    @FEW
    @given(IMAGES, st.integers(0, FULL))
    def test_of_slices(self, pieces: Pieces, mask: int) -> None:
        """A peer would be asked for what it never said it had."""
        cut = pieces.of_slices(mask)
        self.assertEqual({at // pieces.cuts for at in range(pieces.count) if cut >> at & 1}, {at for at in range(SLICES) if mask >> at & 1})
        self.assertEqual(cut.bit_count(), mask.bit_count() * pieces.cuts)
        self.assertEqual(pieces.slices(cut), mask)

    @FEW
    @given(IMAGES, st.data())
    def test_slices(self, pieces: Pieces, data: st.DataObject) -> None:
        """A node would say that it has a slice of which a piece is missing."""
        mask = data.draw(st.integers(0, pieces.full)) | data.draw(st.integers(0, pieces.full))
        each = (1 << pieces.cuts) - 1
        whole = sum(1 << at for at in range(SLICES) if mask >> at * pieces.cuts & each == each)
        self.assertEqual(pieces.slices(mask), whole)
        self.assertEqual(pieces.slices(pieces.full), FULL)
        lacking = data.draw(st.integers(0, pieces.count - 1))
        self.assertEqual(pieces.slices(pieces.full ^ 1 << lacking), FULL ^ 1 << lacking // pieces.cuts)
        self.assertEqual(pieces.slices(0), 0)

    @FEW
    @given(IMAGES, st.data())
    def test_bytes(self, pieces: Pieces, data: st.DataObject) -> None:
        """A mask would mean something else on the other side."""
        mask = data.draw(st.integers(0, pieces.full))
        sent = pieces.to_bytes(mask)
        self.assertEqual(len(sent), MASK_BYTES * pieces.cuts)
        self.assertEqual(pieces.from_bytes(sent), mask)
        self.assertEqual(
            [at for at in range(pieces.count) if sent[at >> 3] >> (at & 7) & 1], [at for at in range(pieces.count) if mask >> at & 1]
        )

    def test_bytes_of_another_image(self) -> None:
        """The mask of an image of another size would be taken for one of this."""
        pieces = Pieces(5000, 2)
        for size in (0, 32, 63, 65, 96):
            with self.assertRaisesRegex(ValueError, f"{size} bytes; 64 are right"):
                pieces.from_bytes(bytes(size))


class BlockSetTests(SynchronousTestCase):
    @FEW
    @given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
    def test_as_a_set(self, before: set[int], more: set[int]) -> None:
        """A block would be fetched again that is here, or never."""
        here = bytearray(41)
        blocks = BlockSet(here)
        for number in before:
            here[number] = 1
        self.assertEqual(blocks, before)
        for number in more:
            here[number] = 1
        self.assertEqual(blocks, before | more)
        self.assertEqual((len(blocks), list(blocks)), (len(before | more), sorted(before | more)))
        self.assertEqual(blocks & more, more)
        self.assertEqual([number in blocks for number in (-1, 41)], [False, False])
