"""Whose turn it is to give a piece."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download import fetch_blocks
from ciruela.download.fetch_blocks import OUT_OF_TURN_S, TURNS_S, PieceAssignment
from ciruela.download.sources import Candidate, Sources
from ciruela.model.bitfield import FULL, Pieces
from tests.proof import shows

ME, A, B, C = (bytes([number]) * 16 for number in (9, 1, 2, 3))
PIECES = Pieces(1000, 1)


class TurnsTests(SynchronousTestCase):
    """A download with up to three peers."""

    def setUp(self) -> None:
        self.turns = PieceAssignment(ME, PIECES.count)
        self.sources = Sources(PIECES)
        self.candidates: dict[object, Candidate] = {}
        self.now_s = 10.0

    def peer(self, machine: bytes, mask: int, *, served: bool = False) -> None:
        self.candidates[machine] = Candidate(machine, "a peer", lambda _: Deferred(), mask, seed=False, machine=machine, served=served)

    def client(self) -> None:
        self.candidates["client"] = Candidate("client", "client", lambda _: Deferred(), FULL, seed=True, bulk=True)

    def look(self, later_s: float = 1.0, wanted: int = FULL) -> None:
        self.now_s += later_s
        self.sources.update(list(self.candidates.values()), self.now_s)
        self.turns.look(self.sources.active(), wanted, self.now_s)

    def test_as_all_see_it(self) -> None:
        """This node would wait for a relay that the others do not know of."""
        self.peer(A, 0, served=True)
        self.peer(B, 0)
        self.look()
        expected = fetch_blocks.near(PIECES.count, ME, (A, B), frozenset({A}))
        self.assertEqual({one: self.turns.near(one) for one in (A, B)}, expected)
        self.assertEqual({one: self.turns.of(one) for one in (A, B)}, expected)
        self.assertEqual((self.turns.near(C), self.turns.of(C)), (0, 0))

    def test_served_here(self) -> None:
        """Where a client gives to this node, its part as a relay is another."""
        self.peer(A, 0)
        self.peer(B, 0, served=True)
        self.client()
        self.look()
        expected = fetch_blocks.near(PIECES.count, ME, (A, B), frozenset({B, ME}))
        self.assertEqual({one: self.turns.near(one) for one in (A, B)}, expected)

    def test_who_comes_and_goes(self) -> None:
        """A peer that is gone would be waited for; one that is new would be the relay of nothing."""
        self.peer(A, 0)
        self.peer(B, 0)
        self.look()
        before = self.turns.near(A)
        self.peer(C, 0)
        self.look(TURNS_S / 2)
        self.assertEqual((self.turns.near(A), self.turns.near(C)), (before, 0), "a moment later: not all is computed again")
        self.look(TURNS_S)
        self.assertEqual(self.turns.near(C), fetch_blocks.near(PIECES.count, ME, (A, B, C), frozenset())[C])
        del self.candidates[A]
        self.look()
        self.assertEqual(self.turns.near(A), 0)
        self.assertEqual(self.turns.near(B), fetch_blocks.near(PIECES.count, ME, (B, C), frozenset())[B])

    @shows("A58", "F52")
    def test_late(self) -> None:
        """A relay that is dead or slow would hold its pieces up for ever."""
        for machine in (A, B, C):
            self.peer(machine, 0)
        self.look()
        not_from_b = FULL & ~self.turns.near(B)
        piece = not_from_b & -not_from_b
        self.peer(B, piece)
        self.look()
        self.look(OUT_OF_TURN_S - 0.1)
        self.assertEqual(self.turns.of(B) & piece, 0)
        self.look(0.2)
        self.assertEqual(self.turns.of(B) & piece, piece)
        self.assertEqual(self.turns.of(A), self.turns.near(A) | piece)
        self.assertEqual(self.turns.near(B) & piece, 0, "news of it would be asked for from everybody")
        self.assertEqual(self.turns.of(B) & ~self.turns.near(B), piece, "others are not late")

    def test_not_late(self) -> None:
        """What this node has, or has asked for, does not wait for anybody; what came to a peer later is not late with the rest."""
        for machine in (A, B, C):
            self.peer(machine, 0)
        self.look()
        away = FULL & ~self.turns.near(A)
        first = away & -away
        second = (away ^ first) & -(away ^ first)
        third = (away ^ first ^ second) & -(away ^ first ^ second)
        self.peer(A, first | third)
        self.look(wanted=FULL & ~third)
        self.peer(A, first | second | third)
        self.look(OUT_OF_TURN_S / 2, wanted=FULL & ~third)
        self.look(OUT_OF_TURN_S / 2 + 0.1, wanted=FULL & ~third)
        self.assertEqual(self.turns.of(A) & away, first)
        self.look(OUT_OF_TURN_S / 2)
        self.assertEqual(self.turns.of(A) & away, first | second)
        self.look(OUT_OF_TURN_S)
        self.assertEqual(self.turns.of(A) & away, first | second | third)
