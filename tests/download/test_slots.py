"""Who may fetch blocks at the same time."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.serving import HELD_S, MOST_READERS, UploadSlots
from ciruela.model.errors import SLOW_DOWN, Busy
from tests.proof import shows


class SlotsTests(SynchronousTestCase):
    """Three slots."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.slots = UploadSlots(self.clock, 3)

    def enter(self, readers: str) -> str:
        """Those of ``readers``, a letter each, that may ask."""
        return "".join(reader for reader in readers if self.may(reader))

    def may(self, reader: str) -> bool:
        try:
            self.slots.enter(reader)
        except Busy as busy:
            self.assertTrue(str(busy).startswith(SLOW_DOWN))
            return False
        return True

    @shows("A26")
    def test_most(self) -> None:
        """A node that everybody asks would give each so little that nobody has a piece to pass on."""
        self.assertEqual(self.enter("abcdabcdd"), "abcabc")
        self.assertEqual(self.slots.refused, 3)
        self.assertGreaterEqual(MOST_READERS, 3)

    def test_who_asks_no_more(self) -> None:
        """A reader that is done, or slow, would keep its slot from the others for ever."""
        self.enter("abc")
        self.clock.advance(HELD_S / 2)
        self.assertEqual(self.enter("abd"), "ab")
        self.clock.advance(HELD_S / 2)
        self.assertEqual(self.enter("dec"), "d")
        self.slots.left("a")
        self.slots.left("nobody")
        self.assertEqual(self.enter("ecbd"), "ebd")
