"""Passing parts on as they came."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download import relaycache
from ciruela.download.relaycache import KEPT_S, MOST_BYTES, BlockRelayCache
from ciruela.model.ids import ImageId
from ciruela.proto.messages import BlockPart
from tests.proof import shows

ONE, OTHER = ImageId(b"\1" * 32), ImageId(b"\2" * 32)
PLAIN, PACKED = BlockPart(b"plain"), BlockPart(b"packed", packed=True)


class PassingTests(SynchronousTestCase):
    """What came a moment ago."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.passing = BlockRelayCache(self.clock)

    def test_as_it_came(self) -> None:
        """Others would get blocks that they did not ask for, or of another image."""
        self.passing.put(ONE, (1, 2), PLAIN)
        self.assertEqual(self.passing.get(ONE, (1, 2), packed=False), PLAIN)
        self.assertEqual(self.passing.get(ONE, (1, 2), packed=True), PLAIN)
        for image, numbers in ((OTHER, (1, 2)), (ONE, (1,)), (ONE, (1, 2, 3)), (ONE, ())):
            self.assertIsNone(self.passing.get(image, numbers, packed=True))
        self.passing.stop()

    def test_packed_only_when_asked(self) -> None:
        """Who did not ask for compressed parts could not read them."""
        self.passing.put(ONE, (1, 2), PACKED)
        self.assertIsNone(self.passing.get(ONE, (1, 2), packed=False))
        self.assertEqual(self.passing.get(ONE, (1, 2), packed=True), PACKED)
        self.passing.stop()

    @shows("I6")
    def test_bounded(self) -> None:
        """A large download would fill the memory; or what has just come would go instead of what came first."""
        self.patch(relaycache, "MOST_BYTES", 1000)
        for number in range(50):
            self.passing.put(ONE, (number,), BlockPart(bytes(100)))
            self.assertLessEqual(self.passing.bytes, 1000)
        kept = [number for number in range(50) if self.passing.get(ONE, (number,), packed=False)]
        self.assertEqual((kept, self.passing.bytes), (list(range(40, 50)), 1000))
        self.passing.put(ONE, (50,), BlockPart(bytes(1001)))
        self.assertEqual(self.passing.bytes, 0, "what is too large for all of it")
        self.assertEqual(MOST_BYTES, 32 << 20)
        self.passing.stop()

    def test_once(self) -> None:
        """What comes twice would be counted twice, and less and less would be kept."""
        self.passing.put(ONE, (1,), PLAIN)
        self.passing.put(ONE, (1,), BlockPart(b"the same in other words", packed=True))
        self.assertEqual((self.passing.bytes, self.passing.get(ONE, (1,), packed=True)), (len(PLAIN.data), PLAIN))
        self.passing.stop()

    def test_expires(self) -> None:
        """What nobody asks for would stay in the memory for ever, or a timer would run for nothing."""
        self.passing.put(ONE, (1,), PLAIN)
        self.clock.advance(KEPT_S - 1)
        self.passing.put(ONE, (2,), PACKED)
        self.clock.advance(1)
        self.assertIsNone(self.passing.get(ONE, (1,), packed=True))
        self.assertEqual(self.passing.get(ONE, (2,), packed=True), PACKED)
        self.clock.advance(KEPT_S - 1)
        self.assertIsNone(self.passing.get(ONE, (2,), packed=True))
        self.assertEqual((self.passing.bytes, self.clock.getDelayedCalls()), (0, []))
        self.passing.put(ONE, (1,), PLAIN)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1, "nothing would expire from now on")
        self.passing.stop()

    def test_stop(self) -> None:
        """A node that has stopped would wake up later."""
        self.passing.put(ONE, (1,), PLAIN)
        self.passing.stop()
        self.assertEqual((self.passing.bytes, self.clock.getDelayedCalls()), (0, []))
        self.assertIsNone(self.passing.get(ONE, (1,), packed=True))
        self.passing.stop()
