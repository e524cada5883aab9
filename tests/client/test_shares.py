"""Which node takes what from the client."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.source import BYTES_AT_ONCE, Shares
from ciruela.model.bitfield import Pieces
from ciruela.model.errors import RemoteError
from tests.proof import shows

MIB = 1024 * 1024
PIECES = Pieces.of_image(8192, 256 * MIB)


def mask(data: bytes) -> int:
    return PIECES.from_bytes(data)


class ShareTests(SynchronousTestCase):
    """Every part once before any of them twice."""

    def setUp(self) -> None:
        self.shares = Shares(PIECES, 256 * MIB)

    def take(self, taker: str, missing: int) -> int:
        return mask(self.shares.take(taker, PIECES.to_bytes(missing)))

    def test_everything_once(self) -> None:
        """A part would be given twice, or to nobody."""
        taken = {"a": 0, "b": 0, "c": 0}
        for turn in range(1000):
            who = "abbc"[turn % 4]
            taken[who] |= self.take(who, PIECES.full & ~taken[who])
        self.assertEqual(taken["a"] | taken["b"] | taken["c"], PIECES.full)
        self.assertEqual(sum(one.bit_count() for one in taken.values()), PIECES.count)
        self.assertGreater(taken["b"].bit_count(), 1.5 * taken["a"].bit_count())
        self.assertEqual(self.take("d", PIECES.full), 0)

    def test_given(self) -> None:
        """A user would be told that half is done when nearly nothing is, because the nodes had most of it already."""
        self.assertIsNone(self.shares.given)
        missing = {"a": 0xFF << 100, "b": 0xFFF << 100}
        taken = self.take("a", missing["a"])
        self.assertEqual(self.shares.given, 1.0)
        taken |= self.take("b", missing["b"])
        self.assertEqual(self.shares.given, taken.bit_count() / 12)
        while self.shares.given < 1.0:
            taken |= self.take("b", missing["b"] & ~taken)
        self.assertEqual(taken, missing["b"])
        self.take("a", PIECES.full & ~taken)
        self.assertEqual(self.shares.given, 1.0, "what a node names later it lacked before, and has been told of")

    @shows("W3")
    def test_given_bytes(self) -> None:
        """The result would call reused what had to be sent, or count what two nodes asked for twice."""
        shares = Shares(PIECES, 256 * MIB, bytes_of=sum)
        self.assertEqual(shares.given_bytes, 0)
        shares.gave((5, 7))
        shares.gave((7, 9, PIECES.block_count))
        self.assertEqual(shares.given_bytes, 5 + 7 + 9)
        self.shares.gave((5,))
        self.assertIsNone(self.shares.given_bytes)

    def test_in_order(self) -> None:
        """All pieces of a share would have the same relay, which would then have to give everything at once."""
        first, second = self.take("a", PIECES.full), self.take("b", PIECES.full)
        self.assertEqual(first, (1 << first.bit_count()) - 1)
        self.assertEqual(second, first << first.bit_count())
        self.assertEqual(self.take("c", PIECES.full & ~(1 << 200)) & 0xFFFF, 0)

    def test_only_what_is_missing(self) -> None:
        """A node would be promised what it has."""
        self.assertEqual(self.take("a", 0b110), 0b110)
        self.assertEqual(self.take("a", 0), 0)

    def test_size(self) -> None:
        """A promise would be so small that it takes longer than what is promised, or so large that a slow node holds up all others."""
        for size in (0, 1, 32_768, 100 * 32_768, 8 * MIB, 256 * MIB, 1 << 40):
            pieces = Pieces.of_image(max(1, size // 32_768), size)
            share = pieces.from_bytes(Shares(pieces, size).take("a", pieces.to_bytes(pieces.full))).bit_count()
            piece = size / pieces.count
            self.assertTrue(share in (1, pieces.count) or BYTES_AT_ONCE - piece < share * piece <= BYTES_AT_ONCE, size)

    def test_who_left(self) -> None:
        """What a node that died was promised would be given to nobody."""
        first = self.take("a", PIECES.full)
        rest = PIECES.full & ~first
        while rest:
            rest &= ~self.take("b", rest)
        self.assertEqual(self.take("c", PIECES.full), 0)
        self.shares.left("a")
        self.shares.left("nobody")
        self.assertEqual(self.take("c", PIECES.full), first)

    @shows("A24")
    def test_mask_of_another_image(self) -> None:
        """A node could end the client, or be promised pieces that there are not."""
        for size in (0, 1, 32, PIECES.count // 8 + 32):
            with self.assertRaisesRegex(RemoteError, "are right for this image"):
                self.shares.take("a", b"\xff" * size)
        self.assertEqual(self.take("b", PIECES.full) & 1, 1, "what was refused was promised all the same")

    def test_own(self) -> None:
        """Of an image that was edited the client would promise what it does not have; the nodes have it."""
        own = 0b1011 << 7
        shares = Shares(PIECES, 256 * MIB, own)
        taken = mask(shares.take("a", PIECES.to_bytes(PIECES.full)))
        self.assertEqual(taken | mask(shares.take("a", PIECES.to_bytes(PIECES.full & ~taken))), own)
        self.assertEqual(mask(shares.take("a", PIECES.to_bytes(PIECES.full & ~own))), 0)
