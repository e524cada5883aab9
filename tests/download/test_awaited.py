"""Telling others at once what has come."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.availability import HELD_S, MOST_HELD, NEWS_S, AvailabilityRequests
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPieces, PiecesData
from tests.proof import shows

V1, V2 = VPath.parse("/app/v1"), VPath.parse("/app/v2")
ONE, OTHER = ImageId(b"\1" * 32), ImageId(b"\2" * 32)


def told(mask: int, size: int = 64) -> PiecesData:
    return PiecesData(mask.to_bytes(size, "little"))


class AwaitedTests(SynchronousTestCase):
    """A node that is asked for news."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.here: dict[tuple[VPath, ImageId], int] = {(V1, ONE): 0b1}
        self.awaited = AvailabilityRequests(lambda vpath, image: self.here.get((vpath, image)), self.clock)

    def ask(self, wanted: int, path: str = "/app/v1", image: ImageId = ONE, size: int = 64, asker: str = "a") -> Deferred[PiecesData]:
        return self.awaited.give(GetPieces(path, image, wanted.to_bytes(size, "little")), asker)

    def come(self, mask: int, vpath: VPath = V1, image: ImageId = ONE) -> None:
        self.here[vpath, image] |= mask
        self.awaited.progressed(vpath)

    def quiet(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_at_once(self) -> None:
        """What is here already would be told seconds later; or more than was asked for."""
        self.here[V1, ONE] = 0b11011
        self.assertEqual(self.successResultOf(self.ask(0b10110)), told(0b10010))
        self.clock.advance(NEWS_S)
        self.here[V1, ONE] = -1
        self.assertEqual(self.successResultOf(self.ask(0b10110, size=32)), told(0b10110, 32))
        self.quiet()

    def test_held(self) -> None:
        """A piece that has come would be known elsewhere only when the next word of gossip goes out."""
        first, second = self.ask(0b110), self.ask(0b1000)
        self.clock.advance(1)
        self.come(0b10)
        self.assertEqual(self.successResultOf(first), told(0b10))
        self.assertNoResult(second)
        self.come(0b10000)
        self.clock.advance(NEWS_S)
        self.assertNoResult(second)
        self.come(0b1000)
        self.clock.advance(NEWS_S)
        self.assertEqual(self.successResultOf(second), told(0b1000))
        self.quiet()

    def test_many_of_one(self) -> None:
        """One who fetches very many images would have nothing but waiting requests on its connection, and no room to ask for blocks."""
        held = [self.ask(0b10) for _ in range(MOST_HELD)]
        self.assertEqual(self.successResultOf(self.ask(0b11)), told(0b1))
        other = self.ask(0b10, asker="b")
        self.assertNoResult(other)
        self.come(0b10)
        for one in (*held, other):
            self.assertEqual(self.successResultOf(one), told(0b10))
        self.clock.advance(NEWS_S)
        again = self.ask(0b100)
        self.assertNoResult(again)
        self.clock.advance(HELD_S)
        self.assertEqual(self.successResultOf(again), told(0))
        self.quiet()

    def test_together(self) -> None:
        """Pieces that come one right after another would cost an answer and a request each."""
        first = self.ask(0b10)
        self.come(0b10)
        self.successResultOf(first)
        answer, other = self.ask(0b11100), self.ask(0b100000)
        self.clock.advance(NEWS_S / 2)
        self.come(0b100)
        self.come(0b1000)
        self.assertNoResult(answer)
        self.clock.advance(NEWS_S / 2)
        self.assertEqual(self.successResultOf(answer), told(0b1100))
        self.assertNoResult(other)
        self.clock.advance(NEWS_S / 2)
        self.come(0b10000)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1, "it would wake up for what nobody waits for")
        self.clock.advance(NEWS_S)
        self.come(0b100000)
        self.assertEqual(self.successResultOf(other), told(0b100000))
        self.quiet()

    @shows("I6")
    def test_forgets(self) -> None:
        """When each of many directories had its last news would be remembered for ever."""
        for number in range(100):
            vpath = VPath.parse(f"/app/n{number}")
            self.here[vpath, ONE] = 1
            self.successResultOf(self.ask(1, str(vpath)))
            self.clock.advance(NEWS_S)
        self.assertLess(len(self.awaited._told_s), 3)

    def test_nothing_new(self) -> None:
        """An asker would take the silence for a broken connection."""
        answer = self.ask(0b10)
        self.clock.advance(HELD_S - 0.1)
        self.assertNoResult(answer)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(answer), told(0))
        self.quiet()
        self.come(0b10)
        self.quiet()

    @shows("F3")
    def test_not_here(self) -> None:
        """Whoever asks for what is not here would be held for seconds, again and again; or be answered from another path."""
        self.successResultOf(self.ask(1))
        for path, image in (("/app/v2", ONE), ("/app/v1", OTHER)):
            self.assertIn("image not found", str(self.failureResultOf(self.ask(1, path, image), RemoteError).value))
        for path in ("/app/../v1", "app/v1", "", "/"):
            self.assertIn("not a virtual path", str(self.failureResultOf(self.ask(1, path), RemoteError).value))
        self.quiet()

    def test_given_up(self) -> None:
        """Others would wait for a node that will never have it."""
        self.here[V1, OTHER] = 0
        answer, other = self.ask(0b10), self.ask(0b10, image=OTHER)
        del self.here[V1, ONE]
        self.awaited.progressed(V1)
        self.clock.advance(NEWS_S)
        self.assertIn("image not found", str(self.failureResultOf(answer, RemoteError).value))
        self.assertNoResult(other)
        self.awaited.stop()
        self.quiet()

    def test_other_paths(self) -> None:
        """News of one directory would wake those who wait for another."""
        self.here[V2, ONE] = 0
        answer = self.ask(0b10, "/app/v2")
        self.come(0b10)
        self.quiet_but(1)
        self.clock.advance(NEWS_S)
        self.assertNoResult(answer)
        self.come(0b10, V2)
        self.clock.advance(NEWS_S)
        self.assertEqual(self.successResultOf(answer), told(0b10))
        self.quiet()

    def quiet_but(self, calls: int) -> None:
        self.assertEqual(len(self.clock.getDelayedCalls()), calls)

    def test_stop(self) -> None:
        """A node that has stopped would wake up later, and answer from what is gone."""
        self.successResultOf(self.ask(1))
        answers = [self.ask(0b10), self.ask(0b100)]
        self.come(0b10)
        self.assertEqual(len(self.clock.getDelayedCalls()), 3)
        self.awaited.stop()
        self.quiet()
        for answer in answers:
            self.assertNoResult(answer)

    def test_cancelled(self) -> None:
        """An asker that is gone would bring those down that still wait."""
        first, second = self.ask(0b10), self.ask(0b10)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.come(0b10)
        self.clock.advance(NEWS_S)
        self.assertEqual(self.successResultOf(second), told(0b10))
        self.quiet()

    def test_asked_again_from_within(self) -> None:
        """Who asks again as soon as it is answered would be answered twice, or not at all."""
        again: list[Deferred[PiecesData]] = []
        self.ask(0b10).addCallback(lambda _: again.append(self.ask(0b100)))
        self.come(0b10)
        self.clock.advance(NEWS_S)
        self.assertNoResult(again[0])
        self.come(0b100)
        self.clock.advance(NEWS_S)
        self.assertEqual(self.successResultOf(again[0]), told(0b100))
        self.quiet()
