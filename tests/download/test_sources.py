"""How sources are treated."""

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.sources import (
    BATCH_BYTES,
    BATCH_S,
    BUSY_S,
    DENIED_S,
    FIRST_BLOCKS,
    FIRST_WINDOW,
    LATE_S,
    LONGEST_BAD_S,
    MOST_BAD_BLOCKS,
    MOST_BATCH_BYTES,
    MOST_WINDOW,
    SLOW_S,
    SLOWER,
    Candidate,
    CompressionChoice,
    Sources,
)
from ciruela.index.digest import BLOCK_BYTES
from ciruela.model.bitfield import FULL, Pieces
from tests.proof import shows

PIECES = Pieces(1000, 1)


def candidate(key="a", mask=FULL, seed=False, hearsay=False):
    return Candidate(key, str(key), lambda request: Deferred(), mask, seed, hearsay)


def source_of(one):
    """The source as it begins."""
    sources = Sources(PIECES)
    sources.update([one], 0.0)
    return sources.active()[0]


def bulky(mask=FULL, most=MOST_WINDOW):
    """A source that understands GetBlocks."""
    return source_of(Candidate("x", "x", print, mask, seed=False, bulk=True, most=most))


class SourceTests(SynchronousTestCase):
    """A bad source costs only itself."""

    def test_window_grows(self):
        """A source that answers fast is asked for more at a time, up to a limit."""
        source = source_of(candidate())
        for _ in range(200):
            source.gave(0.01, 1, BLOCK_BYTES)
        self.assertEqual(source.window, MOST_WINDOW)

    @shows("A58")
    def test_window_shrinks(self):
        """A slow link does not fill up with requests that then run into their deadline."""
        source = source_of(candidate())
        for _ in range(200):
            source.gave(SLOW_S + 1, 1, BLOCK_BYTES)
        self.assertEqual(source.window, 2 * BLOCK_BYTES)

    def test_ready(self):
        """Not more than the window, and not while it rests."""
        source = source_of(candidate())
        self.assertTrue(source.room(0.0))
        self.assertEqual(source.window, FIRST_BLOCKS * BLOCK_BYTES)
        source.in_flight = FIRST_BLOCKS * BLOCK_BYTES
        self.assertFalse(source.room(0.0))
        source.in_flight -= 1
        self.assertEqual(source.room(0.0), BLOCK_BYTES)
        source.in_flight = 0
        source.failed(10.0)
        self.assertFalse(source.room(10.9))
        self.assertTrue(source.room(11.0))
        source.failed(11.0)
        self.assertFalse(source.room(12.9))
        self.assertTrue(source.room(13.0))

    @shows("K7.5")
    def test_one_silence(self):
        """A client that was paused for a moment with 64 requests under way would be left alone for half a minute."""
        source = source_of(candidate())
        for _ in range(64):
            source.failed(10.0, 4.0)
        self.assertEqual((source.failures, source.window), (1, FIRST_BLOCKS * BLOCK_BYTES // 2))
        self.assertTrue(source.room(11.0))
        source.failed(17.0, 11.0)
        self.assertEqual(source.failures, 2, "what was asked after a failure is another one")
        self.assertFalse(source.room(18.9))
        source.gave(7.0, 1, BLOCK_BYTES)
        self.assertTrue(source.room(17.1), "it is back")

    @shows("K7.5", "A7")
    def test_liar_is_not_back(self):
        """Who gives a wrong block and then a good one would be asked again at once."""
        source = source_of(candidate())
        source.failed(0.0)
        source.lied(1.0)
        source.gave(0.1, 1, BLOCK_BYTES)
        self.assertFalse(source.room(2.0))

    @shows("A7", "F5")
    def test_liar(self):
        """Wrong bytes: 30 s of rest, doubling; after three never again for this image."""
        source = source_of(candidate())
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
        source = source_of(candidate())
        alone = source.deadline_s(BLOCK_BYTES, 0.0)
        self.assertAlmostEqual(alone - source.deadline_s(0, 0.0), BLOCK_BYTES / 51200)
        source.in_flight = 31 * BLOCK_BYTES
        self.assertAlmostEqual(source.deadline_s(BLOCK_BYTES, 0.0) - alone, 31 * BLOCK_BYTES / 51200)

    @shows("A58", "F52")
    def test_deadline_by_what_others_give(self):
        """Where everybody else gives megabytes a second, a source that gives nothing would be waited for as long as a modem."""
        source = bulky()
        self.assertAlmostEqual(source.deadline_s(1_000_000, 1e6), LATE_S + SLOWER)
        self.assertEqual(source.deadline_s(1_000_000, 1000.0), source.deadline_s(1_000_000, 0.0), "all are slow: as long as ever")

    def test_usual_rate(self):
        """One very fast or very slow source would decide how long all others are waited for."""
        sources = Sources(PIECES)
        sources.update([Candidate(name, name, print, FULL, seed=False, bulk=True) for name in "abcd"], 0.0)
        one, *others = sources.active()
        self.assertEqual(sources.usual_rate(one), 0.0)
        for other, took_s in zip(others, (0.001, 0.1, 10.0), strict=True):
            other.in_flight = BATCH_BYTES
            other.gave(took_s, 8, BATCH_BYTES)
        self.assertAlmostEqual(sources.usual_rate(one), BATCH_BYTES / 0.1)
        self.assertAlmostEqual(sources.usual_rate(others[1]), BATCH_BYTES / 0.001)

    def test_busy(self):
        """A source that serves others would be taken for a bad one, or be asked again at once, by everybody."""
        source = bulky()
        source.busy(100.0)
        self.assertEqual((source.failures, source.bad_blocks, source.mask, source.room(100.0)), (0, 0, FULL, 0))
        self.assertTrue(source.room(100.0 + BUSY_S))

    def test_far_away(self):
        """Over a long link little in flight leaves it idle; over a short one much in flight only waits in a queue."""
        for quickest_s, least, most in ((0.2, 3 * BATCH_BYTES, MOST_WINDOW), (0.001, 2 * BATCH_BYTES, 2 * BATCH_BYTES + 1)):
            source = bulky()
            source.window = MOST_WINDOW
            source.quickest_s = quickest_s
            for _ in range(30):
                source.in_flight = round(4e6 * (quickest_s + 0.1))
                source.gave(quickest_s + 0.1, 8, BATCH_BYTES)
            source.in_flight = 0
            while room := source.room(0.0):
                source.in_flight += room
            self.assertTrue(least <= source.in_flight <= most, source.in_flight)

    @shows("A36", "F27")
    def test_lacked(self):
        """A peer that lacks a block is not asked for that slice again, but for others at once."""
        source = source_of(candidate(mask=0b11))
        source.lacked(1, 0.0)
        self.assertEqual(source.mask, 0b10)
        self.assertTrue(source.room(0.0))

    def test_lacked_by_a_guess(self):
        """Who was only guessed to have the image, or a client that cannot read it, rests after a refusal."""
        for one in (candidate(hearsay=True), candidate(seed=True)):
            source = source_of(one)
            source.lacked(1, 0.0)
            self.assertFalse(source.room(0.5))
            self.assertTrue(source.room(1.0))
            self.assertEqual(source.mask, FULL)

    def test_shared_connection(self):
        """Downloads that share a client's connection share what may be in flight on it."""
        source = source_of(Candidate("a", "a", lambda request: Deferred(), FULL, True, most=2 * BLOCK_BYTES))
        source.in_flight = BLOCK_BYTES
        self.assertTrue(source.room(0.0))
        source.in_flight = 2 * BLOCK_BYTES
        self.assertFalse(source.room(0.0))
        shared = bulky(most=BATCH_BYTES // 4)
        self.assertEqual(shared.room(0.0), BATCH_BYTES // 4)
        shared.in_flight = 1
        self.assertEqual(shared.room(0.0), 0)


class SourcesTests(SynchronousTestCase):
    """Candidates come and go, their record stays."""

    @shows("A7", "F5")
    def test_record_stays(self):
        """A liar does not start anew with each look around, nor by reconnecting for a moment."""
        sources = Sources(PIECES)
        sources.update([candidate("a"), candidate("b")], 0.0)
        sources.active()[0].lied(0.0)
        sources.update([candidate("b")], 0.0)
        self.assertEqual([source.candidate.key for source in sources.active()], ["b"])
        sources.update([candidate("a")], 0.0)
        self.assertEqual(sources.active()[0].bad_blocks, 1)

    def test_new_claim_is_believed(self):
        """A peer that got further is asked again for what it lacked before."""
        sources = Sources(PIECES)
        sources.update([candidate(mask=0b01)], 0.0)
        sources.active()[0].lacked(1, 0.0)
        sources.update([candidate(mask=0b01)], 1.0)
        self.assertEqual(sources.active()[0].mask, 0)
        sources.update([candidate(mask=0b11)], 2.0)
        self.assertEqual(sources.active()[0].mask, 0b11)

    @shows("A36")
    def test_denial_ends(self):
        """A peer whose disk was slow once is asked again after a while: a download must not wait for ever for its last block."""
        sources = Sources(PIECES)
        sources.update([candidate(mask=FULL)], 0.0)
        sources.active()[0].lacked(1 << 7, 0.0)
        sources.update([candidate(mask=FULL)], DENIED_S - 1)
        self.assertEqual(sources.active()[0].mask, FULL & ~(1 << 7))
        sources.update([candidate(mask=FULL)], DENIED_S)
        self.assertEqual(sources.active()[0].mask, FULL)

    def test_claimed_by_peers(self):
        """Only what peers claim themselves counts as available elsewhere."""
        sources = Sources(PIECES)
        sources.update(
            [candidate("c", seed=True), candidate("g", hearsay=True), candidate("p", mask=0b101), candidate("q", mask=0b001)], 0.0
        )
        self.assertEqual(sources.claimed_by_peers(), 0b101)

    def test_pieces(self):
        """A peer that claims a slice would be asked for a part of it only, or for one that it did not claim."""
        sources = Sources(Pieces(100_000, 3))
        sources.update([candidate("p", mask=0b101), candidate("q", mask=0b001)], 0.0)
        self.assertEqual([one.mask for one in sources.active()], [0b111000111, 0b111])
        self.assertEqual(sources.claimed_by_peers(), 0b111000111)

    def test_what_was_told(self):
        """What a peer has told over a connection would be forgotten with the next, older, word of gossip."""
        sources = Sources(Pieces(100_000, 3))
        sources.update([candidate("p", mask=0b001)], 0.0)
        (one,) = sources.active()
        one.told(1 << 100)
        sources.update([candidate("p", mask=0b011)], 1.0)
        self.assertEqual(one.mask, 1 << 100 | 0b111111)

    @shows("A36")
    def test_told_after_denial(self):
        """A peer would be asked again and again for what it tells that it has and does not give; or never for what it has got since."""
        one = source_of(candidate(mask=0b01))
        one.lacked(0b11, 0.0)
        one.told(0b01)
        self.assertEqual(one.mask, 0, "it says nothing new")
        one.told(0b10)
        self.assertEqual(one.mask, 0b10)

    def test_room_for_many(self):
        """Answers of one block each would be asked for, or none at all because the window is almost full."""
        source = bulky()
        self.assertEqual(source.window, FIRST_WINDOW)
        self.assertEqual(source.room(0.0), min(FIRST_WINDOW, BATCH_BYTES))
        source.window = 2 * BATCH_BYTES + 5000
        source.rate, source.quickest_s = 1e9, 0.1
        self.assertEqual(source.room(0.0), BATCH_BYTES)
        source.in_flight = 2 * BATCH_BYTES
        self.assertEqual(source.room(0.0), 0)
        source.in_flight = BATCH_BYTES + 5000
        self.assertEqual(source.room(0.0), BATCH_BYTES)
        source.gave(0.1, 8, BATCH_BYTES)
        self.assertEqual(source.window, 3 * BATCH_BYTES + 5000)
        source.gave(0.1, 1000, MOST_WINDOW)
        self.assertEqual(source.window, MOST_WINDOW)
        source.gave(SLOW_S + 1, 8, BATCH_BYTES)
        self.assertEqual(source.window, MOST_WINDOW - BATCH_BYTES)
        self.assertEqual(source.blocks, 1016)

    def test_batch(self):
        """An answer would take so long that others wait for it, or be so small that it costs more than what is in it."""
        source = bulky()
        source.window = MOST_WINDOW
        for rate, batch in ((0, BATCH_BYTES), (1, BATCH_BYTES), (2, 2 * BATCH_BYTES), (3, 3 * BATCH_BYTES), (1000, MOST_BATCH_BYTES)):
            source.in_flight = BATCH_BYTES
            source.gave(BATCH_S / rate if rate else 1e6, 8, BATCH_BYTES)
            self.assertLessEqual(abs(source.batch - batch), 1)
            source.in_flight = 0
            self.assertEqual(source.room(0.0), source.batch)
        source.gave(0.0, 8, BATCH_BYTES)
        self.assertEqual(source.batch, MOST_BATCH_BYTES, "within one tick of the clock: nothing can be told")

    def test_small_window(self):
        """A source whose window has shrunk below one answer would never be asked again."""
        source = bulky()
        source.window = BLOCK_BYTES
        self.assertEqual(source.room(0.0), BLOCK_BYTES)
        source.in_flight = 1
        self.assertEqual(source.room(0.0), 0)

    def test_packing_is_its_own(self):
        """What one source is asked for would depend on how fast another is."""
        sources = Sources(PIECES)
        sources.update([candidate("p"), candidate("q")], 0.0)
        one, other = sources.active()
        self.assertIsInstance(one.packing, CompressionChoice)
        self.assertIsNot(one.packing, other.packing)
