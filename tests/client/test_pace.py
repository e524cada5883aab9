"""``--limit-rate``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.source import PATIENCE_S, ImageSource, SharedImage
from ciruela.model.errors import Busy
from ciruela.model.ids import ImageId
from ciruela.proto.messages import GetBlock, GetBlocks, GetIndex, Response
from ciruela.runtime import TokenBucket
from tests.client.test_sync import BLOCK, HASH, IMAGE, INDEX, FakeTree

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=60)


class Paces(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def test_order(self) -> None:
        """Answers go out one after the other, each when those before it are through."""
        pace = TokenBucket(self.clock, 100, 0.0)
        gone: list[int] = []
        for size in (200, 50, 100):
            pace.turn(size).addCallback(lambda _, size=size: gone.append(size))
        for seconds, expected in ((0.0, [200]), (1.9, [200]), (0.2, [200, 50]), (0.5, [200, 50, 100]), (10, [200, 50, 100])):
            self.clock.advance(seconds)
            self.assertEqual(gone, expected)
        self.assertEqual(pace.wait_s, 0)

    @PROPERTY
    @given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 1_000_000)), max_size=20))
    def test_average(self, asked: list[tuple[float, int]]) -> None:
        """A user who shares his line would lose it: at no time has more gone out than the rate allows, but for the last answer."""
        clock = Clock()
        pace = TokenBucket(clock, 100_000, 0.0)
        sent: list[tuple[float, int]] = []
        for pause_s, size in asked:
            clock.advance(pause_s)
            pace.turn(size).addCallback(lambda _, size=size: sent.append((clock.seconds(), size)))
        clock.pump([0.05] * 6000)
        self.assertEqual([size for _, size in sent], [size for _, size in asked])
        began_s = asked[0][0] if asked else 0.0
        before = 0
        for at_s, size in sent:
            self.assertLessEqual(before, (at_s - began_s) * 100_000 + 1)
            before += size


class Paced(SynchronousTestCase):
    """The source of a run."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent = 0
        offer = SharedImage(INDEX, b"the index", FakeTree(), "./dist")
        self.source = ImageSource([offer], lambda f, *args, **kw: succeed(f(*args, **kw)), lambda *_: None, TokenBucket(self.clock, 5, 0.0))

    def count(self, _: ImageId, size: int) -> None:
        self.sent += size

    def ask(self, request: GetIndex | GetBlock | GetBlocks) -> Deferred[Response]:
        return self.source.answer(request, {IMAGE: None}, self.count)

    def test_waits(self) -> None:
        """What waits must not count as sent, or the display runs ahead of the line."""
        first = self.ask(GetIndex(IMAGE, None))
        self.clock.advance(0)
        self.successResultOf(first)
        self.assertEqual(self.sent, 9)
        second = self.ask(GetBlock(HASH, None))
        self.clock.advance(1.7)
        self.assertNoResult(second)
        self.assertEqual(self.sent, 9)
        self.clock.advance(0.2)
        self.successResultOf(second)
        self.assertEqual(self.sent, 9 + len(BLOCK))

    def test_busy(self) -> None:
        """A node would wait for an answer until it gives the client up, and the bytes would go out for nothing."""
        request = GetBlocks("/apps/v1", IMAGE, (0,))
        answers = [self.ask(request) for _ in range(3)]
        self.assertIn("slow down", self.failureResultOf(answers[2], Busy).getErrorMessage())
        self.clock.advance(PATIENCE_S)
        for answer in answers[:2]:
            self.successResultOf(answer)
        self.clock.advance(PATIENCE_S)
        again = self.ask(request)
        self.clock.advance(PATIENCE_S)
        self.successResultOf(again)
