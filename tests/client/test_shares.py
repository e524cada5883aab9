"""Which node takes what from the client."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.shares import BLOCKS_AT_ONCE, Shares
from ciruela.model.mask import FULL, SLICES


class ShareTests(SynchronousTestCase):
    """Every part once before any of them twice."""

    def test_everything_once(self) -> None:
        """A part would be given twice, or to nobody."""
        shares = Shares(8192, random.Random(1))
        taken = {"a": 0, "b": 0, "c": 0}
        for turn in range(1000):
            who = "abbc"[turn % 4]
            taken[who] |= shares.take(who, FULL & ~taken[who])
        self.assertEqual(taken["a"] | taken["b"] | taken["c"], FULL)
        self.assertEqual(sum(mask.bit_count() for mask in taken.values()), SLICES)
        self.assertGreater(taken["b"].bit_count(), 1.5 * taken["a"].bit_count())
        self.assertEqual(shares.take("d", FULL), 0)

    def test_only_what_is_missing(self) -> None:
        """A node would be promised what it has."""
        shares = Shares(8192, random.Random(1))
        self.assertEqual(shares.take("a", 0b110) & ~0b110, 0)
        self.assertEqual(shares.take("a", 0), 0)

    def test_size(self) -> None:
        """A promise would be so small that it takes longer than what is promised, or so large that a slow node holds up all others."""
        for blocks in (1, 100, 256, 8192, 1 << 20):
            share = Shares(blocks, random.Random(1)).take("a", FULL).bit_count()
            self.assertTrue(share == 1 or abs(share * blocks / SLICES - BLOCKS_AT_ONCE) <= blocks / SLICES or share == SLICES, blocks)

    def test_who_left(self) -> None:
        """What a node that died was promised would be given to nobody."""
        shares = Shares(8192, random.Random(1))
        first = shares.take("a", FULL)
        rest = FULL & ~first
        while rest:
            rest &= ~shares.take("b", rest)
        self.assertEqual(shares.take("c", FULL), 0)
        shares.left("a")
        shares.left("nobody")
        self.assertEqual(shares.take("c", FULL), first)
