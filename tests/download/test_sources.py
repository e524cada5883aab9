"""How sources are treated."""

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.sources import (
    BULK_BLOCKS,
    DENIED_S,
    FIRST_WINDOW,
    LONGEST_BAD_S,
    MOST_BAD_BLOCKS,
    MOST_WINDOW,
    SLOW_S,
    Candidate,
    Source,
    Sources,
)
from ciruela.model.mask import FULL
from tests.proof import shows


def candidate(key="a", mask=FULL, seed=False, hearsay=False):
    return Candidate(key, str(key), lambda request: Deferred(), mask, seed, hearsay)


class SourceTests(SynchronousTestCase):
    """A bad source costs only itself."""

    def test_window_grows(self):
        """A source that answers fast is asked for more at a time, up to a limit."""
        source = Source(candidate())
        for _ in range(200):
            source.gave(0.01)
        self.assertEqual(source.window, MOST_WINDOW)

    @shows("A58")
    def test_window_shrinks(self):
        """A slow link does not fill up with requests that then run into their deadline."""
        source = Source(candidate())
        for _ in range(200):
            source.gave(SLOW_S + 1)
        self.assertEqual(source.window, 2)

    def test_ready(self):
        """Not more than the window, and not while it rests."""
        source = Source(candidate())
        self.assertTrue(source.room(0.0))
        source.in_flight = FIRST_WINDOW
        self.assertFalse(source.room(0.0))
        source.in_flight = 0
        source.failed(10.0)
        self.assertFalse(source.room(10.9))
        self.assertTrue(source.room(11.0))
        source.failed(11.0)
        self.assertFalse(source.room(12.9))
        self.assertTrue(source.room(13.0))

    @shows("A7", "F5")
    def test_liar(self):
        """Wrong bytes: 30 s of rest, doubling; after three never again for this image."""
        source = Source(candidate())
        source.lied(0.0)
        self.assertFalse(source.room(29.9))
        self.assertTrue(source.room(30.0))
        source.lied(30.0)
        self.assertFalse(source.room(89.9))
        self.assertTrue(source.room(90.0))
        source.lied(90.0)
        self.assertEqual(source.bad_blocks, MOST_BAD_BLOCKS)
        self.assertFalse(source.room(90.0 + 10 * LONGEST_BAD_S))

    def test_deadline_counts_what_is_in_flight(self):
        """A slow but honest client is given the time that its queue takes."""
        source = Source(candidate())
        alone = source.deadline_s()
        source.in_flight = 31
        self.assertAlmostEqual(source.deadline_s() - alone, 31 * 32768 / 51200)

    @shows("A36", "F27")
    def test_lacked(self):
        """A peer that lacks a block is not asked for that slice again, but for others at once."""
        source = Source(candidate(mask=0b11))
        source.lacked(0, 0.0)
        self.assertEqual(source.mask, 0b10)
        self.assertTrue(source.room(0.0))

    def test_lacked_by_a_guess(self):
        """Who was only guessed to have the image, or a client that cannot read it, rests after a refusal."""
        for one in (candidate(hearsay=True), candidate(seed=True)):
            source = Source(one)
            source.lacked(0, 0.0)
            self.assertFalse(source.room(0.5))
            self.assertTrue(source.room(1.0))
            self.assertEqual(source.mask, FULL)

    def test_shared_connection(self):
        """Downloads that share a client's connection share what may be in flight on it."""
        source = Source(Candidate("a", "a", lambda request: Deferred(), FULL, True, most=2))
        source.in_flight = 1
        self.assertTrue(source.room(0.0))
        source.in_flight = 2
        self.assertFalse(source.room(0.0))


class SourcesTests(SynchronousTestCase):
    """Candidates come and go, their record stays."""

    @shows("A7", "F5")
    def test_record_stays(self):
        """A liar does not start anew with each look around, nor by reconnecting for a moment."""
        sources = Sources()
        sources.update([candidate("a"), candidate("b")], 0.0)
        sources.active()[0].lied(0.0)
        sources.update([candidate("b")], 0.0)
        self.assertEqual([source.candidate.key for source in sources.active()], ["b"])
        sources.update([candidate("a")], 0.0)
        self.assertEqual(sources.active()[0].bad_blocks, 1)

    def test_new_claim_is_believed(self):
        """A peer that got further is asked again for what it lacked before."""
        sources = Sources()
        sources.update([candidate(mask=0b01)], 0.0)
        sources.active()[0].lacked(0, 0.0)
        sources.update([candidate(mask=0b01)], 1.0)
        self.assertEqual(sources.active()[0].mask, 0)
        sources.update([candidate(mask=0b11)], 2.0)
        self.assertEqual(sources.active()[0].mask, 0b11)

    @shows("A36")
    def test_denial_ends(self):
        """A peer whose disk was slow once is asked again after a while: a download must not wait for ever for its last block."""
        sources = Sources()
        sources.update([candidate(mask=FULL)], 0.0)
        sources.active()[0].lacked(7, 0.0)
        sources.update([candidate(mask=FULL)], DENIED_S - 1)
        self.assertEqual(sources.active()[0].mask, FULL & ~(1 << 7))
        sources.update([candidate(mask=FULL)], DENIED_S)
        self.assertEqual(sources.active()[0].mask, FULL)

    def test_claimed_by_peers(self):
        """Only what peers claim themselves counts as available elsewhere."""
        sources = Sources()
        sources.update(
            [candidate("c", seed=True), candidate("g", hearsay=True), candidate("p", mask=0b101), candidate("q", mask=0b001)], 0.0
        )
        self.assertEqual(sources.claimed_by_peers(), 0b101)

    def test_room_for_many(self):
        """Answers of one block each would be asked for, or none at all because the window is almost full."""
        source = Source(Candidate("x", "x", print, FULL, seed=False, bulk=True))
        self.assertEqual(source.room(0.0), FIRST_WINDOW)
        source.window = 2 * BULK_BLOCKS + 5
        self.assertEqual(source.room(0.0), BULK_BLOCKS)
        source.in_flight = 2 * BULK_BLOCKS
        self.assertEqual(source.room(0.0), 0)
        source.gave(0.1, BULK_BLOCKS)
        self.assertEqual(source.window, 3 * BULK_BLOCKS + 5)
        source.gave(0.1, 1000)
        self.assertEqual(source.window, MOST_WINDOW)
        source.gave(SLOW_S + 1, BULK_BLOCKS)
        self.assertEqual(source.window, MOST_WINDOW - BULK_BLOCKS)
