"""Hearing at once what other nodes have by now."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.availability import AGAIN_S, ANSWER_S, HELD_S, NOTHING_S, AvailabilitySubscription
from ciruela.download.sources import Candidate, PeerCandidate, Sources
from ciruela.model.bitfield import Pieces
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.proto.messages import GetPieces, PiecesData, Request, Response, ShareData
from tests.proof import shows

IMAGE = ImageId(b"\1" * 32)
PIECES = Pieces(5000, 2)
SIZE = PIECES.count // 8


class LookoutTests(SynchronousTestCase):
    """One download and two peers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.news = 0
        self.asked: list[tuple[str, int]] = []
        self.answers: list[Deferred[Response]] = []
        self.answer: Deferred[Response] | None = None
        self.lookout = AvailabilitySubscription("/app/v1", IMAGE, PIECES, self.clock, self.hear)
        self.sources = Sources(PIECES)
        self.sources.update([self.candidate("a", 0b1), self.candidate("b", 0)], 100.0)
        self.one, self.other = self.sources.active()

    def hear(self) -> None:
        self.news += 1

    def candidate(self, name: str, mask: int) -> Candidate:
        def ask(request: Request) -> Deferred[Response]:
            assert isinstance(request, GetPieces)
            self.assertEqual((request.path, request.image), ("/app/v1", IMAGE))
            self.asked.append((name, PIECES.from_bytes(request.wanted)))
            answer: Deferred[Response] = Deferred() if self.answer is None else self.answer
            self.answers.append(answer)
            return answer

        return Candidate(name, name, ask, mask, seed=False, bulk=True, machine=name.encode())

    def look(self, *wanted: tuple[PeerCandidate, int]) -> None:
        self.lookout.look(wanted)

    def over(self) -> None:
        """The download ends; what was asked is answered, or not."""
        self.lookout.stop()
        self.clock.advance(ANSWER_S)
        self.quiet()

    def quiet(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asks(self) -> None:
        """What a peer has said already would be asked for again, and be answered at once, again and again."""
        self.look((self.one, 0b1111), (self.other, 0b1100))
        self.assertEqual(self.asked, [("a", 0b1100), ("b", 0b1100)])
        self.look((self.one, 0b11111), (self.other, 0b1100))
        self.assertEqual(len(self.asked), 2, "one at a time")
        self.answers[0].callback(PiecesData(PIECES.to_bytes(0b100)))
        self.assertEqual((self.news, self.one.mask), (1, 0b111))
        self.look((self.one, 0b111), (self.other, 0))
        self.assertEqual(len(self.asked), 2, "it has all that is wanted of it")
        self.look((self.one, 0b1111))
        self.assertEqual(self.asked[2:], [("a", 0b1000)])
        self.over()

    def test_nothing_new(self) -> None:
        """A node that holds the question as long as it can would be asked no more, or the pump would run for nothing."""
        self.look((self.one, 0b100))
        self.clock.advance(HELD_S)
        self.answers[0].callback(PiecesData(bytes(SIZE)))
        self.assertEqual((self.news, self.one.mask), (0, 0b11))
        self.quiet()
        self.look((self.one, 0b100))
        self.assertEqual(len(self.asked), 1, "it may answer like this at once, for ever")
        self.clock.advance(NOTHING_S)
        self.look((self.one, 0b100))
        self.assertEqual(len(self.asked), 2)
        self.lookout.stop()

    def test_gossip_was_faster(self) -> None:
        """Nobody would ask again until something else happens."""
        self.look((self.one, 0b100))
        self.one.told(0b100)
        self.answers[0].callback(PiecesData(PIECES.to_bytes(0b100)))
        self.assertEqual(self.news, 1)
        self.over()

    def test_answered_at_once(self) -> None:
        """A peer whose answer is there before the question is out would never be asked again."""
        self.answer = succeed(PiecesData(PIECES.to_bytes(0b100)))
        self.look((self.one, 0b100))
        self.assertEqual((self.news, self.one.awaited), (1, False))
        self.quiet()

    @shows("A58", "F52")
    def test_failures(self) -> None:
        """A peer that refuses, or is gone, would be asked without a pause, or never again."""
        for fault in (RemoteError("image not found"), LinkLost("gone")):
            self.setUp()
            self.answer = fail(fault)
            self.look((self.one, 0b100))
            self.answer = None
            self.clock.advance(AGAIN_S - 0.1)
            self.look((self.one, 0b100))
            self.assertEqual((len(self.asked), self.news), (1, 0))
            self.clock.advance(0.1)
            self.look((self.one, 0b100))
            self.assertEqual(len(self.asked), 2)
            self.over()

    def test_fault_of_ours(self) -> None:
        """A fault in what is done with the news would be taken for a failure of the peer, and nobody would ever hear of it."""
        self.hear = lambda: {}["nothing"]  # type: ignore[method-assign]
        self.lookout = AvailabilitySubscription("/app/v1", IMAGE, PIECES, self.clock, self.hear)
        self.answer = succeed(PiecesData(PIECES.to_bytes(0b110)))
        self.lookout.look([(self.one, 0b110)])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.one.await_from_s, 100.0 + AGAIN_S)

    @shows("A58", "F52")
    def test_silence(self) -> None:
        """A peer that never answers would count as asked for ever."""
        self.look((self.one, 0b100))
        self.clock.advance(ANSWER_S)
        self.assertFalse(self.one.awaited)
        self.quiet()
        self.clock.advance(AGAIN_S)
        self.look((self.one, 0b100))
        self.assertEqual(len(self.asked), 2)
        self.lookout.stop()

    @shows("A24")
    def test_wrong_answers(self) -> None:
        """A mask of another image, or another kind of answer, would end the download."""
        for wrong in (ShareData(b"\xff" * SIZE), PiecesData(b"\xff" * 32), PiecesData(b"\xff" * (SIZE + 32))):
            self.setUp()
            self.look((self.one, 0b100))
            self.answers[0].callback(wrong)
            self.assertEqual((self.news, self.one.mask), (0, 0b11))
            self.look((self.one, 0b100))
            self.assertEqual(len(self.asked), 1, "it is left alone for a while")
            self.quiet()

    def test_stop(self) -> None:
        """A download that has ended would go on, because of what is still answered to it."""
        self.look((self.one, 0b100), (self.other, 0b100))
        self.lookout.stop()
        self.answers[0].callback(PiecesData(PIECES.to_bytes(0b100)))
        self.assertEqual((self.news, self.one.awaited), (0, False))
        self.clock.advance(ANSWER_S)
        self.assertEqual((self.news, self.other.awaited), (0, False))
        self.quiet()
